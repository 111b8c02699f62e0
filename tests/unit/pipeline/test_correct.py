"""A segmentation that came in: recognised, compared with our prediction, kept as a training case."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from dicomnode.domain import KEY_OBJECT_SOP_CLASS, CorrectionState, JobKind, JobState, Recognition, Split
from dicomnode.errors import CorrectionError, LeaseLostError, UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging.corrections.rejection import MOST_REFERENCES, read_rejection
from dicomnode.imaging.images.series import to_volume
from dicomnode.ml.inference import engine
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.pipeline.segment import segment_series
from dicomnode.settings import CorrectionSettings
from dicomnode.spool import Spool
from tests.imaging_builders import reread
from tests.pipeline_builders import (
    BACK,
    FRONT,
    LEASE,
    MODEL,
    SHAPE,
    mr_series,
    put_into_use,
    tiny_weights,
    viewer_seg,
    write_tiny,
)


def edited(masks):
    """Ours without Front on slices 3 and 4."""
    changed = {label: mask.copy() for label, mask in masks.items()}
    changed[FRONT][3:5] = False
    return changed


def test_a_readers_correction_is_scored_label_by_label_and_kept_as_a_case(scene):
    patient = scene.patient_on(Split.TRAINING)
    series = mr_series(patient_id=patient)
    result = scene.segment(series)
    ours = scene.found(series)
    theirs = edited(ours)

    record = scene.correct(viewer_seg(series, theirs))

    assert record.recognition is Recognition.PROBABLE_CORRECTION
    assert record.model_version == result.model_version
    scores = {score.label: score for score in record.scores}
    kept, all_of_it = int(theirs[FRONT].sum()), int(ours[FRONT].sum())
    assert 0 < kept < all_of_it
    # Theirs lies within ours: Dice is 2 * theirs / (ours + theirs).
    assert scores[FRONT].dice == pytest.approx(2 * kept / (all_of_it + kept))
    assert scores[FRONT].edited_slices == (3, 4)
    assert (scores[FRONT].prediction_voxels, scores[FRONT].correction_voxels) == (all_of_it, kept)
    assert (scores[BACK].dice, scores[BACK].edited_slices) == (1.0, ())
    assert record.corrected_slices == 2
    assert record.split is Split.TRAINING
    assert scene.tools.store.corrections.untrained_cases(MODEL) == (record.case_id,)

    case = scene.tools.casebook.read(record.case_id)
    np.testing.assert_array_equal(case.labels == 1, theirs[FRONT])
    np.testing.assert_array_equal(case.labels == 2, theirs[BACK])
    assert case.labels_known == (FRONT, BACK)
    # Edited slices and their neighbours count fully.
    np.testing.assert_array_equal(case.reviewed[0][2:6], [1, 1, 1, 1])


def test_a_hold_out_patient_stays_on_the_hold_out_side(scene):
    series = mr_series(patient_id=scene.patient_on(Split.HOLD_OUT))
    scene.segment(series)

    record = scene.correct(viewer_seg(series, edited(scene.found(series))))

    assert record.split is Split.HOLD_OUT
    assert scene.tools.store.corrections.untrained_slices(MODEL) == 0
    assert scene.tools.casebook.cases(model_name=MODEL, split=Split.HOLD_OUT)[0].case_id == record.case_id


def test_two_series_of_one_patient_are_on_one_side_and_no_identifier_is_kept(scene):
    patient = "Doe-1234567"
    for seed in (1, 2):
        series = mr_series(seed, patient_id=patient)
        scene.segment(series)
        scene.correct(viewer_seg(series, edited(scene.found(series))))

    first, second = scene.tools.casebook.cases(model_name=MODEL)
    assert (first.patient_key, first.split) == (second.patient_key, second.split)
    for path in (scene.folder / "cases").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"Doe-1234567" not in content
            assert b"Nobody" not in content
            assert str(series[0].SeriesInstanceUID).encode() not in content


def test_without_a_patient_id_one_study_stays_on_one_side(scene):
    keys = []
    for seed in (1, 2):
        series = mr_series(seed, patient_id="", study_uid="1.2.3.4")
        scene.segment(series)
        record = scene.correct(viewer_seg(series, edited(scene.found(series))))
        keys.append(record.patient_key)
    other = mr_series(3, patient_id="", study_uid="1.2.3.5")
    scene.segment(other)
    record = scene.correct(viewer_seg(other, edited(scene.found(other))))

    assert keys[0] == keys[1] != record.patient_key


def test_a_repeat_after_a_crash_keeps_one_case_and_one_record(scene):
    series = mr_series()
    scene.segment(series)
    scene.receive([viewer_seg(series, edited(scene.found(series)))], sender="VIEWER")
    slow = scene.claim(JobKind.INGEST_CORRECTION, owner="slow")
    scene.later()
    quick = scene.claim(JobKind.INGEST_CORRECTION, owner="quick")

    with pytest.raises(LeaseLostError):  # the case is on disk, the record is not
        ingest_correction(slow, scene.tools)
    assert scene.tools.store.corrections.list() == ()
    ingest_correction(quick, scene.tools)

    assert len(scene.tools.store.corrections.list()) == 1
    assert len(scene.tools.casebook.cases(model_name=MODEL)) == 1
    assert len(list((scene.folder / "cases").rglob("*.npz"))) == 1


def test_our_own_object_coming_back_teaches_nothing(scene):
    series = mr_series()
    result = scene.segment(series)
    ours = dcmread(scene.folder / "spool" / result.path)
    ours.SeriesDescription = "coerced by a PACS"

    record = scene.correct(reread(ours), sender="PACS")

    assert record.recognition is Recognition.LOOP_BACK
    assert record.case_id is None
    assert record.result_sop_uid == result.sop_instance_uid
    # What is delivered is still what we wrote.
    assert scene.tools.store.series.instance(result.sop_instance_uid).sender == "DICOMNODE"


def test_our_voxels_saved_by_a_viewer_are_a_case_without_an_edited_slice(scene):
    series = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(series)

    record = scene.correct(viewer_seg(series, scene.found(series)))

    assert record.recognition is Recognition.ACCEPTED_UNCHANGED
    assert record.corrected_slices == 0
    assert record.case_id is not None


def test_a_correction_that_comes_before_its_images_are_complete_waits(scene):
    series = mr_series()
    classes = engine.predict(scene.tools.current_model(MODEL), to_volume(series).image).array
    theirs = edited({FRONT: classes == 1, BACK: classes == 2})
    scene.receive(series[:4])
    scene.receive([viewer_seg(series, theirs)], sender="VIEWER")
    job = scene.claim(JobKind.INGEST_CORRECTION)

    ingest_correction(job, scene.tools)

    jobs = scene.tools.store.jobs
    row = jobs.get(job.id)
    assert row.state is JobState.READY
    assert row.attempts == 0  # it is nobody's fault
    assert "complete and segmented" in row.reason
    assert jobs.claim(scene.clock(), kinds=set(JobKind), owner="worker", lease=LEASE) is None

    scene.segment(series[4:])  # the segmentation is not held up, and then the correction is read
    ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)

    (record,) = scene.tools.store.corrections.list()
    assert record.recognition is Recognition.PROBABLE_CORRECTION
    assert {score.label: score.edited_slices for score in record.scores} == {FRONT: (3, 4), BACK: ()}


def test_a_correction_of_a_superseded_result_is_compared_with_that_result(scene):
    series = mr_series()
    first = scene.segment(series)
    theirs = edited(scene.found(series))
    scene.use(tiny_weights(seed=7))
    scene.tools.store.series.force(series[0].SeriesInstanceUID, now=scene.clock())
    segment_series(scene.claim(JobKind.SEGMENT_SERIES), scene.tools)
    second = scene.tools.store.results.latest_for_series(series[0].SeriesInstanceUID)
    assert second.voxels_sha256 != first.voxels_sha256

    record = scene.correct(viewer_seg(series, theirs, series_uid=first.series_instance_uid))

    assert record.recognition is Recognition.CORRECTION
    assert (record.result_sop_uid, record.model_version) == (first.sop_instance_uid, first.model_version)
    assert {score.label: score.edited_slices for score in record.scores} == {FRONT: (3, 4), BACK: ()}


def test_a_correction_of_a_result_of_the_model_before_teaches_that_model(scene):
    series = mr_series()
    first = scene.segment(series)
    theirs = edited(scene.found(series))
    other = write_tiny(scene.folder / "other", name="other", tensors=tiny_weights(seed=7))
    put_into_use(scene.tools.store, scene.tools.shelf.install(other.folder), now=scene.clock())
    (route,) = scene.tools.routes
    moved = scene.with_changes(routes=(route.model_copy(update={"model": "other"}),))
    moved.tools.store.series.force(series[0].SeriesInstanceUID, now=scene.clock())
    segment_series(moved.claim(JobKind.SEGMENT_SERIES), moved.tools)

    old = moved.correct(viewer_seg(series, theirs, series_uid=first.series_instance_uid))
    new = moved.correct(viewer_seg(series, edited(moved.found(series))))

    assert (old.model_name, old.model_version) == (MODEL, first.model_version)
    assert {score.label: score.edited_slices for score in old.scores} == {FRONT: (3, 4), BACK: ()}
    assert (new.model_name, new.model_version) == ("other", other.card.version)


def test_a_correction_of_a_series_that_waits_for_hours_is_looked_at_less_and_less_often(scene):
    series = mr_series()
    first = scene.segment(series)
    theirs = edited(scene.found(series))
    scene.receive([viewer_seg(series, theirs, series_uid=first.series_instance_uid)], sender="VIEWER")
    scene.tools.store.series.force(series[0].SeriesInstanceUID, now=scene.clock())

    pauses = []
    for _ in range(4):
        job = scene.claim(JobKind.INGEST_CORRECTION)
        ingest_correction(job, scene.tools)
        pauses.append((scene.tools.store.jobs.get(job.id).run_after - scene.clock()).total_seconds())
        scene.later(1800)

    assert pauses == [10, 180, 360, 540]


def test_after_a_rollback_a_correction_is_compared_with_the_result_that_stands(scene):
    series = mr_series()
    uid = series[0].SeriesInstanceUID
    first = scene.segment(series)
    scene.use(tiny_weights(seed=7))
    for roll_back in (False, True):
        if roll_back:
            scene.tools.store.models.rollback(MODEL, now=scene.clock(), by="test")
        scene.tools.store.series.force(uid, now=scene.clock())
        segment_series(scene.claim(JobKind.SEGMENT_SERIES), scene.tools)
    assert scene.tools.store.results.latest_for_series(uid).sop_instance_uid == first.sop_instance_uid

    record = scene.correct(viewer_seg(series, edited(scene.found(series))))

    assert record.model_version == first.model_version
    assert {score.label: score.edited_slices for score in record.scores}[FRONT] == (3, 4)


def test_a_later_correction_of_a_series_replaces_the_earlier_case(scene):
    series = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(series)
    ours = scene.found(series)
    earlier = scene.correct(viewer_seg(series, edited(ours)))
    wiped = {FRONT: ours[FRONT].copy(), BACK: ours[BACK].copy()}
    wiped[FRONT][5] = False

    later = scene.correct(viewer_seg(series, wiped))

    assert later.case_id == earlier.case_id
    store = scene.tools.store.corrections
    assert store.untrained_slices(MODEL) == later.corrected_slices == 1
    np.testing.assert_array_equal(scene.tools.casebook.read(later.case_id).labels == 1, wiped[FRONT])


def test_an_object_that_says_nothing_of_our_labels_does_not_replace_a_case(scene):
    series = mr_series()
    result = scene.segment(series)
    ours = scene.found(series)
    kept = scene.correct(viewer_seg(series, edited(ours)))
    lesion = viewer_seg(series, {FRONT: ours[FRONT]}, series_uid=result.series_instance_uid)
    lesion.SegmentSequence[0].SegmentLabel = "Lesion"
    lesion.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "52988006"
    lesion.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Lesion"

    record = scene.correct(reread(lesion))

    assert record.case_id is None
    assert not scene.tools.store.corrections.by_sop_uid(kept.sop_instance_uid).replaced


def drawn_anew() -> dict[str, np.ndarray]:
    """A reader's own drawing: a small block in a corner."""
    mask = np.zeros(SHAPE, bool)
    mask[0, 0, 0:2] = True
    return {FRONT: mask}


