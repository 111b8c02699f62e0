"""Put an image into the frame of a network and labels back onto the image's own voxels.

Three exact steps in, the same three back: permute and flip axes (no interpolation), resample when
the spacing differs, normalise the intensities. ``Volume`` affines map (slice, row, column) indices
to LPS millimetres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.errors import GeometryError, UnsupportedSeriesError
from dicomnode.ml.model.plan import Normalisation, TripleMm

FloatArray = NDArray[np.float32]

Shape = tuple[int, int, int]
Element = TypeVar("Element", bound=np.generic)

_OPPOSITES = dict(zip("LRAPFH", "RLPAHF", strict=True))
_SPACING_TOLERANCE = 0.01
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """An image as the network sees it, and what is needed to come back."""

    array: FloatArray  # (S, R, K) in the plan's orientation and spacing; z-scores
    change: AxisChange
    shape: Shape  # in the plan's orientation, before resampling
    is_constant: bool

    def position_of(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """Say where a point of the image, in its voxel indices, lies in this array's voxels."""
        sizes = np.empty(3)
        sizes[list(self.change.order)] = self.shape
        mirrored = [sizes[axis] - 1 - x if axis in self.change.flips else x for axis, x in enumerate(point)]
        ratios = np.asarray(self.array.shape) / np.asarray(self.shape)
        oriented = np.asarray(mirrored)[list(self.change.order)]
        first, second, third = ((oriented + 0.5) * ratios - 0.5).tolist()
        return first, second, third


def frame(image: Volume, *, orientation: str, spacing_mm: TripleMm, normalisation: Normalisation) -> Framed:
    """Reorient, resample and normalise an image for a network.

    Parameters
    ----------
    image
        Any orientation, oblique included, and any spacing; modality units; no channels.
    orientation
        Letters of the directions in which the three indices grow, as in ``"HPL"``. The nearest
        axes are taken: an oblique image is not rotated.
    spacing_mm
        Voxel spacing of the network along its axes; within 1 % nothing is resampled.
    normalisation
        See :func:`normalise`.

    Raises
    ------
    GeometryError
        Fewer than two voxels along an axis, channels, no patient frame, or a grid too large.
    UnsupportedSeriesError
        NaN or infinite intensities.
    """
    check_image(image)
    change = change_towards(image, orientation=orientation)
    oriented = change.apply(image.array.astype(np.float32))
    spacing = [image.spacing[axis] for axis in change.order]
    shape = oriented.shape
    target = resampled_shape(shape, spacing_mm=spacing, target_mm=spacing_mm)
    normal = normalise(resample(oriented, target), normalisation)
    return Framed(
        array=normal,
        change=change,
        shape=(shape[0], shape[1], shape[2]),
        is_constant=not normal.any(),
    )


def check_image(image: Volume) -> None:
    """Refuse what no network can take; see :func:`frame` for the errors."""
    if image.array.ndim != 3 or str(image.coordinate_system.value) != "PATIENT":
        raise GeometryError("The image is no single-channel volume in the patient coordinate system.")
    if min(image.spatial_shape) < 2:
        raise GeometryError(
            f"The image has {image.spatial_shape} voxels along (slice, row, column); "
            "a three-dimensional model needs at least 2 along each."
        )
    finite = np.isfinite(image.array)
    if not finite.all():
        raise UnsupportedSeriesError(f"The image has {int((~finite).sum())} voxels that are NaN or infinite.")


def change_towards(image: Volume, *, orientation: str) -> AxisChange:
    """Find the flips and the permutation that bring an image nearest to an orientation."""
    letters = [direction.value for direction in image.get_closest_patient_orientation()]
    order = [letters.index(wanted if wanted in letters else _OPPOSITES[wanted]) for wanted in orientation]
    flips = [axis for axis, wanted in zip(order, orientation, strict=True) if letters[axis] != wanted]
    return AxisChange(order=(order[0], order[1], order[2]), flips=tuple(flips))


def resampled_shape(
    shape: Sequence[int], *, spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> Shape:
    """Say how many voxels an image has at another spacing: the extent is kept, rounded to whole voxels.

    Raises
    ------
    GeometryError
        A spacing is not positive, or the grid would have more than 2^30 voxels.
    """
    if not all(np.isfinite(spacing) and spacing > 0 for spacing in (*spacing_mm, *target_mm)):
        raise GeometryError(f"The voxel spacing {tuple(spacing_mm)} mm is not positive.")
    ratios = [spacing / target for spacing, target in zip(spacing_mm, target_mm, strict=True)]
    if all(abs(ratio - 1) <= _SPACING_TOLERANCE for ratio in ratios):
        ratios = [1.0, 1.0, 1.0]
    sizes = [max(1, round(size * ratio)) for size, ratio in zip(shape, ratios, strict=True)]
    if np.prod(sizes, dtype=np.float64) > _MAXIMUM_VOXELS:
        raise GeometryError(f"At the spacing of the model the image would have {sizes} voxels.")
    return sizes[0], sizes[1], sizes[2]


def resample(array: NDArray[np.float32], shape: Shape) -> FloatArray:
    """Put an array on a grid of another size over the same extent, with linear interpolation.

    Voxel edges are aligned, not centres. Before shrinking, a Gaussian of ``(factor - 1) / 2``
    voxels along the axis keeps fine structures from aliasing. Linear, not cubic: no overshoot, and
    probabilities stay between 0 and 1.
    """
    if array.shape == shape:
        return np.ascontiguousarray(array, dtype=np.float32)
    factors = np.asarray(array.shape) / np.asarray(shape)
    smooth = ndimage.gaussian_filter(array, np.maximum(0.0, (factors - 1) / 2), mode="nearest")
    return ndimage.affine_transform(
        smooth,
        factors,
        offset=(factors - 1) / 2,
        output_shape=shape,
        output=np.float32,
        order=1,
        mode="nearest",
    )


def normalise(array: FloatArray, normalisation: Normalisation) -> FloatArray:
    """Clip between two percentiles and bring to mean 0, standard deviation 1.

    Any positive affine change of the intensities gives the same result. An image without contrast
    between the percentiles becomes all zeros.
    """
    percentiles = (normalisation.lower_percentile, normalisation.upper_percentile)
    lower, upper = np.percentile(array.astype(np.float64), percentiles)
    clipped = np.clip(array.astype(np.float64), lower, upper)
    deviation = clipped.std()
    if upper <= lower or deviation <= np.finfo(np.float32).eps * max(abs(lower), abs(upper)):
        return np.zeros(array.shape, np.float32)
    normal: FloatArray = ((clipped - clipped.mean()) / deviation).astype(np.float32)
    return normal


def frame_labels(labels: NDArray[np.uint8], framed: Framed) -> NDArray[np.uint8]:
    """Bring class indices on the grid of an image to the grid of its framed form.

    Each class is resampled on its own and the largest share wins, so borders stay smooth.
    """
    oriented = framed.change.apply(labels)
    target = framed.array.shape
    if oriented.shape == target:
        return np.ascontiguousarray(oriented)
    shape = (target[0], target[1], target[2])
    best = resample((oriented == 0).astype(np.float32), shape)
    moved = np.zeros(shape, np.uint8)
    for index in np.unique(oriented[oriented > 0]):
        share = resample((oriented == index).astype(np.float32), shape)
        moved[share > best] = index
        np.maximum(best, share, out=best)
    return moved
