"""The picture of a segmentation: right way round, true proportions, legible legend."""

import numpy as np
import pytest

from dicomnode.imaging.images.series import stack_volume
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.pictures.overlay import spread_window, to_grey
from dicomnode.imaging.pictures.preview import (
    BACKGROUND,
    MARGIN,
    MINIMUM_WIDTH,
    PICTURE_WIDTH,
    findings_montage,
    montage,
)
from dicomnode.imaging.results.findings import measure
from tests.frame_builders import tilted
from tests.imaging_builders import AXIAL, make_card, make_series, make_volume, plain_series
from tests.seg_builders import found_at, found_in

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


def test_a_tilted_stack_is_shown_as_it_was_taken_with_its_remark():
    series = stack_volume(only_stack(tilted(6)))
    labels = np.zeros(series.image.shape, np.uint8)
    labels[2, 2:4, 2:4] = 1
    findings = measure(series.image.with_array(labels), series=series, card=CARD)

    picture = np.asarray(findings_montage(findings, title="t")).astype(int)

    assert is_red(picture)[60:].any()
    is_amber = (picture[..., 0] > 200) & (picture[..., 1] > 140) & (picture[..., 2] < 130)
    assert is_amber[-80:].sum() > 200  # the remark on the tilt, below the legend


def test_long_lists_of_labels_stand_side_by_side_and_within_the_picture():
    card = make_card([f"Structure with a long name number {number}" for number in range(1, 31)])
    labels = np.zeros((4, 30, 30), np.uint8)
    labels[1, 5, :30] = np.arange(1, 31)
    findings = found_in(make_series(make_volume(np.zeros((4, 30, 30), np.uint16))), labels, card)

    few = findings_montage(found_at(plain_series(), CARD, [(1, 1, 1)]), title="t")
    many = findings_montage(findings, title="t", notes=["a long note " * 40])

    assert many.width <= PICTURE_WIDTH
    assert few.width >= MINIMUM_WIDTH
    pixels = np.asarray(many).astype(int)
    assert np.array_equal(
        pixels[:, -MARGIN // 2 :], np.broadcast_to(BACKGROUND, pixels[:, -MARGIN // 2 :].shape)
    )


def test_where_nothing_was_found_the_whole_middle_slice_is_shown():
    picture = findings_montage(found_at(plain_series(), CARD), title="t")

    assert not is_red(picture).any()
    assert picture.width == MINIMUM_WIDTH


def test_the_window_leaves_out_the_rarest_values():
    values = np.arange(1000, dtype=np.float32)
    values[-1] = 1e6

    assert spread_window(values) == pytest.approx((9.99, 994.0), abs=0.1)
    assert to_grey(np.array([0, 10, 1e6], np.float32), (10.0, 20.0)).tolist() == [0, 0, 255]
