"""A job's life: whatever its story does, the job ends in a recorded state and the worker lives on."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode.domain import Job, JobKind, JobState
from dicomnode.errors import AssociationError, DatabaseError, GeometryError, SpoolFullError
from dicomnode.node import opened_tools
from dicomnode.pipeline.tools import Interrupted, Tools
from dicomnode.settings import NodeSection, NodeSettings
from dicomnode.store import JobRow, Store
from dicomnode.worker import STORIES, RetryPolicy, Story, Worker

KIND = JobKind.ADOPT_RELEASE  # touches no series: the job alone is looked at
LEASE = timedelta(seconds=60)
RETRY = RetryPolicy(
    maximum_attempts=4, patience_attempts=4, backoff=timedelta(seconds=5), backoff_cap=timedelta(seconds=15)
)


@dataclass(slots=True)
class Clock:
    """A clock that a test moves."""

    time: datetime = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A worker on a real database, and the clock that it looks at."""

    clock: Clock
    tools: Tools

    @property
    def store(self) -> Store:
        return self.tools.store

    def worker(self, story: Story, *, owner: str = "first", lease: timedelta = LEASE) -> Worker:
        """A claimant whose jobs all run one story."""
        return Worker(
            owner=owner,
            kinds={KIND},
            tools=self.tools,
            lease=lease,
            poll_s=0.01,
            retry=RETRY,
            stories={KIND: story},
        )

    def enqueue(self, digest: str = "d") -> None:
        assert self.store.jobs.enqueue(KIND, "subject", digest, now=self.clock())

    def job(self, digest: str = "d") -> JobRow:
        row = self.store.jobs.find(KIND, digest)
        assert row is not None
        return row


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    clock = Clock()
    with opened_tools(NodeSettings(node=NodeSection(data_dir=tmp_path))) as tools:
        yield Bench(clock=clock, tools=replace(tools, now=clock))


def finish(job: Job, tools: Tools) -> None:
    """A story that does its work: every story ends its job itself, with what it made, in one transaction."""
    tools.store.jobs.finish(job, now=tools.now(), reason="made")


def raising(error: Exception) -> Story:
    def story(_job: Job, _tools: Tools) -> None:
        raise error

    return story


def test_every_kind_of_job_has_a_story() -> None:
    assert set(STORIES) == set(JobKind)


def test_a_story_that_does_its_work_ends_the_job(bench: Bench) -> None:
    bench.enqueue()
    worker = bench.worker(finish)

    assert worker.run_once()
    assert (bench.job().state, bench.job().reason) == (JobState.DONE, "made")
    assert not worker.run_once()


def test_an_input_at_fault_sets_the_job_aside_at_the_first_attempt(bench: Bench) -> None:
    bench.enqueue()
    worker = bench.worker(raising(GeometryError("series 1.2.3: no geometry")))

    assert worker.run_once()
    row = bench.job()
    assert (row.state, row.attempts, row.reason) == (
        JobState.SET_ASIDE,
        1,
        "series 1.2.3: no geometry",
    )
    assert row.traceback == ""
    bench.clock.move(100_000)
    assert not worker.run_once()


@pytest.mark.parametrize("error", [AssociationError("no PACS"), SpoolFullError("no room")])
def test_a_fault_that_may_pass_is_retried_with_growing_waits_and_then_fails(
    bench: Bench, error: Exception
) -> None:
    bench.enqueue()
    worker = bench.worker(raising(error))

    waits = []
    for attempt in (1, 2, 3):
        assert worker.run_once()
        row = bench.job()
        assert (row.state, row.attempts, row.reason) == (JobState.READY, attempt, str(error))
        waits.append((row.run_after - bench.clock()).total_seconds())
        bench.clock.move(waits[-1] - 0.01)
        assert not worker.run_once()
        bench.clock.move(0.01)
    assert waits == [5, 10, 15]  # doubled, up to the cap

    assert worker.run_once()
    row = bench.job()
    assert (row.state, row.attempts) == (JobState.FAILED, 4)
    assert row.reason == f"gave up at attempt 4: {error}"


def test_a_peer_that_comes_back_ends_the_retries(bench: Bench) -> None:
    bench.enqueue()
    bench.worker(raising(AssociationError("no PACS"))).run_once()
    bench.clock.move(5)

    assert bench.worker(finish).run_once()
    assert (bench.job().state, bench.job().attempts) == (JobState.DONE, 2)


