"""From planes of scores on the grid of the network to labels on the grid of the image.

Scores are interpolated linearly. Where all the voxels of the network around a voxel of the image agree
on the class, interpolation cannot change it, since every score in between is a mean of theirs: only
along the borders of classes are scores computed at all. Neither the time nor the memory grows with
the number of classes at full resolution.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomnode.ml.frame import resampling
from dicomnode.ml.frame.grid import Shape
from dicomnode.ml.frame.resampling import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """For each voxel of the image its two neighbours on the network's grid, and how near the second is."""

    lower: Tensor
    upper: Tensor
    share: Tensor


class Painter:
    """Takes planes of scores in order and paints the labels that they decide."""

    def __init__(
        self,
        source: Shape,
        shape: Shape,
        method: Method,
        *,
        region_classes: tuple[int, ...],
        device: torch.device,
    ) -> None:
        """Prepare for scores on ``source`` voxels and labels on ``shape`` voxels, both (S, R, K).

        Parameters
        ----------
        region_classes
            As in :class:`dicomnode.ml.model.plan.Plan`.
        """
        self.labels: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        along, *within = (
            resampling.neighbours(old, new, method.orders[axis])
            for axis, (old, new) in enumerate(zip(source, shape, strict=True))
        )
        self._lower, self._upper = along[0].tolist(), along[1].tolist()
        self._shares = along[2].tolist()
        self._rows, self._columns = (_axis(*found, device=device) for found in within)
        self._regions = torch.tensor(region_classes, dtype=torch.uint8, device=device)
        self._held: dict[int, tuple[Tensor, Tensor]] = {}  # plane: scores (classes, R, K), classes (R, K)
        self._received = 0
        self._painted = 0

    def take(self, scores: Tensor) -> None:
        """Take the next planes, (classes, n, R, K), and paint every slice of the image that they complete."""
        for plane in scores.unbind(1):
            self._held[self._received] = (plane, self._decide(plane))
            self._received += 1
            self._paint_complete()

    @property
    def planes_kept(self) -> int:
        """Planes of scores that are still needed."""
        return len(self._held)

    def _paint_complete(self) -> None:
        while self._painted < len(self.labels):
            lower, upper = self._lower[self._painted], self._upper[self._painted]
            if upper >= self._received:
                return
            for plane in [plane for plane in self._held if plane < lower]:
                del self._held[plane]
            painted = self._paint(lower, upper, self._shares[self._painted])
            self.labels[self._painted] = painted.cpu().numpy()
            self._painted += 1

    def _paint(self, lower: int, upper: int, share: float) -> Tensor:
        """Paint one slice of the image between two planes of the network."""
        rows, columns = self._rows, self._columns
        corners = [
            self._held[plane][1][r][:, c]
            for plane in {lower, upper}
            for r in (rows.lower, rows.upper)
            for c in (columns.lower, columns.upper)
        ]
        painted = corners[0].clone()
        differs = torch.zeros_like(painted, dtype=torch.bool)
        for corner in corners[1:]:
            differs |= corner != painted
        row, column = differs.nonzero(as_tuple=True)
        if len(row):
            between = self._between(row, column, self._held[lower][0])
            if upper != lower:
                between = torch.lerp(between, self._between(row, column, self._held[upper][0]), share)
            painted[row, column] = self._decide(between)
        return painted

    def _between(self, row: Tensor, column: Tensor, scores: Tensor) -> Tensor:
        """Interpolate the scores of a plane (classes, R, K) at some voxels of the slice: (classes, n)."""
        rows, columns = self._rows, self._columns
        top, bottom, down = rows.lower[row], rows.upper[row], rows.share[row]
        left, right, across = columns.lower[column], columns.upper[column], columns.share[column]
        width = scores.shape[2]
        flat = scores.reshape(len(scores), -1)
        upper = torch.lerp(flat[:, top * width + left], flat[:, top * width + right], across)
        lower = torch.lerp(flat[:, bottom * width + left], flat[:, bottom * width + right], across)
        return torch.lerp(upper, lower, down)

    def _decide(self, scores: Tensor) -> Tensor:
        """Choose the class of each voxel from scores (classes, ...)."""
        if not len(self._regions):
            return scores.argmax(0).to(torch.uint8)
        chosen = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
        for region, likely in zip(self._regions, scores > 0, strict=True):
            chosen = torch.where(likely, region, chosen)
        return chosen


def _axis(
    lower: NDArray[np.int64], upper: NDArray[np.int64], share: NDArray[np.float32], *, device: torch.device
) -> _Axis:
    return _Axis(
        lower=torch.from_numpy(lower).to(device),
        upper=torch.from_numpy(upper).to(device),
        share=torch.from_numpy(share).to(device),
    )
