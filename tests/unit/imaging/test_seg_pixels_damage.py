"""Pixels of segmentations that are cut, changed or lie about their size: read, or refused in bounds."""

import random
import struct
import tracemalloc

import imagecodecs
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pack_bits
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicomnode.errors import CorrectionError
from dicomnode.imaging.reading.seg_codes import DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED
from dicomnode.imaging.reading.seg_pixels import checked_size, fraction_threshold, iter_frames, pixel_flags
from dicomnode.imaging.results.seg_encode import encode_rle
from tests.pixel_builders import encode_frame
from tests.seg_pixel_builders import as_bits, bare_seg, blob_masks, deflated, items, run_lengths

SIZE = (21, 17)
MASKS = blob_masks(3, SIZE)
LABELS = MASKS * np.uint8(3)
NAME = r"segmentation 1\.2\.826\.0\.1\.3680043\.10\.9\.1"


def one_of_each():
    """A segmentation in every form, by name."""
    bits = {
        "bits": (ExplicitVRLittleEndian, pack_bits(MASKS.reshape(-1))),
        "aligned bits": (ExplicitVRLittleEndian, b"".join(as_bits(mask) for mask in MASKS)),
        "RLE bits": (RLELossless, encapsulate([run_lengths(as_bits(mask)) for mask in MASKS])),
        "RLE bytes": (RLELossless, encapsulate([run_lengths(mask.tobytes()) for mask in MASKS])),
        "deflated bits": (DEFLATED_FRAMES, encapsulate([deflated(as_bits(mask)) for mask in MASKS])),
        "J2K bits": (JPEG2000Lossless, encapsulate([encode_frame(x, JPEG2000Lossless) for x in MASKS])),
        "wrapped": (ExplicitVRLittleEndian, items([pack_bits(MASKS.reshape(-1))], offsets=[0])),
        "wrapped RLE": (ExplicitVRLittleEndian, encapsulate([run_lengths(as_bits(mask)) for mask in MASKS])),
    }
    forms = {name: bare_seg(MASKS, syntax=syntax, value=value) for name, (syntax, value) in bits.items()}
    for name in ("wrapped", "wrapped RLE"):
        forms[name]["PixelData"].is_undefined_length = True
    for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, HTJ2KLossless):
        value = encapsulate([encode_frame(frame, syntax) for frame in LABELS])
        forms[syntax.name] = bare_seg(LABELS, kind="LABELMAP", syntax=syntax, value=value)
    words = LABELS.astype("<u2") * 300
    value = encapsulate([encode_frame(frame, RLELossless) for frame in words])
    forms["RLE words"] = bare_seg(words, kind="LABELMAP", syntax=RLELossless, value=value)
    fractions = encapsulate([deflated(frame.tobytes()) for frame in LABELS])
    forms["deflated bytes"] = bare_seg(LABELS, kind="FRACTIONAL", syntax=DEFLATED_FRAMES, value=fractions)
    forms["deflated bytes"].MaximumFractionalValue = 3
    return forms


FORMS = one_of_each()


def outcome(ds):
    """The frames, or None where they are refused; any other error is a failure of the test."""
    try:
        pixel_flags(ds)
        return np.stack(list(iter_frames(ds)))
    except CorrectionError:
        return None


def with_value(form, value):
    ds = one_of_each()[form]
    ds.PixelData = value
    return ds


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_whole_before_it_is_damaged(form):
    np.testing.assert_array_equal(outcome(FORMS[form]) > 0, MASKS > 0)


@pytest.mark.parametrize("form", FORMS)
def test_pixel_data_that_are_cut_anywhere_are_refused(form):
    ds = one_of_each()[form]
    whole = ds.PixelData
    for length in range(len(whole) - 3):
        ds.PixelData = whole[:length]
        assert outcome(ds) is None, length


