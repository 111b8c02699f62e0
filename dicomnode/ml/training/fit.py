"""What trainings of both kinds share: batches, and what is said of the end."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dicomnode.errors import InputError

ShouldStop = Callable[[], bool]
"""Asked before each batch; True ends the training there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one step: images (B, 1, S, R, K), labels and weights (B, S, R, K).

    Without weights every voxel counts alike; without ``known`` every label is certain.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor | None = None
    known: Tensor | None = None  # (B, classes, S, R, K), see :mod:`dicomnode.ml.training.losses`

    def to(self, device: torch.device) -> "Batch":
        """Move it to a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            weights=moved(self.weights),
            known=moved(self.known),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What a training did."""

    epochs: int  # finished
    steps: int
    losses: tuple[float, ...]  # mean of each finished epoch
    seconds: float
    stopped: bool  # asked to end early: the weights are unfinished
    unchanged: bool = False  # the last weights are bit for bit the first ones: nothing to send
    n_patients: int = 0
    n_slices: int = 0  # reviewed slices, which are the samples


class TrainingDivergedError(InputError):
    """The loss became NaN or infinite: the weights are worthless and must not be kept."""


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Make the generator of one epoch, so that an epoch does not depend on those before it."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
