"""The command line: ``dicomnode COMMAND --help`` explains each."""

from pathlib import Path
from typing import Annotated

import typer

from dicomnode import __version__, aggregator, logs, node
from dicomnode.cli import (
    aggregating,
    corrections,
    evaluation,
    federating,
    models,
    planning,
    pretraining,
    routes,
    segmenting,
    site,
    training,
)
from dicomnode.cli.show import ConfigOption
from dicomnode.demo import story as demo_story
from dicomnode.process import run_to_the_end
from dicomnode.receive import receive as receive_objects
from dicomnode.scp import archive
from dicomnode.settings import load_aggregator_settings, load_node_settings
from dicomnode.web import app as web_app

PROCESSES = "Processes"
SITE = "At a site"

app = typer.Typer(
    name="dicomnode",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A hospital node beside the PACS: it segments what it receives, learns from corrections, and shares "
    "what it learned without sharing images.",
)
app.add_typer(models.app, name="models", rich_help_panel=SITE)
app.add_typer(routes.app, name="routes", rich_help_panel=SITE)
app.add_typer(corrections.app, name="corrections", rich_help_panel=SITE)
app.add_typer(federating.app, name="federation", rich_help_panel=SITE)
app.add_typer(aggregating.app, name="aggregator", rich_help_panel="At the centre")
for command in (
    site.check,
    site.status,
    segmenting.segment,
    training.train,
    planning.plan,
    pretraining.pretrain,
    evaluation.evaluate,
    site.retry,
):
    app.command(rich_help_panel=SITE)(command)


def main() -> None:
    """Run the command that was typed."""
    run_to_the_end(app)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"dicomnode {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, help="Print the version and stop.", is_eager=True),
    ] = False,
) -> None:
    # Warnings of a command go to standard error; the processes configure their own, fuller log.
    logs.configure(log_format="console", log_level="warning", process="command")


@app.command(rich_help_panel=PROCESSES)
def run(config: ConfigOption = None) -> None:
    """Run a whole node on this machine: receive, work and web, restarted when one of them dies."""
    node.run(load_node_settings(config), config)


@app.command(rich_help_panel=PROCESSES)
def receive(config: ConfigOption = None) -> None:
    """Receive DICOM objects (C-ECHO, C-STORE) into the spool; one of the processes of `run`."""
    receive_objects(load_node_settings(config))


@app.command(rich_help_panel=PROCESSES)
def work(config: ConfigOption = None) -> None:
    """Segment, deliver, read corrections and train; one of the processes of `run`."""
    node.work(load_node_settings(config))


@app.command(rich_help_panel=PROCESSES)
def web(config: ConfigOption = None) -> None:
    """Serve /healthz, /metrics and /studies; one of the processes of `run`."""
    web_app.serve(load_node_settings(config))


@app.command(rich_help_panel=PROCESSES)
def aggregate(config: ConfigOption = None) -> None:
    """Run the centre of a federation: enrolment, updates, merging and releases over HTTPS."""
    settings = load_aggregator_settings(config)
    logs.configure(
        log_format=settings.aggregator.log_format,
        log_level=settings.aggregator.log_level,
        process="aggregate",
    )
    aggregator.serve(settings)


@app.command(rich_help_panel="To try it out")
def demo(
    input_folder: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder of DICOM images to send; without it, crops of the MNI ICBM152 average brain.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder for everything the run leaves; default: output/demo-TIME."
        ),
    ] = None,
) -> None:
    """Show the whole loop on this machine: send, segment, correct, train, share, merge, adopt."""
    demo_story.run(input_folder, out)


@app.command(rich_help_panel="To try it out")
def pacs(
    folder: Annotated[Path, typer.Argument(help="Folder that received objects are written to.")],
    ae_title: Annotated[str, typer.Option(help="AE title to answer to.")] = "DEMOPACS",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port to listen on.")] = 11113,
) -> None:
    """Stand in for a PACS: take whatever is sent by C-STORE and keep it as files in a folder."""
    logs.configure(log_format="console", log_level="info", process="pacs")
    archive.serve(folder, ae_title=ae_title, host=host, port=port)


if __name__ == "__main__":
    main()
