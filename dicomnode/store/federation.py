"""This site's side of the federation: membership, updates on their way out, releases seen."""

from datetime import datetime
from typing import TypeVar

from sqlmodel import Session, col, select

from dicomnode.domain import ModelVersion, Sha256
from dicomnode.errors import InputError
from dicomnode.store.audit import add_entry
from dicomnode.store.database import Database, insert_new
from dicomnode.store.records import EnrolmentRecord, KnownRelease, OutboxState, OutboxUpdate, ReleaseState
from dicomnode.store.tables import EnrolmentTable, OutboxTable, ReleaseTable

Row = TypeVar("Row")


class FederationRows:
    """What must outlive a restart, so that an update is sent once and a release adopted once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enrol(self, enrolment: EnrolmentRecord) -> None:
        """Keep a membership; a new one at the same aggregator replaces the old."""
        with self._database.writing() as session:
            session.merge(
                EnrolmentTable(
                    url=enrolment.url,
                    node_id=enrolment.node_id,
                    aggregator_name=enrolment.aggregator_name,
                    aggregator_key=enrolment.aggregator_key,
                    enrolled_at=enrolment.enrolled_at,
                )
            )
            add_entry(session, "enrolled", enrolment.node_id, enrolment.url, enrolment.enrolled_at)

    def enrolment(self, url: str | None = None) -> EnrolmentRecord | None:
        """Find the membership at an aggregator, or the newest of all."""
        statement = select(EnrolmentTable).order_by(col(EnrolmentTable.enrolled_at).desc())
        if url is not None:
            statement = statement.where(col(EnrolmentTable.url) == url)
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else _enrolment(row)

    def add_update(self, update: OutboxUpdate) -> bool:
        """Put an update into the outbox; False when this model version or update is there already."""
        values = {
            "update_id": update.update_id,
            "model_version": update.model_version,
            "base_release": update.base_release,
            "blob_path": update.blob_path,
            "blob_sha256": update.blob_sha256,
            "blob_bytes": update.blob_bytes,
            "manifest_json": update.manifest_json,
            "state": update.state,
            "attempts": update.attempts,
            "last_answer": update.last_answer,
            "created_at": update.created_at,
            "updated_at": update.created_at,
        }
        with self._database.writing() as session:
            return insert_new(session, OutboxTable, values) is not None

    def update(self, update_id: str) -> OutboxUpdate | None:
        """Look an update up by its number."""
        with self._database.reading() as session:
            row = session.get(OutboxTable, update_id)
            return None if row is None else _update(row)

    def update_of(self, model_version: str) -> OutboxUpdate | None:
        """Find the update that was made from a model version."""
        statement = select(OutboxTable).where(col(OutboxTable.model_version) == model_version)
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else _update(row)

    def updates(self, *states: OutboxState, limit: int = 100) -> list[OutboxUpdate]:
        """Read the updates in these states, or in any, oldest first."""
        statement = select(OutboxTable).order_by(col(OutboxTable.created_at), col(OutboxTable.update_id))
        if states:
            statement = statement.where(col(OutboxTable.state).in_(states))
        with self._database.reading() as session:
            return [_update(row) for row in session.exec(statement.limit(limit))]

    def note_attempt(self, update_id: str, *, now: datetime, answer: str) -> None:
        """Count an attempt that did not get through.

        Raises
        ------
        InputError
            No such update.
        """
        with self._database.writing() as session:
            row = _found(session.get(OutboxTable, update_id, with_for_update=True), update_id)
            row.attempts += 1
            row.last_answer = answer
            row.updated_at = now
            session.add(row)

    def set_update_state(
        self, update_id: str, state: OutboxState, *, now: datetime, answer: str = ""
    ) -> None:
        """Note what the aggregator made of an update.

        Raises
        ------
        InputError
            No such update.
        """
        with self._database.writing() as session:
            row = _found(session.get(OutboxTable, update_id, with_for_update=True), update_id)
            if row.state != state:
                add_entry(session, f"update_{state}", update_id, answer, now)
            row.state = state
            row.last_answer = answer
            row.updated_at = now
            session.add(row)

    def add_release(self, release: KnownRelease) -> bool:
        """Keep a release that was seen; False when it is known already."""
        values = {
            "family": release.family,
            "version": release.version,
            "blob_sha256": release.blob_sha256,
            "manifest_json": release.manifest_json,
            "state": release.state,
            "reason": release.reason,
            "model_version": release.model_version,
            "seen_at": release.seen_at,
            "updated_at": release.seen_at,
        }
        with self._database.writing() as session:
            return insert_new(session, ReleaseTable, values) is not None

    def latest_release(self, family: str, state: ReleaseState | None = None) -> KnownRelease | None:
        """Find the highest version of a family that was seen, or that stands in a state."""
        statement = (
            select(ReleaseTable)
            .where(col(ReleaseTable.family) == family)
            .order_by(col(ReleaseTable.version).desc())
        )
        if state is not None:
            statement = statement.where(col(ReleaseTable.state) == state)
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else _release(row)

    def releases(self, family: str) -> list[KnownRelease]:
        """Read every release of a family that was seen, oldest first."""
        statement = (
            select(ReleaseTable).where(col(ReleaseTable.family) == family).order_by(col(ReleaseTable.version))
        )
        with self._database.reading() as session:
            return [_release(row) for row in session.exec(statement)]

    def set_release_state(
        self,
        family: str,
        version: int,
        state: ReleaseState,
        *,
        now: datetime,
        reason: str = "",
        model_version: ModelVersion | None = None,
    ) -> None:
        """Note what this site made of a release.

        Raises
        ------
        InputError
            The release was never seen.
        """
        with self._database.writing() as session:
            note_release(
                session, (family, version), state, now=now, reason=reason, model_version=model_version
            )


def note_release(
    session: Session,
    release: tuple[str, int],
    state: ReleaseState,
    *,
    now: datetime,
    reason: str = "",
    model_version: ModelVersion | None = None,
) -> None:
    """Note inside a transaction what this site made of a release, named by its family and version.

    Raises
    ------
    InputError
        The release was never seen.
    """
    name = "{} {}".format(*release)
    row = _found(session.get(ReleaseTable, release), name)
    row.state = state
    row.reason = reason
    row.model_version = model_version or row.model_version
    row.updated_at = now
    session.add(row)
    add_entry(session, f"release_{state}", name, reason, now)


def _found(row: Row | None, key: str) -> Row:
    if row is None:
        message = f"nothing is known of {key}"
        raise InputError(message)
    return row


def _enrolment(row: EnrolmentTable) -> EnrolmentRecord:
    return EnrolmentRecord(
        url=row.url,
        node_id=row.node_id,
        aggregator_name=row.aggregator_name,
        aggregator_key=row.aggregator_key,
        enrolled_at=row.enrolled_at,
    )


def _update(row: OutboxTable) -> OutboxUpdate:
    return OutboxUpdate(
        update_id=row.update_id,
        model_version=ModelVersion(row.model_version),
        base_release=row.base_release,
        blob_path=row.blob_path,
        blob_sha256=Sha256(row.blob_sha256),
        blob_bytes=row.blob_bytes,
        manifest_json=row.manifest_json,
        created_at=row.created_at,
        state=OutboxState(row.state),
        attempts=row.attempts,
        last_answer=row.last_answer,
    )


def _release(row: ReleaseTable) -> KnownRelease:
    return KnownRelease(
        family=row.family,
        version=row.version,
        blob_sha256=Sha256(row.blob_sha256),
        manifest_json=row.manifest_json,
        seen_at=row.seen_at,
        state=ReleaseState(row.state),
        reason=row.reason,
        model_version=None if row.model_version is None else ModelVersion(row.model_version),
    )
