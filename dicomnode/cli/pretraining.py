"""``dicomnode pretrain``: a model package from a folder of labelled images."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dicomnode.cli.show import JsonOption, console, notes, print_json, table
from dicomnode.ml.training.pretrain import REFINEMENT, PretrainRecipe, PretrainReport
from dicomnode.ml.training.pretrain import pretrain as train_model


def pretrain(  # noqa: PLR0913, PLR0917  # typer makes an option of each argument
    dataset: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder with images/ and labels/ as NIfTI.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the model package to write.")],
    labels: Annotated[
        Path, typer.Option("--labels", exists=True, dir_okay=False, help="labels.toml of the model.")
    ],
    name: Annotated[str, typer.Option(help="Name of the model; default: the name of the folder.")] = "",
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Passes over the training cases; default: {PretrainRecipe().epochs}, "
            f"or {REFINEMENT.epochs} with --start-from.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of split, first weights and augmentation.")] = 0,
    modality: Annotated[
        list[str] | None, typer.Option(help="Modality of the images; may be repeated. Default: MR.")
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
            help="Package of an earlier run on the same data set and seed: go on from its weights, with "
            "smaller steps and milder augmentation.",
        ),
    ] = None,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Convolve in bfloat16; faster where the processor has it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a 3-D U-Net from a folder of labelled NIfTI images, and write it as a model package.

    A seeded part of the cases is kept out of everything and gives the figures of the card.
    """
    usual = PretrainRecipe() if start_from is None else REFINEMENT
    recipe = replace(
        usual,
        epochs=epochs or usual.epochs,
        seed=seed,
        modalities=tuple(modality or ["MR"]),
        about=about.read_text(encoding="utf-8") if about else "",
        start_from=start_from,
        bfloat16=bfloat16,
    )
    report = _train(dataset, out, labels, name=name or out.name, recipe=recipe)
    means = _mean_dice(report)
    if as_json:
        print_json({"version": report.package.card.version, "hold_out_dice": means, "folder": out})
        return
    rows = ((label, value, len(report.hold_out)) for label, value in means.items())
    console.print(table(f"{report.package.card.version} on its hold-out", ("label", "Dice", "cases"), rows))


def _train(dataset: Path, out: Path, labels: Path, *, name: str, recipe: PretrainRecipe) -> PretrainReport:
    """Train with a bar that shows epoch, loss and the time left."""
    bar = Progress(
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=notes,
    )
    with bar:
        task = bar.add_task("training", total=recipe.epochs, loss=float("nan"))
        return train_model(
            dataset,
            out,
            name=name,
            labels_file=labels,
            recipe=recipe,
            progress=lambda epoch, _, loss, __: bar.update(task, completed=epoch, loss=loss),
        )


def _mean_dice(report: PretrainReport) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for case in report.hold_out:
        for label in case.labels:
            scores.setdefault(label.label, []).append(label.dice)
    return {label: sum(values) / len(values) for label, values in scores.items()}
