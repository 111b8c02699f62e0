"""Digests that say whether two masks are the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dicomnode.imaging.identity import MaskDigest, mask_sha256, voxels_sha256

MASKS = arrays.arrays(np.bool_, (3, 4, 9))


@given(one=MASKS, other=MASKS)
def test_digests_are_equal_where_the_masks_are(one, other):
    assert (mask_sha256(one) == mask_sha256(other)) == np.array_equal(one, other)


@given(mask=MASKS, axis=st.integers(0, 2))
def test_a_mask_that_is_moved_has_another_digest(mask, axis):
    moved = np.roll(mask, 1, axis=axis)

    assert (mask_sha256(moved) == mask_sha256(mask)) == np.array_equal(moved, mask)


def test_the_same_voxels_in_another_shape_have_another_digest():
    small, large = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 5), bool)
    small[0, 1, 2] = large[0, 1, 2] = True

    assert mask_sha256(small) != mask_sha256(large)
    assert mask_sha256(~small & small) != mask_sha256(~large & large)


@given(mask=MASKS, rows=st.integers(0, 3), columns=st.integers(0, 8))
def test_a_digest_may_be_taken_of_the_corner_that_holds_the_voxels(mask, rows, columns):
    mask[:, :rows], mask[:, :, :columns] = False, False
    digest = MaskDigest(mask.shape)
    for index, plane in enumerate(mask):
        digest.add(index, plane[rows:, columns:], corner=(rows, columns))

    assert digest.sha256() == mask_sha256(mask)


def test_labels_without_voxels_do_not_count():
    mask = np.ones((2, 2, 2), bool)

    assert voxels_sha256({"A": mask, "B": ~mask}) == voxels_sha256({"A": mask})
    assert voxels_sha256({"A": mask}) != voxels_sha256({"B": mask})
