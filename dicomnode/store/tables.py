"""The tables of one site; private to the store, which hands out frozen records instead.

States and kinds are kept as their string values, times as UTC. The tables have a metadata of their own, so
that the aggregator's never mix with them. No column holds a patient's name, identifier or birth date.
"""

from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Index, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, in UTC both ways; a naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC; SQLite keeps no time zone, so it gets the bare figures."""
        if value is None:
            return None
        if value.tzinfo is None:
            message = f"a time without time zone cannot be stored: {value.isoformat()}"
            raise ValueError(message)
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Give back an aware time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Word(TypeDecorator[str]):
    """A short text: a UID, a digest, a state, a name; without what PostgreSQL refuses."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Store a plain string, also for the members of an enumeration."""
        return None if value is None else storable(str(value))


class Prose(TypeDecorator[str]):
    """A long text: a reason, a traceback, JSON; cleaned as `Word` is."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Store a plain string of bounded length."""
        return None if value is None else storable(str(value))[:PROSE_LIMIT]


PROSE_LIMIT = 1_000_000


def storable(value: str) -> str:
    """Replace what no database can keep in a text."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


class SiteTable(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING))):
    """Root of the site's tables; carries their metadata."""


class InstanceTable(SiteTable, table=True):
    """One stored DICOM file: an image, a received segmentation, another object, or a result of ours."""

    __tablename__ = "instance"
    __table_args__ = (UniqueConstraint("sop_instance_uid", "sha256"),)

    id: int | None = Field(default=None, primary_key=True)
    role: str = Field(sa_type=Word)
    sop_instance_uid: str = Field(sa_type=Word)
    sop_class_uid: str = Field(sa_type=Word)
    series_instance_uid: str = Field(sa_type=Word, index=True)
    study_instance_uid: str = Field(sa_type=Word)
    modality: str = Field(sa_type=Word)
    transfer_syntax_uid: str = Field(sa_type=Word)
    sha256: str = Field(sa_type=Word)
    size_bytes: int = Field(sa_type=BigInteger)
    path: str = Field(sa_type=Word, index=True)
    sender: str = Field(sa_type=Word)
    received_at: datetime = Field(sa_type=UtcDateTime)
    superseded: bool = False


class SeriesTable(SiteTable, table=True):
    """One received series of images, and where it stands."""

    __tablename__ = "series"
    __table_args__ = (Index(None, "state", "last_received_at"),)

    series_instance_uid: str = Field(sa_type=Word, primary_key=True)
    study_instance_uid: str = Field(sa_type=Word, index=True)
    modality: str = Field(sa_type=Word)
    state: str = Field(sa_type=Word)
    reason: str = Field(sa_type=Prose, default="")
    digest: str | None = Field(sa_type=Word, default=None)
    sender: str = Field(sa_type=Word)
    received_at: datetime = Field(sa_type=UtcDateTime)
    last_received_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime, index=True)
    model_version: str | None = Field(sa_type=Word, default=None)
    fetched_from: str = Field(sa_type=Word, default="")  # here for a correction only; "": it came by itself
    # Not None: a fetch has not ended well; what the receiver takes in until then belongs to it.
    fetch_open_until: datetime | None = Field(sa_type=UtcDateTime, default=None)


class JobTable(SiteTable, table=True):
    """A piece of work; unique by its kind and the digest of its inputs."""

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("kind", "digest"),
        Index(None, "state", "run_after"),
        Index(None, "kind", "subject"),
    )

    id: int | None = Field(default=None, primary_key=True)
    kind: str = Field(sa_type=Word)
    subject: str = Field(sa_type=Word)
    digest: str = Field(sa_type=Word)
    state: str = Field(sa_type=Word)
    priority: int = 0
    attempts: int = 0
    run_after: datetime = Field(sa_type=UtcDateTime)
    lease_owner: str = Field(sa_type=Word, default="")
    lease_until: datetime | None = Field(sa_type=UtcDateTime, default=None)
    reason: str = Field(sa_type=Prose, default="")
    traceback: str = Field(sa_type=Prose, default="")
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)


