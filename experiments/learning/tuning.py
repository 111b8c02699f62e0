"""Tune a model with the training of the product, look at it after each epoch, and judge it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
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
    steps = _epoch_steps(lesson)
    curve: list[float] = []
    with TemporaryDirectory(prefix="tuning_") as folder:
        place = Place(folder=Path(folder), device="cpu")
        while True:
            asked = count(1)

            def should_stop(asked: "count[int]" = asked) -> bool:
                return after_epoch is not None and next(asked) % steps == 0

            tensors, fit = train_increment(lesson, place, should_stop=should_stop, watch=lambda _: None)
            if after_epoch is not None:
                curve.append(after_epoch(tensors))
            if not fit.stopped:
                return Tuned(tensors=tensors, fit=fit, curve=tuple(curve))


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
