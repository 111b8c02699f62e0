"""When a series has its turn: by the priority of its route, and by what else its study holds."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from dicomnode.domain import Job, JobKind, JobPriority, SeriesState
from dicomnode.errors import InputError, UnsupportedSeriesError
from dicomnode.imaging.series import check_supported
from dicomnode.imaging.stacks import read_stacks
from dicomnode.pipeline.routing import Choice, best_of, choose
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import SeriesRow

_PRIORITIES = {
    "urgent": JobPriority.URGENT,
    "routine": JobPriority.ROUTINE,
    "off-peak": JobPriority.OFF_PEAK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Why a series has to wait, and until when."""

    until: datetime
    priority: JobPriority
    reason: str


def wait_for_turn(job: Job, row: SeriesRow, choice: Choice, tools: Tools) -> Wait | None:
    """Tell whether a series must wait; None when it is its turn.

    A series is routed once, at the head of the queue. Urgent ones then go on at once; the others go back
    into the queue if other series wait there, and off-peak ones until the off-peak hours.

    Raises
    ------
    UnsupportedSeriesError
        The route takes only the best series of a study, and another one is better.
    """
    priority = _PRIORITIES[choice.route.priority]
    if choice.route.per_study == "best":
        until = _study_complete_at(row, tools)
        if until > tools.now():
            return Wait(until=until, priority=priority, reason="waits until its study is complete")
        _check_best(row, choice, tools)
    if job.priority != JobPriority.UNROUTED or priority is JobPriority.URGENT:
        return None
    opens = tools.work.next_off_peak(tools.now()) if priority is JobPriority.OFF_PEAK else tools.now()
    if opens > tools.now():
        return Wait(until=opens, priority=priority, reason="waits for the off-peak hours")
    if tools.store.jobs.is_due({JobKind.SEGMENT_SERIES}, tools.now()):
        return Wait(until=opens, priority=priority, reason=f"{choice.route.priority}: waits for its turn")
    return None


def _study_complete_at(row: SeriesRow, tools: Tools) -> datetime:
    """When the study will be called complete, if no further image comes."""
    quiet = timedelta(seconds=tools.work.study_quiet_period_s)
    return max(one.last_received_at for one in tools.store.series.of_study(row.study_instance_uid)) + quiet


def _check_best(row: SeriesRow, choice: Choice, tools: Tools) -> None:
    """Compare a series with the others of its study that the same route would take."""
    choices = {row.series_instance_uid: choice}
    for other in tools.store.series.of_study(row.study_instance_uid):
        if other.series_instance_uid == row.series_instance_uid or other.state is SeriesState.RECEIVING:
            continue
        its = _choice_of(other, tools)
        if its is not None and its.route.name == choice.route.name:
            choices[other.series_instance_uid] = its
    best, reasons = best_of(choices)
    if best != row.series_instance_uid:
        raise UnsupportedSeriesError(
            f"series {row.series_instance_uid}: route {choice.route.name!r} takes the best series of a study, "
            f"and {best} is better: {reasons[row.series_instance_uid]}"
        )


def _choice_of(row: SeriesRow, tools: Tools) -> Choice | None:
    try:
        datasets = tools.spool.read(tools.store.series.instances_of(row.series_instance_uid))
        check_supported(datasets)
        return choose(read_stacks(datasets), tools.routes, sender=row.sender)
    except InputError:
        return None