class ResultTable(SiteTable, table=True):
    """What a model found in one revision of a series, under the UID of the label map that keeps it."""

    __tablename__ = "result"

    id: int | None = Field(default=None, primary_key=True)
    sop_instance_uid: str = Field(sa_type=Word, unique=True)
    series_instance_uid: str = Field(sa_type=Word, index=True)
    source_series_uid: str = Field(sa_type=Word, index=True)
    source_digest: str = Field(sa_type=Word)
    model_version: str = Field(sa_type=Word)
    label_table_sha256: str = Field(sa_type=Word)
    voxels_sha256: str = Field(sa_type=Word)
    path: str = Field(sa_type=Word)
    superseded: bool = False
    seconds_json: str = Field(sa_type=Prose)
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)


class ResultLabelTable(SiteTable, table=True):
    """One label of a result."""

    __tablename__ = "result_label"

    result_sop_uid: str = Field(sa_type=Word, primary_key=True, foreign_key="result.sop_instance_uid")
    label: str = Field(sa_type=Word, primary_key=True)
    position: int
    voxels: int = Field(sa_type=BigInteger)
    millilitres: float
    sha256: str = Field(sa_type=Word)
    tracking_uid: str = Field(sa_type=Word, index=True)


class ResultObjectTable(SiteTable, table=True):
    """One DICOM object that says what was found; a result has one of each form that somebody gets."""

    __tablename__ = "result_object"

    sop_instance_uid: str = Field(sa_type=Word, primary_key=True)
    result_sop_uid: str = Field(sa_type=Word, foreign_key="result.sop_instance_uid", index=True)
    series_instance_uid: str = Field(sa_type=Word, index=True)
    form: str = Field(sa_type=Word)
    voxels_sha256: str = Field(sa_type=Word)
    position: int


class DeliveryTable(SiteTable, table=True):
    """One object on its way to one destination; never twice."""

    __tablename__ = "delivery"
    __table_args__ = (UniqueConstraint("object_sop_uid", "destination"),)

    id: int | None = Field(default=None, primary_key=True)
    result_sop_uid: str = Field(sa_type=Word, foreign_key="result.sop_instance_uid", index=True)
    object_sop_uid: str = Field(sa_type=Word, foreign_key="result_object.sop_instance_uid")
    destination: str = Field(sa_type=Word)
    state: str = Field(sa_type=Word)
    attempts: int = 0
    last_error: str = Field(sa_type=Prose, default="")
    created_at: datetime = Field(sa_type=UtcDateTime)
    sent_at: datetime | None = Field(sa_type=UtcDateTime, default=None)


class CorrectionTable(SiteTable, table=True):
    """A received segmentation and what it turned out to be."""

    __tablename__ = "correction"

    id: int | None = Field(default=None, primary_key=True)
    digest: str = Field(sa_type=Word, unique=True)
    sop_instance_uid: str = Field(sa_type=Word, index=True)
    recognition: str = Field(sa_type=Word)
    source_series_uid: str | None = Field(sa_type=Word, default=None, index=True)
    result_sop_uid: str | None = Field(sa_type=Word, default=None)
    model_name: str = Field(sa_type=Word)
    model_version: str | None = Field(sa_type=Word, default=None)
    instance_id: int | None = Field(default=None, foreign_key="instance.id", index=True)
    state: str = Field(sa_type=Word, index=True)
    stack: str = Field(sa_type=Word)
    author: str = Field(sa_type=Word)
    sender: str = Field(sa_type=Word)
    reasons_json: str = Field(sa_type=Prose)
    doubts_json: str = Field(sa_type=Prose)
    decision: str = Field(sa_type=Word)
    decided_by: str = Field(sa_type=Word)
    case_id: str | None = Field(sa_type=Word, default=None, index=True)
    patient_key: str | None = Field(sa_type=Word, default=None)
    split: str | None = Field(sa_type=Word, default=None)
    corrected_slices: int
    replaced: bool = False
    trained_in: str | None = Field(sa_type=Word, default=None)
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)


class CorrectionScoreTable(SiteTable, table=True):
    """Agreement of one label of a correction with our prediction."""

    __tablename__ = "correction_score"

    correction_id: int = Field(primary_key=True, foreign_key="correction.id")
    label: str = Field(sa_type=Word, primary_key=True)
    position: int
    dice: float
    edited_slices_json: str = Field(sa_type=Prose)
    prediction_voxels: int = Field(sa_type=BigInteger)
    correction_voxels: int = Field(sa_type=BigInteger)
    confidence: float


