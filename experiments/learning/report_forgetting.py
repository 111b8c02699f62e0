"""The page of forgetting: what is lost on A, and what is gained on B."""

from collections.abc import Mapping, Sequence

from forgetting import CASES, EARLIER, arms
from picture import Panel, draw
from PIL import Image
from table import Spread, markdown, number, spread
from world import Json

TARGET = 0.01
DEFAULT = "full+replay"
"""As our default recipe learns."""
SHOWN: Mapping[str, str] = {"lost": "lost on A", "gained": "gained on B"}
PANEL_ARMS = 5

Result = Mapping[str, Json]


def make(results: Sequence[Result]) -> tuple[dict[str, Json], str, Image.Image]:
    """Give summary, text and picture."""
    found = {arm: _figures([one for one in results if one["arm"] == arm]) for arm in arms()}
    found = {arm: figures for arm, figures in found.items() if figures["lost"].values}
    rows = [
        [
            arm,
            figures["lost"].words(4),
            figures["gained"].words(),
            figures["a_after"].words(),
            figures["b_after"].words(),
            figures["b_hd95_mm"].words(2),
            f"{figures['seconds'].median:.0f}",
        ]
        for arm, figures in found.items()
    ]
    header = [
        "arm",
        "Dice lost on A",
        "gained on B",
        "Dice on A",
        "on B",
        "HD95 on B (mm)",
        "seconds (median)",
    ]
    summary: dict[str, Json] = {
        arm: {key: one.in_json() for key, one in figures.items()} for arm, figures in found.items()
    }
    text = (
        "# Forgetting\n\n"
        f"A model pretrained on 60 cases of A adapts to {CASES} cases of B. 20 test cases of A, 10 of B, "
        "seen by "
        f"no training. Replay repeats {EARLIER} of the cases of A. `+partial` and `+distillation` know only "
        "the "
        "anterior part of the new cases. Learning rates of the recipes, the same number of steps for all; "
        "mean ± "
        "standard deviation over seeds.\n\n"
    )
    return {"arms": summary}, text + markdown(header, rows) + "\n" + _target(found), _picture(found)


def _figures(own: Sequence[Result]) -> dict[str, Spread]:
    def change(domain: str) -> list[float]:
        return [
            number(one, "figures", domain, "after", "dice") - number(one, "figures", domain, "before", "dice")
            for one in own
        ]

    return {
        "lost": spread(-one for one in change("A")),
        "gained": spread(change("B")),
        "a_after": spread(number(one, "figures", "A", "after", "dice") for one in own),
        "b_after": spread(number(one, "figures", "B", "after", "dice") for one in own),
        "b_hd95_mm": spread(number(one, "figures", "B", "after", "hd95_mm") for one in own),
        "seconds": spread(number(one, "seconds") for one in own),
    }


def _target(found: Mapping[str, Mapping[str, Spread]]) -> str:
    words = f"Target: at most {TARGET:g} Dice lost on A with the default recipe ({DEFAULT})"
    if DEFAULT not in found:
        return f"{words}: not measured yet.\n"
    lost = found[DEFAULT]["lost"]
    state = "met" if lost.mean <= TARGET else "NOT met"
    kept = [arm for arm, figures in found.items() if figures["lost"].mean <= TARGET]
    return f"{words}: {state}, {lost.words(4)}. Arms within the target: {', '.join(kept) or 'none'}.\n"


def _picture(found: Mapping[str, Mapping[str, Spread]]) -> Image.Image:
    names = list(found)
    values = [one for figures in found.values() for key in SHOWN for one in figures[key].values]
    panels = []
    for start in range(0, len(names), PANEL_ARMS):
        part = names[start : start + PANEL_ARMS]
        series = {words: [found[arm][key].values for arm in part] for key, words in SHOWN.items()}
        panels.append(
            Panel(
                title="Dice",
                x_title="",
                places=[arm.replace("+", "\n+") for arm in part],
                series=series,
                low=min(values) - 0.01,
                high=max(values) + 0.01,
                joined=False,
            )
        )
    return draw("Forgetting: A after adapting to B, bars: SD over seeds", panels)
