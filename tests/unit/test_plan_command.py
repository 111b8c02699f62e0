"""``dicomnode plan``: a table for people, and a file that a training takes."""

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from dicomnode.cli.planning import plan
from dicomnode.errors import InputError
from dicomnode.ml.planning import planned
from tests.pretrain_builders import make_blobs

app = typer.Typer()
app.command()(plan)


def run(folder: Path, *options: str, out: str = "plan.json") -> Result:
    return CliRunner().invoke(
        app, [str(folder), "--out", str(folder / out), *options], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("blobs")
    make_blobs(made, cases=2, enlarged=2)  # 20 x 22 x 24 voxels of 1 mm
    return made


def test_a_folder_is_measured_and_planned_for(folder: Path) -> None:
    shown = run(folder, "--modality", "CT")

    assert shown.exit_code == 0
    assert "2 images (CT), turned to HPL; median 24 × 22 × 20 voxels of 1 × 1 × 1 mm" in shown.stdout
    assert "Planned by nnunet for 8 GB" in shown.stdout
    assert "│ 3d_fullres │ 1 × 1 × 1    │ 24 × 22 × 20 │ 24 × 24 × 20 │" in shown.stdout
    planning = planned.parse((folder / "plan.json").read_text())
    assert [one.configuration for one in planning.configurations] == ["3d_fullres", "2d"]
    chosen = planning.choose(None).plan
    assert (chosen.name, chosen.modalities, chosen.classes) == ("plan", ("CT",), 3)
    assert chosen.final.normalisation.method == "clip_and_standardise"
    assert len(planning.fingerprint.cases) == 2


def test_the_labels_of_dataset_json_count(folder: Path) -> None:
    content = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "channel_names": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(content))

    options = ("--planner", "dante", "--memory-gb", "0", "--orientation", "acquired", "--json")
    told = json.loads(run(folder, *options, out="other.json").stdout)

    assert told == json.loads((folder / "other.json").read_text())
    assert (told["planner"], told["memory_gb"]) == ("dante", None)
    made = told["configurations"][0]["plan"]
    assert made["stages"][0]["network"]["classes"] == 4
    assert made["modalities"] == ["CT"]
    assert made["image_extent"]["median_mm"] == [20.0, 22.0, 24.0]


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither images/ with labels/"):
        run(tmp_path)
    assert not (tmp_path / "plan.json").exists()
