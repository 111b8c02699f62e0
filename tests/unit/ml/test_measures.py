"""Measures of whole cases and their means, worked by hand."""

import math

import numpy as np
import pytest

from dicomnode.ml.evaluation.measures import (
    CaseMeasures,
    LabelMeasures,
    MeasuredLabel,
    Presence,
    measure_case,
    values_of,
)
from dicomnode.ml.evaluation.summary import LabelSummary, estimate, summarise

ORGAN = MeasuredLabel(name="organ", values=(1,))
OTHER = MeasuredLabel(name="other", values=(2,))
SHAPE = (6, 8, 10)


def measure(
    prediction: np.ndarray, truth: np.ndarray, *labels: MeasuredLabel, **options: int
) -> list[LabelMeasures]:
    case = measure_case("c", prediction, truth, labels=labels, spacing_mm=(5.0, 2.0, 1.0), **options)
    return list(case.labels)


def empty() -> np.ndarray:
    return np.zeros(SHAPE, np.uint8)


def test_a_box_that_grew_by_one_row_is_measured_in_millimetres_and_millilitres() -> None:
    truth, prediction = empty(), empty()
    truth[1:3, 1:3, 2:8] = 1
    prediction[1:3, 1:4, 2:8] = 1

    (found,) = measure(prediction, truth, ORGAN)

    # 24 and 36 voxels of 10 mm³ each; the new row is one voxel of 2 mm away.
    assert (found.presence, found.truth_voxels, found.prediction_voxels) == (Presence.BOTH, 24, 36)
    assert found.dice == pytest.approx(2 * 24 / 60)
    assert found.hd95_mm == pytest.approx(2)
    assert (found.truth_ml, found.prediction_ml) == pytest.approx((0.24, 0.36))
    assert found.volume_error_ml == pytest.approx(0.12)
    assert found.volume_error_percent == pytest.approx(50)


def test_each_label_has_its_own_tolerance() -> None:
    truth, prediction = empty(), empty()
    truth[1:3, 1:3, 2:8] = truth[4:5, 1:3, 2:8] = 1
    prediction[1:3, 1:4, 2:8] = prediction[4:5, 1:4, 2:8] = 1

    strict, loose = measure(
        prediction,
        truth,
        MeasuredLabel(name="strict", values=(1,), tolerance_mm=1),
        MeasuredLabel(name="loose", values=(1,), tolerance_mm=2),
    )

    assert (strict.tolerance_mm, loose.tolerance_mm) == (1, 2)
    assert strict.surface_dice is not None
    assert 0 < strict.surface_dice < 1
    assert loose.surface_dice == 1.0


def test_missed_invented_and_absent_labels_are_told_apart() -> None:
    truth, prediction = empty(), empty()
    truth[1, 1, 1], prediction[1, 1, 1] = 1, 2

    missed, invented, absent = measure(prediction, truth, ORGAN, OTHER, MeasuredLabel(name="no", values=(3,)))

    assert [one.presence for one in (missed, invented, absent)] == ["missed", "invented", "absent"]
    assert missed.dice == missed.surface_dice == invented.dice == invented.surface_dice == 0
    assert missed.hd95_mm == invented.hd95_mm == math.inf
    assert (missed.volume_error_percent, invented.volume_error_percent) == (-100, None)
    assert invented.volume_error_ml == pytest.approx(0.01)
    assert absent.dice is absent.hd95_mm is absent.surface_dice is absent.volume_error_percent is None
    assert absent.volume_error_ml == 0


def test_two_values_are_measured_as_one_region() -> None:
    truth, prediction = empty(), empty()
    truth[1:3, 1:3, 1:3], truth[1:3, 1:3, 3:5] = 1, 2
    prediction[1:3, 1:3, 1:5] = 2

    whole, first = measure(prediction, truth, MeasuredLabel(name="whole", values=(1, 2)), ORGAN)

    assert (whole.dice, whole.hd95_mm, whole.surface_dice) == (1.0, 0.0, 1.0)
    assert first.presence is Presence.MISSED


def test_what_is_predicted_where_the_truth_is_not_known_does_not_count() -> None:
    truth, prediction = empty(), empty()
    truth[1:3, 1:3, 1:3] = prediction[1:3, 1:3, 1:3] = 1
    truth[4], prediction[4] = 9, 1

    (counted,) = measure(prediction, truth, ORGAN)
    (left_out,) = measure(prediction, truth, ORGAN, ignored=9)

    assert counted.prediction_voxels == 8 + 80
    assert (left_out.dice, left_out.prediction_voxels) == (1.0, 8)
    assert prediction[4].all()