def test_an_annotation_that_resembles_nothing_is_kept_only_from_a_trusted_sender(scene):
    series = mr_series()
    scene.use(tiny_weights(background=1000.0))
    scene.segment(series)
    trusting = scene.with_changes(corrections=CorrectionSettings(trusted_ae_titles=("CHIEF",)))

    stranger = scene.correct(viewer_seg(series, drawn_anew()), sender="STRANGER")
    trusted = trusting.correct(viewer_seg(series, drawn_anew()), sender="CHIEF")

    assert stranger.recognition is trusted.recognition is Recognition.NEW_ANNOTATION
    assert (stranger.state, stranger.case_id) == (CorrectionState.HELD, None)
    assert (trusted.state, trusted.doubts) == (CorrectionState.KEPT, ())
    assert trusted.case_id is not None


def test_a_correction_after_an_empty_result_counts_every_drawn_slice_as_edited(scene):
    series = mr_series()
    scene.use(tiny_weights(background=1000.0))
    assert scene.segment(series).is_empty
    trusting = scene.with_changes(corrections=CorrectionSettings(trusted_ae_titles=("CHIEF",)))

    record = trusting.correct(viewer_seg(series, drawn_anew()), sender="CHIEF")

    (score,) = record.scores
    assert (score.label, score.dice, score.edited_slices) == (FRONT, 0.0, (0,))
    assert record.result_sop_uid is None


