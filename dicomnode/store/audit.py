"""The append-only record of what a person may ask about later."""

from datetime import datetime

from sqlmodel import Session, col, select

from dicomnode.store.database import Database
from dicomnode.store.records import AuditEntry
from dicomnode.store.tables import AuditTable


class AuditRows:
    """Rows are added and read, never changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, event: str, subject: str, detail: str, now: datetime) -> None:
        """Add one entry; ``detail`` carries UIDs, digests and AE titles, never a patient's data."""
        with self._database.writing() as session:
            add_entry(session, event, subject, detail, now)

    def list(self, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Read the newest entries, newest first."""
        statement = select(AuditTable).order_by(col(AuditTable.id).desc()).limit(limit)
        with self._database.reading() as session:
            return tuple(
                AuditEntry(id=row.id or 0, event=row.event, subject=row.subject, detail=row.detail, at=row.at)
                for row in session.exec(statement)
            )


def add_entry(session: Session, event: str, subject: str, detail: str, now: datetime) -> None:
    """Add one entry inside a transaction that is about something else."""
    session.add(AuditTable(event=event, subject=subject, detail=detail, at=now))
