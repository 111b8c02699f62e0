"""Learning from new corrections: what is trained on, what the gate makes of it, and what stays."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode.domain import JobKind, JobState, ModelOrigin, ModelState, Split, Verdict
from dicomnode.errors import LeaseLostError, ResourceError
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.pipeline import trust
from dicomnode.pipeline.learn import enqueue_if_due, plan_training, train_increment
from dicomnode.pipeline.tools import Interrupted
from tests.pipeline_builders import BACK, FRONT, MODEL, Scene, mr_series, tiny_weights, viewer_seg


def swapped(scene: Scene, side: Split, *, seed: int, number: int = 0) -> str:
    """Keep a case in which the two labels of our result have changed places; gives its name."""
    case_id = teach(scene, side, seed=seed, number=number)
    case = scene.tools.casebook.read(case_id)
    scene.tools.casebook.add(replace(case, labels=np.array([0, 2, 1], np.uint8)[case.labels]))
    return case_id


def teach(scene: Scene, side: Split, *, seed: int = 0, number: int = 0, unchanged: bool = False) -> str:
    """Take one correction of a patient on a side: our labels without slices 3 and 4, or ours as they are."""
    series = mr_series(seed, patient_id=scene.patient_on(side, number=number))
    scene.segment(series)
    masks = scene.found(series)
    if not unchanged:
        masks[FRONT][3:5] = masks[BACK][3:5] = False
    return scene.correct(viewer_seg(series, masks)).case_id


@pytest.fixture
def taught(scene: Scene) -> Scene:
    """A model that finds nothing, one training case and one hold-out case: whatever it learns is no loss."""
    scene.use(tiny_weights(background=1000.0))
    scene.draw(Split.TRAINING, seed=1)
    scene.draw(Split.HOLD_OUT, seed=2)
    return scene


def newest(scene: Scene):
    records = [r for r in scene.tools.store.models.history(MODEL) if r.origin is ModelOrigin.TRAINED]
    assert len(records) == 1
    return records[0]


def asking(scene: Scene, **changes: object) -> Scene:
    """The site with other wishes about its trainings."""
    return scene.with_changes(training=scene.tools.training.model_copy(update=changes))


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"minimum_corrected_slices": 9}, "9 slices or 10 cases are needed"),
        ({"minimum_patients": 2}, "are of 1 patients; 2 are needed"),
    ],
)
def test_too_little_that_is_new_starts_no_training(scene, wishes, words):
    few = asking(scene, **wishes)
    teach(few, Split.TRAINING)

    plan = enqueue_if_due(MODEL, few.tools)

    assert not plan.is_due
    assert words in plan.in_words
    assert scene.tools.store.jobs.list(kind=JobKind.TRAIN_INCREMENT) == ()


def test_enough_new_cases_start_a_training_whatever_their_slices(scene):
    few = asking(scene, minimum_corrected_slices=99, minimum_new_cases=2)
    teach(few, Split.TRAINING, seed=1)
    assert not plan_training(MODEL, few.tools).is_due
    teach(few, Split.TRAINING, seed=2, number=1)

    assert plan_training(MODEL, few.tools).is_due


def test_a_training_waits_for_its_window_unless_a_person_asks(taught):
    opens = (taught.clock() + timedelta(hours=2)).astimezone()
    closed = asking(taught, window=f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}")
    plan = enqueue_if_due(MODEL, closed.tools)
    job = closed.claim(JobKind.TRAIN_INCREMENT)

    with pytest.raises(Interrupted) as closing:
        train_increment(job, closed.tools)
    assert closing.value.until == opens.replace(second=0, microsecond=0)
    closed.tools.store.jobs.defer(job, closing.value.until, now=closed.clock())
    assert not closed.tools.store.jobs.is_due({JobKind.TRAIN_INCREMENT}, closed.clock())

    closed.tools.store.jobs.hasten(JobKind.TRAIN_INCREMENT, plan.digest, now=closed.clock())
    train_increment(closed.claim(JobKind.TRAIN_INCREMENT), closed.tools)
    assert newest(closed).state is ModelState.CURRENT


def test_a_training_goes_on_after_breaks_with_what_it_began_with(taught):
    """Cut off again and again, with a correction that comes meanwhile: the outcome is that of one go."""
    (first,) = taught.tools.store.corrections.untrained_cases(MODEL)
    enqueue_if_due(MODEL, taught.tools)
    job = taught.claim(JobKind.TRAIN_INCREMENT)
    breaks = 0
    while breaks < 20:
        tools = replace(taught.tools, should_stop=_after(3))
        try:
            train_increment(job, tools)
            break
        except Interrupted:
            breaks += 1
            if breaks == 2:
                taught.draw(Split.TRAINING, seed=3)

    assert breaks >= 2
    made = newest(taught)
    assert made.case_ids == (first,)
    assert made.steps == 5


def _after(count):
    """Answer no so many times, then yes."""
    left = [count]

    def answer() -> bool:
        left[0] -= 1
        return left[0] < 0

    return answer


def test_a_correction_that_is_probably_a_mistake_is_left_out_and_named(scene):
    """Labels that changed places, beside cases that are right: the model finds both labels well."""
    for number in range(2):
        teach(scene, Split.TRAINING, seed=number, number=number, unchanged=number > 0)
    wrong = swapped(scene, Split.TRAINING, seed=20, number=3)
    doubts = trust.suspicions(MODEL, scene.tools)

    words = scene.train()

    assert doubts[wrong].weight == 0
    assert [name for name, found in doubts.items() if found.weight < 0.5] == [wrong]
    assert "1 of 3 cases is doubted, 1 of them left out" in words
    made = newest(scene)
    assert json.loads(made.recipe_json)["trust"] == {wrong: 0.0}
    assert wrong in (Path(made.run_folder) / "trust.json").read_text()
    assert "1 of 3 cases is doubted" in (Path(made.folder) / "card.md").read_text()


def test_a_doubtful_hold_out_case_judges_nobody(scene):
    for number in range(2):
        teach(scene, Split.HOLD_OUT, seed=number, number=number, unchanged=True)
    wrong = swapped(scene, Split.HOLD_OUT, seed=20, number=3)
    assert trust.suspicions(MODEL, scene.tools)[wrong].weight == 0
    teach(scene, Split.TRAINING, seed=30)

    scene.train()

    report = GateReport.from_json(newest(scene).gate_report_json)
    assert report.cases == 2
    assert "1 doubtful hold-out case was left out" in report.reason


def test_only_doubted_corrections_train_nothing(scene):
    for number in range(2):
        teach(scene, Split.HOLD_OUT, seed=number, number=number, unchanged=True)
    swapped(scene, Split.TRAINING, seed=20)

    words = scene.train()

    assert words.startswith("nothing to learn from: 1 of 1 cases is doubted")
    assert len(scene.tools.store.models.history(MODEL)) == 1


def test_what_a_version_was_made_of_is_recorded(taught):
    (case_id,) = taught.tools.store.corrections.untrained_cases(MODEL)
    taught.train()

    made = newest(taught)

    assert [case for case, _ in made.case_digests] == [case_id]
    assert json.loads(made.recipe_json)["name"] == "dafne"
    assert json.loads(made.environment_json)["torch"] == torch.__version__
    assert (Path(made.run_folder) / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in Path(made.run_folder).iterdir()} >= {"training.csv", "trust.json"}
    assert not (Path(made.run_folder) / "cases").exists()


def test_hold_out_corrections_never_start_a_training(scene):
    teach(scene, Split.HOLD_OUT)

    assert not plan_training(MODEL, scene.tools).is_due


def test_an_accepted_version_is_in_use_with_its_lineage(taught):
    parent = taught.tools.current_record(MODEL)
    (case_id,) = taught.tools.store.corrections.untrained_cases(MODEL)

    words = taught.train()

    made = newest(taught)
    assert taught.tools.current_record(MODEL).version == made.version
    assert f"{made.version} accepted" in words
    assert (made.parent, made.recipe, made.case_ids) == (parent.version, "dafne", (case_id,))
    assert (made.epochs, made.steps) == (5, 5)  # four drawn slices are one batch of five in each epoch
    assert GateReport.from_json(made.gate_report_json).verdict is Verdict.ACCEPTED
    assert taught.tools.store.models.get(parent.version).state is ModelState.RETIRED
    package = taught.tools.shelf.package(made.version)
    assert package.card.weights_sha256 == made.weights_sha256
    assert f"Parent: {parent.version}" in (package.folder / "card.md").read_text()
    assert taught.tools.store.corrections.untrained_cases(MODEL) == ()
    trained = [r.trained_in for r in taught.tools.store.corrections.list() if r.case_id == case_id]
    assert trained == [made.version]


def test_the_same_corrections_are_not_trained_on_twice(taught):
    taught.train()

    assert not enqueue_if_due(MODEL, taught.tools).is_due


def test_a_refused_version_is_recorded_and_the_current_one_stays(scene):
    teach(scene, Split.TRAINING, seed=1)
    teach(scene, Split.HOLD_OUT, seed=2, unchanged=True)  # the current version is perfect on it
    before = scene.tools.current_record(MODEL).version

    words = scene.train()

    made = newest(scene)
    assert made.state is ModelState.REFUSED
    assert GateReport.from_json(made.gate_report_json).verdict is Verdict.REFUSED
    assert "refused" in words
    assert scene.tools.current_record(MODEL).version == before
    assert scene.tools.store.corrections.untrained_cases(MODEL) == ()


def test_an_inconclusive_version_waits_and_its_cases_are_not_used_up(scene):
    case_id = teach(scene, Split.TRAINING)
    before = scene.tools.current_record(MODEL).version

    words = scene.train()

    made = newest(scene)
    assert made.state is ModelState.INCONCLUSIVE
    assert "only 0 hold-out cases" in words
    assert scene.tools.current_record(MODEL).version == before
    assert scene.tools.store.corrections.untrained_cases(MODEL) == (case_id,)
    # The same inputs are not queued again, though they are still new to the version in use.
    enqueue_if_due(MODEL, scene.tools)
    assert len(scene.tools.store.jobs.list(kind=JobKind.TRAIN_INCREMENT)) == 1


def test_the_next_training_learns_from_the_cases_behind_an_inconclusive_one_too(scene):
    first = teach(scene, Split.TRAINING, seed=1)
    scene.train()
    second = teach(scene, Split.TRAINING, seed=2, number=1)

    assert plan_training(MODEL, scene.tools).case_ids == (first, second)


def test_a_person_who_promotes_an_inconclusive_version_settles_its_cases(scene):
    teach(scene, Split.TRAINING)
    scene.train()
    made = newest(scene)

    scene.tools.store.models.promote(made.version, now=scene.clock(), by="chief", reason="looked at it")

    assert scene.tools.store.corrections.untrained_cases(MODEL) == ()


def test_a_training_that_changes_nothing_is_refused_and_the_version_stays_in_use(taught):
    before = taught.tools.current_record(MODEL)
    (case_id,) = taught.tools.store.corrections.untrained_cases(MODEL)
    case = taught.tools.casebook.read(case_id)
    # All is background, of which the model is as sure as can be: no gradient.
    taught.tools.casebook.add(replace(case, labels=np.zeros_like(case.labels)))

    words = taught.train()

    assert "exactly the weights of the current model" in words
    assert taught.tools.current_record(MODEL) == before
    assert [r for r in taught.tools.store.models.history(MODEL) if r.origin is ModelOrigin.TRAINED] == []
    assert taught.tools.store.corrections.untrained_cases(MODEL) == ()


def test_a_repeat_after_a_crash_trains_to_the_same_version_once(taught):
    """Killed after its version was put on the shelf and judged, before the one transaction."""
    plan = enqueue_if_due(MODEL, taught.tools)
    slow = taught.claim(JobKind.TRAIN_INCREMENT, owner="slow")
    taught.later()
    quick = taught.claim(JobKind.TRAIN_INCREMENT, owner="quick")
    base = taught.tools.current_record(MODEL).version

    with pytest.raises(LeaseLostError):
        train_increment(slow, taught.tools)
    assert taught.tools.current_record(MODEL).version == base
    assert taught.tools.store.corrections.untrained_cases(MODEL) == plan.case_ids
    on_shelf = {folder.name for folder in (taught.folder / "models" / MODEL).iterdir()}
    train_increment(quick, taught.tools)

    assert newest(taught).parent == base
    assert {folder.name for folder in (taught.folder / "models" / MODEL).iterdir()} == on_shelf


def test_a_version_that_a_person_promotes_meanwhile_is_not_overruled(taught):
    enqueue_if_due(MODEL, taught.tools)
    job = taught.claim(JobKind.TRAIN_INCREMENT)
    chosen = []

    def promote_another() -> bool:
        if not chosen:
            chosen.append(taught.use(tiny_weights(seed=5)).version)
        return False

    with pytest.raises(ResourceError, match="was put into use while"):
        train_increment(job, replace(taught.tools, should_stop=promote_another))

    assert taught.tools.current_record(MODEL).version == chosen[0]
    assert taught.tools.store.jobs.get(job.id).state is JobState.RUNNING


def test_a_training_steps_back_when_a_study_waits(taught):
    enqueue_if_due(MODEL, taught.tools)
    job = taught.claim(JobKind.TRAIN_INCREMENT)
    taught.receive(mr_series(9))
    taught.quiet()

    with pytest.raises(Interrupted):
        train_increment(job, taught.tools)

    assert [r for r in taught.tools.store.models.history(MODEL) if r.origin is ModelOrigin.TRAINED] == []


def test_a_training_that_a_person_waits_for_does_not_step_back(taught):
    enqueue_if_due(MODEL, taught.tools)
    job = taught.claim(JobKind.TRAIN_INCREMENT)
    taught.receive(mr_series(9))
    taught.quiet()
    job = replace(job, lease_until=taught.clock())

    train_increment(job, replace(taught.tools, steps_back=False))

    assert newest(taught).state is ModelState.CURRENT


def test_a_training_beyond_its_time_goes_on_in_the_next_window(taught):
    enqueue_if_due(MODEL, taught.tools)
    job = taught.claim(JobKind.TRAIN_INCREMENT)
    local = taught.clock().astimezone()
    window = f"{local - timedelta(hours=1):%H:%M}-{local + timedelta(hours=1):%H:%M}"
    short = asking(taught, time_budget_s=1e-9, window=window)

    with pytest.raises(Interrupted, match=r"training\.time_budget_s") as pause:
        train_increment(job, short.tools)

    assert pause.value.until > taught.clock() + timedelta(hours=22)
    train_increment(job, taught.tools)
    assert newest(taught).steps == 5


def test_a_correction_that_comes_while_training_runs_stays_new(taught):
    enqueue_if_due(MODEL, taught.tools)
    job = taught.claim(JobKind.TRAIN_INCREMENT)
    came = []

    def correct_once() -> bool:
        if not came:
            taught.later(1)
            came.append(taught.draw(Split.TRAINING, seed=3))
        return False

    train_increment(job, replace(taught.tools, should_stop=correct_once, steps_back=False))

    assert taught.tools.store.corrections.untrained_cases(MODEL) == tuple(came)


def test_nothing_new_ends_the_job_in_words(scene):
    scene.tools.store.jobs.enqueue(JobKind.TRAIN_INCREMENT, MODEL, "0" * 64, now=scene.clock())
    job = scene.claim(JobKind.TRAIN_INCREMENT)

    train_increment(job, scene.tools)

    assert scene.tools.store.jobs.get(job.id).reason == "nothing new to learn from"


def test_a_recipe_that_repeats_names_what_it_repeated_and_leaves_doubted_cases_out(scene):
    first = teach(scene, Split.TRAINING, seed=1)
    teach(scene, Split.HOLD_OUT, seed=2, unchanged=True)
    scene.train()  # refused: its case is settled
    second = teach(scene, Split.TRAINING, seed=3, number=1)
    wrong = swapped(scene, Split.TRAINING, seed=4, number=2)

    asking(scene, recipe="full").train()

    made = scene.tools.store.models.history(MODEL)[-1]
    assert set(made.case_ids) == {second, wrong}
    assert {case for case, _ in made.case_digests} == {first, second}
