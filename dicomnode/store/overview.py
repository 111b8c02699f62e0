"""One look at everything, for ``dicomnode status`` and the web."""

from sqlalchemy import func
from sqlmodel import Session, col, select

from dicomnode.domain import CorrectionState, JobKind, JobState, Recognition, SeriesState
from dicomnode.store.leases import job_row
from dicomnode.store.models import model_record
from dicomnode.store.records import DeliveryState, DestinationStatus, Overview
from dicomnode.store.series import series_row
from dicomnode.store.tables import CorrectionTable, DeliveryTable, JobTable, ModelTable, SeriesTable


def read_overview(session: Session, *, limit: int) -> Overview:
    """Gather counts and troubles inside one transaction, so that they agree with one another.

    Parameters
    ----------
    limit
        How many set-aside series and troubled jobs to list, each.
    """
    series = session.exec(select(SeriesTable.state, func.count()).group_by(col(SeriesTable.state)))
    jobs = session.exec(
        select(JobTable.kind, JobTable.state, func.count()).group_by(col(JobTable.kind), col(JobTable.state))
    )
    recognitions = session.exec(
        select(CorrectionTable.recognition, func.count()).group_by(col(CorrectionTable.recognition))
    )
    set_aside = session.exec(
        select(SeriesTable)
        .where(col(SeriesTable.state) == SeriesState.SET_ASIDE, col(SeriesTable.fetched_from) == "")
        .order_by(col(SeriesTable.updated_at).desc())
        .limit(limit)
    ).all()
    troubled = session.exec(
        select(JobTable)
        .where(col(JobTable.state).in_((JobState.SET_ASIDE, JobState.FAILED)))
        .order_by(col(JobTable.updated_at).desc())
        .limit(limit)
    )
    current = session.exec(
        select(ModelTable).where(col(ModelTable.state) == "current").order_by(col(ModelTable.name))
    )
    return Overview(
        series=tuple(sorted((SeriesState(state), n) for state, n in series)),
        jobs=tuple(sorted((JobKind(kind), JobState(state), n) for kind, state, n in jobs)),
        set_aside=tuple(series_row(session, row) for row in set_aside),
        troubled_jobs=tuple(job_row(row) for row in troubled),
        destinations=_destinations(session),
        corrections=tuple(sorted((Recognition(found), n) for found, n in recognitions)),
        held_corrections=_held_corrections(session),
        models=tuple(model_record(row) for row in current),
    )


def _held_corrections(session: Session) -> int:
    held = col(CorrectionTable.state) == CorrectionState.HELD
    return session.exec(select(func.count()).select_from(CorrectionTable).where(held)).one()


def _destinations(session: Session) -> tuple[DestinationStatus, ...]:
    counted = session.exec(
        select(DeliveryTable.destination, DeliveryTable.state, func.count()).group_by(
            col(DeliveryTable.destination), col(DeliveryTable.state)
        )
    )
    counts = {(destination, state): n for destination, state, n in counted}
    return tuple(
        DestinationStatus(
            destination=destination,
            pending=counts.get((destination, DeliveryState.PENDING), 0),
            sent=counts.get((destination, DeliveryState.SENT), 0),
            last_error=_last_error(session, destination),
        )
        for destination in sorted({destination for destination, _ in counts})
    )


def _last_error(session: Session, destination: str) -> str:
    statement = (
        select(DeliveryTable.last_error)
        .where(
            col(DeliveryTable.destination) == destination,
            col(DeliveryTable.state) == DeliveryState.PENDING,
            col(DeliveryTable.last_error) != "",
        )
        .order_by(col(DeliveryTable.id).desc())
    )
    return session.exec(statement).first() or ""
