"""Dice and HD95 against hand-worked shapes; the gate against hand-made scores."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance

from dicomnode.domain import Segment, Verdict
from dicomnode.ml.evaluation import scores as measures
from dicomnode.ml.evaluation.gate import GateReport, gate
from dicomnode.ml.evaluation.scores import CaseScore, LabelAgreement

SHAPE = (12, 14, 16)


def box(start: tuple[int, int, int], stop: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*pair) for pair in zip(start, stop, strict=True))] = True
    return mask


def test_dice_of_hand_worked_masks() -> None:
    one, other, empty = box((0, 0, 0), (2, 2, 2)), box((1, 0, 0), (3, 2, 2)), box((0, 0, 0), (0, 0, 0))

    assert measures.dice(one, other) == 2 * 4 / 16
    assert measures.dice(one, one) == 1.0
    assert measures.dice(one, empty) == 0.0
    assert measures.dice(empty, empty) == 1.0


def test_hd95_of_a_shifted_voxel_is_its_distance_in_millimetres() -> None:
    one, other = box((2, 3, 4), (3, 4, 5)), box((3, 4, 6), (4, 5, 7))

    # One slice of 3 mm, one row of 4 mm, two columns of 6 mm: the space diagonal of 3, 4, 12.
    assert measures.hd95_mm(one, other, spacing_mm=(3, 4, 6)) == pytest.approx(13)


def test_hd95_of_a_shifted_slab_is_the_shift() -> None:
    one, other = box((2, 0, 0), (5, 14, 16)), box((4, 0, 0), (7, 14, 16))

    assert measures.hd95_mm(one, other, spacing_mm=(2.5, 1, 1)) == pytest.approx(5)


def test_hd95_leaves_out_one_stray_voxel_in_a_hundred_where_the_plain_distance_does_not() -> None:
    one = box((2, 0, 0), (3, 10, 10))
    other = one.copy()
    other[10, 5, 5] = True

    assert measures.hd95_mm(other, one, spacing_mm=(1, 1, 1)) == 0.0


def test_hd95_takes_the_larger_of_both_directions() -> None:
    small, large = box((2, 2, 2), (3, 3, 3)), box((2, 2, 2), (3, 3, 12))

    # From the row of ten voxels 0 to 9 columns away, the 95th percentile is 8.55.
    assert measures.hd95_mm(small, large, spacing_mm=(1, 1, 1)) == pytest.approx(8.55)
    assert measures.hd95_mm(large, small, spacing_mm=(1, 1, 1)) == pytest.approx(8.55)


def test_hd95_with_empty_masks() -> None:
    full, empty = box((1, 1, 1), (2, 2, 2)), box((0, 0, 0), (0, 0, 0))

    assert measures.hd95_mm(empty, empty, spacing_mm=(1, 1, 1)) == 0.0
    assert measures.hd95_mm(full, empty, spacing_mm=(1, 1, 1)) == float("inf")
    assert measures.hd95_mm(empty, full, spacing_mm=(1, 1, 1)) == float("inf")


@pytest.mark.parametrize("seed", range(8))
def test_hd95_agrees_with_an_independent_implementation_on_anisotropic_grids(seed: int) -> None:
    generator = np.random.default_rng(seed)
    spacing = generator.uniform(0.4, 5, 3).tolist()
    centres = generator.uniform(4, 9, (2, 3))
    index = np.indices(SHAPE).transpose(1, 2, 3, 0)
    one, other = (((index - centre) ** 2).sum(-1) < generator.uniform(6, 20) for centre in centres)

    theirs = compute_hausdorff_distance(
        torch.from_numpy(one)[None, None],
        torch.from_numpy(other)[None, None],
        include_background=True,
        percentile=95,
        spacing=spacing,
    )

    assert measures.hd95_mm(one, other, spacing_mm=spacing) == pytest.approx(float(theirs), abs=1e-3)


@given(st.integers(0, 2**32), st.tuples(*[st.floats(0.2, 5)] * 3))
def test_hd95_is_symmetric_and_at_most_the_diagonal(seed: int, spacing: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(seed)
    one, other = (generator.random((5, 4, 3)) < 0.3 for _ in range(2))
    one[0, 0, 0] = other[4, 3, 2] = True

    distance = measures.hd95_mm(one, other, spacing_mm=spacing)

    assert distance == measures.hd95_mm(other, one, spacing_mm=spacing)
    assert 0 <= distance <= np.linalg.norm(np.asarray(spacing) * [4, 3, 2]) + 1e-9


def test_a_case_is_scored_for_the_given_segments_only(segments: tuple[Segment, ...]) -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[:2], truth[2:] = 1, 2

    score = measures.score_case("c", truth, truth, segments=segments[1:], spacing_mm=(1, 1, 1))

    assert score == CaseScore(case_id="c", labels=(LabelAgreement(label='Back "2"', dice=1.0, hd95_mm=0.0),))


def scores(dices: list[float], *, hd95: float = 2.0, label: str = "a") -> list[CaseScore]:
    return [
        CaseScore(case_id=f"{index}", labels=(LabelAgreement(label=label, dice=value, hd95_mm=hd95),))
        for index, value in enumerate(dices)
    ]


def judge(current: list[CaseScore], candidate: list[CaseScore], **options: bool) -> GateReport:
    return gate(current, candidate, generator=np.random.default_rng(0), **options)


GOOD = [0.80, 0.82, 0.84, 0.86, 0.88, 0.90]


def test_a_better_candidate_is_accepted() -> None:
    report = judge(scores(GOOD), scores([value + 0.02 for value in GOOD]))

    assert report.verdict is Verdict.ACCEPTED
    assert report.cases == report.labels[0].cases == 6
    assert report.labels[0].delta_dice_lower == pytest.approx(0.02)
    assert "a +0.0200" in report.reason


def test_a_drop_within_the_margin_is_accepted_and_beyond_it_refused() -> None:
    assert judge(scores(GOOD), scores([value - 0.009 for value in GOOD])).verdict is Verdict.ACCEPTED
    refused = judge(scores(GOOD), scores([value - 0.011 for value in GOOD]))

    assert refused.verdict is Verdict.REFUSED
    assert "a may lose 0.011 Dice" in refused.reason


def test_a_mean_gain_with_too_much_spread_is_refused() -> None:
    changes = [0.08, -0.07, 0.08, -0.07, 0.08, -0.07]

    report = judge(
        scores(GOOD), scores([value + change for value, change in zip(GOOD, changes, strict=True)])
    )

    assert report.verdict is Verdict.REFUSED


def test_a_drift_of_the_surface_is_refused() -> None:
    assert judge(scores(GOOD), scores(GOOD, hd95=2.9)).verdict is Verdict.ACCEPTED
    assert "a may drift by 1.10 mm" in judge(scores(GOOD), scores(GOOD, hd95=3.1)).reason


def test_a_lost_label_is_refused_even_on_too_few_cases() -> None:
    report = judge(scores([0.8, 0.9]), scores([0.0, 0.0], hd95=float("inf")))

    assert report.verdict is Verdict.REFUSED
    assert "a is lost" in report.reason


def test_a_label_that_the_candidate_does_not_score_is_lost() -> None:
    report = judge(scores(GOOD), scores(GOOD, label="b"))

    assert report.verdict is Verdict.REFUSED
    assert "a is lost" in report.reason


def test_one_fallen_case_in_twenty_is_borne_and_two_are_not() -> None:
    current = scores([0.8] * 20)
    one = scores([0.5] + [0.85] * 19)
    two = scores([0.6, 0.6] + [0.9] * 18)

    assert judge(current, one).verdict is Verdict.ACCEPTED
    assert judge(current, two).verdict is Verdict.REFUSED
    assert "falls by more than 0.1 Dice in 2 of 20 cases" in judge(current, two).reason


def test_one_collapsed_case_in_forty_is_refused_however_good_the_others_are() -> None:
    current, candidate = [0.85] * 40, [0.02] + [0.95] * 39

    report = judge(scores(current), scores(candidate))

    assert report.verdict is Verdict.REFUSED
    assert report.reason == "a collapses in 1 of 40 cases, the worst from a Dice of 0.85 to 0.02"
    assert (report.labels[0].collapses, report.labels[0].falls) == (1, 1)


@pytest.mark.parametrize(
    ("before", "after", "collapses"),
    [(0.80, 0.39, 1), (0.80, 0.41, 0), (0.50, 0.24, 1), (0.49, 0.10, 0)],
)
def test_less_than_half_of_a_good_dice_is_a_collapse(before: float, after: float, collapses: int) -> None:
    report = judge(scores([before] + [0.8] * 39), scores([after] + [0.9] * 39))

    assert report.labels[0].collapses == collapses
    assert report.verdict is (Verdict.REFUSED if collapses else Verdict.ACCEPTED)


def test_a_collapse_is_refused_even_on_too_few_cases() -> None:
    report = judge(scores([0.8, 0.8]), scores([0.9, 0.1]))

    assert report.verdict is Verdict.REFUSED
    assert "a collapses in 1 of 2 cases" in report.reason


def test_a_lost_label_is_named_although_it_is_rightly_absent_in_a_case() -> None:
    report = judge(scores([0.3, 0.4, 1.0]), scores([0.0, 0.0, 1.0]))

    assert report.verdict is Verdict.REFUSED
    assert "a is lost" in report.reason


def test_a_label_found_where_it_rightly_is_nowhere_is_a_collapse_and_no_loss() -> None:
    report = judge(scores([1.0] * 40, hd95=0), [*scores([0.0], hd95=float("inf")), *scores([1.0] * 40)[1:]])

    assert report.verdict is Verdict.REFUSED
    assert report.reason.startswith("a collapses in 1 of 40 cases, the worst from a Dice of 1.00 to 0.00")


def test_a_label_that_is_absent_everywhere_is_not_lost() -> None:
    assert judge(scores([1.0] * 6, hd95=0), scores([1.0] * 6, hd95=0)).verdict is Verdict.ACCEPTED
    assert judge(scores([0.0] * 6), scores([0.0] * 6)).verdict is Verdict.ACCEPTED


def test_a_label_found_for_the_first_time_makes_up_for_no_drift_elsewhere() -> None:
    missing = [*scores([0.0] * 8, hd95=float("inf")), *scores([0.8] * 40)[8:]]
    found = [*scores([0.8] * 8), *scores([0.8] * 40, hd95=5.0)[8:]]

    report = judge(missing, found)

    assert "a may drift by" in report.reason
    assert report.labels[0].delta_hd95_upper_mm == pytest.approx(0.8 * 3, abs=0.5)  # 32 of 40 by 3 mm


def test_a_report_of_before_collapses_were_counted_is_still_read() -> None:
    report = judge(scores(GOOD), scores(GOOD))
    older = report.to_json().replace(',"collapses":0', "")

    assert "collapses" not in older
    assert GateReport.from_json(older) == report


def test_too_few_cases_are_inconclusive() -> None:
    report = judge(scores(GOOD[:4]), scores(GOOD[:4]))

    assert report.verdict is Verdict.INCONCLUSIVE
    assert "only 4 hold-out cases" in report.reason
    assert judge([], []).verdict is Verdict.INCONCLUSIVE


def test_one_bad_label_refuses_a_candidate_that_is_good_on_the_other() -> None:
    def both(first: float, second: float) -> list[CaseScore]:
        return [
            CaseScore(case_id=one.case_id, labels=one.labels + other.labels)
            for one, other in zip(scores([first] * 6), scores([second] * 6, label="b"), strict=True)
        ]

    report = judge(both(0.8, 0.8), both(0.95, 0.7))

    assert report.verdict is Verdict.REFUSED
    assert [label.faults == () for label in report.labels] == [True, False]


def test_unchanged_weights_are_refused_as_unchanged() -> None:
    report = judge(scores(GOOD), scores(GOOD), unchanged=True)

    assert report.verdict is Verdict.REFUSED
    assert report.reason.startswith("unchanged")


def test_newly_infinite_distances_are_no_obstacle_to_arithmetic() -> None:
    current = scores([1.0] * 6, hd95=0.0)
    worse = [*scores([1.0] * 5, hd95=0.0), *scores([0.0] * 6, hd95=float("inf"))[5:]]

    assert judge(current, worse).verdict is Verdict.REFUSED
    assert judge(worse, current).verdict is Verdict.ACCEPTED
    assert np.isfinite(judge(worse, worse).labels[0].delta_hd95_upper_mm)


def test_different_cases_are_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="same cases"):
        judge(scores(GOOD), scores(GOOD[:5]))
    with pytest.raises(ValueError, match="same cases"):
        judge(scores(GOOD) * 2, scores(GOOD))


def test_the_report_is_the_same_for_the_same_generator_and_comes_back_from_json() -> None:
    candidate = scores([value + 0.01 for value in reversed(GOOD)])

    report = judge(scores(GOOD), candidate)

    assert judge(list(reversed(scores(GOOD))), candidate) == report
    assert GateReport.from_json(report.to_json()) == report


@given(st.lists(st.floats(0, 1), min_size=5, max_size=12))
def test_a_model_is_never_worse_than_itself(dices: list[float]) -> None:
    assert judge(scores(dices), scores(dices)).verdict is Verdict.ACCEPTED
