"""A received series becomes one volume, or is refused with the reason."""

import random

import numpy as np
import pytest
from pydicom.uid import (
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
)

from dicomnode.errors import GeometryError, UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging.images.series import to_volume
from tests.frame_builders import frame_groups, item, multi_frame
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


def test_a_missing_slice_is_interpolated_where_that_is_allowed():
    datasets = plain_series((6, 3, 3))
    del datasets[2]

    volume = to_volume(datasets, maximum_missing=1)

    expected = np.arange(54).reshape(6, 3, 3)  # its values grow by 9 from slice to slice: linear
    np.testing.assert_array_equal(volume.image.array, expected)
    np.testing.assert_array_equal(volume.planes, np.delete(expected, 2, axis=0))
    assert volume.stack.missing_slices == 1
    assert "a slice is missing" in volume.stack.remarks[0]


def test_a_wider_gap_than_allowed_is_refused_with_the_instance_before_it():
    datasets = plain_series((8, 3, 3))
    before = datasets[2].SOPInstanceUID
    del datasets[3:5]

    with pytest.raises(
        GeometryError, match=f"2 slices are missing; 1 missing .*the widest gap follows .*{before}"
    ):
        to_volume(datasets, maximum_missing=1)


def test_slices_without_any_regular_spacing_are_refused_whatever_is_allowed():
    datasets = plain_series((6, 3, 3))
    for ds, z in zip(datasets, (0, 7.5, 20, 52.5, 60, 175), strict=True):
        ds.ImagePositionPatient = [-10, 20, z]

    with pytest.raises(GeometryError, match=r"no regular spacing: gaps of 7\.500 to 115\.000 mm"):
        to_volume(datasets, maximum_missing=1000)


def test_a_grid_that_would_not_fit_into_memory_is_refused_before_it_is_made():
    datasets = plain_series((6, 3, 3))
    datasets[-1].ImagePositionPatient = [-10, 20, 99_000]
    for ds in datasets:
        ds.Rows, ds.Columns, ds.PixelSpacing = 8000, 8000, [0.1, 0.1]

    with pytest.raises(GeometryError, match=r"GiB"):
        to_volume(datasets, maximum_missing=10**9)


def test_gantry_tilt_is_kept_in_the_planes_and_taken_out_of_the_image():
    datasets = plain_series()
    for number, ds in enumerate(datasets):
        ds.ImagePositionPatient = [-10, 20 + 0.75 * number, 30 + 2 * number]  # one row further each

    volume = to_volume(datasets)

    assert volume.image.shape == (4, 5 + 3, 6)
    for index in range(4):
        np.testing.assert_array_equal(volume.image.array[index, index : index + 5], volume.planes[index])
    np.testing.assert_array_equal(volume.image.array[3, :3], 0)  # outside: the minimum
    assert not volume.stack.is_regular
    assert "tilt of about 20.6 degrees" in volume.stack.remarks[0]


def test_labels_return_to_the_tilted_planes():
    datasets = plain_series()
    for number, ds in enumerate(datasets):
        ds.ImagePositionPatient = [-10, 20 + 0.75 * number, 30 + 2 * number]
    volume = to_volume(datasets)

    labels = (volume.image.array % 7).astype(np.uint8)

    np.testing.assert_array_equal(volume.on_planes(labels), volume.planes % 7)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_series_without_geometry_is_refused(keyword):
    datasets = plain_series()
    delattr(datasets[1], keyword)

    with pytest.raises(GeometryError, match=f"series without geometry: {keyword}"):
        to_volume(datasets)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.9, 0.43589], "2 stacks: .*orientation 1.000 0.000"),
        ("PixelSpacing", [1, 1], "2 stacks: .*pixels of 1 x 1 mm"),
        ("Rows", 4, "2 stacks: .*4 x 6 pixels"),
        ("FrameOfReferenceUID", "1.2.3", "2 stacks: .*frame of reference 1.2.3"),
    ],
)
def test_slices_that_differ_are_no_single_volume(keyword, value, reason):
    datasets = plain_series()
    setattr(datasets[2], keyword, value)

    with pytest.raises(UnsupportedSeriesError, match=reason):
        to_volume(datasets)


