"""The audit chain: what happened, each event bound to all before it by a hash.

``hash_i = SHA-256(hash_(i-1) || body_i)`` with the body as RFC 8785 JSON. Nodes are told the head with every
heartbeat, so that a rewritten history contradicts its witnesses.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue
from sqlmodel import Session, col, select, update

from dicomnode.domain import Sha256
from dicomnode.errors import DatabaseError
from dicomnode.federation import manifest
from dicomnode.federation.ledger.database import Database
from dicomnode.federation.ledger.tables import AuditEvent, AuditHead

_FIRST = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHeadRow:
    """The end of the chain: how many events, and the hash that stands for all of them."""

    sequence: int
    hash: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What recomputing the chain found; ``fault`` is ``None`` when everything fits."""

    events: int
    head: Sha256
    fault: str | None


class AuditRows:
    """Reading and checking the chain; only :func:`append` adds to it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def head(self) -> AuditHeadRow:
        """Return the last link."""
        with self._database.reading() as session:
            head = session.exec(select(AuditHead)).one()
            return AuditHeadRow(sequence=head.sequence, hash=Sha256(head.hash))

    def verify(self) -> AuditReport:
        """Recompute every hash from the first event on."""
        with self._database.reading() as session:
            previous, events = _FIRST, 0
            query = select(AuditEvent).order_by(col(AuditEvent.sequence))
            for link in session.exec(query.execution_options(yield_per=500)):
                events += 1
                if link.sequence != events or link.previous_hash != previous:
                    return _broken(events, previous, f"event {events} does not follow the one before")
                if link.hash != _chain(previous, link.body):
                    return _broken(events, previous, f"event {events} was changed after it was written")
                previous = link.hash
            head = session.exec(select(AuditHead)).one()
            if (head.sequence, head.hash) != (events, previous):
                return _broken(events, previous, f"the chain ends before event {head.sequence}")
        return AuditReport(events=events, head=Sha256(previous), fault=None)


def append(
    session: Session, event: str, *, actor: str, detail: Mapping[str, JsonValue], now: datetime
) -> None:
    """Add an event inside the transaction of what it tells about; no patient data, no secrets.

    Raises
    ------
    DatabaseError
        The head row is missing.
    """
    # The update comes first: its row lock puts concurrent writers in line on PostgreSQL too.
    session.exec(update(AuditHead).values(sequence=col(AuditHead.sequence) + 1))
    head = session.exec(select(AuditHead).execution_options(populate_existing=True)).one_or_none()
    if head is None:
        raise DatabaseError("the audit chain has no head row; the ledger was not migrated")
    body = manifest.canonical(
        {
            "sequence": head.sequence,
            "at": now.isoformat(),
            "actor": actor,
            "event": event,
            "detail": dict(detail),
        }
    ).decode()
    link = _chain(head.hash, body)
    session.add(AuditEvent(sequence=head.sequence, body=body, previous_hash=head.hash, hash=link))
    head.hash = link
    session.add(head)
    session.flush()


def _chain(previous: str, body: str) -> str:
    return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()


def _broken(events: int, previous: str, fault: str) -> AuditReport:
    return AuditReport(events=events, head=Sha256(previous), fault=fault)
