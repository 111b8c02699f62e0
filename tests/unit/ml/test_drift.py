"""The drift rule: sums worked out by hand, what is normal, and how often it errs by simulation."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from dicomnode.ml.evaluation.drift import LIMIT_SD, DriftState, Figure, LabelReview, cusum, watch

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NORMAL = (0.85, 0.95) * 5
"""Mean 0.9, standard deviation 0.0527."""


def reviews(dices: Sequence[float], biases: Sequence[float | None] | None = None) -> list[LabelReview]:
    return [
        LabelReview(at=NOON + timedelta(hours=number), dice=dice, volume_bias=bias)
        for number, (dice, bias) in enumerate(zip(dices, biases or [0.0] * len(dices), strict=True))
    ]


def dice_state(before: Sequence[float], since: Sequence[float]) -> DriftState:
    dice, _ = watch("Front", before=reviews(before), reviews=reviews(since))
    assert dice.figure is Figure.DICE
    return dice


def volume_state(biases: Sequence[float | None]) -> DriftState:
    normal = reviews((0.9,) * 10, (0.1, -0.1) * 5)
    return watch("Front", before=normal, reviews=reviews((0.9,) * len(biases), biases))[1]


def test_the_sum_of_a_fall_is_as_worked_out_by_hand() -> None:
    # steps: 2 - 0.5; 0 - 0.5; -1 - 0.5 down to 0; 3 (of 4) - 0.5
    sums = list(cusum([0.8, 0.9, 0.95, 0.7], mean=0.9, sd=0.05, sign=-1))
    assert sums == pytest.approx([1.5, 1.0, 0.0, 2.5])


def test_the_sum_of_a_rise_counts_the_other_way() -> None:
    assert list(cusum([1.0, 2.0], mean=0.0, sd=1.0, sign=1)) == pytest.approx([0.5, 2.0])


@pytest.mark.parametrize("count", [0, 9])
def test_without_ten_reviews_there_is_no_alarm_but_a_word_about_it(count: int) -> None:
    state = dice_state([], [0.0] * count)
    assert (state.alarm, state.cusum, state.baseline_mean) == (False, 0.0, None)
    assert state.in_words == f"not enough reviews yet: {count} of 10"


def test_ten_reviews_of_the_version_itself_are_what_is_normal() -> None:
    state = dice_state([], NORMAL)
    assert (state.baseline_reviews, state.cusum, state.alarm) == (10, 0.0, False)
    assert state.baseline_mean == pytest.approx(0.9)
    assert state.baseline_sd == pytest.approx(0.05 * (10 / 9) ** 0.5)


def test_the_last_fifty_reviews_of_the_version_before_are_what_is_normal() -> None:
    state = dice_state([0.1] * 7 + list(NORMAL) * 5, [0.9])
    assert (state.baseline_reviews, state.reviews) == (50, 1)
    assert state.baseline_mean == pytest.approx(0.9)


def test_nine_reviews_of_the_version_before_are_too_few() -> None:
    assert dice_state([0.5] * 9, NORMAL).baseline_mean == pytest.approx(0.9)


def test_an_alarm_begins_with_the_review_that_passes_the_limit() -> None:
    state = dice_state(NORMAL, [0.9, 0.6, 0.6, 0.6, 0.6])  # 0, 2.5, 5 (not above 5), 7.5, 10
    assert state.cusum == pytest.approx(10.0)
    assert state.alarm
    assert state.since == NOON + timedelta(hours=3)
    assert state.in_words == (
        "Dice 0.660 in the last 5 of 5 reviews, 0.900 ± 0.053 expected from 10 before (CUSUM 10.0, limit 5)"
    )


def test_an_alarm_goes_out_when_the_reviews_are_good_again() -> None:
    state = dice_state(NORMAL, [0.6, 0.6, 0.6, 1.0, 1.0])
    assert (state.alarm, state.since) == (False, None)


def test_one_review_however_bad_is_no_drift() -> None:
    assert not dice_state([1.0] * 10, [0.0]).alarm
    assert not dice_state([1.0] * 10, [0.0, 0.0]).alarm
    assert dice_state([1.0] * 10, [0.0, 0.0, 0.0]).alarm


def test_differences_within_two_hundredths_are_no_drift_after_readers_who_changed_nothing() -> None:
    assert dice_state([1.0] * 10, [0.995] * 200).cusum == 0.0


@pytest.mark.parametrize("bias", [0.5, -0.5])
def test_a_volume_bias_is_found_in_both_directions(bias: float) -> None:
    assert not volume_state([0.0, 0.1, -0.1]).alarm
    assert volume_state([bias] * 3).alarm


def test_a_label_that_the_reader_emptied_has_no_volume_bias() -> None:
    state = volume_state([None, None, 0.0])
    assert (state.reviews, state.cusum) == (1, 0.0)


def run_length(generator: np.random.Generator, *, shift_sd: float) -> int:
    """Reviews until the alarm when Dice is normally distributed and lies so much lower than normal."""

    def values() -> Iterator[float]:
        while True:
            yield from 0.9 - 0.05 * (shift_sd + generator.standard_normal(200))

    sums = cusum(values(), mean=0.9, sd=0.05, sign=-1)
    return next(count for count, total in enumerate(sums, 1) if total > LIMIT_SD)


@pytest.mark.parametrize(
    ("shift_sd", "runs", "low", "high"),
    [(0.0, 600, 850, 1150), (0.5, 600, 35, 44), (1.0, 2000, 10.0, 11.2), (2.0, 2000, 4.0, 4.5)],
)
def test_the_rule_errs_as_seldom_and_is_as_quick_as_the_page_says(
    shift_sd: float, runs: int, low: float, high: float
) -> None:
    generator = np.random.default_rng(20261120)
    lengths = [run_length(generator, shift_sd=shift_sd) for _ in range(runs)]
    assert low < np.mean(lengths) < high
