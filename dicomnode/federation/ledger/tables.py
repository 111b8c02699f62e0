"""The tables of the aggregator; private to the ledger.

They have their own metadata, apart from the tables of a site, so that one process may hold both.
Every time is an aware UTC moment.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, LargeBinary, MetaData, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlmodel import Field, SQLModel

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC moment; SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # given by SQLAlchemy
        """Refuse naive times before they reach the database."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone was given to the ledger")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # given by SQLAlchemy
        """Give the zone back."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class LedgerTable(SQLModel):
    """Root of the aggregator's tables."""

    metadata = metadata


class Node(LedgerTable, table=True):
    """A site and its key; ``status`` is asked for on every request."""

    id: str = Field(primary_key=True)
    name: str = Field(index=True)
    key_id: str = Field(unique=True)
    public_key: str
    status: str
    enrolled_at: datetime = Field(sa_type=UtcTime)
    last_seen_at: datetime | None = Field(default=None, sa_type=UtcTime)
    app: str = ""


class EnrolmentCode(LedgerTable, table=True):
    """A one-time code, kept as a digest only."""

    __tablename__ = "enrolment_code"
    code_sha256: str = Field(primary_key=True)
    node_name: str
    expires_at: datetime = Field(sa_type=UtcTime)
    node_id: str | None = Field(default=None, foreign_key="node.id")  # set by its single use


class SeenToken(LedgerTable, table=True):
    """A request token that was used; kept until it could no longer be accepted anyway."""

    __tablename__ = "seen_token"
    node_id: str = Field(primary_key=True)
    token_id: str = Field(primary_key=True)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class Blob(LedgerTable, table=True):
    """A complete file whose digest was checked."""

    sha256: str = Field(primary_key=True)
    size: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UtcTime)


class Upload(LedgerTable, table=True):
    """A file on its way in, one per node and digest; ``received`` is the truth about its offset."""

    node_id: str = Field(primary_key=True, foreign_key="node.id")
    sha256: str = Field(primary_key=True)
    size: int = Field(sa_type=BigInteger)
    received: int = Field(default=0, sa_type=BigInteger)
    updated_at: datetime = Field(sa_type=UtcTime)


class Family(LedgerTable, table=True):
    """A model whose releases follow one another; its network never changes."""

    name: str = Field(primary_key=True)
    arch_id: str
    keys_digest: str
    entries_json: str  # canonical JSON: [[name, dtype, [shape...]], ...]
    created_at: datetime = Field(sa_type=UtcTime)


class ModelVersion(LedgerTable, table=True):
    """A release. ``parent_id`` is unique: of two merges onto one head, one wins."""

    __tablename__ = "model_version"
    __table_args__ = (UniqueConstraint("family", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    family: str = Field(foreign_key="family.name")
    version: int
    parent_id: int | None = Field(default=None, foreign_key="model_version.id", unique=True)
    blob_sha256: str = Field(foreign_key="blob.sha256", index=True)
    ring: str
    strategy: str
    manifest_sha256: str
    envelope: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = Field(sa_type=UtcTime)


class UpdateRecord(LedgerTable, table=True):
    """An update that a site announced, and how it stands."""

    __tablename__ = "update_rec"
    __table_args__ = (UniqueConstraint("node_id", "nonce"),)
    update_id: str = Field(primary_key=True)
    node_id: str = Field(foreign_key="node.id")
    family: str = Field(foreign_key="family.name")
    base_version: int
    blob_sha256: str = Field(foreign_key="blob.sha256")
    kind: str
    nonce: str
    manifest_sha256: str
    envelope: bytes = Field(sa_type=LargeBinary)
    state: str = Field(index=True)
    code: str = ""
    reason: str = ""
    norm: float | None = None
    received_at: datetime = Field(sa_type=UtcTime)
    decided_at: datetime | None = Field(default=None, sa_type=UtcTime)


class MergeMember(LedgerTable, table=True):
    """An update inside a release; its primary key is why an update is merged at most once."""

    __tablename__ = "merge_member"
    update_id: str = Field(primary_key=True, foreign_key="update_rec.update_id")
    version_id: int = Field(foreign_key="model_version.id", index=True)
    weight: float
    staleness: int
    clip_factor: float


class AuditEvent(LedgerTable, table=True):
    """One link of the audit chain; triggers refuse any change to it."""

    __tablename__ = "audit"
    sequence: int = Field(primary_key=True)
    body: str  # canonical JSON of sequence, time, actor, event and detail
    previous_hash: str
    hash: str


class AuditHead(LedgerTable, table=True):
    """The last link, in one row whose lock puts the writers of the chain in line."""

    __tablename__ = "audit_head"
    id: int = Field(primary_key=True)
    sequence: int
    hash: str
