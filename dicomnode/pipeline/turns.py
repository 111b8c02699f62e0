"""When a series has its turn: by the priority of its route, and by what else its study holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.domain import Job, JobKind, JobPriority, SeriesState
from dicomnode.errors import InputError, UnsupportedSeriesError
from dicomnode.imaging.images.series import supported_images
from dicomnode.imaging.images.stacks import read_stacks
from dicomnode.pipeline.routing import Choice, best_of, choose
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import SeriesRow

_PRIORITIES = {
    "urgent": JobPriority.URGENT,
    "routine": JobPriority.ROUTINE,
    "off-peak": JobPriority.OFF_PEAK,
}
_SEGMENTED = frozenset({SeriesState.SEGMENTED, SeriesState.DELIVERED, SeriesState.COMMITTED})
_PAUSE = timedelta(seconds=30)  # until a series asks again what became of a better one


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Why a series has to wait, and until when."""

    until: datetime
    priority: JobPriority
    reason: str


def wait_for_turn(job: Job, row: SeriesRow, choice: Choice, tools: Tools) -> Wait | None:
    """Tell whether a series must wait; None when it is its turn.

    A series is routed at the head of the queue. Urgent ones then go on at once; the others go back once
    into the queue if other series wait there. Off-peak ones wait for the off-peak hours each time. A series
    of which only the best of a study counts waits for the study, and for the better ones in it. One that a
    person asked for waits for nothing.

    Raises
    ------
    UnsupportedSeriesError
        The route takes only the best series of a study, and a better one was segmented.
    """
    if job.priority >= JobPriority.FORCED:
        return None
    priority = _PRIORITIES[choice.route.priority]
    opens = tools.work.next_off_peak(tools.now()) if priority is JobPriority.OFF_PEAK else tools.now()
    if opens > tools.now():
        return Wait(until=opens, priority=priority, reason="waits for the off-peak hours")
    if choice.route.per_study == "best":
        wait = _wait_for_study(row, choice, priority, tools)
        if wait is not None:
            return wait
    if job.priority != JobPriority.UNROUTED or priority is JobPriority.URGENT:
        return None
    if tools.store.jobs.is_due({JobKind.SEGMENT_SERIES}, tools.now()):
        return Wait(until=opens, priority=priority, reason=f"{choice.route.priority}: waits for its turn")
    return None


def _wait_for_study(row: SeriesRow, choice: Choice, priority: JobPriority, tools: Tools) -> Wait | None:
    """Wait until a study is complete, then until it is known what became of the better series in it."""
    study = tools.store.series.of_study(row.study_instance_uid)
    complete_at = _complete_at(study, tools)
    if complete_at > tools.now():
        return Wait(until=complete_at, priority=priority, reason="waits until its study is complete")
    better = _better(row, choice, study, tools)
    if better is None:
        return None
    rival, why = better
    if rival.state in _SEGMENTED:
        raise UnsupportedSeriesError(
            f"series {row.series_instance_uid}: route {choice.route.name!r} takes the best series of a "
            f"study, and {rival.series_instance_uid} is better: {why}"
        )
    reason = f"waits for what becomes of {rival.series_instance_uid}, which is better: {why}"
    return Wait(until=tools.now() + _PAUSE, priority=priority, reason=reason)


def _complete_at(study: Sequence[SeriesRow], tools: Tools) -> datetime:
    """When a study will be called complete, if no further image comes; never before its series are."""
    quiet_s = max(tools.work.study_quiet_period_s, tools.work.quiet_period_s)
    return max(one.last_received_at for one in study) + timedelta(seconds=quiet_s)


def _better(
    row: SeriesRow, choice: Choice, study: Sequence[SeriesRow], tools: Tools
) -> tuple[SeriesRow, str] | None:
    """Find the best of the series of a study that the same route takes, unless it is this one; and why.

    One that was set aside does not count: its pixels may be damaged, and then the next best is wanted.
    """
    rows = {row.series_instance_uid: row}
    choices = {row.series_instance_uid: choice}
    for other in study:
        if other.series_instance_uid == row.series_instance_uid or other.state is SeriesState.SET_ASIDE:
            continue
        its = _choice_of(other, tools)
        if its is not None and its.route.name == choice.route.name:
            choices[other.series_instance_uid] = its
            rows[other.series_instance_uid] = other
    best, reasons = best_of(choices)
    return None if best == row.series_instance_uid else (rows[best], reasons[row.series_instance_uid])


def _choice_of(row: SeriesRow, tools: Tools) -> Choice | None:
    try:
        datasets = tools.spool.read(tools.store.series.instances_of(row.series_instance_uid))
        return choose(read_stacks(supported_images(datasets)), tools.routes, sender=row.sender)
    except InputError:
        return None
