"""Segmentations on a voxel grid of their own, brought to the planes of a stack by nearest neighbour.

Both are in one frame of reference, so that patient space settles where every voxel lies; what it does not
settle is where the border of a label would have been drawn on the other grid. Labels that are too thin for
the coarser of the two grids are left out.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import CorrectionError, GeometryError
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.images.geometry import POSITION_TOLERANCE_MM, SLICE_TOLERANCE, orthonormal
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading.seg_canvas import Canvas
from dicomnode.imaging.reading.seg_geometry import FrameGeometry
from dicomnode.imaging.reading.seg_planes import IN_PLANE_TOLERANCE, PlaneIndex

VOLUME_TOLERANCE = 0.1
"""A label whose volume changes by more than this part is left out."""
MAXIMUM_SLICES = 100_000
MAXIMUM_GAP = 1.5
"""Slices may be this many times their thickness apart where their distance is not said."""
_TIE = 1e-6
"""Centres that lie between two voxels go to the one with the higher index, whatever the rounding."""
_ALIKE = 1e-4
_PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnGrid:
    """The regular grid that the frames of an object lie on, LPS, mm."""

    shape: tuple[int, int, int]
    origin: FloatArray  # (3,): centre of the first voxel
    steps: FloatArray  # (3, 3): from voxel to voxel along (slice, row, column)
    slices: tuple[int, ...]  # of each frame

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel."""
        return abs(float(np.linalg.det(self.steps)))

    @property
    def to_indices(self) -> FloatArray:
        """Matrix (3, 3) from millimetres to voxels, to be multiplied from the right."""
        return np.asarray(np.linalg.inv(self.steps), np.float64)


def own_grid(geometry: FrameGeometry) -> OwnGrid:
    """Read the grid of an object whose frames are parallel, evenly spaced and have all been given a place.

    Frames without voxels may be missing: the distance of slices is what the object says, if the positions
    agree, else the smallest distance of two frames.

    Raises
    ------
    CorrectionError
        The frames make no regular grid.
    """
    count = len(geometry.frames)
    corners = _said([geometry.corner(k) for k in range(count)], geometry, "positions", differ=True)
    cosines = _said([geometry.cosines(k) for k in range(count)], geometry, "orientations")[0]
    spacing = _said([geometry.spacing_mm(k) for k in range(count)], geometry, "pixel spacings")[0]
    try:
        column, row, normal = orthonormal(cosines[1], cosines[0], geometry.name)
    except GeometryError as error:
        raise CorrectionError(f"{geometry.name} is on another grid: {error}") from error
    heights = corners @ normal
    step_mm = _slice_step(heights, geometry)
    slices = np.rint((heights - heights.min()) / step_mm)
    origin = corners[int(heights.argmin())]
    beside = corners - (origin + np.outer(slices * step_mm, normal))
    allowed = max(POSITION_TOLERANCE_MM, IN_PLANE_TOLERANCE * float(spacing.min()))
    beside -= np.outer(beside @ normal, normal)
    if np.linalg.norm(beside, axis=1).max() > allowed:
        raise CorrectionError(
            f"{geometry.name} is on another grid, whose slices are shifted against each other"
        )
    if slices.max() >= MAXIMUM_SLICES:
        raise CorrectionError(f"{geometry.name} is on another grid, of more than {MAXIMUM_SLICES} slices")
    return OwnGrid(
        shape=(int(slices.max()) + 1, *geometry.size),
        origin=origin,
        steps=np.stack([normal * step_mm, row * spacing[0], column * spacing[1]]),
        slices=tuple(slices.astype(int).tolist()),
    )


def resample(drawn: Canvas, grid: OwnGrid, stack: Stack, *, name: str) -> Canvas:
    """Bring masks from a grid of their own to the planes of a stack; `drawn` is emptied on the way.

    Each voxel of the stack takes the nearest voxel of the object. Segments that are too thin stand in
    `left_out`, those with voxels where the stack has no image in `cut`.

    Raises
    ------
    CorrectionError
        No voxel of the object lies on the stack.
    """
    planes = PlaneIndex(stack)
    canvas = Canvas(stack.shape, name=name, taken=drawn.taken)
    canvas.is_repeated = drawn.is_repeated
    slice_mm = stack.grid.spacing_mm[0]
    inside = {number: _inside(drawn, number, grid, planes, slice_mm) for number in drawn.painted}
    if inside and not any(count for count, _ in inside.values()):
        raise CorrectionError(f"{name} is on another grid and lies nowhere on the images of the series")
    for plane_index in range(stack.shape[0]):
        _sample(drawn, grid, planes, plane_index, canvas)
    voxel_mm3 = float(np.prod(planes.pixel_spacing_mm)) * slice_mm
    for number, (count, total) in inside.items():
        if count < total:
            canvas.cut.add(number)
        change = canvas.count(number) * voxel_mm3 / (count * grid.voxel_mm3) - 1 if count else 1.0
        if abs(change) > VOLUME_TOLERANCE or not _is_thick_on_both(drawn, canvas, number):
            canvas.left_out.add(number)
    drawn.painted.clear()
    return canvas


def _is_thick_on_both(drawn: Canvas, canvas: Canvas, number: int) -> bool:
    return all(
        number in one.painted and is_thick(one.painted[number], one.planes[number]) for one in (drawn, canvas)
    )


