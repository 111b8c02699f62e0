"""The plane that a frame of a segmentation belongs to, by source reference and by position."""

from dataclasses import replace

import numpy as np
from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.geometry import PIXEL_SPACING_TOLERANCE
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.seg_geometry import FrameGeometry
from dicomnode.imaging.reading.seg_planes import Place, PlaneIndex, Spot, Turn

COSINE_TOLERANCE = 1e-3

_DCMJS = {
    "Manufacturer": "Unspecified",
    "ManufacturerModelName": "Unspecified",
    "SoftwareVersions": "0",
    "DeviceSerialNumber": "1",
    "ContentLabel": "SEGMENTATION",
    "ImageComments": "NOT FOR CLINICAL USE",
}
_LEAST_MARKS = 2


class FrameLocator:
    """Finds the planes of one object's frames; `flags` says what it met on the way.

    The source reference (exactly one source plane) and the position are read independently.
    Where they name different planes, dcmjs writers are believed by reference, because they wrote
    mirrored positions (Cornerstone3D #2580); others by reference only if they say Spatial
    Locations Preserved YES, else by position (PS3.3 A.51.5). Only the mirrored positions of dcmjs are a known
    defect: any other conflict is also flagged `conflict_unsettled`.

    Raises
    ------
    CorrectionError
        The object has another frame of reference than the stack.
    """

    def __init__(self, ds: Dataset, stack: Stack) -> None:
        self.flags: set[str] = set()
        self.geometry = FrameGeometry(ds)
        self.planes = PlaneIndex(stack)
        self._stack = stack
        self._shared_sources = source_images(self.geometry.shared)
        self._turns: dict[tuple[bytes, bytes], Turn | None] = {}
        self._pairs: list[tuple[int, int | None]] = []  # planes by reference and by position
        self._is_dcmjs = is_dcmjs(ds)
        self._same_space = self._check_frame_of_reference()
        self._has_source_size = self._check_size()

    def places(self) -> tuple[Place | None, ...] | None:
        """Find the planes of all frames; None where the object is on another grid and must be resampled.

        A frame that lies before the first or behind the last plane has no place (flag `outside_of_images`).

        Raises
        ------
        CorrectionError
            Neither reference nor position names a plane of the stack, and where the frame lies is not said
            or not to be relied on.
        """
        found = [self._place(index) for index in range(len(self.geometry.frames))]
        self._judge_conflicts()
        off = [index for index, place in enumerate(found) if place is None]
        if len(off) == len(found) or not all(map(self._is_outside, off)):
            self._check_other_grid(off[0])
            return None
        if off:
            self.flags.add("outside_of_images")
        if any(place is not None and self._is_crop(place) for place in found):
            self.flags.add("cropped")
        if any(place is not None and not place.lies.is_identity for place in found):
            self.flags.add("in_plane_flip")
        return tuple(found)

    def spots(self) -> list[Spot | None]:
        """Give the places of all frames by their positions alone; None where a frame is at no pixel's place.

        What they refer to and whether they have the size of the stack does not matter.
        """
        if not self._same_space:
            return [None] * len(self.geometry.frames)
        spots = [self._spot(index, self._lies(index)) for index in range(len(self.geometry.frames))]
        return [spot if spot is not None and spot.is_exact else None for spot in spots]

    def is_whole(self) -> bool:
        """Answer whether every frame has the size, the orientation and the pixels of the stack's planes."""
        turns = [self._lies(index) for index in range(len(self.geometry.frames))]
        return all(lies is not None and self._fills(lies) for lies in turns)

    def is_within(self, index: int, spot: Spot) -> bool:
        """Answer whether a frame at this place lies on its plane with all its pixels."""
        lies = self._lies(index)
        if lies is None:
            return False
        size = lies.size(self.geometry.size)
        low = (spot.row, spot.column)
        return all(a >= 0 and a + b <= c for a, b, c in zip(low, size, self.planes.size, strict=True))

    def _check_frame_of_reference(self) -> bool:
        theirs, grid = self.geometry.frame_of_reference_uid, self._stack.grid
        if theirs and grid.has_own_frame_of_reference and theirs != grid.frame_of_reference_uid:
            raise CorrectionError(
                f"{self.geometry.name} is in frame of reference {theirs}, the series in "
                f"{grid.frame_of_reference_uid}: a registration would be needed"
            )
        return theirs == grid.frame_of_reference_uid

    def _check_size(self) -> bool:
        """Answer whether frames have the size of the planes; refuse exchanged rows and columns."""
        size, expected = self.geometry.size, self.planes.size
        lies = self._lies(0) if self.geometry.frames else None
        if size == expected[::-1] != expected and lies is not None and not lies.transpose:
            raise CorrectionError(
                f"{self.geometry.name} is on another grid: rows and columns of the series are exchanged"
            )
        return size in {expected, expected[::-1]}

    def _place(self, index: int) -> Place | None:
        lies = self._lies(index)
        named, is_preserved = self._named(index)
        spot = self._spot(index, lies) if self._same_space else None
        if lies is None or not self._fills(lies) or len(named) != 1:
            return self._by_position(named, spot, lies)
        (referenced,) = named
        if spot is None:
            self.flags.add("no_positions")
            return Place(plane_index=referenced, lies=lies)
        if spot.plane_index == referenced and spot.is_near:
            if not spot.is_exact:
                self.flags.add("position_imprecise")
            self._pairs.append((referenced, referenced))
            return Place(plane_index=referenced, lies=lies)
        self._pairs.append((referenced, spot.plane_index if spot.is_at(spot.plane_index) else None))
        if self._is_dcmjs or is_preserved:
            return Place(plane_index=referenced, lies=lies)
        return _place_at(spot, lies)

    def _by_position(self, named: set[int], spot: Spot | None, lies: Turn | None) -> Place | None:
        """Place a frame that names no plane or several, or that covers another part of its plane."""
        if len(named) != 1:
            self.flags.add("reference_conflict" if named else "no_references")
        if not named and self._is_dcmjs:
            self.flags.add("dcmjs_positions_alone")
        # References that its position does not bear out contradict it; a frame of another size and without a
        # position has nothing to contradict: it is refused or resampled.
        is_denied = spot is None or not spot.is_exact or spot.plane_index not in named
        if named and is_denied and (spot is not None or self._has_source_size):
            self._pairs.append((min(named), None))
        if spot is None or lies is None:
            return None
        return _place_at(spot, lies)

    def _judge_conflicts(self) -> None:
        if all(referenced == positioned for referenced, positioned in self._pairs):
            return
        self.flags.add("position_conflict")
        # Cornerstone 5.6 puts the frame of slice k at the place of slice n - 1 - k; nothing else is known.
        sums = {None if there is None else here + there for here, there in self._pairs}
        if not self._is_dcmjs or sums != {len(self._stack.frames) - 1}:
            self.flags.add("conflict_unsettled")

    def _named(self, index: int) -> tuple[set[int], bool]:
        items = [*source_images(self.geometry.frames[index]), *self._shared_sources]
        is_preserved = any(attributes.text(item, "SpatialLocationsPreserved") == "YES" for item in items)
        return self.planes.named(items), is_preserved

    def _spot(self, index: int, lies: Turn | None) -> Spot | None:
        corner = self.geometry.corner(index)
        if corner is None or lies is None:
            return None
        spot = self.planes.spot(corner, lies, lies.size(self.geometry.size))
        is_shifted = spot.row != 0 or spot.column != 0
        is_told = self.geometry.cosines(index) is not None and self.geometry.spacing_mm(index) is not None
        return replace(spot, is_exact=False) if is_shifted and not is_told else spot

    def _fills(self, lies: Turn) -> bool:
        return lies.size(self.geometry.size) == self.planes.size

    def _is_crop(self, place: Place) -> bool:
        return bool(place.row or place.column or not self._fills(place.lies))

    def _is_outside(self, index: int) -> bool:
        corner = self.geometry.corner(index)
        if corner is None or not self._same_space or self._lies(index) is None:
            return False
        return self.planes.is_beyond(float(corner @ self.planes.normal))

    def _lies(self, index: int) -> Turn | None:
        """Read how a frame lies; None where it is turned out of its plane or its pixels have another size."""
        cosines, spacing = self.geometry.cosines(index), self.geometry.spacing_mm(index)
        key = (b"" if cosines is None else cosines.tobytes(), b"" if spacing is None else spacing.tobytes())
        if key not in self._turns:
            self._turns[key] = self._read_turn(cosines, spacing)
        return self._turns[key]

    def _read_turn(self, cosines: FloatArray | None, spacing: FloatArray | None) -> Turn | None:
        lies = Turn() if cosines is None else self._turn(cosines)
        if lies is None or (not self._fills(lies) and (cosines is None or spacing is None)):
            return None
        expected = self.planes.pixel_spacing_mm[:: -1 if lies.transpose else 1]
        if spacing is None or np.allclose(spacing, expected, rtol=10 * PIXEL_SPACING_TOLERANCE, atol=0):
            return lies
        return None

    def _turn(self, cosines: FloatArray) -> Turn | None:
        turned = cosines @ self.planes.axes.T  # [frame axis, source axis]
        rounded = np.rint(turned)
        is_turned = np.abs(turned - rounded).max() > COSINE_TOLERANCE
        if is_turned or not np.array_equal(abs(rounded).sum(0), [1, 1]):
            return None
        signs = rounded.sum(axis=0)
        return Turn(
            transpose=bool(rounded[0, 0] == 0), flip_rows=bool(signs[0] < 0), flip_columns=bool(signs[1] < 0)
        )

    def _check_other_grid(self, index: int) -> None:
        """Refuse to resample an object that does not say where its frames lie, or is not believed in that."""
        geometry, size = self.geometry, self.planes.size
        said = {
            "position": geometry.corner(index),
            "orientation": geometry.cosines(index),
            "pixel spacing": geometry.spacing_mm(index),
        }
        reason = (
            f"to bring it there, its {' and '.join(k for k, v in said.items() if v is None)} would be needed"
        )
        if not self._same_space:
            reason = "it references none, and without a common frame of reference its position says nothing"
        elif self._is_dcmjs:
            reason = "its writer draws on the planes of the series only"
        elif all(value is not None for value in said.values()):
            return
        raise CorrectionError(
            f"{geometry.name} is on another grid: frame {index + 1}, {geometry.size[0]} x {geometry.size[1]} "
            f"pixels, is on no slice of series {self._stack.series_instance_uid} "
            f"({size[0]} x {size[1]} pixels); {reason}"
        )


def is_dcmjs(ds: Dataset) -> bool:
    """Answer whether dcmjs (OHIF, Cornerstone) wrote an object, by what it claims of itself.

    Its manufacturer suffices; where an archive has changed that, two other marks. One alone does not:
    SEGMENTATION is a Content Label that any writer may choose.
    """
    return attributes.text(ds, "Manufacturer") == _DCMJS["Manufacturer"] or dcmjs_marks(ds) >= _LEAST_MARKS


def dcmjs_marks(ds: Dataset) -> int:
    """Count what an object claims of itself as dcmjs does, 0 to 6."""
    return sum(attributes.text(ds, keyword) == value for keyword, value in _DCMJS.items())


def source_images(group: Dataset) -> list[Dataset]:
    """Give the source image items of a frame's functional groups, or of the shared ones."""
    return [
        item
        for derivation in attributes.items(group, "DerivationImageSequence")
        for item in attributes.items(derivation, "SourceImageSequence")
    ]


def _place_at(spot: Spot, lies: Turn) -> Place | None:
    if not spot.is_exact:
        return None
    return Place(plane_index=spot.plane_index, lies=lies, row=spot.row, column=spot.column)
