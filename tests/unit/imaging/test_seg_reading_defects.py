"""What writers leave out or get wrong, one defect at a time, on objects that are otherwise complete."""

import numpy as np
import pytest
from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.stacks import only_stack, read_stacks
from dicomnode.imaging.reading import seg_read
from tests.frame_builders import column_of_planes
from tests.imaging_builders import (
    foreign_seg,
    item,
    make_card,
    make_series,
    make_volume,
    plain_series,
    reread,
)
from tests.seg_builders import encoded_forms, found_at

CARD = make_card()
ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"
PLACES = {ANTERIOR: [[1, 1, 1], [3, 4, 5]], POSTERIOR: [[2, 2, 2]]}
FORMS = ("binary", "label map")


@pytest.fixture(scope="module")
def sources():
    return plain_series()


@pytest.fixture(params=FORMS)
def ds(request, sources):
    """A complete object of either form."""
    whole = found_at(sources, CARD, *(list(map(tuple, places)) for places in PLACES.values()))
    return reread(encoded_forms(whole)[request.param])


def decode(ds, sources):
    return seg_read.decode(ds, stack=only_stack(sources), card=CARD)


def assert_read(ds, sources, *flags):
    decoded = decode(ds, sources)
    assert {label: np.argwhere(mask).tolist() for label, mask in decoded.masks.items()} == PLACES
    assert decoded.flags == flags
    assert decoded.doubts == ()


def groups_of(ds):
    return [*ds.PerFrameFunctionalGroupsSequence, *ds.get("SharedFunctionalGroupsSequence", [])]


def without(ds, *keywords):
    for group in (ds, *groups_of(ds)):
        for keyword in keywords:
            if keyword in group:
                del group[keyword]
    return ds


def test_d1_frames_without_frame_content_are_read(ds, sources):
    assert_read(without(ds, "FrameContentSequence"), sources)


def test_d2_an_object_without_dimension_indices_is_read(ds, sources):
    assert_read(without(ds, "DimensionIndexSequence", "DimensionOrganizationSequence"), sources)


def test_d3_pixel_measures_without_slice_thickness_are_enough(ds, sources):
    for group in groups_of(ds):
        for measures in group.get("PixelMeasuresSequence", []):
            without_thickness = ("SliceThickness", "SpacingBetweenSlices")
            for keyword in without_thickness:
                measures.pop(keyword, None)

    assert_read(ds, sources)


@pytest.mark.parametrize("how", ["absent", "no item", "empty item"])
def test_d4_pixel_measures_that_say_nothing_are_those_of_the_source(how, ds, sources):
    without(ds, "PixelMeasuresSequence")
    if how != "absent":
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [] if how == "no item" else [Dataset()]

    assert_read(ds, sources)


def test_d5_frames_without_positions_are_found_by_their_references(ds, sources):
    assert_read(without(ds, "PlanePositionSequence"), sources, "no_positions")


def test_d6_frames_without_references_are_found_by_their_positions(ds, sources):
    assert_read(without(ds, "DerivationImageSequence", "ReferencedSeriesSequence"), sources, "no_references")


def test_d6_an_object_that_refers_to_nothing_is_known_to_fit_its_series_alone(ds, sources):
    without(ds, "DerivationImageSequence", "ReferencedSeriesSequence", "SourceImageEvidenceSequence")
    shifted = make_series(make_volume(np.zeros((4, 5, 6), np.uint16), origin_mm=(-10.0, 20.0, 31.0)))
    moved = make_series(make_volume(np.zeros((4, 5, 6), np.uint16), origin_mm=(-9.7, 20.0, 30.0)))
    larger = make_series(make_volume(np.zeros((4, 9, 9), np.uint16)))
    smaller = make_series(make_volume(np.zeros((4, 3, 3), np.uint16)))
    elsewhere = make_series(make_volume(np.zeros((4, 5, 6), np.uint16)))
    other_study = make_series(make_volume(np.zeros((4, 5, 6), np.uint16)))
    for image in elsewhere:
        image.FrameOfReferenceUID = "1.2.3.4"
    for image in other_study:
        image.StudyInstanceUID = "1.2.3.4"

    assert seg_read.fits(ds, read_stacks(sources))
    assert seg_read.fits(ds, read_stacks(larger))  # as a crop
    for others in (shifted, moved, smaller, elsewhere, other_study):
        assert not seg_read.fits(ds, read_stacks(others))
    assert not seg_read.fits(ds, [])
    assert not seg_read.fits(ds, [only_stack(sources), only_stack(larger)])  # cannot be told
    del ds.FrameOfReferenceUID
    assert not seg_read.fits(ds, read_stacks(sources))


