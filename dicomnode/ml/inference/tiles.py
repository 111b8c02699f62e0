"""Where the tiles of a sliding window lie, and how much each of their voxels counts."""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dicomnode.ml.model.architecture import Triple

_SIGMA = 1 / 8
"""Standard deviation of the Gaussian weights as a share of the tile (nnU-Net)."""


def starts(size: int, tile: int, *, overlap: float) -> list[int]:
    """Place tiles along an axis: evenly, at most ``tile * (1 - overlap)`` apart, from end to end (nnU-Net).

    Tiles of one voxel, the slices of a two-dimensional network, come once each.

    Parameters
    ----------
    size
        Of the image, at least ``tile``.
    """
    if tile == 1:
        return list(range(size))
    count = math.ceil((size - tile) / (tile * (1 - overlap))) + 1
    if count == 1:
        return [0]
    step = (size - tile) / (count - 1)
    return [int(np.round(step * index)) for index in range(count)]


def padding(shape: tuple[int, ...], tile: Triple) -> list[tuple[int, int]]:
    """Say how many voxels an image lacks before and after along each axis to hold a tile."""
    lacking = [max(0, wanted - size) for size, wanted in zip(shape, tile, strict=True)]
    return [(gap // 2, gap - gap // 2) for gap in lacking]


@lru_cache(maxsize=8)
def weights(tile: Triple) -> Tensor:
    """Give the weights of a tile's voxels, largest in the middle, never 0; (S, R, K), float32."""
    centre: NDArray[np.float64] = np.zeros(tile)
    centre[tuple(size // 2 for size in tile)] = 1
    sigmas = [size * _SIGMA for size in tile]
    found = ndimage.gaussian_filter(centre, sigmas, mode="constant")
    found = (found * (10 / found.max())).astype(np.float16).astype(np.float32)
    found[found == 0] = found[found > 0].min()
    return torch.from_numpy(found)
