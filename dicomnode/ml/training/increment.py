"""Tune a model on corrected cases, by one of the recipes; cut off at any moment, it goes on where it was."""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from dicomnode import weights
from dicomnode.errors import CorrectionError, GpuMemoryError, InputError, ModelFormatError
from dicomnode.ml.inference.engine import choose_device
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.training import anchors, checkpoints, lessons, lora, unfreezing
from dicomnode.ml.training.course import HISTORY_FILE, Course, Desk, Material, Watch
from dicomnode.ml.training.fit import Batch, FitReport, ShouldStop
from dicomnode.ml.training.lessons import CaseSource, KeptCase, Samples
from dicomnode.ml.training.objective import Loss
from dicomnode.ml.training.pace import Pace
from dicomnode.ml.training.processes import Processes
from dicomnode.ml.training.recipes import LOSSES, Recipe, optimiser_of
from dicomnode.ml.training.run import Groups, Method, Run, alike
from dicomnode.ml.training.unfreezing import Layers, Unfreezing

CASES_FOLDER = "cases"
_FISHER_BATCHES = 16
_TEMPERATURE = 2.0
_CHECKPOINT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a model is to learn, and how."""

    package: ModelPackage  # to start from; left unchanged
    new: tuple[CaseSource, ...]
    earlier: tuple[CaseSource, ...] = ()  # learned before: repeated where the recipe says so
    recipe: Recipe
    seed: int  # decides the order of the samples and how they are changed

    @property
    def digest(self) -> str:
        """Identify everything that decides the outcome."""
        cases = [[one.name, one.version, one.trust] for one in (*self.new, *self.earlier)]
        parts = [self.package.card.weights_sha256, self.recipe.in_json(), cases, len(self.new), self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and with what a model is tuned: decides nothing of what comes out."""

    folder: Path  # kept cases, checkpoint and history; the same one to go on
    device: str = "auto"


def train_increment(
    lesson: Lesson, place: Place, *, should_stop: ShouldStop, watch: Watch
) -> tuple[weights.Tensors, FitReport]:
    """Tune a model on corrected cases.

    One sample is a patch of the model's size centred on one reviewed slice (a slice on which at
    least one label has a weight above 0); the other reviewed slices inside the patch count as well.
    Voxels that nobody reviewed, and labels that a correction does not hold, give no gradient of their own.

    Parameters
    ----------
    should_stop
        Asked after every batch, and after each case that was made ready; the state is on the disk when this
        returns.
    watch
        Called after every batch.

    Returns
    -------
        The last weights, on the CPU, and what was done. Stopped early, the weights are unfinished and
        the report says so; the same call goes on.

    Raises
    ------
    CorrectionError
        No case has a reviewed slice, or a case does not fit the model.
    ModelFormatError
        The model has several networks, or outputs that do not exclude each other.
    TrainingDivergedError
        The loss is not finite.
    GpuMemoryError
        The accelerator has too little memory.
    """
    check_trainable(lesson.package)
    base = weights.read(lesson.package.weights_path)
    samples = _samples(lesson, place.folder / CASES_FOLDER, should_stop)
    if samples is None:
        return base, FitReport(epochs=0, steps=0, losses=(), seconds=0.0, stopped=True)
    processes = Processes(rank=0, count=1, device=choose_device(place.device))
    try:
        run = Run(*_prepared(lesson, samples, base, processes.device), processes, seed=lesson.seed)
        report = _course(run, lesson, samples, place, processes, should_stop=should_stop, watch=watch)
        tuned = _blend(base, run.result(), lesson.recipe.kept_share)
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(
            f"Too little memory on {processes.device} to train {lesson.package.card.version}."
        ) from error
    return tuned, replace(
        report,
        unchanged=weights.is_equal(tuned, base),
        n_patients=len({case.patient_key for case in samples.new}),
        n_slices=samples.slices,
    )


def check_trainable(package: ModelPackage) -> None:
    """Refuse a model that corrections cannot tune.

    Raises
    ------
    ModelFormatError
        It has several networks, or outputs that do not exclude each other.
    """
    plan, version = package.plan, package.card.version
    if plan.networks > 1:
        raise ModelFormatError(
            f"{version} consists of {plan.networks} networks (folds, or the stages of a cascade); only a "
            "model of one network learns from corrections. Import one fold of one stage to have it learn."
        )
    if plan.region_classes:
        raise ModelFormatError(
            f"{version} finds regions that lie in each other; only a model whose labels exclude each other "
            "learns from corrections."
        )


def _samples(lesson: Lesson, folder: Path, should_stop: ShouldStop) -> Samples | None:
    """Make the cases ready; None: asked to stop."""
    recipe, plan = lesson.recipe, lesson.package.plan
    keep = partial(lessons.keep, plan=plan, folder=folder, balanced=recipe.balanced, should_stop=should_stop)
    kept, repeated = keep(lesson.new), keep(lesson.earlier if recipe.repeats else ())
    if kept is None or repeated is None:
        return None
    new, earlier = _with_slices(kept), _with_slices(repeated)
    if not new:
        raise CorrectionError(f"None of the {len(lesson.new)} cases has a reviewed slice to train on.")
    return Samples(
        new=new,
        earlier=earlier,
        recipe=recipe,
        patch_shape=plan.final.patch_shape,
        mirror_axes=plan.final.mirror_axes,
        classes=plan.classes,
        seed=lesson.seed,
    )


def _with_slices(cases: Sequence[KeptCase]) -> tuple[KeptCase, ...]:
    return tuple(case for case in cases if case.volume.centres)


