"""The contours of a structure set, filled again by the rule that a pixel counts whose centre is inside."""

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.stacks import Stack


def fill(ring: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill one closed ring of (row, column) by the even-odd rule."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(float)
    is_inside = np.zeros(shape, bool)
    for (row, column), (next_row, next_column) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if row != next_row:
            crosses = (row <= rows) != (next_row <= rows)
            at = column + (rows - row) * (next_column - column) / (next_row - row)
            is_inside ^= crosses & (at < columns)
    return is_inside


def winding(ring: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Count how often a ring goes around each pixel centre."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(float)
    count = np.zeros(shape, np.int64)
    for (row, column), (next_row, next_column) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if row != next_row:
            at = column + (rows - row) * (next_column - column) / (next_row - row)
            count += ((row <= rows) & (rows < next_row) & (at < columns)).astype(int)
            count -= ((next_row <= rows) & (rows < row) & (at < columns)).astype(int)
    return count


def labels_of(ds: Dataset, stack: Stack) -> NDArray[np.uint8]:
    """Fill every contour on the plane that it refers to; ROI numbers become values."""
    planes = {(f.sop_instance_uid, f.frame_number): k for k, f in enumerate(stack.frames)}
    labels = np.zeros(stack.shape, np.uint8)
    for roi in ds.ROIContourSequence:
        for contour in roi.ContourSequence:
            (image,) = contour.ContourImageSequence
            index = planes[str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1))]
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == int(contour.NumberOfContourPoints)
            ring = on_plane(points, stack.frames[index])
            labels[index][fill(ring, stack.shape[1:])] = int(roi.ReferencedROINumber)
    return labels


def on_plane(points: NDArray[np.float64], frame: SourceFrame) -> NDArray[np.float64]:
    """Bring points in patient space to (row, column); they must lie in the plane."""
    away = points - frame.position_mm
    normal = np.cross(frame.row_cosines, frame.column_cosines)
    assert np.abs(away @ normal).max() < 1e-3
    axes = np.stack([frame.column_cosines, frame.row_cosines]).T
    return np.asarray(np.linalg.lstsq(axes, away.T, rcond=None)[0].T / frame.pixel_spacing_mm)
