"""`dicomnode train`: what it says, and that a training which is killed harms nothing."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.domain import JobKind, ModelOrigin, ModelState, Split
from dicomnode.node import opened_tools
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import ModelRecord
from tests.conftest import take_free_port
from tests.federation_builders import Clock
from tests.pipeline_builders import BACK, FRONT, MODEL, Scene, mr_series, viewer_seg, write_tiny

from .site import ENVIRONMENT, Site, command, dicomnode, write_config

SETTINGS = """
minimum_corrected_slices = 1
minimum_patients = 1
minimum_hold_out_cases = 1
recipe = "lora"
[models]
folder = "{models}"
[[routes]]
name = "tiny"
model = "tiny"
[routes.where]
slices = {{ min = 6 }}
"""
LIMIT_S = 90.0


def correct(scene: Scene, side: Split, *, number: int, seed: int) -> None:
    series = mr_series(seed, patient_id=scene.patient_on(side, number=number))
    scene.segment(series)
    masks = scene.found(series)
    masks[FRONT][3:5] = masks[BACK][3:5] = False
    assert scene.correct(viewer_seg(series, masks)).case_id


def make_site(folder: Path) -> Site:
    """A site with a small model and corrections of five patients that nothing was learned from yet."""
    write_tiny(folder / "packages" / MODEL)
    site = write_config(
        folder / "node",
        port=take_free_port(),
        web_port=take_free_port(),
        routes=SETTINGS.format(models=folder / "packages"),
    )
    with opened_tools(site.settings) as tools:
        clock = Clock()
        scene = Scene(folder=folder, clock=clock, tools=replace(tools, now=clock))
        for number in range(3):
            correct(scene, Split.TRAINING, number=number, seed=number)
        for number in range(2):
            correct(scene, Split.HOLD_OUT, number=number, seed=10 + number)
    return site


def start_training(site: Site) -> subprocess.Popen[str]:
    words = dicomnode("train", "--now", "--config", site.config)
    return subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def made(tools: Tools) -> list[ModelRecord]:
    return [one for one in tools.store.models.history(MODEL) if one.origin is ModelOrigin.TRAINED]


def kill_when(site: Site, has_come: Callable[[Path], bool]) -> None:
    """Start a training, and kill it as soon as its run folder shows that a point is reached."""
    process = start_training(site)
    until = time.monotonic() + LIMIT_S
    while not any(has_come(folder) for folder in (site.settings.runs_dir / MODEL).glob("*/")):
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"the training ended before it could be killed: {process.communicate()[0]}")
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_training_leaves_the_model_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    with opened_tools(site.settings) as tools:
        in_use = tools.current_record(MODEL)
    untouched = site.settings.node.data_dir.parent / "before"
    shutil.copytree(site.settings.node.data_dir, untouched)

    for point in (
        lambda folder: (folder / "order.json").exists(),
        lambda folder: (folder / "training.csv").exists(),
        lambda folder: folder.name == "scores" and any(folder.glob("*.json")),
    ):
        kill_when(site, point)
        with opened_tools(site.settings) as tools:
            assert tools.current_record(MODEL) == in_use
            assert made(tools) == []
            assert tools.current_model(MODEL).card.weights_sha256 == in_use.weights_sha256
            assert len(tools.store.corrections.untrained_cases(MODEL)) == 3
    process = start_training(site)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    with opened_tools(site.settings) as tools:
        (after_kills,) = made(tools)

    shutil.rmtree(site.settings.node.data_dir)
    shutil.copytree(untouched, site.settings.node.data_dir)
    process = start_training(site)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    with opened_tools(site.settings) as tools:
        (in_one_go,) = made(tools)
    assert after_kills.weights_sha256 == in_one_go.weights_sha256
    assert after_kills.state == in_one_go.state
    assert after_kills.case_ids == in_one_go.case_ids


def test_a_dry_run_says_what_would_be_learned_and_changes_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    (told,) = site.ask("train", "--dry-run")
    words = command("train", "--dry-run", "--config", str(site.config)).stdout

    assert (told["new_cases"], told["earlier_cases"], told["hold_out_cases"]) == (3, 0, 2)
    assert told["is_due"]
    assert told["recipe"] == "lora"
    assert "low-rank" in words
    with site.store() as store:
        assert store.jobs.list(kind=JobKind.TRAIN_INCREMENT) == ()
        assert len(store.models.history(MODEL)) == 1


def test_a_training_at_once_says_what_became_of_it(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    words = command("train", "--now", "--config", str(site.config)).stdout
    (again,) = site.ask("train", "--now", "--model", MODEL)

    with site.store() as store:
        (trained,) = [r for r in store.models.history(MODEL) if r.origin is ModelOrigin.TRAINED]
    assert trained.version in words
    assert "learned from 24 slices of 3 patients in 10 epochs" in words
    assert "Dice" in words
    assert (Path(trained.run_folder) / "curves.png").is_file()
    assert again["trained"] is (trained.state is ModelState.INCONCLUSIVE)
    assert command("train", "--model", "liver", "--config", str(site.config)).exit_code != 0
