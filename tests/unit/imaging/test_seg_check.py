"""The last look at a segmentation before it leaves: whatever was spoilt is noticed."""

import struct

import pytest
from pydicom.dataelem import RawDataElement

from dicomnode.imaging.images.functional_groups import PER_FRAME_FUNCTIONAL_GROUPS, per_frame_groups
from dicomnode.imaging.results import seg_check
from dicomnode.imaging.results.seg_encode import encode_rle
from tests.imaging_builders import make_card, plain_series
from tests.seg_builders import encoded_forms, found_at

CARD = make_card()


@pytest.fixture
def findings():
    return found_at(plain_series((4, 8, 8)), CARD, ((1, 1, 1), (2, 3, 3)), ((1, 5, 5), (3, 2, 2), (3, 4, 6)))


@pytest.fixture(params=["binary", "label map"])
def case(request, findings):
    ds = encoded_forms(findings)[request.param]
    check = seg_check.check_binary if request.param == "binary" else seg_check.check_label_map
    return ds, lambda: check(ds, findings, findings.found)


def change_groups(ds, old, new, count=1):
    raw = ds.get_item(PER_FRAME_FUNCTIONAL_GROUPS)
    assert old in raw.value
    value = raw.value.replace(old, new, count)
    ds[raw.tag] = RawDataElement(raw.tag, "SQ", len(value), value, 0, False, True)


def test_what_was_written_passes(case):
    _, check = case

    check()


def test_one_flipped_bit_of_the_pixels_is_noticed(findings):
    ds = encoded_forms(findings)["binary"]
    written = ds.PixelData
    for bit in range(64 * ds.NumberOfFrames):
        spoilt = bytearray(written)
        spoilt[bit // 8] ^= 1 << bit % 8
        ds.PixelData = bytes(spoilt)
        with pytest.raises(RuntimeError, match="not read back as it was found"):
            seg_check.check_binary(ds, findings, findings.found)


def test_one_changed_pixel_of_a_label_map_is_noticed(findings):
    ds = encoded_forms(findings)["label map"]
    plane = findings.labels[3]
    changed = plane.copy()
    changed[2, 2] = 1  # the label of its neighbour
    old, new = encode_rle(plane), encode_rle(changed)
    assert old in ds.PixelData
    assert len(old) == len(new)
    ds["PixelData"].value = ds.PixelData.replace(old, new)

    with pytest.raises(RuntimeError, match="not read back as it was found"):
        seg_check.check_label_map(ds, findings, findings.found)


def test_a_frame_on_another_slice_is_noticed(case, findings):
    ds, check = case
    first, second = (findings.stack.frames[index].sop_instance_uid.encode() for index in (3, 2))
    change_groups(
        ds, first.ljust(len(first) + len(first) % 2, b"\0"), second.ljust(len(first) + len(first) % 2, b"\0")
    )

    with pytest.raises(RuntimeError, match="is not on a plane"):
        check()


def test_a_frame_at_another_position_is_noticed(case):
    ds, check = case
    change_groups(ds, b"-10.0\\20.0\\36.0", b"-10.0\\20.0\\36.5")

    with pytest.raises(RuntimeError, match="is not on a plane"):
        check()


def test_a_frame_of_another_segment_is_noticed(findings):
    ds = encoded_forms(findings)["binary"]
    number = struct.pack("<HH2sH", 0x0062, 0x000B, b"US", 2)
    change_groups(ds, number + b"\x01\x00", number + b"\x02\x00")

    with pytest.raises(RuntimeError, match="segmentation"):
        seg_check.check_binary(ds, findings, findings.found)


def test_a_wrong_dimension_index_is_noticed(findings):
    ds = encoded_forms(findings)["binary"]
    indices = struct.pack("<HH2sH", 0x0020, 0x9157, b"UL", 8)
    change_groups(ds, indices + struct.pack("<II", 2, 1), indices + struct.pack("<II", 2, 2))

    with pytest.raises(RuntimeError, match="dimension indices"):
        seg_check.check_binary(ds, findings, findings.found)


def test_exchanged_frames_are_noticed(findings):
    ds = encoded_forms(findings)["binary"]
    groups = per_frame_groups(findings.stack.frames, [(1, 1), (1, 2), (2, 3), (2, 1)])
    ds[groups.tag] = groups

    with pytest.raises(RuntimeError, match="not read back as it was found"):
        seg_check.check_binary(ds, findings, findings.found)


def test_a_frame_too_few_is_noticed(case, findings):
    ds, check = case
    ds.NumberOfFrames = ds.NumberOfFrames + 1

    with pytest.raises(RuntimeError, match="frames are described"):
        check()


def test_exchanged_labels_are_noticed(case):
    ds, check = case
    first, second = ds.SegmentSequence[0], ds.SegmentSequence[1]
    first.SegmentLabel, second.SegmentLabel = second.SegmentLabel, first.SegmentLabel

    with pytest.raises(RuntimeError, match="not read back as it was found"):
        check()


def test_a_segment_that_was_not_found_is_noticed(findings):
    ds = encoded_forms(findings)["binary"]

    with pytest.raises(RuntimeError, match=r"segments \[2\] were not found"):
        seg_check.check_binary(ds, findings, findings.found[:1])
