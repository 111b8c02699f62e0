"""Random changes of geometry and intensity, as nnU-Net v2 makes them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dicomnode.errors import ConfigError
from dicomnode.ml.model.architecture import Triple
from dicomnode.ml.model.plan import Stage, ZScore
from dicomnode.ml.training.sampling import OUTSIDE

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes image and labels of ``cut_shape``, gives both in the shape of a patch; may change the inputs."""

_ANISOTROPIC = 3.0
_LARGEST_SCALE = 0.85
"""The margin is made for enlargements up to here; stronger ones see padding in the corners, as in nnU-Net."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What the shape of a patch says about how it may be turned."""

    dimensions: int  # of the network
    patch_shape: Triple
    mirror_axes: tuple[int, ...]
    masks_outside: bool  # voxels that the normalisation left at 0 stay there

    @property
    def turns_in_slices(self) -> bool:
        """Thick slices are turned within their plane only."""
        return self.dimensions == 2 or max(self.patch_shape) / self.patch_shape[0] > _ANISOTROPIC

    @property
    def rotation_rad(self) -> float:
        """Largest angle about each axis."""
        if self.dimensions == 2:
            longest, shortest = max(self.patch_shape[1:]), min(self.patch_shape[1:])
            return math.radians(15 if longest / shortest > 1.5 else 180)
        return math.radians(180 if self.turns_in_slices else 30)


def geometry_of(stage: Stage) -> Geometry:
    """Say how the patches of a stage may be changed; they are mirrored along its mirror axes."""
    return Geometry(
        dimensions=stage.network.dimensions,
        patch_shape=stage.patch_shape,
        mirror_axes=stage.mirror_axes,
        masks_outside=isinstance(stage.normalisation, ZScore) and stage.normalisation.over != "image",
    )


def cut_shape(geometry: Geometry) -> Triple:
    """Say how large a box must be so that a turned and enlarged patch still finds voxels in it."""
    angle = min(geometry.rotation_rad, math.pi / 2)
    axes = (1, 2) if geometry.turns_in_slices else (0, 1, 2)
    patch, sizes = geometry.patch_shape, list(geometry.patch_shape)
    for axis in axes:
        turned = [
            patch[axis] * math.cos(angle) + patch[other] * math.sin(angle) for other in axes if other != axis
        ]
        sizes[axis] = int(max(patch[axis], *turned) / _LARGEST_SCALE)
    return sizes[0], sizes[1], sizes[2]


def nnunet_transform(geometry: Geometry) -> Transform:
    """Make the augmentation of nnU-Net, with its own library.

    Raises
    ------
    ConfigError
        The extra is not installed.
    """
    try:
        from dicomnode.ml.training import nnunet_transforms  # noqa: PLC0415  # optional extra
    except ImportError as error:
        raise ConfigError(
            "training from scratch needs the extra training: pip install 'dicomnode-federated[training]'"
        ) from error
    changes = nnunet_transforms.compose(geometry)

    def transform(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if geometry.masks_outside:
            labels[(image == 0) & (labels == 0)] = OUTSIDE
        if geometry.dimensions == 2:
            return changes(image, labels)  # the one slice is the channel
        image, labels = changes(image[None], labels[None])
        return image[0], labels[0]

    return transform


@contextmanager
def seeded(generator: np.random.Generator) -> Iterator[None]:
    """Let the global generators of NumPy and torch follow from this one, and put them back afterwards."""
    kept = np.random.get_state()  # the library draws from it
    with torch.random.fork_rng(devices=[]):
        np.random.seed(int(generator.integers(2**32)))
        torch.manual_seed(int(generator.integers(2**63)))
        try:
            yield
        finally:
            np.random.set_state(kept)
