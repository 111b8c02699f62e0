"""How a person names a version of a model, and how one is told what stands about it."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.markup import escape

from dicomnode.cli.show import console
from dicomnode.errors import ModelFormatError
from dicomnode.store import Store
from dicomnode.store.records import ModelLock, ModelRecord

VersionArgument = Annotated[
    str, typer.Argument(help="A version as `models list` prints it; its first characters are enough.")
]
ByOption = Annotated[str, typer.Option(help="Who decided; kept in the audit log.", envvar="USER")]


def find_version(store: Store, start: str) -> ModelRecord:
    """The one version that begins so.

    Raises
    ------
    ModelFormatError
        No version does, or several do.
    """
    known = [record for name in store.models.names() for record in store.models.history(name)]
    found = [
        record for record in known if start and record.version.startswith((start, f"{record.name}@{start}"))
    ]
    if len(found) != 1:
        what = "no version" if not found else f"{len(found)} versions"
        raise ModelFormatError(
            f"{what} at this site begin(s) with {start!r}; `dicomnode models list` shows all"
        )
    return found[0]


def tell_locks(locks: Iterable[ModelLock]) -> None:
    """Say of each lock who made it, why and when; nothing where there is none."""
    for lock in locks:
        console.print(
            f"[bold yellow]lock:[/] {escape(lock.in_words)}, since {lock.at.astimezone():%Y-%m-%d %H:%M}: "
            f"only a person changes which version is in use",
            soft_wrap=True,
            highlight=False,
        )


def tell_advice(records: Iterable[ModelRecord]) -> None:
    """Say what a person is advised to do; nothing where nothing is."""
    for record in records:
        if record.advice:
            words = f"[bold yellow]advice:[/] {escape(record.version)}: {escape(record.advice)}"
            console.print(words, soft_wrap=True, highlight=False)
