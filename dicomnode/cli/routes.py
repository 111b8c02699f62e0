"""``dicomnode routes``: what the routes of a site do with given images."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json
from dicomnode.pipeline.folder import read_series
from dicomnode.pipeline.rehearse import Answer, SeriesPlan, Taken, rehearse
from dicomnode.pipeline.routing import check_routes, name_stacks
from dicomnode.settings import load_node_settings

_STACKS_SHOWN = 8

app = typer.Typer(no_args_is_help=True, help="See which series go to which model, before any is sent.")


@app.callback()
def _group() -> None:
    """Keep `test` a command of its own; typer would fold a group of one command into the group."""


@app.command("test")
def try_out(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", exists=True, file_okay=False, help="Folder of DICOM images of any studies."
        ),
    ],
    sender: Annotated[
        str,
        typer.Option(metavar="AE", help="AE title to pretend as the sender, for routes that ask for one."),
    ] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say for every series in a folder what the node would do with it, and why.

    For each series: what it is (modality, plane, slices, spacing, kind), the route and model that take it,
    its priority, and which destination gets which forms of the result; or else what each route has against
    it. Where a route takes only the best series of a study, which one that is. Nothing is segmented, kept or
    sent, and no name of a patient is printed. Exit status 0 when at least one series is taken, else 1.
    """
    settings = load_node_settings(config)
    check_routes(settings.routes)
    plans = rehearse(
        read_series(folder),
        routes=settings.routes,
        destinations={one.name: settings.destination(one.name) for one in settings.destinations},
        sender=sender,
    )
    if as_json:
        print_json(plans)
    else:
        for study, of_study in groupby(plans, key=lambda plan: plan.study_instance_uid):
            console.print(_tree(study, list(of_study)))
    if not any(plan.taken for plan in plans):
        raise typer.Exit(1)


def _tree(study: str, plans: list[SeriesPlan]) -> Tree:
    taken = sum(plan.taken is not None for plan in plans)
    tree = Tree(_text(f"study {study or '(no UID)'}: {taken} of {len(plans)} series taken", style="bold"))
    for plan in plans:
        branch = tree.add(_title(plan))
        for line in _lines(plan):
            branch.add(line)
    return tree


def _title(plan: SeriesPlan) -> Text:
    number = "" if plan.series_number is None else f" {plan.series_number}"
    description = f" {plan.series_description}" if plan.series_description else ""
    return Text.assemble(_text(f"series{number}{description}", style="bold"), f"  {plan.series_instance_uid}")


def _lines(plan: SeriesPlan) -> Iterator[Text]:
    for facts in plan.stacks[:_STACKS_SHOWN]:
        yield _text(f"{facts.stack}: {facts.in_words}" if facts.stack else facts.in_words)
    if len(plan.stacks) > _STACKS_SHOWN:
        yield Text(f"and {len(plan.stacks) - _STACKS_SHOWN} more stacks")
    if plan.taken is not None:
        yield _text(_done(plan.taken), style="green")
        if plan.reason:
            yield _text(plan.reason)
    else:
        yield _text(f"not taken: {plan.reason}", style="yellow")
    for answer in plan.answers:
        if answer.objection is not None:
            yield _text(_said(answer), style="dim")


def _text(words: str, *, style: str = "") -> Text:
    """Show what headers say without the control characters by which they would steer a terminal."""
    return Text("".join(character for character in words if character.isprintable()), style=style)


def _done(taken: Taken) -> str:
    sent = "; ".join(f"{name} gets {', '.join(forms)}" for name, forms in taken.destinations)
    stack = f" ({taken.stack})" if taken.stack else ""
    return (
        f"taken by route {taken.route}{stack}: model {taken.model}, {taken.priority}; "
        f"{sent or 'no destination is configured, results stay here'}"
    )


def _said(answer: Answer) -> str:
    return f"route {answer.route}: {name_stacks(answer.stacks)}{answer.objection}"
