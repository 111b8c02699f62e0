"""Pixels as bytes: what is packed or compressed comes back, also through pydicom."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom.pixels.decoders.rle import _rle_decode_frame as pydicom_decode_rle
from pydicom.pixels.utils import unpack_bits

from dicomnode.imaging.results.seg_encode import decode_rle, encode_rle, pack_frames, unpack_frame

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 300))
FRAMES = SIDES.flatmap(
    lambda shape: arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 1, 9]))
)


@given(frame=FRAMES)
def test_a_compressed_frame_comes_back(frame):
    stored = encode_rle(frame)

    assert len(stored) % 2 == 0
    np.testing.assert_array_equal(decode_rle(stored, shape=frame.shape), frame)
    decoded = pydicom_decode_rle(stored, *frame.shape, 1, 8)
    np.testing.assert_array_equal(np.frombuffer(decoded, np.uint8).reshape(frame.shape), frame)


def test_an_even_area_needs_two_bytes_for_128_pixels_of_a_row():
    assert len(encode_rle(np.zeros((512, 512), np.uint8))) == 64 + 512 * 4 * 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda stored: stored[:-2], "a run is missing"),
        (lambda stored: stored + b"\x00\x07", "a run too many"),
        (lambda stored: stored[:64] + bytes([254]) + stored[65:], "a longer run"),
        (lambda stored: b"\x02" + stored[1:], "two segments"),
        (lambda stored: stored[:64] + b"\x05\x00" + stored[66:], "a literal run"),
    ],
)
def test_run_lengths_that_do_not_fill_the_rows_are_refused(spoil, reason):
    stored = encode_rle(np.array([[1, 1], [2, 2]], np.uint8))

    with pytest.raises(ValueError, match="do not fill"):
        decode_rle(spoil(stored), shape=(2, 2))


@given(
    labels=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9)).flatmap(
        lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 3))
    ),
    numbers=st.lists(st.integers(1, 3), min_size=1, max_size=20),
)
def test_packed_frames_come_back(labels, numbers):
    frames = [(number, index % len(labels)) for index, number in enumerate(numbers)]
    masks = np.stack([labels[plane] == number for number, plane in frames])

    stored = pack_frames(labels, frames)

    assert len(stored) % 2 == 0
    np.testing.assert_array_equal(unpack_bits(stored)[: masks.size].reshape(masks.shape), masks)
    packed = np.frombuffer(stored, np.uint8)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(unpack_frame(packed, index, shape=mask.shape), mask)
