"""Real images of every transfer syntax, against NIfTI files that other people made of them."""

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from dicomnode.imaging.images.frames import read_frames
from dicomnode.imaging.images.pixels import decode_planes
from dicomnode.spool import read_part_10
from tests.pixel_builders import frames_of

COMPRESSED = ("compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle")


@pytest.mark.parametrize("number", range(1, 10))
def test_a_mosaic_in_each_transfer_syntax_has_the_values_of_the_truth(number, data_dir):
    """35 slices of 64 by 64 lie in 36 tiles; NIfTI counts columns first and rows from below."""
    folder = data_dir / "transfer_syntaxes" / "dcm_qa_ts"
    truth = np.asarray(nibabel.load(folder / "Ref" / f"{number}.nii").dataobj)

    (plane,) = decode_planes(frames_of(read_part_10(folder / "In" / f"{number}.dcm")), shape=(1, 384, 384))

    tiles = plane.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)
    assert np.array_equal(tiles[:35], truth.transpose(2, 1, 0)[:, ::-1])


def test_all_transfer_syntaxes_of_the_folder_hold_the_same_image(data_dir):
    paths = sorted((data_dir / "transfer_syntaxes").rglob("*.dcm"))

    planes = [decode_planes(frames_of(read_part_10(path)), shape=(1, 384, 384)) for path in paths]

    assert len({dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths}) == 7
    assert all(np.array_equal(plane, planes[0]) for plane in planes)


@pytest.mark.parametrize("folder", COMPRESSED)
def test_compressed_slices_have_the_values_of_the_truth(folder, data_dir):
    vendors = data_dir / "vendors" / "generic"
    truth = np.asarray(nibabel.load(vendors / folder / "001_ground_truth.nii.gz").dataobj)
    frames = read_frames([read_part_10(path) for path in (vendors / folder / "001").iterdir()])

    planes = decode_planes(frames, shape=(len(frames), *frames[0].size))

    assert np.array_equal(np.sort(planes, axis=None), np.sort(truth, axis=None))  # places: test_series_truth


@pytest.mark.parametrize("name", ["001", "001_implicit"])
def test_frames_of_an_enhanced_image_are_rescaled_each_by_its_own(name, data_dir):
    """The truth is in single precision and ours is rounded once: the last bit differs."""
    folder = data_dir / "vendors" / "philips_enhanced" / "anatomical"
    truth = np.asarray(nibabel.load(folder / f"{name}_ground_truth.nii.gz").dataobj)
    frames = read_frames([read_part_10(path) for path in (folder / name).iterdir()])

    planes = decode_planes(frames, shape=(len(frames), *frames[0].size))

    np.testing.assert_allclose(np.sort(planes, axis=None), np.sort(truth, axis=None), rtol=2**-23)


def test_every_enhanced_image_is_decoded_frame_by_frame_as_at_once(data_dir):
    paths = sorted(
        path for path in (data_dir / "enhanced").rglob("*") if path.suffix == ".dcm" or "BRTUM" in path.name
    )
    assert len(paths) == 8
    for path in paths:
        frames = read_frames([read_part_10(path)])
        at_once = decode_planes(frames, shape=(len(frames), *frames[0].size))
        one = [decode_planes([frame], shape=(1, *frame.size)) for frame in frames]
        assert np.array_equal(at_once, np.concatenate(one))


def test_images_in_jpeg_ls_of_an_archive_have_the_values_that_pydicom_reads(data_dir):
    paths = sorted((data_dir / "studies").glob("*/3175*/*"))[::20]
    assert paths
    for path in paths:
        ds = dcmread(path)
        (plane,) = decode_planes(frames_of(read_part_10(path)), shape=(1, ds.Rows, ds.Columns))
        expected = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.array_equal(plane, expected.astype(np.float32))
