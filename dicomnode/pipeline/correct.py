"""A segmentation came in: recognise it, compare it with our prediction, keep it as a training case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
from pydicom import Dataset

from dicomnode.casebook import Case
from dicomnode.domain import (
    Job,
    LabelScore,
    ModelCard,
    Recognition,
    ResultForm,
    SeriesInstanceUid,
    SeriesState,
    SopInstanceUid,
    StoredInstance,
)
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes, corrections, seg_read
from dicomnode.imaging.corrections import Known, Recognised, SentObject
from dicomnode.imaging.decoded import Decoded
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.regrid import backed_slices, mask_to_image
from dicomnode.imaging.series import SeriesVolume, stack_volume, supported_images
from dicomnode.imaging.stacks import Stack, read_stacks
from dicomnode.pipeline.routing import choose
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import CorrectionRecord, ResultObject, ResultRecord

_UNFINISHED = frozenset({SeriesState.RECEIVING, SeriesState.QUEUED})
_PAUSE = timedelta(seconds=10)  # until an early correction is looked at again, at first
_LONGEST_PAUSE = timedelta(minutes=10)  # a training steps back each time, and a series may wait for hours
_KEPT = frozenset({Recognition.CORRECTION, Recognition.PROBABLE_CORRECTION, Recognition.ACCEPTED_UNCHANGED})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A received segmentation beside what the site knows of its source series."""

    received: StoredInstance
    ds: Dataset
    series: SeriesVolume  # of the stack that was segmented
    stacks: Sequence[Stack]  # all of the series
    card: ModelCard
    results: Sequence[ResultRecord]  # ours of that series, oldest first; the one that stands is the last
    decoded: Decoded
    is_trusted: bool

    @property
    def source_uid(self) -> SeriesInstanceUid:
        """The series that was segmented."""
        return SeriesInstanceUid(self.series.sources[0].SeriesInstanceUID)


def ingest_correction(job: Job, tools: Tools) -> None:
    """Take one received SEG to a training case, or record why it is none."""
    received = tools.store.series.instance(job.subject)
    if received is None:
        raise CorrectionError(f"no instance {job.subject} is known")
    (ds,) = tools.spool.read([received])
    source_uid = _source_series(ds, tools)
    if tools.store.series.state(source_uid) in _UNFINISHED:
        reason = f"waits until series {source_uid} is complete and segmented"
        pause = min(max((tools.now() - received.received_at) / 10, _PAUSE), _LONGEST_PAUSE)
        tools.store.jobs.defer(job, tools.now() + pause, now=tools.now(), reason=reason)
        return
    reading = _read(received, ds, source_uid, tools)
    found, prediction = _recognise(reading, tools)
    if found.is_suspect_flip:
        raise CorrectionError(
            f"SEG {reading.received.sop_instance_uid}: it fits our prediction far better with its slices in "
            f"reverse order, as some viewers write them; save it again with a newer viewer"
        )
    scores: tuple[LabelScore, ...] = ()
    case: Case | None = None
    if _is_kept(found, reading):
        correction = _spoken(reading, found, tools)
        scores = corrections.compare(prediction, correction, reading.card)
        case = _case(reading, prediction, correction, tools)
        tools.casebook.add(case)
    tools.store.corrections.record(job, _record(reading, found, scores, case), now=tools.now())


def _read(received: StoredInstance, ds: Dataset, source_uid: SeriesInstanceUid, tools: Tools) -> _Reading:
    """Put the masks of a received segmentation on the planes of the images that it is about."""
    images = tools.spool.read(tools.store.series.instances_of(source_uid))
    stacks = read_stacks(supported_images(images))
    stack = seg_read.stack_of(ds, stacks)
    results = _results(ds, source_uid, tools)
    card = _card(stack, results, tools)
    author = corrections.author(ds, received.sender)
    return _Reading(
        received=received,
        ds=ds,
        # Missing slices never hinder a correction: what was drawn is on planes that are there.
        series=stack_volume(stack, maximum_missing=stack.missing_slices),
        stacks=stacks,
        card=card,
        results=results,
        decoded=seg_read.decode(ds, stack=stack, card=card),
        is_trusted=bool({received.sender, author} & set(tools.corrections.trusted_ae_titles)),
    )


