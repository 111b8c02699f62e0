"""The queue."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from dicomnode.domain import Job, JobKind, JobPriority, JobState, SeriesState
from dicomnode.errors import InputError, LeaseLostError
from dicomnode.store import Store

from .conftest import LEASE, NOON, QUIET, claim, make_instance, queue_series

SECOND = timedelta(seconds=1)
ALL_KINDS = frozenset(JobKind)


def enqueue(store: Store, digest: str, kind: JobKind = JobKind.SEGMENT_SERIES, **options: int) -> bool:
    return store.jobs.enqueue(kind, f"subject of {digest}", digest, now=NOON, **options)


def test_a_job_is_unique_by_kind_and_digest(store: Store) -> None:
    assert enqueue(store, "a")
    assert not enqueue(store, "a")
    assert enqueue(store, "a", JobKind.PUSH_UPDATE)


def test_a_job_is_found_by_number_and_by_what_makes_it_unique(store: Store) -> None:
    enqueue(store, "a")
    found = store.jobs.find(JobKind.SEGMENT_SERIES, "a")
    assert found is not None
    assert store.jobs.get(found.id) == found
    assert store.jobs.find(JobKind.PUSH_UPDATE, "a") is None
    assert store.jobs.get(999) is None


def test_a_finished_job_is_not_added_again(store: Store) -> None:
    enqueue(store, "a")
    store.jobs.finish(claim(store, JobKind.SEGMENT_SERIES), now=NOON)
    assert not enqueue(store, "a")
    assert store.jobs.claim(NOON, kinds=ALL_KINDS, owner="w", lease=LEASE) is None


def test_first_in_is_first_out_and_studies_come_before_training(store: Store) -> None:
    enqueue(store, "t", JobKind.TRAIN_INCREMENT)
    enqueue(store, "p", JobKind.PUSH_UPDATE)
    enqueue(store, "s1")
    enqueue(store, "i", JobKind.INGEST_CORRECTION)
    enqueue(store, "s2")
    claimed = [store.jobs.claim(NOON, kinds=ALL_KINDS, owner="w", lease=LEASE) for _ in range(5)]
    assert [job.digest for job in claimed if job] == ["s1", "i", "s2", "p", "t"]


def test_an_urgent_study_overtakes_and_one_for_off_peak_still_comes_before_training(store: Store) -> None:
    enqueue(store, "t", JobKind.TRAIN_INCREMENT, priority=JobPriority.URGENT)
    enqueue(store, "off-peak", priority=JobPriority.OFF_PEAK)
    enqueue(store, "routine")
    enqueue(store, "urgent", priority=JobPriority.URGENT)
    claimed = [store.jobs.claim(NOON, kinds=ALL_KINDS, owner="w", lease=LEASE) for _ in range(4)]
    assert [job.digest for job in claimed if job] == ["urgent", "routine", "off-peak", "t"]


def test_a_job_that_is_put_back_may_get_another_priority(store: Store) -> None:
    enqueue(store, "s", priority=JobPriority.UNROUTED)
    store.jobs.defer(claim(store, JobKind.SEGMENT_SERIES), NOON, priority=JobPriority.OFF_PEAK)
    assert claim(store, JobKind.SEGMENT_SERIES).priority == JobPriority.OFF_PEAK


def test_only_the_kinds_asked_for_are_claimed(store: Store) -> None:
    enqueue(store, "s")
    assert store.jobs.claim(NOON, kinds={JobKind.DELIVER_RESULT}, owner="w", lease=LEASE) is None
    assert store.jobs.claim(NOON, kinds=(), owner="w", lease=LEASE) is None


def test_a_job_waits_for_its_time(store: Store) -> None:
    store.jobs.enqueue(JobKind.PUSH_UPDATE, "m", "d", now=NOON, run_after=NOON + SECOND)
    assert store.jobs.claim(NOON, kinds=ALL_KINDS, owner="w", lease=LEASE) is None
    assert store.jobs.claim(NOON + SECOND, kinds=ALL_KINDS, owner="w", lease=LEASE) is not None


def test_a_claim_counts_attempts_and_a_retry_waits(store: Store) -> None:
    enqueue(store, "a")
    first = claim(store, JobKind.SEGMENT_SERIES)
    assert (first.attempt, first.lease_owner, first.lease_until) == (1, "w1", NOON + LEASE)
    store.jobs.retry(first, now=NOON, run_after=NOON + SECOND, reason="the PACS is down")
    assert store.jobs.claim(NOON, kinds=ALL_KINDS, owner="w", lease=LEASE) is None
    assert store.jobs.list(state=JobState.READY)[0].reason == "the PACS is down"
    assert claim(store, JobKind.SEGMENT_SERIES, now=NOON + SECOND).attempt == 2


def test_a_deferred_job_does_not_count_the_attempt(store: Store) -> None:
    enqueue(store, "a")
    store.jobs.defer(
        claim(store, JobKind.SEGMENT_SERIES), NOON + SECOND, now=NOON, reason="outside the window"
    )
    row = store.jobs.list()[0]
    assert (row.state, row.attempts, row.reason) == (JobState.READY, 0, "outside the window")
    assert claim(store, JobKind.SEGMENT_SERIES, now=NOON + SECOND).attempt == 1


def test_the_job_of_a_dead_worker_is_claimed_again_after_its_lease(store: Store) -> None:
    enqueue(store, "a")
    dead = claim(store, JobKind.SEGMENT_SERIES)
    before = NOON + LEASE - SECOND
    assert store.jobs.claim(before, kinds=ALL_KINDS, owner="w2", lease=LEASE) is None
    second = claim(store, JobKind.SEGMENT_SERIES, now=NOON + LEASE, owner="w2")
    assert (second.id, second.attempt, second.lease_owner) == (dead.id, 2, "w2")


def test_a_heartbeat_keeps_the_job(store: Store) -> None:
    enqueue(store, "a")
    job = claim(store, JobKind.SEGMENT_SERIES)
    assert store.jobs.renew(job, now=NOON + LEASE - SECOND, lease=LEASE)
    assert store.jobs.claim(NOON + LEASE, kinds=ALL_KINDS, owner="w2", lease=LEASE) is None
    store.jobs.finish(job, now=NOON + LEASE)


ENDINGS: dict[str, Callable[[Store, Job], None]] = {
    "finish": lambda store, job: store.jobs.finish(job, now=NOON),
    "retry": lambda store, job: store.jobs.retry(job, now=NOON, run_after=NOON, reason="r"),
    "defer": lambda store, job: store.jobs.defer(job, NOON, now=NOON),
    "set_aside": lambda store, job: store.jobs.set_aside(job, now=NOON, reason="r"),
    "fail": lambda store, job: store.jobs.fail(job, now=NOON, reason="r"),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("new_owner", ["w1", "w2"])  # also another thread or life of the same worker
def test_a_worker_that_lost_its_lease_changes_nothing(store: Store, ending: str, new_owner: str) -> None:
    enqueue(store, "a")
    late = claim(store, JobKind.SEGMENT_SERIES)
    claim(store, JobKind.SEGMENT_SERIES, now=NOON + LEASE, owner=new_owner)
    before = store.jobs.list()
    with pytest.raises(LeaseLostError, match="no longer held by w1, attempt 1"):
        ENDINGS[ending](store, late)
    assert not store.jobs.renew(late, now=NOON + LEASE, lease=LEASE)
    assert store.jobs.list() == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_job_ends_once(store: Store, ending: str) -> None:
    enqueue(store, "a")
    job = claim(store, JobKind.SEGMENT_SERIES)
    store.jobs.finish(job, now=NOON)
    with pytest.raises(LeaseLostError):
        ENDINGS[ending](store, job)
    assert store.jobs.counts() == {(JobKind.SEGMENT_SERIES, JobState.DONE): 1}


def test_a_failed_segmentation_shows_its_reason_at_the_series_and_can_be_run_again(store: Store) -> None:
    job = queue_series(store)
    store.jobs.fail(job, now=NOON, reason="a bug", traceback="line 1")
    row = store.jobs.list(state=JobState.FAILED)[0]
    assert (row.reason, row.traceback) == ("a bug", "line 1")
    series = store.series.get("1.2.3")
    assert series is not None
    assert (series.state, series.reason) == (SeriesState.SET_ASIDE, "a bug")

    again = store.jobs.requeue(job.id, now=NOON)
    assert (again.state, again.attempts, again.reason) == (JobState.READY, 0, "")
    assert store.series.state("1.2.3") is SeriesState.QUEUED
    assert claim(store, JobKind.SEGMENT_SERIES).attempt == 1


def test_only_a_job_in_trouble_is_run_again(store: Store) -> None:
    job = queue_series(store)
    with pytest.raises(InputError, match="is running"):
        store.jobs.requeue(job.id, now=NOON)
    with pytest.raises(InputError, match="no job 999"):
        store.jobs.requeue(999, now=NOON)


def test_a_reason_of_any_characters_is_kept(store: Store) -> None:
    enqueue(store, "a")
    job = claim(store, JobKind.SEGMENT_SERIES)
    store.jobs.set_aside(job, now=NOON, reason="NUL \0, half a pair \ud800, ümlaut")
    assert "ümlaut" in store.jobs.list()[0].reason


def test_claimers_in_parallel_never_share_a_job(store: Store, open_store: Callable[[], Store]) -> None:
    wanted = 60
    for number in range(wanted):
        enqueue(store, str(number))
    claimed: list[int] = []

    def work(own: Store, owner: str) -> None:
        while (job := own.jobs.claim(NOON, kinds=ALL_KINDS, owner=owner, lease=LEASE)) is not None:
            claimed.append(job.id)
            own.jobs.finish(job, now=NOON)

    shared = open_store()
    stores = [shared, shared, open_store(), open_store()]  # two threads of one process, two other processes
    threads = [threading.Thread(target=work, args=(own, f"w{n}")) for n, own in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == wanted
    assert store.jobs.counts() == {(JobKind.SEGMENT_SERIES, JobState.DONE): wanted}


def test_enqueuing_in_parallel_adds_one_job(store: Store, open_store: Callable[[], Store]) -> None:
    added: list[bool] = []
    stores = [store, open_store(), open_store()]
    threads = [threading.Thread(target=lambda own=own: added.append(enqueue(own, "a"))) for own in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == [False, False, True]


def test_a_retired_job_is_not_claimed(store: Store) -> None:
    job = queue_series(store)
    store.jobs.retry(job, now=NOON, run_after=NOON, reason="r")
    late = NOON + QUIET
    store.series.record_instance(make_instance(9), now=late)
    assert store.jobs.claim(late, kinds=ALL_KINDS, owner="w", lease=LEASE) is None


def test_a_job_that_waits_for_its_next_attempt_can_be_made_due(store: Store) -> None:
    enqueue(store, "a", JobKind.PUSH_UPDATE)
    job = claim(store, JobKind.PUSH_UPDATE)
    store.jobs.retry(job, now=NOON, run_after=NOON + 100 * SECOND, reason="away")
    assert not store.jobs.is_due(ALL_KINDS, NOON + SECOND)

    store.jobs.hasten(JobKind.PUSH_UPDATE, "a", now=NOON + SECOND)

    again = claim(store, JobKind.PUSH_UPDATE, now=NOON + SECOND)
    assert (again.id, again.attempt) == (job.id, 2)


def test_one_training_at_a_time_and_the_next_when_it_has_ended_or_died(store: Store) -> None:
    trainings = frozenset({JobKind.TRAIN_INCREMENT})
    enqueue(store, "a", JobKind.TRAIN_INCREMENT)
    enqueue(store, "b", JobKind.TRAIN_INCREMENT)
    enqueue(store, "s")
    first = store.jobs.claim(NOON, kinds=trainings, owner="one", lease=LEASE)
    assert first is not None

    assert store.jobs.claim(NOON, kinds=trainings, owner="two", lease=LEASE) is None
    assert not store.jobs.is_due(trainings, NOON)
    study = store.jobs.claim(NOON, kinds=ALL_KINDS, owner="two", lease=LEASE)
    assert study is not None
    assert study.digest == "s"

    later = NOON + LEASE + SECOND  # the process died: its training is taken up again, by one
    again = store.jobs.claim(later, kinds=trainings, owner="two", lease=LEASE)
    assert again is not None
    assert again.digest == "a"
    assert store.jobs.claim(later, kinds=trainings, owner="three", lease=LEASE) is None
    store.jobs.finish(again, now=later)
    last = store.jobs.claim(later, kinds=trainings, owner="three", lease=LEASE)
    assert last is not None
    assert last.digest == "b"


def test_many_who_ask_at_once_get_one_training(store: Store) -> None:
    for digest in "abcd":
        enqueue(store, digest, JobKind.TRAIN_INCREMENT)
    start = threading.Barrier(4)
    given: list[Job | None] = []

    def ask(name: str) -> None:
        start.wait()
        given.append(store.jobs.claim(NOON, kinds=ALL_KINDS, owner=name, lease=LEASE))

    threads = [threading.Thread(target=ask, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([job for job in given if job is not None]) == 1
