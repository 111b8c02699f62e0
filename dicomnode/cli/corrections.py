"""``dicomnode corrections``: what came back from the readers."""

from typing import Annotated

import typer

from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json, table
from dicomnode.settings import load_node_settings
from dicomnode.site import opened_store
from dicomnode.store.records import CorrectionRecord

app = typer.Typer(no_args_is_help=True, help="List what came back from the readers and what it taught.")


@app.callback()
def _group() -> None:
    """Keep `list` a command of its own; typer would fold a group of one command into the group."""


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List received segmentations: what each was recognised as, and its agreement with our prediction."""
    with opened_store(load_node_settings(config)) as store:
        records = store.corrections.list(limit=limit)
    if as_json:
        print_json(records)
        return
    columns = (
        "received",
        "recognised as",
        "series",
        "label: Dice, edited slices",
        "case",
        "split",
        "trained in",
    )
    console.print(table("Corrections", columns, (_row(record) for record in records)))


def _row(record: CorrectionRecord) -> tuple[object, ...]:
    scores = "\n".join(f"{s.label}: {s.dice:.3f}, {len(s.edited_slices)}" for s in record.scores)
    return (
        record.created_at,
        record.recognition,
        record.source_series_uid,
        scores or "; ".join(record.reasons),
        record.case_id,
        record.split,
        record.trained_in,
    )
