"""The plane that a frame of a segmentation belongs to, by source reference and by position."""

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
    orthonormal,
)
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.stacks import Stack

IN_PLANE_TOLERANCE = 0.1
"""A frame's first pixel may lie this part of a pixel beside the source's."""
COSINE_TOLERANCE = 1e-3


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

    @property
    def is_identity(self) -> bool:
        """Answer whether the frame lies as its source does."""
        return not (self.transpose or self.flip_rows or self.flip_columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The plane of one frame, by its index in the stack, and how the frame lies on it."""

    plane_index: int
    lies: Turn

    def turn(self, mask: BoolArray) -> BoolArray:
        """Bring the frame to the orientation of its plane."""
        return self.lies.apply(mask)


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
        self._positions = np.stack([frame.position_mm for frame in stack.frames])
        self._tolerances = _tolerances(self._positions @ self.normal, stack.grid.spacing_mm[0])
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

    def at(self, corner: FloatArray, lies: Turn) -> int | None:
        """Find the plane of a frame whose first pixel is at `corner` (LPS, mm) and that lies turned so.

        Each plane has a place and a tolerance of its own, so that the planes may be sheared or unevenly
        spaced: a tenth of the distance to the nearest other plane, and a tenth of a pixel beside it.
        """
        last = np.array(self.size) - 1
        first = last * [lies.flip_rows, lies.flip_columns] * self.pixel_spacing_mm
        offsets = corner - first @ self.axes - self._positions
        along = offsets @ self.normal
        index = int(np.abs(along).argmin())
        beside = float(np.linalg.norm(offsets[index] - along[index] * self.normal))
        allowed = max(POSITION_TOLERANCE_MM, IN_PLANE_TOLERANCE * float(self.pixel_spacing_mm.min()))
        is_here = abs(along[index]) <= self._tolerances[index] and beside <= allowed
        return index if is_here else None


class FrameLocator:
    """Finds the planes of one object's frames; `flags` says what it met on the way.

    The source reference (exactly one source plane) and the position are read independently.
    Where they name different planes, dcmjs writers are believed by reference, because they wrote
    mirrored positions (Cornerstone3D #2580); others by reference only if they say Spatial
    Locations Preserved YES, else by position (PS3.3 A.51.5).

    Raises
    ------
    CorrectionError
        The object has another frame of reference, or other Rows and Columns, than the stack.
    """

    def __init__(self, ds: Dataset, stack: Stack) -> None:
        self.flags: set[str] = set()
        self._name = segmentation_name(ds)
        self._stack = stack
        self._planes = PlaneIndex(stack)
        self._frames = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
        self._shared = next(iter(attributes.items(ds, "SharedFunctionalGroupsSequence")), Dataset())
        self._shared_sources = source_images(self._shared)
        self._shared_turn: Turn | None = None
        self._is_dcmjs = is_dcmjs(ds)
        self._same_space = self._check_frame_of_reference(ds)
        self._size = self._check_size(ds)

    def locate(self, index: int) -> Place:
        """Find the plane of frame `index` (0-based).

        Raises
        ------
        CorrectionError
            Neither reference nor position names a plane of the stack, or the frame is on another grid.
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
                f"{self._name}: frame {index + 1} is on no slice of series "
                f"{self._stack.series_instance_uid}: "
                "it references none and lies at the position of none"
            )
        if referenced is not None and positioned is not None and referenced != positioned:
            self.flags.add("position_conflict")
            chosen = referenced if self._is_dcmjs or is_preserved else positioned
        if not lies.is_identity:
            self.flags.add("in_plane_flip")
        return Place(plane_index=chosen, lies=lies)

    def places_at_positions(self) -> int:
        """Count the frames that lie at the position of a plane, whatever they reference."""
        if not self._same_space:
            return 0
        return sum(self._by_position(frame, self._lies(frame)) is not None for frame in self._frames)

    def _check_frame_of_reference(self, ds: Dataset) -> bool:
        theirs, grid = attributes.text(ds, "FrameOfReferenceUID"), self._stack.grid
        if theirs and grid.has_own_frame_of_reference and theirs != grid.frame_of_reference_uid:
            raise CorrectionError(
                f"{self._name} is in frame of reference {theirs}, the series in "
                f"{grid.frame_of_reference_uid}: a registration would be needed"
            )
        return theirs == grid.frame_of_reference_uid

    def _check_size(self, ds: Dataset) -> tuple[int, int]:
        size = (attributes.integer(ds, "Rows") or 0, attributes.integer(ds, "Columns") or 0)
        expected = self._planes.size
        if size not in {expected, expected[::-1]}:
            raise CorrectionError(
                f"{self._name} is on another grid: {size[0]} x {size[1]} pixels, the series has "
                f"{expected[0]} x {expected[1]}"
            )
        return size

    def _by_reference(self, frame: Dataset) -> tuple[int | None, bool]:
        items = [*source_images(frame), *self._shared_sources]
        planes = self._planes.named(items)
        if len(planes) > 1:
            self.flags.add("reference_conflict")
        is_preserved = any(attributes.text(item, "SpatialLocationsPreserved") == "YES" for item in items)
        return (planes.pop(), is_preserved) if len(planes) == 1 else (None, is_preserved)

    def _by_position(self, frame: Dataset, lies: Turn) -> int | None:
        corner = self._numbers(frame, "PlanePositionSequence", "ImagePositionPatient", 3)
        return None if corner is None else self._planes.at(corner, lies)

    def _lies(self, frame: Dataset) -> Turn:
        """Read how a frame lies, once for all frames that leave this to the shared groups."""
        if "PlaneOrientationSequence" in frame or "PixelMeasuresSequence" in frame:
            return self._read_turn(frame)
        if self._shared_turn is None:
            self._shared_turn = self._read_turn(frame)
        return self._shared_turn

    def _read_turn(self, frame: Dataset) -> Turn:
        cosines = self._numbers(frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        if cosines is None:
            self._check_spacing(frame, transpose=False)
            return self._checked(Turn())
        turned = np.stack([cosines[3:], cosines[:3]]) @ self._planes.axes.T  # [frame axis, source axis]
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
        if turned_size != self._planes.size:
            raise CorrectionError(f"{self._name} is on another grid: rows and columns are exchanged")
        return lies

    def _check_spacing(self, frame: Dataset, *, transpose: bool) -> None:
        spacing = self._numbers(frame, "PixelMeasuresSequence", "PixelSpacing", 2)
        if spacing is None:
            return
        expected = self._planes.pixel_spacing_mm
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


def _tolerances(heights: FloatArray, spacing_mm: float) -> FloatArray:
    """How far along the normal a frame may lie from each plane: a tenth of the way to the next plane."""
    gaps = np.diff(heights)
    if not gaps.size:
        return np.full(1, max(POSITION_TOLERANCE_MM, SLICE_TOLERANCE * spacing_mm))
    nearest: FloatArray = np.minimum(np.append(gaps, np.inf), np.append(np.inf, gaps))
    return np.maximum(nearest * SLICE_TOLERANCE, POSITION_TOLERANCE_MM)


def _frame_count(ds: Dataset) -> int:
    return attributes.integer(ds, "NumberOfFrames") or 1