@pytest.mark.parametrize("form", FORMS)
def test_frames_that_are_cut_are_refused_with_the_frame(form):
    if "wrapped" in form or "bits" in {form, form.removeprefix("aligned ")}:
        return  # their frames have no codes of their own
    ds = one_of_each()[form]
    codes = [encapsulated[1] for encapsulated in fragments(ds.PixelData)]
    for length in range(len(codes[1]) - 3):
        ds.PixelData = items([codes[0], codes[1][:length], codes[2]], offsets=[])
        with pytest.raises(CorrectionError, match=f"{NAME}: frame 2 cannot be decoded"):
            list(iter_frames(ds))


@pytest.mark.parametrize("form", FORMS)
def test_changed_bytes_are_read_or_refused(form):
    ds = one_of_each()[form]
    whole, chance = ds.PixelData, random.Random(form)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            changed[chance.randrange(len(changed))] = chance.choice(
                [0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)]
            )
        ds.PixelData = bytes(changed)
        frames = outcome(ds)
        assert frames is None or frames.shape == MASKS.shape


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "keyword",
    ["Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"],
)
@pytest.mark.parametrize("value", [None, "empty", 0, 1, 2, 7, 8, 16, 20, 65535])
def test_changed_sizes_are_refused_or_do_not_matter(form, keyword, value):
    ds = one_of_each()[form]
    if value is None:
        del ds[keyword]
    else:
        setattr(ds, keyword, None if value == "empty" else value)

    frames = outcome(ds)

    assert frames is None or np.array_equal(frames > 0, MASKS > 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless, DEFLATED_FRAMES, "1.2.3", ""],
)
def test_another_transfer_syntax_is_refused_or_does_not_matter(form, syntax):
    ds = one_of_each()[form]
    ds.file_meta.TransferSyntaxUID = syntax

    frames = outcome(ds)

    assert frames is None or np.array_equal(frames > 0, MASKS > 0)


def test_a_segmentation_without_transfer_syntax_is_refused():
    ds = one_of_each()["bits"]
    del ds.file_meta

    with pytest.raises(CorrectionError, match=r"transfer syntax \(missing\) are not read"):
        list(iter_frames(ds))


@pytest.mark.parametrize(
    ("syntax", "bomb"),
    [
        (RLELossless, struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 2_000_000),
        (DEFLATED_FRAMES, deflated(bytes(256_000_000))),
        (RLELossless, struct.pack("<16L", 1, 64, *[0] * 14) + b"\x80" * 2_000_000),
    ],
)
@pytest.mark.parametrize("bits", [1, 8])
def test_codes_that_yield_more_than_a_frame_are_refused_without_the_memory(syntax, bomb, bits):
    value = encapsulate([bomb])
    kind = "BINARY" if bits == 1 else "LABELMAP"
    ds = bare_seg(MASKS[:1], kind=kind, bits=bits, syntax=syntax, value=value)
    tracemalloc.start()
    try:
        with pytest.raises(CorrectionError, match="frame 1 cannot be decoded"):
            list(iter_frames(ds))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 3 * len(value) + 100_000  # the code itself, joined and cut, and one frame


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("size", [(22, 19), (19, 21), (4000, 4000)])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(syntax, size):
    code = encode_frame(np.zeros(size, np.uint8), syntax)
    ds = bare_seg(LABELS[:1], kind="LABELMAP", syntax=syntax, value=encapsulate([code]))

    with pytest.raises(CorrectionError, match=rf"the codestream holds {size[0]} rows, {size[1]} columns"):
        list(iter_frames(ds))


@pytest.mark.parametrize("frames", [4, 100_000])
def test_more_frames_than_there_are_fragments_are_refused(frames):
    ds = one_of_each()["RLE bits"]
    ds.NumberOfFrames = frames

    with pytest.raises(CorrectionError, match=f"there are 3 fragments, {frames} frames were expected"):
        list(iter_frames(ds))


def test_fewer_frames_than_the_offset_table_names_are_refused():
    ds = one_of_each()["RLE bits"]
    ds.NumberOfFrames = 2

    with pytest.raises(CorrectionError, match="which of its 3 fragments"):
        list(iter_frames(ds))


