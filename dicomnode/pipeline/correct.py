"""A segmentation came in: recognise it, compare it with our prediction, keep it as a training case."""

from dataclasses import replace
from datetime import timedelta

import structlog

from dicomnode.domain import (
    CorrectionState,
    Decision,
    Job,
    Recognition,
    SeriesInstanceUid,
    SeriesState,
    SopInstanceUid,
    StoredInstance,
)
from dicomnode.errors import CorrectionError
from dicomnode.imaging.corrections import comparison
from dicomnode.imaging.corrections.rejection import is_key_object
from dicomnode.pipeline import cases, images, picture
from dicomnode.pipeline.cases import Built
from dicomnode.pipeline.feedback import note_drift
from dicomnode.pipeline.reading import Judged, Reading, concerns_no_model, judge, read, source_series
from dicomnode.pipeline.reject import note_rejection
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import CorrectionRecord, Note

log = structlog.get_logger()

_UNFINISHED = frozenset({SeriesState.RECEIVING, SeriesState.QUEUED})
_PAUSE = timedelta(seconds=10)  # until an early correction is looked at again, at first
_LONGEST_PAUSE = timedelta(minutes=10)  # a training steps back each time, and a series may wait for hours
_TEACHING = frozenset(
    {
        Recognition.CORRECTION,
        Recognition.PROBABLE_CORRECTION,
        Recognition.ACCEPTED_UNCHANGED,
        Recognition.NEW_ANNOTATION,
    }
)


def ingest_correction(job: Job, tools: Tools) -> None:
    """Take one received object to a training case, into quarantine, or record why it is neither."""
    instance = tools.store.series.instance(job.subject)
    if instance is None:
        raise CorrectionError(f"no instance {job.subject} is known")
    with tools.casebook.turn():
        record = _ingest(job, instance, tools)
    if record is not None:
        _follow_up(record, tools)


def _ingest(job: Job, instance: StoredInstance, tools: Tools) -> CorrectionRecord | None:
    """Record what an object is; None where that was not done, or not now."""
    earlier = tools.store.corrections.of_instance(int(job.subject))
    if earlier is not None and earlier.state is CorrectionState.WITHDRAWN:
        _withdraw(job, earlier, tools)
        return None
    (ds,) = tools.spool.read([instance])
    if is_key_object(ds):
        note_rejection(job, instance, ds, tools)
        return None
    source_uid = source_series(ds, tools)
    if source_uid is not None and tools.store.series.state(source_uid) in _UNFINISHED:
        _wait(job, instance, f"waits until series {source_uid} is complete and segmented", tools)
        return None
    if source_uid is None or not images.are_here(source_uid, tools):
        if concerns_no_model(ds, tools):
            _note_foreign(job, instance, tools)
        else:
            _park(job, instance, source_uid, tools)
        return None
    reading = read(instance, source_uid, tools)
    judged = judge(reading, tools, decision=earlier.decision if earlier else Decision.NONE)
    judged = replace(judged, doubts=(*judged.doubts, *_taken_back(judged, instance, int(job.subject), tools)))
    return _keep(job, reading, judged, earlier, tools)


def _keep(
    job: Job, reading: Reading, judged: Judged, earlier: CorrectionRecord | None, tools: Tools
) -> CorrectionRecord:
    """Put an object that was read where it belongs: case, picture, row."""
    state = _state(judged, earlier)
    if state is CorrectionState.HELD:
        picture.keep(reading, judged, picture.path_of(int(job.subject), tools.pictures))
    built = _build(reading, judged, int(job.subject), tools) if state is CorrectionState.KEPT else None
    record = _record(reading, judged, state, built, int(job.subject), tools)
    if built is not None:
        tools.casebook.add(built.case)
    tools.store.corrections.record(
        job,
        record,
        now=tools.now(),
        seen=built.seen if built else frozenset(),
        replaced=built.replaced if built else frozenset(),
        notes=_notes(record, judged),
    )
    return record


def _taken_back(judged: Judged, instance: StoredInstance, instance_id: int, tools: Tools) -> tuple[str, ...]:
    """Say that a person has decided against what came under the same UID before, in other bytes."""
    before = tools.store.corrections.by_sop_uid(instance.sop_instance_uid)
    if before is None or before.instance_id == instance_id or judged.found.kind not in _TEACHING:
        return ()
    if before.state not in {CorrectionState.WITHDRAWN, CorrectionState.REFUSED}:
        return ()
    return (f"an object of the same UID was {before.state} before (correction {before.id})",)


def _park(job: Job, instance: StoredInstance, source_uid: SeriesInstanceUid | None, tools: Tools) -> None:
    """Let an object wait for its images; after some days it is set aside."""
    where = f"series {source_uid}" if source_uid else "not named, and it fits no series of its study"
    missing = f"the images that it was drawn on are not held here ({where})"
    days = tools.corrections.parking_days
    if tools.now() - instance.received_at > timedelta(days=days):
        raise CorrectionError(
            f"SEG {instance.sop_instance_uid}: {missing}, and did not come in {days:g} days; "
            f"send the images, then the SEG again"
        )
    asked = source_uid is not None and images.ask_for(job, instance, tools)
    where = f"; {tools.corrections.fetch_from} is asked for them" if asked else ""
    _wait(job, instance, f"parked for up to {days:g} days: {missing}{where}", tools)


