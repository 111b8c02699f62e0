"""The words of the domain: identifiers, states and the frozen records that pass between stages."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import NewType

SopInstanceUid = NewType("SopInstanceUid", str)
SeriesInstanceUid = NewType("SeriesInstanceUid", str)
StudyInstanceUid = NewType("StudyInstanceUid", str)
ModelVersion = NewType("ModelVersion", str)
"""A model at one site: ``<name>@<first 12 hex digits of the weights' SHA-256>``."""
Sha256 = NewType("Sha256", str)
"""64 lower-case hexadecimal digits."""

SegmentSopClasses = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    }
)


STRUCTURE_SET_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
"""RT Structure Set Storage."""
KEY_OBJECT_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.88.59"
"""Key Object Selection Document Storage."""
CorrectionSopClasses = SegmentSopClasses | {STRUCTURE_SET_SOP_CLASS, KEY_OBJECT_SOP_CLASS}
"""The objects in which a reader's word on a result may come back."""


class SeriesState(StrEnum):
    """Where a series stands on its way from the first image to the archived result."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    SEGMENTED = "segmented"
    DELIVERED = "delivered"
    COMMITTED = "committed"
    SET_ASIDE = "set_aside"


class JobKind(StrEnum):
    """The stories that a worker can run; ``subject`` of the job is given in brackets."""

    SEGMENT_SERIES = "segment_series"  # series instance UID
    DELIVER_RESULT = "deliver_result"  # delivery id
    INGEST_CORRECTION = "ingest_correction"  # instance id of the received SEG
    FETCH_IMAGES = "fetch_images"  # instance id of the received SEG
    TRAIN_INCREMENT = "train_increment"  # model name
    PUSH_UPDATE = "push_update"  # model version
    ADOPT_RELEASE = "adopt_release"  # model family


class JobPriority(IntEnum):
    """Which of the jobs of one rank comes first: the higher one."""

    OFF_PEAK = -10
    ROUTINE = 0
    URGENT = 10
    UNROUTED = 20  # a series whose route, and with it its priority, is not known yet
    FORCED = 30  # a person asked for it: it waits for nothing


class JobState(StrEnum):
    """A job is claimable when ready, or when running with an expired lease."""

    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    SET_ASIDE = "set_aside"  # InputError: the input is at fault
    FAILED = "failed"  # attempts exhausted, or a bug


class ResultForm(StrEnum):
    """The forms in which a destination can be given what a model found."""

    SEG = "seg"  # Segmentation, BINARY: what every archive and most viewers take
    LABEL_MAP = "labelmap"  # Label Map Segmentation, RLE
    SR = "sr"  # Comprehensive 3D SR, TID 1500: volume, mean and SD of each label
    RTSTRUCT = "rtstruct"  # RT Structure Set: closed planar contours
    SC = "sc"  # Secondary Capture: pictures, for viewers that show nothing else


class Plane(StrEnum):
    """How the slices of a stack lie in the patient."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"
    OBLIQUE = "oblique"


class ImageKind(StrEnum):
    """What an image shows, as far as its header says it."""

    IMAGE = "image"  # acquired or reconstructed slices: what models are made for
    LOCALIZER = "localizer"
    REFORMATTED = "reformatted"  # slices cut out of another volume (MPR)
    PROJECTION = "projection"  # MIP, MinIP, volume rendering
    MAP = "map"  # computed quantity: ADC, FA, perfusion, T2; phase
    SUBTRACTION = "subtraction"
    SCREEN = "screen"  # picture of a screen or of a report


class Recognition(StrEnum):
    """What a received segmentation turned out to be."""

    LOOP_BACK = "loop_back"
    ACCEPTED_UNCHANGED = "accepted_unchanged"
    CORRECTION = "correction"
    PROBABLE_CORRECTION = "probable_correction"
    NEW_ANNOTATION = "new_annotation"
    FOREIGN = "foreign"
    REJECTED = "rejected"  # a note that takes results of ours out of use


class CorrectionState(StrEnum):
    """What became of a received segmentation."""

    RECORDED = "recorded"  # noted; it teaches nothing: loop-backs, other products' results
    KEPT = "kept"  # part of the training case of its series
    HELD = "held"  # in quarantine: a person decides
    RETIRED = "retired"  # it was kept; its case gave its place to others
    REFUSED = "refused"  # a person decided against it
    WITHDRAWN = "withdrawn"  # it was kept, and a person took it back


class Decision(StrEnum):
    """What a person said of a segmentation in quarantine."""

    NONE = ""
    AS_READ = "as_read"  # the masks lie as they were read
    MIRRORED = "mirrored"  # its slices are in reverse order: turn them


class Split(StrEnum):
    """The side of a patient, fixed by a keyed hash once and for ever."""

    TRAINING = "training"
    HOLD_OUT = "hold_out"


class ModelState(StrEnum):
    """Where a version stands: exactly one version of a model is current."""

    CANDIDATE = "candidate"  # trained or fetched, not yet judged
    CURRENT = "current"
    RETIRED = "retired"  # was current
    REFUSED = "refused"
    INCONCLUSIVE = "inconclusive"  # too few cases; waits for a person


class Verdict(StrEnum):
    """The gate's answer about a candidate."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    INCONCLUSIVE = "inconclusive"


class ModelOrigin(StrEnum):
    """How a version came to this site."""

    INSTALLED = "installed"
    TRAINED = "trained"
    RELEASE = "release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded concept (PS3.3 section 8.8)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One label of a model: network class, DICOM segment and coded meaning together."""

    class_index: int  # channel of the network, >= 1; 0 is background
    segment_number: int  # 1..N in the SEG
    label: str  # SegmentLabel: unique, stable, ASCII, <= 64 characters
    category: Code
    type: Code
    type_modifier: Code | None
    region: Code | None
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a result must say of the model that made it."""

    name: str
    version: ModelVersion
    weights_sha256: Sha256
    segments: tuple[Segment, ...]

    def segment_labelled(self, label: str) -> Segment | None:
        """Find a segment by its label, ignoring case and outer blanks."""
        wanted = label.strip().casefold()
        return next((s for s in self.segments if s.label.casefold() == wanted), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """A DICOM Part 10 file in the spool and what identifies it."""

    sop_instance_uid: SopInstanceUid
    sop_class_uid: str
    series_instance_uid: SeriesInstanceUid
    study_instance_uid: StudyInstanceUid
    modality: str
    transfer_syntax_uid: str
    sha256: Sha256  # of the data set as received, without file meta information
    size_bytes: int
    path: str  # relative to the spool, "/" separated
    sender: str  # calling AE title, or the node's own for results
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A claimed piece of work."""

    id: int
    kind: JobKind
    subject: str
    digest: str  # of the inputs; (kind, digest) is unique
    attempt: int  # 1 at the first claim
    lease_owner: str
    lease_until: datetime
    priority: int = JobPriority.ROUTINE
    was_abandoned: bool = False  # its previous attempt ended without a word: the process died


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A DICOM peer that results are sent to."""

    name: str
    ae_title: str
    host: str
    port: int
    results: tuple[ResultForm, ...] = (ResultForm.SEG,)  # what it is given of each result


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """Agreement of a correction with our prediction, for one label."""

    label: str
    dice: float  # 0..1; 1.0 when both are empty
    edited_slices: tuple[int, ...]  # indices along the volume's slice axis
    prediction_voxels: int
    correction_voxels: int
    confidence: float = 1.0  # how surely the mask is what the reader drew, 0..1