def _source_series(ds: Dataset, tools: Tools) -> SeriesInstanceUid:
    """The series that a segmentation is about: by its reference, else by the images that its frames name."""
    named = seg_read.referenced_series(ds)
    if named is None:
        images = (tools.store.series.instance(uid) for uid in sorted(seg_read.referenced_instances(ds)))
        found = {image.series_instance_uid for image in images if image is not None}
        named = found.pop() if len(found) == 1 else None
    if named is None or tools.store.series.get(named) is None:
        raise CorrectionError(
            f"SEG {ds.SOPInstanceUID}: the images that it was drawn on are not held here "
            f"(series {named or 'not named'}); send the images, then the SEG again"
        )
    return SeriesInstanceUid(named)


def _results(ds: Dataset, source_uid: SeriesInstanceUid, tools: Tools) -> list[ResultRecord]:
    """Our results of a series that a received object may go back to, the one that stands last.

    When the route went to another model meanwhile: those of the model that the object itself names.
    """
    stored = tools.store.results
    results = sorted(stored.all_for_series(source_uid), key=lambda result: not result.superseded)
    named = stored.by_sop_uid(attributes.text(ds, "SOPInstanceUID"))
    named = named or stored.by_result_series(attributes.text(ds, "SeriesInstanceUID"))
    for item in attributes.items(ds, "SegmentSequence"):
        tracking_uid = attributes.text(item, "TrackingUID")
        named = named or (stored.by_tracking_uid(tracking_uid) if tracking_uid else None)
    standing = named if named in results else next(reversed(results), None)
    if standing is None:
        return []
    model = _model_of(standing)
    return [result for result in results if _model_of(result) == model]


def _model_of(result: ResultRecord) -> str:
    return result.model_version.rpartition("@")[0]


def _card(stack: Stack, results: Sequence[ResultRecord], tools: Tools) -> ModelCard:
    """Labels to read by: of the model whose result was corrected, else of the one that takes the stack."""
    if results:
        return tools.shelf.package(results[-1].model_version).card
    row = tools.store.series.get(stack.series_instance_uid)
    choice = choose([stack], tools.routes, sender=row.sender if row else "")
    return tools.current_package(choice.route.model).card


def _recognise(reading: _Reading, tools: Tools) -> tuple[Recognised, dict[str, BoolArray]]:
    """What the object is, and the prediction of ours that it is to be compared with."""
    latest = _prediction(reading, reading.results[-1], tools) if reading.results else {}
    known = Known(
        sent=[sent for result in reading.results for sent in _sent(result, reading.card, tools)],
        prediction=latest,
        model_name=reading.card.name,
        is_trusted_sender=reading.is_trusted,
    )
    found = corrections.recognise(reading.ds, decoded=reading.decoded, known=known)
    corrected = _result_of(reading, found.corrects.sop_instance_uid if found.corrects else None)
    if corrected is None or corrected is reading.results[-1]:
        return found, latest
    return found, _prediction(reading, corrected, tools)


def _result_of(reading: _Reading, sop_instance_uid: str | None) -> ResultRecord | None:
    """The result of ours that was corrected, in whole or in part; the one that stands where none is named."""
    for result in reading.results:
        if sop_instance_uid in {one.sop_instance_uid for one in result.objects}:
            return result
    return reading.results[-1] if reading.results else None


def _prediction(reading: _Reading, result: ResultRecord, tools: Tools) -> dict[str, BoolArray]:
    """All labels of a result of ours, as it was kept; nothing where it is about another stack."""
    stored = tools.store.series.instance(result.sop_instance_uid)
    if stored is None:
        raise CorrectionError(f"our result {result.sop_instance_uid} is no longer in the spool")
    (ds,) = tools.spool.read([stored])
    stack = reading.series.stack
    if seg_read.stack_of(ds, reading.stacks) is not stack:
        return {}
    return dict(seg_read.decode(ds, stack=stack, card=reading.card).masks)