def _note_foreign(job: Job, instance: StoredInstance, tools: Tools) -> None:
    """Record an object about images that are not here and that lists no label of any model of this site."""
    record = CorrectionRecord(
        sop_instance_uid=instance.sop_instance_uid,
        instance_id=int(job.subject),
        recognition=Recognition.FOREIGN,
        source_series_uid=None,
        result_sop_uid=None,
        model_name="",
        model_version=None,
        sender=instance.sender,
        reasons=("none of its segments is a label of a model of this site, and its images are not here",),
    )
    tools.store.corrections.record(job, record, now=tools.now())


def _wait(job: Job, instance: StoredInstance, reason: str, tools: Tools) -> None:
    """Look again after a tenth of the time that the object has been here."""
    pause = min(max((tools.now() - instance.received_at) / 10, _PAUSE), _LONGEST_PAUSE)
    tools.store.jobs.defer(job, tools.now() + pause, now=tools.now(), reason=reason)


def _withdraw(job: Job, record: CorrectionRecord, tools: Tools) -> None:
    """Make the case of a correction that was taken back anew, or let it leave."""
    if record.case_id is None:
        tools.store.jobs.finish(job, now=tools.now())
        return
    built = cases.without(record, tools)
    if built is not None:
        tools.casebook.add(built.case)
        tools.store.corrections.settle(
            job, record.case_id, now=tools.now(), seen=built.seen, replaced=built.replaced
        )
    else:
        tools.casebook.remove(record.case_id)
        tools.store.corrections.abandon_case(job, record.case_id, now=tools.now())


def _state(judged: Judged, earlier: CorrectionRecord | None) -> CorrectionState:
    if judged.found.kind not in _TEACHING or not cases.speaks(judged):
        return CorrectionState.RECORDED
    if earlier is not None and earlier.state is CorrectionState.REFUSED:
        return earlier.state
    is_decided = earlier is not None and earlier.decision is not Decision.NONE
    return CorrectionState.HELD if judged.doubts and not is_decided else CorrectionState.KEPT


def _build(reading: Reading, judged: Judged, instance_id: int, tools: Tools) -> Built:
    """The case of the series with this correction in it."""
    others = cases.others_standing(reading, instance_id, tools)
    mine = cases.contribution(reading, judged, tools, instance_id=instance_id)
    return cases.build(reading, judged, [*others, mine], tools)


def _record(
    reading: Reading,
    judged: Judged,
    state: CorrectionState,
    built: Built | None,
    instance_id: int,
    tools: Tools,
) -> CorrectionRecord:
    said = cases.spoken_of(reading, judged, tools)
    teaches = judged.found.kind in _TEACHING and cases.speaks(judged)
    scores = comparison.compare(judged.prediction, said, reading.card) if teaches else ()
    edited = {index for score in scores for index in score.edited_slices}
    corrects = judged.found.corrects
    return CorrectionRecord(
        sop_instance_uid=reading.received.sop_instance_uid,
        instance_id=instance_id,
        recognition=judged.found.kind,
        state=state,
        source_series_uid=reading.source_uid,
        stack=reading.stack.name,
        result_sop_uid=SopInstanceUid(corrects.sop_instance_uid) if corrects else None,
        model_name=reading.card.name,
        model_version=judged.result.model_version if judged.result else None,
        scores=scores,
        author=reading.author,
        sender=reading.received.sender,
        reasons=(*judged.found.reasons[:1], *judged.decoded.flags),
        doubts=judged.doubts,
        case_id=built.case.case_id if built else None,
        patient_key=built.case.patient_key if built else None,
        split=built.case.split if built else None,
        corrected_slices=len(edited),
        replaced=built is not None and None in built.replaced,
    )


def _notes(record: CorrectionRecord, judged: Judged) -> tuple[Note, ...]:
    """What the audit log says of a correction beside its row."""
    notes = []
    if judged.found.is_in_place:
        detail = f"other voxels under our UID, from {record.sender}"
        notes.append(Note(event="result_overwritten", subject=record.sop_instance_uid, detail=detail))
    if record.state is CorrectionState.HELD:
        detail = "; ".join(record.doubts)
        notes.append(Note(event="correction_held", subject=record.sop_instance_uid, detail=detail))
    return tuple(notes)


def _follow_up(record: CorrectionRecord, tools: Tools) -> None:
    """What a new correction sets in motion; nothing of it is lost if the process dies here."""
    if record.state is CorrectionState.HELD:
        log.warning("correction held", sop_instance_uid=record.sop_instance_uid, reasons=record.doubts)
    if record.state is CorrectionState.KEPT:
        with tools.casebook.turn():
            left = cases.keep_quota(record.model_name, tools)
        if left:
            log.info("cases left the casebook", model=record.model_name, cases=len(left))
        note_drift(record.model_name, tools)
