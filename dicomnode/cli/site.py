"""The commands of a site: is it sound, what does it hold, and do this now."""

from dataclasses import asdict
from typing import Annotated

import typer

from dicomnode import preflight
from dicomnode.cli.feedback import print_alarms
from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json, table
from dicomnode.cli.versions import tell_advice, tell_locks
from dicomnode.domain import JobKind, JobState
from dicomnode.pipeline.figures import all_drift
from dicomnode.settings import load_node_settings
from dicomnode.site import open_spool, opened_store, utc_now
from dicomnode.store import Overview


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check that this site can work: folders, disk, database, models, ports, destinations, aggregator.

    Changes nothing but what a first start would make. Exit status 0 when everything is sound, 1 when not.
    """
    settings = load_node_settings(config)
    findings = preflight.check(settings)
    if as_json:
        print_json(findings)
    else:
        marks = {True: "[green]ok[/]", False: "[bold red]fault[/]", None: "[yellow]note[/]"}
        rows = ((marks[f.is_sound], f.what, f.finding) for f in findings)
        console.print(table("Is this site fit to run?", ("", "what", "found"), rows))
    if any(f.is_sound is False for f in findings):
        raise typer.Exit(1)


def status(
    limit: Annotated[int, typer.Option(help="How many troubles to list, newest first.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the site holds: series by state, waiting work, what was set aside and why, models."""
    settings = load_node_settings(config)
    with opened_store(settings) as store:
        overview = store.overview(limit=limit)
        drifts = all_drift(store)
        locks = store.locks.all()
        advised = [one for name in store.models.names() for one in store.models.history(name) if one.advice]
    unreadable = open_spool(settings).usage().quarantined if settings.spool_dir.is_dir() else 0
    if as_json:
        advice = {one.version: one.advice for one in advised}
        more = {"quarantined": unreadable, "drift": drifts, "locks": locks, "advice": advice}
        print_json(asdict(overview) | more)
        return
    _print_overview(overview)
    print_alarms(drifts)
    tell_locks(locks)
    tell_advice(advised)
    if unreadable:
        folder = settings.spool_dir / "quarantine"
        console.print(
            f"{unreadable} received objects could not be read; they are kept, with the reason, in {folder}"
        )


def retry(
    job: Annotated[int, typer.Argument(help="Number of the job, as `status` shows it.")],
    config: ConfigOption = None,
) -> None:
    """Give a job that was set aside or failed a fresh start."""
    with opened_store(load_node_settings(config)) as store:
        row = store.jobs.requeue(job, now=utc_now())
    console.print(f"job {row.id} ({row.kind}) waits to be run again")


def _print_overview(overview: Overview) -> None:
    console.print(table("Series", ("state", "series"), overview.series))
    waiting = [
        (kind, state, count)
        for kind, state, count in overview.jobs
        if state in (JobState.READY, JobState.RUNNING) or kind is JobKind.TRAIN_INCREMENT
    ]
    if waiting:
        console.print(table("Work", ("kind", "state", "jobs"), waiting))
    if overview.destinations:
        rows = ((d.destination, d.sent, d.pending, d.last_error) for d in overview.destinations)
        console.print(table("Destinations", ("name", "sent", "waiting", "last fault"), rows))
    if overview.corrections:
        console.print(table("Received segmentations", ("recognised as", "objects"), overview.corrections))
    if overview.held_corrections:
        console.print(
            f"[bold yellow]{overview.held_corrections}[/] of them wait for a person's decision: "
            f"`dicomnode corrections list --state held`"
        )
    console.print(
        table(
            "Models in use",
            ("model", "version", "origin", "release"),
            ((m.name, m.version, m.origin, m.release_version) for m in overview.models),
        )
    )
    if overview.set_aside:
        rows2 = ((s.series_instance_uid, s.modality, s.instances, s.reason) for s in overview.set_aside)
        console.print(table("Series set aside", ("series", "modality", "images", "reason"), rows2))
    if overview.troubled_jobs:
        rows3 = ((j.id, j.kind, j.state, j.updated_at, j.reason) for j in overview.troubled_jobs)
        console.print(
            table(
                "Jobs in trouble (`dicomnode retry NUMBER`)",
                ("job", "kind", "state", "since", "reason"),
                rows3,
            )
        )
