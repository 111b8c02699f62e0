"""A received series becomes one volume, or is refused with the reason."""

import random

import numpy as np
import pytest
from pydicom.uid import EnhancedMRImageStorage, SecondaryCaptureImageStorage

from dicomnode.errors import GeometryError, UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging.series import to_volume
from tests.imaging_builders import make_series, make_volume, plain_series


def test_slices_follow_position_and_not_instance_number():
    values = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
    datasets = make_series(make_volume(values))
    for number, ds in enumerate(datasets):
        ds.InstanceNumber = (7 * number) % 4
    random.Random(3).shuffle(datasets)

    series = to_volume(datasets)

    np.testing.assert_array_equal(series.image.array, values)
    assert series.image.array.dtype == np.float32
    assert [float(ds.ImagePositionPatient[2]) for ds in series.sources] == [30, 32, 34, 36]


def test_the_affine_maps_indices_to_patient_coordinates_in_lps():
    image = to_volume(plain_series()).image

    # slice 2, row 3, column 4 of spacing 2, 0.75, 0.5 from (-10, 20, 30)
    np.testing.assert_allclose(image.affine @ [2, 3, 4, 1], [-8.0, 22.25, 34.0, 1])
    assert image.frame_of_reference_uid == "1.2.826.0.1.3680043.10.1.1"


def test_slope_and_intercept_are_applied_slice_by_slice():
    datasets = make_series(make_volume(np.full((2, 3, 3), 10, np.uint16)))
    for ds, slope, intercept in zip(datasets, (2, 0.5), (-1024, 3), strict=True):
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept

    image = to_volume(datasets).image

    assert image.array[0, 0, 0] == -1004
    assert image.array[1, 0, 0] == 8


def test_the_received_data_sets_are_left_unchanged():
    datasets = plain_series()
    before = [ds.to_json() for ds in datasets]

    to_volume(datasets)

    assert [ds.to_json() for ds in datasets] == before


def test_a_missing_slice_thickness_is_no_fault():
    datasets = plain_series()
    for ds in datasets:
        del ds.SliceThickness, ds.SpacingBetweenSlices

    assert to_volume(datasets).image.spacing == pytest.approx((2.0, 0.75, 0.5))


def test_a_series_without_frame_of_reference_gets_a_derived_one():
    datasets = plain_series()
    for ds in datasets:
        del ds.FrameOfReferenceUID

    first, second = to_volume(datasets).image, to_volume(datasets[::-1]).image

    assert first.frame_of_reference_uid.startswith("2.25.")
    assert first.frame_of_reference_uid == second.frame_of_reference_uid


def test_a_missing_slice_is_a_gap_with_its_place():
    datasets = plain_series((6, 3, 3))
    del datasets[2]

    with pytest.raises(
        GeometryError, match=r"1\.2\.826.*gap of 4\.000 mm .* 32\.000 and 36\.000 mm where 2\.000"
    ):
        to_volume(datasets)


def test_two_slices_at_one_position_are_refused():
    datasets = plain_series()
    datasets[2].ImagePositionPatient = datasets[1].ImagePositionPatient

    with pytest.raises(GeometryError, match="two slices at one position"):
        to_volume(datasets)


def test_uneven_slices_are_refused():
    datasets = plain_series()
    datasets[1].ImagePositionPatient = [-10, 20, 32.3]

    with pytest.raises(GeometryError, match=r"not evenly spaced.*0\.300 mm beside"):
        to_volume(datasets)


def test_gantry_tilt_is_refused_with_its_angle():
    datasets = plain_series()
    for number, ds in enumerate(datasets):
        ds.ImagePositionPatient = [-10, 20 + 0.5 * number, 30 + 2 * number]

    with pytest.raises(GeometryError, match=r"tilt of about 14\.0 degrees"):
        to_volume(datasets)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_series_without_geometry_is_refused(keyword):
    datasets = plain_series()
    delattr(datasets[1], keyword)

    with pytest.raises(GeometryError, match=f"series without geometry: {keyword}"):
        to_volume(datasets)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.9, 0.43589], "orientation"),
        ("PixelSpacing", [1, 1], "Pixel Spacing"),
        ("Rows", 4, "Rows and Columns"),
        ("FrameOfReferenceUID", "1.2.3", "frames of reference"),
    ],
)
def test_slices_that_differ_are_refused(keyword, value, reason):
    datasets = plain_series()
    setattr(datasets[2], keyword, value)

    with pytest.raises(GeometryError, match=reason):
        to_volume(datasets)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], "localizer"),
        ("PhotometricInterpretation", "RGB", "colour"),
        ("NumberOfFrames", 3, "enhanced multi-frame"),
        ("SOPClassUID", EnhancedMRImageStorage, "enhanced multi-frame"),
        ("SOPClassUID", SecondaryCaptureImageStorage, "Secondary Capture"),
    ],
)
def test_kinds_that_are_not_read_are_refused_with_the_reason(keyword, value, reason):
    datasets = plain_series()
    for ds in datasets:
        setattr(ds, keyword, value)

    with pytest.raises(UnsupportedSeriesError, match=reason):
        to_volume(datasets)


def test_derived_secondary_images_are_taken():
    datasets = plain_series()
    for ds in datasets:
        ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]

    assert to_volume(datasets).image.shape == (4, 5, 6)


def test_an_undecodable_slice_is_named():
    datasets = plain_series()
    datasets[1].PixelData = b"\x00\x01"

    with pytest.raises(UnreadableInstanceError, match=datasets[1].SOPInstanceUID):
        to_volume(datasets)
