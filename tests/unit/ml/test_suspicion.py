"""Suspicious corrections: figures by hand on boxes, verdicts on made-up organs and on real ones."""

from dataclasses import replace
from math import log
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.errors import CorrectionError
from dicomnode.ml.evaluation.disagreement import CaseFigures, SuspectCase, measure
from dicomnode.ml.evaluation.suspicion import Suspicion, Usual, judge, references_of, suspect

Labels = NDArray[np.uint8]
Floats = NDArray[np.float32]
SHAPE = (20, 30, 26)


def box(start: tuple[int, int, int], stop: tuple[int, int, int], value: int = 1) -> Labels:
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(*pair) for pair in zip(start, stop, strict=True))] = value
    return labels


def case(
    correction: Labels,
    prediction: Labels,
    *,
    image: Floats | None = None,
    known: NDArray[np.float32] | None = None,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> SuspectCase:
    return SuspectCase(
        case_id="one",
        image=np.zeros(correction.shape, np.float32) if image is None else image,
        correction=correction,
        prediction=prediction,
        slice_weights=np.ones((2, len(correction)), np.float32) if known is None else known,
        spacing_mm=spacing_mm,
    )


def only(given: SuspectCase) -> Suspicion:
    (found,) = suspect([given], references=None)
    return found


@pytest.fixture(scope="module")
def organ() -> tuple[Floats, Labels]:
    """A bright ellipsoid in a noisy image, its front half label 1 and its back half label 2."""
    position = [axis - middle for axis, middle in zip(np.indices(SHAPE), (9.5, 14.5, 12.5), strict=True)]
    inside = (position[0] / 6) ** 2 + (position[1] / 10) ** 2 + (position[2] / 7) ** 2 <= 1
    labels = np.where(inside, np.where(position[1] < 0, 1, 2), 0).astype(np.uint8)
    noise = np.random.default_rng(1).normal(0, 10, SHAPE)
    return (100 + 100 * inside + noise).astype(np.float32), labels


def moved(labels: Labels, voxels: tuple[int, int, int]) -> Labels:
    return np.asarray(ndimage.shift(labels, voxels, order=0), np.uint8)


def eroded(labels: Labels, voxels: int) -> Labels:
    found = np.zeros_like(labels)
    for index in (1, 2):
        found[ndimage.binary_erosion(labels == index, iterations=voxels)] = index
    return found


def dilated(labels: Labels, voxels: int) -> Labels:
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distance <= voxels, labels[tuple(nearest)], 0).astype(np.uint8)


def exchanged(labels: Labels) -> Labels:
    return np.array([0, 2, 1], np.uint8)[labels]


def bent(labels: Labels, generator: np.random.Generator, *, dice: float) -> Labels:
    """Displace the borders smoothly and at random, as far as leaves this Dice."""
    fields = [ndimage.gaussian_filter(generator.standard_normal(labels.shape), 3) for _ in range(3)]
    bends = np.stack([field / field.std() for field in fields])
    grid = np.indices(labels.shape).astype(np.float64)
    low, high = 0.0, 6.0
    for _ in range(6):
        middle = (low + high) / 2
        found = ndimage.map_coordinates(labels, grid + middle * bends, order=0, mode="nearest")
        shared, marked = np.sum((found == labels) & (labels > 0)), np.sum(found > 0) + np.sum(labels > 0)
        is_near = 2 * shared / marked > dice
        low, high = (middle, high) if is_near else (low, middle)
    return np.asarray(found, np.uint8)


def test_a_shift_is_given_in_millimetres_from_the_result_to_the_correction() -> None:
    prediction = box((6, 10, 8), (12, 18, 16))
    correction = box((7, 8, 11), (13, 16, 19))  # 1 slice up, 2 rows back, 3 columns on

    shift = measure(case(correction, prediction, spacing_mm=(2.0, 1.0, 0.5))).shift

    assert shift is not None
    assert shift.offset_mm == (2.0, -2.0, 1.5)
    assert shift.shifted_dice == 1.0
    assert shift.dice == pytest.approx(5 * 6 * 5 / (6 * 8 * 8))


def test_a_surface_two_voxels_inside_has_an_offset_of_minus_two_without_spread() -> None:
    outer, inner = box((4, 4, 4), (16, 16, 16)), box((6, 6, 6), (14, 14, 14))

    smaller, larger = (measure(case(*pair)).labels[0] for pair in ((inner, outer), (outer, inner)))

    assert (smaller.offset_mm, smaller.spread_mm) == (-2.0, 0.0)
    assert (smaller.correction_voxels, smaller.prediction_voxels) == (8**3, 12**3)
    assert larger.offset_mm is not None
    assert larger.offset_mm > 2  # from corners and edges it is farther to the inner box
    assert smaller.dice == 2 * 8**3 / (8**3 + 12**3)