def test_items_without_number_are_not_collected():
    ds = with_value("RLE bits", b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 1_000_000)

    with pytest.raises(CorrectionError, match="more than 16576 items"):
        list(iter_frames(ds))


def test_an_offset_table_that_exchanges_frames_is_refused():
    ds = one_of_each()["RLE bits"]
    codes = [code for _, code in fragments(ds.PixelData)]
    starts = [0, len(codes[0]) + 8, len(codes[0]) + len(codes[1]) + 16]
    ds.PixelData = items(codes, offsets=[starts[1], starts[0], starts[2]])

    with pytest.raises(CorrectionError, match="in another order"):
        list(iter_frames(ds))


@pytest.mark.parametrize("offsets", [[0, 5, 9], [7], [0, 0, 0], [2**32 - 1] * 3])
def test_an_offset_table_that_makes_no_sense_is_not_needed_where_each_frame_has_one_fragment(offsets):
    codes = [run_lengths(as_bits(mask)) for mask in MASKS]

    np.testing.assert_array_equal(outcome(with_value("RLE bits", items(codes, offsets=offsets))), MASKS)


@pytest.mark.parametrize("offsets", [[0, 5, 9], [7], [0, 0, 0], [8, 72, 100], []])
def test_an_offset_table_that_makes_no_sense_is_refused_where_frames_have_several(offsets):
    codes = [run_lengths(as_bits(mask)) for mask in MASKS]
    parts = [part for code in codes for part in (code[:64], code[64:])]

    assert outcome(with_value("RLE bits", items(parts, offsets=offsets))) is None


@pytest.mark.parametrize("count", [0, 2, 15, 2**31])
@pytest.mark.parametrize("form", ["RLE bits", "RLE Lossless"])
def test_run_lengths_of_another_number_of_segments_are_refused(count, form):
    code = bytearray(fragments(FORMS[form].PixelData)[0][1])
    code[:4] = struct.pack("<L", count)
    ds = with_value(form, encapsulate([bytes(code)] * 3))

    with pytest.raises(CorrectionError, match=f"{count} RLE segments, 1 were expected"):
        list(iter_frames(ds))


@pytest.mark.parametrize("offset", [0, 60, 10_000, 2**32 - 1])
def test_run_lengths_that_start_in_their_header_or_beyond_the_end_are_refused(offset):
    code = bytearray(fragments(FORMS["RLE words"].PixelData)[0][1])
    code[4:8] = struct.pack("<L", offset)

    with pytest.raises(CorrectionError, match="RLE segments at"):
        list(iter_frames(with_value("RLE words", encapsulate([bytes(code)] * 3))))


def test_a_label_map_with_more_pixels_than_a_frame_in_its_run_lengths_is_refused():
    code = encode_rle(np.zeros((SIZE[0] + 1, SIZE[1]), np.uint8))

    with pytest.raises(CorrectionError, match="frame 1 cannot be decoded"):
        list(iter_frames(with_value("RLE Lossless", encapsulate([code] * 3))))


def test_codestreams_that_do_not_keep_values_are_refused_whatever_their_syntax_says():
    picture = (LABELS[0] * np.uint8(60)).astype(np.uint8)
    codes = {
        JPEG2000Lossless: imagecodecs.jpeg2k_encode(picture, level=30, reversible=False, codecformat="j2k"),
        JPEGLSLossless: imagecodecs.jpegls_encode(picture, level=3),
        JPEGLosslessSV1: imagecodecs.jpeg8_encode(picture, level=90),
    }
    for syntax, code in codes.items():
        ds = bare_seg(picture[None], kind="LABELMAP", syntax=syntax, value=encapsulate([bytes(code)]))
        with pytest.raises(CorrectionError, match="does not keep values"):
            list(iter_frames(ds))


