"""Which planes of a series belong together: by how they lie, then by what tells repeated positions apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import GeometryError
from dicomnode.imaging.attributes import FloatArray, text
from dicomnode.imaging.images.frame_facts import FrameFacts
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.geometry import (
    DIRECTION_TOLERANCE,
    PIXEL_SPACING_TOLERANCE,
    POSITION_TOLERANCE_MM,
    orthonormal,
)

REPEAT_TOLERANCE = 0.05
"""Planes less than this part of a pixel apart lie at one position."""
SEPARATE_PIXELS = 2.0
"""Planes of one height belong to slabs side by side where they lie more than this beside each other."""
LARGEST_KEY_SET = 3

Codes = NDArray[np.intp]
_Value = tuple[float | int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Frames that belong together, by their index, and what tells them from the rest of the series."""

    name: str  # "" where nothing has to
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Key:
    """One fact by which planes at one position are told apart; `read` gives None where it is not said."""

    name: str
    unit: str
    read: Callable[[FrameFacts], float | str | tuple[float, ...] | tuple[str, ...] | None]


_KEYS = (
    _Key("stack", "", lambda facts: facts.stack_id),
    _Key("image type", "", lambda facts: facts.image_type),
    _Key("echo time", " ms", lambda facts: facts.echo_time_ms),
    _Key("echo number", "", lambda facts: facts.echo_number),
    _Key("inversion time", " ms", lambda facts: facts.inversion_time_ms),
    _Key("repetition time", " ms", lambda facts: facts.repetition_time_ms),
    _Key("flip angle", " degrees", lambda facts: facts.flip_angle_deg),
    _Key("b-value", " s/mm2", lambda facts: facts.b_value),
    _Key("temporal position", "", lambda facts: facts.temporal_position),
    _Key("trigger time", " ms", lambda facts: facts.trigger_time_ms),
    _Key("cardiac phase", " %", lambda facts: facts.cardiac_phase_percent),
    _Key("respiratory phase", " %", lambda facts: facts.respiratory_phase_percent),
    _Key("frame reference time", " ms", lambda facts: facts.frame_reference_time_ms),
    _Key("acquisition", "", lambda facts: facts.acquisition_number),
    _Key("acquisition time", "", lambda facts: facts.acquisition_time),
    _Key("contrast phase", "", lambda facts: facts.contrast_phase),
    _Key("diffusion direction", "", lambda facts: facts.diffusion_direction),
    _Key("convolution kernel", "", lambda facts: facts.convolution_kernel),
    _Key("tube voltage", " kV", lambda facts: facts.tube_voltage_kv),
    _Key("dimension index", "", lambda facts: facts.dimension_index),
)
_TIMES = ("trigger time", "acquisition time", "frame reference time")
_ABSENT: _Value = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fact:
    """One key over the frames: the sorted values that occur, and which of them each frame has."""

    key: _Key
    values: tuple[_Value, ...]
    codes: Codes

    def says(self, code: int) -> str:
        value = self.values[code]
        if value is _ABSENT:
            return f"no {self.key.name}"
        shown = [f"{part:.10g}" if isinstance(part, float) else str(part) for part in value]
        if self.key.name == "image type":  # the parts in which the types differ say it
            others = [other for other in self.values if other is not value and len(other) == len(value)]
            if len(others) == len(self.values) - 1:
                shown = [
                    part for i, part in enumerate(shown) if any(other[i] != value[i] for other in others)
                ]
        return f"{self.key.name} {'/'.join(shown)}{self.key.unit}"


def split_by_plane(frames: Sequence[SourceFrame]) -> list[Part]:
    """Group frames by size, orientation, pixel spacing, frame of reference and Stack ID."""
    geometry = np.array(
        [
            [*frame.row_cosines, *frame.column_cosines, *np.log(frame.pixel_spacing_mm), *frame.size]
            for frame in frames
        ]
    )
    scale = np.array([DIRECTION_TOLERANCE] * 6 + [PIXEL_SPACING_TOLERANCE] * 2 + [0.5] * 2)
    spaces = [(text(frame.ds, "FrameOfReferenceUID"), frame.stack_id or "") for frame in frames]
    if 2 * len(set(spaces)) > len(frames):  # a Stack ID of its own for every frame says nothing
        spaces = [(uid, "") for uid, _ in spaces]
    numbers = {value: number for number, value in enumerate(dict.fromkeys(spaces))}
    space = np.array([numbers[value] for value in spaces])
    groups: list[tuple[int, ...]] = []
    left = np.arange(len(frames))
    while left.size:
        near = np.abs(geometry[left] - geometry[left[0]]) <= scale
        alike = near.all(axis=1) & (space[left] == space[left[0]])
        groups.append(tuple(left[alike].tolist()))
        left = left[~alike]
    names = _plane_names([frames[indices[0]] for indices in groups])
    return [Part(name=name, indices=indices) for name, indices in zip(names, groups, strict=True)]


