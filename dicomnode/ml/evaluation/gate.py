"""Whether a candidate may replace the current model.

Two models are compared case by case and label by label: a candidate must not be worse than the current
model by more than a margin (a paired non-inferiority test by bootstrap).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dicomnode.domain import Verdict
from dicomnode.ml.evaluation.scores import MISSING_HD95_MM, CaseScore, LabelAgreement

MAXIMUM_HD95_RISE_MM = 1.0


FALL = 0.10
"""A case whose Dice drops by more than this has fallen."""


MAXIMUM_SHARE_OF_FALLS = 0.05


GOOD_DICE = 0.5
"""From here on the current model has found a label; it collapses where less than half of that is left.

Where the current model is worse than this, the truth may as well be what is wrong, and nothing can collapse.
"""


_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelComparison:
    """The gate's figures for one label; differences are candidate minus current, paired by case."""

    label: str
    cases: int
    current_dice: float
    candidate_dice: float
    delta_dice_lower: float  # one-sided 95 % bootstrap bound of the mean difference
    current_hd95_mm: float
    candidate_hd95_mm: float
    delta_hd95_upper_mm: float  # likewise
    falls: int  # cases whose Dice drops by more than 0.10
    faults: tuple[str, ...]  # why the candidate may not be accepted, in plain words
    collapses: int = 0  # cases whose Dice was at least 0.5 and is less than half of what it was


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What the gate answers about a candidate, and the figures behind it."""

    verdict: Verdict
    reason: str
    cases: int
    labels: tuple[LabelComparison, ...]

    def to_json(self) -> str:
        """Write the report as JSON; :meth:`from_json` reads it again."""
        return _GATE_REPORT.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "GateReport":
        """Read a report written by :meth:`to_json`."""
        return _GATE_REPORT.validate_json(text)


_GATE_REPORT = TypeAdapter(GateReport)


def gate(
    current: Sequence[CaseScore],
    candidate: Sequence[CaseScore],
    *,
    epsilon_dice: float = 0.01,
    minimum_cases: int = 5,
    unchanged: bool = False,
    generator: np.random.Generator,
) -> GateReport:
    """Decide whether a candidate may replace the current model.

    Accepted when, for every label, the lower bound of the mean Dice difference is at least
    ``-epsilon_dice``, the upper bound of the mean HD95 difference at most 1 mm, at most 5 % of the
    cases fall by more than 0.10 Dice, no case at all collapses (from a Dice of 0.5 or more to less than
    half of it), and the label is not lost. Bounds are one-sided at 95 %, from 10 000 bootstrap resamples
    of the cases. A distance that was infinite before counts as unchanged, so that a label found for the
    first time in some cases makes up for no drift in others.

    Parameters
    ----------
    current, candidate
        Scores of both models on the same cases, in any order. A label that is not scored in a case
        is left out of that case.
    epsilon_dice
        Margin of non-inferiority.
    minimum_cases
        Below this number for a label nobody can tell: inconclusive, unless a label is lost or collapses.
    unchanged
        The candidate has the very weights of the current model: refused, there is nothing to gain.
    generator
        Draws the resamples; the same state gives the same report.

    Raises
    ------
    ValueError
        The two lists do not hold the same cases, each once.
    """
    before, after = ({score.case_id: score for score in scores} for scores in (current, candidate))
    if before.keys() != after.keys() or not len(before) == len(current) == len(candidate):
        raise ValueError("current and candidate must be scored on the same cases, each once")
    if unchanged:
        reason = "unchanged: the candidate has exactly the weights of the current model"
        return GateReport(verdict=Verdict.REFUSED, reason=reason, cases=len(before), labels=())
    pairs = _pairs(before, after)
    labels = tuple(
        _compare(label, rows, epsilon_dice=epsilon_dice, minimum_cases=minimum_cases, generator=generator)
        for label, rows in pairs.items()
    )
    verdict, reason = _verdict(labels, minimum_cases=minimum_cases)
    return GateReport(verdict=verdict, reason=reason, cases=len(before), labels=labels)


def _pairs(before: dict[str, CaseScore], after: dict[str, CaseScore]) -> dict[str, NDArray[np.float64]]:
    """Pair the scores: for each label rows of (current Dice, candidate Dice, current, candidate HD95)."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for case_id in sorted(before):
        found = {item.label: item for item in after[case_id].labels}
        for item in before[case_id].labels:
            # A label that the candidate no longer has counts as not found.
            other = found.get(item.label, LabelAgreement(label=item.label, dice=0.0, hd95_mm=MISSING_HD95_MM))
            distances = [min(x, MISSING_HD95_MM) for x in (item.hd95_mm, other.hd95_mm)]
            rows.setdefault(item.label, []).append((item.dice, other.dice, distances[0], distances[1]))
    return {label: np.asarray(rows[label]) for label in sorted(rows)}


