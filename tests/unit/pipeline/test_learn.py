"""Learning from new corrections: what is trained on, what the gate makes of it, and what stays."""

from dataclasses import replace

import numpy as np
import pytest

from dicomnode.domain import JobKind, JobState, ModelOrigin, ModelState, Split, Verdict
from dicomnode.errors import InputError, LeaseLostError, ResourceError
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.pipeline.learn import enqueue_if_due, plan_training, train_increment
from dicomnode.pipeline.tools import Interrupted
from dicomnode.settings import TrainingSettings
from tests.pipeline_builders import BACK, FRONT, MODEL, Scene, mr_series, tiny_weights, viewer_seg


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


def test_too_few_corrected_slices_start_no_training(scene):
    few = scene.with_changes(training=TrainingSettings(minimum_corrected_slices=9))
    teach(few, Split.TRAINING)

    plan = enqueue_if_due(MODEL, few.tools)

    assert not plan.is_due
    assert "9 are needed" in plan.in_words
    assert scene.tools.store.jobs.list(kind=JobKind.TRAIN_INCREMENT) == ()


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


def test_a_training_beyond_its_time_is_set_aside_with_what_to_change(taught):
    enqueue_if_due(MODEL, taught.tools)
    job = taught.claim(JobKind.TRAIN_INCREMENT)
    short = taught.tools.training.model_copy(update={"time_budget_s": 1e-9})

    with pytest.raises(InputError, match=r"training\.time_budget_s"):
        train_increment(job, replace(taught.tools, training=short))


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
