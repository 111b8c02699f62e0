"""The training loop for corrections, and what trainings of both kinds share."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dicomnode.errors import InputError

Progress = Callable[[int, int, float, float], None]
"""Called after each epoch with (epoch from 1, epochs, mean loss, seconds since the start)."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """How a network learns: what to lower, and how each step is taken."""

    loss: Callable[[Tensor, Batch], Tensor]
    optimizer: Optimizer
    epochs: int


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


def fit(
    network: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    learner: Learner,
    *,
    should_stop: ShouldStop,
    progress: Progress,
) -> FitReport:
    """Train a network in place.

    Parameters
    ----------
    network
        Left in training mode, with the last weights.
    batches
        Gives the batches of an epoch, counted from 0, on the device of the network.
    learner
        Loss and optimiser.
    should_stop
        Asked before every batch.
    progress
        Called after every epoch.

    Raises
    ------
    TrainingDivergedError
        The loss is not finite.
    """
    start, steps = time.monotonic(), 0
    losses: list[float] = []
    network.train()
    for epoch in range(learner.epochs):
        epoch_losses = []
        for batch in batches(epoch):
            if should_stop():
                return _report(losses, steps, start, stopped=True)
            epoch_losses.append(_step(network, batch, learner))
            steps += 1
        losses.append(sum(epoch_losses) / max(1, len(epoch_losses)))
        progress(epoch + 1, learner.epochs, losses[-1], time.monotonic() - start)
    return _report(losses, steps, start, stopped=False)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Make the generator of one epoch, so that an epoch does not depend on those before it."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def _step(network: nn.Module, batch: Batch, learner: Learner) -> float:
    loss = learner.loss(network(batch.images), batch)
    if not torch.isfinite(loss):
        raise TrainingDivergedError(
            f"The loss became {float(loss.detach())}; the weights of this training are unusable."
        )
    learner.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
    return float(loss.detach())


def _report(losses: list[float], steps: int, start: float, *, stopped: bool) -> FitReport:
    return FitReport(
        epochs=len(losses),
        steps=steps,
        losses=tuple(losses),
        seconds=time.monotonic() - start,
        stopped=stopped,
    )