def _compare(
    label: str,
    rows: NDArray[np.float64],
    *,
    epsilon_dice: float,
    minimum_cases: int,
    generator: np.random.Generator,
) -> LabelComparison:
    delta_dice = rows[:, 1] - rows[:, 0]
    delta_hd95 = np.where(rows[:, 2] < MISSING_HD95_MM, rows[:, 3] - rows[:, 2], 0.0)
    picks = generator.integers(len(rows), size=(_RESAMPLES, len(rows)))
    lower = float(np.percentile(delta_dice[picks].mean(axis=1), 5))
    upper = float(np.percentile(delta_hd95[picks].mean(axis=1), 95))
    falls = int((delta_dice < -FALL).sum())
    collapsed = rows[(rows[:, 0] >= GOOD_DICE) & (rows[:, 1] < rows[:, 0] / 2)]
    faults = list(_faults_of_cases(rows, collapsed))
    if len(rows) >= minimum_cases:
        if lower < -epsilon_dice:
            faults.append(f"may lose {-lower:.3f} Dice; at most {epsilon_dice:g} is allowed")
        if upper > MAXIMUM_HD95_RISE_MM:
            faults.append(f"may drift by {upper:.2f} mm HD95; at most {MAXIMUM_HD95_RISE_MM:g} mm is allowed")
        if falls > MAXIMUM_SHARE_OF_FALLS * len(rows):
            faults.append(f"falls by more than {FALL:g} Dice in {falls} of {len(rows)} cases")
    means = rows.mean(axis=0)
    return LabelComparison(
        label=label,
        cases=len(rows),
        current_dice=float(means[0]),
        candidate_dice=float(means[1]),
        delta_dice_lower=lower,
        current_hd95_mm=float(means[2]),
        candidate_hd95_mm=float(means[3]),
        delta_hd95_upper_mm=upper,
        falls=falls,
        faults=tuple(faults),
        collapses=len(collapsed),
    )


def _faults_of_cases(rows: NDArray[np.float64], collapsed: NDArray[np.float64]) -> Iterator[str]:
    """Say what no number of other cases makes up for."""
    before, after = rows[:, 0], rows[:, 1]
    # A Dice of exactly 1 is also what a label gets that rightly is nowhere; that is no find.
    is_absent = (after == 1) & np.isin(before, (0.0, 1.0))
    if ((before > 0) & (before < 1)).any() and not after[~is_absent].any():
        yield "is lost: it is found in no case any more"
    elif len(collapsed):
        worst = collapsed[np.argmin(collapsed[:, 1] - collapsed[:, 0])]
        yield (
            f"collapses in {len(collapsed)} of {len(rows)} cases, the worst from a Dice of {worst[0]:.2f} "
            f"to {worst[1]:.2f}"
        )


def _verdict(labels: tuple[LabelComparison, ...], *, minimum_cases: int) -> tuple[Verdict, str]:
    faults = [f"{label.label} {fault}" for label in labels for fault in label.faults]
    if faults:
        return Verdict.REFUSED, "; ".join(faults)
    fewest = min((label.cases for label in labels), default=0)
    if fewest < minimum_cases:
        return Verdict.INCONCLUSIVE, f"only {fewest} hold-out cases for a label; {minimum_cases} are needed"
    gains = ", ".join(f"{label.label} {label.candidate_dice - label.current_dice:+.4f}" for label in labels)
    return Verdict.ACCEPTED, f"not worse on any label (change of mean Dice: {gains})"
