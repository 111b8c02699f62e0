"""The page of the generations: night after night, who rises, and who falls."""

from collections.abc import Mapping, Sequence

import numpy as np
from picture import Panel, draw
from PIL import Image
from table import Spread, at, markdown, number, rows_of, spread
from world import Json

RISE = 0.007
RISE_NIGHTS = 5
LARGEST_FALL = 0.005

Result = Mapping[str, Json]


def make(results: Sequence[Result]) -> tuple[dict[str, Json], str, Image.Image]:
    """Give summary, text and picture."""
    groups: dict[str, list[Result]] = {}
    for one in results:
        groups.setdefault(_name(one), []).append(one)
    found = {name: _figures(own) for name, own in sorted(groups.items())}
    header = ["contender", "seeds", "Dice before", "best", "after the last night", "HD95 then (mm)"]
    header += [
        "rise per night at first",
        "largest fall below its best",
        "accepted",
        "refused",
        "wrong doubted",
    ]
    header += ["right doubted"]
    rows = [
        [
            name,
            str(len(groups[name])),
            *(figures[key].words() for key in ("before", "best", "last")),
            figures["hd95_mm"].words(2),
            *(figures[key].words(4) for key in ("rise", "fall")),
            *(figures[key].words(1) for key in ("accepted", "refused")),
            *(figures[key].words(2) for key in ("wrong_doubted", "right_doubted")),
        ]
        for name, figures in found.items()
    ]
    summary: dict[str, Json] = {
        name: {key: one.in_json() for key, one in figures.items()} for name, figures in found.items()
    }
    for name, own in groups.items():
        summary[f"{name}_curves"] = [list[Json](curve_of(one)) for one in own]
    text = _introduction() + markdown(header, rows) + "\n" + _targets(found)
    return {"contenders": summary}, text, _picture(groups)


def curve_of(result: Result) -> list[float]:
    """Give the Dice of the version in use on the clean test cases: before, then after each night."""
    after = [number(night, "figures", "dice") for night in rows_of(result, "nights")]
    return [number(result, "start", "dice"), *after]


def rise_of(curve: Sequence[float]) -> float:
    """Give the mean rise in a night over the first nights."""
    nights = min(RISE_NIGHTS, len(curve) - 1)
    return (curve[nights] - curve[0]) / nights


def fall_of(curve: Sequence[float]) -> float:
    """Give the largest distance below what was best until then; 0 where it never fell."""
    return float((np.maximum.accumulate(curve) - np.asarray(curve)).max())


def _name(result: Result) -> str:
    contender = str(result["contender"])
    return (
        contender if contender == "dafne" else f"{contender} ({result['recipe']}, {result['learning_rate']})"
    )


def _figures(own: Sequence[Result]) -> dict[str, Spread]:
    curves = [curve_of(one) for one in own]
    verdicts = [[str(night["verdict"]) for night in rows_of(one, "nights")] for one in own]
    doubted = [_doubted(one) for one in own]
    return {
        "before": spread(curve[0] for curve in curves),
        "best": spread(max(curve) for curve in curves),
        "last": spread(curve[-1] for curve in curves),
        "hd95_mm": spread(number(rows_of(one, "nights")[-1], "figures", "hd95_mm") for one in own),
        "rise": spread(map(rise_of, curves)),
        "fall": spread(map(fall_of, curves)),
        "accepted": spread(float(one.count("accepted")) for one in verdicts),
        "refused": spread(float(one.count("refused")) for one in verdicts),
        "wrong_doubted": spread(wrong for wrong, _ in doubted),
        "right_doubted": spread(right for _, right in doubted),
    }


def _doubted(result: Result) -> tuple[float, float]:
    """Give the shares of the wrong and of the right corrections that had less than half the trust at last."""
    last = at(rows_of(result, "nights")[-1], "doubted")
    wrong = at(result, "wrong")
    if not isinstance(last, dict) or not isinstance(wrong, dict):
        raise TypeError("the result of a site is damaged")
    low = {name for name, parts in last.items() if isinstance(parts, list) and float(str(parts[0])) < 0.5}
    total = len(rows_of(result, "nights")) * 6
    return len(low & wrong.keys()) / max(len(wrong), 1), len(low - wrong.keys()) / max(total - len(wrong), 1)


def _targets(found: Mapping[str, Mapping[str, Spread]]) -> str:
    lines = [
        f"Target: ours rises by at least {RISE:g} Dice a night over the first {RISE_NIGHTS}, and never falls "
        "by "
        f"more than {LARGEST_FALL:g} below its best.\n"
    ]
    for name, figures in found.items():
        rise, fall = figures["rise"].mean, max(figures["fall"].values)
        state = "met" if rise >= RISE and fall <= LARGEST_FALL else "NOT met"
        lines.append(f"- {name}: {state}; rise {rise:+.4f}, largest fall of all seeds {fall:.4f}.")
    return "\n".join(lines) + "\n"


def _introduction() -> str:
    return (
        "# Generations\n\n"
        "A model that was trained briefly on 6 cases of A; then 13 nights with 6 new corrections each, A at "
        "first, "
        "half of them B from the seventh night on; a fifth of the corrections is wrong (labels swapped, "
        "shifted by "
        "4 voxels, eroded by 2). Every fifth correction, right or wrong, joins the hold-out, which begins "
        "with 6 "
        "cases that were checked. Measured on 25 clean cases (18 of A, 7 of B) that nobody learns from and "
        "no gate "
        "sees. All contenders take the same number of steps. `dafne`: its recipe, trained weights merged "
        "half and "
        "half, refused below 0.5 Dice on the hold-out. Mean ± standard deviation over seeds.\n\n"
    )


def _picture(groups: Mapping[str, Sequence[Result]]) -> Image.Image:
    curves = {name: [curve_of(one) for one in own] for name, own in sorted(groups.items())}
    nights = max(len(curve) for own in curves.values() for curve in own)
    places = list(map(str, range(nights)))
    lowest = min(min(curve) for own in curves.values() for curve in own)
    panels: list[Panel] = []
    for title, low in (("Dice of the version in use", 0.0), ("the same, closer", np.floor(lowest * 20) / 20)):
        series = {
            name: [[curve[night] for curve in own if night < len(curve)] for night in range(nights)]
            for name, own in curves.items()
        }
        high = 1.0 if not panels else float(min(low + 0.25, 1.0))
        panels.append(
            Panel(title=title, x_title="night", places=places, series=series, low=float(low), high=high)
        )
    return draw("Generations: a fifth of the corrections is wrong; bars: SD over seeds", panels)
