"""Everything at once: images, clocks, persons and workers that lose their leases, on one database."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dicomnode.domain import Job, JobKind, JobState, SeriesState, SopInstanceUid
from dicomnode.errors import InputError, LeaseLostError
from dicomnode.store import DeliveryState, Store

from .conftest import make_instance, make_result, make_written

SERIES = ("1.0", "1.1")
SECONDS = 2.0
Step = Callable[[Store, random.Random], None]


def receive(store: Store, choices: random.Random) -> None:
    image = make_instance(choices.randint(1, 40), series=choices.choice(SERIES), content=choices.choice("ab"))
    store.series.record_instance(image, now=datetime.now(UTC))
    time.sleep(0.02)


def tick(store: Store, choices: random.Random) -> None:
    store.series.enqueue_quiet(datetime.now(UTC), timedelta(milliseconds=choices.choice((0, 10))))
    time.sleep(0.005)


def insist(store: Store, choices: random.Random) -> None:
    try:
        store.series.force(choices.choice(SERIES), now=datetime.now(UTC))
    except InputError:
        return  # nothing has arrived yet
    time.sleep(0.05)


def work(store: Store, choices: random.Random) -> None:
    now = datetime.now(UTC)
    lease = timedelta(milliseconds=choices.choice((1, 50)))
    job = store.jobs.claim(now, kinds=set(JobKind), owner=str(choices.random()), lease=lease)
    if job is None:
        return
    time.sleep(choices.choice((0, 0.01)))
    match choices.randrange(10):
        case 0:
            store.jobs.set_aside(job, now=now, reason="bad input")
        case 1:
            store.jobs.retry(job, now=now, run_after=now, reason="peer down")
        case _:
            end_well(store, job)


def end_well(store: Store, job: Job) -> None:
    now = datetime.now(UTC)
    if job.kind is JobKind.DELIVER_RESULT:
        store.results.mark_sent(job, int(job.subject), now=now)
        return
    uid = SopInstanceUid(f"2.25.{int(job.digest[:12], 16)}")
    result = replace(make_result(series=job.subject, digest=job.digest), sop_instance_uid=uid)
    written = make_written(result, "PACS", "ARCHIVE")
    store.results.finish_segmentation(job, result, [written], now=now)


def repeat(step: Step, store: Store, seed: int, errors: list[Exception]) -> None:
    choices, end = random.Random(seed), time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            step(store, choices)
        except LeaseLostError:
            continue
        except Exception as error:  # shown in the main thread
            errors.append(error)
            return


def test_after_any_bustle_each_series_has_one_standing_result_that_is_sent_once(
    store: Store, open_store: Callable[[], Store]
) -> None:
    errors: list[Exception] = []
    steps = (receive, receive, tick, insist, work, work, work)
    threads = [
        threading.Thread(target=repeat, args=(step, open_store(), seed, errors))
        for seed, step in enumerate(steps)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    settle(store)
    assert {row.state for row in store.jobs.list(limit=10_000)} <= {JobState.DONE, JobState.SET_ASIDE}
    for uid in SERIES:
        assert store.series.state(uid) in (SeriesState.DELIVERED, SeriesState.SEGMENTED)
        [standing] = [result for result in store.results.all_for_series(uid) if not result.superseded]
        assert standing.source_digest == store.series.revision_digest(uid)
        deliveries = store.results.deliveries_of(standing.sop_instance_uid)
        assert sorted(delivery.destination for delivery in deliveries) == ["ARCHIVE", "PACS"]
        assert {delivery.state for delivery in deliveries} <= {DeliveryState.SENT, DeliveryState.PENDING}


def settle(store: Store) -> None:
    """One more image for each series, and then one patient worker until nothing is left."""
    later = datetime.now(UTC) + timedelta(hours=1)
    for uid in SERIES:
        store.series.record_instance(make_instance(99, series=uid), now=later)
    assert store.series.enqueue_quiet(later, timedelta(0)) == len(SERIES)
    day = timedelta(days=1)
    while (job := store.jobs.claim(later, kinds=set(JobKind), owner="last", lease=day)) is not None:
        end_well(store, job)
