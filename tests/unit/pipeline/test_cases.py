"""Several corrections of one series, corrections taken back, and the quota of the casebook."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.casebook import CaseInfo
from dicomnode.domain import CorrectionState, JobKind, Sha256, Split
from dicomnode.pipeline.cases import above_quota
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.settings import CorrectionSettings, TrainingSettings
from tests.pipeline_builders import BACK, FRONT, MODEL, mr_series, viewer_seg


@pytest.fixture
def series(scene):
    images = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(images)
    return images


def less(mask, *slices):
    changed = mask.copy()
    changed[list(slices)] = False
    return changed


def at(seg, day):
    seg.ContentDate = day
    return seg


def test_corrections_of_different_labels_stand_together_in_one_case(scene, series):
    ours = scene.found(series)
    front, back = less(ours[FRONT], 3), less(ours[BACK], 4)

    first = scene.correct(viewer_seg(series, {FRONT: front}))
    second = scene.correct(viewer_seg(series, {BACK: back}))

    assert first.case_id == second.case_id
    case = scene.tools.casebook.read(second.case_id)
    assert case.labels_known == (FRONT, BACK)
    np.testing.assert_array_equal(case.labels == 2, back & ~((case.labels == 1) & ~back))
    np.testing.assert_array_equal(case.labels == 1, front & ~back)
    kept = scene.tools.store.corrections.kept_of(series[0].SeriesInstanceUID, model_name=MODEL)
    assert [one.replaced for one in kept] == [False, False]


def test_a_correction_that_was_made_earlier_and_came_later_does_not_win(scene, series):
    ours = scene.found(series)
    newer, older = less(ours[FRONT], 3), less(ours[FRONT], 4)

    scene.correct(at(viewer_seg(series, {FRONT: newer}), "20260304"))
    late = scene.correct(at(viewer_seg(series, {FRONT: older}), "20260302"))

    assert late.replaced
    case = scene.tools.casebook.read(late.case_id)
    np.testing.assert_array_equal(case.labels == 1, newer)
    # The clock of the scene stands in March; content that claims to come from the future counts as received.
    future = scene.correct(at(viewer_seg(series, {FRONT: older}), "20990101"))
    assert not future.replaced
    scene.later()
    scene.correct(at(viewer_seg(series, {FRONT: newer}), "20990101"))
    np.testing.assert_array_equal(scene.tools.casebook.read(late.case_id).labels == 1, newer)


def withdraw(scene, record):
    scene.tools.store.corrections.withdraw(record.id, by="chief", now=scene.clock())
    ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)


def test_the_only_correction_that_is_taken_back_takes_its_case_along(scene, series):
    record = scene.correct(viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)}))

    withdraw(scene, record)

    assert scene.tools.casebook.cases(model_name=MODEL) == []
    assert scene.tools.store.corrections.untrained_cases(MODEL) == ()
    assert scene.tools.store.corrections.get(record.id).state is CorrectionState.WITHDRAWN


def test_what_an_earlier_correction_said_counts_again_when_the_later_one_is_taken_back(scene, series):
    ours = scene.found(series)
    front = less(ours[FRONT], 3)
    first = scene.correct(viewer_seg(series, {FRONT: front, BACK: ours[BACK]}))
    second = scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], 3, 4), BACK: less(ours[BACK], 4)}))
    assert scene.tools.store.corrections.get(first.id).replaced

    withdraw(scene, second)

    np.testing.assert_array_equal(scene.tools.casebook.read(first.case_id).labels == 1, front)
    left = scene.tools.store.corrections.get(first.id)
    assert (left.state, left.replaced) == (CorrectionState.KEPT, False)
    assert scene.tools.store.corrections.untrained_cases(MODEL) == (first.case_id,)


def test_a_case_that_cannot_be_made_anew_leaves_with_what_was_taken_back(scene, series):
    ours = scene.found(series)
    first = scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], 3)}))
    second = scene.correct(viewer_seg(series, {BACK: less(ours[BACK], 4)}))
    lost = scene.tools.store.series.instance(first.sop_instance_uid)
    (scene.folder / "spool" / lost.path).unlink()

    withdraw(scene, second)

    assert scene.tools.casebook.cases(model_name=MODEL) == []


def test_those_who_read_every_slice_accept_fully_what_they_left(scene, series):
    ours = scene.found(series)
    chief = scene.with_changes(corrections=CorrectionSettings(whole_study_readers=("CHIEF",)))

    of_anybody = scene.correct(viewer_seg(series, ours))
    halves = scene.tools.casebook.read(of_anybody.case_id).reviewed
    of_chief = chief.correct(viewer_seg(series, ours), sender="CHIEF")
    wholes = chief.tools.casebook.read(of_chief.case_id).reviewed

    assert set(np.unique(halves).tolist()) <= {0.0, 0.5}
    assert set(np.unique(wholes).tolist()) <= {0.0, 1.0}
    np.testing.assert_array_equal(halves > 0, wholes > 0)


def test_the_same_images_under_another_patient_identifier_never_cross_to_the_other_side(scene):
    sides = []
    for side in (Split.TRAINING, Split.HOLD_OUT):
        series = mr_series(3, patient_id=scene.patient_on(side))
        scene.segment(series)
        record = scene.correct(viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)}))
        sides.append((record.split, record.patient_key))

    assert sides[0] == sides[1]
    assert len(scene.tools.casebook.cases(model_name=MODEL, split=Split.TRAINING)) == 2


def test_above_the_quota_cases_leave_the_casebook_and_are_not_learned_from(scene):
    site = scene.with_changes(training=replace_training(maximum_cases=2))
    for seed in range(4):
        series = mr_series(seed, patient_id=site.patient_on(Split.TRAINING, number=seed % 2))
        site.segment(series)
        site.correct(viewer_seg(series, {FRONT: less(site.found(series)[FRONT], 3)}))

    infos = site.tools.casebook.cases(model_name=MODEL)
    assert len(infos) == 2
    assert len({info.patient_key for info in infos}) == 2  # each patient keeps a voice
    states = [one.state for one in site.tools.store.corrections.list()]
    assert states.count(CorrectionState.RETIRED) == states.count(CorrectionState.KEPT) == 2
    assert set(site.tools.store.corrections.untrained_cases(MODEL)) == {info.case_id for info in infos}


def replace_training(**changes):
    return TrainingSettings(minimum_corrected_slices=1, minimum_hold_out_cases=1, **changes)


def info(case_id, patient):
    return CaseInfo(
        case_id=case_id,
        patient_key=patient,
        split=Split.TRAINING,
        model_name=MODEL,
        labels_known=(FRONT,),
        shape=(1, 1, 1),
        arrays_sha256=Sha256("0"),
        image_key="",
    )


def test_what_nothing_has_learned_from_leaves_last():
    infos = [info("a", "P1"), info("b", "P1"), info("c", "P2")]

    assert above_quota(infos, untrained=frozenset({"a", "b"}), maximum=2) == ("c",)
    assert above_quota(infos, untrained=frozenset(), maximum=2) == ("b",)
    assert above_quota(infos, untrained=frozenset({"a", "b", "c"}), maximum=1) == ("b", "c")
    assert above_quota(infos, untrained=frozenset(), maximum=3) == ()


@given(
    patients=st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=12),
    maximum=st.integers(1, 12),
    seed=st.randoms(use_true_random=False),
)
def test_the_choice_does_not_depend_on_the_order_and_takes_no_patients_last_case_early(
    patients, maximum, seed
):
    infos = [info(f"{number:02d}", patient) for number, patient in enumerate(patients)]
    shuffled = list(infos)
    seed.shuffle(shuffled)

    leaving = above_quota(infos, untrained=frozenset(), maximum=maximum)

    assert set(leaving) == set(above_quota(shuffled, untrained=frozenset(), maximum=maximum))
    kept = [one for one in infos if one.case_id not in leaving]
    assert len(kept) == min(maximum, len(infos))
    left = [sum(one.patient_key == name for one in kept) for name in set(patients)]
    assert min(left) > 0 or max(left) <= 1
