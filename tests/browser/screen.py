"""Labels on a series and on a screen: where each belongs by the image's geometry, and where it is drawn."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from dicomnode.imaging.images.frames import SourceFrame

RGB = NDArray[np.uint8]
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
ToCanvas = Callable[[NDArray[np.float64]], NDArray[np.float64]]

OUTSIDE = 255
"""On a canvas: beside the image, where the viewer has texts and controls."""
LEAST_CHANGE = 10  # grey levels by which drawing a segment changes at least one channel


def lopsided_labels(values: NDArray[np.float32]) -> Labels:
    """Segments 1 and 2 on what is bright in two blocks, placed so that every flip, shift and swap is seen."""
    smooth = gaussian_filter(values, (0, 1.5, 1.5))
    slices, rows, columns = values.shape
    labels = np.zeros(values.shape, np.uint8)
    for number, part, least in (
        (2, np.s_[slices // 2 : slices - 1, rows // 2 : rows - 1, : 2 * columns // 3], 60),
        (1, np.s_[slices // 5 : 3 * slices // 5 + 1, rows // 8 : 2 * rows // 3, columns // 3 :], 85),
    ):
        block = smooth[part]
        labels[part][block > np.percentile(block, least)] = number
    return labels


def voxels_on_canvas(
    frame: SourceFrame, to_canvas: ToCanvas
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the voxels of a frame lie on a canvas, by the image's own geometry: the first, and the steps.

    Returns
    -------
        Centre of the first voxel, (x, y) in pixels; and (2, 2), whose columns are the steps to the next row
        and to the next column.
    """
    down = frame.column_cosines * frame.pixel_spacing_mm[0]
    along = frame.row_cosines * frame.pixel_spacing_mm[1]
    corners = np.stack([frame.position_mm, frame.position_mm + down, frame.position_mm + along])
    first, below, beside = to_canvas(corners)
    return first, np.stack([below - first, beside - first], axis=1)


def labels_on_canvas(frame: SourceFrame, labels: Labels, to_canvas: ToCanvas, shape: Sequence[int]) -> Labels:
    """Give each pixel of a canvas the label of the voxel that lies there; `OUTSIDE` where there is none.

    Parameters
    ----------
    labels
        Segment numbers of the frame, (row, column).
    to_canvas
        From patient space, (n, 3) in LPS and mm, to (x, y) on the canvas in pixels.
    shape
        Rows and columns of the canvas.
    """
    first, steps = voxels_on_canvas(frame, to_canvas)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    places = np.linalg.inv(steps) @ np.stack([x.ravel() - first[0], y.ravel() - first[1]])
    row, column = np.floor(places + 0.5).astype(int)
    inside = (row >= 0) & (row < labels.shape[0]) & (column >= 0) & (column < labels.shape[1])
    found = np.full(row.size, OUTSIDE, np.uint8)
    found[inside] = labels[row[inside], column[inside]]
    return found.reshape(shape[0], shape[1])


def drawn_labels(plain: RGB, overlaid: RGB, colours: Sequence[tuple[int, int, int]]) -> Labels:
    """Tell from two pictures of one slice, without and with segments, which segment is drawn where.

    A pixel that changed has the segment to whose colour it moved; `colours` are those of segments 1, 2, ...
    """
    change = overlaid.astype(np.float64) - plain
    tint = change - change.mean(axis=-1, keepdims=True)
    hues = np.array(colours, np.float64)
    hues -= hues.mean(axis=-1, keepdims=True)
    hues /= np.linalg.norm(hues, axis=-1, keepdims=True)
    nearest = np.argmax(tint @ hues.T, axis=-1) + 1
    return np.where(np.abs(change).max(axis=-1) >= LEAST_CHANGE, nearest, 0).astype(np.uint8)


def dice(one: Mask, other: Mask) -> float:
    """Overlap of two masks, 1 where they are the same."""
    return 2.0 * float((one & other).sum()) / float(one.sum() + other.sum())


def part_near(mask: Mask, target: Mask, *, distance: float) -> float:
    """Part of the pixels of a mask that lie within a distance, in pixels, of a pixel of the target."""
    return float((distance_transform_edt(~target)[mask] <= distance).mean())


def edges(mask: Mask) -> Mask:
    """Pixels of a mask with a neighbour in row or column that does not belong to it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
