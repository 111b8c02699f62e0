"""Axes and sizes of voxel grids: permute and flip without interpolation, and count voxels at another spacing.

``Volume`` affines map (slice, row, column) indices to LPS millimetres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from dicomnode.errors import GeometryError, UnsupportedSeriesError

Shape = tuple[int, int, int]
Element = TypeVar("Element", bound=np.generic)

_OPPOSITES = dict(zip("LRAPFH", "RLPAHF", strict=True))
_MAXIMUM_VOXELS = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisChange:
    """Flip some axes of an array, then permute: axis ``i`` of the result was axis ``order[i]``."""

    order: tuple[int, int, int]
    flips: tuple[int, ...]  # axes of the source

    def apply(self, array: NDArray[Element]) -> NDArray[Element]:
        """Change an array of shape (slice, row, column); a view."""
        return np.flip(array, self.flips).transpose(self.order)

    def undo(self, array: NDArray[Element]) -> NDArray[Element]:
        """Change an array back: the exact inverse of :meth:`apply`; a view."""
        back = np.argsort(self.order).tolist()
        return np.flip(array.transpose(back), self.flips)


def check_image(image: Volume) -> None:
    """Refuse what no network can take.

    Raises
    ------
    GeometryError
        Fewer than two voxels along an axis, channels, or no patient frame.
    UnsupportedSeriesError
        NaN or infinite intensities.
    """
    if image.array.ndim != 3 or str(image.coordinate_system.value) != "PATIENT":
        raise GeometryError("The image is no single-channel volume in the patient coordinate system.")
    if min(image.spatial_shape) < 2:
        raise GeometryError(
            f"The image has {image.spatial_shape} voxels along (slice, row, column); "
            "a three-dimensional model needs at least 2 along each."
        )
    if not np.isfinite([image.array.min(), image.array.max()]).all():
        count = int((~np.isfinite(image.array)).sum())
        raise UnsupportedSeriesError(f"The image has {count} voxels that are NaN or infinite.")


def change_towards(image: Volume, *, orientation: str) -> AxisChange:
    """Find the flips and the permutation that bring an image nearest to an orientation.

    Parameters
    ----------
    orientation
        Letters of the directions in which the three indices grow, as in ``"HPL"``, or ``"acquired"`` for
        the axes that the image has. The nearest axes are taken: an oblique image is not rotated.
    """
    if orientation == "acquired":
        return AxisChange(order=(0, 1, 2), flips=())
    letters = [direction.value for direction in image.get_closest_patient_orientation()]
    order = [letters.index(wanted if wanted in letters else _OPPOSITES[wanted]) for wanted in orientation]
    flips = [axis for axis, wanted in zip(order, orientation, strict=True) if letters[axis] != wanted]
    return AxisChange(order=(order[0], order[1], order[2]), flips=tuple(flips))


def resampled_shape(
    shape: Sequence[int], *, spacing_mm: Sequence[float], target_mm: Sequence[float], tolerance: float = 0.0
) -> Shape:
    """Say how many voxels an image has at another spacing: the extent is kept, rounded to whole voxels.

    Within the tolerance (a share, along all axes) the grid stays as it is.

    Raises
    ------
    GeometryError
        A spacing is not positive, or the grid would have more than 2^30 voxels.
    """
    if not all(np.isfinite(spacing) and spacing > 0 for spacing in (*spacing_mm, *target_mm)):
        raise GeometryError(f"The voxel spacing {tuple(spacing_mm)} mm is not positive.")
    ratios = [spacing / target for spacing, target in zip(spacing_mm, target_mm, strict=True)]
    if all(abs(ratio - 1) <= tolerance for ratio in ratios):
        ratios = [1.0, 1.0, 1.0]
    sizes = [max(1, round(size * ratio)) for size, ratio in zip(shape, ratios, strict=True)]
    if np.prod(sizes, dtype=np.float64) > _MAXIMUM_VOXELS:
        raise GeometryError(f"At the spacing of the model the image would have {sizes} voxels.")
    return sizes[0], sizes[1], sizes[2]
