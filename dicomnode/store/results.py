"""What we made and where it went: results, and their deliveries.

Rows are always locked in the order series, job, delivery, so that no two transactions wait for each other.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select, update

from dicomnode.domain import (
    Job,
    JobKind,
    JobState,
    ModelVersion,
    ResultForm,
    SeriesInstanceUid,
    SeriesState,
    Sha256,
    SopInstanceUid,
)
from dicomnode.store.audit import add_entry
from dicomnode.store.database import Database, insert_new
from dicomnode.store.leases import end_job, insert_job, retire_waiting, revive_ended
from dicomnode.store.receiving import record_result_instance
from dicomnode.store.records import (
    Delivery,
    DeliveryState,
    ResultObject,
    ResultRecord,
    Shortfall,
    WrittenObject,
)
from dicomnode.store.tables import (
    DeliveryTable,
    JobTable,
    ResultLabelTable,
    ResultObjectTable,
    ResultTable,
    SeriesTable,
)

NOTHING_FOUND = "segmented; the model marked no voxel, so there is no segmentation to send"


class ResultRows:
    """The segmentations made here, and one row for each destination of each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def finish_segmentation(
        self,
        job: Job,
        result: ResultRecord,
        written: Sequence[WrittenObject],
        *,
        now: datetime,
        shortfall: Shortfall | None = None,
    ) -> None:
        """End a segmentation in one transaction: result, deliveries, state of the series, end of the job.

        Earlier results of the series are superseded. When a later image has reopened the series meanwhile,
        the result is kept but superseded at once and not sent: the newer revision brings its own.
        A repeat with the same result adds nothing; a destination gets an object once in its life.

        Parameters
        ----------
        written
            The objects in the spool, the label map that keeps the result among them.
        shortfall
            What could not be written. What was written is sent all the same, but the series does not become
            delivered, and its job ends among those in trouble: a fresh start of it adds what is missing.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was recorded.
        DatabaseError
            Nothing was recorded.
        """
        with self._database.writing() as session:
            series = session.get(SeriesTable, job.subject, with_for_update=True)
            _end_segmentation(session, job, shortfall, now)
            is_newest = _is_newest(series, job)
            if is_newest:
                _supersede_others(session, job.subject, result, now)
            _keep_result(session, result, superseded=not is_newest)
            for position, one in enumerate(written):
                record_result_instance(session, one.instance)
                _keep_object(session, result, one.object, position)
                for destination in one.destinations if is_newest else ():
                    _add_delivery(session, result, one.object, destination, now)
            if series is not None and is_newest:
                series.state = SeriesState.SEGMENTED
                series.reason = _reason(result, shortfall)
                series.model_version = result.model_version
                series.updated_at = now
                session.add(series)
                session.flush()
                _note_delivered(session, job.subject, now)

    def by_sop_uid(self, sop_instance_uid: str) -> ResultRecord | None:
        """Find a result by the SOP instance UID of any object that says it."""
        return self._first(_has_object(col(ResultObjectTable.sop_instance_uid) == sop_instance_uid))

    def by_result_series(self, series_instance_uid: str) -> ResultRecord | None:
        """Find the newest result that has an object in a series of ours."""
        return self._first(_has_object(col(ResultObjectTable.series_instance_uid) == series_instance_uid))

    def by_voxels(self, source_series_uid: str, voxels_sha256: str) -> ResultRecord | None:
        """Find a result of a source series by the hash of its label volume."""
        return self._first(
            col(ResultTable.source_series_uid) == source_series_uid,
            col(ResultTable.voxels_sha256) == voxels_sha256,
        )

    def by_tracking_uid(self, tracking_uid: str) -> ResultRecord | None:
        """Find the newest result with a segment of this Tracking UID (0062,0021)."""
        owners = select(ResultLabelTable.result_sop_uid).where(
            col(ResultLabelTable.tracking_uid) == tracking_uid
        )
        return self._first(col(ResultTable.sop_instance_uid).in_(owners))

    def latest_for_series(self, source_series_uid: str) -> ResultRecord | None:
        """Find the result that stands for a source series now; it may be an empty one."""
        return self._first(
            col(ResultTable.source_series_uid) == source_series_uid, ~col(ResultTable.superseded)
        )

    def all_for_series(self, source_series_uid: str) -> list[ResultRecord]:
        """Read every result of a source series, oldest first."""
        statement = (
            select(ResultTable)
            .where(col(ResultTable.source_series_uid) == source_series_uid)
            .order_by(col(ResultTable.id))
        )
        with self._database.reading() as session:
            return [_record(session, row) for row in session.exec(statement).all()]

    def delivery(self, delivery_id: int) -> Delivery | None:
        """Look up a delivery by its number, which is the subject of its job."""
        with self._database.reading() as session:
            row = session.get(DeliveryTable, delivery_id)
            return None if row is None else _delivery(row)

    def deliveries_of(self, sop_instance_uid: str) -> list[Delivery]:
        """Read the deliveries of all objects of a result, in the order in which they were queued."""
        statement = (
            select(DeliveryTable)
            .where(col(DeliveryTable.result_sop_uid) == sop_instance_uid)
            .order_by(col(DeliveryTable.id))
        )
        with self._database.reading() as session:
            return [_delivery(row) for row in session.exec(statement)]

    def mark_sent(self, job: Job, delivery_id: int, *, now: datetime) -> None:
        """End a delivery in one transaction; with its last one the series is delivered.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was recorded.
        """
        with self._database.writing() as session:
            series_uid = session.exec(
                select(ResultTable.source_series_uid)
                .join(DeliveryTable, col(DeliveryTable.result_sop_uid) == col(ResultTable.sop_instance_uid))
                .where(col(DeliveryTable.id) == delivery_id)
            ).one()
            session.get(SeriesTable, series_uid, with_for_update=True)
            end_job(session, job, JobState.DONE, now=now)
            session.exec(
                update(DeliveryTable)
                .where(col(DeliveryTable.id) == delivery_id)
                .values(state=DeliveryState.SENT, sent_at=now)
            )
            _note_delivered(session, series_uid, now)

    def _first(self, *conditions: ColumnElement[bool]) -> ResultRecord | None:
        statement = select(ResultTable).where(*conditions)
        statement = statement.order_by(col(ResultTable.superseded), col(ResultTable.id).desc()).limit(1)
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else _record(session, row)


