"""Received segmentations and the training cases that they became."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dicomnode.domain import (
    CorrectionState,
    Decision,
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
from dicomnode.errors import InputError, LeaseLostError, ResourceError
from dicomnode.store import CorrectionRecord, Store
from dicomnode.store.records import Note

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
    state=CorrectionState.KEPT,
    corrected_slices=5,
)
HELD = replace(
    CORRECTION, state=CorrectionState.HELD, doubts=("it lies in reverse order",), case_id=None, split=None
)


def receive(store: Store, number: int) -> Job:
    """A received segmentation and the job that reads it."""
    store.series.record_instance(make_instance(number, series="5.5", sop_class=SEG), now=NOON)
    return claim(store, JobKind.INGEST_CORRECTION)


def test_a_correction_comes_back_as_it_was_and_ends_its_job(store: Store) -> None:
    store.corrections.record(receive(store, 1), CORRECTION, now=NOON)
    (found,) = store.corrections.list()
    expected = replace(CORRECTION, created_at=NOON, id=found.id)
    assert found == expected == store.corrections.get(found.id or 0)
    assert store.corrections.by_sop_uid("5.5.1") == expected
    assert store.corrections.by_sop_uid("5.5.2") is None
    assert store.jobs.counts() == {(JobKind.INGEST_CORRECTION, JobState.DONE): 1}


def test_a_loop_back_is_recorded_without_case(store: Store) -> None:
    loop_back = replace(
        CORRECTION,
        recognition=Recognition.LOOP_BACK,
        state=CorrectionState.RECORDED,
        case_id=None,
        patient_key=None,
        split=None,
        scores=(),
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
        replace(CORRECTION, state=CorrectionState.RECORDED, case_id=None, split=None),
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
    first = store.corrections.list()[0].id or 0
    store.corrections.record(
        receive(store, 2),
        replace(CORRECTION, corrected_slices=3),
        now=NOON,
        seen=frozenset({first}),
        replaced=frozenset({first}),
    )
    newest, oldest = store.corrections.list()
    assert (oldest.replaced, newest.replaced) == (True, False)
    assert store.corrections.untrained_slices("hippocampus") == 3
    assert store.corrections.patients("hippocampus") == 1


def test_a_correction_that_came_during_training_stays_untrained(store: Store) -> None:
    store.corrections.record(receive(store, 1), CORRECTION, now=NOON + timedelta(minutes=5))
    assert store.corrections.mark_trained(["a" * 32], VERSION, recorded_before=NOON) == 0
    assert store.corrections.untrained_slices("hippocampus") == 5


def keep_two(store: Store) -> tuple[int, int]:
    """Two corrections of one case, both with a last word; gives their numbers."""
    store.corrections.record(receive(store, 1), replace(CORRECTION, instance_id=1), now=NOON)
    first = store.corrections.list()[0].id or 0
    second = replace(CORRECTION, instance_id=2, corrected_slices=2)
    store.corrections.record(receive(store, 2), second, now=NOON, seen=frozenset({first}))
    return first, store.corrections.list()[0].id or 0


def test_several_corrections_of_a_case_stand_beside_each_other(store: Store) -> None:
    first, second = keep_two(store)
    kept = store.corrections.kept_of("1.2.3", model_name="hippocampus")
    assert [(one.id, one.replaced) for one in kept] == [(first, False), (second, False)]
    assert store.corrections.untrained_cases("hippocampus") == ("a" * 32,)
    assert store.corrections.untrained_slices("hippocampus") == 7


def test_a_case_made_from_other_corrections_than_those_that_stand_is_not_recorded(store: Store) -> None:
    keep_two(store)
    late = receive(store, 3)
    with pytest.raises(ResourceError, match="changed while it was made"):
        store.corrections.record(late, CORRECTION, now=NOON, seen=frozenset({1}))
    assert len(store.corrections.list()) == 2
    assert store.jobs.get(late.id).state is JobState.RUNNING  # type: ignore[union-attr]


def test_a_withdrawn_correction_teaches_no_more_and_the_rest_of_its_case_is_new(store: Store) -> None:
    first, second = keep_two(store)
    store.corrections.mark_trained(["a" * 32], VERSION)
    store.corrections.withdraw(second, by="chief", now=NOON)
    assert store.corrections.untrained_slices("hippocampus") == 0
    job = claim(store, JobKind.INGEST_CORRECTION)
    assert job.subject == "2"
    store.corrections.settle(job, "a" * 32, now=NOON, seen=frozenset({first}))
    assert store.corrections.untrained_slices("hippocampus") == 5
    assert store.audit.list()[0].event == "correction_withdrawn"
    with pytest.raises(InputError, match="is withdrawn; this is for one that is kept"):
        store.corrections.withdraw(second, by="chief", now=NOON)


def test_a_held_correction_waits_until_a_person_accepts_it_and_is_then_read_again(store: Store) -> None:
    note = Note(event="correction_held", subject="5.5.1", detail="it lies in reverse order")
    job = receive(store, 1)
    held = replace(HELD, instance_id=int(job.subject))
    store.corrections.record(job, held, now=NOON, notes=[note])
    (found,) = store.corrections.list(state=CorrectionState.HELD)
    assert (found.doubts, found.decision) == (HELD.doubts, Decision.NONE)
    assert store.corrections.list(state=CorrectionState.KEPT) == ()
    assert store.audit.list()[0].event == "correction_held"
    number = found.id or 0

    store.corrections.decide(number, Decision.MIRRORED, by="chief", now=NOON)
    again = claim(store, JobKind.INGEST_CORRECTION)
    assert again.subject == job.subject
    before = store.corrections.of_instance(int(job.subject))
    assert before is not None
    assert (before.decision, before.decided_by) == (Decision.MIRRORED, "chief")
    kept = replace(CORRECTION, instance_id=int(job.subject))
    store.corrections.record(again, kept, now=NOON, notes=[note])

    (after,) = store.corrections.list()
    assert (after.id, after.state, after.decision) == (number, CorrectionState.KEPT, Decision.MIRRORED)
    assert after.scores == CORRECTION.scores
    assert [entry.event for entry in store.audit.list()] == ["correction_accepted", "correction_held"]


def test_a_refused_correction_stays_on_record_and_nothing_more_is_decided_about_it(store: Store) -> None:
    job = receive(store, 1)
    store.corrections.record(job, replace(HELD, instance_id=int(job.subject)), now=NOON)
    number = store.corrections.list()[0].id or 0
    store.corrections.refuse(number, by="chief", now=NOON)
    assert store.corrections.list()[0].state is CorrectionState.REFUSED
    for again in (
        lambda: store.corrections.refuse(number, by="chief", now=NOON),
        lambda: store.corrections.decide(number, Decision.AS_READ, by="chief", now=NOON),
    ):
        with pytest.raises(InputError, match="is refused; this is for one that is held"):
            again()
    with pytest.raises(InputError, match="no correction 99"):
        store.corrections.refuse(99, by="chief", now=NOON)


def test_cases_that_give_their_place_to_others_are_no_longer_learned_from(store: Store) -> None:
    keep_two(store)
    store.corrections.retire_cases(["a" * 32], now=NOON)
    assert {one.state for one in store.corrections.list()} == {CorrectionState.RETIRED}
    assert store.corrections.untrained_cases("hippocampus") == ()
    assert store.corrections.patients("hippocampus") == 0
