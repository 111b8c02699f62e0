"""Train a model from labelled images, judge it on cases that it never saw, and write it as a package."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from dicomnode import weights
from dicomnode.domain import Segment
from dicomnode.errors import GpuMemoryError, InputError
from dicomnode.ml.evaluation.scores import CaseScore, score_case
from dicomnode.ml.inference import engine
from dicomnode.ml.model import card, package
from dicomnode.ml.model.card import CardFacts
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import Plan, architecture_sha256
from dicomnode.ml.training import augmentation, checkpoints, ground, loader
from dicomnode.ml.training.course import HISTORY_FILE, Course, Desk, Material
from dicomnode.ml.training.dataset import IGNORED
from dicomnode.ml.training.fit import FitReport
from dicomnode.ml.training.ground import Ground, Question
from dicomnode.ml.training.loader import Share
from dicomnode.ml.training.objective import from_scratch
from dicomnode.ml.training.order import Machine, Observer, Order, PretrainRecipe
from dicomnode.ml.training.pace import OPTIMISERS, Pace
from dicomnode.ml.training.prepared import PreparedCase, prepare, prepared_digest
from dicomnode.ml.training.run import Method, Run, fresh
from dicomnode.ml.training.sampling import Sampler
from dicomnode.ml.training.splits import CaseSplit

WORK_FOLDER = "training"
"""In the folder of the model as long as the training goes on: decisions, prepared cases, checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainReport:
    """What a training from scratch gave."""

    package: ModelPackage
    fit: FitReport
    split: CaseSplit
    validation: tuple[CaseScore, ...]
    hold_out: tuple[CaseScore, ...]


def pretrain(order: Order, out: Path, *, machine: Machine, observer: Observer) -> PretrainReport | None:
    """Train, judge on cases never trained on, and write the model package.

    A call that was cut off, by whatever, goes on where its last checkpoint left off when it is made again. No
    epoch is chosen by looking at any score: the weights are the last ones, or their running mean.

    Parameters
    ----------
    out
        Folder of the package; until it is written, the training is kept in a folder inside.

    Returns
    -------
        None where it was asked to stop, or where another process of the group writes the package.

    Raises
    ------
    InputError
        The cases, the labels or the name cannot be used; found before the training begins. Or the folder
        holds an unfinished training of another kind.
    ConfigError
        An extra is missing, or the batch cannot be shared by so many processes.
    GpuMemoryError
        The accelerator has too little memory for the plan.
    """
    processes, work = machine.processes, out / WORK_FOLDER
    if processes.is_first:
        ground.decide(
            _question(order), work, threads=machine.threads, progress=partial(observer.tell, "reading")
        )
    processes.wait()
    decided = ground.read(work)
    if decided is None:
        raise InputError(f"{work} cannot be read by all processes; it must be a folder that they share.")
    start = _start(order, decided)
    tensors, fit = _train(order, decided, out, start=start, machine=machine, observer=observer)
    if fit.stopped or not processes.is_first:
        return None
    plan = decided.blueprint.plan
    unfinished = package.write(out, plan, order.segments, tensors, card.UNFINISHED)
    scores = {score.case_id: score for score in _judge(unfinished, order, decided, machine, observer)}
    validation, hold_out = (
        tuple(scores[name] for name in names) for names in (decided.validation, decided.hold_out)
    )
    facts = CardFacts(
        version=unfinished.card.version,
        about=order.about,
        seed=order.recipe.seed,
        method=_method_in_words(order.recipe),
        earlier=card.earlier_training(start) if start else "",
        fractions=(order.recipe.hold_out_fraction, order.recipe.validation_fraction),
        fit=fit,
        split=decided.split,
        validation=validation,
        hold_out=hold_out,
    )
    final = package.write(out, plan, order.segments, tensors, card.render(plan, facts))
    shutil.rmtree(work, ignore_errors=True)
    return PretrainReport(
        package=final, fit=fit, split=decided.split, validation=validation, hold_out=hold_out
    )


def begin_anew(out: Path) -> None:
    """Throw an unfinished training away; the prepared cases stay."""
    checkpoints.remove(out / WORK_FOLDER)
    (out / WORK_FOLDER / ground.GROUND_FILE).unlink(missing_ok=True)


def _question(order: Order) -> Question:
    recipe = order.recipe
    return Question(
        sources=order.sources,
        planner=order.planner,
        planner_words=order.planner_words,
        fractions=(recipe.hold_out_fraction, recipe.validation_fraction),
        seed=recipe.seed,
    )


def _start(order: Order, decided: Ground) -> ModelPackage | None:
    """Read the package to go on from, and make sure that it never saw a hold-out case."""
    if order.start_from is None:
        return None
    start = package.read(order.start_from)
    if architecture_sha256(start.plan) != architecture_sha256(decided.blueprint.plan):
        raise InputError(
            f"{start.card.version} has another network or frame than the plan of this training; "
            "give its own plan with --plan."
        )
    if card.names_sha256(decided.hold_out) not in card.read(start):
        raise InputError(
            f"The card of {start.card.version} names another hold-out: it may have been trained on cases "
            "that this run would judge it by. Use the same data set, fractions and seed."
        )
    return start


