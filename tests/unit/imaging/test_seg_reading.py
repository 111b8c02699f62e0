"""The tolerant reader: what it settles by rule, what it flags, what it refuses."""

import numpy as np
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.reading.seg_content import LOSSY
from tests.imaging_builders import (
    LABEL_MAP,
    foreign_seg,
    item,
    make_card,
    make_series,
    make_volume,
    plain_series,
)

CARD = make_card()
ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"


def mask(*places, shape=(5, 6)):
    one = np.zeros(shape, bool)
    for place in places:
        one[place] = True
    return one


def decode(ds, sources):
    return seg_read.decode(ds, stack=only_stack(sources), card=CARD)


@pytest.mark.parametrize(
    ("by_reference", "by_position", "flags"),
    [(True, False, ("no_positions",)), (False, True, ("no_references",)), (True, True, ())],
)
def test_a_frame_is_found_by_reference_or_by_position(by_reference, by_position, flags):
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 2, mask((1, 2)))], by_reference=by_reference, by_position=by_position)

    decoded = decode(ds, sources[::-1])

    assert np.argwhere(decoded.masks[ANTERIOR]).tolist() == [[2, 1, 2]]
    assert decoded.empty_labels == (POSTERIOR,)
    assert decoded.flags == flags
    assert decoded.doubts == ()


def test_a_frame_without_reference_and_position_is_refused():
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 2, mask((1, 2)))], by_reference=False, by_position=False)

    with pytest.raises(CorrectionError, match="on no slice"):
        decode(ds, sources)


@pytest.mark.parametrize(
    ("manufacturer", "preserved", "slice_index", "is_known_defect"),
    [
        ("Unspecified", "NO", 2, True),
        ("QIICR", "YES", 2, False),
        ("QIICR", "NO", 1, False),
    ],
)
def test_a_conflict_of_reference_and_position_is_settled_by_rule_and_held_unless_the_writer_is_known_for_it(
    manufacturer, preserved, slice_index, is_known_defect
):
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 2, mask((1, 2)))], manufacturer=manufacturer, preserved=preserved)
    groups = ds.PerFrameFunctionalGroupsSequence[0]
    groups.PlanePositionSequence[0].ImagePositionPatient = sources[1].ImagePositionPatient  # of four

    decoded = decode(ds, sources)

    assert set(decoded.flags) - {"conflict_unsettled"} == {"position_conflict"}
    assert bool(decoded.doubts) is not is_known_defect
    assert np.argwhere(decoded.masks[ANTERIOR]).tolist() == [[slice_index, 1, 2]]


def test_a_position_of_dcmjs_that_is_not_the_mirrored_one_is_held():
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 2, mask((1, 2)))], manufacturer="Unspecified")
    groups = ds.PerFrameFunctionalGroupsSequence[0]
    groups.PlanePositionSequence[0].ImagePositionPatient = sources[3].ImagePositionPatient

    decoded = decode(ds, sources)

    assert "conflict_unsettled" in decoded.flags
    assert decoded.doubts


def test_positions_may_jitter_by_a_tenth_of_the_gap():
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 2, mask((1, 2)))], by_reference=False)
    position = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [-10.02, 20.01, 34.15]

    assert decode(ds, sources).masks[ANTERIOR][2, 1, 2]


def test_labels_are_found_by_name_whatever_the_case_and_the_numbers():
    sources = plain_series()
    ds = foreign_seg(
        sources, [(1, 0, mask((0, 0))), (2, 1, mask((1, 1)))], labels=("hippocampus POSTERIOR ", "Cyst")
    )

    decoded = decode(ds, sources)

    assert list(decoded.masks) == [POSTERIOR]
    assert decoded.unmapped_labels == ("Cyst",)
    assert decoded.unmapped["Cyst"][1, 1, 1]
    assert decoded.empty_labels == ()


def test_a_renamed_segment_is_found_by_its_codes_and_a_void_code_says_nothing():
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 0, mask((0, 0))), (2, 1, mask((1, 1)))], labels=("x", "y"))
    code = item(CodeValue="5366008", CodingSchemeDesignator="SCT", CodeMeaning="Hippocampus")
    modifier = item(CodeValue="255551008", CodingSchemeDesignator="SCT", CodeMeaning="Posterior")
    code.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [code]
    void = item(CodeValue="T-D0050", CodingSchemeDesignator="SRT", CodeMeaning="Tissue")
    ds.SegmentSequence[1].SegmentedPropertyTypeCodeSequence = [void]

    decoded = decode(ds, sources)

    assert list(decoded.masks) == [POSTERIOR]
    assert decoded.unmapped_labels == ("y",)