def test_a_correction_whose_images_are_not_here_is_parked_until_they_come(scene):
    series = mr_series(patient_id="SECRET-7")
    classes = engine.predict(scene.tools.current_model(MODEL), to_volume(series).image).array
    seg = viewer_seg(series, edited({FRONT: classes == 1, BACK: classes == 2}))
    scene.receive([seg], sender="VIEWER")

    job = scene.claim(JobKind.INGEST_CORRECTION)
    ingest_correction(job, scene.tools)

    row = scene.tools.store.jobs.get(job.id)
    assert (row.state, row.attempts) == (JobState.READY, 0)
    assert "parked for up to 7 days" in row.reason
    assert series[0].SeriesInstanceUID in row.reason
    assert "SECRET" not in row.reason

    scene.segment(series)
    scene.later()
    ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)
    (record,) = scene.tools.store.corrections.list()
    assert record.recognition is Recognition.PROBABLE_CORRECTION


def test_a_correction_whose_images_never_come_says_what_to_send(scene):
    series = mr_series(patient_id="SECRET-7")
    seg: Dataset = viewer_seg(series, drawn_anew())
    scene.receive([seg], sender="VIEWER")
    scene.later(7.1 * 86400)

    with pytest.raises(CorrectionError, match="send the images, then the SEG again") as caught:
        ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)

    assert seg.SOPInstanceUID in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_segmentation_of_a_series_that_no_model_takes_says_so(scene):
    shape = (5, 12, 14)
    series = mr_series(shape=shape)
    scene.receive(series)
    scene.quiet()
    job = scene.claim(JobKind.SEGMENT_SERIES)
    scene.tools.store.jobs.set_aside(job, now=scene.clock(), reason="too short")
    mask = np.zeros(shape, bool)
    mask[1, 2:4, 2:4] = True
    scene.receive([viewer_seg(series, {FRONT: mask})], sender="VIEWER")

    with pytest.raises(UnsupportedSeriesError, match="no model takes it"):
        ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)