def _train(
    order: Order,
    decided: Ground,
    out: Path,
    *,
    start: ModelPackage | None,
    machine: Machine,
    observer: Observer,
) -> tuple[weights.Tensors, FitReport]:
    processes, stage = machine.processes, decided.blueprint.plan.final
    loader.check_share(_batch_size(order, decided), processes.count)
    training = _prepared(order, decided, decided.training, out, machine, observer)
    validation = _prepared(order, decided, decided.validation, out, machine, observer)
    material = _material(order, decided, training, validation, machine)
    try:
        network = fresh(stage.network, seed=order.recipe.seed)
        method = _method(order, decided, is_shared=processes.is_group)
        run = Run(network, method, processes, seed=order.recipe.seed)
        if start is not None:
            run.begin_from(weights.read(start.weights_path))
        desk = Desk(
            folder=out / WORK_FOLDER,
            history_path=out / HISTORY_FILE,
            digest=_digest(order, decided, start),
            checkpoint_s=machine.checkpoint_s,
            should_stop=observer.should_stop,
            watch=observer.watch,
        )
        course = Course(run, material, _pace(order.recipe), desk, processes)
        course.go_on()
        report = course.train()
        return run.result(), report
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(
            f"Too little memory on {processes.device} to train with patches of {stage.patch_shape} and "
            f"{_batch_size(order, decided)} of them in a batch; plan for less (--memory-gb) or choose a "
            "smaller --batch-size."
        ) from error


def _prepared(
    order: Order,
    decided: Ground,
    names: Sequence[str],
    out: Path,
    machine: Machine,
    observer: Observer,
) -> tuple[PreparedCase, ...]:
    """Prepare cases in the first process; the others find them done."""
    plan = decided.blueprint.plan
    wanted = set(names)
    folder = (machine.cache or out / WORK_FOLDER / "cases") / prepared_digest(plan, plan.final)[:16]
    do = partial(
        prepare,
        [source for source in order.sources if source.name in wanted],
        plan,
        plan.final,
        folder,
        threads=machine.threads,
        progress=partial(observer.tell, "preparing"),
    )
    if machine.processes.is_first:
        do()
    machine.processes.wait()
    return do()


def _material(
    order: Order,
    decided: Ground,
    training: tuple[PreparedCase, ...],
    validation: tuple[PreparedCase, ...],
    machine: Machine,
) -> Material:
    stage, recipe = decided.blueprint.plan.final, order.recipe
    geometry = augmentation.geometry_of(stage)
    share = Share(rank=machine.processes.rank, count=machine.processes.count)
    learned, judged = (
        Sampler(
            cases=cases,
            patch_shape=stage.patch_shape,
            cut_shape=augmentation.cut_shape(geometry) if stream == 0 else stage.patch_shape,
            batch_size=_batch_size(order, decided),
            foreground_share=recipe.foreground_share,
            seed=recipe.seed,
            stream=stream,
        )
        for stream, cases in enumerate((training, validation))
    )
    transform = augmentation.nnunet_transform(geometry)
    steps = -(-recipe.epoch_steps // 5) if recipe.validation_steps is None else recipe.validation_steps
    return Material(
        training=lambda step: loader.training_batches(
            learned, transform, share=share, first_step=step, workers=machine.workers
        ),
        validation=partial(loader.validation_batches, judged, share=share, steps=steps)
        if validation and steps
        else None,
        labels=_output_labels(decided.blueprint.plan, order.segments),
    )


def _batch_size(order: Order, decided: Ground) -> int:
    return order.recipe.batch_size or decided.blueprint.batch_size


def _output_labels(plan: Plan, segments: Sequence[Segment]) -> tuple[str, ...]:
    named = {segment.class_index: segment.label for segment in segments}
    return tuple(named[index] for index in plan.region_classes or range(1, plan.classes))


def _method(order: Order, decided: Ground, *, is_shared: bool) -> Method:
    recipe, optimiser = order.recipe, OPTIMISERS[order.recipe.optimiser]
    batch_dice = decided.blueprint.batch_dice
    return Method(
        loss=from_scratch(regions=order.regions, batch_dice=batch_dice, shared=is_shared),
        optimiser=optimiser,
        learning_rate=recipe.learning_rate or optimiser.learning_rate,
        regions=order.regions,
        average_decay=recipe.average_decay,
        bfloat16=recipe.bfloat16,
    )


def _pace(recipe: PretrainRecipe) -> Pace:
    budget_s = None if recipe.minutes is None else 60 * recipe.minutes
    return Pace(epochs=recipe.epochs, epoch_steps=recipe.epoch_steps, budget_s=budget_s)


def _digest(order: Order, decided: Ground, start: ModelPackage | None) -> str:
    """Identify everything that decides the outcome of a training."""
    parts = (
        decided.model_dump_json(),
        TypeAdapter(PretrainRecipe).dump_json(order.recipe).decode(),
        repr([list(region) for region in order.regions]),
        start.card.version if start else "",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _judge(
    model: ModelPackage, order: Order, decided: Ground, machine: Machine, observer: Observer
) -> Iterator[CaseScore]:
    """Segment the cases that were not trained on, and compare; voxels of unknown truth do not count."""
    loaded = engine.load(model, device=str(machine.processes.device))
    wanted = {*decided.validation, *decided.hold_out}
    for done, source in enumerate((one for one in order.sources if one.name in wanted), start=1):
        case = source.read()
        found = engine.predict(loaded, case.image).array
        yield score_case(
            case.name,
            np.where(case.labels == IGNORED, 0, found).astype(np.uint8),
            np.where(case.labels == IGNORED, 0, case.labels).astype(np.uint8),
            segments=order.segments,
            spacing_mm=case.image.spacing,
        )
        observer.tell("judging", done, len(wanted))


def _method_in_words(recipe: PretrainRecipe) -> str:
    optimiser = OPTIMISERS[recipe.optimiser]
    rate = recipe.learning_rate or optimiser.learning_rate
    mean = (
        f"the running mean of the weights ({recipe.average_decay:g} per step)"
        if recipe.average_decay is not None
        else "the last ones"
    )
    return f"{optimiser.words} from {rate:g}; the weights are {mean}"