def drop(keyword):
    return lambda ds: delattr(ds, keyword)


def put(keyword, value):
    return lambda ds: setattr(ds, keyword, value)


def siemens_mosaic(ds):
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 36)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (
            put("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]),
            "mosaic.*send the unpacked or enhanced",
        ),
        (siemens_mosaic, "mosaic"),
        (put("PhotometricInterpretation", "RGB"), "colour images .RGB"),
        (put("PhotometricInterpretation", "PALETTE COLOR"), "colour images .PALETTE COLOR"),
        (put("NumberOfFrames", 3), "3 frames without functional groups"),
        (put("SOPClassUID", EnhancedMRImageStorage), "without functional groups"),
        (put("SOPClassUID", SecondaryCaptureImageStorage), "Secondary Capture"),
        (put("SOPClassUID", RTDoseStorage), "RT Dose Storage is not CT, MR or PET"),
        (put("SOPClassUID", EnhancedMRColorImageStorage), "Enhanced MR Color"),
        (put("FloatPixelData", b"\0\0\0\0"), "parametric maps"),
        (drop("PixelData"), "no pixel data"),
    ],
)
def test_kinds_that_are_not_read_are_refused_with_the_reason(change, reason):
    datasets = plain_series()
    for ds in datasets:
        change(ds)

    with pytest.raises(UnsupportedSeriesError, match=reason):
        to_volume(datasets)


@pytest.mark.parametrize(
    ("types", "is_refused"), [(["LOCALIZER", "LOCALIZER"], True), (["LOCALIZER", "M"], False)]
)
def test_a_multi_frame_image_is_a_localizer_when_all_its_frames_are(types, is_refused):
    frames = [
        frame_groups(
            (0, 0, z), MRImageFrameTypeSequence=item(FrameType=["ORIGINAL", "PRIMARY", kind, "NONE"])
        )
        for z, kind in enumerate(types)
    ]
    ds = multi_frame(
        frames, np.zeros((2, 3, 4), np.uint16), ImageType=["ORIGINAL", "PRIMARY", "MIXED", "NONE"]
    )

    if is_refused:
        with pytest.raises(UnsupportedSeriesError, match="a localizer is not a volume"):
            to_volume([ds])
    else:
        assert to_volume([ds]).image.shape == (2, 3, 4)


def scout(ds):
    ds.ImageType, ds.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [1, 0, 0, 0, 0, -1]


def screen_capture(ds):
    ds.SOPClassUID, ds.PhotometricInterpretation, ds.SamplesPerPixel = SecondaryCaptureImageStorage, "RGB", 3
    del ds.ImagePositionPatient


@pytest.mark.parametrize("become", [scout, screen_capture])
def test_what_scanners_put_beside_the_slices_is_left_out(become):
    datasets = plain_series((5, 3, 3))
    become(datasets[0])

    series = to_volume(datasets)

    assert series.sources == tuple(datasets[1:])
    np.testing.assert_array_equal(series.planes.reshape(-1), np.arange(9, 45))


def test_a_slice_without_pixels_is_not_left_out_like_a_scout():
    datasets = plain_series((5, 3, 3))
    del datasets[0].PixelData

    with pytest.raises(UnsupportedSeriesError, match=f"no pixel data .*{datasets[0].SOPInstanceUID}"):
        to_volume(datasets)


def test_a_number_of_frames_of_0_is_named_and_not_taken_for_missing_geometry():
    datasets = plain_series()
    for ds in datasets:
        ds.NumberOfFrames = 0

    with pytest.raises(UnreadableInstanceError, match="NumberOfFrames is 0"):
        to_volume(datasets)


def test_one_slice_that_does_not_say_how_thick_it_is_is_no_volume():
    datasets = plain_series((1, 3, 3))
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        datasets[0].pop(keyword, None)

    with pytest.raises(GeometryError, match=f"one slice and neither .*{datasets[0].SOPInstanceUID}"):
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
