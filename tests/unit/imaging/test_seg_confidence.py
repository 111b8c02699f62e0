"""How far a mask is trusted, and what a person must look at: one finding at a time."""

import re
from pathlib import Path

import numpy as np
import pytest

from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_confidence, seg_read
from dicomnode.imaging.reading.seg_confidence import REMARKS
from tests.imaging_builders import LABEL_MAP, foreign_seg, item, make_card, plain_series, reread
from tests.seg_builders import encoded_forms, found_at

CARD = make_card()
ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"
IMAGING = Path(seg_confidence.__file__).parent


def mask(*places):
    one = np.zeros((5, 6), bool)
    for place in places:
        one[place] = True
    return one


def seg(sources, frames=None, **options):
    frames = [(1, 2, mask((1, 2))), (2, 3, mask((4, 5)))] if frames is None else frames
    return foreign_seg(sources, frames, **options)


def decode(ds, sources, **options):
    return seg_read.decode(ds, stack=only_stack(sources), card=CARD, **options)


def coded(value, modifier=None):
    code = item(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning="x")
    if modifier:
        modifier = item(CodeValue=modifier, CodingSchemeDesignator="SCT", CodeMeaning="x")
        code.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return code


@pytest.mark.parametrize("form", ["binary", "label map"])
def test_our_own_object_is_trusted_wholly(form):
    sources = plain_series()
    ds = reread(encoded_forms(found_at(sources, CARD, [(1, 1, 1)], [(2, 2, 2)]))[form])

    decoded = decode(ds, sources)

    assert decoded.confidence == {ANTERIOR: 1.0, POSTERIOR: 1.0}
    assert (decoded.flags, decoded.doubts) == ((), ())


def test_confidence_is_said_of_labels_with_and_without_voxels_and_of_no_other():
    sources = plain_series()
    ds = seg(sources, [(1, 2, mask((1, 2))), (3, 2, mask((3, 3)))], labels=(ANTERIOR, POSTERIOR, "Cyst"))

    decoded = decode(ds, sources)

    assert decoded.confidence == {ANTERIOR: 1.0, POSTERIOR: 1.0}
    assert decoded.empty_labels == (POSTERIOR,)


def test_the_factors_of_several_findings_are_multiplied_and_each_counts_once():
    assert seg_confidence.confidence() == 1.0
    assert isinstance(seg_confidence.confidence(), float)
    assert seg_confidence.confidence(
        {"resampled", "cropped"}, {"label_by_codes", "resampled"}
    ) == pytest.approx(0.7 * 0.9)
    assert seg_confidence.confidence({"slices_turned"}) == 1.0


def test_every_factor_has_a_reason_and_is_none_only_for_what_changes_nothing():
    for flag, remark in REMARKS.items():
        assert 0 < remark.factor <= 1, flag
        assert remark.reason, flag
        assert remark.doubt == "" or remark.doubt[0].islower(), flag


def test_every_finding_of_the_reader_is_in_the_table_and_every_line_of_it_is_found():
    texts = [path.read_text() for path in IMAGING.glob("seg_*.py") if path.name != "seg_confidence.py"]
    flagged = {
        flag for text in texts for flag in re.findall(r'(?:flags\.add\(|yield |frozenset\(\{)"(\w+)"', text)
    }

    assert flagged <= REMARKS.keys()
    assert [flag for flag in REMARKS if not any(f'"{flag}"' in text for text in texts)] == []


# which label a segment is


def test_an_alias_of_the_site_is_a_label_and_names_and_codes_come_before_it():
    sources = plain_series()
    aliases = {
        " ANT hippo": ANTERIOR,
        "tail": POSTERIOR,
        "Cyst": "no label of the model",
        ANTERIOR: POSTERIOR,
    }
    ds = seg(sources, labels=("Ant HIPPO ", "Cyst"))

    decoded = decode(ds, sources, aliases=aliases)

    assert decoded.masks[ANTERIOR][2, 1, 2]
    assert decoded.confidence == {ANTERIOR: 0.95}
    assert decoded.unmapped_labels == ("Cyst",)
    assert decoded.doubts == ()
    assert decode(seg(sources), sources, aliases=aliases).confidence == {ANTERIOR: 1.0, POSTERIOR: 1.0}
    ds.SegmentSequence[0].SegmentLabel = "tail"
    ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [coded("5366008", "255549009")]
    assert list(decode(ds, sources, aliases=aliases).masks) == [ANTERIOR]


