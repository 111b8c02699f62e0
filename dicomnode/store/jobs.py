"""The queue: the database itself. A job is claimed under a lease, and only its holder can end it.

Holder means the owner and the attempt that `JobQueue.claim` gave: a worker whose lease ran out and whose job
another one took can no longer change anything.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, case, func
from sqlalchemy.orm import aliased
from sqlmodel import Session, and_, col, or_, select, update

from dicomnode.domain import Job, JobKind, JobPriority, JobState, SeriesState
from dicomnode.errors import InputError
from dicomnode.store.database import Database
from dicomnode.store.leases import (
    change_held,
    end_job,
    hold_series_of,
    insert_job,
    job_row,
    lease_lost,
    revive,
    set_series_aside,
)
from dicomnode.store.records import JobRow
from dicomnode.store.tables import JobTable, SeriesTable

# Studies first; inside a rank by priority, then first in first out.
_RANK = {
    JobKind.SEGMENT_SERIES: 0,
    JobKind.DELIVER_RESULT: 0,
    JobKind.INGEST_CORRECTION: 0,
    JobKind.FETCH_IMAGES: 0,
    JobKind.ADOPT_RELEASE: 1,
    JobKind.PUSH_UPDATE: 1,
    JobKind.TRAIN_INCREMENT: 2,
}


class JobQueue:
    """Jobs, unique by kind and digest of their inputs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enqueue(
        self,
        kind: JobKind,
        subject: str,
        digest: str,
        *,
        now: datetime,
        run_after: datetime | None = None,
        priority: int = 0,
    ) -> bool:
        """Add a job unless one of that kind and digest was ever added; higher priority first in a rank."""
        with self._database.writing() as session:
            return insert_job(session, kind, subject, digest, now=now, run_after=run_after, priority=priority)

    def claim(self, now: datetime, *, kinds: Collection[JobKind], owner: str, lease: timedelta) -> Job | None:
        """Take the first job that is due, or whose holder let its lease run out; count the attempt.

        While one training runs at this site, no other is given out.

        Returns
        -------
            None when nothing is due.
        """
        rank = case({str(kind): rank for kind, rank in _RANK.items()}, value=col(JobTable.kind))
        statement = (
            select(JobTable)
            .where(*_claimable(kinds, now))
            .order_by(rank, col(JobTable.priority).desc(), col(JobTable.id))
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._database.writing() as session:
            if JobKind.TRAIN_INCREMENT in kinds:
                _hold_trainings(session)
            row = session.exec(statement).first()
            if row is None:
                return None
            was_abandoned = row.state == JobState.RUNNING
            row.state = JobState.RUNNING
            row.attempts += 1
            row.lease_owner = owner
            row.lease_until = now + lease
            row.updated_at = now
            session.add(row)
            return _claimed(row, was_abandoned=was_abandoned)

    def is_due(self, kinds: Collection[JobKind], now: datetime) -> bool:
        """Answer whether a job of these kinds could be claimed."""
        with self._database.reading() as session:
            return (
                session.exec(select(JobTable.id).where(*_claimable(kinds, now)).limit(1)).first() is not None
            )

    def renew(self, job: Job, *, now: datetime, lease: timedelta) -> bool:
        """Prolong the lease; False when the job belongs to another worker by now."""
        with self._database.writing() as session:
            return change_held(session, job, {"lease_until": now + lease, "updated_at": now})

    def finish(self, job: Job, *, now: datetime, reason: str = "") -> None:
        """End a job that did what it was for.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was changed.
        """
        with self._database.writing() as session:
            end_job(session, job, JobState.DONE, now=now, reason=reason)

    def retry(self, job: Job, *, now: datetime, run_after: datetime, reason: str) -> None:
        """Put a job back for a later attempt; this one counted.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was changed.
        """
        with self._database.writing() as session:
            end_job(session, job, JobState.READY, now=now, reason=reason, run_after=run_after)

    def defer(
        self,
        job: Job,
        run_after: datetime,
        *,
        now: datetime | None = None,
        reason: str = "",
        priority: int | None = None,
    ) -> None:
        """Put a job back as if it had not been claimed: the attempt does not count.

        Parameters
        ----------
        priority
            A new one; None keeps the old.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was changed.
        """
        values: dict[str, object] = {
            "state": JobState.READY,
            "attempts": job.attempt - 1,
            "run_after": run_after,
            "reason": reason,
            "lease_owner": "",
            "lease_until": None,
            "updated_at": now or run_after,
            "priority": job.priority if priority is None else priority,
        }
        with self._database.writing() as session:
            if not change_held(session, job, values):
                raise lease_lost(job)

    def set_aside(self, job: Job, *, now: datetime, reason: str) -> None:
        """End a job whose input is at fault; its series is set aside with the same reason.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was changed.
        """
        with self._database.writing() as session:
            hold_series_of(session, job)
            end_job(session, job, JobState.SET_ASIDE, now=now, reason=reason)
            set_series_aside(session, job, now=now, reason=reason)

    def fail(self, job: Job, *, now: datetime, reason: str, traceback: str = "") -> None:
        """End a job that used up its attempts, or met a bug; its series is set aside with the reason.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was changed.
        """
        with self._database.writing() as session:
            hold_series_of(session, job)
            end_job(session, job, JobState.FAILED, now=now, reason=reason, traceback=traceback)
            set_series_aside(session, job, now=now, reason=reason)

    def hasten(self, kind: JobKind, digest: str, *, now: datetime) -> None:
        """Let a job that waits be due at once and wait for nothing more, as a person asked."""
        with self._database.writing() as session:
            session.exec(
                update(JobTable)
                .where(
                    col(JobTable.kind) == kind,
                    col(JobTable.digest) == digest,
                    col(JobTable.state) == JobState.READY,
                )
                .values(
                    run_after=case((col(JobTable.run_after) > now, now), else_=col(JobTable.run_after)),
                    priority=JobPriority.FORCED,
                    updated_at=now,
                )
            )

    def waiting(self, kind: JobKind, subject: str) -> tuple[JobRow, ...]:
        """Find the jobs about a subject that wait for their next attempt."""
        statement = select(JobTable).where(
            col(JobTable.kind) == kind,
            col(JobTable.subject) == subject,
            col(JobTable.state) == JobState.READY,
        )
        with self._database.reading() as session:
            return tuple(job_row(row) for row in session.exec(statement))

    def requeue(self, job_id: int, *, now: datetime) -> JobRow:
        """Give a set-aside or failed job a fresh start, as a person asked.

        Raises
        ------
        InputError
            No such job, or one that is waiting, running or done.
        """
        with self._database.writing() as session:
            row = session.get(JobTable, job_id, with_for_update=True)
            if row is None:
                message = f"there is no job {job_id}"
                raise InputError(message)
            if row.state not in (JobState.SET_ASIDE, JobState.FAILED):
                message = f"job {job_id} is {row.state}; only a job that is set aside or failed is run again"
                raise InputError(message)
            revive(row, now=now)
            session.add(row)
            if row.kind == JobKind.SEGMENT_SERIES:
                session.exec(
                    update(SeriesTable)
                    .where(
                        col(SeriesTable.series_instance_uid) == row.subject,
                        col(SeriesTable.digest) == row.digest,
                        # SEGMENTED: a form of the result could not be written.
                        col(SeriesTable.state).in_((SeriesState.SET_ASIDE, SeriesState.SEGMENTED)),
                    )
                    .values(state=SeriesState.QUEUED, reason="", updated_at=now)
                )
            return job_row(row)

    def counts(self) -> dict[tuple[JobKind, JobState], int]:
        """Count the jobs by kind and state."""
        statement = select(JobTable.kind, JobTable.state, func.count()).group_by(
            col(JobTable.kind), col(JobTable.state)
        )
        with self._database.reading() as session:
            return {(JobKind(kind), JobState(state)): n for kind, state, n in session.exec(statement)}

    def get(self, job_id: int) -> JobRow | None:
        """Look a job up by its number."""
        with self._database.reading() as session:
            row = session.get(JobTable, job_id)
            return None if row is None else job_row(row)

    def find(self, kind: JobKind, digest: str) -> JobRow | None:
        """Look a job up by what makes it unique."""
        statement = select(JobTable).where(col(JobTable.kind) == kind, col(JobTable.digest) == digest)
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else job_row(row)

    def list(
        self, *, state: JobState | None = None, kind: JobKind | None = None, limit: int = 100
    ) -> tuple[JobRow, ...]:
        """Read the jobs that changed last, newest first."""
        statement = select(JobTable).order_by(col(JobTable.updated_at).desc(), col(JobTable.id).desc())
        if state is not None:
            statement = statement.where(col(JobTable.state) == state)
        if kind is not None:
            statement = statement.where(col(JobTable.kind) == kind)
        with self._database.reading() as session:
            return tuple(job_row(row) for row in session.exec(statement.limit(limit)))


def _claimable(kinds: Collection[JobKind], now: datetime) -> tuple[ColumnElement[bool], ...]:
    """Conditions on a job that is due, or whose holder let its lease run out."""
    due = and_(col(JobTable.state) == JobState.READY, col(JobTable.run_after) <= now)
    abandoned = and_(col(JobTable.state) == JobState.RUNNING, col(JobTable.lease_until) <= now)
    other = aliased(JobTable)
    is_held = (
        select(other.id)
        .where(
            col(other.kind) == JobKind.TRAIN_INCREMENT,
            col(other.state) == JobState.RUNNING,
            col(other.lease_until) > now,
        )
        .exists()
    )
    has_turn = or_(col(JobTable.kind) != JobKind.TRAIN_INCREMENT, ~is_held)
    return col(JobTable.kind).in_(sorted(kinds)), or_(due, abandoned), has_turn


def _hold_trainings(session: Session) -> None:
    """Let those who claim trainings take turns, so that two of them never see the machine free at once."""
    statement = select(JobTable.id).where(
        col(JobTable.kind) == JobKind.TRAIN_INCREMENT,
        col(JobTable.state).in_((JobState.READY, JobState.RUNNING)),
    )
    session.exec(statement.order_by(col(JobTable.id)).with_for_update()).all()


def _claimed(row: JobTable, *, was_abandoned: bool) -> Job:
    return Job(
        id=row.id or 0,
        kind=JobKind(row.kind),
        subject=row.subject,
        digest=row.digest,
        attempt=row.attempts,
        lease_owner=row.lease_owner,
        lease_until=row.lease_until or row.updated_at,
        priority=row.priority,
        was_abandoned=was_abandoned,
    )
