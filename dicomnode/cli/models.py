"""``dicomnode models``: what versions there are, what the gate said of them, and which is in use."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from dicomnode import node
from dicomnode.cli import importing, models_diff, models_lock, pulling
from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json, table
from dicomnode.cli.versions import ByOption, VersionArgument, find_version, tell_advice, tell_locks
from dicomnode.domain import ModelState
from dicomnode.errors import ModelFormatError
from dicomnode.settings import load_node_settings
from dicomnode.site import opened_store, utc_now
from dicomnode.store import Store
from dicomnode.store.records import ModelRecord

app = typer.Typer(
    no_args_is_help=True, help="List, inspect, compare, promote, roll back, lock, fetch and import models."
)

CASES_SHOWN = 20
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the audit log.")]


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="One model; without it, all.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the versions of the models at this site, newest first; below them locks and advice."""
    with opened_store(load_node_settings(config)) as store:
        known = store.models.names()
        if name and name not in known:
            raise ModelFormatError(
                f"no model at this site is called {name!r}; there is: {', '.join(known) or 'none'}"
            )
        names = [name] if name else known
        records = [r for one in names for r in reversed(store.models.history(one))]
        locks = [lock for lock in store.locks.all() if lock.name in names]
    if as_json:
        locked = {lock.name for lock in locks}
        print_json([asdict(record) | {"locked": record.name in locked} for record in records])
        return
    console.print(
        table(
            "Model versions",
            ("version", "state", "origin", "release", "parent", "cases", "made"),
            (
                (r.version, r.state, r.origin, r.release_version, r.parent, len(r.case_ids), r.created_at)
                for r in records
            ),
        )
    )
    tell_locks(locks)
    tell_advice(records)


@app.command()
def show(version: VersionArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one version: where it came from, what it was made of, what the gate said, and its card."""
    settings = load_node_settings(config)
    with opened_store(settings) as store:
        record = find_version(store, version)
        locks = [lock for lock in store.locks.all() if lock.name == record.name]
    if as_json:
        print_json(asdict(record) | {"locked": bool(locks)})
        return
    card = node.open_shelf(settings).folder(record.version) / "card.md"
    made = f"made {record.created_at:%Y-%m-%d %H:%M} UTC"
    console.print(f"[bold]{record.version}[/]  {record.state}, {record.origin}, {made}")
    console.print(
        f"parent {record.parent or '–'}, recipe {record.recipe or '–'}, {len(record.case_ids)} training cases"
    )
    tell_locks(locks)
    tell_advice([record])
    _print_provenance(record)
    if record.gate_report_json:
        console.print("\n[bold]Gate[/]")
        console.print_json(record.gate_report_json)
    console.print("\n[bold]Card[/]")
    words = card.read_text(encoding="utf-8") if card.is_file() else f"{card} is missing; restore it"
    console.print(words, markup=False, highlight=False)


app.command()(models_diff.diff)


@app.command()
def promote(
    version: VersionArgument,
    by: ByOption = "",
    reason: ReasonOption = "approved by a person",
    config: ConfigOption = None,
) -> None:
    """Put a version into use, whatever the gate said; the decision is a person's and is kept.

    Said of the version that is in use already, it stays, and is not rolled back automatically.
    """
    settings = load_node_settings(config)
    with opened_store(settings) as store:
        record = find_version(store, version)
        node.open_shelf(settings).package(record.version)  # a version that cannot be read is not put into use
        store.models.promote(record.version, now=utc_now(), by=by, reason=reason)
        _tell_lock(record.name, store)
    if record.state is ModelState.CURRENT:
        console.print(f"[bold]{record.version}[/] is in use already; it stays until a person changes it.")
    else:
        console.print(f"[bold]{record.version}[/] is in use from the next series on.")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    by: ByOption = "",
    reason: ReasonOption = "rolled back by a person",
    config: ConfigOption = None,
) -> None:
    """Put the version that was in use before back into use."""
    settings = load_node_settings(config)
    with opened_store(settings) as store:
        earlier = store.models.before_current(name)
        if earlier is not None:
            node.open_shelf(settings).package(earlier)  # as for promote
        record = store.models.rollback(name, now=utc_now(), by=by, reason=reason)
        _tell_lock(record.name, store)
    console.print(f"[bold]{record.version}[/] is in use again from the next series on.")


app.command()(models_lock.lock)
app.command()(models_lock.unlock)
app.command()(pulling.pull)
app.command("import")(importing.import_model)


def _tell_lock(name: str, store: Store) -> None:
    lock = store.locks.get(name)
    tell_locks([] if lock is None else [lock])


def _print_provenance(record: ModelRecord) -> None:
    """Print what a version was made of, as far as that was kept."""
    if record.run_folder:
        console.print(f"run folder {record.run_folder}", markup=False, highlight=False, soft_wrap=True)
    for title, kept in (("Recipe", record.recipe_json), ("Environment", record.environment_json)):
        if kept:
            console.print(f"\n[bold]{title}[/]")
            console.print(_settings(kept), markup=False, highlight=False)
    if record.case_digests:
        _print_cases(record.case_digests)


def _settings(kept: str) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in json.loads(kept).items())


def _print_cases(digests: Sequence[tuple[str, str]]) -> None:
    left = len(digests) - CASES_SHOWN
    console.print(table("Trained on", ("case", "SHA-256 of its arrays"), digests[:CASES_SHOWN]))
    if left > 0:
        console.print(f"and {left} more; --json lists all")
