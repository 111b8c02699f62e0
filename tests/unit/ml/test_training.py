"""Tuning on corrections: what was reviewed is learned, what was not leaves no trace."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

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
from dicomnode.ml.training import fit, increment, reviewed
from dicomnode.ml.training.fit import Batch, Learner, TrainingDivergedError
from dicomnode.ml.training.increment import RECIPES
from dicomnode.ml.training.reviewed import TrainingCase

DAFNE = RECIPES["dafne"]


def never() -> bool:
    return False


def quiet(epoch: int, epochs: int, loss: float, seconds: float) -> None:
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


def tune(
    tiny: ModelPackage, cases: list[TrainingCase], recipe: increment.Recipe = DAFNE, seed: int = 0
) -> tuple[weights.Tensors, fit.FitReport]:
    return increment.train_increment(
        tiny, cases, recipe, seed=seed, should_stop=never, progress=quiet, device="cpu"
    )


def test_the_dafne_recipe_is_as_published() -> None:
    optimizer = DAFNE.optimizer([nn.Parameter(torch.zeros(1))])
    settings = optimizer.param_groups[0]

    assert isinstance(optimizer, torch.optim.Adam)
    assert (settings["lr"], settings["betas"], settings["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    assert settings["amsgrad"]
    assert (DAFNE.epochs, DAFNE.batch_size, DAFNE.flip_axes) == (5, 5, ())


def test_a_report_counts_epochs_steps_slices_and_patients(tiny: ModelPackage, case: TrainingCase) -> None:
    some = replace(case, slice_weights=np.array([[1, 1, 0] + [0] * 7, [0, 1, 1] + [0] * 7], np.float32))
    seen: list[tuple[int, int]] = []

    _, report = increment.train_increment(
        tiny,
        [case, some, replace(some, patient_key="other")],
        DAFNE,
        seed=0,
        should_stop=never,
        progress=lambda epoch, epochs, *_: seen.append((epoch, epochs)),
        device="cpu",
    )

    assert (report.n_slices, report.n_patients) == (16, 2)
    assert report.steps == 5 * (16 // 5)
    assert (report.epochs, len(report.losses)) == (5, 5)
    assert not report.stopped
    assert not report.unchanged
    assert report.seconds > 0
    assert seen == [(epoch, 5) for epoch in range(1, 6)]


def test_fewer_samples_than_a_batch_still_make_one_step_an_epoch(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    few = np.zeros((2, 10), np.float32)
    few[:, 4:6] = 1

    _, report = tune(tiny, [replace(case, slice_weights=few)])

    assert (report.n_slices, report.steps) == (2, 5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls_and_the_case_is_segmented_better(
    name: str, tiny: ModelPackage, case: TrainingCase, make_volume: Callable[..., Volume]
) -> None:
    longer = replace(RECIPES[name], epochs=40, optimizer=partial(torch.optim.Adam, lr=1e-2))

    tensors, report = tune(tiny, [case], longer)
    tuned = package.write(tiny.folder.parent / "tuned", tiny.plan, tiny.card.segments, tensors, "# tuned\n")

    assert report.losses[-1] < 0.5 * report.losses[0]
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
    still = replace(DAFNE, optimizer=partial(torch.optim.SGD, lr=0.0))

    tensors, report = tune(tiny, [case], still)

    assert report.unchanged
    assert weights.is_equal(tensors, weights.read(tiny.weights_path))


def test_training_stops_between_two_batches_when_asked(tiny: ModelPackage, case: TrainingCase) -> None:
    answers = iter([False, False, False, True])

    _, report = increment.train_increment(
        tiny, [case], DAFNE, seed=0, should_stop=lambda: next(answers), progress=quiet, device="cpu"
    )

    assert report.stopped
    assert (report.epochs, report.steps) == (1, 3)


def test_a_loss_that_is_not_finite_raises() -> None:
    net = nn.Conv3d(1, 2, 1)
    batch = Batch(images=torch.full((1, 1, 2, 2, 2), torch.inf), labels=torch.zeros(1, 2, 2, 2))

    def batches(epoch: int) -> Iterable[Batch]:
        return [batch]

    learner = Learner(
        loss=lambda logits, _: logits.mean(), optimizer=torch.optim.SGD(net.parameters(), 0.1), epochs=1
    )
    with pytest.raises(TrainingDivergedError, match="unusable"):
        fit.fit(net, batches, learner, should_stop=never, progress=quiet)


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
    patch = reviewed.cut(volume, volume.trust, volume.centres[0], (8, 8, 8))

    assert len(volume.centres) == 1
    np.testing.assert_array_equal(volume.trust > 0, volume.labels == 1)
    assert int((patch.labels == 1).sum()) == 64
    assert int((patch.weights > 0).sum()) == 64
    assert patch.known.shape == (3, 8, 8, 8)


def test_trust_is_that_of_the_marked_label_and_the_least_where_none_is_marked(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    trust = np.ones((2, 10), np.float32)
    trust[0], trust[1] = 1.0, 0.5

    volume = reviewed.bring(replace(case, slice_weights=trust), tiny.plan)

    assert np.unique(volume.trust[volume.labels == 1]).tolist() == [1.0]
    assert np.unique(volume.trust[volume.labels == 2]).tolist() == [0.5]
    assert np.unique(volume.trust[volume.labels == 0]).tolist() == [0.5]


def test_review_of_coarse_slices_reaches_all_fine_slices_between(
    tiny: ModelPackage, case: TrainingCase
) -> None:
    coarse = replace(case, affine=case.affine @ np.diag([2.0, 1, 1, 1]))
    trust = np.zeros((2, 10), np.float32)
    trust[:, 3] = 1

    volume = reviewed.bring(replace(coarse, slice_weights=trust), tiny.plan)

    assert volume.labels.shape == (20, 11, 12)
    assert np.flatnonzero(volume.trust.any(axis=(1, 2))).tolist() == [6, 7]
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