def _course(
    run: Run,
    lesson: Lesson,
    samples: Samples,
    place: Place,
    processes: Processes,
    *,
    should_stop: ShouldStop,
    watch: Watch,
) -> FitReport:
    labels = {segment.class_index: segment.label for segment in lesson.package.card.segments}
    material = Material(
        training=partial(lessons.batches, samples),
        validation=None,
        labels=tuple(labels[index] for index in range(1, lesson.package.plan.classes)),
    )
    desk = Desk(
        folder=place.folder,
        history_path=place.folder / HISTORY_FILE,
        digest=lesson.digest,
        checkpoint_s=_CHECKPOINT_S,
        should_stop=should_stop,
        watch=watch,
    )
    pace = Pace(epochs=lesson.recipe.epochs, epoch_steps=samples.epoch_steps)
    course = Course(run, material, pace, desk, processes)
    try:
        course.go_on()
    except InputError:  # of a training on another version or other cases, or damaged
        checkpoints.remove(place.folder)
    return course.train()


def _prepared(
    lesson: Lesson, samples: Samples, base: weights.Tensors, device: torch.device
) -> tuple[nn.Module, Method]:
    """Build the network with the current weights, and say how it learns."""
    recipe, package = lesson.recipe, lesson.package
    network_plan = package.plan.final.network
    network = networks.build(network_plan)
    networks.load(network, base)
    network.to(device)
    loss = _loss(recipe, network)
    penalty = _penalty(recipe, network, samples, loss)
    layers = unfreezing.layers_of(network, (network_plan.input_channels, *package.plan.final.patch_shape))
    finish = None
    if recipe.lora is not None:
        lora.attach(network, recipe.lora, seed=lesson.seed)
        finish = lora.merge
    if recipe.learns == "head":
        unfreezing.only_head(layers)
    method = Method(
        loss=loss,
        optimiser=optimiser_of(recipe),
        learning_rate=recipe.learning_rate,
        clip_norm=recipe.clip_norm,
        groups=partial(_groups, recipe, layers),
        thaw=_thaw(recipe, layers),
        penalty=penalty,
        finish=finish,
    )
    return network, method


def _groups(recipe: Recipe, layers: Layers, network: nn.Module) -> Groups:
    return unfreezing.discriminative_rates(layers) if recipe.discriminative else alike(network)


def _thaw(recipe: Recipe, layers: Layers) -> Callable[[nn.Module, float], None] | None:
    if recipe.learns != "unfreezing":
        return None
    schedule = Unfreezing(degree=1 - recipe.unfrozen_at_first)
    return lambda _, done: unfreezing.apply(layers, schedule.fraction(done))


def _loss(recipe: Recipe, network: nn.Module) -> Loss:
    """Make the loss of a recipe; with distillation a copy of the network answers as it does today."""
    of_recipe = LOSSES[recipe.loss]

    def supervised(outputs: Tensor | Sequence[Tensor], batch: Batch) -> Tensor:
        scores = _scores(outputs)
        return of_recipe(scores, batch.labels, weights=batch.weights, known=batch.known)

    if not recipe.distillation:
        return supervised
    teacher = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)

    def with_teacher(outputs: Tensor | Sequence[Tensor], batch: Batch) -> Tensor:
        if batch.known is None or batch.weights is None:
            raise RuntimeError("a batch of corrections says what is known")
        with torch.no_grad():
            answers = _scores(teacher(batch.images))
        held = anchors.distillation_loss(
            _scores(outputs), answers, known=batch.known, weights=batch.weights, temperature=_TEMPERATURE
        )
        return supervised(outputs, batch) + recipe.distillation * held

    return with_teacher


def _penalty(
    recipe: Recipe, network: nn.Module, samples: Samples, loss: Loss
) -> Callable[[nn.Module], Tensor] | None:
    """Put together what holds the weights; None where nothing does."""
    anchor = {name: one.detach().clone() for name, one in network.named_parameters()}
    parts: list[Callable[[nn.Module], Tensor]] = []
    if recipe.proximal:
        parts.append(partial(anchors.proximal_penalty, anchor=anchor, mu=recipe.proximal))
    if recipe.ewc and samples.earlier:
        matters = _fisher(network, samples, loss)
        parts.append(partial(anchors.ewc_penalty, fisher=matters, anchor=anchor, weight=recipe.ewc))
    if not parts:
        return None
    return lambda bare: torch.stack([part(bare) for part in parts]).sum()


def _fisher(network: nn.Module, samples: Samples, loss: Loss) -> weights.Tensors:
    """Measure on the cases learned before what each weight matters for them."""
    device = next(network.parameters()).device
    earlier = replace(samples, new=samples.earlier, earlier=())
    batches = (batch.to(device) for batch in islice(lessons.batches(earlier, 0), _FISHER_BATCHES))
    return anchors.fisher(
        network, batches, lambda net, batch: loss(net(batch.images), batch), limit=_FISHER_BATCHES
    )


def _scores(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    return (outputs if isinstance(outputs, Tensor) else outputs[0]).float()


def _blend(base: weights.Tensors, tuned: weights.Tensors, kept_share: float) -> weights.Tensors:
    """Go only a part of the way from the current weights to the tuned ones."""
    if not kept_share:
        return tuned
    return {
        name: torch.lerp(tensor, base[name], kept_share) if tensor.is_floating_point() else tensor
        for name, tensor in tuned.items()
    }


def forget(folder: Path) -> None:
    """Throw an unfinished tuning away; the kept cases stay."""
    checkpoints.remove(folder)
