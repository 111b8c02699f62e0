"""How a reader's object differs from our prediction, what of it was reviewed, and what several say together.

Everything here works on masks of one shape, axes (slice, row, column): on the planes of the source stack
as `received.decode` gives them, or all brought to the grid of the image. `prediction` is ours: label -> mask,
labels without voxels left out or empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain import LabelScore, ModelCard
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.reading.decoded import Decoded

EDITED = 1.0
ACCEPTED_IN_RANGE = 1.0
ACCEPTED_OUTSIDE = 0.5

_Pair = tuple[str, BoolArray, BoolArray | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spoken:
    """What one correction says of one label."""

    label: str
    mask: BoolArray  # (slice, row, column)
    weights: NDArray[np.float32]  # (slice,), how far each slice counts as reviewed, 0..1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """What several corrections of one series say together: the latest for each label.

    `labels` are class indices (slice, row, column); `weights` has a row for each of `labels_known`;
    `standing[i]` are the labels for which correction i has the last word.
    """

    labels: NDArray[np.uint8]
    labels_known: tuple[str, ...]
    weights: NDArray[np.float32]
    standing: tuple[frozenset[str], ...]


def with_absent_emptied(correction: Decoded, card: ModelCard, *, corrects: frozenset[str] | None) -> Decoded:
    """Take the labels that a correction does not list as emptied, where the site reads absence so.

    Only where another label of the same object is there, and only labels of the object that was corrected
    (`corrects`; None: of the model): what stood in another part of the result was not before the reader.
    """
    spoken = {*correction.masks, *correction.empty_labels}
    if not spoken:
        return correction
    absent = [
        segment.label
        for segment in card.segments
        if segment.label not in spoken and (corrects is None or segment.label in corrects)
    ]
    return replace(correction, empty_labels=(*correction.empty_labels, *absent))


def compare(
    prediction: Mapping[str, BoolArray], correction: Decoded, card: ModelCard
) -> tuple[LabelScore, ...]:
    """Score the prediction against the correction, for the labels that the correction speaks of.

    A label with voxels is spoken of, and so is one listed without voxels: its segment was emptied. A
    label that is absent is unknown and gets no score (but see `with_absent_emptied`).

    Returns
    -------
        In the order of the card; `edited_slices` are indices along the slice axis.
    """
    return tuple(
        LabelScore(
            label=label,
            dice=dice(ours, theirs),
            edited_slices=tuple(np.flatnonzero((ours ^ theirs).any(axis=(1, 2))).tolist()),
            prediction_voxels=int(np.count_nonzero(ours)),
            correction_voxels=int(np.count_nonzero(theirs)),
            confidence=correction.confidence.get(label, 1.0),
        )
        for label, ours, theirs in _pairs(prediction, correction, card)
        if theirs is not None
    )


def spoken(
    prediction: Mapping[str, BoolArray],
    correction: Decoded,
    card: ModelCard,
    *,
    is_whole_study_read: bool = False,
) -> tuple[Spoken, ...]:
    """Say what a correction says of each label it speaks of, and how far each slice counts as reviewed.

    A segmentation has no review mark per slice. Edited slices and the range from one before the
    first to one after the last edited slice count 1; slices of the label's extent outside this range
    were seen and left, and count 0.5 (1 if `is_whole_study_read`); everything else is unknown, 0.
    """
    outside = 1.0 if is_whole_study_read else ACCEPTED_OUTSIDE
    found = []
    for label, ours, theirs in _pairs(prediction, correction, card):
        if theirs is not None:
            found.append(Spoken(label=label, mask=theirs, weights=_weights(ours, theirs, outside)))
    return tuple(found)


def merge(
    prediction: Mapping[str, BoolArray],
    corrections: Sequence[Sequence[Spoken]],
    card: ModelCard,
    *,
    shape: tuple[int, int, int],
) -> Merged:
    """Put together what several corrections of one series say: for each label the latest one.

    A label that none speaks of keeps our prediction and is not known. Where masks overlap, a later correction
    goes before an earlier one, every correction before the prediction and, within each, the label that
    stands first in the card.

    Parameters
    ----------
    corrections
        Oldest first.
    shape
        (slice, row, column) of every mask.
    """
    last = {one.label: index for index, said in enumerate(corrections) for one in said}
    order = {segment.label: segment.class_index for segment in card.segments}
    labels = np.zeros(shape, np.uint8)
    for segment in reversed(card.segments):
        if segment.label not in last and segment.label in prediction:
            labels[prediction[segment.label]] = segment.class_index
    weights: dict[str, NDArray[np.float32]] = {}
    for index, said in enumerate(corrections):
        for one in sorted(said, key=lambda one: order[one.label], reverse=True):
            if last[one.label] == index:
                labels[one.mask] = order[one.label]
                weights[one.label] = one.weights
    known = [s.label for s in card.segments if s.label in weights and weights[s.label].any()]
    rows = [weights[label] for label in known]
    return Merged(
        labels=labels,
        labels_known=tuple(known),
        weights=np.stack(rows) if rows else np.zeros((0, shape[0]), np.float32),
        standing=tuple(
            frozenset(label for label, at in last.items() if at == index) for index in range(len(corrections))
        ),
    )


def dice(one: BoolArray, other: BoolArray) -> float:
    """Dice coefficient of two masks, 0..1; 1 when both are empty."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2.0 * np.count_nonzero(one & other) / total if total else 1.0


def _weights(ours: BoolArray, theirs: BoolArray, outside: float) -> NDArray[np.float32]:
    weights = np.zeros(ours.shape[0], np.float32)
    weights[(ours | theirs).any(axis=(1, 2))] = outside
    edited = np.flatnonzero((ours ^ theirs).any(axis=(1, 2)))
    if edited.size:
        weights[max(edited[0] - 1, 0) : edited[-1] + 2] = ACCEPTED_IN_RANGE
        weights[edited] = EDITED
    return weights


def _pairs(prediction: Mapping[str, BoolArray], correction: Decoded, card: ModelCard) -> list[_Pair]:
    """Label, our mask and theirs, in the order of the card; theirs is None where it is unknown."""
    nothing: BoolArray = np.zeros(correction.shape, np.bool_)
    pairs: list[_Pair] = []
    for segment in card.segments:
        theirs = correction.masks.get(segment.label)
        if theirs is None and segment.label in correction.empty_labels:
            theirs = nothing
        pairs.append((segment.label, prediction.get(segment.label, nothing), theirs))
    return pairs
