"""What the readers made of the results, in figures: per label and day, and whether a model has drifted.

Loads no model, so that the web process may use it.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from statistics import fmean, median, stdev

from dicomnode.domain import ModelVersion
from dicomnode.ml.evaluation.drift import DriftState, LabelReview, watch
from dicomnode.store import Store
from dicomnode.store.records import Review

DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFigures:
    """One label of one model over one period: its results, and the reviews that came in meanwhile.

    The reviews are of results of this period and of earlier ones.
    """

    model: str
    label: str
    since: date  # first day, in the site's time zone
    results: int  # made in the period by a model that looks for the label
    corrected: int  # of these, up to now
    corrected_share: float | None  # None: no result
    reviews: int  # that came in, of any result
    dice_mean: float | None  # of these, unchanged ones with 1; None: no review
    dice_median: float | None
    volume_bias: float | None  # (ours - theirs) / theirs, mean over the corrected ones; None: none
    volume_bias_sd: float | None  # None: fewer than two


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDrift:
    """Where the version of a model that is in use stands."""

    model: str
    version: ModelVersion
    in_use_since: datetime
    states: tuple[DriftState, ...]  # two for each label, in the order of the label table

    @property
    def alarms(self) -> tuple[DriftState, ...]:
        """The states that call for a person."""
        return tuple(state for state in self.states if state.alarm)


@dataclass(frozen=True, slots=True)
class _Key:
    """What one row of figures is about."""

    period: int  # index of its start
    model: str
    label: str


def daily(
    store: Store, *, now: datetime, days: int = DAYS, model: str | None = None, zone: tzinfo | None = None
) -> list[LabelFigures]:
    """Give figures per model, label and day, newest day first; days without result and review left out.

    Parameters
    ----------
    days
        How many, today included.
    zone
        Whose midnight divides the days; that of this machine where none is given.
    """
    return _figures(store, _midnights(now, days, zone), model=model)


def whole(
    store: Store, *, now: datetime, days: int = DAYS, model: str | None = None, zone: tzinfo | None = None
) -> list[LabelFigures]:
    """Give figures per model and label over all of the last days, as `daily` does for each."""
    return _figures(store, _midnights(now, days, zone)[:1], model=model)


def drift(store: Store, model: str) -> ModelDrift | None:
    """Say where each label of the version in use stands; None where no version was ever put into use."""
    in_use = store.feedback.version_in_use(model)
    if in_use is None:
        return None
    states: list[DriftState] = []
    for label in in_use.labels:
        before, reviews = (_of_label(some, label) for some in (in_use.before, in_use.reviews))
        states += watch(label, before=before, reviews=reviews)
    return ModelDrift(model=model, version=in_use.version, in_use_since=in_use.since, states=tuple(states))


def all_drift(store: Store) -> list[ModelDrift]:
    """`drift` of every model of this site, by name."""
    found = (drift(store, model) for model in store.models.names())
    return [one for one in found if one is not None]


def volume_bias(review: Review) -> float | None:
    """How much larger our label is than the reader's, relative to theirs; None where theirs is empty."""
    if not review.correction_voxels:
        return None
    return (review.prediction_voxels - review.correction_voxels) / review.correction_voxels


def _of_label(reviews: Iterable[Review], label: str) -> list[LabelReview]:
    return [
        LabelReview(at=one.at, dice=one.dice, volume_bias=volume_bias(one))
        for one in reviews
        if one.label == label
    ]


def _midnights(now: datetime, days: int, zone: tzinfo | None) -> list[datetime]:
    """The starts of the last days, oldest first; a day that the clocks change in is longer or shorter."""
    today = now.astimezone(zone).date()
    starts = [datetime.combine(today - timedelta(days=back), time(), zone) for back in range(days)]
    return [start.astimezone(zone) for start in reversed(starts)]


def _figures(store: Store, starts: Sequence[datetime], *, model: str | None) -> list[LabelFigures]:
    counts = store.feedback.results(starts, model_name=model)
    reviews = store.feedback.reviews(since=starts[0], model_name=model)
    made = {_Key(one.period, one.model_name, one.label): one.results for one in counts}
    came: defaultdict[_Key, list[Review]] = defaultdict(list)
    corrected: Counter[_Key] = Counter()
    for review in reviews:
        came[_key(review, review.at, starts)].append(review)
        if review.is_corrected and review.result_stands and review.result_at >= starts[0]:
            corrected[_key(review, review.result_at, starts)] += 1
    position = {(one.model_name, one.label): one.position for one in reviews}
    position |= {(one.model_name, one.label): one.position for one in counts}
    keys = sorted(
        made.keys() | came.keys(),
        key=lambda key: (-key.period, key.model, position[key.model, key.label], key.label),
    )
    return [
        _label_figures(
            key, starts, results=made.get(key, 0), corrected=corrected[key], reviews=came.get(key, [])
        )
        for key in keys
    ]


def _key(review: Review, moment: datetime, starts: Sequence[datetime]) -> _Key:
    return _Key(bisect_right(starts, moment) - 1, review.model_name, review.label)


def _label_figures(
    key: _Key, starts: Sequence[datetime], *, results: int, corrected: int, reviews: Sequence[Review]
) -> LabelFigures:
    dices = [one.dice for one in reviews]
    biases = [volume_bias(one) for one in reviews if one.is_corrected]
    known = [bias for bias in biases if bias is not None]
    return LabelFigures(
        model=key.model,
        label=key.label,
        since=starts[key.period].date(),
        results=results,
        corrected=corrected,
        corrected_share=corrected / results if results else None,
        reviews=len(reviews),
        dice_mean=fmean(dices) if dices else None,
        dice_median=median(dices) if dices else None,
        volume_bias=fmean(known) if known else None,
        volume_bias_sd=stdev(known) if len(known) > 1 else None,
    )
