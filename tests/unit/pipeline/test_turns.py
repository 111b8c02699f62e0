"""When a series has its turn: priorities, off-peak hours, and the best series of a study."""

from datetime import timedelta

import pytest
from pydicom.uid import generate_uid

from dicomnode.conditions import Conditions, Range
from dicomnode.domain import JobKind, JobPriority, JobState, SeriesState
from dicomnode.errors import UnsupportedSeriesError
from dicomnode.pipeline.segment import segment_series
from dicomnode.settings import RouteSettings, WorkSettings
from dicomnode.worker import RetryPolicy, Worker
from tests.pipeline_builders import LEASE, MODEL, Scene, mr_series

RETRY = RetryPolicy(
    maximum_attempts=3,
    patience_attempts=3,
    backoff=timedelta(seconds=1),
    backoff_cap=timedelta(seconds=1),
)


def routed(scene: Scene, **changes: object) -> Scene:
    """The site with one route, changed."""
    route = RouteSettings(name="tiny", model=MODEL, where=Conditions(slices=Range(min=6)), **changes)
    return scene.with_changes(routes=(route,))


def queue(scene: Scene, *series) -> None:
    for one in series:
        scene.receive(one)
    scene.quiet()


def study(*slices: int) -> list:
    """Series of one study, by their numbers of slices."""
    uid = generate_uid()
    return [mr_series(n, shape=(n, 12, 14), study_uid=uid) for n in slices]


def state_of(scene: Scene, series) -> SeriesState | None:
    return scene.tools.store.series.state(series[0].SeriesInstanceUID)


def work(scene: Scene) -> None:
    """Run every job that is due, as the node does."""
    worker = Worker(
        owner="w", kinds={JobKind.SEGMENT_SERIES}, tools=scene.tools, lease=LEASE, poll_s=1, retry=RETRY
    )
    while worker.run_once():
        pass


def window(scene: Scene, *, opens_in: timedelta) -> str:
    """An hour of off-peak time that opens some time from now."""
    opens = (scene.clock() + opens_in).astimezone()
    return f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"


def test_an_urgent_series_goes_on_at_once_although_others_wait(scene):
    urgent = routed(scene, priority="urgent")
    first, second = mr_series(1), mr_series(2)
    queue(urgent, first, second)

    segment_series(urgent.claim(JobKind.SEGMENT_SERIES), urgent.tools)

    store = scene.tools.store
    assert store.series.state(first[0].SeriesInstanceUID) is SeriesState.SEGMENTED
    assert store.series.state(second[0].SeriesInstanceUID) is SeriesState.QUEUED


def test_a_routine_series_makes_way_for_an_urgent_one_that_came_later(scene):
    routes = (
        RouteSettings(
            name="fast",
            model=MODEL,
            priority="urgent",
            where=Conditions(attributes={"SeriesDescription": ("EMERGENCY*",)}),
        ),
        RouteSettings(name="slow", model=MODEL),
    )
    both = scene.with_changes(routes=routes)
    routine, urgent = mr_series(1), mr_series(2)
    for ds in urgent:
        ds.SeriesDescription = "Emergency T1"
    queue(both, routine, urgent)
    ended = []
    for _ in range(3):
        segment_series(both.claim(JobKind.SEGMENT_SERIES), both.tools)
        done = [
            one
            for one in (routine, urgent)
            if scene.tools.store.series.state(one[0].SeriesInstanceUID) is SeriesState.SEGMENTED
        ]
        ended.append(len(done) == 1 and done[0] is urgent)

    assert ended == [False, True, False]
    assert scene.tools.store.series.state(routine[0].SeriesInstanceUID) is SeriesState.SEGMENTED


def test_a_routine_series_with_nobody_behind_it_is_not_sent_back(scene):
    queue(scene, mr_series())

    job = scene.claim(JobKind.SEGMENT_SERIES)
    segment_series(job, scene.tools)

    assert job.priority == JobPriority.UNROUTED
    assert scene.tools.store.jobs.get(job.id).state is JobState.DONE


def test_an_off_peak_series_waits_for_its_hours_and_a_person_can_force_it(scene):
    closed = routed(scene, priority="off-peak").with_changes(
        work=WorkSettings(off_peak=window(scene, opens_in=timedelta(hours=3)))
    )
    series = mr_series()
    queue(closed, series)
    uid = series[0].SeriesInstanceUID

    job = closed.claim(JobKind.SEGMENT_SERIES)
    segment_series(job, closed.tools)

    row = scene.tools.store.jobs.get(job.id)
    assert (row.state, row.priority) == (JobState.READY, JobPriority.OFF_PEAK)
    assert timedelta(hours=2, minutes=50) < row.run_after - scene.clock() <= timedelta(hours=3)
    assert "off-peak hours" in row.reason
    scene.tools.store.series.force(uid, now=scene.clock())
    segment_series(closed.claim(JobKind.SEGMENT_SERIES), closed.tools)
    assert scene.tools.store.series.state(uid) is SeriesState.SEGMENTED


