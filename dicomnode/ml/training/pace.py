"""How long a training from scratch lasts, how its learning rate falls, and what takes the steps."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

OptimiserName = Literal["sgd", "adamw"]

Weights = Iterable[nn.Parameter] | Iterable[dict[str, object]]
"""What an optimiser changes, alone or in groups."""

_POLY_EXPONENT = 0.9
_COSINE_END = 1e-3
_WARM_UP = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The length of a training: so many epochs, or so much time."""

    epochs: int
    epoch_steps: int
    budget_s: float | None = None  # then epochs last as long as they do, and there is no last one

    def share(self, steps: int, elapsed_s: float) -> float:
        """Say how much of the training is done, 0 to 1."""
        done = (
            steps / (self.epochs * self.epoch_steps) if self.budget_s is None else elapsed_s / self.budget_s
        )
        return min(done, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """An optimiser with the settings that it is used with, and how its learning rate falls."""

    make: Callable[[Weights, float], Optimizer]  # with the learning rate
    learning_rate: float  # highest
    fall: Callable[[float], float]  # share of the training that is done to factor of the learning rate
    words: str


def level(done: float) -> float:
    """Stay as it is."""
    del done
    return 1.0


def poly(done: float) -> float:
    """Fall as nnU-Net does: almost in a straight line to 0."""
    return float(max(1.0 - done, 0.0) ** _POLY_EXPONENT)


def cosine(done: float) -> float:
    """Rise for the first fiftieth of the training, then fall along half a cosine to a thousandth."""
    if done < _WARM_UP:
        return max(done / _WARM_UP, _COSINE_END)
    falling = (done - _WARM_UP) / (1.0 - _WARM_UP)
    return _COSINE_END + (1.0 - _COSINE_END) * 0.5 * (1.0 + math.cos(math.pi * falling))


def _sgd(parameters: Weights, learning_rate: float) -> Optimizer:
    return torch.optim.SGD(parameters, learning_rate, momentum=0.99, nesterov=True, weight_decay=3e-5)


def _adamw(parameters: Weights, learning_rate: float) -> Optimizer:
    return torch.optim.AdamW(parameters, learning_rate, weight_decay=1e-4)


OPTIMISERS: Mapping[str, Optimiser] = MappingProxyType(
    {
        "sgd": Optimiser(
            make=_sgd,
            learning_rate=1e-2,
            fall=poly,
            words="SGD with Nesterov momentum 0.99, falling (1 - t)^0.9",
        ),
        "adamw": Optimiser(
            make=_adamw, learning_rate=1e-3, fall=cosine, words="AdamW, falling along a cosine"
        ),
    }
)
