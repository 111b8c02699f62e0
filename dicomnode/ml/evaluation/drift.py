"""Drift of a model at a site, label by label: a CUSUM over what the readers' reviews say of its results.

The tabular CUSUM of Page (Biometrika 41, 1954) as in Montgomery, *Introduction to Statistical Quality
Control*, chapter on CUSUM charts. For the Dice of the reviews in their order, watched for a fall:

    S_t = max(0, S_{t-1} + min((mean - x_t) / sd, 3) - 0.5),  S_0 = 0,  alarm while S_t > 5

The volume bias is watched alike, for a rise and for a fall; the larger of the two sums counts. A review
counts with at most three standard deviations, so that one bad result is no drift: it takes three in a row.
The figures behind the rule stand in ``docs/feedback.md``, and a test repeats their simulation.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from statistics import fmean, stdev

SLACK_SD = 0.5
"""k: half of the shift, in standard deviations, that is to be found soon."""
LIMIT_SD = 5.0
"""h: the sum above which there is an alarm."""
LARGEST_STEP_SD = 3.0
"""What one review adds at most, before the slack."""
MINIMUM_BASELINE = 10
MAXIMUM_BASELINE = 50
RECENT = 10
"""So many reviews, the last ones, are averaged for people."""


class Figure(StrEnum):
    """What of a review is watched."""

    DICE = "dice"  # of our prediction with the correction, 0..1
    VOLUME = "volume"  # (ours - theirs) / theirs


MINIMUM_SD = {Figure.DICE: 0.02, Figure.VOLUME: 0.05}
"""Readers who changed nothing leave no spread to measure by; differences below this are no drift."""
_DIRECTIONS = {Figure.DICE: (-1,), Figure.VOLUME: (-1, 1)}
_NAMES = {Figure.DICE: "Dice", Figure.VOLUME: "relative volume bias"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReview:
    """What a reader made of one label of one result."""

    at: datetime
    dice: float  # 1 where nothing was changed
    volume_bias: float | None  # (ours - theirs) / theirs; None where the reader left nothing of the label


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """Where one figure of one label of the version in use stands."""

    label: str
    figure: Figure
    reviews: int  # of results of the version in use
    baseline_reviews: int  # that the next two come from; 0: not enough reviews yet
    baseline_mean: float | None
    baseline_sd: float | None
    recent_mean: float | None  # of the last ten reviews, or of all where there are fewer
    cusum: float
    alarm: bool
    since: datetime | None  # the review with which the alarm began; None without alarm

    @property
    def in_words(self) -> str:
        """The figures in a sentence; without the time, which readers see in their own zone."""
        name = _NAMES[self.figure]
        if self.baseline_mean is None:
            return f"not enough reviews yet: {self.reviews} of {MINIMUM_BASELINE}"
        baseline = f"{self.baseline_mean:.3f} ± {self.baseline_sd:.3f}"
        expected = f"{baseline} expected from {self.baseline_reviews} before"
        if self.recent_mean is None:
            return f"no review yet, {name} {expected}"
        last = f"last {min(RECENT, self.reviews)} of {self.reviews} reviews"
        return (
            f"{name} {self.recent_mean:.3f} in the {last}, {expected} "
            f"(CUSUM {self.cusum:.1f}, limit {LIMIT_SD:g})"
        )


def watch(
    label: str, *, before: Sequence[LabelReview], reviews: Sequence[LabelReview]
) -> tuple[DriftState, ...]:
    """Say where a label stands, once for each figure.

    What is normal is taken from the last 50 reviews of the version before, if there are ten at least; else
    from the first ten of the version in use, which are then not watched themselves.

    Parameters
    ----------
    before
        Of results of the version that was in use before, made while it was; oldest first.
    reviews
        Of results of the version in use, oldest first.
    """
    return tuple(
        _state(label, figure, _values(before, figure), _values(reviews, figure)) for figure in Figure
    )


def cusum(values: Iterable[float], *, mean: float, sd: float, sign: int) -> Iterator[float]:
    """Give the sum after each value.

    Parameters
    ----------
    sign
        -1 watches for a fall, 1 for a rise.
    """
    total = 0.0
    for value in values:
        step = min(sign * (value - mean) / sd, LARGEST_STEP_SD)
        total = max(0.0, total + step - SLACK_SD)
        yield total


_Dated = tuple[datetime, float]


def _values(reviews: Sequence[LabelReview], figure: Figure) -> list[_Dated]:
    if figure is Figure.DICE:
        return [(one.at, one.dice) for one in reviews]
    return [(one.at, one.volume_bias) for one in reviews if one.volume_bias is not None]


def _state(label: str, figure: Figure, before: Sequence[_Dated], values: Sequence[_Dated]) -> DriftState:
    baseline, watched = _divided(before, values)
    numbers = [value for _, value in values]
    mean = sd = None
    sums: list[float] = []
    if baseline:
        mean, sd = fmean(baseline), max(stdev(baseline), MINIMUM_SD[figure])
        sums = _sums(watched, figure, mean, sd)
    since = _alarm_since(watched, sums)
    return DriftState(
        label=label,
        figure=figure,
        reviews=len(numbers),
        baseline_reviews=len(baseline),
        baseline_mean=mean,
        baseline_sd=sd,
        recent_mean=fmean(numbers[-RECENT:]) if numbers else None,
        cusum=sums[-1] if sums else 0.0,
        alarm=since is not None,
        since=since,
    )


def _divided(before: Sequence[_Dated], values: Sequence[_Dated]) -> tuple[list[float], Sequence[_Dated]]:
    """What is normal, and what is compared with it; nothing is normal as long as too little is known."""
    if len(before) >= MINIMUM_BASELINE:
        return [value for _, value in before[-MAXIMUM_BASELINE:]], values
    if len(values) >= MINIMUM_BASELINE:
        return [value for _, value in values[:MINIMUM_BASELINE]], values[MINIMUM_BASELINE:]
    return [], values


def _sums(watched: Sequence[_Dated], figure: Figure, mean: float, sd: float) -> list[float]:
    numbers = [value for _, value in watched]
    paths = [cusum(numbers, mean=mean, sd=sd, sign=sign) for sign in _DIRECTIONS[figure]]
    return [max(sums) for sums in zip(*paths, strict=True)]


def _alarm_since(watched: Sequence[_Dated], sums: Sequence[float]) -> datetime | None:
    """The review with which the sum rose above the limit, if it still stands there."""
    since = None
    for (at, _), total in zip(watched, sums, strict=False):
        if total <= LIMIT_SD:
            since = None
        elif since is None:
            since = at
    return since