def test_overlapping_labels_are_kept_apart_and_flagged():
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 0, mask((0, 0), (0, 1))), (2, 0, mask((0, 1)))])

    decoded = decode(ds, sources)

    assert decoded.masks[ANTERIOR].sum() == 2
    assert decoded.masks[POSTERIOR].sum() == 1
    assert decoded.flags == ("labels_overlap",)


def test_orphaned_segment_numbers_are_matched_by_rank_and_flagged():
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 0, mask((0, 0))), (3, 1, mask((1, 1)))])

    decoded = decode(ds, sources)

    assert decoded.masks[POSTERIOR][1, 1, 1]
    assert decoded.flags == ("segment_numbers_by_rank",)
    assert "ascending order" in decoded.doubts[0]


def test_orphaned_segment_numbers_that_cannot_be_matched_are_refused():
    sources = plain_series()
    ds = foreign_seg(sources, [(3, 0, mask((0, 0)))])

    with pytest.raises(CorrectionError, match="which is which cannot be told"):
        decode(ds, sources)


@pytest.mark.parametrize(
    ("orientation", "position", "turned"),
    [
        ([-1, 0, 0, 0, 1, 0], [-7.5, 20, 30], lambda m: m[:, ::-1]),
        ([1, 0, 0, 0, -1, 0], [-10, 23, 30], lambda m: m[::-1]),
        ([-1, 0, 0, 0, -1, 0], [-7.5, 23, 30], lambda m: m[::-1, ::-1]),
    ],
)
def test_frames_that_lie_flipped_in_their_plane_are_turned(orientation, position, turned):
    sources = plain_series()
    wanted = mask((1, 2), (4, 5))
    ds = foreign_seg(sources, [(1, 0, turned(wanted))], by_reference=False)
    ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [
        item(ImageOrientationPatient=orientation)
    ]
    ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = position

    decoded = decode(ds, sources)

    np.testing.assert_array_equal(decoded.masks[ANTERIOR][0], wanted)
    assert decoded.flags == ("in_plane_flip", "no_references")


def test_transposed_frames_of_a_series_that_is_not_square_are_turned():
    sources = plain_series()
    wanted = mask((1, 2), (4, 5))
    ds = foreign_seg(sources, [(1, 0, wanted.T.copy())])
    ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [
        item(ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    ]

    decoded = decode(ds, sources)

    np.testing.assert_array_equal(decoded.masks[ANTERIOR][0], wanted)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("FrameOfReferenceUID", "1.2.3", "registration"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4", "no Segmentation"),
        ("Rows", 7, "another grid"),
        ("NumberOfFrames", 5, "functional groups"),
        ("NumberOfFrames", 2**31 - 1, "at most"),
        ("BitsAllocated", 32, "32 bits"),
        ("PixelData", b"\x00" * 40, "40 bytes of pixel data"),
        ("PixelData", b"\xfe\xff\x00\xe0" + b"\x00" * 40, "stand where an item was expected"),
        ("SegmentSequence", [], "lists no segments"),
        ("ReferencedSeriesSequence", [item(SeriesInstanceUID="1.2.9")], "made on series 1.2.9"),
    ],
)
def test_what_cannot_be_read_without_guessing_is_refused_with_the_reason(keyword, value, reason):
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 0, mask((0, 0)))])
    setattr(ds, keyword, value)

    with pytest.raises(CorrectionError, match=reason):
        decode(ds, sources)


@pytest.mark.parametrize("syntax", sorted(LOSSY))
def test_labels_in_a_compression_that_changes_values_are_refused(syntax):
    sources = plain_series()
    ds = label_map(sources, [(0, np.ones((5, 6), np.uint8))])
    ds.file_meta.TransferSyntaxUID = syntax

    with pytest.raises(CorrectionError, match="which does not keep values"):
        decode(ds, sources)


@pytest.mark.parametrize("cut", [1, 20, 66])
def test_run_lengths_that_are_cut_are_refused_with_the_frame(cut):
    sources = plain_series()
    ds = label_map(sources, [(0, np.ones((5, 6), np.uint8))])
    ds.compress(RLELossless)
    (code,) = generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = encapsulate([code[:cut]])

    with pytest.raises(CorrectionError, match="frame 1 cannot be decoded"):
        decode(ds, sources)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_a_label_map_of_bytes_or_words_is_read_in_every_lossless_compression(bits, syntax):
    sources = plain_series((4, 40, 48))
    values = np.zeros((40, 48), f"u{bits // 8}")
    values[3:9, 2:20], values[30:, 40:] = 1, 2
    ds = label_map(sources, [(3, values), (1, values[::-1].copy())])
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit = bits - 1
    ds.PixelData = np.stack([values, values[::-1]]).tobytes()
    ds.compress(syntax)

    decoded = decode(ds, sources)

    for label, value in ((ANTERIOR, 1), (POSTERIOR, 2)):
        wanted = np.zeros((4, 40, 48), bool)
        wanted[3], wanted[1] = values == value, values[::-1] == value
        np.testing.assert_array_equal(decoded.masks[label], wanted)


