"""The clock of a site: each tick looks at the state and inserts the jobs that are due, or steps back from a
version that does worse; nothing that takes long."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from dicomnode.errors import PeerError, UpdateRejectedError
from dicomnode.pipeline import adopt, guard, learn, push
from dicomnode.pipeline.tools import Tools
from dicomnode.settings import NodeSettings

log = structlog.get_logger()

_SWEEP_AGE = timedelta(hours=6)
_SPREAD_S = 600  # sites of one federation must not all call in the same minute
_GUARD_MINUTES = 5


def start_clock(settings: NodeSettings, tools: Tools) -> BackgroundScheduler:
    """Start the ticks of a site in a thread of their own; the caller shuts the clock down."""
    clock = BackgroundScheduler(
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 3600}
    )
    quiet_period = timedelta(seconds=settings.work.quiet_period_s)
    clock.add_job(tick_series, IntervalTrigger(seconds=settings.work.tick_s), args=[tools, quiet_period])
    clock.add_job(tick_sweep, IntervalTrigger(hours=1), args=[tools])
    clock.add_job(tick_guard, IntervalTrigger(minutes=_GUARD_MINUTES), args=[tools])
    if settings.training.enabled:
        clock.add_job(tick_training, IntervalTrigger(minutes=1), args=[tools])
    if settings.federation.enabled:
        at = settings.federation.schedule_time
        clock.add_job(tick_push, CronTrigger(hour=at.hour, minute=at.minute, jitter=_SPREAD_S), args=[tools])
        poll = IntervalTrigger(minutes=settings.federation.poll_minutes, jitter=60)
        clock.add_job(tick_release, poll, args=[tools])
    clock.start()
    return clock


def tick_series(tools: Tools, quiet_period: timedelta) -> None:
    """Queue every series that has been quiet for long enough."""
    queued = tools.store.series.enqueue_quiet(tools.now(), quiet_period)
    if queued:
        log.info("series queued", series=queued)


def tick_training(tools: Tools) -> None:
    """Inside the training window, queue a training for each model that has enough new corrections."""
    local = tools.now().astimezone()
    if tools.training.is_open(local):
        for model in tools.model_names:
            learn.enqueue_if_due(model, tools)


def tick_guard(tools: Tools) -> None:
    """Step back from each version in use that readers' corrections show to do worse than the one before."""
    for model in tools.model_names:
        guard.step_back_if_worse(model, tools)


def tick_push(tools: Tools) -> None:
    """Queue what this site may share for the nightly exchange."""
    for model in tools.model_names:
        push.enqueue_push(model, tools)


def tick_release(tools: Tools) -> None:
    """Ask the aggregator what became of our updates and whether there is a newer release to take up."""
    questions: list[Callable[[], object]] = [partial(push.refresh_updates, tools)]
    questions += [partial(adopt.enqueue_adoption, model, tools) for model in tools.model_names]
    for question in questions:
        try:
            question()
        except PeerError as error:
            log.warning("no answer from the aggregator", reason=str(error))
            return
        except UpdateRejectedError as error:  # concerns one update or model; the others are asked for too
            log.warning("refused by the aggregator", code=error.code, reason=str(error))


def tick_sweep(tools: Tools) -> None:
    """Remove temporary files that a crash or an aborted association left behind."""
    removed = tools.spool.sweep(older_than=_SWEEP_AGE, now=tools.now())
    removed += tools.shelf.sweep(older_than=_SWEEP_AGE, now=tools.now())
    if removed:
        log.info("stale temporary files removed", files=removed)
