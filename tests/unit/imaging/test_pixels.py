"""Stored values become modality units, whatever their bits, their sign and their transfer syntax."""

import struct

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.imaging.images.pixels import decode_planes
from tests.imaging_builders import item
from tests.pixel_builders import frames_of, make_image

NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
LOSSLESS = (*NATIVE, RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def decode(*images: Dataset, threads: int | None = None) -> np.ndarray:
    frames = [frame for ds in images for frame in frames_of(ds)]
    return decode_planes(frames, shape=(len(frames), *frames[0].size), threads=threads)


def test_slope_and_intercept_are_applied_in_this_order():
    ds = make_image(
        np.array([[0, 1000], [2000, 4095]], np.uint16), RescaleSlope="2", RescaleIntercept="-1024"
    )

    planes = decode(ds)

    assert planes.dtype == np.float32
    assert planes.tolist() == [[[-1024, 976], [2976, 7166]]]


def test_each_image_has_its_own_slope_and_intercept():
    stored = np.array([[10, 20]], np.uint16)
    first = make_image(stored, RescaleSlope="0.5", RescaleIntercept="1")
    second = make_image(stored, RescaleSlope="3", RescaleIntercept="0.25")
    third = make_image(stored)

    assert decode(first, second, third).tolist() == [[[6, 11]], [[30.25, 60.25]], [[10, 20]]]


def test_a_fraction_is_rounded_once():
    ds = make_image(np.array([[30001]], np.uint16), RescaleSlope="0.123456789", RescaleIntercept="-2000.7")

    assert decode(ds)[0, 0, 0] == np.float32(30001 * 0.123456789 - 2000.7)


def test_an_empty_slope_or_intercept_is_as_none():
    ds = make_image(np.array([[7]], np.uint16), RescaleSlope="", RescaleIntercept="")

    assert decode(ds).tolist() == [[[7]]]


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i2", "<u4", "<i4"])
@pytest.mark.parametrize("syntax", NATIVE)
def test_the_ends_of_every_native_type_are_kept(dtype, syntax):
    ends = np.array([[np.iinfo(dtype).min, 0, np.iinfo(dtype).max]], dtype)

    assert decode(make_image(ends, syntax=syntax)).tolist() == [np.float32(ends).tolist()]


@pytest.mark.parametrize("syntax", LOSSLESS)
@given(data=st.data())
def test_a_frame_of_any_values_and_lossless_syntax_comes_back(syntax, data):
    shape = data.draw(st.tuples(st.integers(8, 20), st.integers(8, 20)))
    dtype = data.draw(st.sampled_from(["<u2", "<i2", "u1"]))
    stored = data.draw(arrays.arrays(dtype, shape))

    assert np.array_equal(decode(make_image(stored, syntax=syntax))[0], stored)


@pytest.mark.parametrize("syntax", [*NATIVE, RLELossless])
def test_bits_beyond_those_stored_are_dropped(syntax):
    """0xA and 0x5 stand in the four bits of old overlays; 0xF9C of 12 signed bits is -100."""
    unsigned = np.array([[0xA001, 0x5FFF]], np.uint16)
    signed = np.array([[0xA001, 0x5F9C]], np.uint16).view(np.int16)

    assert decode(make_image(unsigned, syntax=syntax, BitsStored=12)).tolist() == [[[1, 4095]]]
    assert decode(make_image(signed, syntax=syntax, BitsStored=12)).tolist() == [[[1, -100]]]


def test_values_in_the_upper_bits_are_found_by_high_bit():
    """PS3.5 of 1993 allowed it: 12 bits in 15 to 4, an overlay in 3 to 0."""
    stored = np.array([[0x0015, 0xF9C3]], np.uint16)

    assert decode(make_image(stored, BitsStored=12, HighBit=15)).tolist() == [[[1, 0xF9C]]]
    assert decode(make_image(stored.view(np.int16), BitsStored=12, HighBit=15)).tolist() == [[[1, -100]]]


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2KLossless, JPEGLSLossless])
def test_the_data_set_says_the_sign_where_the_codestream_says_another(syntax):
    signed = np.arange(-50, 50, dtype=np.int16).reshape(10, 10)
    as_unsigned = make_image(signed.view(np.uint16), syntax=syntax)
    as_unsigned.PixelRepresentation = 1

    assert np.array_equal(decode(as_unsigned)[0], signed)


def test_the_precision_of_jpeg_ls_says_where_the_sign_is():
    """13 bits, unsigned in the codestream as always: 8092 is -100 where the data set says signed."""
    ds = make_image(np.full((8, 8), 8092, np.uint16), BitsStored=13)
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 1

    assert decode(ds)[0, 0, 0] == -100


def test_the_precision_of_jpeg_does_not_say_where_the_sign_is():
    """Signed 16 bits of values that need only 12, compressed as 12: 4000 stays positive."""
    values = np.full((8, 8), 4000, np.uint16)
    ds = make_image(values.view(np.int16), syntax=JPEGLosslessSV1)
    ds.PixelData = encapsulate([bytes(imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=12))])

    assert decode(ds)[0, 0, 0] == 4000


def test_values_of_monochrome1_are_not_turned():
    ds = make_image(np.array([[0, 9]], np.uint16), PhotometricInterpretation="MONOCHROME1")

    assert decode(ds).tolist() == [[[0, 9]]]


