"""Training takes the steps of nnU-Net: losses, random changes, learning rate; and torchrun starts it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dicomnode.ml.training import augmentation, objective, pace
from dicomnode.ml.training.augmentation import Geometry
from dicomnode.ml.training.dataset import IGNORED
from tests.pretrain_builders import make_blobs

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SEEDS = range(24)
SOLID = Geometry(dimensions=3, patch_shape=(16, 16, 16), mirror_axes=(0, 1, 2), masks_outside=False)
GEOMETRIES = {
    "solid": SOLID,
    "masked": replace(SOLID, masks_outside=True),
    "thick": replace(SOLID, patch_shape=(4, 16, 16)),
    "flat": Geometry(dimensions=2, patch_shape=(1, 16, 16), mirror_axes=(1, 2), masks_outside=False),
}
Arrays = dict[str, NDArray[np.generic]]


def made() -> Arrays:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (2, 8, 8, 8)).astype(np.uint8)
    unknown = np.where(generator.random(labels.shape) < 0.3, IGNORED, labels).astype(np.uint8)
    given: Arrays = {"labels": labels, "unknown": unknown, "seeds": np.asarray(SEEDS)}
    given["scores"] = generator.normal(size=(2, 3, 8, 8, 8)).astype(np.float32)
    for level, size in enumerate((8, 4, 2)):
        given[f"deep{level}"] = generator.normal(size=(2, 3, size, size, size)).astype(np.float32)
    for kind, geometry in GEOMETRIES.items():
        shape = augmentation.cut_shape(geometry)
        image = generator.normal(size=shape).astype(np.float32)
        truth = (generator.random(shape) < 0.3).astype(np.int16)
        if geometry.masks_outside:
            image[:5] = 0
            truth[:5] = 0
            truth[(image == 0) & (truth == 0)] = -1
        given[f"{kind}_image"], given[f"{kind}_labels"] = image, truth
    given["flat_image"], given["flat_labels"] = given["flat_image"][0], given["flat_labels"][0]
    return given


@pytest.fixture(scope="module")
def given() -> Arrays:
    return made()


@pytest.fixture(scope="module")
def found(nnunet_python: Path, given: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    folder = tmp_path_factory.mktemp("learn")
    np.savez(folder / "given.npz", **given)
    subprocess.run([nnunet_python, HERE / "learn_with_nnunet.py", folder], check=True, timeout=300)
    return dict(np.load(folder / "found.npz"))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("has_unknown", [False, True])
def test_loss_and_gradient_of_classes(
    given: Arrays, found: Arrays, *, batch_dice: bool, has_unknown: bool
) -> None:
    scores = torch.from_numpy(given["scores"]).requires_grad_()
    labels = torch.from_numpy(given["unknown" if has_unknown else "labels"])

    loss = objective.class_loss(scores, labels, batch_dice=batch_dice)
    loss.backward()

    name = f"class_{batch_dice}_{has_unknown}"
    assert float(loss.detach()) == pytest.approx(float(found[name]), abs=1e-5)
    np.testing.assert_allclose(scores.grad, found[f"{name}_gradient"], atol=1e-7)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_and_gradient_of_regions(given: Arrays, found: Arrays, *, batch_dice: bool) -> None:
    scores = torch.from_numpy(given["scores"][:, :2]).contiguous().requires_grad_()

    loss = objective.region_loss(
        scores, torch.from_numpy(given["labels"]), regions=((1, 2), (2,)), batch_dice=batch_dice
    )
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float(found[f"region_{batch_dice}"]), abs=1e-5)
    np.testing.assert_allclose(scores.grad, found[f"region_{batch_dice}_gradient"], atol=1e-7)


def test_loss_over_all_resolutions(given: Arrays, found: Arrays) -> None:
    outputs = [torch.from_numpy(given[f"deep{level}"]) for level in range(3)]
    loss_of = objective.make_objective(regions=(), batch_dice=True, shared=False)

    loss = objective.at_all_resolutions(loss_of, outputs, torch.from_numpy(given["labels"]))

    assert float(loss) == pytest.approx(float(found["deep"]), abs=1e-5)


def test_learning_rate(found: Arrays) -> None:
    np.testing.assert_allclose(
        [0.01 * pace.poly(epoch / 1000) for epoch in (0, 100, 500, 999)], found["poly"]
    )


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_random_changes_from_the_same_seeds(kind: str, given: Arrays, found: Arrays) -> None:
    transform = augmentation.nnunet_transform(GEOMETRIES[kind])

    for seed in SEEDS:
        image, labels = (torch.from_numpy(given[f"{kind}_{what}"].copy()) for what in ("image", "labels"))
        if kind == "flat":
            image, labels = image[None], labels[None]
        np.random.seed(seed)
        torch.manual_seed(seed)
        image, labels = transform(image, labels)
        np.testing.assert_allclose(image.squeeze(), found[f"{kind}_{seed}_image"].squeeze(), atol=1e-5)
        np.testing.assert_array_equal(labels.squeeze(), found[f"{kind}_{seed}_labels"].squeeze())


def test_two_processes_of_torchrun_make_one_package(tmp_path: Path) -> None:
    make_blobs(tmp_path / "data", cases=6, enlarged=2)
    labels = REPOSITORY / "models" / "hippocampus" / "labels.toml"
    words = ["--labels", labels, "--out", tmp_path / "out", "--epochs", "1", "--epoch-steps", "2"]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*torchrun, "-m", "dicomnode", "pretrain", tmp_path / "data", *words, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), check=True, env=environment, cwd=REPOSITORY, timeout=300)

    assert (tmp_path / "out" / "weights.safetensors").is_file()
    assert not (tmp_path / "out" / "training").exists()
