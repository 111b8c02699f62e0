"""A version that does worse in readers' eyes: put back by itself where it came into use by itself."""

import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from structlog.testing import capture_logs

from dicomnode.clock import tick_guard
from dicomnode.domain import JobKind, ModelOrigin, ModelState, ModelVersion, Verdict
from dicomnode.pipeline.guard import step_back_if_worse
from dicomnode.settings import TrainingSettings
from dicomnode.store.records import Judged, ModelRecord, Retreat
from tests.feedback_builders import Readers
from tests.pipeline_builders import BACK, FRONT, MODEL, Scene, tiny_weights

GOOD, BAD = 0.95, 0.40
FEW, ENOUGH = 9, 10
"""Reviews of the version before: too few to compare with, and just enough."""


@dataclass(frozen=True, slots=True)
class Site:
    """A site whose first version was put into use by a person and reviewed."""

    scene: Scene
    readers: Readers
    first: ModelVersion

    @property
    def now(self) -> datetime:
        """A moment later than all before."""
        self.scene.clock.moment += timedelta(minutes=1)
        return self.scene.clock()

    def reviewed(self, version: ModelVersion, dice: float, *, times: int, label: str = FRONT) -> None:
        """Let readers look at some results of a version."""
        for _ in range(times):
            self.readers.review(version, {label: dice}, at=self.now)

    def learn(self) -> ModelVersion:
        """Let the gate put another version into use."""
        tools = self.scene.tools
        current = tools.current_package(MODEL)
        made = tools.shelf.add(current, tiny_weights(seed=2), card_text="# second\n")
        tools.enqueue(JobKind.TRAIN_INCREMENT, MODEL, "2" * 64)
        record = ModelRecord(
            version=made.card.version,
            name=MODEL,
            origin=ModelOrigin.TRAINED,
            state=ModelState.CANDIDATE,
            folder=str(made.folder),
            weights_sha256=made.card.weights_sha256,
            created_at=self.now,
            parent=current.card.version,
        )
        outcome = Judged(record=record, verdict=Verdict.ACCEPTED, reason="better", in_words="accepted")
        tools.store.models.conclude(self.scene.claim(JobKind.TRAIN_INCREMENT), outcome, now=self.now)
        return made.card.version

    @property
    def in_use(self) -> ModelVersion:
        """The version that the next series gets."""
        return self.scene.tools.current_record(MODEL).version

    def advice(self, version: ModelVersion) -> str:
        """What a person is told about a version."""
        record = self.scene.tools.store.models.get(version)
        assert record is not None
        return record.advice


@pytest.fixture
def site(scene: Scene) -> Site:
    return Site(scene, Readers(store=scene.tools.store), scene.tools.current_record(MODEL).version)


def worse(site: Site) -> ModelVersion:
    """A version of the gate that readers find much worse than the one before."""
    site.reviewed(site.first, GOOD, times=ENOUGH)
    second = site.learn()
    site.reviewed(second, BAD, times=3)
    return second


def test_a_version_that_does_worse_gives_its_place_back(site: Site) -> None:
    second = worse(site)

    with capture_logs() as lines:
        tick_guard(site.scene.tools)

    assert site.in_use == site.first
    last = site.scene.tools.store.models.switches(MODEL)[-1]
    assert (last.by, last.is_rollback, last.is_automatic) == ("drift alarm", True, True)
    assert last.reason.startswith(f"{FRONT}: Dice 0.400 in the last 3 of 3 reviews, 0.950 ± 0.020 expected")
    assert [(line["event"], line["version"]) for line in lines] == [("model rolled back", second)]
    site.reviewed(site.first, BAD, times=3)
    assert step_back_if_worse(MODEL, site.scene.tools) is Retreat.NONE  # never to and fro


def test_a_version_that_does_as_well_or_better_stays(site: Site) -> None:
    site.reviewed(site.first, BAD, times=ENOUGH)
    second = site.learn()
    site.reviewed(second, GOOD, times=3)
    assert step_back_if_worse(MODEL, site.scene.tools) is Retreat.NONE
    assert site.in_use == second


def test_two_bad_results_are_no_alarm(site: Site) -> None:
    site.reviewed(site.first, GOOD, times=ENOUGH)
    second = site.learn()
    site.reviewed(second, BAD, times=2)
    assert step_back_if_worse(MODEL, site.scene.tools) is Retreat.NONE
    assert site.in_use == second


def test_a_label_that_was_hardly_reviewed_before_is_compared_with_nothing(site: Site) -> None:
    """The alarm stands, beside the version's own first reviews: that it was ever better is not known."""
    site.reviewed(site.first, GOOD, times=FEW)
    site.reviewed(site.first, GOOD, times=ENOUGH, label=BACK)
    second = site.learn()
    site.reviewed(second, GOOD, times=ENOUGH)
    site.reviewed(second, BAD, times=3)
    assert step_back_if_worse(MODEL, site.scene.tools) is Retreat.NONE
    assert (site.in_use, site.advice(second)) == (second, "")


def test_a_rollback_that_is_switched_off_is_advised_once(site: Site) -> None:
    second = worse(site)
    off = site.scene.with_changes(training=TrainingSettings(automatic_rollback=False)).tools

    assert [step_back_if_worse(MODEL, off) for _ in range(2)] == [Retreat.ADVISED, Retreat.NONE]

    assert site.in_use == second
    assert site.advice(second).startswith(f"roll back to {site.first}: {FRONT}: Dice 0.400")
    assert "training.automatic_rollback = false" in site.advice(second)


def test_a_version_that_is_lost_from_the_disk_is_not_put_back(site: Site) -> None:
    second = worse(site)
    shutil.rmtree(site.scene.tools.shelf.folder(site.first))

    assert step_back_if_worse(MODEL, site.scene.tools) is Retreat.ADVISED

    assert site.in_use == second
    assert "is not on this site's shelf" in site.advice(second)


def test_a_locked_model_keeps_its_version_and_a_person_is_told(site: Site) -> None:
    second = worse(site)
    site.scene.tools.store.locks.lock(MODEL, by="chief", reason="in the clinic", now=site.now)

    assert step_back_if_worse(MODEL, site.scene.tools) is Retreat.ADVISED

    assert site.in_use == second
    assert "locked by chief (in the clinic)" in site.advice(second)


def test_a_version_that_a_person_stands_by_stays(site: Site) -> None:
    second = worse(site)
    site.scene.tools.store.models.promote(second, now=site.now, by="chief", reason="a new scanner")

    assert step_back_if_worse(MODEL, site.scene.tools) is Retreat.NONE

    assert (site.in_use, site.advice(second)) == (second, "")


def test_a_model_of_which_nothing_is_in_use_is_left_alone(site: Site) -> None:
    assert step_back_if_worse("liver", site.scene.tools) is Retreat.NONE