class CaseTable(SiteTable, table=True):
    """The only link between a pseudonymous training case and the series that it was made from."""

    __tablename__ = "training_case"

    case_id: str = Field(sa_type=Word, primary_key=True)
    series_instance_uid: str = Field(sa_type=Word, index=True)
    created_at: datetime = Field(sa_type=UtcDateTime)  # of the case as it stands: it is made anew


class ModelTable(SiteTable, table=True):
    """A version of a model; at most one version of a name is current."""

    __tablename__ = "model"
    __table_args__ = (
        Index(
            "uq_model_one_current",
            "name",
            unique=True,
            sqlite_where=text("state = 'current'"),
            postgresql_where=text("state = 'current'"),
        ),
    )

    version: str = Field(sa_type=Word, primary_key=True)
    name: str = Field(sa_type=Word, index=True)
    parent: str | None = Field(sa_type=Word, default=None)
    origin: str = Field(sa_type=Word)
    state: str = Field(sa_type=Word)
    recipe: str = Field(sa_type=Prose)
    gate_report_json: str = Field(sa_type=Prose)
    case_ids_json: str = Field(sa_type=Prose)
    case_digests_json: str = Field(sa_type=Prose)
    recipe_json: str = Field(sa_type=Prose)
    environment_json: str = Field(sa_type=Prose)
    folder: str = Field(sa_type=Word)
    weights_sha256: str = Field(sa_type=Word)
    release_version: int | None = None
    steps: int = 0
    epochs: int = 0
    run_folder: str = Field(sa_type=Word)
    advice: str = Field(sa_type=Prose)
    created_at: datetime = Field(sa_type=UtcDateTime)


class ModelSwitchTable(SiteTable, table=True):
    """Each change of the current version, in order; rows are only ever added."""

    __tablename__ = "model_switch"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(sa_type=Word, index=True)
    version: str = Field(sa_type=Word, foreign_key="model.version")
    previous: str | None = Field(sa_type=Word, default=None)
    is_rollback: bool
    is_automatic: bool
    by: str = Field(sa_type=Word)
    reason: str = Field(sa_type=Prose)
    at: datetime = Field(sa_type=UtcDateTime)


class ModelLockTable(SiteTable, table=True):
    """A model whose version in use is changed by persons only; the row goes with the lock."""

    __tablename__ = "model_lock"

    name: str = Field(sa_type=Word, primary_key=True)
    by: str = Field(sa_type=Word)
    reason: str = Field(sa_type=Prose)
    at: datetime = Field(sa_type=UtcDateTime)


class EnrolmentTable(SiteTable, table=True):
    """This site's membership at an aggregator."""

    __tablename__ = "enrolment"

    url: str = Field(sa_type=Word, primary_key=True)
    node_id: str = Field(sa_type=Word)
    aggregator_name: str = Field(sa_type=Word)
    aggregator_key: str = Field(sa_type=Prose)
    enrolled_at: datetime = Field(sa_type=UtcDateTime)


class OutboxTable(SiteTable, table=True):
    """A weight update that leaves this site, or has left it."""

    __tablename__ = "outbox"

    update_id: str = Field(sa_type=Word, primary_key=True)
    model_version: str = Field(sa_type=Word, unique=True)
    base_release: int
    blob_path: str = Field(sa_type=Word)
    blob_sha256: str = Field(sa_type=Word)
    blob_bytes: int = Field(sa_type=BigInteger)
    manifest_json: str = Field(sa_type=Prose)
    state: str = Field(sa_type=Word, index=True)
    attempts: int = 0
    last_answer: str = Field(sa_type=Prose, default="")
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)


class ReleaseTable(SiteTable, table=True):
    """A release of the federation that this site has seen."""

    __tablename__ = "known_release"

    family: str = Field(sa_type=Word, primary_key=True)
    version: int = Field(primary_key=True)
    blob_sha256: str = Field(sa_type=Word)
    manifest_json: str = Field(sa_type=Prose)
    state: str = Field(sa_type=Word)
    reason: str = Field(sa_type=Prose, default="")
    model_version: str | None = Field(sa_type=Word, default=None)
    seen_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)


class AuditTable(SiteTable, table=True):
    """What happened that a person may ask about later; rows are only ever added."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True)
    event: str = Field(sa_type=Word, index=True)
    subject: str = Field(sa_type=Word)
    detail: str = Field(sa_type=Prose)
    at: datetime = Field(sa_type=UtcDateTime)
