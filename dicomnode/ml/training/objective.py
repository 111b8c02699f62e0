"""What training from scratch lowers: soft Dice and cross-entropy, at several resolutions (nnU-Net v2).

Shapes: scores (B, classes, S, R, K); labels (B, S, R, K), class indices or IGNORED, which counts nowhere.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional

from dicomnode.ml.training.dataset import IGNORED
from dicomnode.ml.training.fit import Batch

Loss = Callable[[Tensor | Sequence[Tensor], Batch], Tensor]
"""Takes what a network gives, at one resolution or at several, and the batch that it was given."""

Objective = Callable[[Tensor, Tensor], Tensor]
"""Takes scores and labels of one resolution."""

Regions = Sequence[Sequence[int]]
"""Label values of the region of each output."""

SMOOTH = 1e-5


def from_scratch(*, regions: Sequence[Sequence[int]], batch_dice: bool, shared: bool) -> Loss:
    """Make the loss of a training from scratch; see :func:`make_objective` for the parameters."""
    objective = make_objective(regions=regions, batch_dice=batch_dice, shared=shared)
    return lambda outputs, batch: at_all_resolutions(objective, outputs, batch.labels)


def make_objective(*, regions: Sequence[Sequence[int]], batch_dice: bool, shared: bool) -> Objective:
    """Choose the loss for outputs that exclude each other, or for regions that do not.

    Parameters
    ----------
    regions
        Label values of the region of each output; empty where the outputs exclude each other.
    batch_dice
        One Dice for each class over the whole batch, instead of one for each sample.
    shared
        The batch is spread over the processes of a group, and so is its Dice.
    """
    if regions:
        return partial(region_loss, regions=regions, batch_dice=batch_dice, shared=shared)
    return partial(class_loss, batch_dice=batch_dice, shared=shared)


def class_loss(scores: Tensor, labels: Tensor, *, batch_dice: bool, shared: bool = False) -> Tensor:
    """Give cross-entropy minus soft Dice over the classes but background."""
    known = labels != IGNORED
    truth = functional.one_hot(labels.masked_fill(~known, 0).long(), scores.shape[1])
    truth = truth.movedim(-1, 1)[:, 1:].to(scores.dtype)  # (B, classes - 1, S, R, K)
    surprise = functional.cross_entropy(scores, labels.long(), ignore_index=IGNORED, reduction="sum")
    shares = torch.softmax(scores, dim=1)[:, 1:]
    dice = soft_dice(shares, truth, known[:, None], batch_dice=batch_dice, shared=shared)
    return surprise / known.sum().clamp_min(1) - dice


def region_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    regions: Sequence[Sequence[int]],
    batch_dice: bool,
    shared: bool = False,
) -> Tensor:
    """Give binary cross-entropy minus soft Dice, for regions that may lie in each other."""
    known = (labels != IGNORED)[:, None]
    truth = torch.stack([torch.isin(labels, _values(region, labels)) for region in regions], dim=1)
    truth = truth.to(scores.dtype)
    surprise = functional.binary_cross_entropy_with_logits(scores, truth, reduction="none") * known
    counted = known.sum().clamp_min(1) * len(regions)
    dice = soft_dice(torch.sigmoid(scores), truth, known, batch_dice=batch_dice, shared=shared)
    return surprise.sum() / counted - dice


def soft_dice(shares: Tensor, truth: Tensor, known: Tensor, *, batch_dice: bool, shared: bool) -> Tensor:
    """Give the mean Dice of probabilities with the truth, over what is known.

    Parameters
    ----------
    shares, truth
        (B, n, S, R, K), 0 to 1.
    known
        (B, 1, S, R, K).
    """
    axes = tuple(range(2, shares.dim()))
    counted = shares * known
    overlap = (counted * truth).sum(axes)
    found, wanted = counted.sum(axes), (truth * known).sum(axes)
    if batch_dice:
        sums = torch.stack([overlap.sum(0), found.sum(0), wanted.sum(0)])
        overlap, found, wanted = _over_all_processes(sums) if shared else sums
    return ((2 * overlap + SMOOTH) / (found + wanted + SMOOTH)).mean()


def at_all_resolutions(objective: Objective, outputs: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum the loss over the outputs of a deeply supervised network, the finest first.

    Each counts half of the one before, the coarsest nothing; the weights sum to one. A network with one
    output has one loss.
    """
    if isinstance(outputs, Tensor):
        return objective(outputs.float(), labels)
    weights = resolution_weights(len(outputs))
    total = torch.zeros((), device=labels.device)
    for weight, output in zip(weights, outputs, strict=True):
        if weight:
            scores = output.float()
            total = total + weight * objective(scores, _shrunk(labels, scores.shape[2:]))
        else:
            total = total + 0.0 * output.sum()  # so that all parameters take part, as several processes need
    return total


def agreement(scores: Tensor, batch: Batch, *, regions: Sequence[Sequence[int]]) -> Tensor:
    """Count voxels for the Dice of each label, or of each region, over a whole batch.

    Voxels count for a label where the truth of it is known.

    Returns
    -------
        (2, n): twice the overlap, and the sum of both sizes; background is left out.
    """
    labels = batch.labels
    known = (labels != IGNORED)[:, None]
    if batch.known is not None:
        known = known & batch.known[:, 1:]
    if batch.weights is not None:
        known = known & (batch.weights > 0)[:, None]
    if regions:
        found = scores > 0
        wanted = torch.stack([torch.isin(labels, _values(region, labels)) for region in regions], dim=1)
    else:
        indices = torch.arange(1, scores.shape[1], device=scores.device).view(1, -1, 1, 1, 1)
        found, wanted = scores.argmax(1, keepdim=True) == indices, labels[:, None] == indices
    found, wanted = found & known, wanted & known
    axes = (0, 2, 3, 4)
    return torch.stack([2 * (found & wanted).sum(axes), found.sum(axes) + wanted.sum(axes)]).double()


def resolution_weights(outputs: int) -> list[float]:
    """Give 1, 1/2, 1/4, ... with 0 for the last, divided by their sum; one output has all."""
    plain = [0.5**index for index in range(max(outputs - 1, 1))] + [0.0] * (outputs > 1)
    return [weight / sum(plain) for weight in plain]


def _shrunk(labels: Tensor, shape: torch.Size) -> Tensor:
    """Take the nearest label for each voxel of a coarser grid."""
    for axis, (size, wanted) in enumerate(zip(labels.shape[1:], shape, strict=True), start=1):
        if size != wanted:
            index = ((torch.arange(wanted, device=labels.device) + 0.5) * (size / wanted)).long()
            labels = labels.index_select(axis, index)
    return labels


def _values(region: Sequence[int], labels: Tensor) -> Tensor:
    return torch.tensor(list(region), dtype=labels.dtype, device=labels.device)


def _over_all_processes(values: Tensor) -> Tensor:
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total
