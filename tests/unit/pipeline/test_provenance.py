"""What is kept of how a version was made, and what a version has learned from in all."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from dicomnode import __version__
from dicomnode.domain import ModelOrigin, ModelState, ModelVersion, Sha256
from dicomnode.pipeline.provenance import environment, learned_from, with_provenance
from dicomnode.store.records import ModelRecord
from tests.pipeline_builders import MODEL, Scene


def version(scene: Scene, letter: str, **changes: object) -> ModelRecord:
    """Register a version that was trained here from nothing."""
    record = ModelRecord(
        version=ModelVersion(f"{MODEL}@{letter}"),
        name=MODEL,
        origin=ModelOrigin.TRAINED,
        state=ModelState.CANDIDATE,
        folder=letter,
        weights_sha256=Sha256(f"{letter:0<64}"),
        created_at=scene.clock(),
    )
    made = replace(record, **changes)  # type: ignore[arg-type]
    scene.tools.store.models.register(made)
    return made


def digest(letter: str) -> Sha256:
    return Sha256(letter * 64)


def test_a_record_is_completed_with_cases_recipe_and_environment(scene: Scene) -> None:
    bare = version(scene, "a", case_ids=("2", "1"))

    made = with_provenance(
        bare,
        scene.tools,
        recipe={"rate": 0.001, "name": "dafne"},
        cases={"2": digest("b"), "1": digest("a")},
        run_folder=Path("/runs/1"),
    )

    assert made.case_digests == (("1", digest("a")), ("2", digest("b")))
    assert json.loads(made.recipe_json) == {"rate": 0.001, "name": "dafne"}
    kept = json.loads(made.environment_json)
    assert (kept["dicomnode"], kept["python"]) == (__version__, platform.python_version())
    assert (kept["torch"], kept["threads"], kept["device"]) == (
        torch.__version__,
        torch.get_num_threads(),
        "cpu",
    )
    assert made.run_folder == "/runs/1"
    assert replace(made, case_digests=(), recipe_json="", environment_json="", run_folder="") == bare


def test_the_environment_names_the_device_that_was_asked_for() -> None:
    assert environment("cpu").device == "cpu"


def test_a_version_has_learned_from_its_cases_and_those_of_its_parents(scene: Scene) -> None:
    version(scene, "a", case_ids=("1", "2"), case_digests=(("1", digest("a")), ("2", digest("b"))))
    version(scene, "b", parent=ModelVersion(f"{MODEL}@a"), case_ids=("3",))  # of an older program
    last = version(
        scene,
        "c",
        parent=ModelVersion(f"{MODEL}@b"),
        case_ids=("4",),
        case_digests=(("1", digest("c")), ("4", digest("d"))),
    )
    assert learned_from(last, scene.tools.store) == {
        "1": digest("c"),  # as it was when it was learned last
        "2": digest("b"),
        "3": None,
        "4": digest("d"),
    }


def test_the_cases_of_what_was_in_use_before_are_not_those_of_a_release(scene: Scene) -> None:
    version(scene, "a", case_ids=("1",))
    release = version(scene, "r", parent=ModelVersion(f"{MODEL}@a"), origin=ModelOrigin.RELEASE)
    assert learned_from(release, scene.tools.store) == {}
    last = version(scene, "c", parent=release.version, case_ids=("2",))
    assert learned_from(last, scene.tools.store) == {"2": None}