def _plane_names(firsts: Sequence[SourceFrame]) -> list[str]:
    described = [_plane_description(frame) for frame in firsts]
    names: list[tuple[str, ...]] = [() for _ in described]
    for column in range(len(described[0])):
        longer = [(*name, texts[column]) for name, texts in zip(names, described, strict=True)]
        if len(set(longer)) > len(set(names)):
            names = longer
    return [", ".join(name) for name in names]


def _plane_description(frame: SourceFrame) -> tuple[str, ...]:
    normal = np.cross(frame.row_cosines, frame.column_cosines)
    cosines = " ".join(f"{value:.3f}" for value in (*frame.row_cosines, *frame.column_cosines))
    spacing = frame.pixel_spacing_mm
    return (
        ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())],
        f"orientation {cosines}",
        f"{frame.size[0]} x {frame.size[1]} pixels",
        f"pixels of {spacing[0]:g} x {spacing[1]:g} mm",
        f"frame of reference {text(frame.ds, 'FrameOfReferenceUID') or 'none'}",
        f"stack {frame.stack_id or 'none'}",
    )


def split_repeated(frames: Sequence[SourceFrame], part: Part, *, series_uid: str) -> list[Part]:
    """Split parallel planes until no two of a part lie at one height along the normal.

    Slabs side by side, as of both hips, are told apart by where they lie. Else the smallest set of keys is
    taken, of several the first in a fixed order, that makes as many parts as planes repeat at one height.
    Without such a set, times are taken by their rank at each height, for they differ from slice to slice;
    then a set that makes at most twice as many parts, for stacks that overlap at their ends.

    Raises
    ------
    GeometryError
        Two planes lie at one height and nothing tells them apart.
    """
    own = [frames[index] for index in part.indices]
    places, distances = _places(own, series_uid)
    repeats = int(np.bincount(places).max())
    if repeats == 1:
        return [part]
    facts: list[_Fact] = []
    found = _by_keys([_side(own, series_uid)], places, repeats)
    found = found or _by_one_key(own, facts, places, repeats) or _by_keys(facts, places, repeats)
    found = found or _by_rank(facts, places, repeats) or _by_keys(facts, places, 2 * repeats)
    if found is None:
        raise _repeated(own, places, distances, series_uid)
    codes, names = found
    return [
        Part(
            name=", ".join(filter(None, (part.name, names[code]))),
            indices=tuple(part.indices[index] for index in np.flatnonzero(codes == code)),
        )
        for code in range(len(names))
    ]


def _places(frames: Sequence[SourceFrame], series_uid: str) -> tuple[Codes, FloatArray]:
    """Number the positions along the normal from 0 upwards."""
    first = frames[0]
    _, _, normal = orthonormal(first.row_cosines, first.column_cosines, series_uid)
    distances = np.stack([frame.position_mm for frame in frames]) @ normal
    order = np.argsort(distances, kind="stable")
    pixel_mm = float(first.pixel_spacing_mm.min())
    widest = float(np.diff(distances[order]).max(initial=0.0))
    repeat = min(REPEAT_TOLERANCE * pixel_mm, widest / 4)  # the slices may be much thinner than the pixels
    tolerance = max(min(POSITION_TOLERANCE_MM, pixel_mm / 2), repeat)
    places = np.empty(len(frames), np.intp)
    places[order] = np.concatenate([[0], np.cumsum(np.diff(distances[order]) > tolerance)])
    return places, distances


def _side(frames: Sequence[SourceFrame], series_uid: str) -> _Fact:
    """Number the places in the image plane where slabs begin; one value where planes lie above each other."""
    first = frames[0]
    row, column, _ = orthonormal(first.row_cosines, first.column_cosines, series_uid)
    beside = np.stack([frame.position_mm for frame in frames]) @ np.stack([column, row]).T  # (n, 2)
    lowest = np.empty_like(beside)
    for axis, pixel_mm in enumerate(first.pixel_spacing_mm):
        order = np.argsort(beside[:, axis], kind="stable")
        ordered = beside[order, axis]
        is_start = np.concatenate([[True], np.diff(ordered) > SEPARATE_PIXELS * pixel_mm])
        lowest[order, axis] = ordered[is_start][np.cumsum(is_start) - 1]
    key = _Key("rows and columns from", " mm", lambda _: None)
    return _fact(key, [(float(r), float(c)) for r, c in np.round(lowest, 1) + 0.0])


