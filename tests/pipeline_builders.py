"""A site in a folder, with real rooms and a model of a few kilobytes, for the tests of the stories."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import highdicom as hd
import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicomnode.casebook import Casebook
from dicomnode.conditions import Conditions, Range
from dicomnode.configtraining import TrainingSettings
from dicomnode.domain import (
    Destination,
    Job,
    JobKind,
    ModelOrigin,
    ModelState,
    Segment,
    Split,
    StoredInstance,
)
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.results.mr_write import encode_series
from dicomnode.ml.model import network, package
from dicomnode.ml.model.architecture import DynUNetPlan
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import ImageExtent, Interpolation, PercentileZScore, Plan, Stage
from dicomnode.ml.shelf import ModelShelf
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.pipeline.learn import enqueue_if_due, train_increment
from dicomnode.pipeline.segment import segment_series
from dicomnode.pipeline.tools import Tools
from dicomnode.settings import (
    CorrectionSettings,
    FederationSettings,
    RouteSettings,
    WorkSettings,
)
from dicomnode.spool import Spool
from dicomnode.store import Store
from dicomnode.store.records import CorrectionRecord, ModelRecord, ResultRecord
from dicomnode.weights import Tensors
from tests.federation_builders import Clock
from tests.imaging_builders import make_volume, sct

MODEL = "tiny"
FRONT, BACK = "Front", "Back"
QUIET = timedelta(seconds=60)
LEASE = timedelta(seconds=60)
SHAPE = (8, 12, 14)
SECRET = b"sixteen bytes or more"
BLOCK = (3, 3, 3)

Mask = NDArray[np.bool_]


def tiny_plan(*, name: str = MODEL, spacing_mm: float = 1.0) -> Plan:
    """Two labels, three levels, patches of 8 voxels."""
    return Plan(
        name=name,
        modalities=("MR",),
        orientation="HPL",
        stages=(
            Stage(
                spacing_mm=(spacing_mm, spacing_mm, spacing_mm),
                spacing_tolerance=0.01,
                patch_shape=(8, 8, 8),
                normalisation=PercentileZScore(),
                image_interpolation=Interpolation(antialias=True),
                score_interpolation=Interpolation(),
                network=DynUNetPlan(
                    classes=3,
                    filters=(4, 8, 8),
                    kernels=(BLOCK, BLOCK, BLOCK),
                    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
                ),
                mirror_axes=(),
                overlap=0.25,
            ),
        ),
        image_extent=ImageExtent(minimum_mm=(8, 8, 8), median_mm=(10, 10, 10), maximum_mm=(20, 20, 20)),
    )


def tiny_segments() -> tuple[Segment, ...]:
    """The labels of the model."""
    front = Segment(
        class_index=1,
        segment_number=1,
        label=FRONT,
        category=sct("123037004", "Anatomical Structure"),
        type=sct("5366008", "Hippocampus"),
        type_modifier=sct("255549009", "Anterior"),
        region=None,
        rgb=(230, 159, 0),
    )
    back = replace(
        front, class_index=2, segment_number=2, label=BACK, type_modifier=sct("255551008", "Posterior")
    )
    return front, back


def tiny_weights(*, seed: int = 1, background: float = 0.0) -> Tensors:
    """Seeded weights; a large ``background`` makes a model that finds nothing."""
    torch.manual_seed(seed)
    tensors = network.tensors_of(network.build(tiny_plan().final.network))
    tensors["output_block.conv.conv.bias"][0] += background
    return tensors


def write_tiny(
    folder: Path, *, tensors: Tensors | None = None, name: str = MODEL, spacing_mm: float = 1.0
) -> ModelPackage:
    """Write the package of the model."""
    return package.write(
        folder,
        tiny_plan(name=name, spacing_mm=spacing_mm),
        tiny_segments(),
        tiny_weights() if tensors is None else tensors,
        "# tiny\n\n---\n\nMade in a test.\n",
    )


def mr_series(
    seed: int = 0, *, patient_id: str = "PAT-1", shape: tuple[int, int, int] = SHAPE, study_uid: str = ""
) -> list[Dataset]:
    """An axial MR series of seeded noise with a bright block, in slice order."""
    values = np.random.default_rng(seed).integers(50, 200, shape)
    values[2:6, 3:9, 4:10] += 600
    return encode_series(
        make_volume(values.astype(np.uint16), spacing_mm=(1.0, 1.0, 1.0)),
        patient_id=patient_id,
        patient_name="Nobody^Known",
        study_description="Study",
        series_description="T1",
        study_instance_uid=study_uid or generate_uid(),
        series_instance_uid=generate_uid(),
        series_number=1,
        created_at=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    )


def viewer_seg(sources: Sequence[Dataset], masks: Mapping[str, Mask], *, series_uid: str = "") -> Dataset:
    """A segmentation as a viewer saves it: by highdicom, with other UIDs and without our tracking UIDs.

    Masks are in the slice order of the node and do not overlap.
    """
    ordered = to_volume(sources).sources
    segments = {segment.label: segment for segment in tiny_segments()}
    kept = [label for label, mask in masks.items() if mask.any()]
    labels = np.zeros(masks[kept[0]].shape, np.uint8)
    for number, label in enumerate(kept, 1):
        labels[masks[label]] = number
    return hd.seg.Segmentation(
        source_images=ordered,
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=label,
                segmented_property_category=hd.sr.CodedConcept("123037004", "SCT", "Anatomical Structure"),
                segmented_property_type=hd.sr.CodedConcept("5366008", "SCT", segments[label].type.meaning),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
            for number, label in enumerate(kept, 1)
        ],
        series_instance_uid=series_uid or generate_uid(),
        series_number=501,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="A viewer",
        manufacturer_model_name="With a brush",
        software_versions="1",
        device_serial_number="1",
    )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A site, its clock, and what happens to it."""

    folder: Path
    clock: Clock
    tools: Tools

    def receive(self, datasets: Sequence[Dataset], *, sender: str = "SCANNER") -> StoredInstance:
        """Take objects in as the receiver does; gives the last."""
        for ds in datasets:
            kept = self.tools.spool.write_result(ds, sender=sender, created_at=self.clock())
            self.tools.store.series.record_instance(kept, now=self.clock())
        return kept

    def claim(self, kind: JobKind, *, owner: str = "worker") -> Job:
        """Claim the first job of a kind, which must be due."""
        job = self.tools.store.jobs.claim(self.clock(), kinds={kind}, owner=owner, lease=LEASE)
        assert job is not None
        return job

    def later(self, seconds: float = 61.0) -> None:
        """Let time pass."""
        self.clock.moment += timedelta(seconds=seconds)

    def quiet(self) -> None:
        """Let the quiet period pass, and queue what is complete."""
        self.later()
        self.tools.store.series.enqueue_quiet(self.clock(), QUIET)

    def segment(self, datasets: Sequence[Dataset]) -> ResultRecord | None:
        """Take a series to its result."""
        self.receive(datasets)
        self.quiet()
        segment_series(self.claim(JobKind.SEGMENT_SERIES), self.tools)
        return self.tools.store.results.latest_for_series(datasets[0].SeriesInstanceUID)

    def found(self, datasets: Sequence[Dataset], result: ResultRecord | None = None) -> dict[str, Mask]:
        """What a result marks, by label; the one that stands where none is named."""
        wanted = result or self.tools.store.results.latest_for_series(datasets[0].SeriesInstanceUID)
        assert wanted is not None
        stored = self.tools.store.series.instance(wanted.sop_instance_uid)
        assert stored is not None
        (ds,) = self.tools.spool.read([stored])
        card = self.tools.shelf.package(wanted.model_version).card
        masks = seg_read.decode(ds, stack=only_stack(datasets), card=card).masks
        return {label: masks.get(label, np.zeros(SHAPE, bool)).copy() for label in (FRONT, BACK)}

    def correct(self, seg: Dataset, *, sender: str = "VIEWER") -> CorrectionRecord:
        """Take a reader's object in and read it."""
        self.receive([seg], sender=sender)
        ingest_correction(self.claim(JobKind.INGEST_CORRECTION), self.tools)
        record = self.tools.store.corrections.by_sop_uid(seg.SOPInstanceUID)
        assert record is not None
        return record

    def draw(self, side: Split, *, seed: int = 0) -> str:
        """Take a trusted reader's drawing of the bright block, on a patient of one side; gives the case."""
        series = mr_series(seed, patient_id=self.patient_on(side))
        self.segment(series)
        masks = {FRONT: np.zeros(SHAPE, bool), BACK: np.zeros(SHAPE, bool)}
        masks[FRONT][2:6, 3:6, 4:10] = True
        masks[BACK][2:6, 6:9, 4:10] = True
        trusting = self.with_changes(corrections=CorrectionSettings(trusted_ae_titles=("CHIEF",)))
        record = trusting.correct(viewer_seg(series, masks), sender="CHIEF")
        assert record.case_id is not None
        return record.case_id

    def train(self) -> str:
        """Queue a training that is due, run it, and give the words that its job ended with."""
        plan = enqueue_if_due(MODEL, self.tools)
        assert plan.is_due
        train_increment(self.claim(JobKind.TRAIN_INCREMENT), self.tools)
        row = self.tools.store.jobs.find(JobKind.TRAIN_INCREMENT, plan.digest)
        assert row is not None
        return row.reason

    def patient_on(self, side: Split, *, number: int = 0) -> str:
        """A patient of one side of the split."""
        casebook = self.tools.casebook
        names = (f"PAT-{count}" for count in range(1000))
        fitting = [name for name in names if casebook.split_of(casebook.patient_key(name)) is side]
        return fitting[number]

    def use(self, tensors: Tensors) -> ModelRecord:
        """Put other weights into use, as a person would."""
        tools = self.tools
        made = tools.shelf.add(tools.current_package(MODEL), tensors, card_text="# other\n")
        return put_into_use(tools.store, made, now=self.clock())

    def with_changes(self, **changes: object) -> "Scene":
        """The same site with other tools."""
        return replace(self, tools=replace(self.tools, **changes))  # type: ignore[arg-type]


