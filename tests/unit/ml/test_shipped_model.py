"""The model that ships with the program: whole, small, and as good as its card says."""

import re
from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume

from dicomnode.ml.evaluation import scores
from dicomnode.ml.inference import engine
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.ml.model import card, package
from dicomnode.ml.training import dataset
from dicomnode.ml.training.dataset import LabelledCase
from dicomnode.ml.training.order import PretrainRecipe
from dicomnode.ml.training.splits import SplitCase, split_cases

FOLDER = Path(__file__).resolve().parents[3] / "models" / "hippocampus"
ROW = re.compile(r"^\| hold-out \(\d+\) \| ([^|]+) \| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+) \|", re.MULTILINE)
CASES = 3


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return engine.load(package.read(FOLDER), device="cpu")


@pytest.fixture(scope="module")
def cases(data_dir: Path) -> tuple[LabelledCase, ...]:
    return tuple(case.read() for case in dataset.open_folder(data_dir / "hippocampus", classes=3).cases)


@pytest.fixture(scope="module")
def text() -> str:
    return (FOLDER / "card.md").read_text(encoding="utf-8")


def test_the_package_is_whole_and_small() -> None:
    found = package.read(FOLDER)

    assert found.card.name == "hippocampus"
    assert [segment.label for segment in found.card.segments] == [
        "Hippocampus anterior",
        "Hippocampus posterior",
    ]
    assert found.plan.modalities == ("MR",)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


def test_the_card_names_version_source_licence_and_limits(model: LoadedModel, text: str) -> None:
    assert model.card.version in text
    for words in (
        "Medical Segmentation Decathlon",
        "Vanderbilt",
        "CC BY-SA 4.0",
        "udacity",
        "not for clinical use",
    ):
        assert words in text


def test_the_card_reports_no_less_than_a_small_network_reaches_on_these_data(text: str) -> None:
    means = {label: float(mean) for label, mean, _, _ in ROW.findall(text)}

    assert means.keys() == {"Hippocampus anterior", "Hippocampus posterior"}
    assert min(means.values()) >= 0.86
    assert np.mean(list(means.values())) >= 0.87


def test_noise_is_segmented_without_complaint(model: LoadedModel) -> None:
    noise = np.random.default_rng(0).normal(300, 40, (20, 24, 22)).astype(np.float32)

    labels = engine.predict(model, Volume(noise, np.eye(4), coordinate_system="PATIENT"))

    assert set(np.unique(labels.array)) <= {0, 1, 2}


def test_hold_out_cases_score_as_the_card_says(
    model: LoadedModel, text: str, cases: tuple[LabelledCase, ...]
) -> None:
    recipe = PretrainRecipe()
    split = split_cases(
        [SplitCase(name=case.name, stratum=case.stratum) for case in cases],
        hold_out_fraction=recipe.hold_out_fraction,
        validation_fraction=recipe.validation_fraction,
        generator=np.random.default_rng(recipe.seed),
    )
    lowest = {label: float(least) for label, _, _, least in ROW.findall(text)}

    assert card.names_sha256(split.hold_out) in text
    chosen = [case for case in cases if case.name in split.hold_out[:CASES]]
    for case in chosen:
        prediction = engine.predict(model, case.image)
        score = scores.score_case(
            case.name,
            prediction.array,
            case.labels,
            segments=model.card.segments,
            spacing_mm=case.image.spacing,
        )
        for item in score.labels:
            assert item.dice >= lowest[item.label] - 0.0005, (case.name, item)


def test_an_image_whose_axes_are_mirrored_in_the_header_is_segmented_as_well(
    model: LoadedModel, cases: tuple[LabelledCase, ...]
) -> None:
    case = cases[0]
    affine = case.image.affine.copy()
    affine[:3, :3] = -affine[:3, :3]
    lying = Volume(case.image.array, affine, coordinate_system="PATIENT")

    labels = engine.predict(model, lying).array

    for index in (1, 2):
        assert scores.dice(labels == index, case.labels == index) > 0.7
