"""Labels that came under each other's names."""

import numpy as np
import pytest

from dicomnode.imaging.corrections.exchanged import exchanged_labels


def block(first):
    mask = np.zeros((4, 12, 6), bool)
    mask[1:3, first : first + 3, 1:5] = True
    return mask


OURS = {"Liver": block(0), "Spleen": block(4), "Kidney": block(8)}


@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        (dict(OURS), []),
        (
            {"Liver": OURS["Spleen"], "Spleen": OURS["Liver"], "Kidney": OURS["Kidney"]},
            [("Liver", "Spleen"), ("Spleen", "Liver")],
        ),
        (
            {"Liver": OURS["Spleen"], "Spleen": OURS["Kidney"], "Kidney": OURS["Liver"]},
            [("Liver", "Spleen"), ("Spleen", "Kidney"), ("Kidney", "Liver")],
        ),
        ({"Liver": OURS["Spleen"], "Kidney": OURS["Kidney"]}, []),  # ours was wrong: the spleen is no label
        ({"Liver": block(0) & ~block(2), "Spleen": OURS["Spleen"]}, []),
        ({"Bone": OURS["Liver"]}, []),
    ],
)
def test_masks_that_lie_where_another_label_of_ours_does_are_named(theirs, found):
    assert list(exchanged_labels(OURS, theirs)) == found