def test_a_slice_is_measured_in_its_plane_whatever_its_thickness() -> None:
    truth, prediction = np.zeros((2, 60, 1, 60), np.uint8)
    truth[5:45, 0, 5:45] = prediction[5:45, 0, 5:46] = 1

    case = measure_case("c", prediction, truth, labels=[ORGAN], spacing_mm=(1, 50, 0.5))

    # The new column is 40 of 158 pixels of the contour, 0.5 mm away, though only 2.4 % of all pixels.
    assert case.labels[0].hd95_mm == pytest.approx(0.5)
    assert case.labels[0].truth_ml == pytest.approx(40 * 40 * 25 / 1000)
    assert case.spacing_mm == (1, 50, 0.5)


def test_one_voxel_can_be_measured_on_a_grid_of_one_voxel() -> None:
    voxel = np.ones((1, 1, 1), np.uint8)

    assert measure_case("c", voxel, voxel, labels=[ORGAN], spacing_mm=(1, 1, 1)).labels[0].dice == 1.0


def test_values_of_a_map_are_listed_without_the_background() -> None:
    labels = empty()
    labels[0, 0, 0], labels[5, 7, 9] = 7, 2

    assert values_of(labels) == (2, 7)
    assert values_of(empty()) == ()


def case_of(dice: float | None, *, hd95_mm: float | None = 2.0, error: float | None = 10.0) -> CaseMeasures:
    presence = Presence.ABSENT if dice is None else Presence.BOTH if dice else Presence.MISSED
    found = LabelMeasures(
        label="organ",
        presence=presence,
        dice=dice,
        hd95_mm=hd95_mm,
        surface_dice=dice,
        tolerance_mm=1.0,
        truth_voxels=0,
        prediction_voxels=0,
        truth_ml=0.0,
        prediction_ml=0.0,
        volume_error_ml=0.0,
        volume_error_percent=error,
    )
    return CaseMeasures(case_id="c", spacing_mm=(1, 1, 1), labels=(found,))


def summary_of(cases: list[CaseMeasures], *, seed: int = 0, resamples: int = 2000) -> LabelSummary:
    generator = np.random.default_rng(seed)
    return summarise(cases, labels=[ORGAN], resamples=resamples, generator=generator)[0]


def test_means_are_of_the_cases_that_have_the_figure() -> None:
    cases = [
        case_of(0.9, hd95_mm=2.0, error=10.0),
        case_of(0.7, hd95_mm=4.0, error=-30.0),
        case_of(0.0, hd95_mm=math.inf, error=-100.0),
        case_of(None, hd95_mm=None, error=None),
    ]

    found = summary_of(cases)

    assert (found.cases, found.missed, found.invented, found.absent) == (3, 1, 0, 1)
    assert (found.dice.cases, found.dice.mean) == (3, pytest.approx(1.6 / 3))
    assert (found.hd95_mm.cases, found.hd95_mm.mean, found.hd95_median_mm) == (2, 3.0, 4.0)
    assert (found.volume_error_percent.mean, found.absolute_volume_error_percent.mean) == (-40, 140 / 3)


def test_a_label_that_is_mostly_missed_has_no_median_distance() -> None:
    found = summary_of([case_of(0.9), *[case_of(0.0, hd95_mm=math.inf)] * 2])

    assert (found.hd95_mm.mean, found.hd95_median_mm) == (2.0, math.inf)


def test_a_label_that_occurs_nowhere_has_no_figures() -> None:
    found = summary_of([case_of(None, hd95_mm=None, error=None)])

    assert (found.cases, found.absent, found.dice.mean, found.hd95_median_mm) == (0, 1, None, None)


def test_the_interval_of_two_cases_reaches_from_one_to_the_other() -> None:
    found = summary_of([case_of(0.2), case_of(0.6)]).dice

    # Of four equally likely resamples one has the first case twice, one the second.
    assert (found.mean, found.lower, found.upper) == pytest.approx((0.4, 0.2, 0.6))


def test_one_case_has_no_interval_and_none_is_made_unless_asked_for() -> None:
    assert summary_of([case_of(0.9)]).dice.lower is None
    assert summary_of([case_of(0.9), case_of(0.7)], resamples=0).dice.lower is None


def test_the_interval_depends_on_the_generator_alone() -> None:
    cases = [case_of(value) for value in np.random.default_rng(5).random(9)]

    assert summary_of(cases, seed=1) == summary_of(cases, seed=1)
    assert summary_of(cases, seed=1) != summary_of(cases, seed=2)


def test_the_interval_holds_the_true_mean_about_as_often_as_the_page_says() -> None:
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(300):
        found = estimate(generator.beta(18.3, 2.03, 20).tolist(), resamples=400, generator=generator)
        assert found.lower is not None
        assert found.upper is not None
        hits += found.lower <= 18.3 / 20.33 <= found.upper

    # docs/evaluation.md: 93 of 100 with 20 cases; three standard errors of 300 tries are 0.045.
    assert hits / 300 == pytest.approx(0.93, abs=0.045)
