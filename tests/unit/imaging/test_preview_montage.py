"""The picture of a segmentation: right way round, true proportions, legible legend."""

import numpy as np
import pytest

from dicomnode.imaging.preview import MARGIN, montage
from tests.imaging_builders import AXIAL, make_card, make_volume

CARD = make_card()


def is_red(picture):
    rgb = np.asarray(picture).astype(int)
    return (rgb[..., 0] > 120) & (rgb[..., 0] > rgb[..., 1] + 60) & (rgb[..., 0] > rgb[..., 2] + 60)


def picture_of(place, *, axes=AXIAL, shape=(10, 40, 40)):
    labels = np.zeros(shape, np.uint8)
    labels[place] = 1
    image = make_volume(np.full(shape, 100, np.uint16), axes=axes, spacing_mm=(1, 1, 1))
    return montage(image, labels, CARD, title="t", columns=1, rows=1, width=512)


def centre_of_red(picture):
    rows, columns = np.nonzero(is_red(picture)[60:-70])  # without title and legend
    return rows.mean() + 60, columns.mean()


@pytest.mark.parametrize("flip", [1, -1])
def test_the_patients_right_is_on_the_left_of_the_picture(flip):
    axes = AXIAL * np.array([1, 1, flip])  # column axis towards the left or the right of the patient
    to_the_right = slice(2, 6) if flip == 1 else slice(34, 38)

    picture = picture_of((slice(2, 5), slice(18, 22), to_the_right), axes=axes)

    assert centre_of_red(picture)[1] < MARGIN + (512 - 2 * MARGIN) / 2


def test_the_front_is_on_top():
    labelled = picture_of((slice(2, 5), slice(2, 6), slice(18, 22)))

    assert centre_of_red(labelled)[0] < 68 + 240


def test_voxels_keep_their_true_proportions():
    labels = np.zeros((4, 30, 30), np.uint8)
    labels[1, 10:20, 10:20] = 1
    image = make_volume(np.zeros((4, 30, 30), np.uint16), spacing_mm=(2, 2.0, 0.5))

    red = is_red(montage(image, labels, CARD, title="", columns=1, rows=1, width=512))[60:-70]

    height, width = np.ptp(np.nonzero(red)[0]) + 1, np.ptp(np.nonzero(red)[1]) + 1
    assert height / width == pytest.approx(4, rel=0.1)


def test_without_labels_the_whole_image_is_shown():
    image = make_volume(np.zeros((4, 30, 30), np.uint16))

    assert not is_red(montage(image, np.zeros((4, 30, 30), np.uint8), CARD, title="nothing"))[:-70].any()
