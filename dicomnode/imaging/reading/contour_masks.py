"""Closed contours of one structure on one plane, filled voxel by voxel.

A voxel is inside by the even-odd rule over all contours of the structure on the plane: a contour inside
another is a hole, one inside that is an island, and a keyhole (PS3.3 C.8.8.6.3) comes out right within its
one polygon. A voxel whose centre lies on a contour is inside, whichever side it is on, so that
contours drawn through the centres of the border voxels, as OpenCV and rt-utils draw them, keep their border.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isclose

import numpy as np
from numpy.typing import NDArray

from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import BoolArray

EDGE_TOLERANCE = 1e-3
"""A centre nearer to a contour than this part of a pixel lies on it; far more than what rounding moves."""

IntArray = NDArray[np.intp]

_CROSSING_EFFORT = 16  # what one crossing of a row costs, in visits of a pixel
_SAME_AREA = 1e-3
_CHUNK = 2**18  # crossings that are worked out together


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledPlane:
    """What the contours of one structure cover on one plane.

    Attributes
    ----------
    mask
        (row, column).
    overlap
        Two contours partly cover each other: neither lies inside the other.
    repeat
        A contour is there twice; it was counted once. The same course the other way round is no repeat but a
        hole: so OpenCV draws a ring that is one voxel wide.
    """

    mask: BoolArray
    overlap: bool
    repeat: bool


def effort(ring: FloatArray, shape: tuple[int, int]) -> int:
    """Say beforehand what it takes to fill a ring, in visits of a pixel; time is proportional to it.

    Parameters
    ----------
    ring
        As for `fill_plane`; it may lie anywhere.
    """
    limits = np.array(shape) - 1
    low, high = (np.clip(end, 0, limits) for end in (ring.min(axis=0), ring.max(axis=0)))
    rows = np.clip(ring[:, 0], 0, limits[0])
    crossings = float(np.abs(rows - np.roll(rows, -1)).sum()) + len(ring)
    return int(np.prod(high - low + 2) + _CROSSING_EFFORT * crossings)


def fill_plane(rings: Sequence[FloatArray], shape: tuple[int, int]) -> FilledPlane:
    """Fill the contours of one structure on one plane by the even-odd rule.

    Parameters
    ----------
    rings
        Corners of shape (corners, 2): (row, column) in pixels, whole numbers at pixel centres. The first may
        be repeated at the end. Fewer than three corners have no inside, only an edge.
    shape
        Rows and columns of the plane; what lies outside is cut off.
    """
    mask: BoolArray = np.zeros(shape, np.bool_)
    edges: BoolArray = np.zeros(shape, np.bool_)
    nesting = _Nesting(shape)
    for ring in sorted(rings, key=lambda ring: abs(_signed_area(ring)), reverse=True):
        filled = _fill(_snapped(ring), shape)
        if filled is None:
            continue
        edges[filled.box] |= filled.edge
        if len(rings) == 1 or nesting.add(filled, _signed_area(ring)):
            mask[filled.box] ^= filled.inside
    return FilledPlane(mask=mask | edges, overlap=nesting.overlap, repeat=nesting.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filled:
    """One ring: which centres in its box are inside it, and which lie on it."""

    box: tuple[slice, slice]
    inside: BoolArray
    edge: BoolArray


class _Nesting:
    """Sees from one ring after the other, the largest first, whether they lie inside each other.

    Every voxel knows the last ring that covered it. A ring that finds different ones under it crosses one of
    them; one that finds a single ring of its own voxels, area and sense is that ring again.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._owner = np.zeros(shape, np.int32)
        self._rings: list[tuple[int, float]] = [(-1, 0.0)]  # voxels and signed area
        self.overlap = False
        self.repeat = False

    def add(self, filled: _Filled, signed_area: float) -> bool:
        """Take in a ring; answer whether it counts, which a repeated one does not."""
        strictly = filled.inside & ~filled.edge
        size = int(np.count_nonzero(strictly))
        if not size:
            return True
        under = self._owner[filled.box][strictly]
        is_nested = bool((under == under[0]).all())
        voxels, area = self._rings[int(under[0])]
        if is_nested and voxels == size and isclose(area, signed_area, rel_tol=_SAME_AREA):
            self.repeat = True
            return False
        self.overlap |= not is_nested
        self._owner[filled.box][strictly] = len(self._rings)
        self._rings.append((size, signed_area))
        return True


