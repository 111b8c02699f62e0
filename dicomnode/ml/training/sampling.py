"""Training samples: which patch of which case, drawn from the number of the sample alone.

The number decides everything, so that a training that was cut off goes on with the samples that it would have
seen, and several processes share the samples that one would have had.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomnode.ml.model.architecture import Triple
from dicomnode.ml.training.dataset import IGNORED
from dicomnode.ml.training.prepared import PreparedCase

OUTSIDE = -1
"""Label of voxels beyond the border of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How patches are drawn (nnU-Net's way).

    Each sample takes a case at random. The last samples of every batch are centred on a voxel of a class that
    is drawn from those in the case; the others lie anywhere.
    """

    cases: tuple[PreparedCase, ...]
    patch_shape: Triple  # what the network sees
    cut_shape: Triple  # what is cut out, with a margin for turning; nowhere smaller
    batch_size: int
    foreground_share: float  # of a batch; rounded to whole samples
    seed: int
    stream: int = 0  # other samples from the same cases: 0 training, 1 validation

    def generator(self, number: int) -> np.random.Generator:
        """Make the generator of one sample."""
        return np.random.default_rng((self.seed, self.stream, number))

    def is_foreground(self, number: int) -> bool:
        """Whether a sample is centred on a class."""
        return number % self.batch_size >= round(self.batch_size * (1 - self.foreground_share))


def draw(sampler: Sampler, number: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cut one sample.

    Parameters
    ----------
    generator
        From :meth:`Sampler.generator`; the caller may go on with it.

    Returns
    -------
        Image float32 and labels int16 (class indices, IGNORED or OUTSIDE), both ``cut_shape``.
    """
    case = sampler.cases[int(generator.integers(len(sampler.cases)))]
    starts = _starts(sampler, case, number, generator)
    image = cut(case.image(), starts, sampler.cut_shape, fill=0)
    labels = cut(case.labels(), starts, sampler.cut_shape, fill=OUTSIDE, dtype=np.int16)
    return torch.from_numpy(image), torch.from_numpy(labels)


def cut(
    array: NDArray[np.generic],
    starts: Sequence[int],
    shape: Triple,
    *,
    fill: int,
    dtype: type[np.generic] | None = None,
) -> NDArray[np.generic]:
    """Copy a box out of an array; what lies beyond its border is filled."""
    result = np.full(shape, fill, dtype or array.dtype)
    stops = [start + wanted for start, wanted in zip(starts, shape, strict=True)]
    inside = [
        (max(start, 0), min(stop, size)) for start, stop, size in zip(starts, stops, array.shape, strict=True)
    ]
    if all(first < last for first, last in inside):
        source = tuple(slice(first, last) for first, last in inside)
        target = tuple(
            slice(first - start, last - start) for (first, last), start in zip(inside, starts, strict=True)
        )
        result[target] = array[source]
    return result


def _starts(sampler: Sampler, case: PreparedCase, number: int, generator: np.random.Generator) -> list[int]:
    """Choose the first voxel of the box; it may lie before the image, by at most half of the margin."""
    ranges = [
        _range(size, cut_size, patch)
        for size, cut_size, patch in zip(case.shape, sampler.cut_shape, sampler.patch_shape, strict=True)
    ]
    index = _class(sampler, case, number, generator)
    if index is None:
        return [int(generator.integers(lowest, highest + 1)) for lowest, highest in ranges]
    places = case.places(index)
    voxel = places[int(generator.integers(len(places)))]
    return [
        max(lowest, int(middle) - size // 2)
        for middle, size, (lowest, _) in zip(voxel, sampler.cut_shape, ranges, strict=True)
    ]


def _range(size: int, cut_size: int, patch: int) -> tuple[int, int]:
    """Give the first and last start along an axis: patches reach every border, boxes go beyond it."""
    beyond = max(cut_size - patch, cut_size - size)
    lowest = -(beyond // 2) - beyond % 2
    return lowest, size + beyond // 2 + beyond % 2 - cut_size


def _class(sampler: Sampler, case: PreparedCase, number: int, generator: np.random.Generator) -> int | None:
    """Say on which class a sample is centred; IGNORED: on any voxel whose truth is known."""
    if sampler.is_foreground(number) and case.classes:
        return case.classes[int(generator.integers(len(case.classes)))]
    has_known = dict(case.counts).get(IGNORED, 0) > 0
    return IGNORED if case.has_unknown and has_known else None
