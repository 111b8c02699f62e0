"""Intensities of a sample of voxels, kept as values and how often each was drawn.

Medical images hold few different values, so a sample of a hundred million voxels is small, and what is
measured on it is exact.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2**20
_SEED = 1234


class Sample:
    """Draws voxels of one case after the other, as nnU-Net draws them."""

    def __init__(self) -> None:
        self._values: NDArray[np.float32] = np.empty(0, np.float32)
        self._counts: NDArray[np.int64] = np.empty(0, np.int64)
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def draw(self, intensities: NDArray[np.float32], count: int) -> Self:
        """Take so many voxels of a case, with replacement; none where it has none.

        The generator is numpy's Mersenne Twister with the seed 1234, anew for each case: the voxels are those
        that nnU-Net v2 takes when the intensities come in the same order.
        """
        size = len(intensities)
        if size == 0:
            return self
        generator = np.random.RandomState(_SEED)
        drawn = np.zeros(size, np.int64)
        for start in range(0, count, _CHUNK):
            places = generator.randint(0, size, min(_CHUNK, count - start))
            drawn += np.bincount(places, minlength=size)
        self._waiting.append(_together(intensities[drawn > 0], drawn[drawn > 0]))
        if sum(len(values) for values, _ in self._waiting) > max(_CHUNK, len(self._values)):
            self._merge()
        return self

    @property
    def size(self) -> int:
        """Number of voxels that were drawn."""
        self._merge()
        return int(self._counts.sum())

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest intensity."""
        self._merge()
        return float(self._values[0]), float(self._values[-1])

    def moments(self) -> tuple[float, float]:
        """Give mean and standard deviation."""
        self._merge()
        values = self._values.astype(np.float64)
        mean = float(np.average(values, weights=self._counts))
        return mean, float(np.sqrt(np.average((values - mean) ** 2, weights=self._counts)))

    def percentiles(self, percents: Sequence[float]) -> tuple[float, ...]:
        """Give percentiles, interpolated between neighbours as by :func:`numpy.percentile`."""
        self._merge()
        ends = np.cumsum(self._counts)
        places = (ends[-1] - 1) * np.asarray(percents) / 100
        below = np.floor(places).astype(np.int64)
        lower = self._values[np.searchsorted(ends, below, side="right")].astype(np.float64)
        above = np.minimum(below + 1, ends[-1] - 1)
        upper = self._values[np.searchsorted(ends, above, side="right")].astype(np.float64)
        return tuple((lower + (upper - lower) * (places - below)).tolist())

    def _merge(self) -> None:
        if not self._waiting:
            return
        parts = [(self._values, self._counts), *self._waiting]
        self._values, self._counts = _together(
            np.concatenate([values for values, _ in parts]), np.concatenate([counts for _, counts in parts])
        )
        self._waiting = []


def _together(
    values: NDArray[np.float32], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Sort values and add the counts of equal ones."""
    distinct, inverse = np.unique(values, return_inverse=True)
    sums = np.bincount(inverse, weights=counts, minlength=len(distinct))
    return distinct, sums.astype(np.int64)  # exact: the sums are far below 2^53