def test_only_known_slices_count_and_where_the_review_ends_is_no_surface() -> None:
    outer, inner = box((0, 4, 4), (20, 16, 16)), box((0, 6, 6), (20, 14, 14))
    known = np.zeros((2, 20), np.float32)
    known[0, 8:11] = 0.5

    label, *others = measure(case(inner, outer, known=known)).labels

    assert not others  # label 2 is known nowhere
    assert (label.correction_voxels, label.prediction_voxels) == (3 * 8 * 8, 3 * 12 * 12)
    assert label.reviewed_voxels == 3 * SHAPE[1] * SHAPE[2]
    assert (label.offset_mm, label.spread_mm) == (-2.0, 0.0)


def test_a_correction_on_unreviewed_slices_is_not_held_against_anybody() -> None:
    prediction = box((4, 8, 8), (16, 16, 16))
    correction = prediction.copy()
    correction[:8] = 0  # nobody has looked there
    known = np.zeros((2, 20), np.float32)
    known[:, 8:] = 1

    found = only(case(correction, prediction, known=known))

    assert (found.weight, found.reasons) == (1.0, ())
    (label, _) = found.figures.labels
    assert (label.dice, label.offset_mm, label.spread_mm) == (1.0, 0.0, 0.0)


def test_edges_are_compared_with_those_along_the_result() -> None:
    prediction, elsewhere = box((6, 6, 6), (12, 12, 12)), box((6, 20, 6), (12, 26, 12))
    image = 100.0 * prediction.astype(np.float32)

    assert measure(case(prediction, prediction, image=image)).edge_ratio == 1.0
    assert measure(case(elsewhere, prediction, image=image)).edge_ratio == pytest.approx(0, abs=1e-6)
    assert measure(case(elsewhere, prediction)).edge_ratio is None  # an image without any edge
    image[8, 8, 8] = np.nan
    assert measure(case(elsewhere, prediction, image=image)).edge_ratio is None


def test_small_changes_of_a_good_result_are_trusted(organ: tuple[Floats, Labels]) -> None:
    image, truth = organ
    for seed in range(3):
        prediction = bent(truth, np.random.default_rng(seed), dice=0.85)

        found = only(case(truth, prediction, image=image))

        assert (found.weight, found.reasons) == (1.0, ())


def test_exchanged_labels_are_named(organ: tuple[Floats, Labels]) -> None:
    image, truth = organ

    found = only(case(exchanged(truth), truth, image=image))

    assert found.weight == 0
    assert found.reasons == (
        "labels swapped: 1 lies where the model has 2, 2 lies where the model has 1 "
        "(Dice 1.00 if renamed, 0.00 as given)",
    )


def test_without_references_a_shift_that_the_image_does_not_contradict_is_doubtful_only(
    organ: tuple[Floats, Labels],
) -> None:
    _, truth = organ
    shifted = case(moved(truth, (0, 0, 4)), truth)  # in an image without edges
    same = measure(case(truth, truth))

    assert only(shifted).weight == 0.5
    assert judge("one", measure(shifted), references=references_of([same] * 8)).weight == 0


def test_without_references_a_model_that_always_errs_in_one_way_costs_no_right_correction_its_weight(
    organ: tuple[Floats, Labels],
) -> None:
    image, truth = organ
    blurred = np.asarray(ndimage.gaussian_filter(image, 2), np.float32)

    for wrong in (moved(truth, (0, 2, 0)), eroded(truth, 2), dilated(truth, 2)):
        assert only(case(truth, wrong, image=blurred)).weight >= 0.5


def test_one_renamed_label_may_be_the_mistake_of_the_model_and_is_doubtful(
    organ: tuple[Floats, Labels],
) -> None:
    image, truth = organ
    known = np.ones((2, SHAPE[0]), np.float32)
    known[0] = 0  # only label 2 was reviewed

    found = only(case(np.where(truth == 1, 2, 0).astype(np.uint8), truth, image=image, known=known))

    assert found.weight == 0.5
    assert found.reasons[0].startswith("labels swapped: 2 lies where the model has 1")


def test_a_shifted_correction_is_excluded_with_its_shift(organ: tuple[Floats, Labels]) -> None:
    image, truth = organ

    found = only(case(moved(truth, (0, 0, 4)), truth, image=image, spacing_mm=(2.0, 1.0, 1.0)))

    assert found.weight == 0
    assert found.reasons[0].startswith("shifted by (+0.0, +0.0, +4.0) mm along slice, row, column")


