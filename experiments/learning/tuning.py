"""Tune a model with the training of the product, look at it after each epoch, and judge it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from data import LABEL_NAMES, Example

from dicomnode.domain import Segment
from dicomnode.ml.evaluation.scores import MISSING_HD95_MM, CaseScore, score_case
from dicomnode.ml.evaluation.scores import dice as dice_of
from dicomnode.ml.inference import acceleration, engine
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.package import ModelPackage, read_weights
from dicomnode.ml.training import lora, unfreezing
from dicomnode.ml.training.course import Moment
from dicomnode.ml.training.fit import FitReport
from dicomnode.ml.training.increment import Lesson, Place, train_increment
from dicomnode.ml.training.recipes import Recipe
from dicomnode.weights import Tensors

__all__ = ["CPU", "Tensors", "Tuned", "dices", "figures", "loaded", "score", "segment", "trainable", "tune"]

CPU = torch.device("cpu")

AfterEpoch = Callable[[Tensors], float]
"""Looks at the weights after an epoch, and gives their Dice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What came out of a training."""

    tensors: Tensors
    fit: FitReport
    curve: tuple[float, ...]  # Dice after each epoch, where it was asked for


def tune(lesson: Lesson, *, after_epoch: AfterEpoch | None = None) -> Tuned:
    """Tune a model; stop after each epoch and go on where it shall be looked at meanwhile."""
    curve: list[float] = []
    done = 0
    with TemporaryDirectory(prefix="tuning_") as folder:
        place = Place(folder=Path(folder), device="cpu")
        while True:
            breaks = _Breaks(steps=None if after_epoch is None else _epoch_steps(lesson))
            tensors, fit = train_increment(lesson, place, should_stop=breaks.is_due, watch=breaks.watch)
            if fit.steps <= done:
                raise RuntimeError(f"the training does not go on after {done} steps")
            done = fit.steps
            if after_epoch is not None:
                curve.append(after_epoch(tensors))
            if not fit.stopped:
                return Tuned(tensors=tensors, fit=fit, curve=tuple(curve))


class _Breaks:
    """Says after how many steps a training stops.

    A training asks after each step, before it tells the watch of it, and also while it makes its cases ready,
    before the first step; so only steps count that the watch was told of.

    Parameters
    ----------
    steps
        At least 2; None: it never stops.
    """

    def __init__(self, *, steps: int | None) -> None:
        if steps is not None and steps < 2:
            raise ValueError("an epoch that is looked at needs two steps")
        self._steps = steps
        self._told = 0

    def is_due(self) -> bool:
        return self._steps is not None and self._told + 1 == self._steps

    def watch(self, moment: Moment) -> None:
        del moment
        self._told += 1


def loaded(package: ModelPackage, tensors: Tensors | None = None) -> LoadedModel:
    """Make a model ready to segment, with its own weights or with others."""
    network = networks.build(package.plan.final.network)
    networks.load(network, read_weights(package) if tensors is None else tensors)
    prepared = acceleration.prepare(network, CPU)
    return LoadedModel(plan=package.plan, card=package.card, networks=((prepared,),), device=CPU)


def segment(model: LoadedModel, case: Example) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Segment a case, without mirrored passes: (S, R, K) class indices."""
    return np.asarray(engine.predict(model, case.image, mirror=False).array, np.uint8)


def dices(model: LoadedModel, cases: Sequence[Example]) -> float:
    """Give the mean Dice over cases and labels."""
    found = []
    for case in cases:
        labels = segment(model, case)
        found += [dice_of(labels == index, case.labels == index) for index in (1, 2)]
    return float(np.mean(found))


def score(model: LoadedModel, cases: Sequence[Example]) -> list[CaseScore]:
    """Compare a model with the truth of each case."""
    return [score_labels(model.card.segments, case, segment(model, case)) for case in cases]


def score_labels(
    segments: Sequence[Segment], case: Example, labels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> CaseScore:
    """Compare one result with the truth of its case."""
    return score_case(case.name, labels, case.labels, segments=segments, spacing_mm=case.spacing_mm)


def figures(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Give the means over cases: Dice and HD95 (mm, a missed label counts 100) of each label, and of both."""
    dice = np.array([[one.dice for one in case.labels] for case in scores]).mean(axis=0)
    distance = np.array([[min(one.hd95_mm, MISSING_HD95_MM) for one in case.labels] for case in scores]).mean(
        axis=0
    )
    found = {"dice": float(dice.mean()), "hd95_mm": float(distance.mean())}
    for index, name in enumerate(LABEL_NAMES):
        found |= {f"{name}_dice": float(dice[index]), f"{name}_hd95_mm": float(distance[index])}
    return found


def trainable(package: ModelPackage, recipe: Recipe) -> int:
    """Count the numbers that a recipe lets learn, at the end of the training."""
    stage = package.plan.final
    network = networks.build(stage.network)
    if recipe.lora is not None:
        return lora.attach(network, recipe.lora, seed=0)
    if recipe.learns == "head":
        unfreezing.only_head(unfreezing.layers_of(network, (1, *stage.patch_shape)))
    return sum(one.numel() for one in network.parameters() if one.requires_grad)


def _epoch_steps(lesson: Lesson) -> int:
    """Count the batches of an epoch, as the training does where every case has slices enough."""
    recipe = lesson.recipe
    if recipe.samples_per_case is None:
        raise ValueError("the recipes of the experiments say how many samples a case gives")
    new = recipe.samples_per_case * sum(case.trust > 0 for case in lesson.new)
    repeated = round(recipe.replay * new / (1 - recipe.replay)) if lesson.earlier else 0
    return int(max(1, (new + repeated) // recipe.batch_size))
