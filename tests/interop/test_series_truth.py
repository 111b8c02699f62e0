"""Every series of the real data: as in NIfTI files that others made, as SimpleITK reads it, or refused."""

import contextlib
import re
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.data import get_testdata_files
from scipy.ndimage import map_coordinates

from dicomnode.errors import GeometryError, InputError, UnsupportedSeriesError
from dicomnode.imaging.images.series import stack_volume, to_volume
from dicomnode.imaging.images.stacks import read_stacks

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
WITH_NIFTI = [
    "ge/anatomical/001",
    "ge/anatomical/001_implicit",
    "generic/anatomical/001",
    "generic/anatomical/001_implicit",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed/001",
    "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001",
    "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
    "failing/slicecount/001",  # two slices: too few for other readers
    "philips_enhanced/anatomical/001",
    "philips_enhanced/anatomical/001_implicit",
]
BY_SIMPLEITK = [
    "ge_mprage/GE_Pioneer_T1/05_3D_Ax_T1_MP_RAGE_R22",
    "hippocampus_dicom/Study1/13_HCropVolume",
    "hippocampus_dicom/Study2/14_HCropVolume",
    "hippocampus_dicom/Study3/11_HCropVolume",
    "seg_objects/dcmqi_ct_liver/24x38x3/image",
    "seg_objects/dcmqi_ct_liver/ct-3slice",
    "seg_objects/segruby/fixtures/ct_small_series",
    "studies/acrin_nsclc_petct/317561081015",
    "studies/prostatex_0207/015689445322",
    "studies/prostatex_0207/025223370792",
    "studies/prostatex_0207/650592350501",
]


def datasets_of(folder: Path):
    paths = [path for path in sorted(folder.iterdir()) if path.suffix not in {".md", ".txt"}]
    return [dcmread(path) for path in paths]


def values_at(image, values, affine_lps):
    """The values of another image, (i, j, k), at the voxels of ours; they must lie on the same grid."""
    indices = np.indices(image.shape).reshape(3, -1)
    points = image.affine @ np.vstack([indices, np.ones(indices.shape[1])])
    places = (np.linalg.inv(affine_lps) @ points)[:3]
    rounded = np.rint(places).astype(int)
    assert np.abs(places - rounded).max() < 0.02
    assert values.size == image.array.size
    return values[tuple(rounded)].reshape(image.shape)


@pytest.mark.parametrize("series", WITH_NIFTI)
def test_every_voxel_has_the_value_and_the_place_of_the_truth(series, data_dir):
    folder = data_dir / "vendors" / series
    image = to_volume(datasets_of(folder)).image
    truth = nibabel.load(f"{folder}_ground_truth.nii.gz")
    stored = np.asarray(truth.dataobj)

    expected = values_at(image, stored.reshape(stored.shape[:3]), LPS_TO_RAS @ truth.affine)

    if stored.dtype.kind in "iu":
        np.testing.assert_array_equal(image.array, expected)
    else:  # the truth was multiplied in single precision: it may be one unit off in the last place
        np.testing.assert_array_max_ulp(image.array, expected.astype(np.float32), maxulp=1)


def read_by_simpleitk(paths):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in paths])
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), affine


def padding_value(ds):
    """The value that Pixel Padding Value would have if it were a signal; None where there is none."""
    if "PixelPaddingValue" not in ds:
        return None
    return ds.PixelPaddingValue * ds.get("RescaleSlope", 1) + ds.get("RescaleIntercept", 0)


@pytest.mark.parametrize("series", BY_SIMPLEITK)
def test_simpleitk_reads_the_same_values_at_the_same_places(series, data_dir):
    datasets = datasets_of(data_dir / series)

    volume = to_volume(datasets)

    theirs, affine = read_by_simpleitk(ds.filename for ds in volume.sources)  # it takes our order for granted
    expected = values_at(volume.image, theirs, affine)
    is_padding = expected == padding_value(volume.stack.first)  # which SimpleITK takes for a value
    expected = np.where(is_padding, expected[~is_padding].min(), expected)
    np.testing.assert_allclose(volume.image.array, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["BRTUM001", "BRTUM003", "BRTUM004"])
def test_enhanced_images_hold_the_frames_that_simpleitk_reads(name, data_dir):
    path = data_dir / "enhanced" / "nema" / name
    volume = to_volume([dcmread(path)])

    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))  # in the order of the file

    order = [frame.frame_number - 1 for frame in volume.stack.frames]
    assert sorted(order) == list(range(len(theirs)))
    np.testing.assert_array_equal(volume.planes, theirs[order].astype(np.float32))
    heights = [frame.position_mm @ volume.stack.grid.normal for frame in volume.stack.frames]
    assert heights == sorted(heights)


def test_a_converted_image_is_the_series_that_it_was_made_of(data_dir):
    folder = data_dir / "seg_objects" / "dcmqi_ct_liver" / "24x38x3"

    classic = to_volume(datasets_of(folder / "image")).image
    converted = to_volume(datasets_of(folder / "multiframe")).image

    np.testing.assert_array_equal(converted.array, classic.array)
    np.testing.assert_allclose(converted.affine, classic.affine, atol=1e-3)


