"""A folder of labelled NIfTI images becomes a package whose card tells the truth about it."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dicomnode import weights
from dicomnode.domain import Segment
from dicomnode.errors import InputError
from dicomnode.ml.model import card, package
from dicomnode.ml.training.pretrain import PretrainRecipe, PretrainReport, pretrain

QUICK = PretrainRecipe(epochs=2, batch_size=3, filters=(4, 4, 4), average_decay=0.5, about="Made-up blobs.")


@pytest.fixture
def folder(tmp_path: Path, segments: tuple[Segment, ...]) -> Path:
    (tmp_path / "labels.toml").write_text(package.render_labels(segments))
    for index in range(10):
        generator = np.random.default_rng(index)
        labels = np.zeros((10, 11, 12), np.uint8)
        start = generator.integers(2, 5, 3)
        labels[start[0] : start[0] + 4, start[1] : start[1] + 4, start[2] : start[2] + 5] = 1
        labels[start[0] + 2 : start[0] + 4, start[1] : start[1] + 4, start[2] : start[2] + 5] = 2
        image = (generator.normal(0, 5, labels.shape) + 40 * labels).astype(np.float32)
        for kind, array in (("imagesTr", image), ("labelsTr", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / kind / f"blob_{index}.nii.gz")
    return tmp_path


def run(folder: Path, out: str, recipe: PretrainRecipe = QUICK) -> PretrainReport:
    return pretrain(
        folder,
        folder / out,
        name="blobs",
        labels_file=folder / "labels.toml",
        recipe=recipe,
        progress=lambda *_: None,
    )


def test_a_package_with_a_card_is_written_and_repeats_bit_for_bit(folder: Path) -> None:
    one, two = run(folder, "one"), run(folder, "two")

    assert package.read(folder / "one") == one.package
    assert one.package.card.version == two.package.card.version
    assert (one.package.folder / "plan.json").read_bytes() == (two.package.folder / "plan.json").read_bytes()
    text = (folder / "one" / "card.md").read_text()
    assert text.startswith("# blobs\n")
    assert "Made-up blobs." in text
    assert "Not a medical device, not for clinical use" in text
    assert card.names_sha256(one.split.hold_out) in text
    dices = [item.dice for score in one.hold_out for item in score.labels]
    assert f"| hold-out | mean of the labels | {np.mean(dices):.4f} |" in text
    assert (one.fit.epochs, len(one.split.hold_out), len(one.hold_out)) == (2, 2, 2)


def test_another_seed_gives_another_model(folder: Path) -> None:
    other = PretrainRecipe(epochs=1, batch_size=3, filters=(4, 4, 4), seed=1)

    one, two = (
        run(folder, "one", PretrainRecipe(epochs=1, batch_size=3, filters=(4, 4, 4))),
        run(folder, "two", other),
    )

    assert one.package.card.version != two.package.card.version
    assert one.split != two.split


def test_a_name_that_no_model_may_have_is_refused_before_training(folder: Path) -> None:
    with pytest.raises(InputError, match="wrong at name"):
        pretrain(
            folder,
            folder / "out",
            name="Blobs/..",
            labels_file=folder / "labels.toml",
            recipe=QUICK,
            progress=lambda *_: None,
        )

    assert not (folder / "out").exists()


def test_a_second_run_goes_on_from_the_first_on_the_same_split_only(folder: Path) -> None:
    first = run(folder, "one")

    second = run(folder, "two", replace(QUICK, start_from=folder / "one"))

    assert second.split == first.split
    assert second.fit.losses[0] < first.fit.losses[0]
    text = (folder / "two" / "card.md").read_text()
    assert f"- went on from `{first.package.card.version}`, with the same hold-out (" in text
    with pytest.raises(InputError, match="names another hold-out"):
        run(folder, "three", replace(QUICK, start_from=folder / "one", seed=1))


def test_too_few_cases_are_refused(folder: Path) -> None:
    for path in sorted((folder / "imagesTr").iterdir())[1:]:
        path.unlink()

    with pytest.raises(InputError, match="too few"):
        run(folder, "out")


def test_learning_makes_the_blobs_visible(folder: Path) -> None:
    recipe = PretrainRecipe(epochs=25, batch_size=3, filters=(4, 8, 8), average_decay=0.8)

    report = run(folder, "out", recipe)

    assert report.fit.losses[-1] < 0.7 * report.fit.losses[0]
    assert weights.is_finite(weights.read(report.package.weights_path))