def test_a_label_found_by_codes_is_trusted_less():
    sources = plain_series()
    ds = seg(sources, labels=("x", "y"))
    ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [coded("5366008", "255549009")]

    decoded = decode(ds, sources)

    assert decoded.confidence == {ANTERIOR: 0.9}
    assert decoded.flags == ("label_by_codes",)


def test_codes_that_two_segments_have_tell_nothing_and_are_held():
    sources = plain_series()
    ds = seg(sources, labels=("x", "y"))
    for segment in ds.SegmentSequence:
        segment.SegmentedPropertyTypeCodeSequence = [coded("5366008", "255549009")]

    decoded = decode(ds, sources)

    assert decoded.masks == {}
    assert decoded.unmapped_labels == ("x", "y")
    assert "codes of the same label" in decoded.doubts[0]


def test_codes_of_a_label_that_another_segment_is_named_after_are_not_taken():
    sources = plain_series()
    ds = seg(sources, labels=(ANTERIOR, "a cyst in it"))
    for segment in ds.SegmentSequence:
        segment.SegmentedPropertyTypeCodeSequence = [coded("5366008", "255549009")]

    decoded = decode(ds, sources)

    assert list(decoded.masks) == [ANTERIOR]
    assert decoded.unmapped_labels == ("a cyst in it",)
    assert decoded.doubts == ()


@pytest.mark.parametrize(("value", "scheme"), [("T-D0050", "SRT"), ("85756007", "SCT")])
def test_the_code_of_tissue_says_nothing(value, scheme):
    sources = plain_series()
    ds = seg(sources, labels=("x", POSTERIOR))
    for segment in ds.SegmentSequence:
        code = item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning="Tissue")
        segment.SegmentedPropertyTypeCodeSequence = [code]

    decoded = decode(ds, sources)

    assert list(decoded.masks) == [POSTERIOR]
    assert decoded.flags == ()


def test_a_writer_that_gives_one_code_to_everything_is_read_by_names_alone():
    sources = plain_series()
    ds = seg(sources, labels=("x", POSTERIOR), manufacturer="MONAI Consortium")
    for segment in ds.SegmentSequence:
        segment.SegmentedPropertyTypeCodeSequence = [coded("5366008", "255549009")]

    decoded = decode(ds, sources)

    assert list(decoded.masks) == [POSTERIOR]
    assert (decoded.flags, decoded.doubts) == ((), ())


def test_a_name_and_codes_of_different_labels_are_held():
    sources = plain_series()
    ds = seg(sources)
    ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [coded("5366008", "255551008")]

    decoded = decode(ds, sources)

    assert decoded.masks[ANTERIOR].any()
    assert decoded.confidence == {ANTERIOR: 0.7, POSTERIOR: 1.0}
    assert "different labels" in decoded.doubts[0]


def test_two_segments_of_one_label_are_united_and_held():
    sources = plain_series()
    ds = seg(sources, labels=(ANTERIOR, ANTERIOR.upper()))

    decoded = decode(ds, sources)

    assert decoded.masks[ANTERIOR].sum() == 2
    assert decoded.confidence == {ANTERIOR: 0.8}
    assert "several of its segments are the same label" in decoded.doubts[0]


def test_a_label_that_is_marked_as_padding_is_held():
    sources = plain_series()
    ds = label_map(sources, {2: [[1, 1]], 3: [[2, 2]]})
    ds.PixelPaddingValue = 2

    decoded = decode(ds, sources)

    assert list(decoded.masks) == list(decoded.confidence) == [ANTERIOR]
    assert "marked as background or padding" in decoded.doubts[0]