def test_an_off_peak_series_goes_on_inside_its_hours(scene):
    opened = routed(scene, priority="off-peak").with_changes(
        work=WorkSettings(off_peak=window(scene, opens_in=timedelta(minutes=-10)))
    )
    series = mr_series()
    queue(opened, series)

    segment_series(opened.claim(JobKind.SEGMENT_SERIES), opened.tools)

    assert scene.tools.store.series.state(series[0].SeriesInstanceUID) is SeriesState.SEGMENTED


def test_of_a_study_only_the_best_series_is_segmented_once_the_study_is_quiet(scene):
    best = routed(scene, per_study="best")
    short, long = study(7, 10)
    queue(best, short, long)

    early = best.claim(JobKind.SEGMENT_SERIES)
    segment_series(early, best.tools)

    row = scene.tools.store.jobs.get(early.id)
    assert row.state is JobState.READY
    assert "until its study is complete" in row.reason
    scene.later(900)
    work(best)
    assert state_of(scene, long) is SeriesState.SEGMENTED
    waiting = scene.tools.store.jobs.find(
        JobKind.SEGMENT_SERIES, scene.tools.store.series.revision_digest(short[0].SeriesInstanceUID)
    )
    assert waiting.state is JobState.READY
    assert f"what becomes of {long[0].SeriesInstanceUID}" in waiting.reason
    scene.later(30)
    with pytest.raises(UnsupportedSeriesError, match=r"is better: .*7 slices"):
        segment_series(best.claim(JobKind.SEGMENT_SERIES), best.tools)


def test_a_study_is_not_complete_before_its_series_are(scene):
    hasty = routed(scene, per_study="best").with_changes(work=WorkSettings(study_quiet_period_s=1))
    short, long = study(7, 10)
    queue(hasty, short)
    hasty.receive(long)

    segment_series(hasty.claim(JobKind.SEGMENT_SERIES), hasty.tools)
    hasty.quiet()
    work(hasty)

    assert state_of(scene, long) is SeriesState.SEGMENTED
    assert state_of(scene, short) is SeriesState.QUEUED


def test_when_the_best_series_of_a_study_is_damaged_the_next_best_is_segmented(scene):
    best = routed(scene, per_study="best")
    short, long = study(7, 10)
    for ds in long:
        ds.PixelData = ds.PixelData[:-8]
    queue(best, short, long)
    scene.later(900)

    work(best)
    scene.later(30)
    work(best)

    assert state_of(scene, long) is SeriesState.SET_ASIDE
    assert state_of(scene, short) is SeriesState.SEGMENTED


def test_a_series_that_comes_after_a_worse_one_was_segmented_is_segmented_too(scene):
    best = routed(scene, per_study="best")
    short, long = study(7, 10)
    queue(best, short)
    scene.later(900)
    segment_series(best.claim(JobKind.SEGMENT_SERIES), best.tools)
    queue(best, long)
    scene.later(900)

    segment_series(best.claim(JobKind.SEGMENT_SERIES), best.tools)

    assert state_of(scene, short) is state_of(scene, long) is SeriesState.SEGMENTED


def test_the_best_series_of_a_study_waits_for_the_off_peak_hours_too(scene):
    closed = routed(scene, per_study="best", priority="off-peak").with_changes(
        work=WorkSettings(off_peak=window(scene, opens_in=timedelta(hours=3)))
    )
    series = mr_series()
    queue(closed, series)

    segment_series(closed.claim(JobKind.SEGMENT_SERIES), closed.tools)
    scene.later(3600)

    assert scene.tools.store.jobs.claim(scene.clock(), kinds=set(JobKind), owner="w", lease=LEASE) is None
    assert state_of(scene, series) is SeriesState.QUEUED


def test_an_off_peak_series_that_missed_its_hours_waits_for_the_next(scene):
    closed = routed(scene, priority="off-peak").with_changes(
        work=WorkSettings(off_peak=window(scene, opens_in=timedelta(hours=3)))
    )
    series = mr_series()
    queue(closed, series)
    segment_series(closed.claim(JobKind.SEGMENT_SERIES), closed.tools)
    scene.later(5 * 3600)  # nobody worked meanwhile

    job = closed.claim(JobKind.SEGMENT_SERIES)
    segment_series(job, closed.tools)

    row = scene.tools.store.jobs.get(job.id)
    assert row.state is JobState.READY
    assert timedelta(hours=21) < row.run_after - scene.clock() < timedelta(hours=23)


def test_a_person_can_force_a_series_that_is_not_the_best_of_its_study_before_it_is_complete(scene):
    best = routed(scene, per_study="best", priority="off-peak").with_changes(
        work=WorkSettings(off_peak=window(scene, opens_in=timedelta(hours=3)))
    )
    short, long = study(7, 10)
    best.receive(short)
    best.receive(long)

    scene.tools.store.series.force(short[0].SeriesInstanceUID, now=scene.clock())
    segment_series(best.claim(JobKind.SEGMENT_SERIES), best.tools)

    assert state_of(scene, short) is SeriesState.SEGMENTED
