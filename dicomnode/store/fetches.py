"""Series whose images are fetched from an archive because a correction needs them.

Such a series was never sent here to be segmented: its row is set aside before the first image comes, and
remembers where it came from until images of it are sent here after all.
"""

from datetime import datetime

from sqlmodel import Session, col, update

from dicomnode.domain import SeriesInstanceUid, SeriesState, StudyInstanceUid
from dicomnode.store.audit import add_entry
from dicomnode.store.database import Database, insert_new
from dicomnode.store.tables import SeriesTable


class FetchRows:
    """What is being fetched, and whether it is whole."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self,
        series_uid: SeriesInstanceUid,
        *,
        study_uid: StudyInstanceUid,
        modality: str,
        archive: str,
        now: datetime,
    ) -> None:
        """Note that a series is being fetched; one that is known here stays where it stands.

        Until `finish`, :meth:`is_unfinished` is True, also after a crash.

        Parameters
        ----------
        archive
            Name of the destination that it is fetched from.
        """
        values = {
            "series_instance_uid": series_uid,
            "study_instance_uid": study_uid,
            "modality": modality,
            "state": SeriesState.SET_ASIDE,
            "reason": f"being fetched from {archive} for a correction",
            "sender": archive,
            "received_at": now,
            "last_received_at": now,
            "updated_at": now,
            "fetched_from": archive,
        }
        with self._database.writing() as session:
            insert_new(session, SeriesTable, values)
            _set_open_until(session, series_uid, now)

    def expect(self, series_uid: SeriesInstanceUid, until: datetime) -> None:
        """Let what the receiver takes in of a series until then belong to its fetch (C-MOVE)."""
        with self._database.writing() as session:
            _set_open_until(session, series_uid, until)

    def finish(self, series_uid: SeriesInstanceUid, *, detail: str, now: datetime) -> None:
        """Note that every image is here; from now on images of the series open it like any other.

        Parameters
        ----------
        detail
            For the audit log: how many came from where.
        """
        with self._database.writing() as session:
            series = session.get(SeriesTable, series_uid, with_for_update=True)
            if series is None:
                return
            series.fetch_open_until = None
            if series.fetched_from:
                series.reason = f"fetched from {series.fetched_from} for a correction; not segmented"
                series.updated_at = now
            session.add(series)
            add_entry(session, "series_fetched", series_uid, detail, now)

    def is_unfinished(self, series_uid: str) -> bool:
        """Answer whether images of a series may be lacking because its fetch has not ended well."""
        with self._database.reading() as session:
            series = session.get(SeriesTable, series_uid)
            return series is not None and series.fetch_open_until is not None


def _set_open_until(session: Session, series_uid: SeriesInstanceUid, until: datetime) -> None:
    session.exec(
        update(SeriesTable)
        .where(col(SeriesTable.series_instance_uid) == series_uid)
        .values(fetch_open_until=until)
    )
