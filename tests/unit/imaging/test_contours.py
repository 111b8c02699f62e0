"""Outlines of masks: filled by the centres of pixels they are the masks again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dicomnode.imaging.results.contours import closed_rings
from tests.contour_filling import fill, winding

RING = np.pad(np.pad(np.zeros((2, 2), bool), 1, constant_values=True), 1)


def area(ring):
    rows, columns = ring.T
    return abs(rows @ np.roll(columns, -1) - columns @ np.roll(rows, -1)) / 2


@given(mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=14)))
def test_every_mask_comes_back_from_its_outlines(mask):
    rings = closed_rings(mask)
    filled = [fill(ring, mask.shape) for ring in rings]

    assert np.array_equal(np.logical_or.reduce([*filled, np.zeros_like(mask)]), mask)


@given(
    mask=st.floats(0.4, 0.97).flatmap(
        lambda share: st.integers(0, 2**32 - 1).map(
            lambda seed: np.random.default_rng(seed).random((24, 24)) < share
        )
    )
)
def test_readers_that_join_exclude_or_wind_agree_on_masks_full_of_holes(mask):
    joined, excluded, wound = (np.zeros(mask.shape, kind) for kind in (bool, bool, int))
    for ring in closed_rings(mask):
        joined |= fill(ring, mask.shape)
        excluded ^= fill(ring, mask.shape)
        wound += winding(ring, mask.shape)

    assert np.array_equal(joined, mask)
    assert np.array_equal(excluded, mask)
    assert np.array_equal(wound != 0, mask)


def test_a_single_pixel_is_a_diamond():
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True

    (ring,) = closed_rings(mask)

    assert sorted(map(tuple, ring.tolist())) == [(0.5, 2.0), (1.0, 1.5), (1.0, 2.5), (1.5, 2.0)]


def test_a_pixel_in_the_corner_of_the_image_has_a_whole_outline():
    (ring,) = closed_rings(np.array([[True, False], [False, False]]))

    assert ring.min() == -0.5
    assert area(ring) == pytest.approx(0.5)


def test_a_rectangle_needs_eight_corners_whatever_its_size():
    (ring,) = closed_rings(np.ones((40, 70), bool))

    assert len(ring) == 8
    assert area(ring) == pytest.approx(40 * 70 - 4 / 8)  # each corner of a pixel is cut by half a half pixel


def test_a_hole_is_joined_to_its_outline_by_a_channel_without_width():
    (ring,) = closed_rings(RING)

    assert fill(ring, RING.shape).sum() == 12
    assert area(ring) == pytest.approx((16 - 0.5) - (4 - 0.5))
    corners = ring.tolist()
    rows = [corner[0] for corner in corners if corners.count(corner) > 1]
    assert rows  # corners at which the channel is entered and left
    assert all(row % 1 == 0.5 for row in rows)  # between two rows of pixels


def test_an_island_in_a_hole_is_a_ring_of_its_own():
    mask = np.pad(RING, 3, constant_values=True)
    mask[5:7, 5:7] = False
    mask[4:8, 4:8] = RING[1:5, 1:5] * False
    mask[5, 5] = True

    rings = closed_rings(mask)

    assert len(rings) == 2
    assert np.array_equal(fill(rings[0], mask.shape) | fill(rings[1], mask.shape), mask)


def test_an_empty_mask_has_no_outline():
    assert closed_rings(np.zeros((5, 5), bool)) == []
