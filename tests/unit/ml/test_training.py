"""Tuning on corrections: what was reviewed is learned, what was not leaves no trace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from highdicom import Volume
from torch import nn

from dicomnode import weights
from dicomnode.errors import CorrectionError, GeometryError, ModelFormatError
from dicomnode.ml.evaluation import scores
from dicomnode.ml.inference import engine
from dicomnode.ml.model import network, package
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.training import fit, increment, lessons, lora, recipes, reviewed
from dicomnode.ml.training.course import HISTORY_FILE, Moment
from dicomnode.ml.training.fit import TrainingDivergedError
from dicomnode.ml.training.increment import Lesson, Place
from dicomnode.ml.training.lessons import CaseSource
from dicomnode.ml.training.recipes import RECIPES, Recipe
from dicomnode.ml.training.reviewed import TrainingCase

DAFNE = RECIPES["dafne"]


def never() -> bool:
    return False


def quiet(moment: Moment) -> None:
    """Say nothing."""


@pytest.fixture
def case(make_volume: Callable[..., Volume]) -> TrainingCase:
    image = make_volume((10, 11, 12))
    labels = np.zeros(image.shape, np.uint8)
    bright = image.array > 200
    labels[bright] = 1
    labels[3:][bright[3:]] = 2
    return TrainingCase(
        image=image.array,
        affine=image.affine,
        labels=labels,
        slice_weights=np.ones((2, 10), np.float32),
        patient_key="k",
    )


def lesson(
    tiny: ModelPackage, cases: list[TrainingCase], recipe: Recipe = DAFNE, *, seed: int = 0, earlier: int = 0
) -> Lesson:
    """The cases as sources, of which the last ones were learned before."""
    sources = tuple(
        CaseSource(name=f"case{number}", version="1", read=lambda case=case: case)  # type: ignore[misc]
        for number, case in enumerate(cases)
    )
    new = sources[: len(sources) - earlier]
    return Lesson(package=tiny, new=new, earlier=sources[len(new) :], recipe=recipe, seed=seed)


def tune(
    tiny: ModelPackage, cases: list[TrainingCase], recipe: Recipe = DAFNE, seed: int = 0
) -> tuple[weights.Tensors, fit.FitReport]:
    with TemporaryDirectory() as folder:
        return increment.train_increment(
            lesson(tiny, cases, recipe, seed=seed),
            Place(folder=Path(folder), device="cpu"),
            should_stop=never,
            watch=quiet,
        )


def trust_of(volume: reviewed.ReviewedVolume) -> np.ndarray:
    return reviewed.trust(volume.labels, volume.slices, volume.slice_weights)


def test_the_dafne_recipe_is_as_published() -> None:
    optimizer = recipes.optimiser_of(DAFNE).make([nn.Parameter(torch.zeros(1))], DAFNE.learning_rate)
    settings = optimizer.param_groups[0]

    assert isinstance(optimizer, torch.optim.Adam)
    assert (settings["lr"], settings["betas"], settings["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    assert settings["amsgrad"]
    assert recipes.optimiser_of(DAFNE).fall(0.9) == 1
    assert (DAFNE.epochs, DAFNE.batch_size, DAFNE.augmented, DAFNE.clip_norm) == (5, 5, False, None)


def test_a_report_counts_epochs_steps_slices_and_patients(tiny: ModelPackage, case: TrainingCase) -> None:
    some = replace(case, slice_weights=np.array([[1, 1, 0] + [0] * 7, [0, 1, 1] + [0] * 7], np.float32))
    seen: list[Moment] = []

    with TemporaryDirectory() as folder:
        _, report = increment.train_increment(
            lesson(tiny, [case, some, replace(some, patient_key="other")]),
            Place(folder=Path(folder), device="cpu"),
            should_stop=never,
            watch=seen.append,
        )
        lines = (Path(folder) / HISTORY_FILE).read_text().splitlines()

    assert (report.n_slices, report.n_patients) == (16, 2)
    assert report.steps == 5 * (16 // 5)
    assert (report.epochs, len(report.losses)) == (5, 5)
    assert not report.stopped
    assert not report.unchanged
    assert report.seconds > 0
    assert [moment.share for moment in seen] == [step / 15 for step in range(1, 16)]
    assert [moment.history[-1].epoch for moment in seen if moment.is_epoch_end] == [1, 2, 3, 4, 5]
    assert lines[0].startswith("epoch,steps,loss,validation_loss,dice Front,")
    assert len(lines) == 6


def test_fewer_samples_than_a_batch_still_make_one_step_an_epoch(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    few = np.zeros((2, 10), np.float32)
    few[:, 4:6] = 1

    _, report = tune(tiny, [replace(case, slice_weights=few)])

    assert (report.n_slices, report.steps) == (2, 5)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"head"}))
def test_the_loss_falls_and_the_case_is_segmented_better(
    name: str, tiny: ModelPackage, case: TrainingCase, make_volume: Callable[..., Volume]
) -> None:
    longer = replace(
        RECIPES[name], epochs=30, optimiser="adam", learning_rate=2e-2, falling=False, samples_per_case=None
    )

    tensors, report = tune(tiny, [case], longer)
    tuned = package.write(tiny.folder.parent / "tuned", tiny.plan, tiny.card.segments, tensors, "# tuned\n")

    assert report.losses[-1] < 0.6 * report.losses[0]
    image = make_volume((10, 11, 12))
    before, after = (
        scores.dice(engine.predict(engine.load(model, device="cpu"), image).array > 0, case.labels > 0)
        for model in (tiny, tuned)
    )
    assert after > before + 0.2


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    first, _ = tune(tiny, [case])
    second, _ = tune(tiny, [case])
    third, _ = tune(tiny, [case], seed=1)

    assert weights.is_equal(first, second)
    assert not weights.is_equal(first, third)
    assert weights.schema_of(first) == network.model_schema(tiny.plan)


def test_labels_on_slices_that_nobody_reviewed_leave_no_trace(tiny: ModelPackage, case: TrainingCase) -> None:
    half = np.ones((2, 10), np.float32)
    half[:, 5:] = 0
    other = case.labels.copy()
    other[5:] = 1

    one, _ = tune(tiny, [replace(case, slice_weights=half)])
    two, _ = tune(tiny, [replace(case, slice_weights=half, labels=other)])

    assert weights.is_equal(one, two)


def test_a_label_that_the_correction_does_not_hold_leaves_no_trace(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    only_first = np.ones((2, 10), np.float32)
    only_first[1] = 0
    other = case.labels.copy()
    other[other == 2] = 0

    one, _ = tune(tiny, [replace(case, slice_weights=only_first)])
    two, _ = tune(tiny, [replace(case, slice_weights=only_first, labels=other)])

    assert weights.is_equal(one, two)


def test_a_recipe_that_changes_nothing_is_reported_as_unchanged(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    still = replace(DAFNE, learning_rate=0.0)

    tensors, report = tune(tiny, [case], still)

    assert report.unchanged
    assert weights.is_equal(tensors, weights.read(tiny.weights_path))


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_that_is_stopped_again_and_again_gives_the_same_weights(
    name: str, tiny: ModelPackage, case: TrainingCase, tmp_path: Path
) -> None:
    wanted = lesson(
        tiny, [case, replace(case, patient_key="o")], replace(RECIPES[name], epochs=3), seed=4, earlier=1
    )
    whole, _ = increment.train_increment(
        wanted, Place(folder=tmp_path / "whole", device="cpu"), should_stop=never, watch=quiet
    )

    stops, steps = 0, 0
    while True:
        tensors, report = increment.train_increment(
            wanted, Place(folder=tmp_path / "parts", device="cpu"), should_stop=lambda: True, watch=quiet
        )
        if not report.stopped:
            break
        stops += 1
        assert report.steps == steps + 1 or stops <= 2  # the cases are made ready first, one in each call
        steps = report.steps

    assert report.steps == steps + 1
    assert weights.is_equal(tensors, whole)
    assert len(report.losses) == 3
    tables = [(tmp_path / part / HISTORY_FILE).read_text().splitlines() for part in ("whole", "parts")]
    without_seconds = [[line.rpartition(",")[0] for line in table] for table in tables]
    assert without_seconds[0] == without_seconds[1]


def test_what_another_training_left_in_the_folder_is_not_gone_on_with(
    tiny: ModelPackage, case: TrainingCase, tmp_path: Path
) -> None:
    place = Place(folder=tmp_path, device="cpu")
    increment.train_increment(lesson(tiny, [case]), place, should_stop=lambda: True, watch=quiet)
    expected, _ = tune(tiny, [case], seed=1)

    tensors, report = increment.train_increment(
        lesson(tiny, [case], seed=1), place, should_stop=never, watch=quiet
    )

    assert report.epochs == 5
    assert weights.is_equal(tensors, expected)


def test_only_the_last_layer_learns_where_the_recipe_says_so(tiny: ModelPackage, case: TrainingCase) -> None:
    before = weights.read(tiny.weights_path)

    after, _ = tune(tiny, [case], replace(RECIPES["head"], epochs=2))

    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("output_block") for name in changed)


def test_low_rank_changes_have_low_rank(tiny: ModelPackage, case: TrainingCase) -> None:
    before = weights.read(tiny.weights_path)
    recipe = replace(RECIPES["lora"], epochs=2, lora=lora.LoraSettings(rank=1, alpha=2.0))

    after, _ = tune(tiny, [case], recipe)

    assert weights.schema_of(after) == weights.schema_of(before)
    name = next(name for name, tensor in before.items() if tensor.dim() == 5 and min(tensor.shape[:2]) > 1)
    change = (after[name] - before[name]).flatten(2).movedim(-1, 0)  # (K, out, in)
    assert float(change.abs().max()) > 0
    assert torch.linalg.matrix_rank(change, atol=1e-6).max() == 1


def test_cases_learned_before_are_repeated_in_the_share_that_the_recipe_says(
    tiny: ModelPackage, case: TrainingCase, tmp_path: Path
) -> None:
    recipe = replace(RECIPES["full"], samples_per_case=4, replay=0.5, batch_size=2)
    new, earlier = (
        lessons.keep(
            [CaseSource(name=name, version="1", read=lambda: case)], tiny.plan, tmp_path, balanced=False
        )
        for name in ("new", "earlier")
    )

    samples = lessons.Samples(
        new=new,
        earlier=earlier,
        recipe=recipe,
        patch_shape=tiny.plan.final.patch_shape,
        mirror_axes=(),
        classes=3,
        seed=0,
    )

    assert samples.epoch_samples == (4, 4)
    assert samples.epoch_steps == 4
    assert replace(samples, earlier=()).epoch_samples == (4, 0)


def test_a_case_of_half_trust_weighs_half_and_one_of_none_is_left_out(
    tiny: ModelPackage, case: TrainingCase, tmp_path: Path
) -> None:
    half, none = (
        CaseSource(name=str(trust), version="1", read=lambda: case, trust=trust) for trust in (0.5, 0.0)
    )

    (kept,) = lessons.keep([half, none], tiny.plan, tmp_path, balanced=False)

    assert kept.name == "0.5"
    assert np.unique(kept.volume.slice_weights).tolist() == [0.5]


def test_half_of_the_way_is_half_of_the_change(tiny: ModelPackage, case: TrainingCase) -> None:
    before = weights.read(tiny.weights_path)
    whole, _ = tune(tiny, [case], replace(DAFNE, epochs=1))

    half, _ = tune(tiny, [case], replace(DAFNE, epochs=1, kept_share=0.5))

    for name, tensor in half.items():
        torch.testing.assert_close(tensor, (before[name] + whole[name]) / 2)


def test_what_holds_the_weights_makes_them_move_less(tiny: ModelPackage, case: TrainingCase) -> None:
    before = weights.read(tiny.weights_path)
    free = replace(RECIPES["full"], epochs=3, augmented=False)

    def moved(recipe: Recipe) -> float:
        with TemporaryDirectory() as folder:
            after, _ = increment.train_increment(
                lesson(tiny, [case, case], recipe, earlier=1),
                Place(folder=Path(folder), device="cpu"),
                should_stop=never,
                watch=quiet,
            )
        return weights.norm(weights.delta(after, before))

    loose = moved(free)
    assert moved(replace(free, proximal=1000.0)) < 0.9 * loose
    assert moved(replace(free, ewc=1e6)) < 0.9 * loose


def test_a_loss_that_is_not_finite_raises(tiny: ModelPackage, case: TrainingCase) -> None:
    with pytest.raises(TrainingDivergedError, match="unusable"):
        tune(tiny, [case], replace(DAFNE, learning_rate=1e30))


def test_cases_without_review_or_with_wrong_shapes_are_refused(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    faults = {
        "reviewed slice": replace(case, slice_weights=np.zeros((2, 10), np.float32)),
        r"\(2, 10\) is expected": replace(case, slice_weights=np.ones((2, 9), np.float32)),
        "finite": replace(case, slice_weights=np.full((2, 10), -1, np.float32)),
        "different grids": replace(case, labels=case.labels[1:]),
        "holds? class 7": replace(case, labels=np.full_like(case.labels, 7)),
    }
    for message, fault in faults.items():
        with pytest.raises(CorrectionError, match=message):
            tune(tiny, [fault])
    with pytest.raises(CorrectionError, match="None of the 0 cases"):
        tune(tiny, [])
    with pytest.raises(GeometryError):
        tune(tiny, [replace(case, affine=np.zeros((4, 4)))])


@pytest.mark.parametrize("orientation", ["HPL", "LPH", "AFR", "RHP"])
def test_a_patch_is_centred_on_its_slice_whatever_the_orientation(
    orientation: str, tiny: ModelPackage, case: TrainingCase
) -> None:
    turned = Volume(case.image, case.affine, coordinate_system="PATIENT").to_patient_orientation(orientation)
    labels = np.zeros(turned.shape, np.uint8)
    labels[6] = 1
    only_sixth = np.zeros((2, turned.shape[0]), np.float32)
    only_sixth[:, 6] = 1
    turned_case = replace(
        case, image=turned.array, affine=turned.affine, labels=labels, slice_weights=only_sixth
    )

    volume = reviewed.bring(turned_case, tiny.plan)
    patch = reviewed.cut(volume, volume.centres[0], (8, 8, 8))

    assert len(volume.centres) == 1
    np.testing.assert_array_equal(trust_of(volume) > 0, volume.labels == 1)
    assert int((patch.labels == 1).sum()) == 64
    assert int((patch.weights > 0).sum()) == 64
    assert patch.known.shape == (3, 8, 8, 8)


def test_trust_is_that_of_the_marked_label_and_the_least_where_none_is_marked(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    trust = np.ones((2, 10), np.float32)
    trust[0], trust[1] = 1.0, 0.5

    volume = reviewed.bring(replace(case, slice_weights=trust), tiny.plan)

    found = trust_of(volume)
    assert np.unique(found[volume.labels == 1]).tolist() == [1.0]
    assert np.unique(found[volume.labels == 2]).tolist() == [0.5]
    assert np.unique(found[volume.labels == 0]).tolist() == [0.5]


def test_review_of_coarse_slices_reaches_all_fine_slices_between(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    coarse = replace(case, affine=case.affine @ np.diag([2.0, 1, 1, 1]))
    trust = np.zeros((2, 10), np.float32)
    trust[:, 3] = 1

    volume = reviewed.bring(replace(coarse, slice_weights=trust), tiny.plan)

    assert volume.labels.shape == (20, 11, 12)
    assert np.flatnonzero(trust_of(volume).any(axis=(1, 2))).tolist() == [6, 7]
    assert volume.centres[0][0] == pytest.approx(6.5)


def test_a_model_of_several_networks_is_not_tuned(tiny: ModelPackage, case: TrainingCase) -> None:
    stage = replace(tiny.plan.final, members=2)
    single = weights.read(tiny.weights_path)
    tensors = {
        f"stage0.member{member}.{name}": tensor.clone()
        for member in range(2)
        for name, tensor in single.items()
    }
    folds = package.write(
        tiny.folder.parent / "folds",
        replace(tiny.plan, stages=(stage,)),
        tiny.card.segments,
        tensors,
        "# two folds\n",
    )

    with pytest.raises(ModelFormatError, match="consists of 2 networks"):
        tune(folds, [case])
