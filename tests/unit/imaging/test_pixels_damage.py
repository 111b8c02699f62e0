"""Pixels that are cut, damaged or of another size than said are refused; the frame is named."""

import random
import warnings

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.errors import InputError, UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging.images.pixels import decode_planes
from tests.pixel_builders import encode_frame, frames_of, make_image

COMPRESSED = (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless)
STORED = np.random.default_rng(5).integers(0, 3000, (40, 30), dtype=np.uint16)
UID = r"1\.2\.826\.0\.1\.7"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def decode(ds: Dataset, shape: tuple[int, int, int] | None = None) -> np.ndarray:
    frames = frames_of(ds)
    return decode_planes(frames, shape=shape or (len(frames), *frames[0].size))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_native_pixels_that_are_cut_are_refused_with_both_lengths(syntax):
    ds = make_image(STORED, syntax=syntax)
    ds.PixelData = ds.PixelData[:-2]

    with pytest.raises(
        UnreadableInstanceError, match=rf"{UID} .*2398 bytes of Pixel Data, 2400 were expected"
    ):
        decode(ds)


def test_a_file_cut_within_its_pixels_is_refused(tmp_path):
    make_image(STORED).save_as(tmp_path / "image.dcm")
    whole = (tmp_path / "image.dcm").read_bytes()
    (tmp_path / "image.dcm").write_bytes(whole[:-1000])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for defer_size in (None, 1024):
            with pytest.raises(UnreadableInstanceError, match=UID):
                decode(dcmread(tmp_path / "image.dcm", defer_size=defer_size))


def test_a_file_that_is_gone_is_an_error_of_its_image(tmp_path):
    make_image(STORED).save_as(tmp_path / "image.dcm")
    ds = dcmread(tmp_path / "image.dcm", defer_size=1024)
    (tmp_path / "image.dcm").unlink()

    with pytest.raises(UnreadableInstanceError, match=UID):
        decode(ds)


@pytest.mark.parametrize(("keyword", "value"), [("Rows", 20), ("Columns", 29), ("BitsAllocated", 8)])
def test_more_pixels_than_the_header_says_are_another_image(keyword, value):
    ds = make_image(STORED, BitsStored=8)
    setattr(ds, keyword, value)

    with pytest.raises(UnreadableInstanceError, match=r"only .* were expected"):
        decode(ds)


def test_zeros_after_the_pixels_are_padding():
    ds = make_image(STORED)
    ds.PixelData += bytes(512)

    assert np.array_equal(decode(ds)[0], STORED)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("part", [2, 30, 100, 0.3, 0.9, 0.99])
def test_a_cut_codestream_is_refused(syntax, part):
    code = encode_frame(STORED, syntax)
    length = int(part * len(code)) if isinstance(part, float) else part
    ds = make_image(STORED, syntax=syntax)
    ds.PixelData = encapsulate([code[:length]])

    with pytest.raises(UnreadableInstanceError, match=f"pixels of instance {UID} cannot be decoded"):
        decode(ds)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(syntax):
    ds = make_image(STORED, syntax=syntax)
    ds.Rows, ds.Columns = 64, 64

    with pytest.raises(UnreadableInstanceError, match="expected"):
        decode(ds)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_a_damaged_codestream_is_decoded_or_refused_and_ends_nothing(syntax):
    chance, code = random.Random(syntax), encode_frame(STORED, syntax)
    for _ in range(300):
        damaged = bytearray(code)
        for _ in range(chance.choice([1, 3, 20])):
            damaged[chance.randrange(len(code))] = chance.randrange(256)
        ds = make_image(STORED, syntax=syntax)
        ds.PixelData = encapsulate([bytes(damaged)])
        try:
            assert decode(ds).shape == (1, 40, 30)
        except UnreadableInstanceError as refusal:
            assert "1.2.826.0.1.7" in str(refusal)  # noqa: PT017  # either outcome is right


def test_the_frame_of_a_multi_frame_image_is_named():
    codes = [encode_frame(STORED, JPEGLSLossless) for _ in range(3)]
    ds = make_image(np.stack([STORED] * 3), syntax=JPEGLSLossless)
    ds.PixelData = encapsulate([codes[0], codes[1][:-9], codes[2]])

    with pytest.raises(UnreadableInstanceError, match=rf"frame 2 of instance {UID}"):
        decode(ds)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_fewer_frames_than_said_are_refused(syntax):
    ds = make_image(np.stack([STORED] * 3), syntax=syntax)
    ds.NumberOfFrames = 4

    with pytest.raises(UnreadableInstanceError, match="expected"):
        decode(ds)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("BitsAllocated", 12),
        ("BitsAllocated", None),
        ("BitsStored", 17),
        ("BitsStored", 0),
        ("HighBit", 16),
        ("PixelRepresentation", 2),
        ("RescaleSlope", "0"),
        ("RescaleSlope", ["1", "2"]),
        ("RescaleSlope", "1e38"),
    ],
)
def test_impossible_attributes_are_refused(keyword, value):
    ds = make_image(STORED)
    setattr(ds, keyword, value)

    with pytest.raises(UnreadableInstanceError, match=UID):
        decode(ds, (1, 40, 30))


def test_a_plane_of_another_size_than_the_volume_is_refused():
    with pytest.raises(UnreadableInstanceError, match="40 rows and 30 columns, 40 and 31 were expected"):
        decode(make_image(STORED), (1, 40, 31))


def test_a_volume_beyond_the_limit_is_refused_before_anything_is_made():
    ds = make_image(STORED)
    ds.Rows = ds.Columns = 65535

    with pytest.raises(UnsupportedSeriesError, match=r"16\.0 GiB, at most 8 GiB"):
        decode(ds)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.110", "1.2.840.113619.5.2"])
def test_an_unknown_transfer_syntax_is_named(syntax):
    ds = make_image(STORED)
    ds.file_meta.TransferSyntaxUID = syntax

    with pytest.raises(UnsupportedSeriesError, match=syntax):
        decode(ds)


def test_an_image_without_pixels_or_transfer_syntax_is_refused():
    without_pixels, without_syntax = make_image(STORED), make_image(STORED)
    del without_pixels.PixelData
    del without_syntax.file_meta.TransferSyntaxUID

    with pytest.raises(UnreadableInstanceError, match="no Pixel Data"):
        decode(without_pixels)
    with pytest.raises(InputError, match="missing"):
        decode(without_syntax)


ODD_FILES = [
    "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
    "MR_small_RLE.dcm", "MR_small_padded.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
    "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "693_J2KI.dcm", "image_dfl.dcm",
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "rtdose.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_have_the_values_that_pydicom_reads(name):
    ds = dcmread(get_testdata_file(name, download=False))
    frames = frames_of(ds)

    planes = decode_planes(frames, shape=(len(frames), *frames[0].size))

    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    expected = ds.pixel_array.reshape(planes.shape) * slope + intercept
    np.testing.assert_array_equal(planes, expected.astype(np.float32))