def _sent(result: ResultRecord, card: ModelCard, tools: Tools) -> list[SentObject]:
    """The objects of one result that hold voxels, the whole before its parts."""
    parts = [one for one in result.objects if one.form is ResultForm.SEG]
    sent = []
    for one in result.objects:
        if one.voxels_sha256 is None:
            continue
        is_part = len(parts) > 1 and one in parts
        labels = _labels_of(one, tools) if is_part else {segment.label for segment in card.segments}
        sent.append(
            SentObject(
                sop_instance_uid=one.sop_instance_uid,
                series_instance_uid=one.series_instance_uid,
                voxels_sha256=one.voxels_sha256,
                labels=frozenset(labels),
                tracking_uids=frozenset(uid for label, uid in result.tracking_uids if label in labels),
            )
        )
    return sent


def _labels_of(part: ResultObject, tools: Tools) -> set[str]:
    """The labels of one part of a result; none where the part is gone."""
    stored = tools.store.series.instance(part.sop_instance_uid)
    return {
        str(item.SegmentLabel)
        for ds in tools.spool.read([stored] if stored else [])
        for item in ds.SegmentSequence
    }


def _is_kept(found: Recognised, reading: _Reading) -> bool:
    """Corrections teach; so does an annotation by somebody the site trusts; if they speak of our labels."""
    if not (reading.decoded.masks or reading.decoded.empty_labels):
        return False
    return found.kind in _KEPT or (found.kind is Recognition.NEW_ANNOTATION and reading.is_trusted)


def _spoken(reading: _Reading, found: Recognised, tools: Tools) -> Decoded:
    """What the reader's object says of our labels, as this site reads the labels that it does not list."""
    if not tools.corrections.absence_means_empty:
        return reading.decoded
    return corrections.with_absent_emptied(reading.decoded, reading.card, corrects=found.corrects)


def _case(reading: _Reading, prediction: Mapping[str, BoolArray], correction: Decoded, tools: Tools) -> Case:
    """Image, labels and what of them was reviewed, without anything that names the patient.

    All on the grid of the image. Slices of it that nobody received are interpolated; they weigh nothing.
    """
    stack = reading.series.stack
    first = stack.first
    patient_key = tools.casebook.patient_key(
        str(first.get("PatientID", "") or ""),
        str(first.get("IssuerOfPatientID", "") or ""),
        study_instance_uid=str(first.StudyInstanceUID),
    )
    ours = {label: mask_to_image(mask, stack) for label, mask in prediction.items()}
    theirs = _on_image(correction, stack)
    weights = corrections.reviewed_weights(ours, theirs, reading.card) * backed_slices(stack)
    known = [row for row, _ in enumerate(reading.card.segments) if weights[row].any()]
    return Case(
        case_id=tools.casebook.case_id(reading.source_uid),
        patient_key=patient_key,
        split=tools.casebook.split_of(patient_key),
        model_name=reading.card.name,
        image=np.asarray(reading.series.image.array, dtype=np.float32),
        affine=np.asarray(reading.series.image.affine, dtype=np.float64),
        labels=corrections.correction_labels(ours, theirs, reading.card),
        reviewed=weights[known],
        labels_known=tuple(reading.card.segments[row].label for row in known),
        source_digest=tools.store.series.revision_digest(reading.source_uid),
        created_at=reading.received.received_at,
    )


def _on_image(decoded: Decoded, stack: Stack) -> Decoded:
    """Bring the labels of a segmentation from the planes of a stack to the grid of its image."""
    masks = {label: mask_to_image(mask, stack) for label, mask in decoded.masks.items()}
    return replace(decoded, shape=stack.grid.shape, masks=masks, unmapped={})


def _record(
    reading: _Reading, found: Recognised, scores: tuple[LabelScore, ...], case: Case | None
) -> CorrectionRecord:
    edited = {index for score in scores for index in score.edited_slices}
    corrected = found.corrects.sop_instance_uid if found.corrects else None
    result = _result_of(reading, corrected)
    return CorrectionRecord(
        sop_instance_uid=reading.received.sop_instance_uid,
        recognition=found.kind,
        source_series_uid=reading.source_uid,
        result_sop_uid=SopInstanceUid(corrected) if corrected else None,
        model_name=reading.card.name,
        model_version=result.model_version if result else None,
        scores=scores,
        author=corrections.author(reading.ds, reading.received.sender),
        sender=reading.received.sender,
        reasons=found.reasons,
        case_id=case.case_id if case else None,
        patient_key=case.patient_key if case else None,
        split=case.split if case else None,
        corrected_slices=len(edited),
    )
