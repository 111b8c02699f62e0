"""Filling contours: holes, islands, keyholes, edges; every expected voxel worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dicomnode.imaging.reading.contour_masks import EDGE_TOLERANCE, effort, fill_plane
from dicomnode.imaging.results.contours import closed_rings
from tests.contour_filling import fill
from tests.rtstruct_builders import distance


def ring(*corners):
    return np.array(corners, float)


def square(low, high):
    return ring((low, low), (low, high), (high, high), (high, low))


def block(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def test_a_contour_between_the_centres_holds_the_voxels_within():
    filled = fill_plane([square(0.5, 3.5)], (6, 6))

    np.testing.assert_array_equal(filled.mask, block((6, 6), slice(1, 4), slice(1, 4)))
    assert not filled.overlap
    assert not filled.repeat


@pytest.mark.parametrize("turn", [1, -1])
def test_a_contour_through_the_centres_keeps_the_voxels_on_it_on_every_side(turn):
    filled = fill_plane([square(1.0, 3.0)[::turn]], (6, 6))

    np.testing.assert_array_equal(filled.mask, block((6, 6), slice(1, 4), slice(1, 4)))


def test_a_slanted_edge_through_centres_keeps_them():
    filled = fill_plane([ring((0, 0), (0, 4), (4, 0))], (5, 5))

    np.testing.assert_array_equal(filled.mask, np.add.outer(np.arange(5), np.arange(5)) <= 4)


def test_a_centre_counts_as_on_a_contour_within_the_tolerance_and_not_beyond():
    near, far = EDGE_TOLERANCE / 2, EDGE_TOLERANCE * 2

    assert fill_plane([square(1 + near, 2.5)], (5, 5)).mask.sum() == 4
    assert fill_plane([square(1 + far, 2.5)], (5, 5)).mask.sum() == 1


def test_a_contour_inside_another_is_a_hole_and_one_inside_that_an_island():
    filled = fill_plane([square(2.5, 4.5), square(-0.5, 7.5), square(1.5, 5.5)], (8, 8))

    expected = np.ones((8, 8), bool)
    expected[2:6, 2:6] = False
    expected[3:5, 3:5] = True
    np.testing.assert_array_equal(filled.mask, expected)
    assert not filled.overlap


def test_a_keyhole_in_one_polygon_is_a_hole():
    keyhole = ring(
        *((0.5, 0.5), (0.5, 6.5), (6.5, 6.5), (6.5, 0.5), (3.5, 0.5)),
        *((3.5, 2.5), (4.5, 2.5), (4.5, 4.5), (2.5, 4.5), (2.5, 2.5), (3.5, 2.5), (3.5, 0.5)),
    )

    expected = block((8, 8), slice(1, 7), slice(1, 7))
    expected[3:5, 3:5] = False
    np.testing.assert_array_equal(fill_plane([keyhole], (8, 8)).mask, expected)


def test_contours_that_partly_cover_each_other_are_reported():
    filled = fill_plane([square(0.5, 4.5), square(2.5, 6.5)], (8, 8))

    assert filled.overlap
    assert filled.mask.sum() == 2 * (16 - 4)


def test_contours_side_by_side_do_not_overlap():
    left, right = ring((0, 0), (0, 2.5), (4, 2.5), (4, 0)), ring((0, 2.5), (0, 4), (4, 4), (4, 2.5))

    filled = fill_plane([left, right], (5, 5))

    assert filled.mask.all()
    assert not filled.overlap


def test_a_contour_that_is_there_twice_counts_once_and_is_reported():
    filled = fill_plane([square(0.5, 3.5), square(0.5, 3.5)], (6, 6))

    assert filled.repeat
    assert filled.mask.sum() == 9


def test_a_ring_one_voxel_wide_drawn_along_its_centres_both_ways_is_hollow():
    filled = fill_plane([square(1.0, 4.0), square(1.0, 4.0)[::-1]], (6, 6))

    expected = block((6, 6), slice(1, 5), slice(1, 5))
    expected[2:4, 2:4] = False
    np.testing.assert_array_equal(filled.mask, expected)
    assert not filled.repeat


def test_a_ring_thinner_than_a_voxel_holds_none():
    assert not fill_plane([square(0.6, 3.4), square(0.9, 3.1)], (6, 6)).mask.any()


@pytest.mark.parametrize("points", [[(2, 3)], [(2, 3), (2, 4)], [(2, 3), (3, 4)]])
def test_one_or_two_points_hold_the_voxels_that_they_are_on(points):
    filled = fill_plane([ring(*points)], (6, 6))

    assert sorted(map(tuple, np.argwhere(filled.mask).tolist())) == points


def test_what_lies_outside_of_the_plane_is_cut_off():
    assert fill_plane([square(-50, 50)], (4, 5)).mask.all()
    assert not fill_plane([square(9, 12)], (4, 5)).mask.any()
    assert fill_plane([square(-3.5, 1.5)], (4, 5)).mask.sum() == 4


def test_nothing_is_filled_by_no_contours():
    assert not fill_plane([], (3, 3)).mask.any()


@settings(max_examples=60)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_outlines_of_any_mask_are_the_mask_again(mask):
    filled = fill_plane(closed_rings(mask), mask.shape)

    np.testing.assert_array_equal(filled.mask, mask)
    assert not filled.overlap
    assert not filled.repeat


corners = st.tuples(st.floats(-3, 12), st.floats(-3, 12))


@settings(max_examples=60)
@given(st.lists(corners, min_size=3, max_size=9))
def test_any_polygon_is_what_the_plain_rule_says_but_for_centres_on_it(points):
    polygon = np.array(points)

    filled = fill_plane([polygon], (9, 10)).mask

    differing = np.argwhere(filled != fill(polygon, (9, 10)))
    for centre in differing:
        assert distance(polygon, centre) <= 3 * EDGE_TOLERANCE  # snapping moves a corner, too


def test_the_effort_grows_with_the_part_inside_the_plane_and_with_every_crossing():
    shape = (100, 100)

    assert effort(square(0, 9), shape) < effort(square(0, 90), shape)
    assert effort(square(1e6, 1e9), shape) < 200
    zigzag = np.array([(0, 0), (99, 1)] * 1000, float)
    assert effort(zigzag, shape) > 16 * 99 * 1999
