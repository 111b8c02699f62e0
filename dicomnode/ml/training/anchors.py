"""What holds a network near what it knew: penalties on weights that move, and the current model's answers.

The *anchor* are weights by parameter name, those that a training starts from or those of a release. Only
parameters that learn and that the anchor has are held. What a parametrisation of torch adds to a network
(the factors of LoRA) is not in the anchor, and is held by being small.
Shapes: scores (B, classes, S, R, K); known (B, classes, S, R, K); weights (B, S, R, K).
"""

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from dicomnode.errors import ModelFormatError
from dicomnode.ml.training.fit import Batch, TrainingDivergedError
from dicomnode.weights import Tensors

EWC_WEIGHT = 0.5
"""Weight of the penalty of elastic weight consolidation in Dante's models."""

BatchLoss = Callable[[nn.Module, Batch], Tensor]
"""Runs a network on a batch and gives the loss."""

_PARAMETRISED = "parametrizations"


def fisher(network: nn.Module, batches: Iterable[Batch], loss: BatchLoss, *, limit: int) -> Tensors:
    """Estimate how much each weight matters: the mean over batches of the squared gradient of the loss.

    This is the diagonal of the empirical Fisher information with one gradient for each batch, as Dante has
    it; Kirkpatrick et al. (PNAS 114, 2017) take one for each sample, which costs more and comes out larger.

    Parameters
    ----------
    network
        Looked at as it answers in use (normalisation and dropout at rest); left unchanged.
    batches
        On the device of the network.
    limit
        So many batches are looked at, at most.

    Returns
    -------
        One tensor for each parameter that learns, >= 0, on the device of the network.

    Raises
    ------
    ValueError
        No batch came.
    TrainingDivergedError
        A gradient is not finite.
    """
    held = _learning(network)
    parameters = list(held.values())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    count = 0
    try:
        for count, batch in enumerate(islice(batches, limit), start=1):  # noqa: B007  # the last is the number
            found = torch.autograd.grad(
                loss(network, batch), parameters, allow_unused=True, materialize_grads=True
            )
            torch._foreach_addcmul_(sums, list(found), list(found))
    finally:
        for module, mode in modes:
            module.training = mode
    if not count:
        raise ValueError("No batch to estimate the importance of the weights from; at least one is needed.")
    return _checked({name: (total / count).contiguous() for name, total in zip(held, sums, strict=True)})


def ewc_penalty(network: nn.Module, fisher: Tensors, anchor: Tensors, weight: float = EWC_WEIGHT) -> Tensor:
    """Give ``weight * sum_i F_i (theta_i - anchor_i)^2``: weights that matter are dear to move.

    Elastic weight consolidation (Kirkpatrick et al., PNAS 114, 2017, where the factor is lambda / 2; Dante,
    where it is the weight itself, 0.5).

    Parameters
    ----------
    fisher, anchor
        By parameter name, on the device of the network.

    Raises
    ------
    ModelFormatError
        A parameter that learns is not in one of them, or has another shape there.
    """
    held = _learning(network)
    if not held:
        return _nothing(network)
    squares = _squared_moves(held, anchor)
    dear = torch._foreach_mul(squares, _counterparts(held, fisher, "estimate of importance"))
    return weight * _total(dear)


def proximal_penalty(network: nn.Module, anchor: Tensors, mu: float) -> Tensor:
    """Give ``mu / 2 * ||theta - anchor||^2``, which keeps sites together (FedProx, Li et al., MLSys 2020).

    Parameters
    ----------
    anchor
        Weights of the release that the training starts from, by parameter name, on the device of the network.

    Raises
    ------
    ModelFormatError
        A parameter that learns is not in the anchor, or has another shape there.
    """
    held = _learning(network)
    return mu / 2 * _total(_squared_moves(held, anchor)) if held else _nothing(network)


def distillation_loss(
    scores: Tensor, teacher_scores: Tensor, *, known: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Keep the answers of the current model where nobody has said what is right.

    At each voxel the classes that may hold there are background and all that are not known; where the weight
    is 0 nobody has looked, and all classes may hold. The loss is the Kullback-Leibler divergence between the
    shares of teacher and student *among these*, so that what a person has said about the others is not
    touched. Scores are divided by the temperature before, and the loss is multiplied by its square, which
    keeps the size of the gradients (Hinton, Vinyals and Dean, arXiv 1503.02531).

    Parameters
    ----------
    scores
        Of the network that learns, before the softmax.
    teacher_scores
        Of the current model on the same images; gives no gradient.
    known
        True where a class is certain to be, or not to be; background is never excluded.
    weights
        Only whether they are 0 counts.
    temperature
        > 0; above 1 the less likely classes count more.

    Returns
    -------
        Mean over the voxels where more than one class may hold; 0 where there are none.
    """
    possible = ~known | (weights == 0)[:, None]
    possible[:, 0] = True
    teacher = _log_shares(teacher_scores.detach() / temperature, possible)
    student = _log_shares(scores / temperature, possible)
    divergence = (teacher.exp() * (teacher - student)).masked_fill(~possible, 0.0).sum(dim=1)
    counted = (possible.sum(dim=1) > 1).sum().clamp_min(1)
    return temperature**2 * divergence.sum() / counted


def _log_shares(scores: Tensor, possible: Tensor) -> Tensor:
    """Logarithm of the softmax over the possible classes; 0 for the others, which keeps gradients finite."""
    total = torch.logsumexp(scores.masked_fill(~possible, -torch.inf), dim=1, keepdim=True)
    return (scores - total).masked_fill(~possible, 0.0)


def _learning(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and _PARAMETRISED not in name.split(".")
    }


def _squared_moves(held: dict[str, Tensor], anchor: Tensors) -> list[Tensor]:
    moves = torch._foreach_sub(list(held.values()), _counterparts(held, anchor, "anchor"))
    return list(torch._foreach_mul(moves, moves))


def _counterparts(held: dict[str, Tensor], tensors: Tensors, what: str) -> list[Tensor]:
    for name, parameter in held.items():
        found = tensors.get(name)
        if found is None or found.shape != parameter.shape:
            there = "nothing" if found is None else f"the shape {tuple(found.shape)}"
            raise ModelFormatError(
                f"The {what} has {there} for {name}, which learns with the shape {tuple(parameter.shape)}; "
                "take weights of the same network."
            )
    return [tensors[name] for name in held]


def _total(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts]).sum()


def _nothing(network: nn.Module) -> Tensor:
    return next(network.parameters()).new_zeros(())


def _checked(tensors: Tensors) -> Tensors:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TrainingDivergedError(f"The squared gradient of {name} is not finite; it says nothing.")
    return tensors
