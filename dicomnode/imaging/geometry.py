"""Where the slices of a series lie in patient space, and whether they form one regular grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

import numpy as np
from pydicom import Dataset

from dicomnode.errors import GeometryError, UnreadableInstanceError
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
    """The regular grid of one series.

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


@dataclass(frozen=True, slots=True)
class _Plane:
    position: FloatArray
    row_cosines: FloatArray
    column_cosines: FloatArray
    pixel_spacing: FloatArray


def read_grid(datasets: Sequence[Dataset]) -> tuple[tuple[Dataset, ...], SliceGrid]:
    """Sort single-frame images along the normal of their plane and check that they form a grid.

    The order is ascending in Image Position (Patient) . normal (PS3.3 C.7.6.2.1.1);
    Instance Number is never read. Tolerances are the constants of this module.

    Returns
    -------
        The same data sets in slice order, and their grid.

    Raises
    ------
    GeometryError
        Geometry attributes are missing or differ between slices; two slices share a position; a slice
        is missing; the stack is sheared (gantry tilt).
    UnreadableInstanceError
        Several series, or a UID is missing or there twice.
    """
    if not datasets:
        raise GeometryError("no images: at least one slice was expected")
    series_uid = _series_uid(datasets)
    planes = [_read_plane(ds, series_uid) for ds in datasets]
    _check_alike(datasets, planes, series_uid)
    row_cosines, column_cosines, normal = orthonormal(
        planes[0].row_cosines, planes[0].column_cosines, series_uid
    )
    positions = np.stack([plane.position for plane in planes])
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    spacing = _slice_spacing(datasets[0], distances[order], series_uid)
    _check_shear(positions[order], normal, planes[0].pixel_spacing, series_uid)
    ordered = tuple(datasets[index] for index in order)
    uid, is_own = frame_of_reference(ordered[0])
    grid = SliceGrid(
        series_instance_uid=series_uid,
        frame_of_reference_uid=uid,
        has_own_frame_of_reference=is_own,
        shape=(len(ordered), *_size(ordered[0])),
        spacing_mm=(spacing, float(planes[0].pixel_spacing[0]), float(planes[0].pixel_spacing[1])),
        origin_mm=positions[order[0]],
        normal=normal,
        row_direction=column_cosines,
        column_direction=row_cosines,
    )
    return ordered, grid


def frame_of_reference(ds: Dataset) -> tuple[str, bool]:
    """Give the frame of reference of an image, and whether the image itself names it.

    CT, MR and PET require the attribute (PS3.3 C.7.4.1). Where it is absent a UID is derived
    from the series, so that every object made from this series carries the same one.
    """
    own = attributes.text(ds, "FrameOfReferenceUID")
    if own:
        return own, True
    return f"2.25.{uuid5(_FRAME_OF_REFERENCE, attributes.text(ds, 'SeriesInstanceUID')).int}", False


def _series_uid(datasets: Sequence[Dataset]) -> str:
    series_uids = {attributes.text(ds, "SeriesInstanceUID") for ds in datasets}
    if len(series_uids) > 1 or "" in series_uids:
        raise UnreadableInstanceError(f"images of one series were expected, found {sorted(series_uids)}")
    series_uid = series_uids.pop()
    instance_uids = {attributes.text(ds, "SOPInstanceUID") for ds in datasets}
    if len(instance_uids) < len(datasets) or "" in instance_uids:
        raise UnreadableInstanceError(f"series {series_uid}: a SOP Instance UID is missing or there twice")
    return series_uid


def _size(ds: Dataset) -> tuple[int, int]:
    return attributes.integer(ds, "Rows") or 0, attributes.integer(ds, "Columns") or 0


def _read_plane(ds: Dataset, series_uid: str) -> _Plane:
    position = _numbers(ds, "ImagePositionPatient", 3, series_uid)
    cosines = _numbers(ds, "ImageOrientationPatient", 6, series_uid)
    spacing = _numbers(ds, "PixelSpacing", 2, series_uid)
    if spacing.min() <= 0:
        raise GeometryError(f"series {series_uid}: Pixel Spacing {spacing.tolist()} is not positive")
    return _Plane(position, cosines[:3], cosines[3:], spacing)


