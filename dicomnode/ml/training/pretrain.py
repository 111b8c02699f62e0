"""Train a model from a folder of labelled NIfTI images and write it as a package."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dicomnode import weights
from dicomnode.errors import InputError
from dicomnode.ml.evaluation.scores import CaseScore, score_case
from dicomnode.ml.frame import grid
from dicomnode.ml.inference import engine
from dicomnode.ml.model import card, network, package
from dicomnode.ml.model.card import CardFacts
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import Plan
from dicomnode.ml.planning.planner import make_plan
from dicomnode.ml.training import sampling
from dicomnode.ml.training.dataset import CaseSplit, LabelledCase, read_cases, split_cases
from dicomnode.ml.training.fit import Batch, FitReport, Learner, Progress, epoch_generator, fit
from dicomnode.ml.training.losses import dice_cross_entropy
from dicomnode.ml.training.sampling import Augmentation
from dicomnode.weights import Tensors

_Sample = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRecipe:
    """How a model is trained; the defaults train from scratch, :data:`REFINEMENT` goes on from there."""

    epochs: int = 120
    seed: int = 0
    batch_size: int = 4
    learning_rate: float = 3e-3  # peak of the one-cycle schedule
    weight_decay: float = 1e-4
    clip_norm: float = 12.0
    average_decay: float = 0.998  # of the running mean of the weights, per step
    filters: tuple[int, ...] = (16, 32, 64, 128)
    hold_out_fraction: float = 0.2
    validation_fraction: float = 0.06
    bfloat16: bool = False  # faster on processors that have it
    modalities: tuple[str, ...] = ("MR",)
    augmentation: Augmentation = field(default_factory=Augmentation)
    start_from: Path | None = None  # package of an earlier run on the same split, to go on from
    about: str = ""  # Markdown for the card: what the data are, their licence, the limits


REFINEMENT = PretrainRecipe(
    epochs=42,
    learning_rate=1e-3,
    augmentation=Augmentation(warp_probability=0.3, rotation_rad=0.17, scale=0.1, intensity_probability=0.1),
)
"""Second run, with ``start_from``: milder changes and smaller steps bring the weights closer to the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainReport:
    """What a training from scratch gave."""

    package: ModelPackage
    fit: FitReport
    split: CaseSplit
    validation: tuple[CaseScore, ...]
    hold_out: tuple[CaseScore, ...]


def pretrain(
    dataset: Path,
    out: Path,
    *,
    name: str,
    labels_file: Path,
    recipe: PretrainRecipe,
    progress: Progress,
) -> PretrainReport:
    """Train, judge on cases never trained on, and write the model package.

    The weights are the running mean at the end of the schedule: no epoch is chosen by looking at
    any score. Seeds torch's global generator, which draws the first weights.

    Parameters
    ----------
    dataset
        Folder with ``images`` and ``labels`` (or ``imagesTr`` and ``labelsTr``).
    out
        Folder of the package; written only when the training has ended.
    name
        Family of the model: lower-case letters, digits, ``_`` and ``-``.
    labels_file
        Label table as in a package; decides the classes.
    recipe
        Sizes, schedule, split and seed.
    progress
        As in :func:`dicomnode.ml.training.fit.fit`.

    Raises
    ------
    InputError
        The data set, the labels or the name cannot be used; found before the training begins.
    """
    segments = package.read_labels(labels_file)
    cases = read_cases(dataset, classes=len(segments) + 1)
    split = _split(cases, recipe)
    named = {case.name: case for case in cases}
    training = [named[case] for case in split.training]
    plan = make_plan(
        [case.image for case in training],
        name=name,
        modalities=recipe.modalities,
        classes=len(segments) + 1,
        filters=recipe.filters,
        mirror_axes=recipe.augmentation.flip_axes,
    )
    start = _start(recipe, plan, split)
    tensors, report = _train(plan, training, recipe, start=start, progress=progress)
    unfinished = package.write(out, plan, segments, tensors, card.UNFINISHED)
    model = engine.load(unfinished, device="cpu")
    validation = tuple(_score(model, named[case]) for case in split.validation)
    hold_out = tuple(_score(model, named[case]) for case in split.hold_out)
    facts = CardFacts(
        version=unfinished.card.version,
        about=recipe.about,
        seed=recipe.seed,
        earlier=card.earlier_training(start) if start else "",
        fractions=(recipe.hold_out_fraction, recipe.validation_fraction),
        fit=report,
        split=split,
        validation=validation,
        hold_out=hold_out,
    )
    final = package.write(out, plan, segments, tensors, card.render(plan, facts))
    return PretrainReport(package=final, fit=report, split=split, validation=validation, hold_out=hold_out)


