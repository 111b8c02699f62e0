"""Means over cases, with bootstrap intervals, for each label.

Intervals are percentile intervals at 95 % of the mean, from resamples of the cases with replacement (Efron
and Tibshirani, *An Introduction to the Bootstrap*, 1993). ``docs/evaluation.md`` says how often they hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dicomnode.ml.evaluation.measures import CaseMeasures, MeasuredLabel, Presence

RESAMPLES = 10_000
LEVEL = 0.95
_BATCH = 1000
"""Resamples that are drawn at a time, so that a thousand cases take little memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over cases, and where it might lie with other cases of the same kind."""

    cases: int  # that have the figure
    mean: float | None  # None without cases
    lower: float | None  # None with fewer than two cases, or where no interval was asked for
    upper: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """How well one label was found over all cases; cases that have it on neither side count nowhere."""

    label: str
    tolerance_mm: float
    cases: int  # that have the label on either side
    missed: int  # of them, in the truth only
    invented: int  # in the prediction only
    absent: int  # cases that do not count
    dice: Estimate
    surface_dice: Estimate
    hd95_mm: Estimate  # of the cases that have the label on both sides
    hd95_median_mm: float | None  # of all that count, infinite where the label is missed or invented
    volume_error_ml: Estimate
    volume_error_percent: Estimate  # of the cases whose truth has the label
    absolute_volume_error_percent: Estimate  # likewise, without the sign


def summarise(
    cases: Sequence[CaseMeasures],
    *,
    labels: Sequence[MeasuredLabel],
    resamples: int = RESAMPLES,
    generator: np.random.Generator,
) -> tuple[LabelSummary, ...]:
    """Put the measures of all cases together, label by label.

    Parameters
    ----------
    labels
        In the order wanted. A label that was not looked for in a case is absent there.
    resamples
        Of the bootstrap; 0 leaves out the intervals.
    generator
        Draws the resamples; the same state and the same order of cases give the same intervals.
    """
    return tuple(_summary(label, cases, resamples=resamples, generator=generator) for label in labels)


def estimate(values: Sequence[float], *, resamples: int, generator: np.random.Generator) -> Estimate:
    """Give the mean of finite values and its percentile interval."""
    if not values:
        return Estimate(cases=0, mean=None, lower=None, upper=None)
    mean = float(np.mean(values))
    if len(values) < 2 or resamples == 0:
        return Estimate(cases=len(values), mean=mean, lower=None, upper=None)
    found = stats.bootstrap(
        (np.asarray(values, np.float64),),
        np.mean,
        n_resamples=resamples,
        batch=_BATCH,
        confidence_level=LEVEL,
        method="percentile",
        rng=generator,
    ).confidence_interval
    return Estimate(cases=len(values), mean=mean, lower=float(found.low), upper=float(found.high))


def _summary(
    label: MeasuredLabel, cases: Sequence[CaseMeasures], *, resamples: int, generator: np.random.Generator
) -> LabelSummary:
    items = [item for case in cases for item in case.labels if item.label == label.name]
    there = [item for item in items if item.presence is not Presence.ABSENT]
    distances = [item.hd95_mm for item in there if item.hd95_mm is not None]
    errors = [item.volume_error_percent for item in there if item.volume_error_percent is not None]

    def over(values: Sequence[float]) -> Estimate:
        return estimate(values, resamples=resamples, generator=generator)

    return LabelSummary(
        label=label.name,
        tolerance_mm=label.tolerance_mm,
        cases=len(there),
        missed=sum(item.presence is Presence.MISSED for item in there),
        invented=sum(item.presence is Presence.INVENTED for item in there),
        absent=len(cases) - len(there),
        dice=over([item.dice for item in there if item.dice is not None]),
        surface_dice=over([item.surface_dice for item in there if item.surface_dice is not None]),
        hd95_mm=over([distance for distance in distances if np.isfinite(distance)]),
        hd95_median_mm=float(np.median(distances)) if distances else None,
        volume_error_ml=over([item.volume_error_ml for item in there]),
        volume_error_percent=over(errors),
        absolute_volume_error_percent=over([abs(error) for error in errors]),
    )
