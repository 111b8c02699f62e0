"""How nnU-Net v2 shapes a U-Net for a patch: axes to halve, kernels, and voxels of all feature maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dicomnode.ml.model.architecture import UNetPlan

SMALLEST_EDGE = 4
"""Voxels that an axis has at least where the network is coarsest."""
_LARGEST_RATIO = 2.0

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Levels of a U-Net, the finest first, for one patch; along two or three axes."""

    patch: Sizes  # divisible by the strides
    strides: tuple[Sizes, ...]
    kernels: tuple[Sizes, ...]

    @property
    def divisors(self) -> Sizes:
        """What each axis of the patch is divisible by."""
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True))

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.strides)


def topology(spacing_mm: Sequence[float], shape: Sequence[float]) -> Topology:
    """Halve axes from level to level, those with the finest spacing first, while they are long enough.

    An axis is halved when it is less than twice as coarse as the finest of those long enough. Kernels are 1
    along an axis until it is less than twice as coarse as the finest of all, then 3. The patch is the shape
    rounded up to what the strides divide.
    """
    spacing, size = list(spacing_mm), [float(length) for length in shape]
    axes = range(len(size))
    kernel = [1 for _ in axes]
    strides, kernels = [tuple(1 for _ in axes)], []
    while halved := _axes_to_halve(spacing, size):
        fine = [spacing[axis] / min(spacing) < _LARGEST_RATIO for axis in axes]
        kernel = [3 if fine[axis] else kernel[axis] for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append(tuple(3 for _ in axes))
    divisors = [math.prod(steps) for steps in zip(*strides, strict=True)]
    patch = tuple(math.ceil(length / step) * step for length, step in zip(shape, divisors, strict=True))
    return Topology(patch=patch, strides=tuple(strides), kernels=tuple(kernels))


def feature_map_voxels(network: UNetPlan, patch: Sequence[int]) -> int:
    """Count the values that all convolutions of a network give for one patch (one sample).

    That is the measure in which nnU-Net's planner counts GPU memory. Deep supervision is not counted.
    """
    sizes = [_shrunk(patch, network.strides[: level + 1]) for level in range(len(network.strides))]
    is_residual = network.kind == "residual_encoder_unet"
    total = network.features[0] * math.prod(patch) if is_residual else 0
    before = network.features[0]
    for level, features in enumerate(network.features):
        convolutions = network.encoder_depths[level]
        if is_residual:
            is_projected = features != before or max(network.strides[level]) > 1
            convolutions = 2 * convolutions + is_projected
        total += convolutions * features * math.prod(sizes[level])
        before = features
    for level, depth in enumerate(reversed(network.decoder_depths)):
        total += (depth + 1) * network.features[level] * math.prod(sizes[level])
    return total + network.classes * math.prod(sizes[0])


def _axes_to_halve(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    long_enough = [axis for axis, length in enumerate(size) if length >= 2 * SMALLEST_EDGE]
    if not long_enough:
        return []
    finest = min(spacing[axis] for axis in long_enough)
    chosen = [axis for axis in long_enough if spacing[axis] / finest < _LARGEST_RATIO]
    if len(chosen) == 1 and size[chosen[0]] < 3 * SMALLEST_EDGE:
        return []
    return chosen


def _shrunk(patch: Sequence[int], strides: Sequence[Sizes]) -> Sizes:
    steps = [math.prod(along) for along in zip(*strides, strict=True)]
    return tuple(length // step for length, step in zip(patch, steps, strict=True))
