"""The health of a node, one verdict per thing that it depends on."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dicomnode.domain import JobState
from dicomnode.errors import ResourceError
from dicomnode.spool import Spool
from dicomnode.store import Store
from dicomnode.store.records import Overview

OVERDUE = timedelta(minutes=5)
"""A job that could have been started so long ago, while none is running, means that nobody works."""


class Verdict(StrEnum):
    """From good to bad; only ``failing`` makes the whole node unhealthy."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILING = "failing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """One thing that the node needs, and how it is."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The answer of /healthz."""

    verdict: Verdict  # the worst of all
    dependencies: tuple[Dependency, ...]


def examine(store: Store, spool: Spool, *, models: Collection[str], now: datetime) -> Health:
    """Judge a node by what it depends on.

    Parameters
    ----------
    models
        Names of the models that the routes need.
    now
        Aware UTC.
    """
    found = [_disk(spool)]
    try:
        overview = store.overview()
        found += [
            Dependency(name="database", verdict=Verdict.OK, detail="answers"),
            _worker(store, now=now),
            _models(overview, models),
            *_destinations(overview),
        ]
    except ResourceError as error:
        found.append(Dependency(name="database", verdict=Verdict.FAILING, detail=str(error)))
    worst = max((one.verdict for one in found), key=list(Verdict).index)
    return Health(verdict=worst, dependencies=tuple(found))


def _disk(spool: Spool) -> Dependency:
    try:
        detail = f"{spool.free_bytes() / 1e9:.1f} GB free"
        if spool.has_room():
            return Dependency(name="disk", verdict=Verdict.OK, detail=detail)
        refused = f"{detail}, below scp.minimum_free_gb: nothing is accepted until space is freed"
        return Dependency(name="disk", verdict=Verdict.FAILING, detail=refused)
    except ResourceError as error:
        return Dependency(name="disk", verdict=Verdict.FAILING, detail=str(error))


def _worker(store: Store, *, now: datetime) -> Dependency:
    running = [job for job in store.jobs.list(state=JobState.RUNNING) if (job.lease_until or now) > now]
    overdue = [job for job in store.jobs.list(state=JobState.READY) if job.run_after < now - OVERDUE]
    if overdue and not running:
        since = min(job.run_after for job in overdue).isoformat(timespec="seconds")
        detail = f"{len(overdue)} jobs wait, the first since {since}, and none is running: is `work` alive?"
        return Dependency(name="worker", verdict=Verdict.FAILING, detail=detail)
    return Dependency(name="worker", verdict=Verdict.OK, detail=f"{len(running)} jobs running, none overdue")


def _models(overview: Overview, needed: Collection[str]) -> Dependency:
    current = {model.name: model.version for model in overview.models}
    missing = sorted(set(needed) - set(current))
    if missing:
        detail = f"no version in use of: {', '.join(missing)}; see `dicomnode models list`"
        return Dependency(name="models", verdict=Verdict.FAILING, detail=detail)
    return Dependency(name="models", verdict=Verdict.OK, detail=", ".join(sorted(current.values())) or "none")


def _destinations(overview: Overview) -> list[Dependency]:
    """Judge each PACS; one that is down delays its own results and nothing else."""
    return [
        Dependency(
            name=f"destination {one.destination}",
            verdict=Verdict.DEGRADED if one.last_error else Verdict.OK,
            detail=one.last_error or f"{one.pending} waiting, {one.sent} sent",
        )
        for one in overview.destinations
    ]
