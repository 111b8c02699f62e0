"""Where the frames of a segmentation say that they lie, in their own or in the shared functional groups."""

import numpy as np
from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray, segmentation_name
from dicomnode.imaging.images.frames import FARTHEST_MM, NEAREST_MM

_Key = tuple[str, str, int]
_CORNER: _Key = ("PlanePositionSequence", "ImagePositionPatient", 3)
_COSINES: _Key = ("PlaneOrientationSequence", "ImageOrientationPatient", 6)
_SPACING: _Key = ("PixelMeasuresSequence", "PixelSpacing", 2)


class FrameGeometry:
    """Position, orientation and pixel spacing of each frame of one object; None where it says none.

    A frame's own functional groups come before the shared ones (PS3.3 C.7.6.16.1.1).

    Raises
    ------
    CorrectionError
        A position or a distance is none that an image of a patient can have.
    """

    def __init__(self, ds: Dataset) -> None:
        self.name = segmentation_name(ds)
        self.frame_of_reference_uid = attributes.text(ds, "FrameOfReferenceUID")
        self.size = (attributes.integer(ds, "Rows") or 0, attributes.integer(ds, "Columns") or 0)
        self.frames = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
        self.shared = next(iter(attributes.items(ds, "SharedFunctionalGroupsSequence")), Dataset())
        self._of_all: dict[_Key, FloatArray | None] = {}

    def corner(self, index: int) -> FloatArray | None:
        """Centre of the first pixel of a frame, shape (3,), LPS, mm."""
        corner = self._numbers(index, _CORNER)
        if corner is not None and np.abs(corner).max() > FARTHEST_MM:
            raise CorrectionError(
                f"{self.name}: frame {index + 1} lies at {corner.tolist()} mm, which is in no patient"
            )
        return corner

    def cosines(self, index: int) -> FloatArray | None:
        """Directions in which the row and the column index grow, shape (2, 3)."""
        cosines = self._numbers(index, _COSINES)
        return None if cosines is None else np.stack([cosines[3:], cosines[:3]])

    def spacing_mm(self, index: int) -> FloatArray | None:
        """Distance between rows and between columns, shape (2,)."""
        spacing = self._numbers(index, _SPACING)
        if spacing is not None and not (spacing.min() >= NEAREST_MM and spacing.max() <= FARTHEST_MM):
            raise CorrectionError(f"{self.name}: frame {index + 1} has pixels of {spacing.tolist()} mm")
        return spacing

    def slice_spacing_mm(self) -> float | None:
        """Distance between the centres of slices, as the first frame says it."""
        return self._distance("SpacingBetweenSlices")

    def slice_thickness_mm(self) -> float | None:
        """Thickness of slices, as the first frame says it."""
        return self._distance("SliceThickness")

    def _distance(self, keyword: str) -> float | None:
        found = self._numbers(0, ("PixelMeasuresSequence", keyword, 1))
        is_said = found is not None and NEAREST_MM <= abs(found[0]) <= FARTHEST_MM
        return abs(float(found[0])) if found is not None and is_said else None

    def _numbers(self, index: int, key: _Key) -> FloatArray | None:
        if key[0] in self.frames[index]:
            own = _numbers(self.frames[index], key)
            if own is not None:
                return own
        if key not in self._of_all:
            self._of_all[key] = _numbers(self.shared, key)
        return self._of_all[key]


def _numbers(group: Dataset, key: _Key) -> FloatArray | None:
    sequence, keyword, count = key
    for item in attributes.items(group, sequence):
        values = attributes.numbers(item, keyword)
        if values is not None and len(values) == count:
            return values
    return None
