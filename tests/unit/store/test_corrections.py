"""Received segmentations and the training cases that they became."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dicomnode.domain import (
    Job,
    JobKind,
    JobState,
    LabelScore,
    ModelVersion,
    Recognition,
    SeriesInstanceUid,
    SopInstanceUid,
    Split,
)
from dicomnode.errors import LeaseLostError
from dicomnode.store import CorrectionRecord, Store

from .conftest import LEASE, NOON, SEG, claim, make_instance

VERSION = ModelVersion("hippocampus@0123456789ab")
CORRECTION = CorrectionRecord(
    sop_instance_uid=SopInstanceUid("5.5.1"),
    recognition=Recognition.CORRECTION,
    source_series_uid=SeriesInstanceUid("1.2.3"),
    result_sop_uid=SopInstanceUid("2.25.1"),
    model_name="hippocampus",
    model_version=VERSION,
    scores=(
        LabelScore(
            label="posterior", dice=0.9, edited_slices=(3, 4), prediction_voxels=100, correction_voxels=90
        ),
        LabelScore(label="anterior", dice=1.0, edited_slices=(), prediction_voxels=7, correction_voxels=7),
    ),
    author="operator",
    sender="WORKSTATION",
    reasons=("tracking UID", "no FrameContentSequence"),
    case_id="a" * 32,
    patient_key="b" * 64,
    split=Split.TRAINING,
    corrected_slices=5,
)


def receive(store: Store, number: int) -> Job:
    """A received segmentation and the job that reads it."""
    store.series.record_instance(make_instance(number, series="5.5", sop_class=SEG), now=NOON)
    return claim(store, JobKind.INGEST_CORRECTION)


def test_a_correction_comes_back_as_it_was_and_ends_its_job(store: Store) -> None:
    store.corrections.record(receive(store, 1), CORRECTION, now=NOON)
    expected = replace(CORRECTION, created_at=NOON)
    assert store.corrections.list() == (expected,)
    assert store.corrections.by_sop_uid("5.5.1") == expected
    assert store.corrections.by_sop_uid("5.5.2") is None
    assert store.jobs.counts() == {(JobKind.INGEST_CORRECTION, JobState.DONE): 1}


def test_a_loop_back_is_recorded_without_case(store: Store) -> None:
    loop_back = replace(
        CORRECTION, recognition=Recognition.LOOP_BACK, case_id=None, patient_key=None, split=None, scores=()
    )
    store.corrections.record(receive(store, 1), loop_back, now=NOON)
    assert store.corrections.list()[0].recognition is Recognition.LOOP_BACK
    assert store.corrections.untrained_slices("hippocampus") == 0


def test_a_worker_without_lease_records_no_correction(store: Store) -> None:
    late = receive(store, 1)
    claim(store, JobKind.INGEST_CORRECTION, now=NOON + LEASE, owner="w2")
    with pytest.raises(LeaseLostError):
        store.corrections.record(late, CORRECTION, now=NOON)
    assert store.corrections.list() == ()


def test_the_link_of_a_case_leads_to_its_series_and_back(store: Store) -> None:
    store.corrections.record(receive(store, 1), CORRECTION, now=NOON)
    assert store.corrections.case_of("1.2.3") == "a" * 32
    assert store.corrections.series_of("a" * 32) == "1.2.3"
    assert store.corrections.case_of("9.9") is None


def test_only_training_slices_of_this_model_that_were_not_used_are_counted(store: Store) -> None:
    others = (
        replace(CORRECTION, case_id="c" * 32, split=Split.HOLD_OUT),
        replace(CORRECTION, case_id="d" * 32, model_name="liver"),
        replace(CORRECTION, case_id=None, split=None),
        replace(CORRECTION, case_id="e" * 32, corrected_slices=2, patient_key="f" * 64),
    )
    for number, correction in enumerate((CORRECTION, *others)):
        store.corrections.record(receive(store, number), correction, now=NOON)
    assert store.corrections.untrained_slices("hippocampus") == 7
    assert store.corrections.untrained_cases("hippocampus") == ("a" * 32, "e" * 32)
    assert store.corrections.patients("hippocampus") == 2
    assert store.corrections.mark_trained(["a" * 32], VERSION) == 1
    assert store.corrections.untrained_slices("hippocampus") == 2
    assert store.corrections.untrained_slices("unknown") == 0


def test_a_second_correction_of_a_series_stands_for_its_case(store: Store) -> None:
    store.corrections.record(receive(store, 1), CORRECTION, now=NOON)
    store.corrections.mark_trained(["a" * 32], VERSION)
    store.corrections.record(receive(store, 2), replace(CORRECTION, corrected_slices=3), now=NOON)
    newest, oldest = store.corrections.list()
    assert (oldest.replaced, newest.replaced) == (True, False)
    assert store.corrections.untrained_slices("hippocampus") == 3
    assert store.corrections.patients("hippocampus") == 1


def test_a_correction_that_came_during_training_stays_untrained(store: Store) -> None:
    store.corrections.record(receive(store, 1), CORRECTION, now=NOON + timedelta(minutes=5))
    assert store.corrections.mark_trained(["a" * 32], VERSION, recorded_before=NOON) == 0
    assert store.corrections.untrained_slices("hippocampus") == 5
