"""Corrections that a person must look at: held with a picture, accepted, turned or refused."""

import numpy as np
import pytest
from PIL import Image

from dicomnode.domain import CorrectionState, Decision, JobKind, Recognition, Split
from dicomnode.errors import CorrectionError, InputError
from dicomnode.pipeline import review
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.settings import CorrectionSettings
from tests.pipeline_builders import BACK, FRONT, MODEL, mr_series, viewer_seg


def wedge(ours):
    """Ours, but of a shape that no mirror image of it has: only the lower slices are left."""
    return {FRONT: ours[FRONT] & lower(), BACK: ours[BACK] & lower()}


def lower():
    mask = np.zeros((8, 12, 14), bool)
    mask[:4] = True
    return mask


def reversed_seg(scene, series):
    """A reader's object whose slices came in reverse order, references and positions alike."""
    ours = scene.found(series)
    return viewer_seg(series, {label: mask[::-1] for label, mask in ours.items()})


@pytest.fixture
def held(scene):
    """A series, and a correction of it that is held because its slices are in reverse order."""
    series = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(series)
    record = scene.correct(reversed_seg(scene, series))
    return series, record


def test_slices_in_reverse_order_are_held_with_the_reason_and_a_picture(scene, held):
    _, record = held

    assert record.state is CorrectionState.HELD
    assert any("reverse order" in doubt for doubt in record.doubts)
    assert record.case_id is None
    assert scene.tools.casebook.cases(model_name=MODEL) == []
    assert scene.tools.store.corrections.untrained_slices(MODEL) == 0
    picture = scene.folder / "pictures" / f"correction-{record.instance_id}.png"
    assert picture.stat().st_mode & 0o077 == 0
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500
        assert len(drawn.convert("RGB").getcolors(1 << 24)) > 50
    assert "correction_held" in [entry.event for entry in scene.tools.store.audit.list()]


def decide(scene, record, *, mirrored):
    review.accept(record.id, scene.tools, by="chief", mirrored=mirrored)
    ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)
    return scene.tools.store.corrections.get(record.id)


def test_a_person_lets_the_slices_be_turned(scene, held):
    series, record = held

    kept = decide(scene, record, mirrored=True)

    assert (kept.state, kept.decision, kept.decided_by) == (CorrectionState.KEPT, Decision.MIRRORED, "chief")
    case = scene.tools.casebook.read(kept.case_id)
    ours = scene.found(series)
    np.testing.assert_array_equal(case.labels == 1, ours[FRONT])
    np.testing.assert_array_equal(case.labels == 2, ours[BACK] & ~ours[FRONT])
    assert all(score.dice == 1 for score in kept.scores)


def test_a_person_lets_it_count_as_it_was_read(scene, held):
    series, record = held

    kept = decide(scene, record, mirrored=False)

    assert kept.state is CorrectionState.KEPT
    case = scene.tools.casebook.read(kept.case_id)
    np.testing.assert_array_equal(case.labels == 1, scene.found(series)[FRONT][::-1])


def test_a_person_refuses_and_it_never_becomes_a_case(scene, held):
    _, record = held

    scene.tools.store.corrections.refuse(record.id, by="chief", now=scene.clock())

    assert scene.tools.store.corrections.get(record.id).state is CorrectionState.REFUSED
    with pytest.raises(InputError, match="is refused"):
        review.accept(record.id, scene.tools, by="chief")


def test_what_the_site_reads_too_unsurely_is_held(scene):
    series = mr_series()
    scene.segment(series)
    strict = scene.with_changes(
        corrections=CorrectionSettings(minimum_confidence=1.0, aliases={"Vorn": FRONT})
    )
    seg = viewer_seg(series, wedge(scene.found(series)))
    seg.SegmentSequence[0].SegmentLabel = "Vorn"

    record = strict.correct(seg)

    assert record.state is CorrectionState.HELD
    assert f"{FRONT} was read with confidence 0.9" in record.doubts[0]


def test_a_name_that_readers_use_is_learned_as_the_label_it_stands_for(scene):
    series = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(series)
    site = scene.with_changes(corrections=CorrectionSettings(aliases={"vorderer Teil": FRONT}))
    theirs = wedge(scene.found(series))
    seg = viewer_seg(series, theirs)
    seg.SegmentSequence[0].SegmentLabel = " Vorderer Teil"

    record = site.correct(seg)

    assert record.state is CorrectionState.KEPT
    case = site.tools.casebook.read(record.case_id)
    np.testing.assert_array_equal(case.labels == 1, theirs[FRONT])


def test_our_object_overwritten_in_place_is_a_correction_and_stands_in_the_audit_log(scene):
    series = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    result = scene.segment(series)
    seg = viewer_seg(series, wedge(scene.found(series)), series_uid=result.series_instance_uid)
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = result.sop_instance_uid

    record = scene.correct(seg)

    assert (record.recognition, record.state) == (Recognition.CORRECTION, CorrectionState.KEPT)
    assert "result_overwritten" in [entry.event for entry in scene.tools.store.audit.list()]


def test_a_review_gives_volumes_slices_and_a_picture_where_one_asks_for_it(scene, tmp_path):
    series = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(series)
    ours = scene.found(series)
    theirs = wedge(ours)
    record = scene.correct(viewer_seg(series, theirs))

    found = review.look(record.id, scene.tools, picture_path=tmp_path / "picture.png")

    front = {label.label: label for label in found.labels}[FRONT]
    assert front.prediction_ml == pytest.approx(ours[FRONT].sum() / 1000)  # voxels of 1 mm
    assert front.correction_ml == pytest.approx(theirs[FRONT].sum() / 1000)
    assert front.change == pytest.approx(theirs[FRONT].sum() / ours[FRONT].sum() - 1)
    edited = np.flatnonzero((ours[FRONT] ^ theirs[FRONT]).any(axis=(1, 2))).tolist()
    assert front.edited_slices == tuple(edited)
    assert len(front.edited_slices) + len(front.accepted_slices) + front.unknown_slices == 8
    with Image.open(found.picture) as drawn:
        drawn.verify()


def test_a_number_that_does_not_exist_is_said_so(scene):
    with pytest.raises(CorrectionError, match="there is no correction 7"):
        review.look(7, scene.tools)
