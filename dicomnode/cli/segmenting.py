"""``dicomnode segment``: the series of a folder, without a PACS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dicomnode import node
from dicomnode.cli.show import ConfigOption, JsonOption, console, notes, print_json, table
from dicomnode.conditions import Conditions, Range
from dicomnode.domain import ResultForm
from dicomnode.pipeline.folder import FolderOutcome, FolderWork, segment_folder
from dicomnode.pipeline.segment import Inference
from dicomnode.settings import RouteSettings, load_node_settings
from dicomnode.site import utc_now

ANY_SERIES = RouteSettings(
    name="chosen", model="chosen", where=Conditions(modality=(), kind=(), slices=Range(min=2))
)


def segment(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of DICOM images.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results and pictures.")],
    result: Annotated[
        list[ResultForm] | None,
        typer.Option("--result", help="Form of result to write; may be given several times. Default: seg."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Model package for every series, whatever the routes say.",
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option("--mirror/--no-mirror", help="Average mirrored passes: up to 8 times the work."),
    ] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: node.threads of the configuration.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment every series in a folder, without a PACS and without a running node.

    For each series the results in the forms asked for and a PNG picture are written; a series that cannot be
    segmented is named with the reason. Where a route takes only the best series of a study, that is the best
    in the folder. Exit status 0 when at least one series was segmented.
    """
    settings = load_node_settings(config)
    node.use_threads(threads or settings.node.threads)
    with _bar() as show:
        work = FolderWork(
            routes=settings.routes if model is None else (ANY_SERIES,),
            model_named=node.package_models(settings, chosen=model),
            results=tuple(result or (ResultForm.SEG,)),
            now=utc_now(),
            how=Inference(mirror=mirror, progress=show),
        )
        outcomes = segment_folder(folder, out, work=work)
    if as_json:
        print_json(outcomes)
    else:
        columns = ("series", "label", "voxels", "ml", "seconds", "note")
        console.print(table("Segmented", columns, (row for o in outcomes for row in _outcome_rows(o))))
        for outcome in outcomes:
            for form, path in outcome.objects:
                console.print(f"{form}: {path}", soft_wrap=True)
    if not any(outcome.picture_path for outcome in outcomes):
        raise typer.Exit(1)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Show how far the network has come with the series at hand, and the time left."""
    columns = (TextColumn("segmenting"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task("segmenting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _outcome_rows(outcome: FolderOutcome) -> list[tuple[object, ...]]:
    if outcome.picture_path is None:
        return [(outcome.series_instance_uid, None, None, None, None, outcome.reason)]
    return [
        (outcome.series_instance_uid, label, voxels, f"{ml:.2f}", f"{outcome.seconds:.1f}", outcome.reason)
        for (label, voxels), (_, ml) in zip(outcome.voxels, outcome.millilitres, strict=True)
    ]