def test_magnitude_and_field_map_of_one_image_are_two_stacks(data_dir):
    field, magnitude = read_stacks(datasets_of(data_dir / "enhanced/dcm_qa_enh/In/Philips"))

    assert field.name.startswith("image type FIELD_MAP")
    assert magnitude.name.startswith("image type M")
    assert field.shape == magnitude.shape == (32, 64, 64)
    assert stack_volume(field).image.array.min() < -490  # each with the rescale of its own frames
    assert stack_volume(magnitude).image.array.min() == 0


def test_time_points_spread_over_several_enhanced_images_are_stacks(data_dir):
    stacks = read_stacks(datasets_of(data_dir / "enhanced/dcm_qa_enh/In/Siemens/XA10"))

    assert [stack.name for stack in stacks] == [f"temporal position {k}" for k in (1, 2, 3, 4)]
    assert all(stack.is_regular and stack.shape == (6, 64, 64) for stack in stacks)
    assert all(len(stack.datasets) == 1 for stack in stacks)


def test_a_tilted_gantry_is_resampled_and_labels_come_back_to_its_slices(data_dir):
    volume = to_volume(datasets_of(data_dir / "vendors/failing/gantrytilting/001"))
    stack, image = volume.stack, volume.image

    assert re.search(r"gantry tilt of about 14\.0 degrees", stack.remarks[0])
    assert image.spacing[0] == pytest.approx(5 * np.cos(np.radians(14)), abs=1e-3)
    to_image = np.linalg.inv(image.affine)
    rows, columns = np.mgrid[10:500:7, 10:500:7]
    for frame, plane in zip(stack.frames, volume.planes, strict=True):
        places = (
            frame.position_mm
            + rows[..., None] * frame.pixel_spacing_mm[0] * frame.column_cosines
            + columns[..., None] * frame.pixel_spacing_mm[1] * frame.row_cosines
        )
        indices = places @ to_image[:3, :3].T + to_image[:3, 3]
        found = map_coordinates(image.array, np.moveaxis(indices, -1, 0), order=1, mode="nearest")
        between = [plane[10 + step : 500 + step : 7, 10:500:7] for step in (-1, 0, 1)]
        slack = 1e-2  # what was interpolated twice lies between a pixel and its neighbours in the column
        assert (found >= np.min(between, axis=0) - slack).all()
        assert (found <= np.max(between, axis=0) + slack).all()


@pytest.mark.parametrize(
    ("folder", "error", "reason"),
    [
        ("duplicate_positions", GeometryError, r"two slices at one position, -90\.000 mm .*32873.*56087"),
        ("vendors/generic/rgb/001", UnsupportedSeriesError, r"Secondary Capture .*colour images \(RGB\)"),
        (
            "vendors/ge/anatomical/001_single_slice",
            GeometryError,
            "neither Spacing Between Slices nor Slice Thick",
        ),
        (
            "seg_objects/ohif_dcmjs_orphan",
            UnsupportedSeriesError,
            "Segmentation Storage is not CT, MR or PET",
        ),
    ],
)
def test_series_that_are_no_volume_are_refused_with_the_reason(folder, error, reason, data_dir):
    with pytest.raises(error, match=reason):
        to_volume(datasets_of(data_dir / folder))


def test_gaps_without_any_spacing_are_refused_whatever_is_allowed(data_dir):
    datasets = datasets_of(data_dir / "duplicate_positions")
    once = {str(ds.ImagePositionPatient): ds for ds in datasets}

    with pytest.raises(GeometryError, match=r"no regular spacing: gaps of 7\.500 to 115\.000 mm"):
        to_volume(list(once.values()), maximum_missing=1000)


@pytest.mark.parametrize("number", range(1, 10))
def test_mosaics_are_refused_in_every_transfer_syntax(number, data_dir):
    with pytest.raises(UnsupportedSeriesError, match=r"mosaic.*send the unpacked or enhanced form"):
        to_volume([dcmread(data_dir / "transfer_syntaxes" / "dcm_qa_ts" / "In" / f"{number}.dcm")])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_files_become_a_volume_or_a_refusal_and_nothing_else():
    made = refused = 0
    for path in sorted(get_testdata_files()):
        try:
            ds = dcmread(path, force=True)
        except Exception:  # no data set: receiving refuses it
            continue
        try:
            volume = to_volume([ds])
        except InputError:
            refused += 1
        else:
            made += 1
            assert volume.image.array.dtype == np.float32
            assert np.isfinite(volume.image.array).all()
    assert made > 10
    assert refused > 10


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_files_damaged_at_random_bring_no_other_error(tmp_path):
    generator = np.random.default_rng(8)
    sources = [path for path in get_testdata_files("*small*.dcm") if Path(path).stat().st_size < 100_000]
    damaged = tmp_path / "damaged.dcm"
    for path in sources:
        content = np.frombuffer(Path(path).read_bytes(), np.uint8)
        for _ in range(12):
            changed = content.copy()
            changed[generator.integers(132, len(changed), 4)] = generator.integers(0, 256, 4)
            damaged.write_bytes(changed.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    ds = dcmread(damaged)
                except Exception:  # receiving refuses it
                    continue
                with contextlib.suppress(InputError):
                    to_volume([ds])
