"""Labelled images become a package whose card tells the truth, however often the training is cut off."""

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode import weights
from dicomnode.domain import Segment
from dicomnode.errors import InputError
from dicomnode.ml.model import card, package
from dicomnode.ml.training import pretrain
from dicomnode.ml.training.order import Machine, Order
from dicomnode.ml.training.pretrain import WORK_FOLDER, PretrainReport
from dicomnode.ml.training.processes import joined
from tests.pretrain_builders import ALONE, QUICK, make_blobs, run, small_order, small_plan, small_stage


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blobs")
    make_blobs(folder)
    return folder


@pytest.fixture
def order(blobs: Path, segments: tuple[Segment, ...]) -> Order:
    return small_order(blobs, segments)


def finished(report: PretrainReport | None) -> PretrainReport:
    assert report is not None
    return report


def test_a_package_with_a_card_is_written_and_repeats_bit_for_bit(order: Order, tmp_path: Path) -> None:
    one, two = (finished(run(order, tmp_path / name)) for name in ("one", "two"))

    assert package.read(tmp_path / "one") == one.package
    assert one.package.card.version == two.package.card.version
    text = (tmp_path / "one" / "card.md").read_text()
    assert text.startswith("# blobs\n")
    assert "Made-up blobs." in text
    assert "SGD with Nesterov momentum 0.99, falling (1 - t)^0.9 from 0.01" in text
    assert "Not a medical device, not for clinical use" in text
    assert card.names_sha256(one.split.hold_out) in text
    dices = [item.dice for score in one.hold_out for item in score.labels]
    assert f"| hold-out | mean of the labels | {np.mean(dices):.4f} |" in text
    assert (one.fit.epochs, one.fit.steps, len(one.hold_out), len(one.validation)) == (2, 6, 2, 2)
    left = {path.name for path in (tmp_path / "one").iterdir()}
    assert left == {*package.FILES, "training.csv"}


def test_another_seed_gives_another_model_on_another_split(order: Order, tmp_path: Path) -> None:
    short = replace(QUICK, epochs=1, epoch_steps=1)

    one, two = (
        finished(run(replace(order, recipe=replace(short, seed=seed)), tmp_path / str(seed)))
        for seed in (0, 1)
    )

    assert one.package.card.version != two.package.card.version
    assert one.split != two.split


def test_a_training_that_is_killed_again_and_again_gives_what_an_undisturbed_one_gives(
    order: Order, tmp_path: Path
) -> None:
    recipe = replace(QUICK, epochs=3, average_decay=0.9)
    order = replace(order, recipe=recipe)
    undisturbed = finished(run(order, tmp_path / "undisturbed"))
    every_step = Machine(processes=ALONE, workers=0, threads=1, checkpoint_s=0)

    starts = []
    for kill_after_s in (0.3, 0.2, 0.1):
        victim = multiprocessing.get_context("fork").Process(
            target=run, args=(order, tmp_path / "killed"), kwargs={"machine": every_step}
        )
        victim.start()
        checkpoint = tmp_path / "killed" / WORK_FOLDER / "checkpoint.json"
        while not checkpoint.exists():
            time.sleep(0.01)
        time.sleep(kill_after_s)
        victim.kill()
        victim.join()
        starts.append(victim.exitcode)
    resumed = finished(run(order, tmp_path / "killed", machine=every_step))

    assert -9 in starts
    assert resumed.package.card.version == undisturbed.package.card.version
    assert resumed.fit.losses == undisturbed.fit.losses
    lines = (tmp_path / "killed" / "training.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3"]


def test_asked_to_stop_it_ends_after_the_step_and_goes_on_when_called_again(
    order: Order, tmp_path: Path
) -> None:
    undisturbed = finished(run(order, tmp_path / "undisturbed"))

    assert run(order, tmp_path / "out", stop_after=2) is None
    assert not (tmp_path / "out" / "plan.json").exists()
    resumed = finished(run(order, tmp_path / "out"))

    assert resumed.package.card.version == undisturbed.package.card.version


def test_an_unfinished_training_of_another_kind_is_not_gone_on_with_unless_it_is_thrown_away(
    order: Order, tmp_path: Path
) -> None:
    run(order, tmp_path / "out", stop_after=2)
    other = replace(order, recipe=replace(QUICK, optimiser="adamw"))

    with pytest.raises(InputError, match="--no-resume"):
        run(other, tmp_path / "out")

    pretrain.begin_anew(tmp_path / "out")
    assert finished(run(other, tmp_path / "out")).fit.steps == 6


def test_a_second_run_goes_on_from_the_first_on_the_same_split_only(order: Order, tmp_path: Path) -> None:
    first = finished(run(order, tmp_path / "one"))
    further = replace(order, start_from=tmp_path / "one")

    second = finished(run(further, tmp_path / "two"))

    assert second.split == first.split
    assert second.fit.losses[0] < first.fit.losses[0]
    text = (tmp_path / "two" / "card.md").read_text()
    assert f"- went on from `{first.package.card.version}`, with the same hold-out (" in text
    with pytest.raises(InputError, match="names another hold-out"):
        run(replace(further, recipe=replace(QUICK, seed=1)), tmp_path / "three")


def test_too_few_cases_are_refused(order: Order, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few"):
        run(replace(order, sources=order.sources[:1]), tmp_path / "out")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_learning_makes_the_blobs_visible(
    dimensions: int, blobs: Path, segments: tuple[Segment, ...], tmp_path: Path
) -> None:
    recipe = replace(QUICK, epochs=4, epoch_steps=20, learning_rate=1e-2, optimiser="adamw")
    stage = small_stage(dimensions=dimensions, features=(8, 16, 16))
    order = small_order(blobs, segments, recipe, plan=small_plan(stage))

    report = finished(run(order, tmp_path / "out"))

    assert report.fit.losses[-1] < report.fit.losses[0] - 0.3
    assert np.mean([item.dice for score in report.hold_out for item in score.labels]) > 0.5
    assert weights.is_finite(weights.read(report.package.weights_path))


def test_time_may_limit_a_training_in_place_of_epochs(order: Order, tmp_path: Path) -> None:
    recipe = replace(QUICK, minutes=2 / 60)

    report = finished(run(replace(order, recipe=recipe), tmp_path / "out"))

    assert report.fit.seconds >= 2
    rates = [line.split(",")[-2] for line in (tmp_path / "out" / "training.csv").read_text().splitlines()]
    assert float(rates[-1]) < float(rates[1])


def train_in_group(rank: int, port: int, order: Order, out: Path) -> None:
    """What each process that torchrun starts does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined("cpu") as processes:
        run(order, out, machine=Machine(processes=processes, workers=0, threads=1))


def test_two_processes_give_what_one_gives_with_the_whole_batch(
    order: Order, tmp_path: Path, free_port: int
) -> None:
    alone = finished(run(order, tmp_path / "alone"))

    members = [
        multiprocessing.get_context("fork").Process(
            target=train_in_group, args=(rank, free_port, order, tmp_path / "group")
        )
        for rank in range(2)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(timeout=60)

    assert [member.exitcode for member in members] == [0, 0]
    one, two = (weights.read(tmp_path / name / "weights.safetensors") for name in ("alone", "group"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=2e-6)
    rows = [line.split(",") for line in (tmp_path / "group" / "training.csv").read_text().splitlines()[1:]]
    assert [float(row[2]) for row in rows] == pytest.approx(alone.fit.losses, abs=2e-5)
