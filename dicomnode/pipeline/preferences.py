"""Which of several stacks that fit is the best: what a route prefers, in its order."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dicomnode.conditions import Preference, in_figures
from dicomnode.imaging.images.facts import Facts


@dataclass(frozen=True, slots=True)
class _Quality:
    """A number of a stack, and how it is said."""

    of: Callable[[Facts], float | None]
    words: str
    more_is_better: bool = False


_QUALITIES: Mapping[Preference, _Quality] = {
    "fewest_missing_slices": _Quality(lambda facts: facts.missing_slices, "{} missing slices"),
    "most_slices": _Quality(lambda facts: facts.slices, "{} slices", more_is_better=True),
    "thinnest_slices": _Quality(lambda facts: facts.slice_spacing_mm, "slices {} mm apart"),
    "finest_pixels": _Quality(lambda facts: max(facts.pixel_spacing_mm), "pixels of {} mm"),
    "largest_extent": _Quality(lambda facts: facts.extent_mm, "{} mm long", more_is_better=True),
    "least_oblique": _Quality(lambda facts: facts.obliquity_deg, "{}° oblique"),
    "original": _Quality(lambda facts: facts.is_derived, "derived: {}"),
    "shortest_echo_time": _Quality(lambda facts: facts.echo_time_ms, "echo time {} ms"),
    "longest_echo_time": _Quality(lambda facts: facts.echo_time_ms, "echo time {} ms", more_is_better=True),
    "lowest_b_value": _Quality(lambda facts: facts.b_value, "b-value {} s/mm²"),
    "highest_b_value": _Quality(lambda facts: facts.b_value, "b-value {} s/mm²", more_is_better=True),
    "first_phase": _Quality(lambda facts: facts.phase, "phase {}"),
    "last_phase": _Quality(lambda facts: facts.phase, "phase {}", more_is_better=True),
}


def rank(facts: Facts, prefer: Sequence[Preference]) -> tuple[float, ...]:
    """Give the place of a stack among others: the smaller one is better; what is not known comes last."""
    return tuple(_place(facts, _QUALITIES[name]) for name in prefer)


def compare(facts: Facts, better: Facts, prefer: Sequence[Preference]) -> str:
    """Say by what a stack is behind a better one; "" where nothing that is preferred tells them apart."""
    for name in prefer:
        quality = _QUALITIES[name]
        if _place(facts, quality) != _place(better, quality):
            return f"{_say(facts, quality)} against {_say(better, quality)}"
    return ""


def _place(facts: Facts, quality: _Quality) -> float:
    """Rounded to a thousandth, since lengths are differences of rounded positions."""
    value = quality.of(facts)
    if value is None:
        return math.inf
    return round(-value if quality.more_is_better else value, 3)


def _say(facts: Facts, quality: _Quality) -> str:
    value = quality.of(facts)
    if value is None or isinstance(value, bool):
        return quality.words.format({None: "unknown", True: "yes", False: "no"}[value])
    return quality.words.format(in_figures(value))
