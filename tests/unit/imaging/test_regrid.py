"""Between received planes and the regular grid, with numbers that can be worked out by hand."""

import numpy as np
import pytest

from dicomnode.imaging.images.regrid import backed_slices, labels_to_planes, mask_to_image, planes_to_image
from dicomnode.imaging.images.stacks import only_stack
from tests.frame_builders import column_of_planes, tilted


def constant_planes(stack, values):
    return np.ones(stack.shape, np.float32) * np.array(values, np.float32)[:, None, None]


def test_nothing_is_copied_for_a_regular_stack():
    stack = only_stack(column_of_planes([0, 2, 4]))
    planes = constant_planes(stack, [1, 2, 3])
    labels, mask = planes.astype(np.uint8), planes > 1

    assert planes_to_image(planes, stack) is planes
    assert labels_to_planes(labels, stack) is labels
    assert mask_to_image(mask, stack) is mask
    assert backed_slices(stack).all()


def test_missing_slices_are_interpolated_between_their_neighbours():
    stack = only_stack(column_of_planes([0, 2, 4, 10, 12]))

    image = planes_to_image(constant_planes(stack, [0, 1, 2, 8, 9]), stack)

    np.testing.assert_allclose(image[:, 0, 0], [0, 1, 2, 4, 6, 8, 9])
    assert stack.missing_slices == 2
    assert backed_slices(stack).tolist() == [True, True, True, False, False, True, True]


def test_a_slice_beside_its_place_is_brought_to_the_grid():
    stack = only_stack(column_of_planes([0, 2, 4, 6.8, 8, 10]))  # the fourth lies 0.4 spacings too high

    image = planes_to_image(constant_planes(stack, [0, 2, 4, 6.8, 8, 10]), stack)

    np.testing.assert_allclose(image[:, 0, 0], [0, 2, 4, 6, 8, 10], rtol=1e-6)
    np.testing.assert_allclose(stack.offsets[:, 0], [0, 1, 2, 3.4, 4, 5])
    assert stack.missing_slices == 1
    assert "not evenly spaced: 1.200 to 2.800 mm, a slice lies 0.800 mm beside" in stack.remarks[0]


def test_a_last_slice_beyond_the_grid_is_repeated_and_keeps_its_labels():
    stack = only_stack(column_of_planes([0, 2, 4, 6, 8.6]))
    planes = constant_planes(stack, [0, 1, 2, 3, 9])

    image = planes_to_image(planes, stack)
    labels = labels_to_planes(np.arange(5, dtype=np.uint8).repeat(12).reshape(5, 3, 4), stack)

    assert stack.grid.shape == (5, 3, 4)
    np.testing.assert_allclose(image[:, 0, 0], [0, 1, 2, 3, 3 + 6 / 1.3], rtol=1e-6)
    assert labels[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_planes_that_drift_half_a_row_are_interpolated_between_rows():
    stack = only_stack(tilted(2))  # by 0.5 mm, half a row
    planes = np.zeros(stack.shape, np.float32)
    planes[1, 1, 3] = 8

    image = planes_to_image(planes, stack)

    assert stack.grid.shape == (2, 6, 6)
    assert image[1, 1, 3] == 4
    assert image[1, 2, 3] == 4
    assert image.sum() == 8


def test_outside_the_planes_the_image_has_their_minimum():
    stack = only_stack(tilted(3, sideways_mm=1))

    image = planes_to_image(constant_planes(stack, [-1000, 5, 5]), stack)

    assert (image[2, :2] == -1000).all()
    assert (image[2, 2:] == 5).all()


def test_a_mask_goes_to_the_nearest_slice_and_a_slice_without_plane_stays_empty():
    stack = only_stack(column_of_planes([0, 2, 4, 8, 10]))
    mask = np.ones(stack.shape, bool)

    on_grid = mask_to_image(mask, stack)

    assert on_grid[:, 0, 0].tolist() == [True, True, True, False, True, True]


def test_the_nearer_of_two_planes_gives_a_slice_its_mask():
    stack = only_stack(column_of_planes([0, 2, 4, 6, 8, 10, 11.4, 14, 16, 18]))
    mask = np.zeros(stack.shape, bool)
    mask[6] = True  # 0.3 spacings below slice 6

    assert np.flatnonzero(mask_to_image(mask, stack)[:, 0, 0]).tolist() == [6]


@pytest.mark.parametrize(
    ("heights", "spacing", "missing"),
    [
        ([0, 2.01, 3.99, 6, 8], 2.0, 0),  # jitter
        ([0, 2, 4, 6, 12, 14], 2.0, 2),
        ([0, 5, 10, 15, 25, 35], 5.0, 1),  # thick slices further up
    ],
)
def test_the_spacing_is_that_of_most_gaps(heights, spacing, missing):
    stack = only_stack(column_of_planes(heights))

    assert stack.grid.spacing_mm[0] == pytest.approx(spacing)
    assert stack.missing_slices == missing
    assert stack.is_regular is (missing == 0)
    assert stack.refusal == ""


@pytest.mark.parametrize(
    "heights",
    [
        [0, 2, 6, 10, 14],  # half of the places are empty
        [0, 7.5, 20, 52.5, 60, 175],
        [0, 1, 3, 7, 15, 31],
    ],
)
def test_slices_without_any_spacing_are_still_a_stack_but_no_volume(heights):
    stack = only_stack(column_of_planes(heights))

    assert "no regular spacing" in stack.refusal
    assert len(stack.frames) == len(heights)
    assert not stack.is_regular


def test_many_gaps_are_counted_and_not_all_named():
    heights = [2.0 * k for k in range(40) if k % 6 != 5]

    remarks = only_stack(column_of_planes(heights)).remarks

    assert len(remarks) == 4
    assert remarks[0].startswith("a gap of 4.000 mm between the slices at 8.000 and 12.000 mm where 2.000 mm")
    assert remarks[-1] == "3 more gaps of up to 4.000 mm"


def test_a_jump_in_the_image_plane_is_not_called_tilt():
    datasets = tilted(6, sideways_mm=0)
    for ds in datasets[3:]:
        ds.ImagePositionPatient = [-10, 25, ds.ImagePositionPatient[2]]

    stack = only_stack(datasets)

    assert stack.remarks == ("the slices drift 5.000 mm sideways over 10.000 mm (not in one direction)",)
    assert stack.grid.shape == (6, 10, 6)


def test_planes_that_drift_further_than_any_gantry_are_refused():
    assert "drift so far sideways" in only_stack(tilted(5, sideways_mm=8)).refusal