def test_frames_that_each_start_on_a_byte_are_read_and_flagged():
    sources = plain_series()
    frames = [(1, k, mask((k, k), (4, 5))) for k in range(4)] + [(2, k, mask((0, k + 1))) for k in range(4)]
    ds = foreign_seg(sources, frames)
    ds.PixelData = b"".join(np.packbits(m.reshape(-1), bitorder="little").tobytes() for _, _, m in frames)

    decoded = decode(ds, sources)

    assert decoded.flags == ("frames_byte_aligned",)
    np.testing.assert_array_equal(decoded.masks[ANTERIOR][3], frames[3][2])


def test_a_length_that_fits_packed_and_aligned_frames_is_refused_for_a_writer_that_does_either():
    sources = plain_series()
    frames = [(1, 0, mask((0, 0))), (1, 1, mask((1, 1)))]  # 2 x 30 pixels: 8 bytes either way

    assert decode(foreign_seg(sources, frames), sources).flags == ()
    with pytest.raises(CorrectionError, match="cannot be told from 8 bytes"):
        decode(foreign_seg(sources, frames, manufacturer="Unspecified"), sources)


def label_map(sources, frames):
    """A label map without frame content; frames are (slice, array of segment numbers)."""
    ds = foreign_seg(sources, [(1, k, values > 0) for k, values in frames])
    for groups in ds.PerFrameFunctionalGroupsSequence:
        del groups.SegmentIdentificationSequence
    ds.SOPClassUID = LABEL_MAP
    ds.SegmentationType = "LABELMAP"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.SegmentSequence.insert(0, item(SegmentNumber=0, SegmentLabel="Background"))
    ds.PixelData = np.stack([values for _, values in frames]).astype(np.uint8).tobytes()
    return ds


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_label_map_is_read_native_and_run_length_encoded(syntax):
    sources = plain_series()
    values = np.zeros((5, 6), np.uint8)
    values[1, 1], values[2, 3] = 1, 2
    ds = label_map(sources, [(3, values), (1, values.T.reshape(5, 6))])
    if syntax == RLELossless:
        ds.compress(RLELossless)

    decoded = decode(ds, sources)

    assert decoded.masks[ANTERIOR][3, 1, 1]
    assert decoded.masks[POSTERIOR][3, 2, 3]
    assert decoded.unmapped_labels == ()
    assert decoded.flags == ()


def test_two_frames_of_a_label_map_at_one_position_keep_overlapping_segments():
    sources = plain_series()
    one, two = np.zeros((5, 6), np.uint8), np.zeros((5, 6), np.uint8)
    one[1, 1:4], two[1, 3:5] = 1, 2

    decoded = decode(label_map(sources, [(0, one), (0, two)]), sources)

    assert decoded.masks[ANTERIOR].sum() == 3
    assert decoded.masks[POSTERIOR].sum() == 2
    assert decoded.flags == ("labels_overlap",)


def test_a_value_that_no_segment_lists_is_kept_unmapped():
    sources = plain_series()
    values = np.full((5, 6), 9, np.uint8)

    decoded = decode(label_map(sources, [(0, values)]), sources)

    assert decoded.unmapped_labels == ("segment 9",)
    assert decoded.flags == ("unlisted_segment",)


def test_references_are_known_before_the_sources_are():
    sources = plain_series()
    ds = foreign_seg(sources, [(1, 2, mask((1, 2)))])

    assert seg_read.referenced_series(ds) == sources[0].SeriesInstanceUID
    assert seg_read.referenced_instances(ds) == {sources[2].SOPInstanceUID}
    del ds.ReferencedSeriesSequence
    assert seg_read.referenced_series(ds) is None


def test_a_source_without_frame_of_reference_is_matched_by_reference_alone():
    sources = make_series(make_volume(np.zeros((3, 5, 6), np.uint16)))
    ds = foreign_seg(sources, [(1, 2, mask((1, 2)))], by_position=False)
    ds.FrameOfReferenceUID = "1.2.3.4"
    for source in sources:
        del source.FrameOfReferenceUID

    assert decode(ds, sources).masks[ANTERIOR][2, 1, 2]
