"""``dicomnode models pull``: a model from the web, beside the other packages."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dicomnode.cli import importing
from dicomnode.cli.show import ConfigOption, JsonOption, console, notes, print_json
from dicomnode.domain import Sha256
from dicomnode.ml.imports.foreign import Progress as ImportReport
from dicomnode.pipeline import pull as story
from dicomnode.pipeline.download import Progress as Report
from dicomnode.pipeline.download import Source
from dicomnode.pipeline.https import shown
from dicomnode.pipeline.pull import Places, Pulled, Unconfirmed
from dicomnode.settings import load_node_settings


def _digest(text: str) -> str:
    found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})", text.strip().lower())
    if found is None:
        raise typer.BadParameter("a SHA-256 has 64 hexadecimal digits")
    return found[1]


UrlArgument = Annotated[
    str,
    typer.Argument(help="https address of a zip: a package, or a trained nnU-Net or MONAI bundle."),
]
DigestOption = Annotated[
    str | None,
    typer.Option(
        "--sha256",
        parser=_digest,
        metavar="HEX",
        help="SHA-256 of the zip as its publisher states it. Without it the zip is fetched and its digest "
        "printed, but it is not opened.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the package to write; default: a folder of the model's name beside the others.",
    ),
]
AuthoritiesOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="Certificate authorities to trust beside the usual ones, in PEM form.",
    ),
]


def pull(
    url: UrlArgument,
    sha256: DigestOption = None,
    out: OutOption = None,
    ca_file: AuthoritiesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model over HTTPS, check its digest, and put it beside the other packages.

    A fetch that was cut goes on where it stopped. A model that is there already is not fetched again.
    """
    settings = load_node_settings(config)
    source = Source(url=url, sha256=Sha256(sha256) if sha256 else None, ca_file=ca_file)
    places = Places(downloads=settings.downloads_dir, packages=settings.packages_dir, out=out)
    with _bars(shown(url).rpartition("/")[2] or "model") as (progress, import_progress):
        result = story.pull(source, places, progress=progress, import_progress=import_progress)
    if as_json:
        _print_as_json(result)
    else:
        _print(result)
    if isinstance(result, Unconfirmed):
        raise typer.Exit(1)  # there is no new model: a script must notice


@contextmanager
def _bars(what: str) -> Iterator[tuple[Report, ImportReport]]:
    """Show how much has come, how fast, and how long it will take; after that, the bars of an import."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=notes,
    )
    tasks: list[TaskID] = []
    later: list[ImportReport] = []
    with ExitStack() as stack:
        stack.enter_context(bar)

        def fetched(here: int, in_all: int | None) -> None:
            if not tasks:  # what an earlier call fetched does not count for the speed
                tasks.append(bar.add_task(what, completed=here))
            bar.update(tasks[0], completed=here, total=in_all)

        def imported(step: str, done: int, steps: int) -> None:
            if not later:
                bar.stop()
                later.append(stack.enter_context(importing.progress_bars()))
            later[0](step, done, steps)

        yield fetched, imported


def _print(result: Pulled | Unconfirmed) -> None:
    if isinstance(result, Unconfirmed):
        console.print(f"Fetched and not opened: {result.path}. Its SHA-256 is", soft_wrap=True)
        console.print(f"[bold]{result.sha256}[/]", soft_wrap=True)
        console.print(
            "Compare it with the one that the publisher states. If it is the same, repeat the command with\n"
            f"--sha256 {result.sha256}: nothing is fetched again.",
            soft_wrap=True,
        )
    elif result.imported is not None:
        importing.tell(result.imported)
        console.print(
            f"To import it with other options, give `dicomnode models import` {result.archive}",
            soft_wrap=True,
        )
    else:
        state = "was there already" if result.was_there else "is ready"
        console.print(
            f"[bold]{result.package.card.version}[/] {state}: {result.package.folder}", soft_wrap=True
        )


def _print_as_json(result: Pulled | Unconfirmed) -> None:
    if isinstance(result, Unconfirmed):
        print_json({"sha256": result.sha256, "opened": False, "file": result.path})
        return
    print_json(
        {
            "sha256": result.sha256,
            "opened": True,
            "version": result.package.card.version,
            "folder": result.package.folder,
            "was_there": result.was_there,
            "fetched_bytes": result.fetched_bytes,
            "unknown": result.imported.unknown if result.imported else (),
            "notes": result.imported.notes if result.imported else (),
        }
    )
