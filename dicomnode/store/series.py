"""Received instances and series: recording them, telling when one is complete, and where it stands."""

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, func
from sqlalchemy.engine import Row
from sqlmodel import Session, col, select, update
from sqlmodel.sql.expression import SelectOfScalar

from dicomnode.domain import (
    JobKind,
    JobPriority,
    ModelVersion,
    SeriesInstanceUid,
    SeriesState,
    Sha256,
    SopInstanceUid,
    StoredInstance,
    StudyInstanceUid,
)
from dicomnode.errors import InputError
from dicomnode.store.audit import add_entry
from dicomnode.store.database import Database, insert_new
from dicomnode.store.leases import insert_job, revive_ended
from dicomnode.store.receiving import (
    Role,
    correction_digest,
    hold_series,
    instance_values,
    is_opened_by_image,
    is_ours,
    read_again,
    reopen,
    role_of,
    stands_again,
    supersede_variants,
)
from dicomnode.store.records import SeriesRow
from dicomnode.store.tables import InstanceTable, SeriesTable


class SeriesRows:
    """The received instances and the series of images that they form."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_instance(self, instance: StoredInstance, *, now: datetime, is_fetched: bool = False) -> bool:
        """Make a stored file known; when this returns, the row survives a power cut.

        An image opens or reopens its series. A segmentation becomes a correction to read at once, and again
        when it is sent again after it was set aside. A report, contours or pictures of ours that come back
        open no series. Other bytes under a known SOP instance UID stand beside the earlier ones and count
        from now on.

        An image that was fetched for a correction, or comes while a fetch by C-MOVE runs, changes nothing of
        where its series stands. When a series that was only fetched is sent here after all, it opens, also
        by an image that was fetched before.

        Parameters
        ----------
        is_fetched
            The image came over an association that this node opened for it.

        Returns
        -------
            False when these very bytes are what counts already and change nothing.

        Raises
        ------
        DatabaseError
            Nothing was recorded.
        """
        role = role_of(instance.sop_class_uid)
        with self._database.writing() as session:
            has_series = role is Role.IMAGE or (role is Role.OTHER and not is_ours(session, instance))
            series = hold_series(session, instance, role, now) if has_series else None
            row = insert_new(session, InstanceTable, instance_values(instance, role))
            is_news = row is not None or stands_again(session, instance)
            if is_news:
                supersede_variants(session, instance, role, now)
            if role is Role.SEGMENTATION:
                _read_correction(session, instance, row, is_news=is_news, now=now)
            if series is None or role is not Role.IMAGE:
                return is_news
            opens = is_opened_by_image(series, is_news=is_news, is_fetched=is_fetched, now=now)
            if opens:
                reopen(session, series, instance, now)
            return is_news or opens

    def instance(self, key: int | str) -> StoredInstance | None:
        """Find an instance by its number (also as text, as a job's subject has it) or SOP instance UID.

        Of several variants under one UID: our own result, which a PACS may have sent back altered, else
        the one that came last.
        """
        ours_first = case((col(InstanceTable.role) == Role.RESULT, 0), else_=1)
        statement = select(InstanceTable).order_by(ours_first, col(InstanceTable.id).desc()).limit(1)
        if isinstance(key, int) or "." not in key:
            statement = statement.where(col(InstanceTable.id) == int(key))
        else:
            statement = statement.where(
                col(InstanceTable.sop_instance_uid) == key, ~col(InstanceTable.superseded)
            )
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else _stored(row)

    def instances_of(self, series_uid: str) -> list[StoredInstance]:
        """Read what counts of a series: the latest variant of each image, in order of arrival.

        Of a series without images: its other objects.
        """
        with self._database.reading() as session:
            rows = session.exec(_standing(series_uid).order_by(col(InstanceTable.id))).all()
            images = [row for row in rows if row.role == Role.IMAGE]
            return [_stored(row) for row in images or rows]

    def known_paths(self, paths: Collection[str]) -> set[str]:
        """Tell which files of the spool have a row; the others were never acknowledged."""
        statement = select(InstanceTable.path).where(col(InstanceTable.path).in_(paths))
        with self._database.reading() as session:
            return set(session.exec(statement))

    def revision_digest(self, series_uid: str) -> str:
        """Name the set of images that the series holds now, as `Job.digest` of its segmentation does."""
        with self._database.reading() as session:
            return _revision_digest(session, series_uid)

    def enqueue_quiet(self, now: datetime, quiet_period: timedelta) -> int:
        """Queue each series that has received nothing for the quiet period.

        Returns
        -------
            How many were queued.
        """
        statement = (
            select(SeriesTable.series_instance_uid)
            .where(
                col(SeriesTable.state) == SeriesState.RECEIVING,
                col(SeriesTable.last_received_at) <= now - quiet_period,
            )
            .order_by(col(SeriesTable.last_received_at))
        )
        with self._database.reading() as session:
            quiet = session.exec(statement).all()
        return sum(self._enqueue_one(series_uid, now, quiet_period) for series_uid in quiet)

    def restart_quiet(self, now: datetime) -> int:
        """Let the quiet period of every open series begin now, because nobody listened until now.

        Returns
        -------
            How many series are open.
        """
        statement = update(SeriesTable).where(col(SeriesTable.state) == SeriesState.RECEIVING)
        with self._database.writing() as session:
            return int(session.exec(statement.values(last_received_at=now)).rowcount)

    def force(self, series_uid: str, *, now: datetime) -> str:
        """Queue a series at once, complete or not and whatever its state, as a person asked.

        It then waits neither for off-peak hours nor for the rest of its study.

        Returns
        -------
            The digest of the job.

        Raises
        ------
        InputError
            No such series, or one without images.
        """
        with self._database.writing() as session:
            series = session.get(SeriesTable, series_uid, with_for_update=True)
            if series is None:
                message = f"no series {series_uid} was received here"
                raise InputError(message)
            if not _image_count(session, series_uid):
                message = f"series {series_uid} holds no images ({series.modality})"
                raise InputError(message)
            add_entry(session, "series_forced", series_uid, f"state was {series.state}", now)
            return _queue(session, series, now, JobPriority.FORCED)

    def state(self, series_uid: str) -> SeriesState | None:
        """Tell where a series stands; None when it was never received."""
        with self._database.reading() as session:
            row = session.get(SeriesTable, series_uid)
            return None if row is None else SeriesState(row.state)

    def set_state(self, series_uid: str, state: SeriesState, *, now: datetime, reason: str = "") -> None:
        """Put a series into a state by hand."""
        with self._database.writing() as session:
            session.exec(
                update(SeriesTable)
                .where(col(SeriesTable.series_instance_uid) == series_uid)
                .values(state=state, reason=reason, updated_at=now)
            )

    def set_aside(self, series_uid: str, reason: str, *, now: datetime) -> None:
        """Take a series out of the flow with a reason; ending its job does this already."""
        self.set_state(series_uid, SeriesState.SET_ASIDE, now=now, reason=reason)

    def get(self, series_uid: str) -> SeriesRow | None:
        """Look one series up."""
        with self._database.reading() as session:
            row = session.get(SeriesTable, series_uid)
            return None if row is None else series_row(session, row)

    def list_series(self, limit: int = 100, state: SeriesState | None = None) -> list[SeriesRow]:
        """Read the series that changed last, newest first."""
        statement = select(SeriesTable).order_by(col(SeriesTable.updated_at).desc()).limit(limit)
        if state is not None:
            statement = statement.where(col(SeriesTable.state) == state)
        with self._database.reading() as session:
            return [series_row(session, row) for row in session.exec(statement).all()]

    def of_study(self, study_uid: str) -> list[SeriesRow]:
        """Read the series of a study that hold images, in the order of their arrival."""
        statement = (
            select(SeriesTable)
            .where(col(SeriesTable.study_instance_uid) == study_uid)
            .order_by(col(SeriesTable.received_at), col(SeriesTable.series_instance_uid))
        )
        with self._database.reading() as session:
            rows = [series_row(session, row) for row in session.exec(statement).all()]
        return [row for row in rows if row.instances]

    def _enqueue_one(self, series_uid: str, now: datetime, quiet_period: timedelta) -> bool:
        with self._database.writing() as session:
            series = session.get(SeriesTable, series_uid, with_for_update=True)
            if series is None or series.state != SeriesState.RECEIVING:
                return False
            if series.last_received_at > now - quiet_period:  # an image came in between
                return False
            _queue(session, series, now, JobPriority.UNROUTED)
        return True


def _read_correction(
    session: Session, instance: StoredInstance, row: Row[Any] | None, *, is_news: bool, now: datetime
) -> None:
    """Queue the reading of a segmentation: of a new one, or again of one that could not be read."""
    if row is not None:
        insert_job(session, JobKind.INGEST_CORRECTION, str(row[0]), correction_digest(instance), now=now)
    elif not is_news:
        read_again(session, instance, now)


def _queue(session: Session, series: SeriesTable, now: datetime, priority: JobPriority) -> str:
    """Queue what the series holds now; a revision that was done before is done again."""
    uid = series.series_instance_uid
    digest = _revision_digest(session, uid)
    if not insert_job(session, JobKind.SEGMENT_SERIES, uid, digest, now=now, priority=priority):
        revive_ended(session, JobKind.SEGMENT_SERIES, uid, now=now, digest=digest, priority=priority)
    series.state = SeriesState.QUEUED
    series.digest = digest
    series.reason = ""
    series.fetched_from = ""  # from now on it stands like one that came by itself
    series.updated_at = now
    session.add(series)
    return digest


def _revision_digest(session: Session, series_uid: str) -> str:
    """Hash the sorted (SOP instance UID, SHA-256) of the images that count, and the series they are in."""
    statement = select(InstanceTable.sop_instance_uid, InstanceTable.sha256).where(
        col(InstanceTable.series_instance_uid) == series_uid,
        col(InstanceTable.role) == Role.IMAGE,
        ~col(InstanceTable.superseded),
    )
    lines = sorted(f"{uid} {sha256}\n" for uid, sha256 in session.exec(statement))
    return hashlib.sha256("".join([f"{series_uid}\n", *lines]).encode()).hexdigest()


def _standing(series_uid: str) -> SelectOfScalar[InstanceTable]:
    return select(InstanceTable).where(
        col(InstanceTable.series_instance_uid) == series_uid, ~col(InstanceTable.superseded)
    )


def _image_count(session: Session, series_uid: str) -> int:
    statement = select(func.count()).where(
        col(InstanceTable.series_instance_uid) == series_uid,
        col(InstanceTable.role) == Role.IMAGE,
        ~col(InstanceTable.superseded),
    )
    return session.exec(statement).one()


def series_row(session: Session, row: SeriesTable) -> SeriesRow:
    """Copy a row into a record, with the number of images that count."""
    return SeriesRow(
        series_instance_uid=SeriesInstanceUid(row.series_instance_uid),
        study_instance_uid=StudyInstanceUid(row.study_instance_uid),
        modality=row.modality,
        instances=_image_count(session, row.series_instance_uid),
        state=SeriesState(row.state),
        reason=row.reason,
        digest=row.digest,
        sender=row.sender,
        received_at=row.received_at,
        last_received_at=row.last_received_at,
        updated_at=row.updated_at,
        model_version=None if row.model_version is None else ModelVersion(row.model_version),
    )


def _stored(row: InstanceTable) -> StoredInstance:
    return StoredInstance(
        sop_instance_uid=SopInstanceUid(row.sop_instance_uid),
        sop_class_uid=row.sop_class_uid,
        series_instance_uid=SeriesInstanceUid(row.series_instance_uid),
        study_instance_uid=StudyInstanceUid(row.study_instance_uid),
        modality=row.modality,
        transfer_syntax_uid=row.transfer_syntax_uid,
        sha256=Sha256(row.sha256),
        size_bytes=row.size_bytes,
        path=row.path,
        sender=row.sender,
        received_at=row.received_at,
    )
