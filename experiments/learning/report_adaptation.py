"""The page of the adaptation: what each strategy reaches with few cases, and how soon."""

from collections.abc import Iterator, Mapping, Sequence

from adaptation import LONG, SHARE_OF_PEAK, STRATEGIES, epochs_to
from data import LABEL_NAMES
from picture import Panel, draw
from PIL import Image
from table import Spread, markdown, number, numbers, spread
from world import Json

TARGET_SAVING = 0.636
"""Dante's best: fewer epochs to 85 % of the peak than from random weights."""
CANDIDATES = ("unfreezing", "lora4", "lora8", "lora16")
CURVES_SIZE = 5

Result = Mapping[str, Json]


def make(results: Sequence[Result]) -> tuple[dict[str, Json], str, Image.Image]:
    """Give summary, text and picture."""
    places = sorted({(str(one["domain"]), int(number(one, "size"))) for one in results})
    lines, summary = [], list[Json]()
    for domain, size in places:
        for strategy in STRATEGIES:
            own = _own(results, domain, size, strategy)
            if own:
                figures = _figures(own, results)
                lines.append(_row(domain, size, strategy, figures, own))
                row: dict[str, Json] = {"domain": domain, "size": size, "strategy": strategy}
                summary.append(row | {key: one.in_json() for key, one in figures.items()})
    verdicts = [_verdict(results, domain, size) for domain, size in places]
    header = ["domain", "cases", "strategy"]
    header += [f"{label} {what}" for what in ("Dice", "HD95 (mm)") for label in LABEL_NAMES]
    header += ["epochs to 85 % of own peak", "of scratch's peak", "parameters", "rate", "seconds (median)"]
    met = [one for one in verdicts if one is not None]
    text = _introduction(results) + markdown(header, lines) + "\n" + _targets(met)
    return {"rows": summary, "targets": list[Json](met)}, text, _picture(results)


def saving(scratch: float, tuned: float) -> float:
    """Give the share of the epochs that is saved."""
    return 1.0 - tuned / scratch


def _own(results: Sequence[Result], domain: str, size: int, strategy: str) -> list[Result]:
    wanted = (domain, size, strategy)
    return [one for one in results if (one["domain"], one["size"], one["strategy"]) == wanted]


def _figures(own: Sequence[Result], results: Sequence[Result]) -> dict[str, Spread]:
    keys = ["dice", *(f"{label}_{what}" for what in ("dice", "hd95_mm") for label in LABEL_NAMES)]
    found = {key: spread(number(one, "figures", key) for one in own) for key in keys}
    found["before"] = spread(numbers(one, "curve")[0] for one in own)
    found["epochs_to_own_peak"] = spread(number(one, "epochs_to_own_peak") for one in own)
    found["epochs_to_scratch_peak"] = spread(_to_scratch(own, results))
    for key in ("trainable", "seconds", "learning_rate"):
        found[key] = spread(number(one, key) for one in own)
    return found


def _to_scratch(own: Sequence[Result], results: Sequence[Result]) -> Iterator[float]:
    """Count for each seed the epochs to 85 % of the peak of scratch; runs that never do are left out."""
    for one in own:
        peers = _own(results, str(one["domain"]), int(number(one, "size")), "scratch")
        peaks = [max(numbers(peer, "curve")) for peer in peers if peer["seed"] == one["seed"]]
        found = epochs_to(numbers(one, "curve"), SHARE_OF_PEAK * peaks[0]) if peaks else None
        if found is not None:
            yield float(found)


def _row(
    domain: str, size: int, strategy: str, figures: Mapping[str, Spread], own: Sequence[Result]
) -> list[str]:
    cells = [figures[f"{label}_dice"].words() for label in LABEL_NAMES]
    cells += [figures[f"{label}_hd95_mm"].words(2) for label in LABEL_NAMES]
    cells.append(figures["epochs_to_own_peak"].words(1))
    reached = len(figures["epochs_to_scratch_peak"].values)
    cells.append(
        figures["epochs_to_scratch_peak"].words(1) + (f" ({reached} of {len(own)})" * (reached < len(own)))
    )
    cells += [f"{figures['trainable'].mean:.0f}", f"{figures['learning_rate'].mean:g}"]
    return [domain, str(size), strategy, *cells, f"{figures['seconds'].median:.0f}"]