def test_a_modality_lut_takes_the_place_of_the_slope():
    """Values below the first of the table have its first entry, values beyond its last the last."""
    table = item(LUTDescriptor=[3, 10, 16], ModalityLUTType="HU", LUTData=struct.pack("<3H", 100, 150, 400))
    ds = make_image(np.array([[9, 10, 11, 12, 13]], np.uint16), ModalityLUTSequence=[table], RescaleSlope="7")

    assert decode(ds).tolist() == [[[100, 100, 150, 400, 400]]]


def test_the_transformation_of_a_frame_comes_before_that_of_its_instance():
    ds = make_image(np.array([[[5]], [[5]], [[5]]], np.uint16), RescaleSlope="9")
    own = item(PixelValueTransformationSequence=[item(RescaleSlope="2", RescaleIntercept="-1")])
    shared = item(PixelValueTransformationSequence=[item(RescaleSlope="10", RescaleIntercept="3")])
    frames = frames_of(ds, groups=[(own, shared), (Dataset(), shared), ()])

    assert decode_planes(frames, shape=(3, 1, 1)).reshape(-1).tolist() == [9, 53, 45]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_frames_of_one_object_are_found_by_their_numbers(syntax):
    stored = np.arange(3 * 64, dtype=np.uint16).reshape(3, 8, 8)
    frames = frames_of(make_image(stored, syntax=syntax))

    planes = decode_planes([frames[2], frames[0]], shape=(2, 8, 8))

    assert np.array_equal(planes, stored[[2, 0]])


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_threads_change_nothing(syntax):
    stored = np.random.default_rng(3).integers(0, 4000, (12, 40, 30), dtype=np.uint16)
    images = [make_image(plane, syntax=syntax, RescaleSlope="0.1", PixelPaddingValue=9) for plane in stored]

    assert np.array_equal(decode(*images, threads=1), decode(*images, threads=7))


def test_padding_of_a_ct_becomes_its_lowest_valid_value():
    """Padding is compared before the transformation (PS3.3 C.7.5.1.1.2): -2000 would become -3024 HU."""
    padded = np.array([[-2000, 24], [-2000, 1024]], np.int16)
    lower = np.array([[0, 24], [30, 1024]], np.int16)
    images = [
        make_image(plane, PixelPaddingValue=-2000, RescaleIntercept="-1024") for plane in (padded, lower)
    ]

    assert decode(images[0]).tolist() == [[[-1000, -1000], [-1000, 0]]]
    assert decode(*images).tolist() == [[[-1024, -1000], [-1024, 0]], [[-1024, -1000], [-994, 0]]]


def test_a_padding_value_of_the_wrong_sign_is_understood():
    ds = make_image(np.array([[-2000, 24]], np.int16))
    ds.add_new("PixelPaddingValue", "US", 63536)

    assert decode(ds).tolist() == [[[24, 24]]]


@pytest.mark.parametrize("limits", [(-2000, -1990), (-1990, -2000)])
def test_all_values_of_a_padding_range_are_padding(limits):
    ds = make_image(
        np.array([[-1000, -2000, -1995, -1990, -900]], np.int16),
        PixelPaddingValue=limits[0],
        PixelPaddingRangeLimit=limits[1],
    )

    assert decode(ds).tolist() == [[[-1000, -1000, -1000, -1000, -900]]]


def test_padding_of_an_mr_is_no_signal():
    padded = make_image(np.array([[0, 17], [9, 40]], np.uint16), PixelPaddingValue=0, Modality="MR")
    phase = make_image(np.array([[-32768, -400], [9, 40]], np.int16), PixelPaddingValue=-32768, Modality="MR")

    assert decode(padded).tolist() == [[[0, 17], [9, 40]]]
    assert decode(phase).tolist() == [[[-400, -400], [9, 40]]]


def test_padding_within_the_range_of_the_values_stays_as_received():
    ds = make_image(np.array([[-1010, -1000, 24]], np.int16), PixelPaddingValue=-1000)

    assert decode(ds).tolist() == [[[-1010, -1000, 24]]]


def test_padding_above_all_values_becomes_the_highest():
    ds = make_image(np.array([[5, 65535, 300]], np.uint16), PixelPaddingValue=65535)

    assert decode(ds).tolist() == [[[5, 300, 300]]]


def test_a_plane_of_padding_alone_takes_the_lowest_value_of_the_others():
    padding = make_image(np.full((2, 2), -2000, np.int16), PixelPaddingValue=-2000)
    other = make_image(np.array([[-7, 1], [2, 3]], np.int16))

    assert decode(padding, other)[0].tolist() == [[-7, -7], [-7, -7]]
    assert decode(padding).tolist() == [[[-2000, -2000], [-2000, -2000]]]


def test_what_is_fetched_from_a_file_is_not_kept(tmp_path):
    stored = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    for syntax in (ExplicitVRLittleEndian, JPEGLSLossless):
        make_image(stored, syntax=syntax).save_as(tmp_path / "image.dcm")
        ds = dcmread(tmp_path / "image.dcm", defer_size=1024)

        assert np.array_equal(decode(ds)[0], stored)
        assert ds.get_item("PixelData", keep_deferred=True).value is None
