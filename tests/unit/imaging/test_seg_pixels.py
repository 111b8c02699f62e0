"""Frames of segmentations in every form in which they are stored."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.utils import pack_bits
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.errors import CorrectionError
from dicomnode.imaging.reading.seg_codes import DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED
from dicomnode.imaging.reading.seg_pixels import (
    fraction_threshold,
    has_aligned_frames,
    iter_frames,
    pixel_flags,
)
from dicomnode.imaging.results.seg_encode import encode_rle
from tests.pixel_builders import encode_frame
from tests.seg_pixel_builders import as_bits, bare_seg, blob_masks, deflated, items, reread, run_lengths

SIZES = [(8, 16), (5, 7), (1, 3), (3, 11), (64, 48)]
CODECS = (RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1)


def read(ds):
    return np.stack(list(iter_frames(ds)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_bits_are_read_without_gaps_between_frames(size, syntax):
    masks = blob_masks(3, size)
    ds = bare_seg(masks, syntax=syntax, value=pack_bits(masks.reshape(-1)))

    np.testing.assert_array_equal(read(reread(ds)), masks)
    assert pixel_flags(ds) == frozenset()


def test_bits_in_frames_that_each_start_on_a_byte_are_read_and_flagged():
    masks = blob_masks(5, (5, 7))
    ds = bare_seg(masks, value=b"".join(as_bits(mask) for mask in masks))

    np.testing.assert_array_equal(read(ds), masks)
    assert has_aligned_frames(ds)
    assert pixel_flags(ds) == {"frames_byte_aligned"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["bits", "bytes", "bytes of 255"])
@pytest.mark.parametrize("compression", ["RLE", "deflated frames", "none"])
def test_bits_in_items_are_read_packed_or_one_per_byte(size, form, compression):
    masks = blob_masks(4, size)
    syntax, encode = {
        "RLE": (RLELossless, run_lengths),
        "deflated frames": (DEFLATED_FRAMES, deflated),
        "none": (ENCAPSULATED_UNCOMPRESSED, bytes),
    }[compression]
    of_form = {
        "bits": as_bits,
        "bytes": np.ndarray.tobytes,
        "bytes of 255": lambda mask: (mask * np.uint8(255)).tobytes(),
    }
    frames = [encode(of_form[form](mask)) for mask in masks.astype(np.uint8)]

    ds = reread(bare_seg(masks, syntax=syntax, value=encapsulate(frames)))

    np.testing.assert_array_equal(read(ds), masks)
    assert pixel_flags(ds) == ({"one_bit_rle"} if compression == "RLE" else frozenset())


def test_the_first_pixel_of_packed_run_lengths_is_in_the_lowest_bit():
    masks = np.zeros((1, 1, 16), np.uint8)
    masks[0, 0, [0, 9]] = 1

    ds = bare_seg(masks, syntax=RLELossless, value=encapsulate([run_lengths(b"\x01\x02")]))

    np.testing.assert_array_equal(read(ds), masks)


def test_packed_bits_padded_to_an_even_length_before_they_were_compressed_are_read():
    masks = blob_masks(2, (3, 8))
    frames = [run_lengths(as_bits(mask) + b"\0") for mask in masks]

    np.testing.assert_array_equal(read(bare_seg(masks, syntax=RLELossless, value=encapsulate(frames))), masks)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(b"\1\0", (1, 0)), (b"\3\0", (1, 1)), (b"\1\1", (1, 1)), (b"\0\1", (0, 1)), (b"\2", (0, 1))],
)
def test_two_pixels_are_read_where_both_forms_agree_or_only_one_is_possible(stored, expected):
    masks = np.zeros((1, 1, 2), np.uint8)

    ds = bare_seg(masks, syntax=RLELossless, value=encapsulate([run_lengths(stored)]))

    assert tuple(read(ds)[0, 0]) == expected


@pytest.mark.parametrize("stored", [b"\x00\x07", b"\x00\x80", b"\xff\x00", b"\x02" * 10, b"\x00\x00\x00"])
def test_one_bit_run_lengths_that_neither_form_allows_are_refused(stored):
    """Ten pixels: bits beyond the tenth, bytes other than 0 and 1, a length of neither."""
    ds = bare_seg(np.zeros((1, 2, 5), np.uint8), syntax=RLELossless, value=encapsulate([run_lengths(stored)]))

    if stored == b"\xff\x00":  # eight pixels of the first byte: allowed
        assert read(ds).sum() == 8
    else:
        with pytest.raises(CorrectionError, match=r"\d+ bytes hold 10 pixels neither"):
            read(ds)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [(5, 7), (40, 48)])
@pytest.mark.parametrize("syntax", [*CODECS, DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED])
def test_label_maps_of_bytes_and_words_are_read_in_every_lossless_compression(bits, size, syntax):
    labels = blob_masks(3, size).astype(f"<u{bits // 8}") * (200 if bits == 8 else 40_000)
    encode = {
        DEFLATED_FRAMES: lambda frame: deflated(frame.tobytes()),
        ENCAPSULATED_UNCOMPRESSED: np.ndarray.tobytes,
    }.get(syntax, lambda frame: encode_frame(frame, syntax))

    ds = bare_seg(labels, kind="LABELMAP", syntax=syntax, value=encapsulate([encode(x) for x in labels]))

    np.testing.assert_array_equal(read(reread(ds)), labels)
    assert pixel_flags(ds) == frozenset()


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_big_endian_words_are_brought_in_order(bits):
    values = blob_masks(2, (4, 8)) if bits == 1 else blob_masks(2, (4, 8)).astype(f"<u{bits // 8}") * 7
    little = pack_bits(values.reshape(-1)) if bits == 1 else values.tobytes()
    swapped = np.frombuffer(little, "<u2").astype(">u2").tobytes()
    kind = "BINARY" if bits == 1 else "LABELMAP"
    ds = bare_seg(values, kind=kind, syntax=ExplicitVRBigEndian, value=swapped)
    ds["PixelData"].VR = "OW"

    np.testing.assert_array_equal(read(ds), values)


@pytest.mark.parametrize("size", [(8, 16), (5, 7)])
@pytest.mark.parametrize("is_gapless", [True, False])
@pytest.mark.parametrize("fragment_bytes", [20_480, 10])
@pytest.mark.parametrize("has_delimiter", [True, False])
def test_uncompressed_bits_that_were_wrapped_in_items_are_unwrapped(
    size, is_gapless, fragment_bytes, has_delimiter
):
    """As dcmjs 0.49.1 writes: one offset, all frames in one stream, cut in fragments of 20 KiB."""
    masks = blob_masks(5, size)
    whole = pack_bits(masks.reshape(-1)) if is_gapless else b"".join(as_bits(mask) for mask in masks)
    whole += b"\0" * (len(whole) % 2)
    fragments = [whole[at : at + fragment_bytes] for at in range(0, len(whole), fragment_bytes)]
    value = items(fragments, offsets=[0]) + (b"\xfe\xff\xdd\xe0\0\0\0\0" if has_delimiter else b"")

    ds = bare_seg(masks, value=value)

    np.testing.assert_array_equal(read(ds), masks)
    gaps = {"frames_byte_aligned"} if not is_gapless and size == (5, 7) else set()
    assert pixel_flags(ds) == {"encapsulated_under_native"} | gaps


@pytest.mark.parametrize("form", ["bits", "run lengths"])
def test_frames_that_were_wrapped_one_by_one_are_unwrapped(form):
    masks = blob_masks(3, (3, 11))
    encode = as_bits if form == "bits" else lambda mask: run_lengths(as_bits(mask))

    ds = bare_seg(masks, value=encapsulate([encode(mask) for mask in masks]))

    np.testing.assert_array_equal(read(ds), masks)
    assert pixel_flags(ds) == {"encapsulated_under_native"} | ({"one_bit_rle"} if form != "bits" else set())


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_label_map_that_was_wrapped_in_items_is_unwrapped(is_compressed):
    labels = blob_masks(3, (6, 7)) * np.uint8(3)
    frames = [encode_rle(frame) if is_compressed else frame.tobytes() for frame in labels]

    ds = bare_seg(labels, kind="LABELMAP", value=encapsulate(frames))

    np.testing.assert_array_equal(read(ds), labels)


def test_pixels_that_merely_begin_as_an_item_does_stay_as_they_are():
    masks = np.unpackbits(np.frombuffer(b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 3, np.uint8), bitorder="little")
    masks = masks.reshape(3, 8, 8)

    ds = bare_seg(masks, value=pack_bits(masks.reshape(-1)))

    np.testing.assert_array_equal(read(ds), masks)
    assert pixel_flags(ds) == frozenset()


def test_items_whose_content_may_be_run_lengths_or_pixels_are_refused():
    header = struct.pack("<16L", 1, 64, *[0] * 14)
    masks = np.zeros((1, 8, 66), np.uint8)

    with pytest.raises(CorrectionError, match="run lengths or uncompressed pixels cannot be told"):
        read(bare_seg(masks, value=encapsulate([header + b"\xff\x00"])))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, DEFLATED_FRAMES])
@pytest.mark.parametrize("table", ["basic", "extended"])
def test_frames_in_several_fragments_are_put_together_by_the_offset_table(syntax, table):
    labels = blob_masks(3, (40, 48)) * np.uint8(2)
    codes = [deflated(x.tobytes()) if syntax == DEFLATED_FRAMES else encode_frame(x, syntax) for x in labels]
    codes = [code + b"\0" * (len(code) % 2) for code in codes]
    fragments = [[code[:20], code[20:40], code[40:]] for code in codes]
    starts = np.cumsum([0] + [len(code) + 8 * 3 for code in codes[:-1]]).tolist()

    value = items([part for parts in fragments for part in parts], offsets=starts if table == "basic" else [])
    ds = bare_seg(labels, kind="LABELMAP", syntax=syntax, value=value)
    if table == "extended":
        ds.ExtendedOffsetTable = struct.pack("<3Q", *starts)
        ds.ExtendedOffsetTableLengths = struct.pack("<3Q", *map(len, codes))

    np.testing.assert_array_equal(read(ds), labels)


def test_an_extended_offset_table_is_tolerated():
    labels = blob_masks(3, (6, 7)) * np.uint8(2)
    ds = bare_seg(labels, kind="LABELMAP", syntax=RLELossless, value=b"")
    encoded = encapsulate_extended([encode_rle(frame) for frame in labels])
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encoded

    np.testing.assert_array_equal(read(reread(ds)), labels)


def test_fragments_without_a_table_are_put_together_where_codestreams_mark_their_begin():
    labels = blob_masks(3, (40, 48)) * np.uint8(2)
    codes = [encode_frame(frame, JPEG2000Lossless) for frame in labels]
    value = items([part for code in codes for part in (code[:30], code[30:])], offsets=[])

    np.testing.assert_array_equal(
        read(bare_seg(labels, kind="LABELMAP", syntax=JPEG2000Lossless, value=value)), labels
    )


def test_fragments_without_a_table_and_without_a_mark_are_refused():
    labels = blob_masks(3, (40, 48))
    codes = [encode_rle(frame) for frame in labels]
    value = items([part for code in codes for part in (code[:64], code[64:])], offsets=[])

    with pytest.raises(CorrectionError, match="which of its 6 fragments make up each of 3 frames"):
        read(bare_seg(labels, kind="LABELMAP", syntax=RLELossless, value=value))


@pytest.mark.parametrize("syntax", [JPEG2000, HTJ2K])
def test_a_compression_that_may_have_changed_labels_is_flagged(syntax):
    labels = blob_masks(2, (40, 48)) * np.uint8(2)
    codes = [encode_frame(frame, JPEG2000Lossless) for frame in labels]
    ds = bare_seg(labels, kind="LABELMAP", syntax=syntax, value=encapsulate(codes))

    np.testing.assert_array_equal(read(ds), labels)
    assert pixel_flags(ds) == {"maybe_lossy"}


@pytest.mark.parametrize("fraction", ["PROBABILITY", "OCCUPANCY"])
@pytest.mark.parametrize("maximum", [1, 100, 255])
def test_fractions_belong_from_half_of_their_maximum_on(fraction, maximum):
    values = np.array([[[0, maximum // 2, (maximum + 1) // 2, maximum]]], np.uint8)
    ds = bare_seg(values, kind="FRACTIONAL", value=values.tobytes())
    ds.SegmentationFractionalType, ds.MaximumFractionalValue = fraction, maximum

    belongs = read(ds) >= fraction_threshold(ds)

    assert belongs.tolist() == (2 * values.astype(int) >= maximum).tolist()
    assert pixel_flags(ds) == frozenset()


@pytest.mark.parametrize("maximum", [None, 0, 256, -1])
@pytest.mark.parametrize("value", [0, 1, 200, 255])
def test_fractions_without_a_maximum_are_read_where_they_have_one_value(maximum, value):
    values = blob_masks(2, (4, 5)) * np.uint8(value)
    ds = bare_seg(values, kind="FRACTIONAL", value=values.tobytes())
    if maximum is not None:
        ds.add_new("MaximumFractionalValue", "SS" if maximum < 0 else "US", maximum)

    np.testing.assert_array_equal(read(ds) >= fraction_threshold(ds), values > 0)
    assert pixel_flags(ds) == {"no_maximum_fractional_value"}


def test_fractions_without_a_maximum_that_have_several_values_are_refused():
    values = np.array([[[0, 100, 255]]], np.uint8)
    ds = bare_seg(values, kind="FRACTIONAL", value=values.tobytes() + b"\0")

    with pytest.raises(CorrectionError, match=r"without a Maximum Fractional Value .* 2 values"):
        fraction_threshold(ds)


def test_fractions_of_which_none_belongs_are_flagged():
    values = np.array([[[0, 1, 1, 0]]], np.uint8)
    ds = bare_seg(values, kind="FRACTIONAL", value=values.tobytes())
    ds.MaximumFractionalValue = 255

    assert pixel_flags(ds) == {"fractions_below_half"}


@pytest.mark.parametrize("inside", [1, 255])
def test_a_binary_segmentation_of_bytes_is_read(inside):
    masks = blob_masks(3, (4, 6))
    ds = bare_seg(masks * np.uint8(inside), bits=8, value=(masks * np.uint8(inside)).tobytes())

    np.testing.assert_array_equal(read(ds), masks)


Run = st.one_of(
    st.binary(min_size=1, max_size=128).map(lambda run: (bytes([len(run) - 1]) + run, run)),
    st.tuples(st.integers(2, 128), st.binary(min_size=1, max_size=1)).map(
        lambda run: (bytes([257 - run[0]]) + run[1], run[0] * run[1])
    ),
    st.just((b"\x80", b"")),
)


@given(runs=st.lists(Run, min_size=1, max_size=30), is_padded=st.booleans())
@settings(deadline=None)
def test_any_run_lengths_are_read_as_the_standard_says(runs, is_padded):
    expected = b"".join(run for _, run in runs)
    if not expected:
        return
    code = struct.pack("<16L", 1, 64, *[0] * 14) + b"".join(code for code, _ in runs) + b"\0" * is_padded
    labels = np.frombuffer(expected, np.uint8).reshape(1, 1, -1)

    ds = bare_seg(labels, kind="LABELMAP", syntax=RLELossless, value=items([code], offsets=[0]))

    np.testing.assert_array_equal(read(ds), labels)


@given(
    st.integers(1, 40).flatmap(
        lambda pixels: st.lists(
            st.lists(st.booleans(), min_size=pixels, max_size=pixels), min_size=1, max_size=5
        )
    ),
    st.sampled_from(["packed", "RLE bits", "RLE bytes", "deflated"]),
)
@settings(deadline=None)
def test_any_bits_come_back(masks, form):
    masks = np.array(masks, np.uint8)[:, None]
    encode = {
        "RLE bits": lambda mask: run_lengths(as_bits(mask)),
        "RLE bytes": lambda mask: run_lengths(mask.tobytes()),
        "deflated": lambda mask: deflated(as_bits(mask)),
    }.get(form)
    syntax = {"packed": ExplicitVRLittleEndian, "deflated": DEFLATED_FRAMES}.get(form, RLELossless)
    value = encapsulate([encode(mask) for mask in masks]) if encode else pack_bits(masks.reshape(-1))

    np.testing.assert_array_equal(read(bare_seg(masks, syntax=syntax, value=value)), masks)


def test_a_deflated_frame_may_be_padded_but_nothing_else_may_follow_it():
    masks = blob_masks(1, (8, 8))
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    code = stream.compress(as_bits(masks[0])) + stream.flush()

    padded = bare_seg(masks, syntax=DEFLATED_FRAMES, value=items([code + b"\0"], offsets=[]))
    np.testing.assert_array_equal(read(padded), masks)
    with pytest.raises(CorrectionError, match="2 bytes stand after the deflated frame"):
        read(bare_seg(masks, syntax=DEFLATED_FRAMES, value=items([code + b"\0\0"], offsets=[])))
