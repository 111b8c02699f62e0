"""The outlines of a mask as closed polygons, from which it can be filled again pixel by pixel.

The polygons follow the level 0.5 between the centres of neighbouring pixels. Their corners lie half-way
between two centres, so "is the centre of this pixel inside" has one answer, and it is the mask.
A polygon with holes becomes one ring by a channel of no width to each hole: the keyhole that
PS3.3 C.8.8.6.3 asks of CLOSED_PLANAR. Readers that join the contours of a slice and readers that take the
even-odd rule see the same holes. The channels run between the rows of pixel centres, never through one.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import BoolArray

IntArray = NDArray[np.intp]

_LEVEL = 0.5
_ABOVE = 2.0  # more than any value of a mask: the upper limit of what is filled


def closed_rings(mask: BoolArray) -> list[FloatArray]:
    """Trace the outlines of a mask, one closed ring for each connected part.

    Parts that touch at a corner only may come as one ring or as two.

    Parameters
    ----------
    mask
        (row, column); it may touch its border.

    Returns
    -------
        Rings of shape (corners, 2): (row, column) in pixels, whole numbers at pixel centres. At least four
        corners each, the first not repeated at the end, none on a straight line between its neighbours.
    """
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2))
    padded[1:-1, 1:-1] = mask
    generator = contour_generator(z=padded, name="serial", fill_type=FillType.OuterOffset)
    rings = []
    for points, offsets in zip(*generator.filled(_LEVEL, _ABOVE), strict=True):
        doubled = np.rint(2 * np.asarray(points)[:, ::-1]).astype(np.intp)  # whole numbers are exact
        parts = [doubled[start : end - 1] for start, end in pairwise(offsets.tolist())]
        ring = parts[0] if len(parts) == 1 else _with_keyholes(parts, padded > 0)
        rings.append(_without_straight_points(ring) / 2.0 - 1.0)
    return rings


def _without_straight_points(ring: IntArray) -> IntArray:
    before = ring - np.roll(ring, 1, axis=0)
    after = np.roll(ring, -1, axis=0) - ring
    is_straight = before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]
    goes_on = (before * after).sum(axis=1) > 0
    return np.asarray(ring[~(is_straight & goes_on)])


def _with_keyholes(parts: Sequence[IntArray], mask: BoolArray) -> IntArray:
    """Join the holes of a polygon to its outline; all in doubled pixels.

    From a leftmost corner of each hole a channel runs to the left until it meets the outline or another
    hole. Holes are taken from left to right, so what it meets is joined already.
    """
    outline, *holes = parts
    chain = _Chain(outline)
    keys = [_key_corner(hole) for hole in holes]
    for _, _, hole, start in sorted(
        ((*hole[start][::-1].tolist(), hole, start) for hole, start in zip(holes, keys, strict=True)),
        key=lambda one: one[:2],
    ):
        row, column = hole[start].tolist()
        is_inside = mask[row // 2, : column // 2] & mask[row // 2 + 1, : column // 2]
        end = int(np.flatnonzero(~is_inside)[-1])
        is_corner = bool(mask[row // 2, end] != mask[row // 2 + 1, end])
        chain.join(np.roll(hole, -start, axis=0), (row, 2 * end if is_corner else 2 * end + 1))
    return chain.ring()


def _key_corner(hole: IntArray) -> int:
    """Find the leftmost of the corners that lie between two rows, the upper one of several."""
    between = np.flatnonzero(hole[:, 0] % 2 == 1)
    order = np.lexsort((hole[between, 0], hole[between, 1]))
    return int(between[order[0]])


class _Chain:
    """A ring of corners into which others are spliced."""

    def __init__(self, outline: IntArray) -> None:
        self._corners: list[tuple[int, int]] = []
        self._next: list[int] = []
        self._at: dict[tuple[int, int], int] = {}
        self._append(outline)

    def join(self, hole: IntArray, target: tuple[int, int]) -> None:
        """Go from `target`, a point of the ring, to the first corner of the hole, around it and back."""
        at = self._at[target] if target in self._at else self._split(target)
        first, last = self._append(hole)
        after = self._next[at]
        self._next[at] = first
        self._next[last] = self._add(self._corners[first], self._add(target, after))

    def ring(self) -> IntArray:
        """Give the corners in order."""
        order, at = [0], self._next[0]
        while at != 0:
            order.append(at)
            at = self._next[at]
        return np.array([self._corners[index] for index in order], np.intp)

    def _append(self, ring: IntArray) -> tuple[int, int]:
        first = len(self._corners)
        last = first + len(ring) - 1
        self._corners += [(row, column) for row, column in ring.tolist()]
        self._next += [*range(first + 1, last + 1), first]
        self._at |= {self._corners[index]: index for index in range(first, last + 1)}
        return first, last

    def _add(self, corner: tuple[int, int], after: int) -> int:
        self._corners.append(corner)
        self._next.append(after)
        return len(self._corners) - 1

    def _split(self, point: tuple[int, int]) -> int:
        """Put a corner in the middle of the upright edge that the point lies on."""
        above, below = self._at[point[0] - 1, point[1]], self._at[point[0] + 1, point[1]]
        start = above if self._next[above] == below else below
        self._next[start] = self._add(point, self._next[start])
        return self._next[start]
