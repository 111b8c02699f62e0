"""The picture of a correction."""

import numpy as np
import pytest

from dicomnode.domain import LabelScore
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.pictures import difference
from tests.imaging_builders import make_card, plain_series

CARD = make_card()
ANTERIOR, POSTERIOR = (segment.label for segment in CARD.segments)
SHAPE = (6, 20, 24)
GREEN, RED, YELLOW = (rgb for rgb, _ in difference._DIFFERENCE.values())


def box(slices, rows, columns):
    mask = np.zeros(SHAPE, bool)
    mask[slices, rows, columns] = True
    return mask


OURS = {
    ANTERIOR: box(slice(1, 5), slice(4, 12), slice(4, 12)),
    POSTERIOR: box(slice(1, 5), slice(13, 18), slice(4, 12)),
}


@pytest.fixture(scope="module")
def stack():
    return only_stack(plain_series(SHAPE))


def drawn(stack, theirs, *, unmapped=None, warnings=()):
    planes = np.zeros(SHAPE, np.float32)
    return difference.correction_picture(
        planes,
        stack,
        prediction=OURS,
        correction=theirs,
        unmapped=unmapped or {},
        card=CARD,
        texts=("a title", ["a note"], warnings),
    )


def count(picture, rgb):
    pixels = np.asarray(picture.convert("RGB"), int)
    return int((np.abs(pixels - rgb).max(axis=2) < 25).sum())


def has(picture, rgb):
    """Answer whether outlines of a colour are in the picture, beside the legend."""
    return count(picture, rgb) > 300


def test_what_was_added_removed_and_relabelled_has_its_own_colour(stack):
    added = OURS | {ANTERIOR: OURS[ANTERIOR] | box(slice(1, 5), slice(4, 12), slice(12, 18))}
    removed = {ANTERIOR: OURS[ANTERIOR]}
    relabelled = {ANTERIOR: OURS[ANTERIOR] | OURS[POSTERIOR]}

    found = [
        tuple(has(drawn(stack, theirs), rgb) for rgb in (GREEN, RED, YELLOW))
        for theirs in (OURS, added, removed, relabelled)
    ]

    assert found == [
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_slices_that_differ_are_shown_before_others(stack):
    theirs = OURS | {ANTERIOR: OURS[ANTERIOR] & ~box(slice(2, 3), slice(None), slice(None))}

    one, all_of_them = drawn(stack, theirs), drawn(stack, {})

    assert one.height < all_of_them.height


def test_segments_that_are_no_label_are_shown_in_grey(stack):
    lesion = {"Lesion": box(slice(1, 5), slice(4, 12), slice(14, 20))}

    without = count(drawn(stack, OURS), difference._UNMAPPED)  # grey letters
    assert count(drawn(stack, OURS, unmapped=lesion), difference._UNMAPPED) > without + 300


def test_warnings_make_the_picture_taller(stack):
    assert drawn(stack, OURS, warnings=["look here"]).height > drawn(stack, OURS).height


@pytest.mark.parametrize(
    ("ours", "theirs", "line"),
    [
        (100, 90, "Liver: Dice 0.900, 2 slices edited, -10 voxels (-10.0%)"),
        (0, 5, "Liver: Dice 0.900, 2 slices edited, +5 voxels"),
    ],
)
def test_the_line_of_a_label_says_how_it_changed(ours, theirs, line):
    score = LabelScore(
        label="Liver", dice=0.9, edited_slices=(1, 2), prediction_voxels=ours, correction_voxels=theirs
    )

    assert difference.score_line(score) == line
