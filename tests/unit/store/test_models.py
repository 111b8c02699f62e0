"""Versions of models and which one is in use."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, text

from dicomnode.domain import Job, JobKind, JobState, ModelOrigin, ModelState, ModelVersion, Sha256, Verdict
from dicomnode.errors import DatabaseError, InputError, LeaseLostError, ResourceError
from dicomnode.store import ModelRecord, Store
from dicomnode.store.database import MIGRATIONS
from dicomnode.store.records import Judged, KnownRelease, ReleaseState

from .conftest import LEASE, NOON, claim


def model(letter: str = "a", **changes: object) -> ModelRecord:
    record = ModelRecord(
        version=ModelVersion(f"hippocampus@{letter}"),
        name="hippocampus",
        origin=ModelOrigin.TRAINED,
        state=ModelState.CANDIDATE,
        folder=f"/models/{letter}",
        weights_sha256=Sha256(letter * 64),
        created_at=NOON,
        parent=ModelVersion("hippocampus@0"),
        recipe="dafne",
        case_digests=(("1" * 32, Sha256("d" * 64)), ("2" * 32, Sha256("e" * 64))),
        recipe_json='{"rate": 0.001}',
        environment_json='{"python": "3.12"}',
        run_folder="/runs/1",
        gate_report_json='{"verdict": "accepted"}',
        case_ids=("1" * 32, "2" * 32),
        release_version=7,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def promote(store: Store, *names: str) -> None:
    for name in names:
        store.models.register(model(name))
        store.models.promote(f"hippocampus@{name}", now=NOON, by="gate", reason="better")


def test_a_version_comes_back_as_it_was_and_is_registered_once(store: Store) -> None:
    assert store.models.register(model())
    assert not store.models.register(model(recipe="another"))
    assert store.models.get("hippocampus@a") == model()
    assert store.models.get("hippocampus@z") is None
    assert store.models.current("hippocampus") is None
    assert store.models.names() == ["hippocampus"]


def test_a_promotion_retires_the_version_before(store: Store) -> None:
    promote(store, "a", "b")
    assert [(m.version[-1], m.state) for m in store.models.history("hippocampus")] == [
        ("a", ModelState.RETIRED),
        ("b", ModelState.CURRENT),
    ]
    current = store.models.current("hippocampus")
    assert current == model("b", state=ModelState.CURRENT)
    assert store.models.all_current() == [current]
    last = store.models.switches("hippocampus")[-1]
    assert (last.version, last.previous, last.by, last.reason) == (
        "hippocampus@b",
        "hippocampus@a",
        "gate",
        "better",
    )
    assert store.audit.list()[0].event == "model_promoted"


def test_promoting_the_current_version_changes_nothing(store: Store) -> None:
    promote(store, "a", "a")
    assert len(store.models.switches("hippocampus")) == 1


def test_each_rollback_goes_one_step_further_back(store: Store) -> None:
    promote(store, "a", "b", "c")
    assert store.models.rollback("hippocampus", now=NOON, by="person").version == "hippocampus@b"
    assert store.models.rollback("hippocampus", now=NOON, by="person").version == "hippocampus@a"
    with pytest.raises(InputError, match="no earlier version"):
        store.models.rollback("hippocampus", now=NOON, by="person")
    promote(store, "c")
    assert store.models.rollback("hippocampus", now=NOON, by="person").version == "hippocampus@a"


def test_models_of_other_names_are_left_alone(store: Store) -> None:
    promote(store, "a")
    store.models.register(model("x", name="liver", version="liver@x"))
    store.models.promote("liver@x", now=NOON, by="person")
    assert [m.version for m in store.models.all_current()] == ["hippocampus@a", "liver@x"]


def test_the_gate_s_answer_is_kept(store: Store) -> None:
    store.models.register(model())
    store.models.set_state("hippocampus@a", ModelState.REFUSED, gate_report_json='{"verdict": "refused"}')
    kept = store.models.get("hippocampus@a")
    assert kept is not None
    assert (kept.state, kept.gate_report_json) == (ModelState.REFUSED, '{"verdict": "refused"}')


def test_a_version_becomes_current_by_promotion_only(store: Store) -> None:
    with pytest.raises(InputError, match="promote it"):
        store.models.register(model(state=ModelState.CURRENT))
    promote(store, "a")
    with pytest.raises(InputError, match="use promote or rollback"):
        store.models.set_state("hippocampus@a", ModelState.RETIRED)
    with pytest.raises(InputError, match="no model version"):
        store.models.promote("hippocampus@z", now=NOON, by="person")
    with pytest.raises(InputError, match="no earlier version"):
        store.models.rollback("liver", now=NOON, by="person")


def test_promotions_in_parallel_leave_one_current_version(
    store: Store, open_store: Callable[[], Store]
) -> None:
    promote(store, "a")
    store.models.register(model("b"))
    store.models.register(model("c"))
    stores = {"hippocampus@b": store, "hippocampus@c": open_store()}
    errors: list[Exception] = []

    def switch(own: Store, version: str) -> None:
        try:
            own.models.promote(version, now=NOON, by="person")
        except Exception as error:  # shown in the main thread
            errors.append(error)

    threads = [threading.Thread(target=switch, args=(own, version)) for version, own in stores.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    states = [m.state for m in store.models.history("hippocampus")]
    assert sorted(states) == [ModelState.CURRENT, ModelState.RETIRED, ModelState.RETIRED]
    first, second = store.models.switches("hippocampus")[1:]
    assert second.previous == first.version


def judged(
    store: Store, letter: str, verdict: Verdict, *, parent: str = "a", digest: str = ""
) -> tuple[Job, Judged]:
    """A claimed training, and what came of it: two cases of its own, and release 7."""
    store.jobs.enqueue(JobKind.TRAIN_INCREMENT, "hippocampus", digest or letter * 64, now=NOON)
    job = claim(store, JobKind.TRAIN_INCREMENT)
    record = model(letter, parent=ModelVersion(f"hippocampus@{parent}"))
    words = f"{letter} {verdict}"
    return job, Judged(record=record, verdict=verdict, reason="so", in_words=words, cases_read_at=NOON)


@pytest.fixture
def in_use(store: Store) -> Store:
    """Version a is in use, and release 7 was seen."""
    promote(store, "a")
    store.federation.add_release(
        KnownRelease(
            family="hippocampus", version=7, blob_sha256=Sha256("b" * 64), manifest_json="{}", seen_at=NOON
        )
    )
    return store


def test_an_accepted_version_its_release_and_its_job_end_together(in_use: Store) -> None:
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED)

    in_use.models.conclude(job, outcome, now=NOON)

    assert in_use.models.current("hippocampus") == replace(outcome.record, state=ModelState.CURRENT)
    assert in_use.models.before_current("hippocampus") == "hippocampus@a"
    row = in_use.jobs.get(job.id)
    assert row is not None
    assert (row.state, row.reason) == (JobState.DONE, "b accepted")
    (release,) = in_use.federation.releases("hippocampus")
    assert (release.state, release.model_version) == (ReleaseState.ADOPTED, "hippocampus@b")


def test_a_lost_lease_leaves_no_trace_of_a_verdict(in_use: Store) -> None:
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED)
    assert in_use.jobs.claim(NOON + LEASE, kinds={job.kind}, owner="other", lease=LEASE) is not None

    with pytest.raises(LeaseLostError):
        in_use.models.conclude(job, outcome, now=NOON)

    assert in_use.models.get("hippocampus@b") is None
    assert in_use.federation.releases("hippocampus")[0].state is ReleaseState.SEEN


def test_a_verdict_beside_a_version_that_is_no_longer_in_use_does_not_count(in_use: Store) -> None:
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED)
    promote(in_use, "c")

    with pytest.raises(ResourceError, match="hippocampus@c was put into use while hippocampus@b was judged"):
        in_use.models.conclude(job, outcome, now=NOON)

    row = in_use.jobs.get(job.id)
    assert row is not None
    assert row.state is JobState.RUNNING  # to be tried again beside the new one


def test_the_newest_verdict_on_a_version_that_was_never_used_stands(in_use: Store) -> None:
    in_use.models.register(model("b", state=ModelState.INCONCLUSIVE, recipe="of the first time"))
    job, outcome = judged(in_use, "b", Verdict.REFUSED)
    refused = replace(outcome.record, state=ModelState.REFUSED)

    in_use.models.conclude(job, replace(outcome, record=refused), now=NOON)

    kept = in_use.models.get("hippocampus@b")
    assert kept is not None
    assert (kept.state, kept.recipe) == (ModelState.REFUSED, "of the first time")
    assert in_use.federation.releases("hippocampus")[0].state is ReleaseState.REFUSED


def test_nothing_was_in_use_before_the_first_version(in_use: Store) -> None:
    assert in_use.models.before_current("hippocampus") is None
    assert in_use.models.before_current("liver") is None


def test_a_release_that_was_left_to_a_person_is_adopted_with_their_promotion(in_use: Store) -> None:
    in_use.locks.lock("hippocampus", by="chief", reason="clinical", now=NOON)
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED)
    in_use.models.conclude(job, outcome, now=NOON)
    assert in_use.federation.releases("hippocampus")[0].state is ReleaseState.CANDIDATE

    in_use.models.promote("hippocampus@b", now=NOON, by="chief", reason="looked at it")

    (release,) = in_use.federation.releases("hippocampus")
    assert (release.state, release.model_version) == (ReleaseState.ADOPTED, "hippocampus@b")
    assert "put into use by chief; looked at it" in release.reason


def test_a_version_that_was_rolled_back_from_comes_back_by_a_person_only(in_use: Store) -> None:
    promote(in_use, "b")
    in_use.models.rollback("hippocampus", now=NOON, by="chief")
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED)

    in_use.models.conclude(job, outcome, now=NOON)

    kept = in_use.models.get("hippocampus@b")
    assert kept is not None
    assert kept.state is ModelState.RETIRED
    assert "hippocampus@b was in use before and was rolled back from" in kept.advice
    row = in_use.jobs.get(job.id)
    assert row is not None
    assert "not put into use automatically" in row.reason

    in_use.models.promote("hippocampus@b", now=NOON, by="chief")
    in_use.models.rollback("hippocampus", now=NOON, by="chief")
    in_use.models.promote("hippocampus@b", now=NOON, by="chief")
    kept = in_use.models.get("hippocampus@b")
    assert kept is not None
    assert (kept.state, kept.advice) == (ModelState.CURRENT, "")
    promote(in_use, "c")
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED, parent="c", digest="f" * 64)
    in_use.models.conclude(job, outcome, now=NOON)
    current = in_use.models.current("hippocampus")
    assert current is not None
    assert current.version == "hippocampus@b"  # a person had the last word on it


def test_a_switch_says_whether_a_person_answers_for_it(in_use: Store) -> None:
    job, outcome = judged(in_use, "b", Verdict.ACCEPTED)
    in_use.models.conclude(job, outcome, now=NOON)
    in_use.models.register(model("c"))
    in_use.models.promote("hippocampus@c", now=NOON, by="chief")
    switches = in_use.models.switches("hippocampus")
    assert [(one.by, one.is_automatic) for one in switches[1:]] == [("gate", True), ("chief", False)]


def test_versions_and_switches_of_an_older_program_are_kept(store: Store, store_url: str) -> None:
    promote(store, "a", "b")  # by "gate", as the older program wrote it
    store.models.register(model("c"))
    store.models.promote("hippocampus@c", now=NOON, by="chief", reason="better")
    store.models.register(model("d", state=ModelState.REFUSED))
    before = store.models.history("hippocampus")
    store.close()

    move_to(store_url, "0005")
    opened = Store.open(store_url)  # as the newer program does at its start

    bare = {"case_digests": (), "recipe_json": "", "environment_json": "", "run_folder": "", "advice": ""}
    assert opened.models.history("hippocampus") == [replace(one, **bare) for one in before]  # type: ignore[arg-type]
    switches = opened.models.switches("hippocampus")
    assert [(one.version[-1], one.by, one.is_automatic) for one in switches] == [
        ("a", "gate", True),
        ("b", "gate", True),
        ("c", "chief", False),
    ]
    assert opened.locks.all() == ()
    assert opened.models.rollback("hippocampus", now=NOON, by="chief").version == "hippocampus@b"
    opened.models.register(model("e"))
    with pytest.raises(DatabaseError), opened.models._database.writing() as session:
        session.connection().execute(
            text("UPDATE model SET state = 'current' WHERE version = 'hippocampus@e'")
        )
    opened.close()


def move_to(url: str, revision: str) -> None:
    """Take a database back to how an older program left it."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        assert "advice" not in {column["name"] for column in inspect(connection).get_columns("model")}
    engine.dispose()
