"""The conditions under which a route takes a series: tables of patterns and ranges, nothing that is run."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator

from dicomnode.configfile import Allowed, Section
from dicomnode.domain import ImageKind, Plane

Preference = Literal[
    "fewest_missing_slices",
    "most_slices",
    "thinnest_slices",
    "finest_pixels",
    "largest_extent",
    "least_oblique",
    "original",
    "shortest_echo_time",
    "longest_echo_time",
    "lowest_b_value",
    "highest_b_value",
    "first_phase",
    "last_phase",
]

ROUNDING = 1e-4
"""Part of a limit by which a computed length may miss it: spacing is a difference of rounded positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `min` to `max`, both included; None: without a limit on that side."""

    min: float | None = None
    max: float | None = None

    def holds(self, value: float) -> bool:
        """Answer whether a number lies in the range; whole limits keep whole numbers out exactly.

        What is not whole, or held against such a limit, may miss it by `ROUNDING`.
        """
        return not (self._misses(value, self.min, -1) or self._misses(value, self.max, 1))

    def in_words(self, unit: str = "") -> str:
        """Say the range: "at least 16", "at most 90 mm", "0.5 mm to 2 mm"."""
        low, high = (None if limit is None else in_figures(limit) + unit for limit in (self.min, self.max))
        if low is not None and high is not None:
            return f"{low} to {high}"
        return f"at least {low}" if high is None else f"at most {high}"

    @staticmethod
    def _misses(value: float, limit: float | None, side: int) -> bool:
        if limit is None or (value - limit) * side <= 0:
            return False
        is_counted = float(value).is_integer() and float(limit).is_integer()
        return is_counted or not math.isclose(value, limit, rel_tol=ROUNDING)


def in_figures(value: float) -> str:
    """Write a number as people do: 4 significant digits, whole numbers in full."""
    return f"{value:.0f}" if value == round(value) else f"{value:.4g}"


def is_like(value: str, pattern: str) -> bool:
    """Answer whether a text fits a pattern, in which only ``*`` and ``?`` are special; case is ignored."""
    literal_brackets = re.sub(r"\[", "[[]", pattern.strip())
    return fnmatchcase(value.strip().casefold(), literal_brackets.casefold())


def _range(value: object) -> Range | None:
    if value is None or isinstance(value, Range):
        return value
    if not isinstance(value, Mapping) or not value or not {"min", "max"}.issuperset(value):
        raise ValueError("a range was expected: { min = 1, max = 2 }, or one of the two")
    if not all(isinstance(limit, int | float) and not isinstance(limit, bool) for limit in value.values()):
        raise ValueError("min and max of a range must be numbers")
    if not all(math.isfinite(limit) for limit in value.values()):
        raise ValueError("min and max of a range must be finite; leave out the side without a limit")
    made = Range(min=value.get("min"), max=value.get("max"))
    if made.min is not None and made.max is not None and made.min > made.max:
        raise ValueError(f"min {in_figures(made.min)} is above max {in_figures(made.max)}; nothing would fit")
    return made


def _attributes(value: object) -> dict[str, tuple[str, ...] | Range]:
    if not isinstance(value, Mapping):
        raise ValueError('a table was expected: SeriesDescription = ["*T1*", "!*LOC*"]')
    return {str(keyword): _condition(str(keyword), wanted) for keyword, wanted in value.items()}


def _condition(keyword: str, wanted: object) -> tuple[str, ...] | Range:
    """One attribute's condition; its keyword is put before the fault."""
    try:
        if isinstance(wanted, list | tuple):
            if not wanted or not all(isinstance(pattern, str) for pattern in wanted):
                raise ValueError("a list of at least one text in quotes was expected")
            return tuple(wanted)
        made = _range(wanted)
        if made is None:
            raise ValueError("a list of patterns or a range was expected")
        return made
    except ValueError as fault:
        raise ValueError(f"{keyword}: {fault}") from fault


def _whole_limits(value: Range | None) -> Range | None:
    if value is not None and any(limit is not None and limit < 1 for limit in (value.min, value.max)):
        raise ValueError("a stack has at least 1 slice; the limits must be 1 or more")
    return value


def _list_of(choices: type[StrEnum]) -> str:
    return "a list; each item: " + " or ".join(f'"{choice}"' for choice in choices)


Patterns = Annotated[
    tuple[str, ...],
    Allowed('a list of texts in quotes; * and ? stand for anything, a leading ! excludes, "" is "absent"'),
]
Limits = Annotated[
    Range | None,
    PlainValidator(_range),
    Allowed("a range such as { min = 1, max = 2 }, or one of the two"),
]


class Conditions(Section):
    """[routes.where]: what must hold for a series to be taken, all of it."""

    modality: Patterns = Field(("MR",), description="Modality of the images; empty: any")
    kind: Annotated[
        tuple[ImageKind, ...],
        Allowed(_list_of(ImageKind)),
    ] = Field((ImageKind.IMAGE,), description="what the images show, by Image Type; empty: anything")
    plane: Annotated[tuple[Plane, ...], Allowed(_list_of(Plane))] = Field(
        (), description="how the slices lie in the patient; empty: in any way"
    )
    body_part: Patterns = Field(
        (), description="Body Part Examined, else the name of the Anatomic Region; empty: any"
    )
    vendor: Patterns = Field(
        (), description='maker of the scanner in short: "GE", "Siemens", "Philips", "Canon"; empty: any'
    )
    sender: Patterns = Field((), description="AE title that sent the series; empty: any")
    contrast: bool | None = Field(
        None, description="whether a contrast agent was given; absent: it does not matter"
    )
    slices: Annotated[Limits, AfterValidator(_whole_limits)] = Field(
        Range(min=8), description="number of slices"
    )
    extent_mm: Limits = Field(None, description="longest edge of the volume; absent: any")
    slice_spacing_mm: Limits = Field(
        None, description="distance between the centres of neighbouring slices; absent: any"
    )
    pixel_spacing_mm: Limits = Field(
        None, description="distance between pixels, both along rows and along columns; absent: any"
    )
    echo_time_ms: Limits = Field(None, description="echo time of MR images; absent: any")
    b_value: Limits = Field(None, description="diffusion b-value of MR images in s/mm²; absent: any")
    attributes: Annotated[
        dict[str, tuple[str, ...] | Range],
        PlainValidator(_attributes),
        Allowed("DICOM keywords, each with a list of patterns as above or a range"),
    ] = Field({}, description="conditions on any other attribute of the images")
