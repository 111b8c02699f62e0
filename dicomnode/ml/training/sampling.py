"""Training samples: crops of one patch and random changes of geometry and intensity.

Batches have the shape (B, 1, S, R, K), label maps (B, S, R, K). Every draw comes from the
generator that is passed in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dicomnode.ml.model.plan import Triple


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far samples are changed; each change but flips comes with the given probability."""

    flip_axes: tuple[int, ...] = (0, 1, 2)  # each with probability 0.5
    warp_probability: float = 0.5
    rotation_rad: float = 0.26  # about 15 degrees, about each axis
    scale: float = 0.15  # factors between 1 - scale and 1 + scale, per axis
    intensity_probability: float = 0.3  # for each of brightness, contrast, gamma, noise, blur
    brightness: float = 0.3  # in standard deviations
    contrast: float = 0.3
    gamma: float = 0.4  # exponents between exp(-gamma) and exp(gamma)
    noise: float = 0.3  # largest standard deviation


def _uniform(size: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def _chosen(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator) < probability


def crop(
    image: Tensor, labels: Tensor, *, patch_shape: Triple, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut one patch at a random place; an axis shorter than the patch is padded with zeros.

    Parameters
    ----------
    image, labels
        (S, R, K), normalised (0 is the mean) and class indices.
    """
    starts, pads = [], []
    for size, wanted in zip(image.shape, patch_shape, strict=True):
        slack = size - wanted
        offset = int(torch.randint(abs(slack) + 1, (1,), generator=generator))
        starts.append(offset if slack > 0 else 0)
        pads.append((offset, -slack - offset) if slack < 0 else (0, 0))
    window = tuple(slice(start, start + wanted) for start, wanted in zip(starts, patch_shape, strict=True))
    padding = [side for pair in reversed(pads) for side in pair]
    return functional.pad(image[window], padding), functional.pad(labels[window], padding)


def augment(
    images: Tensor, labels: Tensor, augmentation: Augmentation, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Flip, warp and change the intensities of a batch; inputs are left unchanged."""
    images, labels = _flip(images, labels, augmentation, generator=generator)
    images, labels = _warp(images, labels, augmentation, generator=generator)
    return _change_intensity(images, augmentation, generator=generator), labels


def _flip(
    images: Tensor, labels: Tensor, augmentation: Augmentation, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    for axis in augmentation.flip_axes:
        chosen = _chosen(len(images), 0.5, generator)
        images = torch.where(chosen[:, None, None, None, None], images.flip(axis + 2), images)
        labels = torch.where(chosen[:, None, None, None], labels.flip(axis + 1), labels)
    return images, labels


def _warp(
    images: Tensor, labels: Tensor, augmentation: Augmentation, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    chosen = torch.nonzero(_chosen(len(images), augmentation.warp_probability, generator))[:, 0]
    if not len(chosen):
        return images, labels
    theta = _random_affine(len(chosen), images.shape[2:], augmentation, generator=generator)
    grid = functional.affine_grid(theta, [len(chosen), 1, *images.shape[2:]], align_corners=False)
    warped = functional.grid_sample(images[chosen], grid, align_corners=False)
    # Warping the classes one by one and taking the largest keeps borders smooth.
    one_hot = functional.one_hot(labels[chosen].long()).movedim(-1, 1).float()
    moved = functional.grid_sample(one_hot, grid, align_corners=False).argmax(1)
    return images.index_copy(0, chosen, warped), labels.index_copy(0, chosen, moved.to(labels.dtype))


def _random_affine(
    batch: int, shape: torch.Size, augmentation: Augmentation, *, generator: torch.Generator
) -> Tensor:
    """Give (batch, 3, 4) matrices for ``affine_grid``, whose axes are (column, row, slice) in [-1, 1]."""
    angles = _uniform((batch, 3), -augmentation.rotation_rad, augmentation.rotation_rad, generator)
    skew = torch.zeros(batch, 3, 3)
    for axis, (row, column) in enumerate(((1, 2), (0, 2), (0, 1))):
        skew[:, row, column], skew[:, column, row] = angles[:, axis], -angles[:, axis]
    scales = _uniform((batch, 3), 1 - augmentation.scale, 1 + augmentation.scale, generator)
    turned = torch.linalg.matrix_exp(skew) * scales[:, None, :]
    half = torch.tensor([size / 2 for size in reversed(shape)])  # voxels per unit of the grid
    turned = turned * half[None, None, :] / half[None, :, None]
    return torch.cat([turned, torch.zeros(batch, 3, 1)], dim=2)


def _change_intensity(images: Tensor, augmentation: Augmentation, *, generator: torch.Generator) -> Tensor:
    batch = len(images)
    column = (batch, 1, 1, 1, 1)

    def sometimes(changed: Tensor, plain: Tensor) -> Tensor:
        chosen = _chosen(batch, augmentation.intensity_probability, generator)
        return torch.where(chosen.view(column), changed, plain)

    low, high = images.amin((1, 2, 3, 4), keepdim=True), images.amax((1, 2, 3, 4), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    exponent = torch.exp(_uniform(column, -augmentation.gamma, augmentation.gamma, generator))
    images = sometimes(((images - low) / span) ** exponent * span + low, images)
    blurred = functional.avg_pool3d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = sometimes(torch.lerp(images, blurred, _uniform(column, 0, 1, generator)), images)
    deviation = _uniform(column, 0, augmentation.noise, generator)
    images = sometimes(images + deviation * torch.randn(images.shape, generator=generator), images)
    images = sometimes(
        images * _uniform(column, 1 - augmentation.contrast, 1 + augmentation.contrast, generator), images
    )
    return sometimes(
        images + _uniform(column, -augmentation.brightness, augmentation.brightness, generator), images
    )