def _fact(key: _Key, values: Sequence[_Value]) -> _Fact:
    ordered = tuple(sorted(set(values), key=lambda value: (bool(value), len(value), value)))
    numbers = {value: number for number, value in enumerate(ordered)}
    return _Fact(key=key, values=ordered, codes=np.array([numbers[value] for value in values], np.intp))


def _comparable(value: float | str | tuple[float, ...] | tuple[str, ...] | None) -> _Value:
    if value is None:
        return _ABSENT
    parts = value if isinstance(value, tuple) else (value,)
    return tuple(round(part, 4) if isinstance(part, float) else part for part in parts)


def _by_one_key(
    frames: Sequence[SourceFrame], facts: list[_Fact], places: Codes, most: int
) -> tuple[Codes, list[str]] | None:
    """Read key after key until one is enough; what was read in vain and is not constant goes into `facts`."""
    for key in _KEYS:
        fact = _fact(key, [_comparable(key.read(frame.facts)) for frame in frames])
        if len(fact.values) > 1:
            facts.append(fact)
            found = _by_keys([fact], places, most)
            if found is not None:
                return found
    return None


def _by_keys(facts: Sequence[_Fact], places: Codes, most: int) -> tuple[Codes, list[str]] | None:
    for count in range(1, LARGEST_KEY_SET + 1):
        for chosen in combinations(facts, count):
            codes = _joined(chosen)
            if codes.max() < most and _are_distinct(codes, places):
                return codes, _names(chosen, codes)
    return None


def _by_rank(facts: Sequence[_Fact], places: Codes, repeats: int) -> tuple[Codes, list[str]] | None:
    """Take the k-th plane in time at every position, apart for the values of up to two other keys."""
    times = [fact for fact in facts if fact.key.name in _TIMES]
    others = [fact for fact in facts if fact.key.name not in _TIMES]
    for count in range(LARGEST_KEY_SET):
        for chosen in combinations(others, count):
            groups = _joined(chosen) if chosen else np.zeros(len(places), np.intp)
            for time in times:
                ranks = _ranks(time.codes, groups * (int(places.max()) + 1) + places)
                codes = _coded(groups * repeats + ranks)
                if codes.max() < repeats and _are_distinct(codes, places) and _is_full(codes, places):
                    ranked = _Fact(
                        key=_Key(f"{time.key.name} rank", "", time.key.read),
                        values=tuple((rank + 1,) for rank in range(repeats)),
                        codes=ranks,
                    )
                    return codes, _names((*chosen, ranked), codes)
    return None


def _ranks(values: Codes, groups: Codes) -> Codes:
    """Number the distinct values inside each group from 0 upwards."""
    order = np.lexsort([values, groups])
    is_new_group = np.concatenate([[True], np.diff(groups[order]) != 0])
    is_step = np.concatenate([[False], np.diff(values[order]) != 0]) & ~is_new_group
    steps = np.cumsum(is_step)
    starts = np.maximum.accumulate(np.where(is_new_group, np.arange(len(order)), 0))
    ranks = np.empty(len(values), np.intp)
    ranks[order] = steps - steps[starts]
    return ranks


def _is_full(codes: Codes, places: Codes) -> bool:
    """Answer whether every part has a plane at every position."""
    return len(codes) == (int(codes.max()) + 1) * (int(places.max()) + 1)


def _joined(facts: Sequence[_Fact]) -> Codes:
    joined = facts[0].codes
    for fact in facts[1:]:
        joined = _coded(joined * len(fact.values) + fact.codes)
    return joined


def _coded(values: Codes) -> Codes:
    """Number the values that occur from 0 upwards, in their order."""
    coded: Codes = np.unique(values, return_inverse=True)[1].reshape(-1)
    return coded


def _are_distinct(codes: Codes, places: Codes) -> bool:
    return np.unique(codes * (int(places.max()) + 1) + places).size == codes.size


def _names(facts: Sequence[_Fact], codes: Codes) -> list[str]:
    _, firsts = np.unique(codes, return_index=True)
    return [", ".join(fact.says(int(fact.codes[index])) for fact in facts) for index in firsts]


def _repeated(
    frames: Sequence[SourceFrame], places: Codes, distances: FloatArray, series_uid: str
) -> GeometryError:
    place = int(np.flatnonzero(np.bincount(places) > 1)[0])
    one, other = np.flatnonzero(places == place)[:2].tolist()
    return GeometryError(
        f"series {series_uid}: two slices at one position, {distances[one]:.3f} mm along the normal, "
        f"and nothing tells them apart: {frames[one].name} and {frames[other].name}"
    )
