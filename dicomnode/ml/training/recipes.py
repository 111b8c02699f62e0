"""How a model learns from corrections: the recipes, by name.

A recipe says which weights learn, how each step is taken, what holds the model near what it knew, and how
long it goes on. What came out best on real data stands in ``docs/learning.md``.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from dicomnode.ml.training.lora import LoraSettings
from dicomnode.ml.training.losses import marginal_cross_entropy, marginal_dice_cross_entropy
from dicomnode.ml.training.pace import Optimiser, Weights, cosine, level

Learns = Literal["all", "unfreezing", "lora", "head"]
LossName = Literal["cross-entropy", "dice-cross-entropy"]

LOSSES: Mapping[LossName, Callable[..., Tensor]] = MappingProxyType(
    {"cross-entropy": marginal_cross_entropy, "dice-cross-entropy": marginal_dice_cross_entropy}
)
"""Called with (logits, labels, *, weights, known), see :mod:`dicomnode.ml.training.losses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is tuned on corrected cases."""

    name: str
    words: str  # for people
    learns: Learns = "all"
    optimiser: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-4
    discriminative: bool = False  # early layers learn with a tenth of the rate of the last ones
    falling: bool = True  # the rate, along half a cosine
    epochs: int = 10
    batch_size: int = 5
    samples_per_case: int | None = None  # of each case in an epoch; None: every reviewed slice is one
    loss: LossName = "dice-cross-entropy"
    balanced: bool = False  # voxels weighted for rare classes and borders, or for the review alone
    augmented: bool = False  # mirrored as the plan says, and changed in brightness, contrast and gamma
    clip_norm: float | None = None  # of all gradients together
    unfrozen_at_first: float = 0.5  # share of the layers, where they are thawed one after the other
    lora: LoraSettings | None = None
    replay: float = 0.0  # share of the samples that come from cases learned before
    distillation: float = 0.0  # weight of the current model's answer where the truth is unknown
    proximal: float = 0.0  # FedProx: mu / 2 times the squared distance from the weights of the current model
    ewc: float = 0.0  # weight of elastic weight consolidation on the cases learned before
    kept_share: float = 0.0  # of the current weights in the result: 0 takes the tuned ones as they are

    @property
    def repeats(self) -> bool:
        """Answer whether cases learned before are needed again."""
        return self.replay > 0 or self.ewc > 0

    def in_json(self) -> dict[str, object]:
        """Give all settings, for the record."""
        return asdict(self)


def optimiser_of(recipe: Recipe) -> Optimiser:
    """Give what takes the steps of a recipe."""
    return Optimiser(
        make=_OPTIMISERS[recipe.optimiser],
        learning_rate=recipe.learning_rate,
        fall=cosine if recipe.falling else level,
        words=f"{recipe.optimiser}, {'falling along a cosine' if recipe.falling else 'at one rate'}",
    )


def _adam(weights: Weights, learning_rate: float) -> Optimizer:
    return torch.optim.Adam(weights, learning_rate, betas=(0.9, 0.999), eps=1e-8, amsgrad=True)


def _adamw(weights: Weights, learning_rate: float) -> Optimizer:
    return torch.optim.AdamW(weights, learning_rate, weight_decay=1e-5)


_OPTIMISERS: Mapping[str, Callable[[Weights, float], Optimizer]] = MappingProxyType(
    {"adam": _adam, "adamw": _adamw}
)

_FULL = Recipe(
    name="full",
    words="all weights, early layers slowly; Dice and cross-entropy, mirrored and brightened samples",
    discriminative=True,
    learning_rate=3e-4,
    clip_norm=1.0,
    samples_per_case=8,
    augmented=True,
    replay=0.5,
)

_ALL: tuple[Recipe, ...] = (
    Recipe(
        name="dafne",
        words="Dafne's incremental learning (arXiv 2302.06352), on 3-D patches",
        optimiser="adam",
        learning_rate=1e-3,
        falling=False,
        epochs=5,
        loss="cross-entropy",
        balanced=True,
    ),
    Recipe(
        name="gentle",
        words="all weights in small steps, with the loss that the model was pretrained with",
        falling=False,
        augmented=True,
    ),
    _FULL,
    replace(
        _FULL,
        name="unfreezing",
        words="gradual unfreezing (Dante, arXiv 2605.03602): half of the layers first, then all",
        learns="unfreezing",
        discriminative=False,
    ),
    replace(
        _FULL,
        name="lora",
        words="low-rank changes of all convolutions (Dante, arXiv 2605.03602), rank 8",
        learns="lora",
        lora=LoraSettings(rank=8, alpha=16.0),
        learning_rate=1e-3,
        discriminative=False,
    ),
    replace(
        _FULL,
        name="head",
        words="the last layer only",
        learns="head",
        learning_rate=1e-3,
        discriminative=False,
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
