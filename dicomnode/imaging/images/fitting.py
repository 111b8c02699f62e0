"""The regular grid that parallel planes form, or nearly: missing slices, uneven spacing, gantry tilt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomnode.imaging.attributes import FloatArray, text
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.geometry import (
    POSITION_TOLERANCE_MM,
    SHEAR_TOLERANCE,
    SLICE_TOLERANCE,
    SliceGrid,
    frame_of_reference,
    orthonormal,
)

REGULAR_GAPS = 1 / 3
"""Of the gaps, at least this part must be one spacing, or the planes have no spacing."""
REGULAR_PLANES = 0.5
"""More than this part of the planes must lie on the grid of that spacing."""
LARGEST_CANVAS = 3
"""Tilted planes may need an image of this many times their rows or columns."""
UNKNOWN_SPACING_MM = 1.0
"""Stands for the spacing of a single plane that says none; no volume is made of it."""
_NAMED_GAPS = 3
_SHIFT_DIGITS = 6  # of a shift in pixels; what is beyond is rounding, which would cost a row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """Planes in ascending order along their normal, and how they lie on a grid; see `stacks.Stack`."""

    order: NDArray[np.intp]
    grid: SliceGrid
    offsets: FloatArray  # (frames, 3)
    missing_slices: int
    remarks: tuple[str, ...]
    refusal: str  # why no volume can be made of the planes, whatever is allowed; "" where one can


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Steps:
    """Where planes lie along their normal, in slices of a grid."""

    spacing_mm: float
    places: FloatArray  # (frames,)
    count: int  # slices of the grid
    missing: int = 0
    remarks: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shifts:
    """How far planes lie beside the first one in the image plane, in pixels (frames, 2): row, column."""

    pixels: FloatArray
    remarks: tuple[str, ...] = ()

    @property
    def low(self) -> FloatArray:
        """The lowest shift of rows and of columns, in whole pixels."""
        lowest: FloatArray = np.floor(self.pixels.min(axis=0))
        return lowest

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that hold every plane of this size."""
        rows, columns = (np.ceil(self.pixels.max(axis=0)) - self.low + size).astype(int).tolist()
        return rows, columns


def fit_grid(frames: Sequence[SourceFrame], *, series_uid: str) -> Fit:
    """Find the regular grid of parallel planes of one size that lie at different positions.

    The order is ascending in Image Position (Patient) . normal (PS3.3 C.7.6.2.1.1); Instance Number is never
    read. The grid starts at the first plane. Planes within the tolerances of `geometry` are regular. Else:

    - A gap of several spacings has missing slices; the spacing is the mean of the gaps about the median.
    - Planes beside their places are not evenly spaced, which counts as one missing slice at least: between
      planes there are slices that nobody measured.
    - Planes that drift in the image plane (gantry tilt) lie on a grid with more rows and columns.

    Raises
    ------
    GeometryError
        The orientation is not two orthogonal unit vectors.
    """
    first = frames[0]
    row, column, normal = orthonormal(first.row_cosines, first.column_cosines, series_uid)
    positions = np.stack([frame.position_mm for frame in frames])
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    positions, distances = positions[order], distances[order]
    start = frames[int(order[0])]
    steps = _steps(distances, start)
    shifts = _shifts(positions, normal, np.stack([column, row]), start.pixel_spacing_mm)
    return Fit(
        order=order,
        grid=_grid(start, steps, shifts, (row, column, normal)),
        offsets=np.column_stack([steps.places, shifts.pixels - shifts.low]),
        missing_slices=steps.missing,
        remarks=(*steps.remarks, *shifts.remarks),
        refusal=steps.refusal or _canvas_refusal(shifts.canvas(start.size), start.size),
    )


def _grid(
    start: SourceFrame, steps: _Steps, shifts: _Shifts, directions: tuple[FloatArray, FloatArray, FloatArray]
) -> SliceGrid:
    row, column, normal = directions
    uid, is_own = frame_of_reference(start.ds)
    spacing = start.pixel_spacing_mm
    return SliceGrid(
        series_instance_uid=text(start.ds, "SeriesInstanceUID"),
        frame_of_reference_uid=uid,
        has_own_frame_of_reference=is_own,
        shape=(steps.count, *shifts.canvas(start.size)),
        spacing_mm=(steps.spacing_mm, float(spacing[0]), float(spacing[1])),
        origin_mm=start.position_mm + shifts.low[0] * spacing[0] * column + shifts.low[1] * spacing[1] * row,
        normal=normal,
        row_direction=column,
        column_direction=row,
    )


def _steps(distances: FloatArray, first: SourceFrame) -> _Steps:
    if len(distances) == 1:
        return _one_step(first)
    gaps = np.diff(distances)
    spacing = float(distances[-1] - distances[0]) / gaps.size
    counted = np.arange(len(distances), dtype=np.float64)
    is_complete = gaps.max() <= 1.5 * np.median(gaps)
    if is_complete and np.abs(distances - distances[0] - spacing * counted).max() <= _tolerance(spacing):
        return _Steps(spacing_mm=spacing, places=counted, count=len(distances))
    return _uneven_steps(distances - distances[0], distances[0])


