"""Segmentations by other writers, as found in public collections: read exactly or refused with the reason."""

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.reading import seg_read
from tests.imaging_builders import make_card
from tests.interop.seg_cases import on_grid, read_series


@pytest.fixture
def objects(data_dir):
    return data_dir / "seg_objects"


def voxels_stored(ds):
    return int(np.unpackbits(np.frombuffer(ds.PixelData, np.uint8)).sum())


def decode(path, series, *labels):
    return seg_read.decode(dcmread(path), stack=series.stack, card=make_card(labels))


def test_the_liver_of_dcmqi_is_its_truth_voxel_by_voxel(objects):
    folder = objects / "dcmqi_ct_liver"
    series = read_series(folder / "ct-3slice")

    decoded = decode(folder / "liver.dcm", series, "Liver")

    truth = on_grid(SimpleITK.ReadImage(folder / "liver_seg.nrrd"), series.image)
    np.testing.assert_array_equal(decoded.masks["Liver"], truth)
    assert decoded.flags == ()


def test_overlapping_segments_of_dcmqi_are_kept_apart(objects):
    folder = objects / "dcmqi_ct_liver"
    names = ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")

    decoded = decode(folder / "partial_overlaps.dcm", read_series(folder / "ct-3slice"), *names)

    assert set(decoded.masks) == set(names)
    assert decoded.flags == ("labels_overlap",)


def test_a_small_liver_of_dcmqi_is_its_truth(objects):
    folder = objects / "dcmqi_ct_liver" / "24x38x3"
    series = read_series(folder / "image")

    decoded = decode(folder / "seg" / "label.seg", series, "Liver")

    truth = on_grid(SimpleITK.ReadImage(folder / "nrrd" / "label.nrrd"), series.image)
    np.testing.assert_array_equal(decoded.masks["Liver"], truth)


def test_a_label_map_of_dcmqi_without_padding_value_is_read_or_refused(objects):
    folder = objects / "dcmqi_ct_liver"
    series = read_series(folder / "24x38x3" / "image")

    decoded = decode(folder / "sparse-labelmap-noppv.dcm", series, "Liver")

    assert decoded.masks["Liver"].any()
    assert decoded.unmapped_labels == ()


def test_the_segmentation_of_a_ruby_writer_on_four_slices_is_read(objects):
    series = read_series(objects / "segruby" / "fixtures")
    path = objects / "segruby" / "golden" / "multi_slice_bone.dcm"

    assert decode(path, series, "Bone").masks["Bone"].sum() == voxels_stored(dcmread(path))


def test_the_segmentation_of_a_ruby_writer_on_one_slice_is_read(objects):
    series = to_volume([dcmread(get_testdata_file("CT_small.dcm"))])
    path = objects / "segruby" / "golden" / "single_slice_humerus.dcm"

    assert decode(path, series, "Humerus").masks["Humerus"].sum() == voxels_stored(dcmread(path))


def test_segmentations_of_highdicom_without_their_images_are_refused(objects):
    series = read_series(objects / "segruby" / "fixtures")
    for path in sorted((objects / "highdicom").glob("seg_*.dcm")):
        with pytest.raises(CorrectionError, match=r"made on series|another grid|frame of reference"):
            decode(path, series, "first segment")


def test_a_segmentation_of_highdicom_on_its_image_is_read(objects):
    image = to_volume([dcmread(objects / "highdicom" / "ct_image.dcm")])

    decoded = decode(objects / "highdicom" / "seg_image_ct_binary_single_frame.dcm", image, "first segment")

    assert decoded.masks["first segment"].any()


@pytest.mark.parametrize(
    "name", ["dcmjs_written_orphan/edited-seg_dcmjs.dcm", "ohif_dcmjs_orphan/ohif_export.dcm"]
)
def test_orphans_name_their_series_and_are_refused_on_another(objects, name):
    ds = dcmread(objects / name)

    assert seg_read.referenced_series(ds) or seg_read.referenced_instances(ds)
    with pytest.raises(CorrectionError):
        decode(objects / name, read_series(objects / "segruby" / "fixtures"), "Segment 1")


def test_segmentations_of_a_public_pet_study_are_read_on_their_series(data_dir):
    study = data_dir / "studies" / "acrin_nsclc_petct"
    series = read_series(study / "317561081015")
    for path in sorted(study.glob("orig_SEG_*/*")):
        ds = dcmread(path)
        names = [segment.SegmentLabel for segment in ds.SegmentSequence]

        decoded = seg_read.decode(ds, stack=series.stack, card=make_card(names))

        assert set(decoded.masks) == set(names)
        assert sum(mask.sum() for mask in decoded.masks.values()) == voxels_stored(ds)