def test_a_uniformly_smaller_or_larger_correction_off_the_edges_is_doubted(
    organ: tuple[Floats, Labels],
) -> None:
    image, truth = organ

    smaller = only(case(eroded(truth, 2), truth, image=image))
    larger = only(case(dilated(truth, 2), truth, image=image))

    assert smaller.weight == 0
    assert [reason.split(":")[0] for reason in smaller.reasons] == ["label 1 eroded", "label 2 eroded"]
    assert larger.weight < 0.5
    assert {reason.split(":")[0] for reason in larger.reasons} <= {"label 1 dilated", "label 2 dilated"}


@pytest.mark.parametrize("wrong", [lambda labels: moved(labels, (0, 3, 0)), lambda labels: eroded(labels, 2)])
def test_a_correction_on_the_edges_of_the_image_is_trusted_however_far_the_model_is(
    organ: tuple[Floats, Labels], wrong: object
) -> None:
    assert callable(wrong)
    image, truth = organ

    found = only(case(truth, wrong(truth), image=image))

    assert (found.weight, found.reasons) == (1.0, ())
    assert found.figures.edge_ratio is not None
    assert found.figures.edge_ratio > 1.2


def test_marks_far_from_the_result_and_from_all_edges_are_excluded(organ: tuple[Floats, Labels]) -> None:
    image, truth = organ
    correction = truth.copy()
    correction[truth == 1] = 0
    correction[2:7, 1:4, 1:20] = 1  # a slab in the noise

    found = only(case(correction, truth, image=image))

    assert found.weight == 0
    (reason,) = found.reasons
    assert reason.startswith("label 1 far from the model and from the image: Dice 0.0")


def test_a_structure_that_the_model_missed_is_trusted(organ: tuple[Floats, Labels]) -> None:
    image, truth = organ

    for prediction in (np.zeros_like(truth), np.where(truth == 1, 1, 0).astype(np.uint8)):
        assert only(case(truth, prediction, image=image)).weight == 1.0


def test_nothing_left_is_doubtful_and_nearly_everything_is_excluded(organ: tuple[Floats, Labels]) -> None:
    image, truth = organ

    empty = only(case(np.where(truth == 1, 1, 0).astype(np.uint8), truth, image=image))
    inverted = only(
        case((truth == 0).astype(np.uint8), np.where(truth > 0, 1, 0).astype(np.uint8), image=image)
    )

    assert empty.weight == 0.5
    voxels = int(np.sum(truth == 2))
    assert empty.reasons == (
        f"label 2 empty: reviewed, and nothing left of the {voxels} voxels that the model found",
    )
    assert inverted.weight == 0
    assert inverted.reasons[0].startswith("label 1 nearly everything: 89% of all reviewed voxels")


def test_what_is_usual_is_the_median_and_needs_eight_cases(organ: tuple[Floats, Labels]) -> None:
    _, truth = organ
    same = measure(case(truth, truth))
    label = same.labels[0]
    offsets = (-0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 9.0)  # one of them wrong
    trusted = [
        replace(
            same, labels=(replace(label, offset_mm=offset, correction_voxels=2 * label.prediction_voxels),)
        )
        for offset in offsets
    ]

    usual = references_of(trusted)

    assert references_of(trusted[:7]) is None
    assert usual is not None
    assert usual.cases == 8
    # Median 0.15; the distances from it are 0.05, 0.05, 0.15, 0.15, 0.25, 0.25, 0.35 and 8.85.
    assert usual.labels[0].offset_mm.median == pytest.approx(0.15)
    assert usual.labels[0].offset_mm.deviation == pytest.approx(1.4826 * 0.2)
    assert usual.labels[0].volume_factor == Usual(median=pytest.approx(log(2)), deviation=0.0)
    assert usual.labels[0].empty_share == 0
    assert usual.of_label(2) is None


def test_a_model_that_is_always_too_small_makes_no_correction_suspicious(
    organ: tuple[Floats, Labels],
) -> None:
    image, truth = organ
    flat = np.full_like(image, 100) + np.random.default_rng(2).normal(0, 1, SHAPE).astype(np.float32)
    figures: list[CaseFigures] = []
    for seed in range(9):
        prediction = eroded(bent(truth, np.random.default_rng(seed), dice=0.9), 1)
        figures.append(measure(case(truth, prediction, image=flat)))

    alone = judge("one", figures[-1], references=None)
    among_others = judge("one", figures[-1], references=references_of(figures[:-1]))

    assert alone.weight < 1
    assert all(" dilated: " in reason for reason in alone.reasons), alone.reasons
    assert (among_others.weight, among_others.reasons) == (1.0, ())