def _verdict(results: Sequence[Result], domain: str, size: int) -> dict[str, Json] | None:
    """Compare the strategies of the target with scratch; None where one of the runs is missing."""
    scratch = _own(results, domain, size, "scratch")
    if not scratch:
        return None
    base = _figures(scratch, results)
    found: dict[str, Json] = {"domain": domain, "size": size, "scratch_dice": base["dice"].mean}
    for strategy in CANDIDATES:
        own = _own(results, domain, size, strategy)
        if own:
            figures = _figures(own, results)
            reached = len(figures["epochs_to_scratch_peak"].values) == len(own)
            found[strategy] = {
                "dice_gain": figures["dice"].mean - base["dice"].mean,
                "epochs_saved": saving(
                    base["epochs_to_scratch_peak"].mean, figures["epochs_to_scratch_peak"].mean
                )
                if reached
                else None,
                "epochs_saved_to_own_peak": saving(
                    base["epochs_to_own_peak"].mean, figures["epochs_to_own_peak"].mean
                ),
            }
    return found


def _targets(verdicts: Sequence[Mapping[str, Json]]) -> str:
    """Say in words whether the targets are met."""
    lines = [
        f"Target: at least {TARGET_SAVING:.1%} fewer epochs to 85 % of the peak than scratch, and a higher "
        "Dice "
        "than scratch at every size, by gradual unfreezing or LoRA. A model that is there before its first "
        "step "
        "counts one epoch.\n"
    ]
    for one in verdicts:
        parts = []
        for strategy in CANDIDATES:
            figures = one.get(strategy)
            if isinstance(figures, dict):
                gain, saved, own = (
                    figures[key] for key in ("dice_gain", "epochs_saved", "epochs_saved_to_own_peak")
                )
                words = "never" if not isinstance(saved, float) else f"{saved:.1%} fewer"
                parts.append(
                    f"{strategy} {_float(gain):+.3f} Dice, {words} ({_float(own):.1%} to its own peak)"
                )
        is_met = any(_meets(one.get(strategy)) for strategy in CANDIDATES)
        state = "met" if is_met else "NOT met"
        lines.append(f"- {one['domain']}, {one['size']} cases: {state}. {'; '.join(parts)}.")
    return "\n".join(lines) + "\n"


def _meets(figures: Json) -> bool:
    if not isinstance(figures, dict):
        return False
    return _float(figures["epochs_saved"]) >= TARGET_SAVING and _float(figures["dice_gain"]) > 0


def _float(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else float("-inf")


def _introduction(results: Sequence[Result]) -> str:
    one = results[0]
    test, epochs = one["test_cases"], one["epochs"]
    size = len(test) if isinstance(test, list) else 0
    return (
        "# Adaptation\n\n"
        "A model pretrained on 60 cases of A learns B (30 cases of another scanner) or the contrast C "
        "(images of A through a curve that turns dark into bright, see `data.py`). "
        f"{size} test cases that no training sees; {epochs} epochs with as many steps for every strategy but "
        f"`scratch_long`, which has {LONG} times as many; mean ± standard deviation over seeds, each with "
        "its own split, base model and order. A missed label "
        "counts 100 mm. Learning rates: the best of four for each strategy, see `adaptation.py`; Dafne's is "
        "its own.\n\n"
    )


def _picture(results: Sequence[Result]) -> Image.Image:
    panels = []
    for domain in sorted({str(one["domain"]) for one in results}):
        sizes = sorted({int(number(one, "size")) for one in results if one["domain"] == domain})
        by_size = {
            strategy: [
                [number(one, "figures", "dice") for one in _own(results, domain, size, strategy)]
                for size in sizes
            ]
            for strategy in STRATEGIES
        }
        shown = CURVES_SIZE if CURVES_SIZE in sizes else sizes[0]
        panels.append(_panel(f"A to {domain}: Dice after training", "cases", list(map(str, sizes)), by_size))
        panels.append(_curves(results, domain, shown))
    return draw("Adaptation: mean Dice of both labels, bars: SD over seeds", panels)


def _curves(results: Sequence[Result], domain: str, size: int) -> Panel:
    curves = {
        strategy: [numbers(one, "curve") for one in _own(results, domain, size, strategy)]
        for strategy in STRATEGIES
        if strategy != "scratch_long"
    }
    longest = max((len(curve) for own in curves.values() for curve in own), default=1)
    series = {
        strategy: [[curve[epoch] for curve in own if epoch < len(curve)] for epoch in range(longest)]
        for strategy, own in curves.items()
    }
    return _panel(f"A to {domain}, {size} cases: course", "epoch", list(map(str, range(longest))), series)


def _panel(
    title: str, x_title: str, places: Sequence[str], series: Mapping[str, Sequence[Sequence[float]]]
) -> Panel:
    return Panel(title=title, x_title=x_title, places=places, series=series, low=0.0, high=1.0)
