"""Segmentations by highdicom of real multi-frame, tilted and gapped images are read on their planes."""

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.stacks import only_stack, read_stacks
from dicomnode.imaging.reading import seg_read
from tests.imaging_builders import foreign_seg, make_card, reread

CARD = make_card(("Liver",))
PHILIPS = "enhanced/dcm_qa_enh/In/Philips/IM_0027_fMAP.dcm"
DEMANDED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
SIEMENS = [f"enhanced/dcm_qa_enh/In/Siemens/XA10/6_{number}.dcm" for number in (1, 2, 3, 4)]

pytestmark = pytest.mark.filterwarnings("ignore")


def written_by_highdicom(sources, masks, *, segmentation_type="BINARY"):
    """A segmentation of frames (frame of the source, row, column); empty frames are left out."""
    for source in sources:
        for keyword in DEMANDED:
            source.setdefault(keyword, "")
        source.setdefault("SliceThickness", 1)
    code = hd.sr.CodedConcept("10200004", "SCT", "Liver")
    segment = hd.seg.SegmentDescription(1, "Liver", code, code, "MANUAL")
    made = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=masks.astype(np.uint8),
        segmentation_type=segmentation_type,
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=2,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="QIICR",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
    )
    return reread(made)


def scattered(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.02


def read(data_dir, *names):
    return [dcmread(data_dir / name) for name in names]


def frame_order(stack):
    return [frame.frame_number - 1 for frame in stack.frames]


def without_frame_numbers(ds):
    for groups in ds.PerFrameFunctionalGroupsSequence:
        del groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
    return ds


@pytest.mark.parametrize("segmentation_type", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("name", ["enhanced/nema/BRTUM001", "enhanced/nema/BRTUM003"])
def test_masks_on_an_enhanced_image_are_found_on_their_frames(name, segmentation_type, data_dir):
    sources = read(data_dir, name)
    stack = only_stack(sources)
    masks = scattered((sources[0].NumberOfFrames, sources[0].Rows, sources[0].Columns))
    ds = written_by_highdicom(sources, masks, segmentation_type=segmentation_type)

    for received, flags in ((ds, ()), (without_frame_numbers(reread(ds)), ("no_references",))):
        decoded = seg_read.decode(received, stack=stack, card=CARD)
        np.testing.assert_array_equal(decoded.masks["Liver"], masks[frame_order(stack)])
        assert decoded.flags == flags


def test_the_liver_of_dcmqi_on_the_multi_frame_form_of_its_images_is_the_truth(data_dir):
    folder = data_dir / "seg_objects" / "dcmqi_ct_liver" / "24x38x3"
    sources = [dcmread(folder / "multiframe" / "mf.dcm")]
    stack = only_stack(sources)
    picture = SimpleITK.ReadImage(folder / "nrrd" / "label.nrrd")
    truth = np.zeros(stack.shape, bool)
    for x, y, z in np.argwhere(SimpleITK.GetArrayFromImage(picture) > 0)[:, ::-1].tolist():
        point = picture.TransformIndexToPhysicalPoint((x, y, z))
        index = np.linalg.inv(stack.grid.affine) @ [*point, 1]
        truth[tuple(np.rint(index[:3]).astype(int))] = True

    by_dcmqi = dcmread(folder / "seg" / "label.seg")  # of the single-frame form, in the same space
    for keyword in ("ReferencedSeriesSequence", "StudyInstanceUID"):
        if keyword in by_dcmqi:
            del by_dcmqi[keyword]
    in_source_order = np.empty_like(truth)
    in_source_order[frame_order(stack)] = truth
    by_highdicom = written_by_highdicom(sources, in_source_order)

    for received, flags in ((by_dcmqi, ("no_references",)), (by_highdicom, ())):
        decoded = seg_read.decode(received, stack=stack, card=CARD)
        np.testing.assert_array_equal(decoded.masks["Liver"], truth)
        assert decoded.flags == flags


# highdicom needs Pixel Measures for all frames, which these images do not have: made by hand.


def made_by_hand(stack, masks, *, has_frame_numbers=True):
    frames = [(1, k, mask) for k, mask in enumerate(masks)]
    return foreign_seg(stack, frames, labels=("Liver",), has_frame_numbers=has_frame_numbers)


@pytest.mark.parametrize("at", [0, 1])
def test_two_stacks_in_one_enhanced_image_are_told_apart_by_frame_numbers(at, data_dir):
    stacks = read_stacks(read(data_dir, PHILIPS))
    assert len(stacks) == 2
    masks = scattered((32, 64, 64))
    ds = made_by_hand(stacks[at], masks)

    stack = seg_read.stack_of(ds, stacks)

    assert stack is stacks[at]
    np.testing.assert_array_equal(seg_read.decode(ds, stack=stack, card=CARD).masks["Liver"], masks)
    with pytest.raises(CorrectionError, match="cannot be told"):
        seg_read.stack_of(made_by_hand(stacks[at], masks, has_frame_numbers=False), stacks)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("has_frame_numbers", [True, False])
def test_stacks_that_are_an_enhanced_image_each_are_told_apart_by_their_instances(
    at, has_frame_numbers, data_dir
):
    stacks = read_stacks(read(data_dir, *SIEMENS))
    assert len(stacks) == 4
    masks = scattered((6, 64, 64))
    ds = made_by_hand(stacks[at], masks, has_frame_numbers=has_frame_numbers)

    stack = seg_read.stack_of(ds, stacks)

    assert stack is stacks[at]
    np.testing.assert_array_equal(seg_read.decode(ds, stack=stack, card=CARD).masks["Liver"], masks)


@pytest.mark.parametrize("by_reference", [True, False])
def test_masks_on_a_tilted_gantry_are_found_on_their_slices(by_reference, data_dir):
    folder = data_dir / "vendors" / "failing" / "gantrytilting" / "001"
    stack = only_stack([dcmread(path) for path in folder.iterdir()])
    assert not stack.is_regular
    masks = scattered(stack.shape)
    for source in stack.datasets:  # where they name no frame of reference, our results carry a derived one
        source.FrameOfReferenceUID = stack.grid.frame_of_reference_uid
    ds = written_by_highdicom(stack.datasets, masks)
    if not by_reference:
        for groups in ds.PerFrameFunctionalGroupsSequence:
            del groups.DerivationImageSequence

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    np.testing.assert_array_equal(decoded.masks["Liver"], masks)


@pytest.mark.parametrize("by_reference", [True, False])
def test_masks_on_slices_with_wide_gaps_are_found_on_their_slices(by_reference, data_dir):
    images = {}
    for path in sorted((data_dir / "duplicate_positions").glob("*.dcm")):
        ds = dcmread(path)
        images.setdefault(float(ds.ImagePositionPatient[2]), ds)  # one of each position
    stack = only_stack(list(images.values()))
    assert not stack.is_regular
    masks = scattered(stack.shape)
    for source in stack.datasets:  # where they name no frame of reference, our results carry a derived one
        source.FrameOfReferenceUID = stack.grid.frame_of_reference_uid
    ds = written_by_highdicom(stack.datasets, masks)
    if not by_reference:
        for groups in ds.PerFrameFunctionalGroupsSequence:
            del groups.DerivationImageSequence

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    np.testing.assert_array_equal(decoded.masks["Liver"], masks)
