"""The contours of one structure of a received RT Structure Set, read within limits (PS3.3 C.8.8.6)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.frames import FARTHEST_MM

MAXIMUM_CONTOURS = 50_000
MAXIMUM_CONTOUR_POINTS = 1_000_000
MAXIMUM_POINTS = 20_000_000
"""Of one object; a body of 300 slices has some 300 000 points, a set of 20 structures a few millions."""
MAXIMUM_EFFORT = 2**33
"""`contour_masks.effort` of all contours of one object: some tens of seconds."""

_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR"})
_NOT_CLOSED = frozenset({"POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"})
_CONTOUR_DATA = Tag("ContourData")
_LONGEST_NUMBER = 32  # bytes; a decimal string has at most 16 and a backslash


@dataclass(frozen=True, slots=True, kw_only=True)
class Contour:
    """One closed contour.

    `points` is (points, 3), LPS in millimetres, and empty where the contour cannot be used; the reason is
    among the `flags` then (see `rtstruct_defects.DEFECTS`).
    """

    points: FloatArray
    references: tuple[Dataset, ...] = ()  # the images that it names
    flags: frozenset[str] = frozenset()


class Limits:
    """What one object has used up of what is allowed, over all its structures."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._contours = 0
        self._points = 0
        self._effort = 0

    def add(self, *, contours: int = 0, points: int = 0, effort: int = 0) -> None:
        """Count what comes next.

        Raises
        ------
        CorrectionError
            It is more than one object may have.
        """
        self._contours += contours
        self._points += points
        self._effort += effort
        if self._contours > MAXIMUM_CONTOURS:
            raise CorrectionError(f"{self._name} has more than {MAXIMUM_CONTOURS} contours")
        if points > MAXIMUM_CONTOUR_POINTS or self._points > MAXIMUM_POINTS:
            raise CorrectionError(
                f"{self._name} has more than {MAXIMUM_CONTOUR_POINTS} points in one contour or "
                f"{MAXIMUM_POINTS} in all"
            )
        if self._effort > MAXIMUM_EFFORT:
            raise CorrectionError(f"{self._name}: its contours are too many and too long to be filled")


def read_contours(item: Dataset, *, name: str, limits: Limits) -> Iterator[Contour]:
    """Read the contours of one item of the ROI Contour Sequence.

    Points and open lines are passed over; a contour that cannot be used comes without points. A Number of
    Contour Points that differs is flagged: which of the two is wrong cannot be told.

    Parameters
    ----------
    name
        The object and the structure, for messages.

    Raises
    ------
    CorrectionError
        Coordinates are no finite numbers of patient space or not three for each point, or there are too many.
    """
    contours = attributes.items(item, "ContourSequence")
    if not contours and attributes.has_value(item, "ContourSequence"):
        raise CorrectionError(f"{name}: its Contour Sequence cannot be read")
    limits.add(contours=len(contours))
    for number, contour in enumerate(contours, 1):
        yield _read(contour, name=f"{name}, contour {number}", limits=limits)


def _read(contour: Dataset, *, name: str, limits: Limits) -> Contour:
    kind = attributes.text(contour, "ContourGeometricType").upper()
    if kind in _NOT_CLOSED:
        return _unusable("contours_not_closed")
    if kind not in _CLOSED:
        return _unusable("contour_kind_unknown")
    if not attributes.has_value(contour, "ContourData"):
        return _unusable("contour_without_points")
    offset = attributes.numbers(contour, "ContourOffsetVector")  # retired: (3006,0045)
    if attributes.has_value(contour, "ContourOffsetVector") and (offset is None or offset.any()):
        return _unusable("contour_offset")
    points = _points(contour, name=name, limits=limits)
    flags = set()
    if len(points) < 3:
        flags.add("contours_degenerate")
    if not attributes.has_value(contour, "NumberOfContourPoints"):
        flags.add("point_count_missing")
    elif attributes.integer(contour, "NumberOfContourPoints") != len(points):
        flags.add("point_count_differs")
    images = tuple(attributes.items(contour, "ContourImageSequence"))
    return Contour(points=points, references=images, flags=frozenset(flags))


def _points(contour: Dataset, *, name: str, limits: Limits) -> FloatArray:
    raw = contour.get_item(_CONTOUR_DATA, keep_deferred=True)
    if isinstance(raw, RawDataElement) and (raw.length or 0) > 3 * _LONGEST_NUMBER * MAXIMUM_CONTOUR_POINTS:
        raise CorrectionError(f"{name} has {raw.length} bytes of coordinates")
    if isinstance(raw, RawDataElement) and (raw.value or b"").count(b"\\") >= 3 * MAXIMUM_CONTOUR_POINTS:
        limits.add(points=MAXIMUM_CONTOUR_POINTS + 1)
    values = attributes.numbers(contour, "ContourData")
    if values is None:
        raise CorrectionError(f"{name}: its coordinates are no finite numbers")
    if values.size % 3:
        raise CorrectionError(f"{name} has {values.size} coordinates, three for each point were expected")
    limits.add(points=values.size // 3)
    if np.abs(values).max() > FARTHEST_MM:
        raise CorrectionError(f"{name} goes more than {FARTHEST_MM:.0f} mm away")
    return values.reshape(-1, 3)


def _unusable(flag: str) -> Contour:
    return Contour(points=np.empty((0, 3)), flags=frozenset({flag}))