def put_into_use(store: Store, found: ModelPackage, *, now: datetime) -> ModelRecord:
    """Register a package and promote it."""
    record = ModelRecord(
        version=found.card.version,
        name=found.card.name,
        origin=ModelOrigin.INSTALLED,
        state=ModelState.CANDIDATE,
        folder=str(found.folder),
        weights_sha256=found.card.weights_sha256,
        created_at=now,
    )
    store.models.register(record)
    return store.models.promote(record.version, now=now, by="test")


@contextmanager
def opened_scene(folder: Path) -> Iterator[Scene]:
    """A site whose model is in use; its database is closed after the block."""
    (folder / "exchange").mkdir(parents=True, exist_ok=True)
    clock = Clock()
    store = Store.open(f"sqlite:///{folder / 'node.sqlite'}")
    shelf = ModelShelf(folder / "models", device="cpu")
    if store.models.current(MODEL) is None:
        put_into_use(store, shelf.install(write_tiny(folder / "package").folder), now=clock())
    tools = Tools(
        store=store,
        spool=Spool(folder / "spool", minimum_free_bytes=0),
        casebook=Casebook(folder / "cases", secret=SECRET, hold_out_fraction=0.5),
        shelf=shelf,
        ae_title="DICOMNODE",
        routes=(RouteSettings(name="tiny", model=MODEL, where=Conditions(slices=Range(min=6))),),
        destinations={"pacs": Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=1)},
        work=WorkSettings(),
        corrections=CorrectionSettings(),
        training=TrainingSettings(
            window="00:00-00:00",
            minimum_corrected_slices=1,
            minimum_patients=1,
            minimum_hold_out_cases=1,
            recipe="dafne",
        ),
        federation=FederationSettings(),
        federation_key=folder / "federation.pem",
        exchange=folder / "exchange",
        pictures=folder / "pictures",
        runs=folder / "runs",
        now=clock,
        should_stop=lambda: False,
        progress=lambda *_: None,
    )
    try:
        yield Scene(folder=folder, clock=clock, tools=tools)
    finally:
        store.close()
