"""Between the received planes of a stack and the regular grid on which a model sees them.

Only stacks with a tilted gantry, missing slices or uneven spacing need this; of a regular stack both are one.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.stacks import Stack

BoolArray = NDArray[np.bool_]


def planes_to_image(planes: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """Resample planes onto the grid of their stack.

    Rows and columns are moved with bilinear interpolation, slices between two planes are interpolated
    linearly; a plane that lies at its place keeps its values. Outside the planes the image has their minimum;
    before the first and after the last plane, at most half a spacing away, it repeats them.

    Parameters
    ----------
    planes
        (frame, row, column) in the order of `stack.frames`; left unchanged.

    Returns
    -------
        float32 of `stack.grid.shape`; `planes` themselves where the stack is regular.
    """
    if stack.is_regular:
        return planes
    image: NDArray[np.float32] = np.empty(stack.grid.shape, np.float32)
    fill = float(planes.min())
    moved: dict[int, NDArray[np.float32]] = {}
    for index, (below, above, weight) in enumerate(_neighbours(stack)):
        moved = {
            k: moved[k] if k in moved else _moved(planes[k], stack.offsets[k, 1:], image.shape[1:], fill)
            for k in (below, above)
        }
        if weight == 0:
            image[index] = moved[below]
        else:
            np.multiply(moved[below], 1 - weight, out=image[index])
            image[index] += weight * moved[above]
    return image


def labels_to_planes(labels: NDArray[np.uint8], stack: Stack) -> NDArray[np.uint8]:
    """Bring labels on the grid of a stack to its planes, by nearest neighbour.

    Returns
    -------
        (frame, row, column) in the order of `stack.frames`; `labels` themselves where the stack is regular.
    """
    if stack.is_regular:
        return labels
    rows, columns = stack.frames[0].size
    planes: NDArray[np.uint8] = np.empty(stack.shape, np.uint8)
    for index, (place, row, column) in enumerate(_nearest(stack)):
        planes[index] = labels[place, row : row + rows, column : column + columns]
    return planes


def mask_to_image(mask: BoolArray, stack: Stack) -> BoolArray:
    """Bring a mask on the planes of a stack to its grid, by nearest neighbour.

    Slices without a plane (`backed_slices`) are False, which says nothing about them.

    Returns
    -------
        bool of `stack.grid.shape`; `mask` itself where the stack is regular.
    """
    if stack.is_regular:
        return mask
    image: BoolArray = np.zeros(stack.grid.shape, np.bool_)
    rows, columns = stack.frames[0].size
    nearest = list(_nearest(stack))
    for index, plane in _nearest_planes(stack):
        _, row, column = nearest[plane]
        image[index, row : row + rows, column : column + columns] = mask[plane]
    return image


def backed_slices(stack: Stack) -> BoolArray:
    """Answer for each slice of a stack's grid whether a plane lies within half a spacing, shape (slices,)."""
    backed: BoolArray = np.zeros(stack.grid.shape[0], np.bool_)
    backed[[index for index, _ in _nearest_planes(stack)]] = True
    return backed


def _neighbours(stack: Stack) -> Iterator[tuple[int, int, float]]:
    """Give for each slice of the grid the planes below and above it, and the weight of the one above."""
    places = stack.offsets[:, 0]
    last = len(places) - 1
    for index in range(stack.grid.shape[0]):
        below = int(np.clip(np.searchsorted(places, index, side="right") - 1, 0, last))
        above = min(below + 1, last)
        if index <= places[below] or above == below:
            yield below, below, 0.0
        else:
            yield below, above, float((index - places[below]) / (places[above] - places[below]))


def _nearest_planes(stack: Stack) -> Iterator[tuple[int, int]]:
    """Give the slices of the grid that have a plane within half a spacing, each with the nearest one."""
    places = stack.offsets[:, 0]
    for index in range(stack.grid.shape[0]):
        above = int(np.searchsorted(places, index))
        near = [k for k in (above - 1, above) if 0 <= k < len(places) and abs(places[k] - index) <= 0.5]
        if near:
            yield index, min(near, key=lambda k: abs(float(places[k]) - index))


def _nearest(stack: Stack) -> Iterator[tuple[int, int, int]]:
    """Give for each plane the voxel of the grid that is nearest to its first pixel."""
    room = np.array(stack.grid.shape) - (1, *stack.frames[0].size)
    for offset in stack.offsets:
        place, row, column = np.clip(np.rint(offset), 0, room).astype(int).tolist()
        yield place, row, column


def _moved(
    plane: NDArray[np.float32], offset: FloatArray, shape: tuple[int, ...], fill: float
) -> NDArray[np.float32]:
    """Lay a plane on a larger canvas, with its first pixel at `offset` (row, column)."""
    low = np.floor(offset).astype(int)
    moved = np.full(shape, fill, np.float32)
    moved[low[0] : low[0] + plane.shape[0], low[1] : low[1] + plane.shape[1]] = plane
    for axis, part in enumerate((offset - low).tolist()):
        if part > 0:
            lines = np.moveaxis(moved, axis, 0)
            passed_on = lines * np.float32(part)
            lines -= passed_on
            lines[1:] += passed_on[:-1]
            lines[:1] += passed_on[-1:]  # the last row and column hold the fill
    return moved
