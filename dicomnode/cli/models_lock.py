"""``dicomnode models lock`` and ``unlock``: let only persons change which version is in use."""

from typing import Annotated

import typer
from rich.markup import escape

from dicomnode.cli.show import ConfigOption, console
from dicomnode.cli.versions import ByOption, tell_advice, tell_locks
from dicomnode.settings import load_node_settings
from dicomnode.site import opened_store, utc_now

NameArgument = Annotated[str, typer.Argument(help="Name of the model.")]


def lock(
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")],
    by: ByOption = "",
    config: ConfigOption = None,
) -> None:
    """Let nothing but `promote` and `rollback` change which version of a model is in use.

    Trainings, releases and the drift alarm go on, and advise what they would have done; see `models list`.
    """
    with opened_store(load_node_settings(config)) as store:
        made = store.locks.lock(name, by=by, reason=reason, now=utc_now())
    tell_locks([made])


def unlock(
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")],
    by: ByOption = "",
    config: ConfigOption = None,
) -> None:
    """Let accepted versions of a model be put into use automatically again.

    What was accepted while it was locked stays with a person: `promote` it.
    """
    with opened_store(load_node_settings(config)) as store:
        store.locks.unlock(name, by=by, reason=reason, now=utc_now())
        records = store.models.history(name)
    console.print(f"model [bold]{escape(name)}[/] is open again.", highlight=False)
    tell_advice(records)