# which segment a frame is


def with_dimension_indices(ds, ranks):
    ds.DimensionIndexSequence = [
        item(DimensionIndexPointer=0x0062000B),
        item(DimensionIndexPointer=0x00200032),
    ]
    for frame, rank in zip(ds.PerFrameFunctionalGroupsSequence, ranks, strict=True):
        frame.FrameContentSequence = [item(DimensionIndexValues=[rank, 1])]
    return ds


def test_numbers_that_dimension_indices_explain_are_flagged_and_not_held():
    sources = plain_series()
    ds = with_dimension_indices(seg(sources, [(1, 0, mask((0, 0))), (3, 1, mask((1, 1)))]), [1, 2])

    decoded = decode(ds, sources)

    assert decoded.masks[POSTERIOR][1, 1, 1]
    assert decoded.confidence == {ANTERIOR: 0.9, POSTERIOR: 0.9}
    assert decoded.doubts == ()


def test_numbers_that_only_their_order_explains_are_held():
    sources = plain_series()

    decoded = decode(seg(sources, [(1, 0, mask((0, 0))), (3, 1, mask((1, 1)))]), sources)

    assert decoded.confidence == {ANTERIOR: 0.6, POSTERIOR: 0.6}
    assert decoded.doubts


def test_numbers_that_dimension_indices_contradict_are_held():
    sources = plain_series()
    frames = [(1, 0, mask((0, 0))), (2, 1, mask((1, 1))), (2, 2, mask((1, 1)))]
    ds = with_dimension_indices(seg(sources, frames), [1, 1, 2])

    decoded = decode(ds, sources)

    assert "contradict each other" in decoded.doubts[0]
    assert decode(with_dimension_indices(seg(sources, frames), [1, 2, 2]), sources).doubts == ()


def label_map(sources, values):
    """A label map; `values` is slice -> rows of segment numbers, laid in the corner of an empty frame."""
    frames = []
    for rows in values.values():
        frame = np.zeros((5, 6), np.uint8)
        frame[: len(rows), : len(rows[0])] = rows
        frames.append(frame)
    ds = seg(sources, [(1, k, frame > 0) for k, frame in zip(values, frames, strict=True)])
    for groups in ds.PerFrameFunctionalGroupsSequence:
        del groups.SegmentIdentificationSequence
    ds.SOPClassUID, ds.SegmentationType = LABEL_MAP, "LABELMAP"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = np.stack(frames).tobytes()
    return ds


def test_a_value_that_no_segment_lists_is_held():
    sources = plain_series()

    decoded = decode(label_map(sources, {1: [[1, 7]]}), sources)

    assert decoded.confidence == {ANTERIOR: 0.9, POSTERIOR: 0.9}
    assert "a segment that it does not list" in decoded.doubts[0]


def test_an_object_without_a_voxel_is_held():
    sources = plain_series()

    decoded = decode(label_map(sources, {1: [[0, 0]]}), sources)

    assert decoded.empty_labels == (ANTERIOR, POSTERIOR)
    assert decoded.doubts == ("none of its segments has a voxel",)


# where a frame lies


@pytest.mark.parametrize(("by_reference", "by_position"), [(True, False), (False, True)])
def test_a_place_that_nothing_confirms_is_trusted_a_little_less(by_reference, by_position):
    sources = plain_series()
    ds = seg(sources, by_reference=by_reference, by_position=by_position)

    decoded = decode(ds, sources)

    assert decoded.confidence == {ANTERIOR: 0.95, POSTERIOR: 0.95}
    assert decoded.doubts == ()


def mirrored(sources, manufacturer, **options):
    ds = seg(sources, [(1, k, mask((1, k))[:4]) for k in (1, 2, 3)], manufacturer=manufacturer, **options)
    for frame, k in zip(ds.PerFrameFunctionalGroupsSequence, (1, 2, 3), strict=True):
        position = sources[len(sources) - 1 - k].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = position
    return ds


