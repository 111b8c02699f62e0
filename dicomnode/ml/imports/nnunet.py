"""A model trained with nnU-Net v2, as its results folder or an exported zip holds it, in our terms.

``Dataset…/TRAINER__PLANS__CONFIGURATION/`` with ``plans.json``, ``dataset.json`` and a folder for each fold.
The plans decide all; nothing in the folder is executed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports import checkpoint
from dicomnode.ml.imports.checkpoint import Checkpoint
from dicomnode.ml.imports.foreign import ForeignModel, ImportOptions, Progress, family_name, fitted
from dicomnode.ml.imports.nnunet_dataset import DATASET_FILE, DataSet, read_dataset
from dicomnode.ml.imports.nnunet_folders import Fold, Trained, beside, choose, find, folds
from dicomnode.ml.imports.nnunet_plans import (
    DEFAULT_RESAMPLING,
    Configuration,
    Plans,
    configuration,
    fixed_orientation,
    network,
    read_plans,
)
from dicomnode.ml.imports.nnunet_stage import stage
from dicomnode.ml.imports.orientation import ASSUMED
from dicomnode.ml.model.network import prefixes
from dicomnode.ml.model.plan import Plan, Stage, plan_error
from dicomnode.weights import Tensors

_STOCK_TRAINER = "nnUNetTrainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One configuration on disk, and what its descriptions say."""

    trained: Trained
    plans: Plans
    data: DataSet
    folds: tuple[Fold, ...]
    name: str  # of the configuration
    found: Configuration
    input_channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """A configuration with the content of its checkpoints."""

    source: _Source
    checkpoints: tuple[Checkpoint, ...]

    @property
    def trainer(self) -> str:
        """Name of the class that trained it."""
        return self.checkpoints[0].facts.trainer or self.source.trained.trainer


def read(folder: Path, scratch: Path, *, options: ImportOptions, progress: Progress) -> ForeignModel:
    """Read a trained model.

    Parameters
    ----------
    folder
        Of one configuration, or one with several of them inside.
    scratch
        Empty folder; the weights lie in files there until they are written elsewhere.

    Raises
    ------
    ModelFormatError
        Something is missing or damaged, or the model needs what the node has not: another network, several
        input channels, an unknown step of preprocessing. The message says what, and what to do.
    """
    sources = _sources(choose(find(folder), options.configuration), scratch, options)
    for source in sources:  # what cannot be imported is told before minutes of reading
        _stage(source, trainer=source.trained.trainer, mirror_axes=())
    passes = [_read_pass(source, scratch, progress) for source in sources]
    plan = _plan(passes, options)
    last = passes[-1].source
    return ForeignModel(
        plan=plan,
        tensors=_tensors(plan, passes),
        class_names=last.data.class_names,
        data_set=last.plans.dataset_name,
        facts=tuple(_facts(passes)),
        notes=tuple(_notes(passes, options)),
    )


def _sources(chosen: Trained, scratch: Path, options: ImportOptions) -> tuple[_Source, ...]:
    """Find what a model consists of: one configuration, or the two of a cascade."""
    last = _source(chosen, scratch, options)
    if last.found.previous_stage is None:
        return (last,)
    first = _source(beside(chosen, last.found.previous_stage), scratch, options)
    if first.found.previous_stage is not None:
        raise ModelFormatError(f"{last.name} is the third of its cascade; two stages are known here")
    one, other = first.data, last.data
    if (one.outputs, one.values, one.region_classes) != (other.outputs, other.values, other.region_classes):
        raise ModelFormatError(f"{first.name} and {last.name} have different labels in their {DATASET_FILE}")
    return first, replace(last, input_channels=1 + len(last.data.values))


def _source(trained: Trained, scratch: Path, options: ImportOptions) -> _Source:
    plans, data = read_plans(trained.folder), read_dataset(trained.folder)
    if len(data.channels) > 1:
        raise ModelFormatError(
            f"this model takes {len(data.channels)} images at once ({', '.join(data.channels)}); the node "
            "gives a model one series. Only models of one channel are imported"
        )
    chosen = folds(trained, options.folds, options.checkpoint)
    name = trained.configuration or options.configuration or _told_configuration(chosen[0], scratch)
    return _Source(
        trained=trained,
        plans=plans,
        data=data,
        folds=chosen,
        name=name,
        found=configuration(plans, name),
        input_channels=1,
    )


def _told_configuration(fold: Fold, scratch: Path) -> str:
    """Ask a checkpoint for the configuration that its folder does not name."""
    told = checkpoint.read(fold.path, _place(scratch, "asked")).facts.configuration
    if told is None:
        raise ModelFormatError(f"{fold.path} does not say of which configuration it is; give --configuration")
    return told