def _uneven_steps(along: FloatArray, start: float) -> _Steps:
    """Fit a spacing to planes with gaps; `along` is in millimetres from the first plane, at `start`."""
    gaps = np.diff(along)
    median = float(np.sort(gaps)[(gaps.size - 1) // 2])
    single = np.abs(gaps - median) <= _tolerance(median)
    spacing = float(gaps[single].mean())
    places = along / spacing
    beside = np.abs(places - np.rint(places)) * spacing
    on_grid = beside <= _tolerance(spacing)
    missing = int(np.rint(gaps / spacing).max()) - 1
    remarks = _gap_remarks(gaps, along + start, spacing)
    if not on_grid.all():
        missing = max(missing, 1)
        remarks.append(
            f"slices are not evenly spaced: {gaps.min():.3f} to {gaps.max():.3f} mm, a slice lies "
            f"{beside.max():.3f} mm beside the regular grid of {spacing:.3f} mm"
        )
    refusal = ""
    if single.mean() < REGULAR_GAPS or on_grid.mean() <= REGULAR_PLANES:
        refusal = (
            f"the slices have no regular spacing: gaps of {gaps.min():.3f} to {gaps.max():.3f} mm, "
            f"of which {int(single.sum())} of {gaps.size} are about {median:.3f} mm"
        )
    return _Steps(
        spacing_mm=spacing,
        places=np.where(on_grid, np.rint(places), places),
        count=int(np.floor(places[-1] + 0.5)) + 1,
        missing=missing,
        remarks=tuple(remarks),
        refusal=refusal,
    )


def _gap_remarks(gaps: FloatArray, distances: FloatArray, spacing: float) -> list[str]:
    missing = np.rint(gaps / spacing).astype(int) - 1
    wide = np.flatnonzero(missing > 0)
    remarks = []
    for index in wide[:_NAMED_GAPS]:
        count = missing[index]
        remarks.append(
            f"a gap of {gaps[index]:.3f} mm between the slices at {distances[index]:.3f} and "
            f"{distances[index + 1]:.3f} mm where {spacing:.3f} mm was expected: "
            + ("a slice is missing" if count == 1 else f"{count} slices are missing")
        )
    if wide.size > _NAMED_GAPS:
        remarks.append(f"{wide.size - _NAMED_GAPS} more gaps of up to {gaps[wide].max():.3f} mm")
    return remarks


def _tolerance(spacing: float) -> float:
    return max(min(POSITION_TOLERANCE_MM, SHEAR_TOLERANCE * spacing), SLICE_TOLERANCE * spacing)


def _one_step(frame: SourceFrame) -> _Steps:
    nominal = frame.slice_spacing_mm or frame.slice_thickness_mm
    refusal = ""
    if nominal is None:
        refusal = f"one slice and neither Spacing Between Slices nor Slice Thickness ({frame.name})"
    return _Steps(spacing_mm=nominal or UNKNOWN_SPACING_MM, places=np.zeros(1), count=1, refusal=refusal)


def _shifts(
    positions: FloatArray, normal: FloatArray, directions: FloatArray, spacing_mm: FloatArray
) -> _Shifts:
    """Measure the drift in the image plane along `directions` (2, 3) of rows and columns."""
    steps = positions - positions[0]
    along = steps @ normal
    drift = (steps - along[:, None] * normal) @ directions.T
    if _is_within_pixel(drift, spacing_mm):
        return _Shifts(pixels=np.zeros_like(drift))
    height = max(float(along[-1]), POSITION_TOLERANCE_MM)
    slope = along @ drift / max(float(along @ along), POSITION_TOLERANCE_MM**2)
    is_tilt = _is_within_pixel(drift - along[:, None] * slope, spacing_mm)
    tilt = np.degrees(np.arctan(np.linalg.norm(slope)))
    cause = f"gantry tilt of about {tilt:.1f} degrees" if is_tilt else "not in one direction"
    farthest = np.linalg.norm(drift, axis=1).max()
    remark = f"the slices drift {farthest:.3f} mm sideways over {height:.3f} mm ({cause})"
    return _Shifts(pixels=np.round(drift / spacing_mm, _SHIFT_DIGITS), remarks=(remark,))


def _is_within_pixel(drift: FloatArray, spacing_mm: FloatArray) -> bool:
    """Answer whether planes lie above each other but for rounded direction cosines; `drift` in mm (n, 2)."""
    in_pixels = np.linalg.norm(drift / spacing_mm, axis=1).max()
    farthest = np.linalg.norm(drift, axis=1).max()
    return bool(in_pixels <= SHEAR_TOLERANCE or farthest <= POSITION_TOLERANCE_MM)


def _canvas_refusal(canvas: tuple[int, int], size: tuple[int, int]) -> str:
    if canvas[0] <= LARGEST_CANVAS * size[0] and canvas[1] <= LARGEST_CANVAS * size[1]:
        return ""
    return (
        f"the slices drift so far sideways that {canvas[0]} rows and {canvas[1]} columns would be "
        f"needed for slices of {size[0]} and {size[1]}"
    )
