"""``dicomnode pretrain``: a model package from labelled images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from dicomnode import node
from dicomnode.cli.show import ConfigOption, JsonOption, console, notes, print_json, table
from dicomnode.cli.training_plans import PlanWish, planner_of
from dicomnode.cli.training_watch import PICTURE_FILE, Wall, watching
from dicomnode.domain import Segment
from dicomnode.errors import ConfigError
from dicomnode.ml.model import package
from dicomnode.ml.planning.nnunet_planner import PresetName
from dicomnode.ml.planning.planned import Aim
from dicomnode.ml.planning.planner import PlannerName, Rules
from dicomnode.ml.training.course import HISTORY_FILE
from dicomnode.ml.training.dataset import LabelledFolder, open_folder
from dicomnode.ml.training.order import Machine, Order, PretrainRecipe
from dicomnode.ml.training.pace import OptimiserName
from dicomnode.ml.training.pretrain import PretrainReport, begin_anew
from dicomnode.ml.training.pretrain import pretrain as train_model
from dicomnode.ml.training.processes import Processes, joined
from dicomnode.pipeline.labelled import labelled_cases
from dicomnode.settings import load_node_settings

STOPPED = 130
"""Exit status after Ctrl-C, as of a shell."""
MANY_WORKERS = 12
_USUAL = PretrainRecipe()

SOURCE = "What it learns from"
PLAN = "How it is planned"
COURSE = "How it is trained"
MACHINE = "With what"


def pretrain(  # noqa: PLR0913, PLR0917  # typer makes an option of each argument
    out: Annotated[Path, typer.Option("--out", help="Folder of the model package to write.")],
    labels: Annotated[
        Path, typer.Option("--labels", exists=True, dir_okay=False, help="labels.toml of the model.")
    ],
    dataset: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Folder with images/ and labels/ as NIfTI, or a raw folder of nnU-Net or the Decathlon.",
        ),
    ] = None,
    casebook: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="In place of a folder: the corrected cases that this site has of a model.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model; default: the name of the folder.")] = "",
    modality: Annotated[
        list[str] | None,
        typer.Option(
            help="Modality of the images; may be repeated. Default: that of dataset.json, else MR.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    about: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Markdown for the card: data, licence, limits."),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Package of an earlier run on the same data set and seed, whose weights come first.",
            rich_help_panel=COURSE,
        ),
    ] = None,
    planner: Annotated[
        PlannerName, typer.Option(help="Whose rules choose the network.", rich_help_panel=PLAN)
    ] = "nnunet",
    residual: Annotated[
        PresetName,
        typer.Option(help="Of nnU-Net: residual encoder of size M, L or XL, or plain.", rich_help_panel=PLAN),
    ] = "plain",
    memory_gb: Annotated[
        float | None,
        typer.Option(min=0, help="GPU memory to plan for; 0: no GPU (dante only).", rich_help_panel=PLAN),
    ] = None,
    configuration: Annotated[
        str | None,
        typer.Option(
            help="3d_fullres, 3d_lowres or 2d. Default: 3d_fullres where there is one.",
            rich_help_panel=PLAN,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A planning file, or plan.json of a model, in place of a planner.",
            rich_help_panel=PLAN,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=COURSE)] = _USUAL.epochs,
    epoch_steps: Annotated[
        int, typer.Option(min=1, help="Batches in an epoch.", rich_help_panel=COURSE)
    ] = _USUAL.epoch_steps,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Train so long in place of --epochs.", rich_help_panel=COURSE),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Default: as planned.", rich_help_panel=COURSE)
    ] = None,
    optimiser: Annotated[
        OptimiserName,
        typer.Option(help="sgd as nnU-Net, adamw with a cosine as Dante.", rich_help_panel=COURSE),
    ] = _USUAL.optimiser,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help="Highest; default: 0.01 for sgd, 0.001 for adamw.", rich_help_panel=COURSE),
    ] = None,
    average: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99999,
            metavar="DECAY",
            help="Keep the running mean of the weights, such as 0.998; default: the last weights.",
            rich_help_panel=COURSE,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of split, first weights and samples.", rich_help_panel=COURSE)
    ] = 0,
    hold_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share only measured.", rich_help_panel=SOURCE)
    ] = _USUAL.hold_out_fraction,
    validation: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share looked at meanwhile.", rich_help_panel=SOURCE)
    ] = _USUAL.validation_fraction,
    resume: Annotated[
        bool, typer.Option(help="Go on with an unfinished training in --out.", rich_help_panel=COURSE)
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=MACHINE)] = "auto",
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            "--bfloat16/--no-bfloat16",
            help="Convolve in bfloat16. Default: on a GPU. Twice as fast on processors that have it.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make samples.", rich_help_panel=MACHINE)
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, help="Between two checkpoints.", rich_help_panel=MACHINE)
    ] = 5.0,
    cache: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder for prepared cases that stays, for further trainings.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Write for TensorBoard, too.", rich_help_panel=MACHINE),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network from nothing on labelled images, and write it as a model package.

    A seeded part of the cases is kept out of everything and gives the figures of the card. A training that
    was cut off, by Ctrl-C or worse, goes on when the same command is given again. For several GPUs:
    `torchrun --nproc-per-node 2 -m dicomnode pretrain ...`.
    """
    segments = package.read_labels(labels)
    learned = _learned(dataset, casebook, segments, config)
    rules = Rules(planner=planner, preset=residual, memory_gb=memory_gb)
    wish = PlanWish(rules=rules, configuration=configuration, file=plan)
    with joined(device) as processes:
        recipe = PretrainRecipe(
            optimiser=optimiser,
            learning_rate=learning_rate,
            epochs=epochs,
            epoch_steps=epoch_steps,
            minutes=minutes,
            batch_size=batch_size,
            average_decay=average,
            bfloat16=_has_bfloat16(processes) if bfloat16 is None else bfloat16,
            seed=seed,
            hold_out_fraction=hold_out,
            validation_fraction=validation,
        )
        order = _order(learned, segments, recipe, wish, name=name or out.name, modality=modality)
        order = replace(order, about=about.read_text("utf-8") if about else "", start_from=start_from)
        machine = Machine(
            processes=processes,
            workers=_workers(processes) if workers is None else workers,
            threads=len(os.sched_getaffinity(0)),
            checkpoint_s=60 * checkpoint_minutes,
            cache=cache,
        )
        if not resume and processes.is_first:
            begin_anew(out)
        report = _train(order, out, machine, tensorboard=tensorboard)
    if report is not None:
        _print(report, out, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learned:
    """What a model is to learn from."""

    folder: LabelledFolder
    has_unknown: bool
    modality: str | None  # as the folder says


def _learned(
    dataset: Path | None, casebook: str | None, segments: Sequence[Segment], config: Path | None
) -> _Learned:
    if (dataset is None) == (casebook is None):
        raise ConfigError("give either a folder of labelled images, or --casebook MODEL")
    if casebook is not None:
        with node.opened_tools(load_node_settings(config)) as tools:
            cases = labelled_cases(tools.casebook, tools.current_card(casebook), segments=segments)
            modality = tools.current_package(casebook).plan.modalities[0]
        folder = LabelledFolder(cases=cases, raw=None)
        return _Learned(folder=folder, has_unknown=True, modality=modality)
    folder = open_folder(dataset or Path(), classes=len(segments) + 1)
    if folder.raw is None:
        return _Learned(folder=folder, has_unknown=False, modality=None)
    _say_what_names_mean(folder.raw.names, segments)
    return _Learned(folder=folder, has_unknown=folder.raw.ignored is not None, modality=folder.raw.modality)


def _say_what_names_mean(names: Sequence[tuple[int, str]], segments: Sequence[Segment]) -> None:
    ours = {segment.class_index: segment.label for segment in segments}
    for index, theirs in names:
        if ours[index].casefold() != theirs.casefold():
            notes.print(f"class {index}: {theirs!r} in dataset.json, {ours[index]!r} in the label table")


def _order(
    learned: _Learned,
    segments: tuple[Segment, ...],
    recipe: PretrainRecipe,
    wish: PlanWish,
    *,
    name: str,
    modality: list[str] | None,
) -> Order:
    raw = learned.folder.raw
    aim = Aim(
        name=name,
        classes=len(segments) + 1,
        region_classes=raw.region_classes if raw else (),
        has_unknown=learned.has_unknown,
    )
    modalities = tuple(modality or [learned.modality or "MR"])
    planner, words = planner_of(wish, aim, modalities=modalities)
    return Order(
        name=name,
        segments=segments,
        sources=learned.folder.cases,
        planner=planner,
        planner_words=words,
        recipe=recipe,
        regions=raw.regions if raw else (),
    )


def _train(order: Order, out: Path, machine: Machine, *, tensorboard: Path | None) -> PretrainReport | None:
    is_first = machine.processes.is_first
    epochs = None if order.recipe.minutes is not None else order.recipe.epochs
    wall = Wall(name=order.name, out=out, epochs=epochs, tensorboard=tensorboard, is_shown=is_first)
    with watching(wall) as observer:
        report = train_model(order, out, machine=machine, observer=observer)
        was_stopped = observer.should_stop()
    if report is None and is_first and was_stopped:
        notes.print("Stopped; the same command goes on with it.")
        raise typer.Exit(STOPPED)
    return report


def _workers(processes: Processes) -> int:
    """One beside a training on the CPU; as many as the processors allow beside one on a GPU."""
    if processes.device.type == "cpu":
        return 1
    return max(1, min(MANY_WORKERS, (len(os.sched_getaffinity(0)) - 1) // processes.count))


def _has_bfloat16(processes: Processes) -> bool:
    return processes.device.type == "cuda" and torch.cuda.is_bf16_supported()


def _print(report: PretrainReport, out: Path, *, as_json: bool) -> None:
    means = _mean_dice(report)
    if as_json:
        print_json({"version": report.package.card.version, "hold_out_dice": means, "folder": out})
        return
    rows = ((label, value, len(report.hold_out)) for label, value in means.items())
    console.print(table(f"{report.package.card.version} on its hold-out", ("label", "Dice", "cases"), rows))
    console.print(f"course of the training: {out / HISTORY_FILE}, {out / PICTURE_FILE}", soft_wrap=True)


def _mean_dice(report: PretrainReport) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for case in report.hold_out:
        for label in case.labels:
            scores.setdefault(label.label, []).append(label.dice)
    return {label: sum(values) / len(values) for label, values in scores.items()}
