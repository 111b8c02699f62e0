"""Which corrections are probably mistakes, and how much they should count in a training.

A correction that differs from the model is what a model learns from. So difference alone is no reason to
doubt it; what is looked for is the shape that mistakes of handling have: labels that changed places, a whole
segmentation that is shifted, surfaces that lie inside or outside by the same distance everywhere, nothing or
nearly everything marked, or a place that neither the model nor the image speaks for. Where the image has
clearly stronger edges along the correction than along the result of the model, the correction is believed.

Each test gives a doubt from 0 to 1, rising between two limits; of conditions that must all hold the least
doubt counts, of several findings the largest. The weight of a case is 1 minus that.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from dicomnode.ml.evaluation.disagreement import (
    CaseFigures,
    LabelFigures,
    Renaming,
    Shift,
    SuspectCase,
    measure,
)

MINIMUM_REFERENCES = 8
"""With fewer trusted cases nothing is known of what is usual, and the fixed limits hold alone."""
DEVIATIONS = 4.0
"""So many robust standard deviations from the median are still usual."""

RENAMED_GAIN = (0.15, 0.30)
"""Rise of the Dice by renaming: where doubt begins, and where it is complete; so for all pairs here."""
RENAMED_DICE = (0.30, 0.50)
SHIFTED_GAIN = (0.06, 0.12)
SHIFTED_DICE = (0.40, 0.60)
OFFSET_VOXELS = (0.75, 1.25)
"""Of the surfaces, in the smallest spacing."""
OFFSET_IN_SPREADS = (0.6, 1.0)
VOLUME_FACTOR = (log(1.6), log(2.1))
FAR_DICE = (0.5, 0.3)
WEAK_EDGES = (0.90, 0.75)
CLEAR_EDGES = (1.05, 1.20)
"""Ratio of edges from which on the image speaks for the correction."""
AGAINST_EDGES = (0.95, 0.85)
"""Ratio of edges below which the image speaks against the correction.