def test_our_result_lost_from_the_spool_is_named(scene):
    series = mr_series()
    result = scene.segment(series)
    theirs = edited(scene.found(series))
    (scene.folder / "spool" / result.path).unlink()
    scene.receive([viewer_seg(series, theirs)], sender="VIEWER")

    with pytest.raises(UnreadableInstanceError, match=result.sop_instance_uid):
        ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)


def test_a_full_disk_does_not_hinder_reading_a_correction(scene):
    series = mr_series()
    scene.segment(series)
    seg = viewer_seg(series, edited(scene.found(series)))
    scene.receive([seg], sender="VIEWER")
    full = replace(scene.tools, spool=Spool(scene.folder / "spool", minimum_free_bytes=2**60))

    ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), full)

    assert scene.tools.store.corrections.by_sop_uid(seg.SOPInstanceUID).case_id is not None


def test_an_object_of_no_label_of_ours_about_images_that_are_not_here_is_foreign_at_once(scene):
    seg = viewer_seg(mr_series(), drawn_anew())
    seg.SegmentSequence[0].SegmentLabel = "PTV 60 Gy"
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "228793007"

    record = scene.correct(seg)

    assert (record.recognition, record.state) == (Recognition.FOREIGN, CorrectionState.RECORDED)
    assert record.source_series_uid is None


