"""``dicomnode aggregator``: what the coordinator of a federation does at the centre."""

from pathlib import Path
from typing import Annotated

import typer

from dicomnode import aggregator
from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json, table
from dicomnode.settings import load_aggregator_settings

app = typer.Typer(
    no_args_is_help=True, help="Run a federation: invite sites, publish models, look after both."
)


@app.command("enrol-code")
def enrol_code(
    site: Annotated[str, typer.Argument(help="Name of the site, as its node.site_name says.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a one-time code with which one site may enrol; it is shown once and kept nowhere."""
    settings = load_aggregator_settings(config)
    code = aggregator.create_enrolment_code(settings, site)
    if as_json:
        print_json({"site": site, "code": code, "valid_h": settings.enrolment.code_valid_h})
        return
    console.print(
        f"Code for {site}, valid once within {settings.enrolment.code_valid_h:g} h: [bold]{code}[/]"
    )


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a model package.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the weights of a model package as the first, or the next, release of its name."""
    release = aggregator.publish(load_aggregator_settings(config), model)
    if as_json:
        print_json(release)
        return
    console.print(f"Release {release.version} of {release.family} is published.")


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the sites, the newest releases, the updates by state, and the fingerprints to read out."""
    found = aggregator.status(load_aggregator_settings(config))
    if as_json:
        print_json(found)
        return
    console.print(f"[bold]{found.name}[/]")
    console.print(
        f"CA certificate {found.ca_file}, SHA-256 {found.ca_fingerprint}", highlight=False, soft_wrap=True
    )
    console.print(f"key that signs releases: {found.key_fingerprint}", highlight=False, soft_wrap=True)
    sites = ((n.id, n.name, n.status, n.enrolled_at) for n in found.nodes)
    console.print(table("Sites", ("id", "name", "status", "enrolled"), sites))
    releases = ((r.family, r.version, r.strategy, r.created_at) for r in found.releases)
    console.print(table("Newest releases", ("model", "release", "made by", "made"), releases))
    console.print(table("Updates", ("state", "count"), found.updates))


@app.command()
def revoke(
    node_id: Annotated[str, typer.Argument(help="Id of the site, as `status` shows it.")],
    config: ConfigOption = None,
) -> None:
    """Shut a site out at once; what it sent stays on record."""
    aggregator.revoke(load_aggregator_settings(config), node_id)
    console.print(f"{node_id} is revoked.")


@app.command()
def rollback(
    family: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int, typer.Argument(help="Release to return to.")],
    config: ConfigOption = None,
) -> None:
    """Publish the weights of an older release as a new release, for every site."""
    release = aggregator.roll_back(load_aggregator_settings(config), family, version)
    console.print(f"Release {release.version} of {family} has the weights of release {version}.")


@app.command("audit-verify")
def audit_verify(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Recompute the hash chain of the audit log; exit status 1 when something in it was changed."""
    report = aggregator.verify_audit(load_aggregator_settings(config))
    if as_json:
        print_json(report)
    else:
        console.print(
            f"{report.events} events, head {report.head}: {report.fault or 'intact'}", soft_wrap=True
        )
    if report.fault is not None:
        raise typer.Exit(1)
