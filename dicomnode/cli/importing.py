"""``dicomnode models import``: a package from a model of nnU-Net or MONAI."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from dicomnode.cli.show import JsonOption, console, notes, print_json, table
from dicomnode.ml.imports import card, orientation
from dicomnode.ml.imports.foreign import ImportOptions, Progress
from dicomnode.ml.imports.importer import Imported
from dicomnode.ml.imports.importer import import_model as write_package
from dicomnode.ml.model.package import LABELS_FILE

_MODELS = Path("models")


def import_model(  # noqa: PLR0913, PLR0917  # typer makes an option of each argument
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            exists=True,
            help="A trained nnU-Net v2 model or a MONAI Bundle: its folder, or a zip of it.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the package; default: models/NAME.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the model; default: that of --out, or of its data set.")
    ] = "",
    configuration: Annotated[
        str, typer.Option(help="Of nnU-Net; default: the cascade, else 3d_fullres, 3d_lowres, 2d.")
    ] = "",
    folds: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help='Of nnU-Net: numbers as in "0,1,2", or "all" for the one trained on all cases. Default: '
            "every numbered one that is there.",
        ),
    ] = "",
    checkpoint: Annotated[
        str,
        typer.Option(help="Of nnU-Net: final, best or latest; default: the first of these that is there."),
    ] = "",
    turned: Annotated[
        str,
        typer.Option(
            "--orientation",
            metavar="HAR|acquired|FILE",
            help="How the training images were stored: three letters (where slice, row and column grow "
            "towards), acquired (as they were scanned), or one of these images as NIfTI. Default: HAR, which "
            'is "RAS" in NIfTI.',
        ),
    ] = "",
    modality: Annotated[
        list[str] | None, typer.Option(help="DICOM Modality of the images; may be repeated.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Finished labels.toml; without it, one is drafted."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model package from a model trained with nnU-Net v2 or packed as a MONAI Bundle.

    Nothing in the model is executed: its checkpoint is opened by a process of its own that can read tensors
    and nothing else.
    """
    options = ImportOptions(
        name=name or (out.name if out else None),
        configuration=configuration or None,
        folds=tuple(folds.replace(",", " ").split()),
        checkpoint=checkpoint or None,
        orientation=orientation.read(turned) if turned else None,
        modalities=tuple(modality or ()),
        labels=labels,
    )
    with progress_bars() as progress:
        imported = write_package(
            source, out or _MODELS, options=options, progress=progress, under_its_name=out is None
        )
    if as_json:
        print_json(_facts(imported))
        return
    tell(imported)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show a bar for each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=notes) as bar:
        tasks = {}

        def show(what: str, done: int, steps: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=steps)
            bar.update(tasks[what], completed=done)

        yield show


def _facts(imported: Imported) -> dict[str, object]:
    made = imported.package
    return {
        "version": made.card.version,
        "folder": made.folder,
        "labels": [segment.label for segment in made.card.segments],
        "unknown": imported.unknown,
        "orientation": made.plan.orientation,
        "networks": made.plan.networks,
        "notes": imported.notes,
    }


def tell(imported: Imported) -> None:
    """Print what came of an import, and what is left to do."""
    made = imported.package
    unknown = {one.class_index: one.name for one in imported.unknown}
    rows = (
        (one.segment_number, one.label, one.type.meaning if one.class_index not in unknown else "to complete")
        for one in made.card.segments
    )
    console.print(table(f"{made.card.version} in {made.folder}", ("segment", "label", "concept"), rows))
    console.print(f"{made.plan.networks} network(s); {card.in_words(made.plan)}.", highlight=False)
    for note in imported.notes:
        console.print(f"[yellow]note[/] {note}", highlight=False)
    if unknown:
        console.print(
            f"[yellow]to do[/] {len(unknown)} of {len(made.card.segments)} labels have no code: complete "
            f"{made.folder / LABELS_FILE} before the model is used.",
            highlight=False,
        )
