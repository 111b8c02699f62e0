"""Files on their way in, and the complete ones."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import CursorResult
from sqlmodel import Session, col, delete, func, select, update

from dicomnode.domain import Sha256
from dicomnode.errors import UpdateRejectedError
from dicomnode.federation.ledger.database import Database
from dicomnode.federation.ledger.tables import Blob, ModelVersion, Upload

MAXIMUM_OPEN_UPLOADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRow:
    """How far an upload is; ``received == size`` only for a complete and checked blob."""

    sha256: Sha256
    size: int
    received: int

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is missing."""
        return self.received == self.size


class UploadRows:
    """Offsets of uploads and the list of complete blobs. The bytes are in :mod:`blobs`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, node_id: str, sha256: Sha256, *, size: int, now: datetime) -> UploadRow:
        """Begin an upload, or find the one that was begun, or the finished blob.

        Raises
        ------
        UpdateRejectedError
            ``size_mismatch``: this digest was declared with another size.
            ``too_many_uploads``: the node has unfinished uploads enough.
        """
        with self._database.writing() as session:
            found = _find(session, node_id, sha256)
            if found is None:
                _check_open_uploads(session, node_id)
                session.add(Upload(node_id=node_id, sha256=sha256, size=size, updated_at=now))
                return UploadRow(sha256=sha256, size=size, received=0)
        if found.size != size:
            raise UpdateRejectedError(
                f"blob {sha256} was declared with {found.size} bytes, now with {size}", code="size_mismatch"
            )
        return found

    def find(self, node_id: str, sha256: Sha256) -> UploadRow | None:
        """Look up an upload of a node, or a complete blob."""
        with self._database.reading() as session:
            return _find(session, node_id, sha256)

    def advance(self, node_id: str, sha256: Sha256, *, start: int, stop: int, now: datetime) -> bool:
        """Move the offset from ``start`` to ``stop``; ``False`` when it was elsewhere by then."""
        with self._database.writing() as session:
            moved: CursorResult[tuple[()]] = session.exec(
                update(Upload)
                .where(
                    col(Upload.node_id) == node_id,
                    col(Upload.sha256) == sha256,
                    col(Upload.received) == start,
                )
                .values(received=stop, updated_at=now)
            )
            return moved.rowcount == 1

    def finish(self, node_id: str, sha256: Sha256, *, size: int, now: datetime) -> None:
        """Turn an upload into a blob; its file is complete, checked and under its final name."""
        with self._database.writing() as session:
            _delete(session, node_id, sha256)
            record_blob(session, sha256, size=size, now=now)

    def abandon(self, node_id: str, sha256: Sha256) -> None:
        """Forget an upload, so that it begins anew."""
        with self._database.writing() as session:
            _delete(session, node_id, sha256)

    def abandon_older(self, before: datetime) -> list[tuple[str, Sha256]]:
        """Forget the uploads that nobody continued; return whose they were."""
        with self._database.writing() as session:
            stale = session.exec(select(Upload).where(Upload.updated_at < before)).all()
            for upload in stale:
                session.delete(upload)
            return [(upload.node_id, Sha256(upload.sha256)) for upload in stale]

    def is_released(self, sha256: Sha256) -> bool:
        """Tell whether a blob is part of a release; other nodes' updates are nobody's to fetch."""
        with self._database.reading() as session:
            query = select(ModelVersion.id).where(ModelVersion.blob_sha256 == sha256).limit(1)
            return session.exec(query).first() is not None


def record_blob(session: Session, sha256: Sha256, *, size: int, now: datetime) -> None:
    """List a complete blob; listing it twice changes nothing."""
    if session.get(Blob, sha256) is None:
        session.add(Blob(sha256=sha256, size=size, created_at=now))
        session.flush()


def _find(session: Session, node_id: str, sha256: Sha256) -> UploadRow | None:
    blob = session.get(Blob, sha256)
    if blob is not None:
        return UploadRow(sha256=sha256, size=blob.size, received=blob.size)
    upload = session.get(Upload, (node_id, sha256))
    return None if upload is None else UploadRow(sha256=sha256, size=upload.size, received=upload.received)


def _check_open_uploads(session: Session, node_id: str) -> None:
    count = session.exec(select(func.count()).select_from(Upload).where(Upload.node_id == node_id)).one()
    if count >= MAXIMUM_OPEN_UPLOADS:
        raise UpdateRejectedError(
            f"node {node_id} has {count} unfinished uploads; finish one first", code="too_many_uploads"
        )


def _delete(session: Session, node_id: str, sha256: Sha256) -> None:
    session.exec(delete(Upload).where(col(Upload.node_id) == node_id, col(Upload.sha256) == sha256))
