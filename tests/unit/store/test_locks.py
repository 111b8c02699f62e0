"""A locked model, where only a person changes the version in use; and a version that does worse in use."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from dicomnode.domain import Job, ModelState, ModelVersion, Verdict
from dicomnode.errors import InputError
from dicomnode.store import ModelLock, Store
from dicomnode.store.records import Judged, ModelRecord, ReleaseState, Retreat, VersionInUse

from .conftest import NOON
from .test_models import in_use, judged, model, promote

__all__ = ["in_use"]

NAME = "hippocampus"
HOUR = timedelta(hours=1)


@pytest.fixture
def locked(in_use: Store) -> Store:
    """Version a is in use, and the model is locked."""
    in_use.locks.lock(NAME, by="chief", reason="in the clinic", now=NOON)
    return in_use


def accept(store: Store, letter: str, *, parent: str = "a") -> Job:
    """Let the gate accept a version."""
    job, outcome = judged(store, letter, Verdict.ACCEPTED, parent=parent)
    store.models.conclude(job, outcome, now=NOON)
    return job


def retreat(store: Store, *, hindrance: str = "") -> Retreat:
    """Let the drift alarm speak against the version in use."""
    return store.models.retreat(now_in_use(store), reason="Front: worse", hindrance=hindrance, now=NOON)


def now_in_use(store: Store) -> VersionInUse:
    found = store.feedback.version_in_use(NAME)
    assert found is not None
    return found


def get(store: Store, letter: str) -> ModelRecord:
    found = store.models.get(f"{NAME}@{letter}")
    assert found is not None
    return found


def events(store: Store) -> list[str]:
    """What the audit log says, oldest first."""
    return [entry.event for entry in reversed(store.audit.list())]


def test_a_lock_stands_until_it_is_ended_and_both_stay_in_the_audit_log(in_use: Store) -> None:
    made = in_use.locks.lock(NAME, by="chief", reason="in the clinic", now=NOON)

    assert made == ModelLock(name=NAME, by="chief", reason="in the clinic", at=NOON)
    assert (in_use.locks.get(NAME), in_use.locks.all(), in_use.locks.get("liver")) == (made, (made,), None)
    assert in_use.locks.unlock(NAME, by="deputy", reason="over", now=NOON + HOUR) == made
    assert (in_use.locks.get(NAME), in_use.locks.all()) == (None, ())
    ended, begun = in_use.audit.list(limit=2)
    assert (begun.event, begun.subject, begun.detail) == ("model_locked", NAME, "by chief; in the clinic")
    assert (ended.event, ended.subject) == ("model_unlocked", NAME)
    assert "by deputy; over" in ended.detail
    assert "locked by chief (in the clinic)" in ended.detail


def test_what_cannot_be_locked_or_unlocked_is_said(locked: Store) -> None:
    with pytest.raises(InputError, match=r"locked by chief \(in the clinic\); unlock it first"):
        locked.locks.lock(NAME, by="deputy", reason="again", now=NOON)
    with pytest.raises(InputError, match="no version of model 'liver' is in use"):
        locked.locks.lock("liver", by="chief", reason="why", now=NOON)
    with pytest.raises(InputError, match="'liver' is not locked"):
        locked.locks.unlock("liver", by="chief", reason="why", now=NOON)
    assert [lock.by for lock in locked.locks.all()] == ["chief"]


def test_an_accepted_version_of_a_locked_model_is_left_to_a_person(locked: Store) -> None:
    job = accept(locked, "b")

    assert get(locked, "a").state is ModelState.CURRENT
    made = get(locked, "b")
    assert made.state is ModelState.CANDIDATE
    assert made.advice == (
        "promote it: so; not put into use automatically: model hippocampus is locked by chief (in the clinic)"
    )
    row = locked.jobs.get(job.id)
    assert row is not None
    assert row.reason.startswith("b accepted; not put into use automatically: model hippocampus is locked")
    assert locked.federation.releases(NAME)[0].state is ReleaseState.CANDIDATE
    assert len(locked.models.switches(NAME)) == 1
    assert "promotion_advised" in events(locked)


def test_only_the_newest_accepted_version_is_advised(locked: Store) -> None:
    accept(locked, "b")
    accept(locked, "c")
    assert (get(locked, "b").advice, bool(get(locked, "c").advice)) == ("", True)


def test_unlocking_changes_no_version_and_lets_the_next_one_through(locked: Store) -> None:
    accept(locked, "b")
    locked.locks.unlock(NAME, by="chief", reason="over", now=NOON)
    assert get(locked, "a").state is ModelState.CURRENT
    accept(locked, "c")
    assert get(locked, "c").state is ModelState.CURRENT
    assert get(locked, "b").advice == ""


def test_a_person_promotes_and_rolls_back_in_spite_of_a_lock(locked: Store) -> None:
    accept(locked, "b")
    locked.models.promote(f"{NAME}@b", now=NOON, by="chief", reason="looked at it")
    assert (get(locked, "b").state, get(locked, "b").advice) == (ModelState.CURRENT, "")
    assert "locked by chief" in locked.audit.list()[1].detail  # the switch; the release comes after it
    locked.models.rollback(NAME, now=NOON, by="chief")
    assert get(locked, "a").state is ModelState.CURRENT
    assert locked.locks.get(NAME) is not None


def test_a_lock_of_one_model_holds_no_other(locked: Store) -> None:
    other = replace(model("x"), name="liver", version="liver@x", parent=None, release_version=None)
    locked.models.register(other)
    locked.models.promote("liver@x", now=NOON, by="person")
    job, outcome = judged(locked, "y", Verdict.ACCEPTED)
    record = replace(outcome.record, name="liver", version="liver@y", parent="liver@x", release_version=None)
    locked.models.conclude(job, replace(outcome, record=record), now=NOON)
    current = locked.models.current("liver")
    assert current is not None
    assert current.version == "liver@y"


def test_a_lock_and_an_acceptance_at_once_never_end_with_both_undone(
    in_use: Store, open_store: Callable[[], Store]
) -> None:
    """Whichever comes first: either the version was in use before the lock, or it waits for a person."""
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED)
    other, start = open_store(), threading.Barrier(2)
    errors: list[Exception] = []

    def lock() -> None:
        start.wait()
        other.locks.lock(NAME, by="chief", reason="why", now=NOON)

    def conclude(job: Job, outcome: Judged) -> None:
        start.wait()
        in_use.models.conclude(job, outcome, now=NOON)

    def noting(act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # shown in the main thread
            errors.append(error)

    threads = [threading.Thread(target=noting, args=[act]) for act in (lock, lambda: conclude(job, outcome))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    said = [event for event in events(in_use) if event in {"model_locked", "model_promoted"}][1:]
    made = get(in_use, "b")
    if said == ["model_promoted", "model_locked"]:
        assert (made.state, made.advice) == (ModelState.CURRENT, "")
    else:
        assert said == ["model_locked"]
        assert made.state is ModelState.CANDIDATE
        assert "is locked by chief" in made.advice


def test_a_version_of_the_gate_that_does_worse_is_rolled_back_once(in_use: Store) -> None:
    accept(in_use, "b")
    judged_on = now_in_use(in_use)

    assert retreat(in_use) is Retreat.ROLLED_BACK

    assert (get(in_use, "a").state, get(in_use, "b").state) == (ModelState.CURRENT, ModelState.RETIRED)
    last = in_use.models.switches(NAME)[-1]
    assert (last.by, last.reason, last.is_rollback, last.is_automatic) == (
        "drift alarm",
        "Front: worse",
        True,
        True,
    )
    assert in_use.audit.list()[0].event == "model_rolled_back"
    assert retreat(in_use) is Retreat.NONE  # an alarm about the version that was put back
    assert in_use.models.retreat(judged_on, reason="late", now=NOON) is Retreat.NONE
    assert get(in_use, "a").state is ModelState.CURRENT


def test_of_many_processes_that_see_the_alarm_one_rolls_back(
    in_use: Store, open_store: Callable[[], Store]
) -> None:
    promote(in_use, "0")
    accept(in_use, "b", parent="0")
    seen = now_in_use(in_use)
    stores = [open_store() for _ in range(3)]
    start = threading.Barrier(len(stores))
    outcomes: list[object] = []

    def act(one: Store) -> None:
        start.wait()
        try:
            outcomes.append(one.models.retreat(seen, reason="worse", now=NOON))
        except Exception as error:  # shown in the main thread
            outcomes.append(error)

    threads = [threading.Thread(target=act, args=[one]) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["none", "none", "rolled_back"]
    assert get(in_use, "0").state is ModelState.CURRENT


@pytest.mark.parametrize("why", ["locked", "by a person", "hindered"])
def test_where_it_may_not_be_rolled_back_a_person_is_told_once(in_use: Store, why: str) -> None:
    if why == "by a person":
        promote(in_use, "b")
    else:
        accept(in_use, "b")
    if why == "locked":
        in_use.locks.lock(NAME, by="chief", reason="in the clinic", now=NOON)
    hindrance = "the folder is missing" if why == "hindered" else ""

    assert retreat(in_use, hindrance=hindrance) is Retreat.ADVISED
    assert retreat(in_use, hindrance=hindrance) is Retreat.NONE

    words = {
        "locked": "is locked by chief",
        "by a person": "a person put hippocampus@b into use",
        "hindered": "the folder is missing",
    }
    made = get(in_use, "b")
    assert made.state is ModelState.CURRENT
    assert made.advice.startswith("roll back to hippocampus@a: Front: worse; not done automatically: ")
    assert words[why] in made.advice
    assert events(in_use).count("rollback_advised") == 1


def test_what_hindered_and_does_so_no_more_lets_the_rollback_through(in_use: Store) -> None:
    accept(in_use, "b")
    retreat(in_use, hindrance="training.automatic_rollback = false")
    assert retreat(in_use) is Retreat.ROLLED_BACK
    assert get(in_use, "b").advice == ""


def test_a_version_that_a_person_confirmed_stays_and_nobody_is_told(in_use: Store) -> None:
    accept(in_use, "b")
    retreat(in_use, hindrance="the folder is missing")
    in_use.models.promote(f"{NAME}@b", now=NOON, by="chief", reason="the scanner is new")
    assert get(in_use, "b").advice == ""
    assert retreat(in_use) is Retreat.NONE
    assert get(in_use, "b").state is ModelState.CURRENT
    assert events(in_use)[-1] == "model_confirmed"


def test_a_word_of_an_earlier_use_does_not_count_though_the_clock_was_set_back(in_use: Store) -> None:
    accept(in_use, "b")
    in_use.models.promote(f"{NAME}@b", now=NOON + HOUR, by="chief")  # confirmed, by a clock that was fast
    in_use.models.rollback(NAME, now=NOON, by="chief")
    in_use.models.promote(f"{NAME}@b", now=NOON, by="chief")
    assert retreat(in_use) is Retreat.ADVISED


def test_reviews_of_another_use_of_the_version_roll_nothing_back(in_use: Store) -> None:
    accept(in_use, "b")
    read = now_in_use(in_use)
    stale = (replace(read, since=NOON - HOUR), replace(read, previous=None))
    outcomes = [in_use.models.retreat(one, reason="worse", now=NOON) for one in stale]
    assert outcomes == [Retreat.NONE, Retreat.NONE]
    assert get(in_use, "b").state is ModelState.CURRENT
    gone = replace(read, version=ModelVersion("hippocampus@z"))
    with pytest.raises(InputError, match="no model version"):
        in_use.models.retreat(gone, reason="worse", now=NOON)


def test_a_first_version_has_nothing_to_return_to(in_use: Store) -> None:
    assert retreat(in_use) is Retreat.NONE
    assert get(in_use, "a").advice == ""
