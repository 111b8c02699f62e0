"""Jobs inside a transaction of the caller: adding them, and ending them only while they are held."""

from datetime import datetime

from sqlalchemy import CursorResult
from sqlmodel import Session, col, select, update

from dicomnode.domain import Job, JobKind, JobState, SeriesState
from dicomnode.errors import LeaseLostError
from dicomnode.store.database import insert_new
from dicomnode.store.records import DeliveryState, JobRow
from dicomnode.store.tables import DeliveryTable, JobTable, SeriesTable


def insert_job(
    session: Session,
    kind: JobKind,
    subject: str,
    digest: str,
    *,
    now: datetime,
    run_after: datetime | None = None,
    priority: int = 0,
) -> bool:
    """Add a job inside a transaction; False when one of that kind and digest exists."""
    values = {
        "kind": kind,
        "subject": subject,
        "digest": digest,
        "state": JobState.READY,
        "priority": priority,
        "attempts": 0,
        "run_after": run_after or now,
        "lease_owner": "",
        "reason": "",
        "traceback": "",
        "created_at": now,
        "updated_at": now,
    }
    return insert_new(session, JobTable, values) is not None


def end_job(
    session: Session,
    job: Job,
    state: JobState,
    *,
    now: datetime,
    reason: str = "",
    traceback: str = "",
    run_after: datetime | None = None,
) -> None:
    """Give a held job its next state inside a transaction, and tell its delivery how it went.

    Raises
    ------
    LeaseLostError
        Another worker holds the job by now; the transaction must be undone.
    """
    values: dict[str, object] = {
        "state": state,
        "reason": reason,
        "traceback": traceback,
        "lease_owner": "",
        "lease_until": None,
        "updated_at": now,
    }
    if run_after is not None:
        values["run_after"] = run_after
    if not change_held(session, job, values):
        raise lease_lost(job)
    # After the job is locked: a result that stands again in between would else be left without its job.
    if state is JobState.READY and _is_withdrawn(session, job):
        session.exec(update(JobTable).where(col(JobTable.id) == job.id).values(state=JobState.DONE))
    if job.kind is JobKind.DELIVER_RESULT:
        session.exec(
            update(DeliveryTable)
            .where(col(DeliveryTable.id) == int(job.subject))
            .values(attempts=job.attempt, last_error="" if state is JobState.DONE else reason)
        )


def retire_waiting(session: Session, kind: JobKind, subject: str, *, now: datetime, reason: str) -> int:
    """End the waiting jobs about a subject that something newer made pointless."""
    result: CursorResult[tuple[()]] = session.exec(
        update(JobTable)
        .where(
            col(JobTable.kind) == kind,
            col(JobTable.subject) == subject,
            col(JobTable.state) == JobState.READY,
        )
        .values(state=JobState.DONE, reason=reason, updated_at=now)
    )
    return result.rowcount


def revive(row: JobTable, *, now: datetime) -> None:
    """Make an ended job claimable again, with all its attempts."""
    row.state = JobState.READY
    row.attempts = 0
    row.run_after = now
    row.reason = ""
    row.traceback = ""
    row.updated_at = now


def revive_ended(
    session: Session,
    kind: JobKind,
    subject: str,
    *,
    now: datetime,
    digest: str = "",
    priority: int | None = None,
) -> None:
    """Make the job about a subject claimable again, unless a worker has it in hand; None: same priority."""
    statement = select(JobTable).where(col(JobTable.kind) == kind, col(JobTable.subject) == subject)
    if digest:
        statement = statement.where(col(JobTable.digest) == digest)
    row = session.exec(statement.with_for_update()).one()
    if row.state != JobState.RUNNING:
        revive(row, now=now)
        row.priority = row.priority if priority is None else priority
        session.add(row)


def job_row(row: JobTable) -> JobRow:
    """Copy a row into a record."""
    return JobRow(
        id=row.id or 0,
        kind=JobKind(row.kind),
        subject=row.subject,
        digest=row.digest,
        state=JobState(row.state),
        priority=row.priority,
        attempts=row.attempts,
        run_after=row.run_after,
        lease_owner=row.lease_owner,
        lease_until=row.lease_until,
        reason=row.reason,
        traceback=row.traceback,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def change_held(session: Session, job: Job, values: dict[str, object]) -> bool:
    """Change a job only while it is held by the owner and attempt that claimed it."""
    result: CursorResult[tuple[()]] = session.exec(
        update(JobTable)
        .where(
            col(JobTable.id) == job.id,
            col(JobTable.state) == JobState.RUNNING,
            col(JobTable.lease_owner) == job.lease_owner,
            col(JobTable.attempts) == job.attempt,
        )
        .values(**values)
    )
    return result.rowcount == 1


def _is_withdrawn(session: Session, job: Job) -> bool:
    """Answer whether the job is to deliver a result that a newer one has replaced."""
    if job.kind is not JobKind.DELIVER_RESULT:
        return False
    delivery = session.get(DeliveryTable, int(job.subject))
    return delivery is not None and delivery.state == DeliveryState.SUPERSEDED


def hold_series_of(session: Session, job: Job) -> None:
    """Lock the series of a segmentation before its job, as every transaction does that needs both."""
    if job.kind is JobKind.SEGMENT_SERIES:
        session.get(SeriesTable, job.subject, with_for_update=True)


def set_series_aside(session: Session, job: Job, *, now: datetime, reason: str) -> None:
    """Show the reason at the series too, unless a later image has reopened it meanwhile."""
    if job.kind is not JobKind.SEGMENT_SERIES:
        return
    session.exec(
        update(SeriesTable)
        .where(
            col(SeriesTable.series_instance_uid) == job.subject,
            col(SeriesTable.digest) == job.digest,
            col(SeriesTable.state) == SeriesState.QUEUED,
        )
        .values(state=SeriesState.SET_ASIDE, reason=reason, updated_at=now)
    )


def lease_lost(job: Job) -> LeaseLostError:
    """Say whose lease was lost."""
    message = f"job {job.id} ({job.kind}) is no longer held by {job.lease_owner}, attempt {job.attempt}"
    return LeaseLostError(message)
