"""What the store takes and gives: frozen values, so that no row and no session leaves the package."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dicomnode.domain import (
    CorrectionState,
    Decision,
    JobKind,
    JobState,
    LabelScore,
    ModelOrigin,
    ModelState,
    ModelVersion,
    Recognition,
    ResultForm,
    SeriesInstanceUid,
    SeriesState,
    Sha256,
    SopInstanceUid,
    Split,
    StoredInstance,
    StudyInstanceUid,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRow:
    """One received series and where it stands."""

    series_instance_uid: SeriesInstanceUid
    study_instance_uid: StudyInstanceUid
    modality: str
    instances: int  # distinct SOP instance UIDs
    state: SeriesState
    reason: str
    digest: str | None  # of the revision that was last queued
    sender: str
    received_at: datetime  # first instance
    last_received_at: datetime
    updated_at: datetime
    model_version: ModelVersion | None  # of the latest result


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as a status page shows it, in any state."""

    id: int
    kind: JobKind
    subject: str
    digest: str
    state: JobState
    priority: int
    attempts: int
    run_after: datetime
    lease_owner: str
    lease_until: datetime | None
    reason: str
    traceback: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """One DICOM object that says what was found."""

    sop_instance_uid: SopInstanceUid
    series_instance_uid: SeriesInstanceUid
    form: ResultForm
    voxels_sha256: Sha256 | None  # of the labels in it; None: it holds no voxels (SR, contours)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenObject:
    """An object in the spool, and who is to get it."""

    object: ResultObject
    instance: StoredInstance
    destinations: tuple[str, ...]  # names, as they are configured now; none: it is only kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What is missing of a result that was kept and sent otherwise."""

    reason: str
    traceback: str  # "" where the input is at fault and not the program


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """What a model found in a series; the label tuples share one order, that of the model's label table.

    It is known by the label map that keeps every voxel of it here, whatever forms the destinations get.
    """

    sop_instance_uid: SopInstanceUid
    series_instance_uid: SeriesInstanceUid  # of the label map
    source_series_uid: SeriesInstanceUid
    source_digest: str  # of the revision of the source that was segmented
    model_version: ModelVersion
    label_table_sha256: Sha256
    voxels_sha256: Sha256
    label_sha256: tuple[tuple[str, Sha256], ...]
    voxels: tuple[tuple[str, int], ...]
    millilitres: tuple[tuple[str, float], ...]
    path: str  # relative to the spool
    created_at: datetime
    seconds: tuple[tuple[str, float], ...] = ()  # per step
    tracking_uids: tuple[tuple[str, str], ...] = ()
    objects: tuple[ResultObject, ...] = ()  # filled in by the store
    superseded: bool = False

    @property
    def is_empty(self) -> bool:
        """Answer whether the model marked no voxel."""
        return not any(voxels for _, voxels in self.voxels)


