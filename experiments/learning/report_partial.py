"""The page of the partial labels: half of the labels, masked or taken for background, against all of them."""

from collections.abc import Mapping, Sequence

from data import LABEL_NAMES
from partial_labels import ARMS, STARTS
from picture import Panel, draw
from PIL import Image
from table import Spread, markdown, number, spread
from world import Json

TARGET = 0.01
KEYS = ("dice", *(f"{label}_{what}" for what in ("dice", "hd95_mm") for label in LABEL_NAMES))

Result = Mapping[str, Json]
Found = Mapping[tuple[str, str], Mapping[str, Spread]]


def make(results: Sequence[Result]) -> tuple[dict[str, Json], str, Image.Image]:
    """Give summary, text and picture."""
    found: Found = {
        (start, arm): {
            key: spread(
                number(one, "figures", key) for one in results if (one["start"], one["arm"]) == (start, arm)
            )
            for key in KEYS
        }
        for start in STARTS
        for arm in ARMS
    }
    rows = [
        [start, arm, *(one.words(2 if key.endswith("mm") else 3) for key, one in figures.items())]
        for (start, arm), figures in found.items()
    ]
    header = ["start", "labels", "Dice"]
    header += [f"{label} {what}" for what in ("Dice", "HD95 (mm)") for label in LABEL_NAMES]
    summary: dict[str, Json] = {
        f"{start}_{arm}": {key: one.in_json() for key, one in figures.items()}
        for (start, arm), figures in found.items()
    }
    text = (
        "# Partial labels\n\n"
        "Half of the cases know the anterior part only, the other half the posterior part only. "
        "`pretrained`: a "
        "model of A learns the contrast C from 20 cases, 10 test cases; `scratch`: random weights learn from "
        "20 "
        "cases of A and 20 of B, 20 + 10 test cases. `full` knows both labels of every case. The same steps "
        "for "
        "all; mean ± standard deviation over seeds. A missed label counts 100 mm.\n\n"
    )
    return {"arms": summary}, text + markdown(header, rows) + "\n" + _targets(found), _picture(found)


def _targets(found: Found) -> str:
    lines = [f"Target: masked within {TARGET:g} Dice of full annotation.\n"]
    for start in STARTS:
        full, masked, unmasked = (found[start, arm]["dice"] for arm in ARMS)
        if full.values and masked.values:
            short = full.mean - masked.mean
            state = "met" if short <= TARGET else "NOT met"
            warning = f"; unmasked lacks {full.mean - unmasked.mean:.3f}" if unmasked.values else ""
            lines.append(f"- {start}: {state}, masked lacks {short:.4f}{warning}.")
    return "\n".join(lines) + "\n"


def _picture(found: Found) -> Image.Image:
    panels = [
        Panel(
            title=start,
            x_title="",
            places=list(LABEL_NAMES),
            series={
                arm: [found[start, arm][f"{label}_dice"].values for label in LABEL_NAMES] for arm in ARMS
            },
            low=0.0,
            high=1.0,
            joined=False,
        )
        for start in STARTS
    ]
    return draw("Partial labels: Dice, bars: SD over seeds", panels)