def _split(cases: Sequence[LabelledCase], recipe: PretrainRecipe) -> CaseSplit:
    split = split_cases(
        cases,
        hold_out_fraction=recipe.hold_out_fraction,
        validation_fraction=recipe.validation_fraction,
        generator=np.random.default_rng(recipe.seed),
    )
    if not split.training or not split.hold_out:
        raise InputError(f"{len(cases)} labelled cases are too few to train on some and judge on others.")
    return split


def _start(recipe: PretrainRecipe, plan: Plan, split: CaseSplit) -> ModelPackage | None:
    """Read the package to go on from, and make sure that it never saw a hold-out case."""
    if recipe.start_from is None:
        return None
    start = package.read(recipe.start_from)
    if replace(start.plan, mirror_axes=plan.mirror_axes) != plan:
        raise InputError(f"{start.card.version} has another plan than this data set gives.")
    if card.names_sha256(split.hold_out) not in card.read(start):
        raise InputError(
            f"The card of {start.card.version} names another hold-out: it may have been trained on cases "
            "that this run would judge it by. Use the same data set, fractions and seed."
        )
    return start


def _train(
    plan: Plan,
    cases: Sequence[LabelledCase],
    recipe: PretrainRecipe,
    *,
    start: ModelPackage | None,
    progress: Progress,
) -> tuple[Tensors, FitReport]:
    torch.manual_seed(recipe.seed)
    net = network.build(plan.network)
    if start is not None:
        network.load(net, weights.read(start.weights_path))
    samples = [_sample(plan, case) for case in cases]
    steps = recipe.epochs * -(-len(samples) // recipe.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    blend = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(net, multi_avg_fn=blend)
    learner = Learner(
        loss=lambda logits, batch: dice_cross_entropy(logits, batch.labels),
        optimizer=optimizer,
        epochs=recipe.epochs,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps),
        clip_norm=recipe.clip_norm,
        average=average,
        bfloat16=recipe.bfloat16,
    )
    batches = partial(_batches, samples, plan, recipe)
    report = fit(net, batches, learner, should_stop=lambda: False, progress=progress)
    return network.tensors_of(average.module), report


def _sample(plan: Plan, case: LabelledCase) -> _Sample:
    """Bring a case into the frame of the plan: image (S, R, K) float32, labels (S, R, K) int64."""
    framed = grid.frame(
        case.image,
        orientation=plan.orientation,
        spacing_mm=plan.spacing_mm,
        normalisation=plan.normalisation,
    )
    labels = grid.frame_labels(case.labels, framed)
    return torch.from_numpy(framed.array), torch.from_numpy(labels.astype(np.int64))


def _batches(samples: Sequence[_Sample], plan: Plan, recipe: PretrainRecipe, epoch: int) -> Iterator[Batch]:
    generator = epoch_generator(recipe.seed, epoch)
    order = torch.randperm(len(samples), generator=generator)
    for chosen in torch.split(order, recipe.batch_size):
        crops = [
            sampling.crop(*samples[index], patch_shape=plan.patch_shape, generator=generator)
            for index in chosen
        ]
        images = torch.stack([image for image, _ in crops])[:, None]  # (B, C, S, R, K)
        labels = torch.stack([label for _, label in crops])  # (B, S, R, K)
        images, labels = sampling.augment(images, labels, recipe.augmentation, generator=generator)
        yield Batch(images=images, labels=labels)


def _score(model: engine.LoadedModel, case: LabelledCase) -> CaseScore:
    labels = engine.predict(model, case.image).array
    return score_case(
        case.name, labels, case.labels, segments=model.card.segments, spacing_mm=case.image.spacing
    )
