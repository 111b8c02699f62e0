"""The regular grid of a stack of slices in patient space, and how far slices may lie beside it."""

from dataclasses import dataclass
from uuid import UUID, uuid5

import numpy as np
from pydicom import Dataset

from dicomnode.errors import GeometryError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray

POSITION_TOLERANCE_MM = 0.01
SLICE_TOLERANCE = 0.1
"""A slice may lie this part of the slice spacing beside its place on the regular grid."""
SHEAR_TOLERANCE = 0.25
"""The whole stack may drift this part of a pixel in the image plane (rounded direction cosines)."""
DIRECTION_TOLERANCE = 1e-3
PIXEL_SPACING_TOLERANCE = 1e-3
UNIT_TOLERANCE = 1e-2

_FRAME_OF_REFERENCE = UUID("5d7b5a1c-3c0e-5f4f-9a55-0a3f6f5d4b11")


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceGrid:
    """The regular grid of one stack.

    `origin_mm` is the centre of the first voxel of the first slice. The directions are
    orthonormal: `row_direction` is the direction in which the row index grows, that is
    (0020,0037) values 4 to 6. Spacing is along (slice, row, column).
    """

    series_instance_uid: str
    frame_of_reference_uid: str
    has_own_frame_of_reference: bool  # False: the series names none and the UID was derived
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: FloatArray
    normal: FloatArray
    row_direction: FloatArray
    column_direction: FloatArray

    @property
    def affine(self) -> FloatArray:
        """Matrix (4, 4) from indices (slice, row, column, 1) to LPS millimetres."""
        matrix = np.eye(4)
        axes = (self.normal, self.row_direction, self.column_direction)
        for index, (axis, step) in enumerate(zip(axes, self.spacing_mm, strict=True)):
            matrix[:3, index] = axis * step
        matrix[:3, 3] = self.origin_mm
        return matrix


def frame_of_reference(ds: Dataset) -> tuple[str, bool]:
    """Give the frame of reference of an image, and whether the image itself names it.

    CT, MR and PET require the attribute (PS3.3 C.7.4.1). Where it is absent a UID is derived
    from the series, so that every object made from this series carries the same one.
    """
    own = attributes.text(ds, "FrameOfReferenceUID")
    if own:
        return own, True
    return f"2.25.{uuid5(_FRAME_OF_REFERENCE, attributes.text(ds, 'SeriesInstanceUID')).int}", False


def orthonormal(
    row_cosines: FloatArray, column_cosines: FloatArray, series_uid: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give exact directions along rows and columns, and their normal, for rounded direction cosines.

    Raises
    ------
    GeometryError
        They are not two orthogonal unit vectors within `UNIT_TOLERANCE`.
    """
    lengths = np.linalg.norm([row_cosines, column_cosines], axis=1)
    skew = abs(float(row_cosines @ column_cosines))
    if np.abs(lengths - 1).max() > UNIT_TOLERANCE or skew > UNIT_TOLERANCE:
        raise GeometryError(
            f"series {series_uid}: Image Orientation (Patient) is not two orthogonal unit vectors "
            f"(lengths {lengths[0]:.4f} and {lengths[1]:.4f}, product {skew:.4f})"
        )
    row = row_cosines / lengths[0]
    column = column_cosines - (column_cosines @ row) * row
    column /= np.linalg.norm(column)
    return row, column, np.cross(row, column)