def test_d7_without_frame_of_reference_only_references_count(ds, sources):
    del ds.FrameOfReferenceUID
    assert_read(ds, sources, "no_positions")

    frame = ds.PerFrameFunctionalGroupsSequence[0]
    frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.4"
    with pytest.raises(CorrectionError, match="without a common frame of reference"):
        decode(ds, sources)


@pytest.mark.parametrize("numbers", [(2, 5), (5, 2)])
def test_d8_segments_may_be_listed_in_any_order_and_with_gaps(numbers):
    sources = plain_series()
    one = np.zeros((5, 6), bool)
    one[1, 2] = True
    ds = foreign_seg(sources, [(numbers[0], 1, one), (numbers[1], 2, one)])
    for segment, number in zip(ds.SegmentSequence, numbers, strict=True):
        segment.SegmentNumber = number
    ds.SegmentSequence = list(ds.SegmentSequence)[::-1]

    decoded = decode(ds, sources)

    assert np.argwhere(decoded.masks[ANTERIOR]).tolist() == [[1, 1, 2]]
    assert np.argwhere(decoded.masks[POSTERIOR]).tolist() == [[2, 1, 2]]
    assert decoded.flags == ()


@pytest.mark.parametrize(
    "keyword", ["SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence"]
)
def test_d9_segments_without_codes_are_known_by_their_labels(keyword, ds, sources):
    for segment in ds.SegmentSequence:
        del segment[keyword]
        segment.pop("TrackingUID", None)

    assert_read(ds, sources)


def test_d13_references_win_over_the_mirrored_positions_of_dcmjs(ds, sources):
    ds.Manufacturer = "Unspecified"
    heights = [source.ImagePositionPatient for source in sources]
    by_uid = {source.SOPInstanceUID: heights[-1 - k] for k, source in enumerate(sources)}
    for frame in ds.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        frame.PlanePositionSequence[0].ImagePositionPatient = by_uid[reference.ReferencedSOPInstanceUID]

    assert_read(ds, sources, "position_conflict")


def test_references_without_class_and_with_a_frame_number_are_no_defect(ds, sources):
    for frame in ds.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        del reference.ReferencedSOPClassUID
        reference.ReferencedFrameNumber = 1

    assert_read(ds, sources)


@pytest.mark.parametrize("keyword", ["PlaneOrientationSequence", "PixelMeasuresSequence"])
def test_d14_groups_may_be_shared_or_per_frame_and_the_frames_own_come_first(keyword, ds, sources):
    shared = ds.SharedFunctionalGroupsSequence[0]
    for frame in ds.PerFrameFunctionalGroupsSequence:
        setattr(frame, keyword, shared[keyword].value)
    assert_read(ds, sources)

    wrong = item(ImageOrientationPatient=[0, 0, 1, 0, 1, 0], PixelSpacing=[9, 9])
    del shared[keyword]
    setattr(shared, keyword, [wrong])
    assert_read(ds, sources)


