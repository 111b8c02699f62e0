"""``dicomnode models``: what versions there are, what the gate said of them, and which is in use."""

from typing import Annotated

import typer

from dicomnode import node
from dicomnode.cli import importing, pulling
from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json, table
from dicomnode.errors import ModelFormatError
from dicomnode.settings import load_node_settings
from dicomnode.site import opened_store, utc_now
from dicomnode.store import Store
from dicomnode.store.records import ModelRecord

app = typer.Typer(no_args_is_help=True, help="Import, fetch, list, inspect, promote and roll back models.")
app.command()(pulling.pull)
app.command("import")(importing.import_model)

VersionArgument = Annotated[
    str, typer.Argument(help="A version as `models list` prints it; its first characters are enough.")
]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the audit log.")]
ByOption = Annotated[str, typer.Option(help="Who decided; kept in the audit log.", envvar="USER")]


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="One model; without it, all.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the versions of the models at this site, newest first."""
    with opened_store(load_node_settings(config)) as store:
        known = store.models.names()
        if name and name not in known:
            raise ModelFormatError(
                f"no model at this site is called {name!r}; there is: {', '.join(known) or 'none'}"
            )
        names = [name] if name else known
        records = [r for one in names for r in reversed(store.models.history(one))]
    if as_json:
        print_json(records)
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


@app.command()
def show(version: VersionArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one version: where it came from, what the gate said, and its card."""
    settings = load_node_settings(config)
    with opened_store(settings) as store:
        record = _find(store, version)
    if as_json:
        print_json(record)
        return
    card = node.open_shelf(settings).folder(record.version) / "card.md"
    made = f"made {record.created_at:%Y-%m-%d %H:%M} UTC"
    console.print(f"[bold]{record.version}[/]  {record.state}, {record.origin}, {made}")
    console.print(
        f"parent {record.parent or '–'}, recipe {record.recipe or '–'}, {len(record.case_ids)} training cases"
    )
    if record.gate_report_json:
        console.print("\n[bold]Gate[/]")
        console.print_json(record.gate_report_json)
    console.print("\n[bold]Card[/]")
    words = card.read_text(encoding="utf-8") if card.is_file() else f"{card} is missing; restore it"
    console.print(words, markup=False, highlight=False)


@app.command()
def promote(
    version: VersionArgument,
    by: ByOption = "",
    reason: ReasonOption = "approved by a person",
    config: ConfigOption = None,
) -> None:
    """Put a version into use, whatever the gate said; the decision is a person's and is kept."""
    settings = load_node_settings(config)
    with opened_store(settings) as store:
        record = _find(store, version)
        node.open_shelf(settings).package(record.version)  # a version that cannot be read is not put into use
        store.models.promote(record.version, now=utc_now(), by=by, reason=reason)
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
    console.print(f"[bold]{record.version}[/] is in use again from the next series on.")


def _find(store: Store, start: str) -> ModelRecord:
    """The one version that begins so."""
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