class DeliveryState(StrEnum):
    """Where one result stands on its way to one destination."""

    PENDING = "pending"
    SENT = "sent"
    SUPERSEDED = "superseded"  # a newer result came before this one was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One object of a result on its way to one destination."""

    id: int
    result_sop_uid: SopInstanceUid
    object_sop_uid: SopInstanceUid
    destination: str
    state: DeliveryState
    attempts: int
    last_error: str
    created_at: datetime
    sent_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionRecord:
    """A received segmentation and what it turned out to be."""

    sop_instance_uid: SopInstanceUid  # as received
    recognition: Recognition
    source_series_uid: SeriesInstanceUid | None
    result_sop_uid: SopInstanceUid | None  # our result that it was compared with
    model_name: str
    model_version: ModelVersion | None
    id: int | None = None  # its number for people; set by the store
    instance_id: int | None = None  # the received file
    state: CorrectionState = CorrectionState.RECORDED
    stack: str = ""  # of the series, "" where it is one stack
    scores: tuple[LabelScore, ...] = ()
    author: str = ""
    sender: str = ""
    reasons: tuple[str, ...] = ()  # of the recognition, and flags of the reader
    doubts: tuple[str, ...] = ()  # why a person must look first
    decision: Decision = Decision.NONE
    decided_by: str = ""
    case_id: str | None = None
    patient_key: str | None = None  # the casebook's keyed hash, never an identifier
    split: Split | None = None
    corrected_slices: int = 0
    trained_in: ModelVersion | None = None
    replaced: bool = False  # later corrections of the same series speak for all its labels
    created_at: datetime | None = None  # set by the store


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultCount:
    """How many results of one period speak of one label: those that stand, not those superseded."""

    model_name: str
    label: str
    position: int  # in the model's label table
    period: int  # index of its start
    results: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a reader made of one label of one result, by the last kept correction that speaks of it."""

    result_sop_uid: SopInstanceUid
    model_name: str
    model_version: ModelVersion  # that made the result
    label: str
    position: int  # in the model's label table
    result_at: datetime
    result_stands: bool  # False: a newer result took its place
    at: datetime
    dice: float  # 1 where the result was accepted unchanged
    is_corrected: bool  # slices of this label were edited
    prediction_voxels: int
    correction_voxels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInUse:
    """What the readers made of the version in use, and of the one before it while that was in use."""

    version: ModelVersion
    since: datetime
    previous: ModelVersion | None
    labels: tuple[str, ...]  # as its latest result lists them, in the order of the model's label table
    reviews: tuple[Review, ...]  # of results made since then, oldest first
    before: tuple[Review, ...]  # of results of the version before, made and reviewed before; oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An entry for the audit log, written in one transaction with what it is about."""

    event: str
    subject: str
    detail: str  # UIDs, digests, AE titles; never a patient's data


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One version of a model at this site."""

    version: ModelVersion
    name: str
    origin: ModelOrigin
    state: ModelState
    folder: str
    weights_sha256: Sha256
    created_at: datetime
    parent: ModelVersion | None = None
    recipe: str = ""
    gate_report_json: str = ""
    case_ids: tuple[str, ...] = ()
    release_version: int | None = None  # of the federation, for versions that came from it
    steps: int = 0  # optimiser steps that made it from its parent
    epochs: int = 0
    case_digests: tuple[tuple[str, Sha256], ...] = ()  # each case that it was trained on, and of its arrays
    recipe_json: str = ""  # in full, as it was; the words of `recipe` may mean something else later
    environment_json: str = ""  # of the process that made it
    run_folder: str = ""  # with the course of its training
    advice: str = ""  # what a person should do about it; written by the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate that stands on the shelf, and what the gate said of it beside its parent."""

    record: ModelRecord
    verdict: Verdict
    reason: str
    in_words: str  # kept with the job
    cases_read_at: datetime | None = None  # of a training; a correction that came later stays untrained


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSwitch:
    """One change of the current version of a model."""

    name: str
    version: ModelVersion
    previous: ModelVersion | None
    is_rollback: bool
    is_automatic: bool  # by a rule of the node; False: a person answers for it
    by: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLock:
    """A model whose version in use is changed by persons only."""

    name: str
    by: str
    reason: str
    at: datetime

    @property
    def in_words(self) -> str:
        """Who locked it and why; without the time, which readers see in their own zone."""
        return f"model {self.name} is locked by {self.by or 'an unnamed person'} ({self.reason})"


class Retreat(StrEnum):
    """What became of a version in use that does worse than the one before."""

    ROLLED_BACK = "rolled_back"
    ADVISED = "advised"  # a person decides, and has now been told
    NONE = "none"  # that was said before, or a person stands by the version


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRecord:
    """This site's membership at an aggregator; the private key stays in its file."""

    url: str
    node_id: str
    aggregator_name: str
    aggregator_key: str  # public
    enrolled_at: datetime


class OutboxState(StrEnum):
    """Where a weight update stands on its way out."""

    PENDING = "pending"  # not yet taken by the aggregator
    SENT = "sent"  # taken; its fate is still open
    MERGED = "merged"
    QUARANTINED = "quarantined"
    REJECTED = "rejected"
    ABANDONED = "abandoned"  # withdrawn here, for example because its base is too old


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxUpdate:
    """A weight update that leaves this site, or has left it."""

    update_id: str
    model_version: ModelVersion
    base_release: int
    blob_path: str
    blob_sha256: Sha256
    blob_bytes: int
    manifest_json: str
    created_at: datetime
    state: OutboxState = OutboxState.PENDING
    attempts: int = 0
    last_answer: str = ""


class ReleaseState(StrEnum):
    """What this site made of a release."""

    SEEN = "seen"
    ADOPTED = "adopted"
    REFUSED = "refused"
    INCONCLUSIVE = "inconclusive"
    CANDIDATE = "candidate"  # the gate accepted it, and a person decides


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRelease:
    """A release of the federation that this site has seen."""

    family: str
    version: int
    blob_sha256: Sha256
    manifest_json: str
    seen_at: datetime
    state: ReleaseState = ReleaseState.SEEN
    reason: str = ""
    model_version: ModelVersion | None = None  # what it became here


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Something that a person may ask about later."""

    id: int
    event: str
    subject: str
    detail: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationStatus:
    """What stands at one destination."""

    destination: str
    pending: int
    sent: int
    last_error: str  # of a pending delivery; empty when none failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What a status page says of the database."""

    series: tuple[tuple[SeriesState, int], ...]
    jobs: tuple[tuple[JobKind, JobState, int], ...]
    set_aside: tuple[SeriesRow, ...]  # newest first
    troubled_jobs: tuple[JobRow, ...]  # set aside or failed, newest first
    destinations: tuple[DestinationStatus, ...]
    corrections: tuple[tuple[Recognition, int], ...]
    held_corrections: int  # in quarantine: they wait for a person
    models: tuple[ModelRecord, ...]  # the current versions
