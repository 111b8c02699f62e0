"""Defects of dcmjs that its own objects show only by what stands beside the number or the length."""

import struct

import numpy as np
import pytest

from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.reading.rle import decode_segments
from tests.imaging_builders import foreign_seg, item, make_card, plain_series

LABELS = ("A first", "B second", "C third")
SEGMENT_NUMBER = 0x0062000B


def box(rows, columns):
    mask = np.zeros((4, 6), bool)
    mask[rows, columns] = True
    return mask


A, B, C = box(slice(0, 2), slice(0, 2)), box(slice(1, 3), slice(1, 3)), box(slice(3, 4), slice(0, 6))


def with_ranks(ds, ranks):
    ds.DimensionIndexSequence = [item(DimensionIndexPointer=SEGMENT_NUMBER)]
    for frame, rank in zip(ds.PerFrameFunctionalGroupsSequence, ranks, strict=True):
        frame.FrameContentSequence = [item(DimensionIndexValues=[rank])]
    return ds


def saved_with_overlap(sources, *, manufacturer="Unspecified", ranks=(1, 2, 3)):
    """As adapters 5.6.8 save it: listed in the order A, C, B, frames with the numbers 1, 3, 2."""
    frames = [(1, 1, A), (3, 1, C), (2, 1, B)]
    labels = (LABELS[0], LABELS[2], LABELS[1])
    return with_ranks(foreign_seg(sources, frames, labels=labels, manufacturer=manufacturer), ranks)


def decode(ds, sources):
    return seg_read.decode(ds, stack=only_stack(sources), card=make_card(LABELS))


def test_labels_that_dcmjs_exchanged_are_told_apart_by_the_dimension_index():
    sources = plain_series((4, 4, 6))

    decoded = decode(saved_with_overlap(sources), sources)

    for label, mask in zip(LABELS, (A, B, C), strict=True):
        np.testing.assert_array_equal(decoded.masks[label][1], mask)
    assert "segment_numbers_remapped" in decoded.flags
    assert max(decoded.confidence.values()) < 1


@pytest.mark.parametrize(
    ("manufacturer", "ranks"),
    [("QIICR", (1, 2, 3)), ("Unspecified", (1, 2, 2)), ("Unspecified", (1, 2, 4))],
    ids=["another writer", "a segment without rank", "a rank beyond the list"],
)
def test_the_numbers_of_frames_hold_where_the_dimension_index_proves_nothing(manufacturer, ranks):
    sources = plain_series((4, 4, 6))

    decoded = decode(saved_with_overlap(sources, manufacturer=manufacturer, ranks=ranks), sources)

    np.testing.assert_array_equal(decoded.masks["B second"][1], C)
    assert "segment_numbers_remapped" not in decoded.flags


def rle(*body):
    return struct.pack("<16L", 1, 64, *[0] * 14) + bytes(body)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_byte_of_padding_ends_run_lengths_whatever_its_value(padding):
    (decoded,) = decode_segments(rle(0xFE, 1, 1, 7, 8, padding), count=1, most=8)

    assert decoded.tolist() == [1, 1, 1, 7, 8]


@pytest.mark.parametrize("body", [(0xFE, 1, 5, 7), (0xFE, 1, 2, 7, 1), (0xFE, 1, 0xFE)])
def test_run_lengths_that_are_cut_are_refused(body):
    with pytest.raises(RuntimeError, match="CORRUPT"):
        decode_segments(rle(*body), count=1, most=8)


def as_fractions(ds, value):
    masks = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")[: 4 * 6 * 3]
    ds.SegmentationType, ds.SegmentationFractionalType, ds.MaximumFractionalValue = (
        "FRACTIONAL",
        "PROBABILITY",
        255,
    )
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelData = (masks * value).astype(np.uint8).tobytes()
    return ds


def three_labels(sources, manufacturer):
    return foreign_seg(sources, [(1, 1, A), (2, 1, B), (3, 1, C)], labels=LABELS, manufacturer=manufacturer)


def test_fractions_of_one_by_dcmjs_are_a_mask():
    sources = plain_series((4, 4, 6))

    decoded = decode(as_fractions(three_labels(sources, "Unspecified"), 1), sources)

    for label, mask in zip(LABELS, (A, B, C), strict=True):
        np.testing.assert_array_equal(decoded.masks[label][1], mask)
    assert {"fractional", "fractions_of_one"} <= set(decoded.flags)
    assert decoded.doubts == ()


@pytest.mark.parametrize(("manufacturer", "value"), [("QIICR", 1), ("Unspecified", 2)])
def test_other_low_fractions_are_left_to_a_person(manufacturer, value):
    sources = plain_series((4, 4, 6))

    decoded = decode(as_fractions(three_labels(sources, manufacturer), value), sources)

    assert decoded.masks == {}
    assert "below half" in decoded.doubts[0]
