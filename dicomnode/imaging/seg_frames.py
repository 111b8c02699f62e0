"""The slice that a frame of a segmentation belongs to, by source reference and by position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray, segmentation_name
from dicomnode.imaging.geometry import (
    PIXEL_SPACING_TOLERANCE,
    POSITION_TOLERANCE_MM,
    SLICE_TOLERANCE,
    SliceGrid,
)
from dicomnode.imaging.identity import BoolArray

IN_PLANE_TOLERANCE = 0.1
"""A frame's first pixel may lie this part of a pixel beside the source's."""
COSINE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How a frame lies on its slice: transpose first, then flip rows and columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, mask: BoolArray) -> BoolArray:
        """Bring a frame (row, column) to the orientation of the source slice."""
        turned = mask.T if self.transpose else mask
        if self.flip_rows:
            turned = turned[::-1]
        return turned[:, ::-1] if self.flip_columns else turned

    @property
    def is_identity(self) -> bool:
        """Answer whether the frame lies as its source does."""
        return not (self.transpose or self.flip_rows or self.flip_columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The slice of one frame, and how the frame lies on it."""

    slice_index: int
    lies: Turn

    def turn(self, mask: BoolArray) -> BoolArray:
        """Bring the frame to the orientation of its slice."""
        return self.lies.apply(mask)