def _numbers(ds: Dataset, keyword: str, count: int, series_uid: str) -> FloatArray:
    where = f"{keyword} of instance {attributes.text(ds, 'SOPInstanceUID')}"
    if not attributes.has_value(ds, keyword):
        raise GeometryError(f"series {series_uid} is a series without geometry: {where} is missing")
    values = attributes.numbers(ds, keyword)
    if values is None or values.size != count:
        raise GeometryError(f"series {series_uid}: {where} does not hold {count} finite numbers")
    return values


def _check_alike(datasets: Sequence[Dataset], planes: Sequence[_Plane], series_uid: str) -> None:
    sizes = {_size(ds) for ds in datasets}
    if min(map(min, sizes)) < 1 or len(sizes) > 1:
        raise GeometryError(
            f"series {series_uid}: slices differ in Rows and Columns, or have none: {sorted(sizes)}"
        )
    frames = {attributes.text(ds, "FrameOfReferenceUID") for ds in datasets}
    if len(frames) > 1:
        raise GeometryError(f"series {series_uid}: {len(frames)} frames of reference, one was expected")
    first = planes[0]
    for plane in planes[1:]:
        turned = np.abs(
            np.concatenate([plane.row_cosines, plane.column_cosines])
            - np.concatenate([first.row_cosines, first.column_cosines])
        ).max()
        if turned > DIRECTION_TOLERANCE:
            raise GeometryError(
                f"series {series_uid}: slices differ in orientation by {turned:.4f} in a direction cosine, "
                f"at most {DIRECTION_TOLERANCE} was expected"
            )
        if not np.allclose(plane.pixel_spacing, first.pixel_spacing, rtol=PIXEL_SPACING_TOLERANCE, atol=0):
            raise GeometryError(
                f"series {series_uid}: slices differ in Pixel Spacing: {first.pixel_spacing.tolist()} "
                f"and {plane.pixel_spacing.tolist()} mm"
            )


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


def _slice_spacing(ds: Dataset, distances: FloatArray, series_uid: str) -> float:
    if len(distances) == 1:
        return _nominal_spacing(ds, series_uid)
    gaps = np.diff(distances)
    if gaps.min() <= POSITION_TOLERANCE_MM:
        at = float(distances[int(gaps.argmin())])
        raise GeometryError(f"series {series_uid}: two slices at one position, {at:.3f} mm along the normal")
    median = float(np.median(gaps))
    if gaps.max() > 1.5 * median:
        at = int(gaps.argmax())
        raise GeometryError(
            f"series {series_uid}: a gap of {gaps[at]:.3f} mm between the slices at {distances[at]:.3f} and "
            f"{distances[at + 1]:.3f} mm where {median:.3f} mm was expected: a slice is missing"
        )
    spacing = float((distances[-1] - distances[0]) / (len(distances) - 1))
    beside = np.abs(distances - (distances[0] + spacing * np.arange(len(distances)))).max()
    if beside > max(POSITION_TOLERANCE_MM, SLICE_TOLERANCE * spacing):
        raise GeometryError(
            f"series {series_uid}: slices are not evenly spaced: {gaps.min():.3f} to {gaps.max():.3f} mm, "
            f"a slice lies {beside:.3f} mm beside the regular grid of {spacing:.3f} mm"
        )
    return spacing


def _nominal_spacing(ds: Dataset, series_uid: str) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        values = attributes.numbers(ds, keyword)
        if values is not None and values[0] > 0:
            return float(values[0])
    raise GeometryError(
        f"series {series_uid} has one slice and neither Spacing Between Slices nor Slice Thickness"
    )


def _check_shear(
    positions: FloatArray, normal: FloatArray, pixel_spacing: FloatArray, series_uid: str
) -> None:
    along = (positions - positions[0]) @ normal
    drift = np.linalg.norm(positions - positions[0] - along[:, None] * normal, axis=1).max()
    allowed = max(POSITION_TOLERANCE_MM, SHEAR_TOLERANCE * float(pixel_spacing.min()))
    if drift > allowed:
        height = max(float(along[-1]), POSITION_TOLERANCE_MM)
        tilt = np.degrees(np.arctan2(drift, height))
        raise GeometryError(
            f"series {series_uid}: the slices drift {drift:.3f} mm sideways over {height:.3f} mm "
            f"(gantry tilt of about {tilt:.1f} degrees); at most {allowed:.3f} mm was expected"
        )