def rejection_of(result, *, title="113001"):
    """A rejection note about a result, as an archive's viewer writes it (IHE IOCM)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", result
    series, study, code = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = generate_uid(), [item]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = generate_uid(), [series]
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = title, "DCM", "Rejected"
    note = mr_series(9)[0]
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
        delattr(note, keyword)
    note.SOPClassUID = note.file_meta.MediaStorageSOPClassUID = KEY_OBJECT_SOP_CLASS
    note.SOPInstanceUID = note.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    note.SeriesInstanceUID, note.Modality = generate_uid(), "KO"
    note.ConceptNameCodeSequence = [code]
    note.CurrentRequestedProcedureEvidenceSequence = [study]
    return note


def test_a_note_that_rejects_a_result_is_recorded_and_teaches_nothing(scene):
    result = scene.segment(mr_series())

    record = scene.correct(rejection_of(result.sop_instance_uid), sender="PACS")

    assert (record.recognition, record.state) == (Recognition.REJECTED, CorrectionState.RECORDED)
    assert record.model_version == result.model_version
    assert record.reasons == ("rejected for quality reasons: 1 of our results",)
    assert scene.tools.casebook.cases(model_name=MODEL) == []
    assert scene.tools.store.audit.list()[0].event == "result_rejected"


@pytest.mark.parametrize("title", ["113000", "113039"])  # of interest; retention expired
def test_other_selections_of_key_objects_are_none_of_our_business(scene, title):
    result = scene.segment(mr_series())
    scene.receive([rejection_of(result.sop_instance_uid, title=title)], sender="PACS")

    ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)

    assert scene.tools.store.corrections.list() == ()


def test_a_lost_file_of_an_earlier_correction_does_not_hinder_the_next_one(scene):
    series = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(series)
    ours = scene.found(series)
    first = scene.correct(viewer_seg(series, {FRONT: edited(ours)[FRONT]}))
    lost = scene.tools.store.series.instance(first.sop_instance_uid)
    (scene.folder / "spool" / lost.path).unlink()
    theirs = ours[BACK].copy()
    theirs[4] = False

    second = scene.correct(viewer_seg(series, {BACK: theirs}))

    assert second.state is CorrectionState.KEPT
    assert scene.tools.casebook.read(second.case_id).labels_known == (BACK,)


def test_a_note_that_names_more_objects_than_any_study_has_is_refused(scene):
    note = rejection_of("1.2.3")
    series = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    for number in range(MOST_REFERENCES):
        item = Dataset()
        item.ReferencedSOPInstanceUID = f"1.2.4.{number}"
        series.ReferencedSOPSequence.append(item)

    with pytest.raises(CorrectionError, match="names 20001 objects"):
        read_rejection(note)
