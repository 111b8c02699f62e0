"""Surfaces of masks, and the distances between them in millimetres.

Two surfaces are told apart. The *border* are the voxels of a mask with a face neighbour outside it, each
counting once: what HD95 is defined on (Maier-Hein et al., Metrics reloaded, Nat Methods 21, 2024). The
*elements* lie between eight voxels, where a marching-cubes surface passes, each with its area: what the
normalised surface distance is defined on (Nikolov et al., J Med Internet Res 23, 2021, and its package
``surface-distance``; the table of areas is MONAI's). Beyond the edge of the image counts as outside for both.

Distances are looked up in a k-d tree of surface points, so that their cost goes with the surface and not
with the box around it: one stray voxel far away makes nothing slower.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Points = NDArray[np.intp]
"""Grid positions, one row each; rows ascend as the voxels lie in memory."""

TOLERANCE_SLACK_MM = 1e-4
"""A distance of 1.00001 mm is within 1 mm: headers round the spacing of voxels to single precision."""
LEAF_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """The surface of a mask in pieces."""

    points: Points  # the first of the eight voxels around each piece, one further on each axis
    areas: NDArray[np.float64]  # mm²; in two dimensions lengths in mm


def border(mask: Mask) -> Points:
    """Find the voxels of a mask that have a face neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + mask.shape[axis])
            inner &= padded[tuple(window)]
    return np.argwhere(mask & ~inner)


def elements(mask: Mask, *, spacing_mm: Sequence[float]) -> Elements:
    """Cut the surface of a mask of two or three axes into pieces, one for each group of voxels it passes."""
    corners = list(itertools.product((0, 1), repeat=mask.ndim))
    shape = tuple(length + 1 for length in mask.shape)
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros(shape, np.uint8)
    for bit, corner in zip(reversed(range(len(corners))), corners, strict=True):
        window = tuple(slice(start, start + length) for start, length in zip(corner, shape, strict=True))
        codes |= padded[window] << np.uint8(bit)
    passed = (codes != 0) & (codes != 2 ** len(corners) - 1)
    areas, _ = get_code_to_measure_table(list(map(float, spacing_mm)))  # type: ignore[no-untyped-call]
    return Elements(points=np.argwhere(passed), areas=areas.numpy().astype(np.float64)[codes[passed]])


def nearest_mm(
    start: Points,
    end: Points,
    *,
    spacing_mm: Sequence[float],
    limit_mm: float = float("inf"),
    threads: int = 1,
) -> NDArray[np.float64]:
    """Give the distance from each point of one surface to the nearest point of another; none may be empty.

    Parameters
    ----------
    limit_mm
        Distances beyond it come out infinite, which is quicker than knowing them.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    found = np.zeros(len(start))
    apart = ~_shared(start, end)  # the others are at 0 and need no search
    if apart.any():
        tree = cKDTree(end * spacing, leafsize=LEAF_SIZE, balanced_tree=False)
        found[apart], _ = tree.query(start[apart] * spacing, distance_upper_bound=limit_mm, workers=threads)
    return found


def _shared(start: Points, end: Points) -> Mask:
    """Say of each point whether the other surface has it too."""
    extent = tuple(np.maximum(start.max(axis=0), end.max(axis=0)) + 1)
    flat, known = (np.ravel_multi_index(tuple(points.T), extent) for points in (start, end))
    places = np.searchsorted(known, flat)
    places[places == len(known)] = 0
    return np.asarray(known[places] == flat)
