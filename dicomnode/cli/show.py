"""What commands print: tables for people, JSON for scripts, and the options that every command shares."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 120
console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
notes = Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="DICOMNODE_CONFIG",
        metavar="FILE",
        help="TOML file of this process; without it the embedded defaults hold.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]


def print_json(value: object) -> None:
    """Print a record, or a list or mapping of records, as JSON on standard output."""
    json.dump(value, sys.stdout, default=_plain, indent=2)
    sys.stdout.write("\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose cells are turned into words: times in local time, None and empty as a dash."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(_words(cell) for cell in row))
    return made


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def _words(cell: object) -> str:
    if cell is None or cell == "":
        return "–"
    if isinstance(cell, datetime):
        return f"{cell.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return str(cell)