def test_mirrored_positions_with_right_references_of_a_writer_known_for_them_are_not_held():
    sources = plain_series((4, 4, 6))

    decoded = decode(mirrored(sources, "Unspecified", preserved="NO"), sources)

    assert np.argwhere(decoded.masks[ANTERIOR]).tolist() == [[1, 1, 1], [2, 1, 2], [3, 1, 3]]
    assert decoded.flags == ("position_conflict",)
    assert decoded.confidence[ANTERIOR] == 0.9
    assert decoded.doubts == ()


def test_positions_of_such_a_writer_that_are_wrong_but_not_mirrored_are_held():
    sources = plain_series((4, 4, 6))
    ds = mirrored(sources, "Unspecified")
    frame = ds.PerFrameFunctionalGroupsSequence[0]
    frame.PlanePositionSequence[0].ImagePositionPatient = sources[0].ImagePositionPatient

    decoded = decode(ds, sources)

    assert decoded.masks[ANTERIOR][1, 1, 1]
    assert "name different slices" in decoded.doubts[0]


@pytest.mark.parametrize(("preserved", "first"), [("YES", 1), ("NO", 2)])
def test_any_conflict_of_another_writer_is_held(preserved, first):
    sources = plain_series((4, 4, 6))

    decoded = decode(mirrored(sources, "QIICR", preserved=preserved), sources)

    assert np.argwhere(decoded.masks[ANTERIOR])[0].tolist()[0] == (first if preserved == "YES" else 0)
    assert decoded.doubts


def test_positions_alone_of_a_writer_that_mirrored_them_are_held():
    sources = plain_series()
    ds = seg(sources, [(1, 2, mask((1, 2)))], by_reference=False, manufacturer="Unspecified")

    decoded = decode(ds, sources)

    assert "versions of its writer mirrored them" in decoded.doubts[0]


def test_frames_that_all_have_one_position_are_held():
    sources = plain_series()
    ds = seg(sources, [(1, k, mask((1, k))) for k in range(3)], by_reference=False)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient = sources[1].ImagePositionPatient

    decoded = decode(ds, sources)

    assert "frames_repeated" in decoded.flags
    assert "the same segment on the same slice" in decoded.doubts[0]


# pixels


def fractional(sources, *values):
    ds = seg(sources, [(1, 2, mask((1, 2)))])
    ds.SegmentationType, ds.MaximumFractionalValue, ds.SegmentationFractionalType = (
        "FRACTIONAL",
        200,
        "PROBABILITY",
    )
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    pixels = np.zeros((5, 6), np.uint8)
    pixels[0, : len(values)] = values
    ds.PixelData = pixels.tobytes()
    return ds


def test_fractions_of_nothing_and_all_are_a_mask():
    sources = plain_series()

    decoded = decode(fractional(sources, 200, 0, 200), sources)

    assert decoded.masks[ANTERIOR].sum() == 2
    assert (decoded.flags, decoded.confidence[ANTERIOR]) == (("fractional",), 1.0)


def test_other_fractions_are_cut_at_half_and_trusted_less():
    sources = plain_series()

    decoded = decode(fractional(sources, 200, 100, 99), sources)

    assert decoded.masks[ANTERIOR].sum() == 2
    assert (decoded.confidence[ANTERIOR], decoded.doubts) == (0.8, ())


def test_frames_on_bytes_of_their_own_are_trusted_wholly():
    sources = plain_series()
    frames = [(1, k, mask((k, k), (4, 5))) for k in range(4)] + [(2, k, mask((0, k + 1))) for k in range(4)]
    ds = seg(sources, frames)
    ds.PixelData = b"".join(np.packbits(m.reshape(-1), bitorder="little").tobytes() for _, _, m in frames)

    decoded = decode(reread(ds), sources)

    assert decoded.confidence == {ANTERIOR: 1.0, POSTERIOR: 1.0}
    assert decoded.doubts == ()
