"""The life of a job: claim it, run its story, record how it ended.

The database is the queue. A job is leased, the lease is renewed by a heartbeat, and a job whose worker
died becomes claimable again. This module holds the only broad ``except`` of the node: whatever a story
raises, the job ends in a recorded state and the process lives on.
"""

import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic

import structlog

from dicomnode.domain import Job, JobKind
from dicomnode.errors import InputError, LeaseLostError, PeerError, ResourceError
from dicomnode.pipeline import adopt, correct, deliver, images, learn, push, segment
from dicomnode.pipeline.tools import Interrupted, Tools

log = structlog.get_logger()

Story = Callable[[Job, Tools], None]

STORIES: dict[JobKind, Story] = {
    JobKind.SEGMENT_SERIES: segment.segment_series,
    JobKind.DELIVER_RESULT: deliver.deliver_result,
    JobKind.INGEST_CORRECTION: correct.ingest_correction,
    JobKind.FETCH_IMAGES: images.fetch_images,
    JobKind.TRAIN_INCREMENT: learn.train_increment,
    JobKind.PUSH_UPDATE: push.push_update,
    JobKind.ADOPT_RELEASE: adopt.adopt_release,
}

# Lanes, so that a dead PACS or a slow line never holds up a segmentation, nor a slow archive a delivery.
LANES: dict[str, frozenset[JobKind]] = {
    "compute": frozenset(
        {
            JobKind.SEGMENT_SERIES,
            JobKind.INGEST_CORRECTION,
            JobKind.TRAIN_INCREMENT,
            JobKind.ADOPT_RELEASE,
        }
    ),
    "network": frozenset({JobKind.DELIVER_RESULT, JobKind.PUSH_UPDATE}),
    "archive": frozenset({JobKind.FETCH_IMAGES}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a job is tried again after a fault that may pass."""

    maximum_attempts: int  # of a job whose process dies
    patience_attempts: int  # of a job that waits for a peer, or for room on this machine
    backoff: timedelta
    backoff_cap: timedelta

    def wait(self, attempt: int) -> timedelta:
        """Double the wait with every attempt, up to the cap."""
        return min(self.backoff * (1 << min(attempt - 1, 30)), self.backoff_cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One claimant of jobs: a name, the kinds it takes, and how it leases and retries them."""

    owner: str
    kinds: Collection[JobKind]
    tools: Tools
    lease: timedelta
    poll_s: float  # pause after an empty claim
    retry: RetryPolicy
    stories: Mapping[JobKind, Story] = field(default_factory=lambda: STORIES)

    def run_once(self) -> bool:
        """Claim one job and see it to its end; False when nothing was due."""
        job = self.tools.store.jobs.claim(
            self.tools.now(), kinds=self.kinds, owner=self.owner, lease=self.lease
        )
        if job is None:
            return False
        started = monotonic()
        if job.was_abandoned and job.attempt > self.retry.maximum_attempts:
            outcome = self._give_up(job, "the process died in the last one; the system's log may say why")
        else:
            with self._heartbeat(job):
                outcome = self._run(job)
        log.info(
            "job ended",
            job=job.id,
            kind=job.kind.value,
            subject=job.subject,
            attempt=job.attempt,
            outcome=outcome,
            seconds=round(monotonic() - started, 2),
        )
        return True

    def run_forever(self, *, should_stop: Callable[[], bool], wait: Callable[[float], object]) -> None:
        """Work until told to stop; ``wait`` sleeps between empty claims and ends early at a stop."""
        while not should_stop():
            try:
                if not self.run_once():
                    wait(self.poll_s)
            except ResourceError as error:  # the database itself: nothing can be recorded now
                log.error("worker pauses", owner=self.owner, reason=str(error))
                wait(self.retry.backoff.total_seconds())

    def _run(self, job: Job) -> str:
        """Run the story and record the outcome; the one broad except of the node."""
        queue = self.tools.store.jobs
        try:
            self.stories[job.kind](job, self.tools)
        except Interrupted as interruption:
            now = self.tools.now()
            queue.defer(job, interruption.until or now, now=now, reason=str(interruption))
            return f"put back: {interruption}"
        except LeaseLostError:
            return "dropped: another worker holds the job"
        except InputError as error:
            queue.set_aside(job, now=self.tools.now(), reason=str(error))
            return f"set aside: {error}"
        except (PeerError, ResourceError) as error:
            return self._retry_or_fail(job, error)
        except Exception as error:
            log.exception("internal fault", job=job.id, kind=job.kind.value)
            reason = f"internal fault: {type(error).__name__}; the traceback is kept with the job"
            queue.fail(job, now=self.tools.now(), reason=reason, traceback=traceback.format_exc())
            return f"failed: {reason}"
        return "done"

    def _retry_or_fail(self, job: Job, error: PeerError | ResourceError) -> str:
        if job.attempt >= self.retry.patience_attempts:
            return self._give_up(job, str(error))
        now = self.tools.now()
        again = now + self.retry.wait(job.attempt)
        self.tools.store.jobs.retry(job, now=now, run_after=again, reason=str(error))
        return f"to be tried again: {error}"

    def _give_up(self, job: Job, why: str) -> str:
        reason = f"gave up at attempt {job.attempt}: {why}"
        self.tools.store.jobs.fail(job, now=self.tools.now(), reason=reason)
        return f"failed: {reason}"

    @contextmanager
    def _heartbeat(self, job: Job) -> Iterator[None]:
        """Renew the lease while the story runs."""
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(job, ended), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _renew(self, job: Job, ended: threading.Event) -> None:
        while not ended.wait(self.lease.total_seconds() / 3):
            try:
                kept = self.tools.store.jobs.renew(job, now=self.tools.now(), lease=self.lease)
            except ResourceError as error:
                log.warning("lease not renewed", job=job.id, reason=str(error))
                continue
            if not kept:
                if not ended.wait(1.0):  # else the story has just ended the job itself
                    log.warning("lease lost", job=job.id, kind=job.kind.value)
                return
