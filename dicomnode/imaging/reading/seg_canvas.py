"""The masks of one received object while its frames are painted, one per segment number."""

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from dicomnode.errors import CorrectionError
from dicomnode.imaging.identity import BoolArray

MAXIMUM_MASK_VOXELS = 2**35
"""Segments x voxels of one object; memory is taken only for planes that are painted on."""
MAXIMUM_PAINTED_VOXELS = 2**33
"""Voxels of the planes that the segments of one object are painted on, which is the memory in bytes."""
SPARSE_PLANES = 3
"""From this number of planes on, of which no two are neighbours, slices are taken to have been skipped."""


class Canvas:
    """Masks (plane, row, column) by segment number; only segments with voxels take memory.

    Attributes
    ----------
    painted
        Segment number -> mask.
    planes
        Segment number -> indices of the planes that were painted on.
    cut
        Numbers of segments that lost voxels, because there is no plane or no pixel for them.
    left_out
        Numbers of segments whose masks are not to be used.
    is_repeated
        A segment was painted twice on one plane.
    taken
        Voxels of the planes that were painted on, each plane once for each segment.
    """

    def __init__(self, shape: tuple[int, int, int], *, name: str, reserve: int = 0, taken: int = 0) -> None:
        self.shape = shape
        self.painted: dict[int, BoolArray] = {}
        self.planes: dict[int, set[int]] = {}
        self.cut: set[int] = set()
        self.left_out: set[int] = set()
        self.is_repeated = False
        self.taken = taken
        self._name = name
        self._each = math.prod(shape) + reserve

    def add(self, number: int, plane_index: int, mask: BoolArray) -> None:
        """Paint the voxels of a segment on one plane.

        Raises
        ------
        CorrectionError
            The masks would take too much memory.
        """
        rows = np.flatnonzero(mask.any(axis=1))
        if not rows.size:
            return
        planes = self.planes.setdefault(number, set())
        self.is_repeated = self.is_repeated or plane_index in planes
        if plane_index not in planes:
            self._take(mask.size)
        planes.add(plane_index)
        # Rows without a voxel are left untouched: memory that is never written to costs nothing.
        used = np.s_[rows[0] : rows[-1] + 1]
        self._mask(number)[plane_index, used] |= mask[used]

    def count(self, number: int) -> int:
        """Count the voxels of a segment."""
        mask = self.painted.get(number)
        return 0 if mask is None else sum(int(np.count_nonzero(mask[k])) for k in self.planes[number])

    def _take(self, voxels: int) -> None:
        self.taken += voxels
        if self.taken > MAXIMUM_PAINTED_VOXELS:
            raise CorrectionError(
                f"{self._name}: its segments fill more than {MAXIMUM_PAINTED_VOXELS} voxels"
            )

    def _mask(self, number: int) -> BoolArray:
        if number not in self.painted:
            all_voxels = (len(self.painted) + 1) * self._each
            if self._each > MAXIMUM_PAINTED_VOXELS or all_voxels > MAXIMUM_MASK_VOXELS:
                raise CorrectionError(
                    f"{self._name}: more than {len(self.painted)} segments on {self.shape} voxels"
                )
            self.painted[number] = np.zeros(self.shape, np.bool_)
        return self.painted[number]


def is_sparse(planes: Collection[int]) -> bool:
    """Answer whether a mask on these planes leaves out every plane between two of them."""
    return len(planes) >= SPARSE_PLANES and int(np.diff(sorted(planes)).min()) > 1


def share_voxels(masks: Sequence[BoolArray], *, planes: Iterable[int]) -> bool:
    """Answer whether two masks (frame, row, column) share a voxel on one of these planes."""
    for plane in planes if len(masks) > 1 else ():
        seen: BoolArray = np.zeros(masks[0].shape[1:], np.bool_)
        for mask in masks:
            if np.any(seen & mask[plane]):
                return True
            seen |= mask[plane]
    return False
