"""``dicomnode models import`` writes a package and says what a person must know of it."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from dicomnode.cli import importing
from dicomnode.errors import InputError
from dicomnode.ml.model import network, package
from dicomnode.ml.model.architecture import MonaiPlan

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [2, 4], "strides": [2]}
app = typer.Typer()
app.command()(importing.import_model)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A MONAI Bundle that does not turn its images; it has no pickle, so that no child is needed."""
    folder = tmp_path / "bundle"
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    described = {
        "network_def": {"_target_": "UNet", **NETWORK},
        "preprocessing": [{"_target_": "LoadImaged"}, {"_target_": "ScaleIntensityd"}],
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": 8},
    }
    channels = {"0": "background", "1": "spleen", "2": "my own organ"}
    metadata = {"name": "Two", "network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    (folder / "configs" / "inference.json").write_text(json.dumps(described))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.manual_seed(1)
    plan = MonaiPlan(
        network="UNet", classes=3, arguments={"channels": [2, 4], "strides": [2]}, divisors=(2, 2, 2)
    )
    save_file(network.tensors_of(network.build(plan)), folder / "models" / "model.safetensors")
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return " ".join(result.output.split())


def test_a_model_stands_in_the_models_folder_under_its_name(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    words = run(bundle)

    made = package.read(tmp_path / "models" / "two")
    assert f"{made.card.version} in models/two" in words
    assert "1 network(s); every image is first turned so that slices count towards" in words
    assert "note The bundle does not turn its images: it was assumed that they were stored as HAR" in words
    assert "to do 1 of 2 labels have no code: complete models/two/labels.toml" in words


def test_the_options_decide_name_orientation_modality_and_labels(bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.diag([-1.0, -1.0, 1.0, 1.0])), image)
    run(bundle, "--out", tmp_path / "draft")
    labels = tmp_path / "labels.toml"
    text = (tmp_path / "draft" / "labels.toml").read_text()
    labels.write_text(text.replace("My own organ", "Gizzard"))

    told = run(
        bundle,
        "--out",
        tmp_path / "mine",
        "--orientation",
        image,
        "--modality",
        "CT",
        "--labels",
        labels,
        "--json",
    )

    facts = json.loads(told[told.index("{") :])
    made = package.read(tmp_path / "mine")
    assert (made.card.name, made.plan.modalities) == ("mine", ("CT",))
    assert made.plan.orientation == "LPH"  # a bundle counts columns first
    assert facts["version"] == made.card.version
    assert (facts["labels"], facts["unknown"]) == (["Spleen", "Gizzard"], [])


def test_a_wrong_orientation_is_told_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'XYZ' is no orientation"):
        run(bundle, "--out", tmp_path / "mine", "--orientation", "XYZ")

    assert not (tmp_path / "mine").exists()