def _end_segmentation(session: Session, job: Job, shortfall: Shortfall | None, now: datetime) -> None:
    if shortfall is None:
        end_job(session, job, JobState.DONE, now=now)
        return
    state = JobState.FAILED if shortfall.traceback else JobState.SET_ASIDE
    end_job(session, job, state, now=now, reason=shortfall.reason, traceback=shortfall.traceback)


def _reason(result: ResultRecord, shortfall: Shortfall | None) -> str:
    words = (NOTHING_FOUND if result.is_empty else "", shortfall.reason if shortfall else "")
    return "; ".join(one for one in words if one)


def _is_newest(series: SeriesTable | None, job: Job) -> bool:
    """Answer whether the series still waits for just this revision."""
    return series is not None and series.state == SeriesState.QUEUED and series.digest == job.digest


def _has_object(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return col(ResultTable.sop_instance_uid).in_(select(ResultObjectTable.result_sop_uid).where(condition))


def _supersede_others(session: Session, source: str, result: ResultRecord, now: datetime) -> None:
    """Mark the results that a newer one replaces, and stop those of their deliveries that wait."""
    statement = select(ResultTable).where(
        col(ResultTable.source_series_uid) == source, ~col(ResultTable.superseded)
    )
    for row in session.exec(statement).all():
        if row.sop_instance_uid == result.sop_instance_uid:
            continue
        row.superseded = True
        session.add(row)
        add_entry(session, "result_superseded", row.sop_instance_uid, f"by {result.sop_instance_uid}", now)
        _stop_deliveries(session, row.sop_instance_uid, now)


def _stop_deliveries(session: Session, sop_instance_uid: str, now: datetime) -> None:
    """Withdraw what was not sent; a send that is under way still notes in the end that it got through."""
    waiting = session.exec(
        select(DeliveryTable).where(
            col(DeliveryTable.result_sop_uid) == sop_instance_uid,
            col(DeliveryTable.state) == DeliveryState.PENDING,
        )
    ).all()
    for row in waiting:
        retire_waiting(session, JobKind.DELIVER_RESULT, str(row.id), now=now, reason="superseded")
        row.state = DeliveryState.SUPERSEDED
        session.add(row)


def _keep_result(session: Session, result: ResultRecord, *, superseded: bool) -> None:
    """Add a result, or let one that was made before stand again."""
    values = {
        "sop_instance_uid": result.sop_instance_uid,
        "series_instance_uid": result.series_instance_uid,
        "source_series_uid": result.source_series_uid,
        "source_digest": result.source_digest,
        "model_version": result.model_version,
        "label_table_sha256": result.label_table_sha256,
        "voxels_sha256": result.voxels_sha256,
        "path": result.path,
        "superseded": superseded,
        "seconds_json": json.dumps(result.seconds),
        "created_at": result.created_at,
    }
    if insert_new(session, ResultTable, values) is None:
        if not superseded:  # else it stays as it is: only a newer result withdraws its deliveries
            session.exec(
                update(ResultTable)
                .where(col(ResultTable.sop_instance_uid) == result.sop_instance_uid)
                .values(superseded=False, source_digest=result.source_digest)
            )
        return
    hashes, millilitres = dict(result.label_sha256), dict(result.millilitres)
    tracking = dict(result.tracking_uids)
    for position, (label, voxels) in enumerate(result.voxels):
        session.add(
            ResultLabelTable(
                result_sop_uid=result.sop_instance_uid,
                label=label,
                position=position,
                voxels=voxels,
                millilitres=millilitres.get(label, 0.0),
                sha256=hashes.get(label, ""),
                tracking_uid=tracking.get(label, ""),
            )
        )


def _keep_object(session: Session, result: ResultRecord, one: ResultObject, position: int) -> None:
    values = {
        "sop_instance_uid": one.sop_instance_uid,
        "result_sop_uid": result.sop_instance_uid,
        "series_instance_uid": one.series_instance_uid,
        "form": one.form,
        "voxels_sha256": one.voxels_sha256 or "",
        "position": position,
    }
    insert_new(session, ResultObjectTable, values)


def _add_delivery(
    session: Session, result: ResultRecord, one: ResultObject, destination: str, now: datetime
) -> None:
    """Add a delivery and its job, unless this destination was ever given this object."""
    values = {
        "result_sop_uid": result.sop_instance_uid,
        "object_sop_uid": one.sop_instance_uid,
        "destination": destination,
        "state": DeliveryState.PENDING,
        "attempts": 0,
        "last_error": "",
        "created_at": now,
    }
    row = insert_new(session, DeliveryTable, values)
    if row is None:
        _take_up_again(session, one.sop_instance_uid, destination, now)
        return
    digest = hashlib.sha256(f"{one.sop_instance_uid}\n{destination}".encode()).hexdigest()
    insert_job(session, JobKind.DELIVER_RESULT, str(row[0]), digest, now=now)


def _take_up_again(session: Session, object_sop_uid: str, destination: str, now: datetime) -> None:
    """Let a delivery go on that was withdrawn before it was sent."""
    row = session.exec(
        select(DeliveryTable).where(
            col(DeliveryTable.object_sop_uid) == object_sop_uid,
            col(DeliveryTable.destination) == destination,
        )
    ).one()
    if row.state != DeliveryState.SUPERSEDED:
        return
    revive_ended(session, JobKind.DELIVER_RESULT, str(row.id), now=now)
    row.state = DeliveryState.PENDING
    session.add(row)


def _note_delivered(session: Session, source_series_uid: str, now: datetime) -> None:
    """Call a series delivered when the result that stands has reached every destination, in every form."""
    result = session.exec(
        select(ResultTable).where(
            col(ResultTable.source_series_uid) == source_series_uid, ~col(ResultTable.superseded)
        )
    ).first()
    if result is None:
        return
    states = session.exec(
        select(DeliveryTable.state).where(col(DeliveryTable.result_sop_uid) == result.sop_instance_uid)
    ).all()
    if not states or any(state != DeliveryState.SENT for state in states):
        return
    if _falls_short(session, source_series_uid, result.source_digest):
        return
    session.exec(
        update(SeriesTable)
        .where(
            col(SeriesTable.series_instance_uid) == source_series_uid,
            col(SeriesTable.state) == SeriesState.SEGMENTED,
        )
        .values(state=SeriesState.DELIVERED, updated_at=now)
    )


def _falls_short(session: Session, source_series_uid: str, source_digest: str) -> bool:
    """Answer whether the job that made a result could not write all of it."""
    state = session.exec(
        select(JobTable.state).where(
            col(JobTable.kind) == JobKind.SEGMENT_SERIES,
            col(JobTable.subject) == source_series_uid,
            col(JobTable.digest) == source_digest,
        )
    ).first()
    return state in (JobState.SET_ASIDE, JobState.FAILED)


def _record(session: Session, row: ResultTable) -> ResultRecord:
    labels = session.exec(
        select(ResultLabelTable)
        .where(col(ResultLabelTable.result_sop_uid) == row.sop_instance_uid)
        .order_by(col(ResultLabelTable.position))
    ).all()
    objects = session.exec(
        select(ResultObjectTable)
        .where(col(ResultObjectTable.result_sop_uid) == row.sop_instance_uid)
        .order_by(col(ResultObjectTable.position))
    ).all()
    return ResultRecord(
        sop_instance_uid=SopInstanceUid(row.sop_instance_uid),
        series_instance_uid=SeriesInstanceUid(row.series_instance_uid),
        source_series_uid=SeriesInstanceUid(row.source_series_uid),
        source_digest=row.source_digest,
        model_version=ModelVersion(row.model_version),
        label_table_sha256=Sha256(row.label_table_sha256),
        voxels_sha256=Sha256(row.voxels_sha256),
        label_sha256=tuple((label.label, Sha256(label.sha256)) for label in labels),
        voxels=tuple((label.label, label.voxels) for label in labels),
        millilitres=tuple((label.label, label.millilitres) for label in labels),
        tracking_uids=tuple((label.label, label.tracking_uid) for label in labels if label.tracking_uid),
        path=row.path,
        created_at=row.created_at,
        seconds=tuple((str(step), float(seconds)) for step, seconds in json.loads(row.seconds_json)),
        objects=tuple(_object(one) for one in objects),
        superseded=row.superseded,
    )


def _object(row: ResultObjectTable) -> ResultObject:
    return ResultObject(
        sop_instance_uid=SopInstanceUid(row.sop_instance_uid),
        series_instance_uid=SeriesInstanceUid(row.series_instance_uid),
        form=ResultForm(row.form),
        voxels_sha256=Sha256(row.voxels_sha256) if row.voxels_sha256 else None,
    )


def _delivery(row: DeliveryTable) -> Delivery:
    return Delivery(
        id=row.id or 0,
        result_sop_uid=SopInstanceUid(row.result_sop_uid),
        object_sop_uid=SopInstanceUid(row.object_sop_uid),
        destination=row.destination,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        last_error=row.last_error,
        created_at=row.created_at,
        sent_at=row.sent_at,
    )