Without references a model that always errs in the same way looks like a correction that does, and only the
image tells which of them it is: where it does not speak against the correction, doubt goes no further than
:data:`UNCERTAIN`.
"""
EVERYTHING = 0.8
"""Share of the reviewed voxels in one label; the model must have found less than half of it."""
MINIMUM_VOXELS = 30
"""A label with fewer on both sides is not judged by its size or its place."""
UNCERTAIN = 0.5
"""Doubt where a mistake of the model explains the same just as well."""
LEAST_DOUBT = 0.01
"""Less is no doubt, so that a case is in full trust or has a reason."""
_MAD_TO_SD = 1.4826
_LEAST_DICE_DEVIATION = 0.03

Limits = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """What a figure is among trusted cases."""

    median: float
    deviation: float  # 1.4826 times the median absolute deviation, a robust standard deviation

    @property
    def slack(self) -> float:
        """How far from the median is still usual."""
        return DEVIATIONS * self.deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualLabel:
    """How a model and its corrections usually differ in one label."""

    class_index: int
    dice: Usual
    offset_mm: Usual
    volume_factor: Usual  # logarithm of correction / prediction
    empty_share: float  # of the trusted corrections, 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """How one model and its trusted corrections usually differ."""

    cases: int
    labels: tuple[UsualLabel, ...]  # those with enough cases
    renaming_gain: Usual
    shift_gain: Usual

    def of_label(self, class_index: int) -> UsualLabel | None:
        """Give what is usual of a label; None where too few cases have it."""
        return next((label for label in self.labels if label.class_index == class_index), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """How much a correction should count, and why."""

    case_id: str
    weight: float  # 1 trusted, 0 excluded, between them doubtful
    reasons: tuple[str, ...]  # in plain words; empty exactly where the weight is 1
    figures: CaseFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    doubt: float  # 0 to 1
    reason: str


def suspect(cases: Sequence[SuspectCase], *, references: References | None) -> tuple[Suspicion, ...]:
    """Say of each correction how much it should count, in the order given.

    Parameters
    ----------
    references
        Of the same model, from :func:`references_of`; None where there are not enough trusted cases.

    Raises
    ------
    CorrectionError
        A case whose arrays do not fit each other.
    """
    return tuple(judge(case.case_id, measure(case), references=references) for case in cases)


def references_of(trusted: Iterable[CaseFigures]) -> References | None:
    """Learn what is usual from cases that are trusted: medians, which some wrong ones do not move.

    Returns
    -------
        None with fewer than eight cases.
    """
    figures = list(trusted)
    if len(figures) < MINIMUM_REFERENCES:
        return None
    by_class: dict[int, list[LabelFigures]] = {}
    for label in (label for case in figures for label in case.labels):
        by_class.setdefault(label.class_index, []).append(label)
    found = (_usual_label(index, by_class[index]) for index in sorted(by_class))
    return References(
        cases=len(figures),
        labels=tuple(label for label in found if label is not None),
        renaming_gain=_usual([_renaming_gain(case.renaming) for case in figures]),
        shift_gain=_usual([_shift_gain(case.shift) for case in figures]),
    )


def judge(case_id: str, figures: CaseFigures, *, references: References | None) -> Suspicion:
    """Say how much a correction should count, from what was measured of it; see :func:`suspect`."""
    findings = [finding for finding in _findings(figures, references) if finding.doubt >= LEAST_DOUBT]
    return Suspicion(
        case_id=case_id,
        weight=1.0 - max((finding.doubt for finding in findings), default=0.0),
        reasons=tuple(finding.reason for finding in findings),
        figures=figures,
    )


def _findings(figures: CaseFigures, references: References | None) -> list[_Finding]:
    """Look for the plainest mistake first: what a renaming or a shift explains needs no other reason."""
    usual = [None if references is None else references.of_label(one.class_index) for one in figures.labels]
    labels = list(zip(figures.labels, usual, strict=True))
    found = [finding for label, known in labels for finding in _filled(label, known)]
    renamed = list(_renamed(figures, references))
    if any(finding.doubt >= LEAST_DOUBT for finding in renamed):
        return found + renamed
    moved = list(_shifted(figures, references))
    moved += [finding for label, known in labels for finding in _resized(label, known, figures.voxel_mm)]
    if any(finding.doubt >= LEAST_DOUBT for finding in moved):
        return found + moved
    return found + [finding for label, known in labels for finding in _far(label, known)]


def _filled(label: LabelFigures, usual: UsualLabel | None) -> Iterator[_Finding]:
    if not label.correction_voxels and label.prediction_voxels >= MINIMUM_VOXELS:
        doubt = UNCERTAIN if usual is None else float(usual.empty_share == 0)
        yield _Finding(
            doubt=doubt,
            reason=f"label {label.class_index} empty: reviewed, and nothing left of the "
            f"{label.prediction_voxels} voxels that the model found",
        )
    share = label.correction_voxels / max(label.reviewed_voxels, 1)
    if share >= EVERYTHING and 2 * label.prediction_voxels < label.correction_voxels:
        yield _Finding(
            doubt=1.0,
            reason=f"label {label.class_index} nearly everything: {share:.0%} of all reviewed voxels, where "
            f"the model found {label.prediction_voxels / label.reviewed_voxels:.0%}",
        )


def _renamed(figures: CaseFigures, references: References | None) -> Iterator[_Finding]:
    renaming = figures.renaming
    if renaming is None:
        return
    gain = _renaming_gain(renaming) - (0.0 if references is None else _top(references.renaming_gain))
    doubt = min(_doubt(gain, RENAMED_GAIN), _doubt(renaming.renamed_dice, RENAMED_DICE))
    pairs = ", ".join(f"{theirs} lies where the model has {ours}" for theirs, ours in renaming.classes)
    yield _Finding(
        doubt=doubt * (1.0 if renaming.is_exchange else UNCERTAIN),
        reason=f"labels swapped: {pairs} (Dice {renaming.renamed_dice:.2f} if renamed, "
        f"{renaming.dice:.2f} as given)",
    )


def _shifted(figures: CaseFigures, references: References | None) -> Iterator[_Finding]:
    shift = figures.shift
    if shift is None:
        return
    gain = _shift_gain(shift) - (0.0 if references is None else _top(references.shift_gain))
    doubt = min(_doubt(gain, SHIFTED_GAIN), _doubt(shift.shifted_dice, SHIFTED_DICE))
    along = ", ".join(f"{value:+.1f}" for value in shift.offset_mm)
    yield _Finding(
        doubt=min(doubt, _by_image(figures.edge_ratio, is_usual_known=references is not None)),
        reason=f"shifted by ({along}) mm along slice, row, column from the model's result "
        f"(Dice {shift.shifted_dice:.2f} if moved back, {shift.dice:.2f} as given)",
    )


def _resized(label: LabelFigures, usual: UsualLabel | None, voxel_mm: float) -> Iterator[_Finding]:
    if label.offset_mm is None or label.spread_mm is None or _is_small(label):
        return
    factor = log(label.correction_voxels / label.prediction_voxels)
    offset, growth = label.offset_mm, factor
    if usual is not None:
        offset, growth = _beyond(offset, usual.offset_mm), _beyond(factor, usual.volume_factor)
    if offset * growth <= 0:
        return
    doubts = (
        _doubt(abs(offset) / voxel_mm, OFFSET_VOXELS),
        _doubt(abs(offset) / max(label.spread_mm, 0.1 * voxel_mm), OFFSET_IN_SPREADS),
        _doubt(abs(growth), VOLUME_FACTOR),
        _by_image(label.edge_ratio, is_usual_known=usual is not None),
    )
    side, word = ("inside", "eroded") if offset < 0 else ("outside", "dilated")
    yield _Finding(
        doubt=min(doubts),
        reason=f"label {label.class_index} {word}: its surface lies {abs(label.offset_mm):.1f} mm {side} the "
        f"model's (spread {label.spread_mm:.1f} mm), its volume is "
        f"{label.correction_voxels / label.prediction_voxels:.2f} times the model's",
    )


def _far(label: LabelFigures, usual: UsualLabel | None) -> Iterator[_Finding]:
    if label.edge_ratio is None or _is_small(label):
        return
    limits = FAR_DICE
    if usual is not None:
        start = usual.dice.median - DEVIATIONS * max(usual.dice.deviation, _LEAST_DICE_DEVIATION)
        limits = (start, start - (FAR_DICE[0] - FAR_DICE[1]))
    yield _Finding(
        doubt=min(_doubt(label.dice, limits), _doubt(label.edge_ratio, WEAK_EDGES)),
        reason=f"label {label.class_index} far from the model and from the image: Dice {label.dice:.2f}, and "
        f"the edges of the image along it are {label.edge_ratio:.2f} of those along the model's result",
    )


def _doubt(value: float, limits: Limits) -> float:
    """Rise from 0 at the first limit to 1 at the second, which may be the lower one."""
    start, end = limits
    return min(max((value - start) / (end - start), 0.0), 1.0)


def _by_image(edge_ratio: float | None, *, is_usual_known: bool) -> float:
    """Give the largest doubt that the image allows; where its edges cannot be compared it says nothing."""
    allowed = 1.0 if edge_ratio is None else 1.0 - _doubt(edge_ratio, CLEAR_EDGES)
    if is_usual_known:
        return allowed
    against = 0.0 if edge_ratio is None else _doubt(edge_ratio, AGAINST_EDGES)
    return min(allowed, max(UNCERTAIN, against))


def _is_small(label: LabelFigures) -> bool:
    return max(label.correction_voxels, label.prediction_voxels) < MINIMUM_VOXELS


def _beyond(value: float, usual: Usual) -> float:
    """Give by how much a value lies outside of what is usual, with its sign; the median counts as 0.

    Within the slack nothing is unusual; beyond it the whole distance from the median counts.
    """
    distance = value - usual.median
    return distance if abs(distance) > usual.slack else 0.0


def _top(usual: Usual) -> float:
    """Give the largest gain that is still usual."""
    return max(usual.median + usual.slack, 0.0)


def _renaming_gain(renaming: Renaming | None) -> float:
    return 0.0 if renaming is None else renaming.renamed_dice - renaming.dice


def _shift_gain(shift: Shift | None) -> float:
    return 0.0 if shift is None else shift.shifted_dice - shift.dice


def _usual(values: Sequence[float]) -> Usual:
    median = float(np.median(values))
    spread = float(np.median(np.abs(np.asarray(values) - median)))
    return Usual(median=median, deviation=_MAD_TO_SD * spread)


def _usual_label(index: int, labels: Sequence[LabelFigures]) -> UsualLabel | None:
    offsets = [label.offset_mm for label in labels if label.offset_mm is not None]
    factors = [
        log(label.correction_voxels / label.prediction_voxels)
        for label in labels
        if label.correction_voxels and label.prediction_voxels
    ]
    if min(len(offsets), len(factors)) < MINIMUM_REFERENCES:
        return None
    return UsualLabel(
        class_index=index,
        dice=_usual([label.dice for label in labels]),
        offset_mm=_usual(offsets),
        volume_factor=_usual(factors),
        empty_share=sum(not label.correction_voxels for label in labels) / len(labels),
    )
