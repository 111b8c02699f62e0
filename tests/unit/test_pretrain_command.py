"""``dicomnode pretrain``: folders and plans in, a package, a table and a picture out."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from dicomnode.cli.pretraining import pretrain
from dicomnode.cli.training_watch import Wall, watching
from dicomnode.domain import Code, Segment
from dicomnode.errors import ConfigError, InputError
from dicomnode.ml.model import package, plan
from dicomnode.ml.model.plan import PlanFile
from dicomnode.ml.training.history import EpochRecord
from dicomnode.pipeline.curves import COLOURS, draw
from tests.pretrain_builders import make_blobs, small_plan

app = typer.Typer()
app.command()(pretrain)

ORGAN = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
SHORT = ("--epochs", "2", "--epoch-steps", "2", "--workers", "0", "--batch-size", "2", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Blobs as a raw folder, a label table, and a small plan."""
    make_blobs(tmp_path / "raw")
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "front": 1, "rear": 2}}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(described))
    segments = [
        Segment(
            class_index=index,
            segment_number=index,
            label=label,
            category=ORGAN,
            type=ORGAN,
            type_modifier=None,
            region=None,
            rgb=(index, 2, 3),
        )
        for index, label in ((1, "Front"), (2, "Back"))
    ]
    (tmp_path / "labels.toml").write_text(package.render_labels(segments))
    (tmp_path / "small.json").write_text(plan.render(PlanFile(weights_sha256="0" * 64, plan=small_plan())))
    return tmp_path


def ask(folder: Path, *words: object) -> Result:
    fixed = [folder / "raw", "--labels", folder / "labels.toml", "--out", folder / "out", *SHORT]
    return CliRunner().invoke(app, [str(word) for word in (*fixed, *words)], env={"COLUMNS": "200"})


def test_a_folder_becomes_a_package_with_a_table_and_a_picture(folder: Path) -> None:
    shown = ask(folder, "--plan", folder / "small.json", "--json", "--average", "0.9")

    assert shown.exit_code == 0, shown.output
    assert "class 2: 'rear' in dataset.json, 'Back' in the label table" in shown.stderr
    assert "class 1" not in shown.stderr
    said = json.loads(shown.stdout)
    made = package.read(folder / "out")
    assert (said["version"], made.plan.name) == (made.card.version, "out")
    assert said["hold_out_dice"].keys() == {"Front", "Back"}
    assert "running mean of the weights (0.9 per step)" in (folder / "out" / "card.md").read_text()
    assert Image.open(folder / "out" / "training.png").size == (1120, 640)
    assert len((folder / "out" / "training.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("planner", ["nnunet", "dante"])
def test_a_planner_chooses_the_network_from_the_training_cases(folder: Path, planner: str) -> None:
    make_blobs(folder / "raw", cases=4, enlarged=2)
    for image in (folder / "raw" / "imagesTr").glob("blob_[4-9]*"):
        image.unlink()

    shown = ask(folder, "--planner", planner, "--epochs", "1", "--epoch-steps", "1", "--hold-out", "0.25")

    assert shown.exit_code == 0, shown.output
    made = package.read(folder / "out").plan
    assert made.modalities == ("CT",)
    assert made.final.network.kind == {"nnunet": "plain_conv_unet", "dante": "dynunet"}[planner]
    assert (made.orientation, made.final.spacing_mm) == ("HPL", (1.0, 1.0, 1.0))


def test_plans_that_do_not_fit_are_refused_before_anything_is_trained(folder: Path) -> None:
    regions = small_plan(region_classes=(1, 2))
    (folder / "regions.json").write_text(plan.render(PlanFile(weights_sha256="0" * 64, plan=regions)))
    (folder / "broken.json").write_text("{")

    for name, message in (("regions", "is for 3 classes"), ("broken", "cannot be read as JSON")):
        shown = ask(folder, "--plan", folder / f"{name}.json")
        assert isinstance(shown.exception, InputError)
        assert message in str(shown.exception)
    assert isinstance(ask(folder, "--configuration", "4d").exception, InputError)
    named = ask(folder, "--plan", folder / "small.json", "--name", "No Name")
    assert isinstance(named.exception, InputError)
    assert "wrong at name" in str(named.exception)
    assert not (folder / "out" / "plan.json").exists()


def test_a_folder_and_a_casebook_exclude_each_other(folder: Path) -> None:
    shown = ask(folder, "--casebook", "hippocampus")

    assert isinstance(shown.exception, ConfigError)
    assert "either a folder" in str(shown.exception)


def test_a_signal_ends_a_training_after_its_step_and_the_reading_at_once(tmp_path: Path) -> None:
    wall = Wall(name="m", out=tmp_path, epochs=3, tensorboard=None, is_shown=False)
    before = signal.getsignal(signal.SIGINT)

    with watching(wall) as observer:
        observer.tell("reading", 1, 2)
        assert not observer.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        until = time.monotonic() + 5
        while not observer.should_stop() and time.monotonic() < until:
            time.sleep(0.01)
        assert observer.should_stop()
        with pytest.raises(typer.Abort):
            observer.tell("reading", 2, 2)

    assert signal.getsignal(signal.SIGINT) is before


def record(epoch: int, dice: dict[str, float | None]) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        steps=epoch,
        loss=1 / epoch,
        validation_loss=None,
        dice=dice,
        learning_rate=0.01,
        seconds=epoch,
    )


def test_the_picture_shows_loss_and_dice_with_and_without_validation() -> None:
    history = [record(epoch, {"A": 0.1 * epoch, "B": None, "C": 0.9}) for epoch in range(1, 6)]

    both, alone = draw("m", history), draw("m", [record(epoch, {}) for epoch in range(1, 6)])

    upper = [both.crop((64, 0, 860, 320)), alone.crop((64, 0, 860, 320))]
    assert all(COLOURS[0] in {colour for _, colour in part.getcolors(10**6)} for part in upper)
    lower = both.crop((64, 320, 860, 640))
    assert COLOURS[0] in {colour for _, colour in lower.getcolors(10**6)}
    assert COLOURS[1] not in {colour for _, colour in lower.getcolors(10**6)}
    draw("m", history[:1])