class FrameLocator:
    """Finds the slices of one object's frames; `flags` says what it met on the way.

    The source reference (exactly one source instance) and the position are read independently.
    Where they name different slices, dcmjs writers are believed by reference, because they wrote
    mirrored positions (Cornerstone3D #2580); others by reference only if they say Spatial
    Locations Preserved YES, else by position (PS3.3 A.51.5).
    """

    def __init__(self, ds: Dataset, sources: Sequence[Dataset], grid: SliceGrid) -> None:
        self.flags: set[str] = set()
        self._name = segmentation_name(ds)
        self._grid = grid
        self._slices = {
            attributes.text(source, "SOPInstanceUID"): index for index, source in enumerate(sources)
        }
        self._positions = np.array([source.ImagePositionPatient for source in sources], np.float64)
        self._frames = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
        self._shared = next(iter(attributes.items(ds, "SharedFunctionalGroupsSequence")), Dataset())
        self._is_dcmjs = is_dcmjs(ds)
        self._same_space = self._check_frame_of_reference(ds)
        self._check_size(ds)

    def locate(self, index: int) -> Place:
        """Find the slice of frame `index` (0-based).

        Raises
        ------
        CorrectionError
            Neither reference nor position names a slice of the series, or the frame is on another grid.
        """
        if index >= len(self._frames):
            raise CorrectionError(f"{self._name}: frame {index + 1} has no functional groups")
        frame = self._frames[index]
        referenced, is_preserved = self._by_reference(frame)
        lies = self._lies(frame)
        positioned = self._by_position(frame, lies) if self._same_space else None
        chosen = positioned if referenced is None else referenced
        if chosen is None:
            raise CorrectionError(
                f"{self._name}: frame {index + 1} is on no slice of series {self._grid.series_instance_uid}: "
                "it references none and lies at the position of none"
            )
        if referenced is not None and positioned is not None and referenced != positioned:
            self.flags.add("position_conflict")
            chosen = referenced if self._is_dcmjs or is_preserved else positioned
        if not lies.is_identity:
            self.flags.add("in_plane_flip")
        return Place(slice_index=chosen, lies=lies)

    def _check_frame_of_reference(self, ds: Dataset) -> bool:
        theirs = attributes.text(ds, "FrameOfReferenceUID")
        if theirs and self._grid.has_own_frame_of_reference and theirs != self._grid.frame_of_reference_uid:
            raise CorrectionError(
                f"{self._name} is in frame of reference {theirs}, the series in "
                f"{self._grid.frame_of_reference_uid}: a registration would be needed"
            )
        return theirs == self._grid.frame_of_reference_uid

    def _check_size(self, ds: Dataset) -> None:
        size = (attributes.integer(ds, "Rows"), attributes.integer(ds, "Columns"))
        expected = self._grid.shape[1:]
        if size not in {expected, expected[::-1]}:
            raise CorrectionError(
                f"{self._name} is on another grid: {size[0]} x {size[1]} pixels, the series has "
                f"{expected[0]} x {expected[1]}"
            )
        self._size = size

    def _by_reference(self, frame: Dataset) -> tuple[int | None, bool]:
        items = [*source_images(frame), *source_images(self._shared)]
        named = {attributes.text(item, "ReferencedSOPInstanceUID") for item in items}
        slices = {self._slices[uid] for uid in named if uid in self._slices}
        if len(slices) > 1:
            self.flags.add("reference_conflict")
        is_preserved = any(attributes.text(item, "SpatialLocationsPreserved") == "YES" for item in items)
        return (slices.pop(), is_preserved) if len(slices) == 1 else (None, is_preserved)

    def _by_position(self, frame: Dataset, lies: Turn) -> int | None:
        corner = self._numbers(frame, "PlanePositionSequence", "ImagePositionPatient", 3)
        if corner is None:
            return None
        rows, columns = self._grid.shape[1:]
        first = np.array([(rows - 1) * lies.flip_rows, (columns - 1) * lies.flip_columns], np.float64)
        steps = self._in_plane()
        offsets = corner - first @ steps - self._positions
        along = np.abs(offsets @ self._grid.normal)
        index = int(along.argmin())
        gap, *pixel = self._grid.spacing_mm
        beside = np.linalg.norm(offsets[index] - (offsets[index] @ self._grid.normal) * self._grid.normal)
        is_here = along[index] <= max(POSITION_TOLERANCE_MM, SLICE_TOLERANCE * gap)
        return (
            index
            if is_here and beside <= max(POSITION_TOLERANCE_MM, IN_PLANE_TOLERANCE * min(pixel))
            else None
        )

    def _in_plane(self) -> FloatArray:
        _, row_mm, column_mm = self._grid.spacing_mm
        return np.stack([self._grid.row_direction * row_mm, self._grid.column_direction * column_mm])

    def _lies(self, frame: Dataset) -> Turn:
        cosines = self._numbers(frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        if cosines is None:
            self._check_spacing(frame, transpose=False)
            return self._checked(Turn())
        axes = np.stack([self._grid.row_direction, self._grid.column_direction])
        turned = np.stack([cosines[3:], cosines[:3]]) @ axes.T  # [frame axis, source axis]
        rounded = np.rint(turned)
        if np.abs(turned - rounded).max() > COSINE_TOLERANCE or not np.array_equal(
            abs(rounded).sum(0), [1, 1]
        ):
            raise CorrectionError(
                f"{self._name} is on another grid: its frames are turned against the series"
            )
        transpose = bool(rounded[0, 0] == 0)
        signs = rounded.sum(axis=0)
        lies = Turn(transpose=transpose, flip_rows=bool(signs[0] < 0), flip_columns=bool(signs[1] < 0))
        self._check_spacing(frame, transpose=transpose)
        return self._checked(lies)

    def _checked(self, lies: Turn) -> Turn:
        turned_size = self._size[::-1] if lies.transpose else self._size
        if turned_size != self._grid.shape[1:]:
            raise CorrectionError(f"{self._name} is on another grid: rows and columns are exchanged")
        return lies

    def _check_spacing(self, frame: Dataset, *, transpose: bool) -> None:
        spacing = self._numbers(frame, "PixelMeasuresSequence", "PixelSpacing", 2)
        if spacing is None:
            return
        expected = np.array(self._grid.spacing_mm[1:])
        if transpose:
            expected = expected[::-1]
        if not np.allclose(spacing, expected, rtol=10 * PIXEL_SPACING_TOLERANCE, atol=0):
            raise CorrectionError(
                f"{self._name} is on another grid: pixels of {spacing.tolist()} mm, "
                f"the series has {expected.tolist()} mm"
            )

    def _numbers(self, frame: Dataset, sequence: str, keyword: str, count: int) -> FloatArray | None:
        for group in (frame, self._shared):
            for item in attributes.items(group, sequence):
                values = attributes.numbers(item, keyword)
                if values is not None and len(values) == count:
                    return values
        return None


def is_dcmjs(ds: Dataset) -> bool:
    """Answer whether dcmjs (OHIF, Cornerstone) wrote an object, by the equipment it claims."""
    is_unspecified = attributes.text(ds, "Manufacturer") == "Unspecified"
    return is_unspecified or attributes.text(ds, "ContentLabel") == "SEGMENTATION"


def source_images(group: Dataset) -> list[Dataset]:
    """Give the source image items of a frame's functional groups, or of the shared ones."""
    return [
        item
        for derivation in attributes.items(group, "DerivationImageSequence")
        for item in attributes.items(derivation, "SourceImageSequence")
    ]