def test_an_empty_label_that_trusted_cases_always_have_is_excluded(organ: tuple[Floats, Labels]) -> None:
    _, truth = organ
    same, lacking = (
        measure(case(truth, truth)),
        measure(case(np.where(truth == 1, 1, 0).astype(np.uint8), truth)),
    )

    always, sometimes = (references_of([same] * 9 + [lacking] * count) for count in (0, 1))

    assert judge("one", lacking, references=always).weight == 0
    assert judge("one", lacking, references=sometimes).weight == 1


@settings(max_examples=40)
@given(data=st.data(), shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
def test_every_case_has_full_trust_or_a_reason(data: st.DataObject, shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shares = data.draw(st.sampled_from([(1, 0, 0), (0, 1, 0), (0.9, 0.1, 0), (0.3, 0.3, 0.4)]))
    correction, prediction = (generator.choice(3, shape, p=shares).astype(np.uint8) for _ in range(2))
    known = generator.choice([0, 0.5, 1], (2, shape[0])).astype(np.float32)
    image = generator.normal(size=shape).astype(np.float32)

    found = only(case(correction, prediction, image=image, known=known))

    assert 0 <= found.weight <= 1
    assert bool(found.reasons) == (found.weight < 1)


def test_arrays_that_do_not_fit_are_refused(organ: tuple[Floats, Labels]) -> None:
    image, truth = organ
    with pytest.raises(CorrectionError, match="must have one shape"):
        only(case(truth, truth[1:], image=image))
    with pytest.raises(CorrectionError, match="a row for each of at least 2 labels and 20 columns"):
        only(case(truth, truth, image=image, known=np.ones((1, 20), np.float32)))


REAL_CASES = 20
KINDS = ("clean", "swapped", "shifted", "eroded")


@pytest.fixture(scope="module")
def figures(data_dir: Path) -> dict[str, list[CaseFigures]]:
    """Measure real corrections, right ones and ones made wrong, of a model with a Dice of about 0.85."""
    found: dict[str, list[CaseFigures]] = {kind: [] for kind in KINDS}
    paths = sorted((data_dir / "hippocampus" / "labels").glob("*.nii.gz"))[60 : 60 + REAL_CASES]
    for seed, path in enumerate(paths):
        generator = np.random.default_rng(seed)
        truth = np.ascontiguousarray(nibabel.load(path).get_fdata().T.astype(np.uint8))
        image = nibabel.load(path.parent.parent / "images" / path.name).get_fdata().T.astype(np.float32)
        prediction = bent(truth, generator, dice=0.85)
        way = tuple(int(step) for step in generator.permutation([generator.choice([-3, 3]), 0, 0]))
        corrections = (truth, exchanged(truth), moved(truth, way), eroded(truth, 2))
        for kind, correction in zip(KINDS, corrections, strict=True):
            found[kind].append(measure(case(correction, prediction, image=image)))
    return found


@pytest.fixture(scope="module")
def verdicts(figures: dict[str, list[CaseFigures]]) -> dict[str, list[Suspicion]]:
    """Judge by what is usual among all cases, every fifth of which is wrong."""
    usual = references_of([figures["shifted" if n % 5 == 0 else "clean"][n] for n in range(REAL_CASES)])
    return {
        kind: [judge("one", one, references=usual) for one in measured] for kind, measured in figures.items()
    }


def test_right_corrections_of_real_images_raise_few_alarms(verdicts: dict[str, list[Suspicion]]) -> None:
    alarms = [found.reasons for found in verdicts["clean"] if found.weight < 1]

    assert len(verdicts["clean"]) == REAL_CASES
    assert len(alarms) <= 0.05 * REAL_CASES, alarms


@pytest.mark.parametrize("kind", KINDS[1:])
def test_wrong_corrections_of_real_images_are_found(verdicts: dict[str, list[Suspicion]], kind: str) -> None:
    caught = [found for found in verdicts[kind] if any(kind in reason for reason in found.reasons)]

    assert len(caught) >= 0.9 * REAL_CASES
    assert np.mean([found.weight for found in verdicts[kind]]) <= 0.1


def test_without_references_wrong_corrections_of_real_images_have_half_their_weight_at_most(
    figures: dict[str, list[CaseFigures]],
) -> None:
    weights = {
        kind: np.array([judge("one", one, references=None).weight for one in measured])
        for kind, measured in figures.items()
    }

    assert np.mean(weights["clean"] < 0.5) <= 0.05
    for kind in KINDS[1:]:
        assert np.mean(weights[kind] <= 0.5) >= 0.9