def test_a_bug_fails_the_job_with_its_traceback_and_the_worker_takes_the_next(bench: Bench) -> None:
    def stumble(job: Job, tools: Tools) -> None:
        if job.digest == "bad":
            raise KeyError("no such key")
        finish(job, tools)

    bench.enqueue("bad")
    bench.enqueue("good")
    worker = bench.worker(stumble)

    assert worker.run_once()
    assert worker.run_once()
    bad = bench.job("bad")
    assert bad.state is JobState.FAILED
    assert bad.reason == "internal fault: KeyError; the traceback is kept with the job"
    assert "in stumble" in bad.traceback
    assert bench.job("good").state is JobState.DONE


def test_an_interrupted_job_is_put_back_without_counting_the_attempt(bench: Bench) -> None:
    bench.enqueue()
    for _ in range(RETRY.maximum_attempts + 2):
        assert bench.worker(raising(Interrupted("a study waits"))).run_once()

    row = bench.job()
    assert (row.state, row.attempts, row.reason) == (JobState.READY, 0, "a study waits")
    assert bench.worker(finish).run_once()
    assert bench.job().state is JobState.DONE


def test_a_worker_that_lost_its_lease_changes_nothing(bench: Bench) -> None:
    def outlasted(job: Job, tools: Tools) -> None:
        bench.clock.move(LEASE.total_seconds() + 1)
        other = tools.store.jobs.claim(tools.now(), kinds={KIND}, owner="second", lease=LEASE)
        assert other is not None
        finish(job, tools)

    bench.enqueue()

    assert bench.worker(outlasted).run_once()
    row = bench.job()
    assert (row.state, row.lease_owner, row.attempts) == (JobState.RUNNING, "second", 2)


@pytest.mark.parametrize(
    "error", [GeometryError("g"), AssociationError("a"), Interrupted("i"), ValueError("bug")]
)
def test_however_a_story_ends_after_its_lease_was_lost_the_worker_lives(
    bench: Bench, error: Exception
) -> None:
    def outlasted(_job: Job, tools: Tools) -> None:
        bench.clock.move(LEASE.total_seconds() + 1)
        assert tools.store.jobs.claim(tools.now(), kinds={KIND}, owner="second", lease=LEASE) is not None
        raise error

    bench.enqueue()
    turns = iter([False, True])

    bench.worker(outlasted).run_forever(should_stop=lambda: next(turns), wait=lambda _: None)
    row = bench.job()
    assert (row.state, row.lease_owner, row.reason) == (JobState.RUNNING, "second", "")


def test_a_job_that_kills_its_process_each_time_is_given_up(bench: Bench) -> None:
    bench.enqueue()
    for _ in range(RETRY.maximum_attempts):  # claimed, and the process is gone before it can record anything
        assert bench.store.jobs.claim(bench.clock(), kinds={KIND}, owner="dead", lease=LEASE) is not None
        bench.clock.move(LEASE.total_seconds())

    assert bench.worker(finish).run_once()
    row = bench.job()
    assert row.state is JobState.FAILED
    assert row.reason.startswith("gave up at attempt 5: the process died")


def test_the_heartbeat_keeps_the_lease_of_a_long_story(bench: Bench) -> None:
    def real_time() -> datetime:
        return datetime.now(UTC)

    def slow(job: Job, tools: Tools) -> None:
        time.sleep(3)  # three leases
        stolen = tools.store.jobs.claim(tools.now(), kinds={KIND}, owner="second", lease=LEASE)
        assert stolen is None
        finish(job, tools)

    bench.enqueue()
    live = replace(bench, tools=replace(bench.tools, now=real_time))
    bench.clock.move(-3600)

    assert live.worker(slow, lease=timedelta(seconds=1)).run_once()
    assert (bench.job().state, bench.job().attempts) == (JobState.DONE, 1)


def test_a_database_that_does_not_answer_pauses_the_worker(bench: Bench, tmp_path: Path) -> None:
    def lose_the_database(_job: Job, tools: Tools) -> None:
        tools.store.close()
        (tmp_path / "node.sqlite").rename(tmp_path / "away")
        (tmp_path / "node.sqlite").mkdir()
        raise DatabaseError("no answer")

    bench.enqueue()
    waits: list[float] = []
    turns = iter([False, False, True])

    bench.worker(lose_the_database).run_forever(should_stop=lambda: next(turns), wait=waits.append)
    assert waits == [5.0, 5.0]  # the outcome could not be recorded, and nothing can be claimed
