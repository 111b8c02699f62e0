"""Normalise intensities: what a plan asks for, measured on one image."""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.ml.model.plan import (
    AsItIs,
    ClipAndStandardise,
    FixedRange,
    ImageRange,
    Normalisation,
    PercentileZScore,
    ZScore,
)

FloatArray = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SMALLEST_DEVIATION = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Clip, subtract, divide: what a normalisation comes to for one image."""

    lower: float = -np.inf
    upper: float = np.inf
    shift: float = 0.0
    divisor: float = 1.0

    def apply(self, values: FloatArray) -> FloatArray:
        """Scale values in place."""
        if np.isfinite(self.lower) or np.isfinite(self.upper):
            np.clip(values, np.float32(self.lower), np.float32(self.upper), out=values)
        if self.shift:
            values -= np.float32(self.shift)
        if self.divisor != 1.0:
            values /= np.float32(self.divisor)
        return values


def scaling(image: NDArray[np.generic], normalisation: Normalisation) -> Scaling:
    """Measure what a normalisation comes to for an image.

    Parameters
    ----------
    image
        (S, R, K), finite, in modality units, after cropping.
    normalisation
        A z-score over a region measures that region only; see :func:`region`.
    """
    match normalisation:
        case PercentileZScore():
            return _percentile_z_score(image, normalisation)
        case ZScore():
            inside = region(image, normalisation)
            chosen = image if inside is None else image[inside]
            deviation = max(_deviation(chosen), _SMALLEST_DEVIATION)
            return Scaling(
                shift=float(chosen.mean(dtype=np.float64)) if chosen.size else 0.0, divisor=deviation
            )
        case ClipAndStandardise():
            return Scaling(
                lower=normalisation.lower,
                upper=normalisation.upper,
                shift=normalisation.mean,
                divisor=max(normalisation.deviation, _SMALLEST_DEVIATION),
            )
        case ImageRange():
            low, high = float(image.min()), float(image.max())
            return Scaling(shift=low, divisor=max(high - low, _SMALLEST_DEVIATION))
        case FixedRange():
            return _fixed_range(normalisation)
        case AsItIs():
            return Scaling()
        case _:
            assert_never(normalisation)


def region(image: NDArray[np.generic], normalisation: Normalisation) -> Mask | None:
    """Give the voxels that a normalisation measures and changes; None: all."""
    if not region_is_needed(normalisation):
        return None
    nonzero: Mask = image != 0
    return _filled(nonzero) if normalisation == ZScore(over="nonzero_filled") else nonzero


def region_is_needed(normalisation: Normalisation) -> bool:
    """Answer whether a normalisation measures and changes a part of the image only."""
    return isinstance(normalisation, ZScore) and normalisation.over != "image"


def normalise(image: NDArray[np.generic], normalisation: Normalisation) -> FloatArray:
    """Normalise an image as a whole; it is left unchanged."""
    values = scaling(image, normalisation).apply(image.astype(np.float32))
    inside = region(image, normalisation)
    return values if inside is None else np.where(inside, values, image).astype(np.float32)


def nonzero_box(image: NDArray[np.generic]) -> tuple[slice, slice, slice]:
    """Give the smallest box that holds every voxel that is not 0; the whole image when none is."""
    slices: list[slice] = []
    nonzero = image != 0
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(nonzero.any(axis=others))
        slices.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, image.shape[axis]))
    return slices[0], slices[1], slices[2]


def _percentile_z_score(image: NDArray[np.generic], normalisation: PercentileZScore) -> Scaling:
    percentiles = (normalisation.lower_percentile, normalisation.upper_percentile)
    values = image.astype(np.float64)
    lower, upper = (float(value) for value in np.percentile(values, percentiles))
    np.clip(values, lower, upper, out=values)
    deviation = float(values.std())
    if upper <= lower or deviation <= np.finfo(np.float32).eps * max(abs(lower), abs(upper)):
        return Scaling(lower=lower, upper=lower, shift=lower)  # no contrast: zeros
    return Scaling(lower=lower, upper=upper, shift=float(values.mean()), divisor=deviation)


def _fixed_range(normalisation: FixedRange) -> Scaling:
    (low, high), (new_low, new_high) = normalisation.source, normalisation.target
    step = (high - low) / (new_high - new_low)
    clipped = (low, high) if normalisation.clip else (-np.inf, np.inf)
    return Scaling(lower=clipped[0], upper=clipped[1], shift=low - new_low * step, divisor=step)


def _deviation(values: NDArray[np.generic]) -> float:
    return float(values.std(dtype=np.float64)) if values.size else 0.0


def _filled(mask: Mask) -> Mask:
    """Fill the holes of a mask: what is not joined to the border of the image, face by face."""
    outside, _ = ndimage.label(~mask)
    border = np.unique(
        np.concatenate(
            [np.ravel(side) for axis in range(3) for side in (outside.take(0, axis), outside.take(-1, axis))]
        )
    )
    open_: Mask = np.isin(outside, border[border > 0])
    return ~open_