def test_d14_segment_references_and_positions_may_be_shared(sources):
    one = np.zeros((5, 6), bool)
    one[1, 2] = True
    ds = foreign_seg(sources, [(2, 3, one)])
    frame, shared = ds.PerFrameFunctionalGroupsSequence[0], ds.SharedFunctionalGroupsSequence[0]
    for keyword in ("SegmentIdentificationSequence", "DerivationImageSequence", "PlanePositionSequence"):
        setattr(shared, keyword, frame[keyword].value)
        del frame[keyword]

    decoded = decode(ds, sources)

    assert np.argwhere(decoded.masks[POSTERIOR]).tolist() == [[3, 1, 2]]
    assert decoded.flags == ()


@pytest.mark.parametrize("by", ["number 0", "padding value", "code"])
def test_d15_background_is_no_segment(by, sources):
    whole = found_at(sources, CARD, *(list(map(tuple, places)) for places in PLACES.values()))
    ds = reread(encoded_forms(whole)["label map"])
    values = np.frombuffer(ds.pixel_array.tobytes(), np.uint8).reshape(ds.pixel_array.shape).copy()
    number = 0 if by == "number 0" else 9
    values[values == 0] = number
    ds.SegmentSequence = [segment for segment in ds.SegmentSequence if segment.SegmentNumber > 0]
    background = item(SegmentNumber=number, SegmentLabel="Background")
    ds.pop("PixelPaddingValue", None)
    if by == "padding value":
        ds.PixelPaddingValue = number
    if by == "code":
        background.SegmentedPropertyTypeCodeSequence = [
            item(CodeValue="125040", CodingSchemeDesignator="DCM", CodeMeaning="Background")
        ]
    ds.SegmentSequence.insert(0, background)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds["PixelData"].is_undefined_length = False
    ds.PixelData = values.tobytes()

    assert_read(ds, sources)


def test_d15_a_padding_value_says_nothing_of_segments_that_are_no_label_map(sources):
    one = np.zeros((5, 6), bool)
    one[1, 2] = True
    ds = foreign_seg(sources, [(1, 3, one)])
    ds.PixelPaddingValue = 1

    assert np.argwhere(decode(ds, sources).masks[ANTERIOR]).tolist() == [[3, 1, 2]]


@pytest.mark.parametrize(
    ("gap_mm", "jitter_mm", "is_exact"),
    [(2.0, 0.02, True), (2.0, 0.19, True), (2.0, 0.21, False), (0.05, 0.009, True), (0.05, 0.011, False)],
)
def test_d16_positions_may_jitter_by_a_tenth_of_the_gap_or_a_hundredth_of_a_millimetre(
    gap_mm, jitter_mm, is_exact
):
    stack = only_stack(column_of_planes([gap_mm * k for k in range(4)]))
    ds = foreign_seg(stack, [(1, 2, np.ones((3, 4), bool))])
    position = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [0, 0, 2 * gap_mm + jitter_mm]

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert decoded.masks[ANTERIOR][2].all()
    assert decoded.flags == (() if is_exact else ("position_imprecise",))
    del ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    if is_exact:
        assert seg_read.decode(ds, stack=stack, card=CARD).masks[ANTERIOR][2].all()
    else:
        with pytest.raises(CorrectionError, match="on no slice"):
            seg_read.decode(ds, stack=stack, card=CARD)


def test_a_position_beside_its_own_plane_is_believed_and_not_the_reference(sources):
    one = np.zeros((5, 6), bool)
    one[1, 2] = True
    ds = foreign_seg(sources, [(1, 2, one)], preserved="NO")
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [item(PixelSpacing=[0.75, 0.5])]
    position = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [-10 + 0.5, 20 + 0.75, 34]  # a pixel further along rows and columns

    decoded = decode(ds, sources)

    assert np.argwhere(decoded.masks[ANTERIOR]).tolist() == [[2, 2, 3]]
    assert decoded.doubts