def _read_pass(source: _Source, scratch: Path, progress: Progress) -> _Pass:
    shown = source.trained.folder.name
    opened: list[Checkpoint] = []
    for done, fold in enumerate(source.folds):
        progress(f"reading {shown}", done, len(source.folds))
        opened.append(checkpoint.read(fold.path, _place(scratch, f"{source.name}-{fold.name}")))
    progress(f"reading {shown}", len(source.folds), len(source.folds))
    for fold, one in zip(source.folds, opened, strict=True):
        told = one.facts.configuration
        if told not in {None, source.name} or one.facts.trainer != opened[0].facts.trainer:
            raise ModelFormatError(
                f"fold {fold.name} of {shown} was trained as {told} by {one.facts.trainer}; "
                f"{source.name} by {opened[0].facts.trainer} is expected"
            )
    return _Pass(source=source, checkpoints=tuple(opened))


def _place(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


def _stage(source: _Source, *, trainer: str, mirror_axes: tuple[int, ...]) -> Stage:
    net = network(
        source.found, input_channels=source.input_channels, outputs=source.data.outputs, trainer=trainer
    )
    return stage(
        source.name,
        source.found,
        net,
        intensities=source.plans.foreground_intensity_properties_per_channel,
        mirror_axes=mirror_axes,
        members=len(source.folds),
    )


def _plan(passes: Sequence[_Pass], options: ImportOptions) -> Plan:
    last = passes[-1].source
    stages = tuple(
        _stage(one.source, trainer=one.trainer, mirror_axes=one.checkpoints[0].facts.mirror_axes or ())
        for one in passes
    )
    try:
        return Plan(
            name=options.name or family_name(last.plans.dataset_name),
            modalities=options.modalities or last.data.modalities,
            orientation=options.orientation or fixed_orientation(last.plans) or ASSUMED,
            axis_order=last.plans.transpose_forward,
            crop_to_nonzero=True,
            region_classes=last.data.region_classes,
            stages=stages,
        )
    except ValidationError as error:
        raise plan_error(error) from error


def _tensors(plan: Plan, passes: Sequence[_Pass]) -> Tensors:
    opened = [
        (one, fold, content)
        for one in passes
        for fold, content in zip(one.source.folds, one.checkpoints, strict=True)
    ]
    tensors: Tensors = {}
    for (prefix, net), (one, fold, content) in zip(prefixes(plan), opened, strict=True):
        what = f"fold {fold.name} of {one.source.trained.folder.name}, trained by {one.trainer}"
        tensors |= {prefix + name: t for name, t in fitted(content.tensors, net, what=what).items()}
    return tensors


def _facts(passes: Sequence[_Pass]) -> Iterator[tuple[str, str]]:
    last = passes[-1].source
    yield "Program", "nnU-Net v2"
    yield "Data set", last.plans.dataset_name
    yield "Channel", ", ".join(last.data.channels) or "not named"
    yield "Plans", f"{last.plans.plans_name} ({last.plans.experiment_planner_used or 'planner not named'})"
    for one in passes:
        epochs = [str(content.facts.epoch) for content in one.checkpoints if content.facts.epoch is not None]
        trained = f", after {', '.join(epochs)} epochs" if epochs else ""
        names = ", ".join(fold.name for fold in one.source.folds)
        file = one.source.folds[0].path.name
        yield f"Configuration {one.source.name}", f"{one.trainer}, fold {names}, {file}{trained}"
    licence = last.data.licence or "not known: to be completed before the model is passed on"
    yield "Licence of the data", licence


def _notes(passes: Sequence[_Pass], options: ImportOptions) -> Iterator[str]:
    last = passes[-1].source
    if not (options.orientation or fixed_orientation(last.plans)):
        yield (
            f"nnU-Net keeps no orientation: it was assumed that the training images were stored as {ASSUMED} "
            '(NIfTI "RAS"). If they were not, import again with --orientation and one of these images.'
        )
    if not (options.modalities or last.data.modalities):
        channel = ", ".join(last.data.channels)
        yield f"The modality is not known from the channel {channel!r}; give --modality."
    if last.data.values != tuple(range(1, len(last.data.values) + 1)):
        yield f"The labels had the values {', '.join(map(str, last.data.values))}; here they are 1, 2, ... ."
    if last.data.region_classes:
        yield (
            "The outputs are regions that lie in one another; each label keeps what no later region covers, "
            "which its name may not say."
        )
    for trainer in sorted({one.trainer for one in passes} - {_STOCK_TRAINER}):
        yield f"{trainer} is not nnU-Net's usual trainer; its network was taken to be the one of the plans."
    if len(passes) == 2 and not _has_usual_seg_resampling(last.found):
        yield "The labels of the first stage reach the second by linear interpolation, not as in the plans."


def _has_usual_seg_resampling(found: Configuration) -> bool:
    order = found.resampling_fn_seg_kwargs.get("order", 1)
    return found.resampling_fn_seg == DEFAULT_RESAMPLING and order == 1
