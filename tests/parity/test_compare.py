"""The comparison itself: Dice, ties and axes, worked out by hand."""

from math import log
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.parity import compare

SHAPE = (1, 1, 4)


@pytest.fixture
def expected(tmp_path):
    """A prediction of nnU-Net: four voxels 0, 1, 1, 2."""
    path = tmp_path / "case.nii.gz"
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(np.array([0, 1, 1, 2], np.uint8).reshape(SHAPE)), str(path)
    )
    return path


def _save(expected: Path, *voxels: list[float]) -> None:
    probabilities = np.array(voxels, np.float32).T.reshape(-1, *SHAPE)
    np.savez(expected.with_name("case.npz"), probabilities=probabilities)


def _labels(*values: int) -> compare.LabelArray:
    return np.array(values, np.uint8).reshape(SHAPE)


def test_equal_labels_have_dice_1_and_no_margin(expected):
    found = compare.compare(_labels(0, 1, 1, 2), expected)
    assert found == compare.Comparison(dice={1: 1.0, 2: 1.0}, differing=0, largest_margin=0.0)


def test_dice_counts_each_label_that_either_map_has(expected):
    found = compare.compare(_labels(0, 1, 3, 2), expected)
    assert found.dice == pytest.approx({1: 2 / 3, 2: 1.0, 3: 0.0})
    assert (found.differing, found.largest_margin, found.is_tied) == (1, None, False)


def test_margin_is_the_distance_between_the_logits_of_the_two_labels(expected):
    _save(expected, [0.9, 0.05, 0.05], [0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6])
    found = compare.compare(_labels(0, 2, 2, 2), expected)
    assert found.largest_margin == pytest.approx(log(0.6 / 0.3), rel=1e-6)
    assert not found.is_tied


def test_two_logits_within_a_thousandth_are_a_tie(expected):
    _save(expected, [0.9, 0.05, 0.05], [0.0, 0.5, 0.49975], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6])
    assert compare.compare(_labels(0, 2, 1, 2), expected).is_tied


def test_label_without_a_channel_is_never_a_tie(expected):
    _save(expected, [0.9, 0.05, 0.05], [0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6])
    assert compare.compare(_labels(0, 1, 1, 7), expected).largest_margin == np.inf


def test_region_margin_is_the_farthest_logit_that_has_to_cross_zero(expected):
    # The regions write 1 and then 2: voxel 1 needs its second region on, voxel 3 its second off.
    _save(expected, [0.1, 0.1], [0.9, 0.4], [0.9, 0.1], [0.8, 0.75])
    found = compare.compare(_labels(0, 2, 1, 1), expected, regions_class_order=(1, 2))
    assert found.largest_margin == pytest.approx(log(0.75 / 0.25), rel=1e-6)
    alone = compare.compare(_labels(0, 2, 1, 2), expected, regions_class_order=(1, 2))
    assert alone.largest_margin == pytest.approx(log(0.6 / 0.4), rel=1e-6)
    # To background, both regions go off: the first is the farther one.
    cleared = compare.compare(_labels(0, 1, 1, 0), expected, regions_class_order=(1, 2))
    assert cleared.largest_margin == pytest.approx(log(0.8 / 0.2), rel=1e-6)


def test_volume_has_the_axes_of_simpleitk_and_its_points_in_the_patient(tmp_path):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = SimpleITK.GetImageFromArray(stored)
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0, 0, -1, -1, 0, 0, 0, 1, 0))  # x runs to -y, y to +z, z to -x
    path = tmp_path / "image.nii.gz"
    SimpleITK.WriteImage(image, str(path))
    volume = compare.read_volume(path)
    assert np.array_equal(volume.array, stored)
    assert volume.spacing == pytest.approx((3.0, 2.0, 0.5))
    point = volume.map_indices_to_reference(np.array([[1, 2, 3]]))[0]
    assert point == pytest.approx((10 - 3.0, -20 - 1.5, 30 + 4.0))
    assert point == pytest.approx(image.TransformIndexToPhysicalPoint((3, 2, 1)))