def _signed_area(ring: FloatArray) -> float:
    rows, columns = (ring - ring[0]).T
    return float(rows @ np.roll(columns, -1) - columns @ np.roll(rows, -1)) / 2


def _snapped(ring: FloatArray) -> FloatArray:
    """Put coordinates that are whole numbers but for rounding exactly there."""
    whole = np.rint(ring)
    return np.where(np.abs(ring - whole) <= EDGE_TOLERANCE, whole, ring)


def _fill(ring: FloatArray, shape: tuple[int, int]) -> _Filled | None:
    """Fill one ring inside its box; None where the box holds no centre."""
    low = np.clip(np.ceil(ring.min(axis=0)), 0, shape).astype(np.intp)
    high = np.clip(np.floor(ring.max(axis=0)) + 1, 0, shape).astype(np.intp)  # one past the last
    if (high <= low).any():
        return None
    rows, columns = (high - low).tolist()
    turns = np.zeros((rows, columns + 1), np.uint8)  # whether the ring is crossed just before a centre
    edge: BoolArray = np.zeros((rows, columns + 1), np.bool_)
    starts, ends = ring - low, np.roll(ring, -1, axis=0) - low
    for row, column, is_upper_end in _crossings(starts, ends, rows):
        whole = np.rint(column)
        is_on = np.abs(column - whole) <= EDGE_TOLERANCE
        before = np.clip(np.where(is_on, whole, np.ceil(column)), 0, columns).astype(np.intp)
        np.add.at(turns, (row[~is_upper_end], before[~is_upper_end]), 1)  # 256 is even: may run over
        is_on &= (whole >= 0) & (whole < columns)
        edge[row[is_on], whole[is_on].astype(np.intp)] = True
    inside = (np.add.accumulate(turns, axis=1, dtype=np.uint8) & 1).astype(np.bool_)
    return _Filled(
        box=np.s_[low[0] : high[0], low[1] : high[1]],
        inside=inside[:, :columns],
        edge=(edge | _along_rows(starts, ends, edge.shape))[:, :columns],
    )


def _crossings(
    starts: FloatArray, ends: FloatArray, rows: int
) -> Iterator[tuple[IntArray, FloatArray, BoolArray]]:
    """Give where edges meet rows of centres: row, column, and whether it is the end with the higher row.

    A row that an edge only touches with its higher end is no crossing for the even-odd rule: the next edge
    begins there. Edges that run along a row are left out.
    """
    first = np.clip(np.ceil(np.minimum(starts[:, 0], ends[:, 0])), 0, rows).astype(np.intp)
    last = np.clip(np.floor(np.maximum(starts[:, 0], ends[:, 0])) + 1, 0, rows).astype(np.intp)
    counts = np.where(starts[:, 0] == ends[:, 0], 0, np.maximum(last - first, 0))
    used = np.flatnonzero(counts)
    totals = np.cumsum(counts[used])
    parts = totals // _CHUNK
    for part in range(int(parts[-1]) + 1 if used.size else 0):
        edges = used[parts == part]
        number = counts[edges]
        at = np.repeat(edges, number)
        row = np.arange(len(at)) - np.repeat(np.cumsum(number) - number, number) + first[at]
        start, end = starts[at], ends[at]
        along = (row - start[:, 0]) / (end[:, 0] - start[:, 0])
        column = start[:, 1] + along * (end[:, 1] - start[:, 1])
        yield row, column, row == np.maximum(start[:, 0], end[:, 0])


def _along_rows(starts: FloatArray, ends: FloatArray, shape: tuple[int, int]) -> BoolArray:
    """Mark the centres that lie on edges along a row of centres."""
    rows, columns = shape
    row = starts[:, 0]
    is_along = (row == ends[:, 0]) & (row == np.rint(row)) & (row >= 0) & (row < rows)
    if not is_along.any():
        return np.zeros(shape, np.bool_)
    at = row[is_along].astype(np.intp)
    first = np.ceil(np.minimum(starts[is_along, 1], ends[is_along, 1]))
    past = np.floor(np.maximum(starts[is_along, 1], ends[is_along, 1])) + 1
    begin, end = (np.clip(place, 0, columns).astype(np.intp) for place in (first, past))
    changes = np.zeros((rows, columns + 1), np.int32)
    np.add.at(changes, (at, begin), 1)
    np.add.at(changes, (at, end), -1)
    return np.asarray(np.cumsum(changes, axis=1)[:, :columns] > 0, np.bool_)