def test_d17_another_grid_of_the_same_frame_of_reference_is_resampled_and_said_so(sources):
    stack = only_stack(make_series(make_volume(np.zeros((8, 16, 24), np.uint16))))
    labels = np.ones((16, 9, 9), bool)
    ds = foreign_seg(stack, [(1, 0, plane) for plane in labels], by_reference=False)
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [item(PixelSpacing=[0.5, 0.5], SpacingBetweenSlices=1)]
    for k, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = [-9, 21.6, 29.5 + k]

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    found = np.argwhere(decoded.masks[ANTERIOR])
    # slices 30, 32, ... within 29 .. 45; rows 20 + 0.75 k within 21.35 .. 25.85; columns voxel by voxel
    assert found.min(axis=0).tolist() == [0, 2, 2]
    assert found.max(axis=0).tolist() == [7, 7, 10]
    assert "resampled" in decoded.flags
    assert decoded.confidence[ANTERIOR] < 0.7


def test_d18_another_frame_of_reference_is_refused(ds, sources):
    ds.FrameOfReferenceUID = "1.2.3.4"

    with pytest.raises(CorrectionError, match="a registration would be needed"):
        decode(ds, sources)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_number_of_frames_that_is_not_that_of_the_functional_groups_is_refused(change, ds, sources):
    ds.NumberOfFrames = int(ds.NumberOfFrames) + change

    with pytest.raises(CorrectionError, match="functional groups"):
        decode(ds, sources)


@pytest.mark.parametrize("has_orientation", [True, False])
def test_exchanged_rows_and_columns_are_refused_unless_the_orientation_exchanges_them(
    has_orientation, ds, sources
):
    ds.Rows, ds.Columns = ds.Columns, ds.Rows
    if not has_orientation:
        without(ds, "PlaneOrientationSequence")

    with pytest.raises(CorrectionError, match="is on another grid"):
        decode(ds, sources)


def test_a_frame_that_does_not_say_how_it_lies_is_not_taken_for_a_crop(ds, sources):
    without(ds, "PlaneOrientationSequence", "DerivationImageSequence")
    for frame in ds.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [
            x + 5 * 0.5,
            y,
            z,
        ]  # as if columns were flipped

    with pytest.raises(CorrectionError, match="its orientation would be needed"):
        decode(ds, sources)


def test_an_orientation_out_of_the_planes_that_the_references_deny_is_held_or_refused(sources):
    stack = only_stack(make_series(make_volume(np.zeros((8, 9, 9), np.uint16), spacing_mm=(1.0, 1.0, 1.0))))
    ds = foreign_seg(stack, [(1, k, np.ones((9, 9), bool)) for k in range(8)])
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence = [item(PixelSpacing=[1, 1], SpacingBetweenSlices=1)]
    shared.PlaneOrientationSequence = [
        item(ImageOrientationPatient=[0.995, 0.0998749, 0, -0.0998749, 0.995, 0])
    ]

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert "resampled" in decoded.flags
    assert any("name different slices" in doubt for doubt in decoded.doubts)
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])]
    with pytest.raises(CorrectionError, match="shifted against each other"):
        seg_read.decode(ds, stack=stack, card=CARD)


@pytest.mark.parametrize("at", [0, 1])
def test_a_crop_without_references_finds_the_stack_that_it_is_a_part_of(at):
    far_away = make_volume(np.zeros((5, 6, 7), np.uint16), origin_mm=(90.0, 0.0, 0.0))
    stacks = (only_stack(column_of_planes([0, 4, 8])), only_stack(make_series(far_away)))
    stack = stacks[at]
    first = stack.frames[1]
    ds = foreign_seg(stack, [(1, 1, np.ones((2, 2), bool))], by_reference=False)
    shared = ds.SharedFunctionalGroupsSequence[0]
    cosines = [*first.row_cosines, *first.column_cosines]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=cosines)]
    shared.PixelMeasuresSequence = [item(PixelSpacing=first.pixel_spacing_mm.tolist())]

    assert seg_read.stack_of(ds, stacks) is stack
    assert seg_read.decode(ds, stack=stack, card=CARD).masks[ANTERIOR].sum() == 4
