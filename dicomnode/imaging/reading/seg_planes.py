"""The planes of a stack, as places for the frames of a segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.images.geometry import POSITION_TOLERANCE_MM, SLICE_TOLERANCE, orthonormal
from dicomnode.imaging.images.stacks import Stack

IN_PLANE_TOLERANCE = 0.1
"""A frame's first pixel may lie this part of a pixel beside one of the source's."""
_NEAR = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How a frame lies on its plane: transpose first, then flip rows and columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, mask: BoolArray) -> BoolArray:
        """Bring a frame (row, column) to the orientation of the source plane."""
        turned = mask.T if self.transpose else mask
        if self.flip_rows:
            turned = turned[::-1]
        return turned[:, ::-1] if self.flip_columns else turned

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Give the size of a turned frame."""
        return (size[1], size[0]) if self.transpose else size

    @property
    def is_identity(self) -> bool:
        """Answer whether the frame lies as its source does."""
        return not (self.transpose or self.flip_rows or self.flip_columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The plane of one frame, by its index in the stack, and how the frame lies on it.

    `row` and `column` say at which pixel of the plane the first pixel of the turned frame lies; they may be
    negative, and the frame may be smaller or larger than the plane.
    """

    plane_index: int
    lies: Turn
    row: int = 0
    column: int = 0

    def lay(self, mask: BoolArray, size: tuple[int, int]) -> tuple[BoolArray, bool]:
        """Lay a frame on a plane of this size; answer also whether voxels fall outside of it."""
        turned = self.lies.apply(mask)
        if turned.shape == size and not (self.row or self.column):
            return turned, False
        plane: BoolArray = np.zeros(size, np.bool_)
        low = np.clip((self.row, self.column), 0, size)
        high = np.clip((self.row + turned.shape[0], self.column + turned.shape[1]), low, size)
        if (high > low).all():
            rows, columns = (slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True))
            first, last = low - (self.row, self.column), high - (self.row, self.column)
            plane[rows, columns] = turned[first[0] : last[0], first[1] : last[1]]
        return plane, bool(np.count_nonzero(turned) > np.count_nonzero(plane))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """The pixel of the stack that is nearest to the first pixel of a turned frame, and how near it is."""

    plane_index: int
    row: int
    column: int
    is_exact: bool  # within a tenth of the way to the next plane, and a tenth of a pixel beside it
    is_near: bool  # within half of both, with the first pixel of the plane as its own

    def is_at(self, plane_index: int) -> bool:
        """Answer whether the frame covers this plane pixel by pixel."""
        return self.is_exact and (self.plane_index, self.row, self.column) == (plane_index, 0, 0)


class PlaneIndex:
    """The planes of a stack, to be found by reference or by the position of a frame's first pixel."""

    def __init__(self, stack: Stack) -> None:
        first = stack.frames[0]
        row, column, self.normal = orthonormal(
            first.row_cosines, first.column_cosines, stack.series_instance_uid
        )
        self.axes = np.stack([column, row])  # the directions in which the row and the column index grow
        self.pixel_spacing_mm = first.pixel_spacing_mm
        self.size = first.size
        self.positions = np.stack([frame.position_mm for frame in stack.frames])
        self.heights = self.positions @ self.normal
        self.tolerances = _tolerances(self.heights, stack.grid.spacing_mm[0])
        self._by_number = {
            (frame.sop_instance_uid, frame.frame_number): k for k, frame in enumerate(stack.frames)
        }
        self._frames_of = {frame.sop_instance_uid: _frame_count(frame.ds) for frame in stack.frames}

    def holds(self, reference: Dataset) -> bool:
        """Answer whether an image reference names a plane of the stack, or an instance that has one."""
        uid = attributes.text(reference, "ReferencedSOPInstanceUID")
        if uid not in self._frames_of:
            return False
        numbers = attributes.numbers(reference, "ReferencedFrameNumber")
        return numbers is None or self._frames_of[uid] == 1 or bool(self.named([reference]))

    def named(self, references: Sequence[Dataset]) -> set[int]:
        """Give the planes that image references (PS3.3 Table 10-3) name.

        The Referenced Frame Number of a single-frame image is not looked at: there it must be absent, and
        some writers put 1. A reference to a multi-frame image as a whole names no plane.
        """
        planes = set()
        for reference in references:
            uid = attributes.text(reference, "ReferencedSOPInstanceUID")
            numbers = attributes.numbers(reference, "ReferencedFrameNumber")
            if self._frames_of.get(uid) == 1:
                planes.add(self._by_number[uid, 1])
            elif uid in self._frames_of and numbers is not None:
                planes |= {self._by_number[uid, n] for n in numbers.tolist() if (uid, n) in self._by_number}
        return planes

    def spot(self, corner: FloatArray, lies: Turn, size: tuple[int, int]) -> Spot:
        """Find the pixel at which a frame begins whose own first pixel is at `corner` (LPS, mm).

        Each plane has a place and a tolerance of its own, so that the planes may be sheared or unevenly
        spaced.

        Parameters
        ----------
        size
            Rows and columns of the frame when it is turned.
        """
        last = np.array(size) - 1
        first = last * [lies.flip_rows, lies.flip_columns] * self.pixel_spacing_mm
        offsets = corner - first @ self.axes - self.positions
        along = np.abs(offsets @ self.normal)
        index = int(along.argmin())
        beside_mm = self.axes @ offsets[index]
        shift = beside_mm / self.pixel_spacing_mm
        whole = np.rint(shift)
        rest_mm = float(np.linalg.norm(beside_mm - whole * self.pixel_spacing_mm))
        allowed_mm = max(POSITION_TOLERANCE_MM, IN_PLANE_TOLERANCE * float(self.pixel_spacing_mm.min()))
        near_mm = _NEAR / SLICE_TOLERANCE * self.tolerances[index]
        return Spot(
            plane_index=index,
            row=int(whole[0]),
            column=int(whole[1]),
            is_exact=bool(along[index] <= self.tolerances[index] and rest_mm <= allowed_mm),
            is_near=bool(along[index] < near_mm and np.abs(shift).max() < _NEAR),
        )

    def is_beyond(self, height_mm: float) -> bool:
        """Answer whether a height along the normal is before the first or after the last plane.

        By more than half the distance to its neighbour.
        """
        half = _NEAR / SLICE_TOLERANCE * self.tolerances
        return bool(height_mm < self.heights[0] - half[0] or height_mm > self.heights[-1] + half[-1])


def _tolerances(heights: FloatArray, spacing_mm: float) -> FloatArray:
    """How far along the normal a frame may lie from each plane: a tenth of the way to the next plane."""
    gaps = np.diff(heights)
    if not gaps.size:
        return np.full(1, max(POSITION_TOLERANCE_MM, SLICE_TOLERANCE * spacing_mm))
    nearest: FloatArray = np.minimum(np.append(gaps, np.inf), np.append(np.inf, gaps))
    return np.maximum(nearest * SLICE_TOLERANCE, POSITION_TOLERANCE_MM)


def _frame_count(ds: Dataset) -> int:
    return attributes.integer(ds, "NumberOfFrames") or 1