def is_thick(mask: BoolArray, planes: Collection[int]) -> bool:
    """Answer whether a mask with voxels on these planes is somewhere two voxels thick along all axes."""
    for index in sorted(planes):
        if index + 1 not in planes:
            continue
        both = mask[index] & mask[index + 1]
        both = both[1:] & both[:-1]
        if np.any(both[:, 1:] & both[:, :-1]):
            return True
    return False


def _said(
    values: list[FloatArray | None], geometry: FrameGeometry, what: str, *, differ: bool = False
) -> FloatArray:
    """Stack what all frames must say and, unless it may `differ`, say alike."""
    said = [value for value in values if value is not None]
    if len(said) < len(values) or not said:
        raise CorrectionError(f"{geometry.name} is on another grid, and frames are without {what}")
    stacked = np.stack(said)
    if not differ and not np.allclose(stacked, stacked[0], rtol=_ALIKE, atol=_ALIKE):
        raise CorrectionError(f"{geometry.name} is on another grid, and its frames have different {what}")
    return stacked


def _slice_step(heights: FloatArray, geometry: FrameGeometry) -> float:
    """Give the distance of slices: Spacing Between Slices if positions agree, else the smallest gap.

    A gap that is much larger than the slices are thick may be of slices left out: it tells nothing.
    """
    gaps = np.diff(np.sort(heights))
    gaps = gaps[gaps > POSITION_TOLERANCE_MM]
    said, thickness = geometry.slice_spacing_mm(), geometry.slice_thickness_mm()
    if not gaps.size and (said or thickness):
        return said or thickness or 0.0
    smallest = float(gaps.min()) if gaps.size else 0.0
    if thickness and smallest > MAXIMUM_GAP * thickness:
        smallest = 0.0
    for step in (said, smallest):
        parts = gaps / step if step else np.zeros(1)
        if step and np.abs(parts - np.rint(parts)).max() <= SLICE_TOLERANCE and parts.min() > SLICE_TOLERANCE:
            return step
    raise CorrectionError(f"{geometry.name} is on another grid, and how far its slices are apart is not told")


def _sample(drawn: Canvas, grid: OwnGrid, planes: PlaneIndex, plane_index: int, canvas: Canvas) -> None:
    """Fill one plane of the stack."""
    indices, is_on = nearest_voxels(grid, planes, plane_index)
    found = indices[0][is_on]
    if not found.size:
        return
    lowest, highest = int(found.min()), int(found.max())
    at = tuple(np.where(is_on, index, 0) for index in indices)
    for number, mask in drawn.painted.items():
        if any(lowest <= k <= highest for k in drawn.planes[number]):
            canvas.add(number, plane_index, mask[at] & is_on)


def nearest_voxels(
    grid: OwnGrid, planes: PlaneIndex, plane_index: int
) -> tuple[tuple[NDArray[np.int64], ...], BoolArray]:
    """Give for each pixel of a plane the nearest voxel of a grid, and whether it is one of the grid's."""
    start = (planes.positions[plane_index] - grid.origin) @ grid.to_indices
    steps = (planes.axes * planes.pixel_spacing_mm[:, None]) @ grid.to_indices
    rows, columns = (np.arange(size) for size in planes.size)
    is_on: BoolArray = np.ones(planes.size, np.bool_)
    indices = []
    for axis, size in enumerate(grid.shape):
        place = start[axis] + rows[:, None] * steps[0, axis] + columns * steps[1, axis]
        index = np.floor(place + 0.5 + _TIE)
        is_on &= (index >= 0) & (index < size)
        indices.append(np.clip(index, 0, size - 1).astype(np.int64))
    return tuple(indices), is_on


def _inside(
    drawn: Canvas, number: int, grid: OwnGrid, planes: PlaneIndex, slice_mm: float
) -> tuple[int, int]:
    """Count the voxels of a segment whose centre is in a voxel of the stack, and all of them."""
    inside = total = 0
    for points in _centres(drawn, number, grid):
        index = _nearest_plane(points @ planes.normal, planes.heights)
        offsets = points - planes.positions[index]
        is_in = np.abs(offsets @ planes.normal) <= 0.5 * slice_mm * (1 + SLICE_TOLERANCE)
        place = offsets @ planes.axes.T / planes.pixel_spacing_mm + 0.5 + _TIE
        is_in &= ((place >= 0) & (place < planes.size)).all(axis=1)
        inside += int(np.count_nonzero(is_in))
        total += len(points)
    return inside, total


def _centres(drawn: Canvas, number: int, grid: OwnGrid) -> Iterator[FloatArray]:
    """Give the centres of the voxels of a segment part by part, each (n, 3), LPS, mm."""
    step = max(1, _PIXELS_AT_ONCE // grid.shape[2])
    for slice_index in sorted(drawn.planes[number]):
        mask = drawn.painted[number][slice_index]
        for first in range(0, len(mask), step):
            pixels = np.argwhere(mask[first : first + step]) + np.array([first, 0])
            yield grid.origin + slice_index * grid.steps[0] + pixels @ grid.steps[1:]


def _nearest_plane(heights: FloatArray, of_planes: FloatArray) -> NDArray[np.intp]:
    above = np.clip(np.searchsorted(of_planes, heights), 1, max(len(of_planes) - 1, 1))
    if len(of_planes) == 1:
        return np.zeros(len(heights), np.intp)
    below = above - 1
    is_nearer = heights - of_planes[below] <= of_planes[above] - heights
    return np.where(is_nearer, below, above)