def test_a_syntax_that_allows_an_error_is_refused():
    with pytest.raises(CorrectionError, match=r"JPEG-LS Lossy.* does not keep values"):
        list(iter_frames(bare_seg(LABELS, kind="LABELMAP", syntax=JPEGLSNearLossless, value=b"\0" * 8)))


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_only_binary_segmentations_have_pixels_of_one_bit(kind):
    ds = bare_seg(MASKS, kind=kind, bits=1, value=pack_bits(MASKS.reshape(-1)))

    with pytest.raises(CorrectionError, match=f"{kind} pixels of 1 bit"):
        list(iter_frames(ds))


@pytest.mark.parametrize(
    ("kind", "keyword", "value", "reason"),
    [
        ("BINARY", "BitsStored", 8, "frame 1 holds values up to 3, 0 and 1 were expected"),
        ("LABELMAP", "BitsStored", 1, "1 bits stored up to bit 7 of 8"),
        ("LABELMAP", "HighBit", 15, "8 bits stored up to bit 15 of 8"),
        ("FRACTIONAL", "MaximumFractionalValue", 2, "frame 1 holds 3, at most 2 was expected"),
    ],
)
def test_values_that_the_header_excludes_are_refused(kind, keyword, value, reason):
    ds = bare_seg(LABELS, kind=kind, bits=8, value=LABELS.tobytes() + b"\0")
    setattr(ds, keyword, value)

    with pytest.raises(CorrectionError, match=reason):
        list(iter_frames(ds))


def test_labels_beyond_the_bits_stored_are_refused():
    ds = bare_seg(LABELS, kind="LABELMAP", value=LABELS.tobytes() + b"\0")
    ds.BitsStored, ds.HighBit = 1, 0

    with pytest.raises(CorrectionError, match="frame 1 holds 3, at most 1 was expected"):
        list(iter_frames(ds))


@pytest.mark.parametrize(
    ("rows", "columns", "frames"), [(65535, 65535, 5), (1, 1, 100_001), (512, 512, 2**31 - 1)]
)
def test_a_header_that_claims_too_much_is_refused_at_once(rows, columns, frames):
    ds = one_of_each()["bits"]
    ds.Rows, ds.Columns, ds.NumberOfFrames = rows, columns, frames

    with pytest.raises(CorrectionError, match="at most 100000 frames and 17179869184 pixels are read"):
        checked_size(ds)


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_pixels_of_another_length_are_refused(syntax):
    ds = one_of_each()["bits"]
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData += b"\0\0\0\0"

    with pytest.raises(CorrectionError, match="138 bytes of pixel data, 134 were expected"):
        list(iter_frames(ds))


def test_frames_without_gaps_that_are_padded_to_the_length_of_aligned_ones_are_refused():
    ds = one_of_each()["bits"]
    ds.PixelData += b"\0"  # 135 bytes, of which aligned frames leave three bits of each last byte unused

    with pytest.raises(CorrectionError, match=r"frame 1 cannot be decoded: .* the bits after it are set"):
        list(iter_frames(ds))


def test_an_uncompressed_item_of_another_length_is_refused():
    ds = bare_seg(MASKS, syntax=ENCAPSULATED_UNCOMPRESSED, value=encapsulate([bytes(52)] * 3))

    with pytest.raises(CorrectionError, match="52 bytes hold 357 pixels neither"):
        list(iter_frames(ds))


def test_a_threshold_is_not_sought_in_pixels_that_cannot_be_read():
    ds = bare_seg(LABELS, kind="FRACTIONAL", value=b"\0" * 10)

    with pytest.raises(CorrectionError, match="10 bytes of pixel data"):
        fraction_threshold(ds)


def fragments(value):
    """Where each fragment starts, and its bytes; the Basic Offset Table is left out."""
    found, at = [], 0
    while at < len(value):
        (length,) = struct.unpack_from("<L", value, at + 4)
        found.append((at, value[at + 8 : at + 8 + length]))
        at += 8 + length
    return found[1:]
