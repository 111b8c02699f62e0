"""``dicomnode corrections``: what came back from the readers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dicomnode import node
from dicomnode.cli.feedback import feedback
from dicomnode.cli.show import ConfigOption, JsonOption, console, notes, print_json, table
from dicomnode.domain import CorrectionState, JobKind, JobState
from dicomnode.errors import InputError
from dicomnode.pipeline import review
from dicomnode.pipeline.review import LabelReview, Review
from dicomnode.settings import load_node_settings
from dicomnode.site import opened_store
from dicomnode.store import Store
from dicomnode.store.records import CorrectionRecord, JobRow

app = typer.Typer(
    no_args_is_help=True,
    help="What came back from the readers: look at it, decide about what is held, take it back.",
)
app.command("feedback")(feedback)

NumberArgument = Annotated[int, typer.Argument(metavar="NUMBER", help="As `corrections list` shows it.")]
ByOption = Annotated[str, typer.Option(help="Who decided; kept in the audit log.", envvar="USER")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 50,
    state: Annotated[
        CorrectionState | None, typer.Option(help="Only these; `held`: those that wait for you.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List received segmentations: what each was recognised as, what became of it, and how it differs.

    Below them: objects that wait for their images, and those that could not be read, with the reason.
    """
    with opened_store(load_node_settings(config)) as store:
        records = store.corrections.list(limit=limit, state=state)
        unread = [] if state else _unread(store, limit)
    if as_json:
        print_json(records)
        return
    columns = ("number", "received", "recognised as", "state", "series", "labels", "split", "trained in")
    console.print(table("Corrections", columns, (_row(record) for record in records)))
    if unread:
        rows = ((row.id, row.created_at, row.state, escape(row.reason)) for row in unread)
        console.print(table("Not read", ("job", "received", "state", "reason"), rows))
    if any(record.state is CorrectionState.HELD for record in records):
        console.print(
            "Held corrections wait for a person: `dicomnode corrections show NUMBER`, then accept or refuse."
        )


@app.command()
def show(
    number: NumberArgument,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to put the picture (PNG).")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one correction: each label beside our result, the slices edited, and a picture of the difference.

    The picture shows the patient's anatomy; without --picture it goes into the site's data folder.
    """
    settings = load_node_settings(config)
    with node.opened_tools(settings) as tools:
        found = review.look(number, tools, picture_path=picture)
    if as_json:
        print_json(found)
        return
    _print_review(found)


@app.command()
def accept(
    number: NumberArgument,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="Its slices are in reverse order: turn them.")
    ] = False,
    by: ByOption = "",
    config: ConfigOption = None,
) -> None:
    """Let a correction that is held count as a training case; look at it first (`corrections show`)."""
    settings = load_node_settings(config)
    with node.opened_tools(settings) as tools:
        digest = review.accept(number, tools, by=by, mirrored=mirrored)
        row = node.run_job(settings, tools, JobKind.INGEST_CORRECTION, digest)
        record = review.get(number, tools)
    _print_end(row, f"correction {number} is {record.state}")


@app.command()
def refuse(number: NumberArgument, by: ByOption = "", config: ConfigOption = None) -> None:
    """Let a correction that is held never count; it stays on record."""
    settings = load_node_settings(config)
    with node.opened_tools(settings) as tools:
        review.refuse(number, tools, by=by)
    console.print(f"correction {number} is refused")


@app.command()
def withdraw(number: NumberArgument, by: ByOption = "", config: ConfigOption = None) -> None:
    """Take back a correction that was kept: its training case is made anew from the others, or leaves.

    Model versions that learned from it stay as they are; `models rollback` puts an earlier one into use.
    """
    settings = load_node_settings(config)
    with node.opened_tools(settings) as tools:
        record = review.get(number, tools)
        digest = review.withdraw(number, tools, by=by)
        row = node.run_job(settings, tools, JobKind.INGEST_CORRECTION, digest)
    _print_end(row, f"correction {number} is withdrawn")
    if record.trained_in:
        notes.print(f"{record.trained_in} learned from it; see `dicomnode models rollback --help`")


def _print_end(row: JobRow, in_words: str) -> None:
    if row.state is not JobState.DONE:
        raise InputError(f"job {row.id} is {row.state}: {row.reason}; `dicomnode retry {row.id}` tries again")
    console.print(in_words)


def _unread(store: Store, limit: int) -> list[JobRow]:
    states = [state for state in JobState if state is not JobState.DONE]
    kind = JobKind.INGEST_CORRECTION
    return [row for state in states for row in store.jobs.list(state=state, kind=kind, limit=limit)]


def _row(record: CorrectionRecord) -> tuple[object, ...]:
    scores = [f"{s.label}: {s.dice:.3f}, {len(s.edited_slices)} slices edited" for s in record.scores]
    return (
        record.id,
        record.created_at,
        record.recognition,
        f"{record.state}, replaced" if record.replaced else record.state,
        record.source_series_uid,
        escape("\n".join([*scores, *record.doubts]) or "; ".join(record.reasons)),
        record.split,
        record.trained_in,
    )


def _print_review(found: Review) -> None:
    record = found.record
    console.print(f"[bold]Correction {record.id}[/]  {record.recognition}, {record.state}", highlight=False)
    for line in (
        f"received {record.created_at:%Y-%m-%d %H:%M} UTC from {record.sender}, by {record.author}",
        f"of series {record.source_series_uid}{f' ({record.stack})' if record.stack else ''}",
        f"beside our result {record.result_sop_uid or '–'} of {record.model_version or record.model_name}",
        f"because {'; '.join(record.reasons)}",
        *(f"held: {doubt}" for doubt in record.doubts),
        *([f"{record.decision} by {record.decided_by}"] if record.decision else []),
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    columns = (
        "label",
        "Dice",
        "edited slices",
        "left as they were",
        "ours, ml",
        "theirs, ml",
        "change",
        "sure",
    )
    console.print(table("Labels", columns, (_label_row(label) for label in found.labels)))
    if found.not_learned:
        names = ", ".join(found.not_learned)
        console.print(f"no label of the model, kept and not learned: {names}", markup=False, soft_wrap=True)
    console.print(f"picture: {found.picture}", highlight=False, soft_wrap=True)


def _label_row(label: LabelReview) -> tuple[object, ...]:
    change = None if label.change is None else f"{label.change:+.1%}"
    return (
        label.label,
        label.dice,
        _ranges(label.edited_slices),
        _ranges(label.accepted_slices),
        f"{label.prediction_ml:.2f}",
        f"{label.correction_ml:.2f}",
        change,
        f"{label.confidence:.2f}",
    )


def _ranges(indices: tuple[int, ...]) -> str:
    """Write slices in short: 3, 5–9."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
