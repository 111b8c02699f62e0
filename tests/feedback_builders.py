"""Results and what readers made of them, as rows only: no file stands behind them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dicomnode.domain import (
    CorrectionState,
    Job,
    JobKind,
    LabelScore,
    ModelOrigin,
    ModelState,
    ModelVersion,
    Recognition,
    ResultForm,
    SeriesInstanceUid,
    Sha256,
    SopInstanceUid,
    StoredInstance,
    StudyInstanceUid,
)
from dicomnode.store import CorrectionRecord, ModelRecord, ResultObject, ResultRecord, Store, WrittenObject

MODEL = "tiny"
FRONT, BACK = "Front", "Back"
MR = "1.2.840.10008.5.1.4.1.1.4"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
THEIRS = 1000
"""Voxels of a label as a reader leaves it."""


def score(label: str, dice: float, *, ours: int = THEIRS, theirs: int = THEIRS) -> LabelScore:
    """A label with an edited slice, unless nothing was edited."""
    edited = () if dice == 1.0 and ours == theirs else (3,)
    return LabelScore(
        label=label, dice=dice, edited_slices=edited, prediction_voxels=ours, correction_voxels=theirs
    )


@dataclass(kw_only=True)
class Readers:
    """A site where results are made and readers look at them."""

    store: Store
    count: int = field(default=0)

    def use(self, version: str, *, at: datetime, model: str = MODEL) -> ModelVersion:
        """Put a version into use."""
        named = ModelVersion(f"{model}@{version}")
        self.store.models.register(
            ModelRecord(
                version=named,
                name=model,
                origin=ModelOrigin.TRAINED,
                state=ModelState.CANDIDATE,
                folder=version,
                weights_sha256=Sha256(f"{version:0<64}"),
                created_at=at,
            )
        )
        self.store.models.promote(named, now=at, by="test")
        return named

    def segment(self, version: ModelVersion, *, at: datetime, series: str = "") -> SopInstanceUid:
        """Make a result of a series; gives the UID of the segmentation that was sent, not of what is kept."""
        self.count += 1
        uid = f"1.2.{self.count}"
        series_uid = series or f"{uid}.1"
        self.store.series.record_instance(_instance(f"{uid}.1.1", series_uid, MR, at), now=at)
        self.store.series.enqueue_quiet(at, timedelta(0))
        job = self._claim(JobKind.SEGMENT_SERIES, at)
        result = _result(uid, job, version, at)
        sent = SopInstanceUid(f"{uid}.3.1")
        written = [
            _written(result.sop_instance_uid, ResultForm.LABEL_MAP, at),
            _written(sent, ResultForm.SEG, at),
        ]
        self.store.results.finish_segmentation(job, result, written, now=at)
        return sent

    def correct(
        self,
        corrects: SopInstanceUid | None,
        *scores: LabelScore,
        at: datetime,
        state: CorrectionState = CorrectionState.KEPT,
        recognition: Recognition = Recognition.CORRECTION,
    ) -> None:
        """Take in what a reader saved."""
        self.count += 1
        uid = SopInstanceUid(f"5.5.{self.count}")
        self.store.series.record_instance(_instance(uid, "5.5", SEG, at), now=at)
        record = CorrectionRecord(
            sop_instance_uid=uid,
            recognition=recognition,
            source_series_uid=None,
            result_sop_uid=corrects,
            model_name=MODEL,
            model_version=None,
            state=state,
            scores=scores,
        )
        self.store.corrections.record(self._claim(JobKind.INGEST_CORRECTION, at), record, now=at)

    def review(
        self, version: ModelVersion, dices: Mapping[str, float], *, at: datetime, ours: int = THEIRS
    ) -> None:
        """Make a result and have a reader save it with these agreements."""
        sent = self.segment(version, at=at)
        self.correct(sent, *(score(label, dice, ours=ours) for label, dice in dices.items()), at=at)

    def _claim(self, kind: JobKind, at: datetime) -> Job:
        job = self.store.jobs.claim(at, kinds={kind}, owner="test", lease=timedelta(hours=1))
        assert job is not None
        return job


def _instance(uid: str, series: str, sop_class: str, at: datetime) -> StoredInstance:
    return StoredInstance(
        sop_instance_uid=SopInstanceUid(uid),
        sop_class_uid=sop_class,
        series_instance_uid=SeriesInstanceUid(series),
        study_instance_uid=StudyInstanceUid("1.2"),
        modality="MR" if sop_class == MR else "SEG",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=Sha256(f"{uid.encode().hex():0<64}"),
        size_bytes=1000,
        path=f"{uid}.dcm",
        sender="SCANNER",
        received_at=at,
    )


def _result(uid: str, job: Job, version: ModelVersion, at: datetime) -> ResultRecord:
    labels = (FRONT, BACK)
    return ResultRecord(
        sop_instance_uid=SopInstanceUid(f"{uid}.2.1"),
        series_instance_uid=SeriesInstanceUid(f"{uid}.2"),
        source_series_uid=SeriesInstanceUid(job.subject),
        source_digest=job.digest,
        model_version=version,
        label_table_sha256=Sha256("1" * 64),
        voxels_sha256=Sha256("2" * 64),
        label_sha256=tuple((label, Sha256("3" * 64)) for label in labels),
        voxels=tuple((label, THEIRS) for label in labels),
        millilitres=tuple((label, 1.0) for label in labels),
        path=f"{uid}.2.1.dcm",
        created_at=at,
    )


def _written(sop_uid: SopInstanceUid, form: ResultForm, at: datetime) -> WrittenObject:
    series = SeriesInstanceUid(sop_uid.rpartition(".")[0])
    kept = ResultObject(
        sop_instance_uid=sop_uid,
        series_instance_uid=series,
        form=form,
        voxels_sha256=Sha256("2" * 64),
    )
    return WrittenObject(object=kept, instance=_instance(sop_uid, series, SEG, at), destinations=())
