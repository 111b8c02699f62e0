"""Whether the labels of an object may have been exchanged, which only our prediction can show.

Some writers renumber segments and leave old numbers behind (dcmjs #339); where every number is listed nothing
inside the file contradicts itself, and each mask stands under another label's name.
"""

from collections.abc import Iterator, Mapping

from dicomnode.imaging.corrections.comparison import dice
from dicomnode.imaging.identity import BoolArray

UNLIKE = 0.3
LIKE = 0.6


def exchanged_labels(
    prediction: Mapping[str, BoolArray], masks: Mapping[str, BoolArray]
) -> Iterator[tuple[str, str]]:
    """Give the pairs (label of theirs, label of ours) where theirs lies where another label of ours does.

    A mask counts that resembles ours of its own label hardly (Dice below 0.3) and ours of another one well
    (at least 0.6), while that other one is not where it was either.

    Parameters
    ----------
    prediction, masks
        Label -> mask (slice, row, column), ours and theirs, of one shape.
    """
    moved = [
        label
        for label, theirs in masks.items()
        if label in prediction and prediction[label].any() and dice(prediction[label], theirs) < UNLIKE
    ]
    for theirs in moved:
        for ours in moved:
            if ours != theirs and dice(prediction[ours], masks[theirs]) >= LIKE:
                yield theirs, ours
