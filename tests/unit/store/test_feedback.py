"""Reviews of results: which corrections count, for which result, and in which period."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from dicomnode.domain import CorrectionState, Recognition
from dicomnode.store import Store
from dicomnode.store.records import Review
from tests.feedback_builders import BACK, FRONT, MODEL, Readers, score

from .conftest import NOON

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def readers(store: Store) -> Readers:
    return Readers(store=store)


def reviews(store: Store) -> list[Review]:
    return store.feedback.reviews(since=NOON - 30 * DAY)


def test_a_correction_is_a_review_of_the_result_whose_object_it_names(store: Store, readers: Readers) -> None:
    version = readers.use("a", at=NOON - DAY)
    sent = readers.segment(version, at=NOON)
    readers.correct(sent, score(BACK, 0.8, ours=900), score(FRONT, 1.0), at=NOON + HOUR)
    front, back = reviews(store)
    assert (front.label, front.dice, front.is_corrected) == (FRONT, 1.0, False)
    assert (back.label, back.dice, back.is_corrected) == (BACK, 0.8, True)
    assert (back.prediction_voxels, back.correction_voxels) == (900, 1000)
    assert (back.model_name, back.model_version) == (MODEL, version)
    assert (back.result_at, back.result_stands, back.at) == (NOON, True, NOON + HOUR)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (CorrectionState.KEPT, 1),
        (CorrectionState.RETIRED, 1),
        (CorrectionState.RECORDED, 0),
        (CorrectionState.HELD, 0),
        (CorrectionState.REFUSED, 0),
        (CorrectionState.WITHDRAWN, 0),
    ],
)
def test_only_corrections_that_taught_are_reviews(
    store: Store, readers: Readers, state: CorrectionState, expected: int
) -> None:
    sent = readers.segment(readers.use("a", at=NOON), at=NOON)
    readers.correct(sent, score(FRONT, 0.5), at=NOON, state=state)
    assert len(reviews(store)) == expected


def test_a_result_accepted_unchanged_is_reviewed_and_not_corrected(store: Store, readers: Readers) -> None:
    sent = readers.segment(readers.use("a", at=NOON), at=NOON)
    readers.correct(sent, score(FRONT, 0.9), at=NOON, recognition=Recognition.ACCEPTED_UNCHANGED)
    (review,) = reviews(store)
    assert (review.dice, review.is_corrected) == (1.0, False)


def test_a_drawing_that_goes_back_to_no_result_is_no_review(store: Store, readers: Readers) -> None:
    readers.segment(readers.use("a", at=NOON), at=NOON)
    readers.correct(None, score(FRONT, 0.0), at=NOON, recognition=Recognition.NEW_ANNOTATION)
    assert reviews(store) == []


def test_the_last_correction_of_each_label_counts(store: Store, readers: Readers) -> None:
    sent = readers.segment(readers.use("a", at=NOON), at=NOON)
    readers.correct(sent, score(FRONT, 0.5), score(BACK, 0.6), at=NOON)
    readers.correct(sent, score(FRONT, 0.7), at=NOON + HOUR)
    assert [(one.label, one.dice) for one in reviews(store)] == [(BACK, 0.6), (FRONT, 0.7)]


def test_reviews_of_other_models_and_of_earlier_days_are_left_out(store: Store, readers: Readers) -> None:
    readers.review(readers.use("a", at=NOON), {FRONT: 0.5}, at=NOON)
    readers.review(readers.use("b", at=NOON, model="other"), {FRONT: 0.6}, at=NOON + DAY)
    read = store.feedback.reviews
    assert [one.dice for one in read(since=NOON, model_name=MODEL)] == [0.5]
    assert [one.dice for one in read(since=NOON + HOUR)] == [0.6]


def test_results_are_counted_by_label_and_period(store: Store, readers: Readers) -> None:
    version = readers.use("a", at=NOON - 5 * DAY)
    for at in (NOON - 4 * DAY, NOON - 2 * DAY, NOON - DAY, NOON - HOUR, NOON):
        readers.segment(version, at=at)
    starts = [NOON - 3 * DAY, NOON - 2 * DAY, NOON - DAY, NOON]
    counts = store.feedback.results(starts)
    assert {(one.label, one.position, one.period): one.results for one in counts} == {
        (FRONT, 0, 1): 1,
        (FRONT, 0, 2): 2,
        (FRONT, 0, 3): 1,
        (BACK, 1, 1): 1,
        (BACK, 1, 2): 2,
        (BACK, 1, 3): 1,
    }
    assert {one.results for one in store.feedback.results(starts[:1])} == {4}
    assert store.feedback.results(starts, model_name="other") == []


def test_a_result_that_a_newer_one_replaced_is_not_counted(store: Store, readers: Readers) -> None:
    version = readers.use("a", at=NOON)
    early = readers.segment(version, at=NOON, series="7.7")
    readers.segment(version, at=NOON + HOUR, series="7.7")
    readers.correct(early, score(FRONT, 0.5), at=NOON + HOUR)
    assert {one.results for one in store.feedback.results([NOON])} == {1}
    assert [one.result_stands for one in reviews(store)] == [False]


def test_the_version_in_use_is_seen_beside_the_one_before(store: Store, readers: Readers) -> None:
    assert store.feedback.version_in_use(MODEL) is None
    old = readers.use("a", at=NOON)
    readers.review(old, {FRONT: 0.1}, at=NOON)
    late = readers.segment(old, at=NOON)
    new = readers.use("b", at=NOON + DAY)
    readers.review(new, {FRONT: 0.2}, at=NOON + 2 * DAY)
    readers.correct(late, score(FRONT, 0.3), at=NOON + 2 * DAY)
    found = store.feedback.version_in_use(MODEL)
    assert found is not None
    assert (found.version, found.since, found.previous) == (new, NOON + DAY, old)
    assert found.labels == (FRONT, BACK)
    assert [one.dice for one in found.before] == [0.1]
    assert [one.dice for one in found.reviews] == [0.2]


def test_a_version_that_is_put_back_begins_anew(store: Store, readers: Readers) -> None:
    old = readers.use("a", at=NOON)
    readers.review(old, {FRONT: 0.1}, at=NOON)
    readers.review(readers.use("b", at=NOON + DAY), {FRONT: 0.2}, at=NOON + DAY)
    store.models.rollback(MODEL, now=NOON + 2 * DAY, by="test")
    found = store.feedback.version_in_use(MODEL)
    assert found is not None
    assert (found.version, found.since, found.reviews) == (old, NOON + 2 * DAY, ())
    assert [one.dice for one in found.before] == [0.2]


def test_an_alarm_is_noted_once_for_each_label_and_use_of_a_version(store: Store, readers: Readers) -> None:
    version = readers.use("a", at=NOON)

    def note(label: str, *, since_days: int = 0, at_days: int = 0) -> bool:
        since, now = NOON + since_days * DAY, NOON + at_days * DAY
        return store.feedback.note_alarm(version, label, "words", in_use_since=since, now=now)

    assert [note(FRONT), note(FRONT, at_days=1), note(BACK)] == [True, False, True]
    assert note(FRONT, since_days=2, at_days=3)
    entries = [(one.subject, one.detail) for one in store.audit.list() if one.event == "drift_alarm"]
    assert entries == [(f"{version} {label}", "words") for label in (FRONT, BACK, FRONT)]


def test_of_many_that_note_an_alarm_at_once_one_does(
    open_store: Callable[[], Store], store: Store, readers: Readers
) -> None:
    version = readers.use("a", at=NOON)
    stores = [open_store() for _ in range(4)]
    start = threading.Barrier(len(stores))
    made: list[bool] = []

    def note(one: Store) -> None:
        start.wait()
        made.append(one.feedback.note_alarm(version, FRONT, "words", in_use_since=NOON, now=NOON))

    threads = [threading.Thread(target=note, args=[one]) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, False, True]
    assert [one.event for one in store.audit.list()].count("drift_alarm") == 1
