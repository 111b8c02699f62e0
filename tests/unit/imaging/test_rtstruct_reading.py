"""RT Structure Sets of any writer: decoded where nothing is guessed, doubted or refused with the reason."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging.identity import voxels_sha256
from dicomnode.imaging.images.series import stack_volume
from dicomnode.imaging.images.stacks import only_stack, read_stacks
from dicomnode.imaging.reading import rtstruct_read
from dicomnode.imaging.reading.rtstruct_defects import DEFECTS
from dicomnode.imaging.results import rtstruct_write
from dicomnode.imaging.results.findings import measure
from tests.frame_builders import column_of_planes, frame_groups, multi_frame, plane, tilted
from tests.imaging_builders import item, make_card, plain_series, reread
from tests.rtstruct_builders import contour, on_frame, square, square_on, structure_set
from tests.seg_builders import RUN, found_in

ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"
CARD = make_card()
STACK = only_stack(plain_series((6, 9, 8)))


def decode(ds, *, stack=STACK, **options):
    return rtstruct_read.decode(reread(ds), stack=stack, card=CARD, **options)


def drawn(*contours, name=ANTERIOR):
    return structure_set(STACK, {name: contours})


def voxels(decoded, label=ANTERIOR):
    return int(decoded.masks[label].sum())


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def is_same(decoded, findings):
    return all(
        np.array_equal(decoded.masks[s.label], findings.labels == s.segment_number) for s in CARD.segments
    )


# what we write ourselves


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_our_own_contours_come_back_voxel_by_voxel_and_sure(seed):
    findings = found_in(plain_series((3, 9, 8)), noise((3, 9, 8), seed), CARD)

    decoded = decode(rtstruct_write.encode(findings, run=RUN), stack=findings.stack)

    assert is_same(decoded, findings)
    assert decoded.flags == decoded.doubts == ()
    assert decoded.confidence == {ANTERIOR: 1.0, POSTERIOR: 1.0}
    ours = {s.label: findings.labels == s.segment_number for s in CARD.segments}
    assert voxels_sha256(decoded.masks) == voxels_sha256(ours)


def test_contours_on_the_planes_of_a_tilted_gantry_come_back():
    series = stack_volume(only_stack(tilted(6)))
    findings = measure(series.image.with_array(noise(series.image.shape)), series=series, card=CARD)

    assert is_same(decode(rtstruct_write.encode(findings, run=RUN), stack=findings.stack), findings)


def test_contours_on_frames_of_a_multi_frame_image_come_back():
    pixels = np.arange(4 * 30, dtype=np.uint16).reshape(4, 5, 6)
    image = multi_frame([frame_groups((0, 0, 8.0 - 2 * k)) for k in range(4)], pixels)
    findings = found_in([image], noise((4, 5, 6)), CARD)

    decoded = decode(rtstruct_write.encode(findings, run=RUN), stack=findings.stack)

    assert is_same(decoded, findings)
    assert decoded.flags == ()


# which label a structure is


def test_a_name_is_found_whatever_its_case_and_blanks():
    assert voxels(decode(drawn(square_on(STACK, 1), name=" HIPPOCAMPUS Anterior"))) == 9


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_an_observation_label_stands_in_for_a_name_that_is_none():
    ds = drawn(square_on(STACK, 1), name="ROI_1")
    ds.RTROIObservationsSequence[0].ROIObservationLabel = POSTERIOR

    assert voxels(decode(ds), POSTERIOR) == 9


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_a_name_and_an_observation_label_of_two_labels_are_doubted():
    ds = drawn(square_on(STACK, 1))
    ds.RTROIObservationsSequence[0].ROIObservationLabel = POSTERIOR

    decoded = decode(ds)

    assert voxels(decoded) == 9
    assert decoded.flags == ("label_conflict",)
    assert len(decoded.doubts) == 1


def test_a_code_that_one_label_has_says_the_label():
    ds = drawn(square_on(STACK, 1), name="ROI_1")
    posterior = item(CodeValue="255551008", CodingSchemeDesignator="SCT", CodeMeaning="Posterior")
    code = item(CodeValue="5366008", CodingSchemeDesignator="SCT", CodeMeaning="Hippocampus")
    code.SegmentedPropertyTypeModifierCodeSequence = [posterior]
    ds.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence = [code]

    decoded = decode(ds)

    assert voxels(decoded, POSTERIOR) == 9
    assert decoded.flags == ("label_by_codes",)


def test_an_alias_says_the_label():
    ds = drawn(square_on(STACK, 1), name="HC post")

    assert voxels(decode(ds, aliases={"hc POST": POSTERIOR}), POSTERIOR) == 9


def test_structures_that_are_no_label_are_kept_apart_and_raise_no_doubt():
    broken = contour(on_frame(STACK.frames[2], square(0.5, 30)))
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], "BODY": [broken]})

    decoded = decode(ds)

    assert decoded.unmapped_labels == ("BODY",)
    assert decoded.unmapped["BODY"].sum() == 8 * 7
    assert decoded.flags == ("contours_outside",)
    assert decoded.doubts == ()
    assert decoded.confidence == {ANTERIOR: 1.0}


def test_contours_of_a_structure_that_is_not_listed_are_kept_unmapped():
    ds = drawn(square_on(STACK, 1))
    ds.ROIContourSequence.append(item(ReferencedROINumber=7, ContourSequence=[square_on(STACK, 2)]))

    decoded = decode(ds)

    assert decoded.unmapped_labels == ("ROI 7",)
    assert decoded.flags == ("unlisted_roi",)
    assert decoded.doubts


def test_two_structures_of_one_label_are_joined_and_doubted():
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], ANTERIOR.upper(): [square_on(STACK, 2)]})

    decoded = decode(ds)

    assert voxels(decoded) == 18
    assert decoded.flags == ("label_repeated",)
    assert len(decoded.doubts) == 1


@pytest.mark.parametrize("has_item", [True, False])
def test_a_structure_without_contours_is_listed_and_empty(has_item):
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], POSTERIOR: []})
    if not has_item:
        del ds.ROIContourSequence[1]

    decoded = decode(ds)

    assert decoded.empty_labels == (POSTERIOR,)
    assert decoded.confidence == {ANTERIOR: 1.0, POSTERIOR: 1.0}
    assert decoded.doubts == ()


def test_an_object_in_which_nothing_is_drawn_is_doubted():
    decoded = decode(structure_set(STACK, {ANTERIOR: [], POSTERIOR: []}))

    assert decoded.empty_labels == (ANTERIOR, POSTERIOR)
    assert decoded.flags == ("nothing_drawn",)
    assert len(decoded.doubts) == 1


def test_labels_that_share_voxels_are_kept_whole():
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], POSTERIOR: [square_on(STACK, 1)]})

    decoded = decode(ds)

    assert voxels(decoded, ANTERIOR) == voxels(decoded, POSTERIOR) == 9
    assert decoded.flags == ("labels_overlap",)


# holes


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_inside_another_is_a_hole(kind):
    frame = STACK.frames[1]
    both = [contour(on_frame(frame, square(*ends)), kind=kind) for ends in ((0.5, 5.5), (1.5, 3.5))]

    decoded = decode(drawn(*both))

    assert voxels(decoded) == 25 - 4
    assert decoded.doubts == ()


def test_contours_that_overlap_are_doubted():
    decoded = decode(drawn(square_on(STACK, 1, 0.5, 3.5), square_on(STACK, 1, 2.5, 5.5)))

    assert decoded.flags == ("contours_overlap",)
    assert decoded.confidence[ANTERIOR] == DEFECTS["contours_overlap"].factor
    assert decoded.doubts[0].startswith(f"{ANTERIOR}: ")


def test_a_contour_that_is_there_twice_counts_once_and_is_doubted():
    decoded = decode(drawn(square_on(STACK, 1), square_on(STACK, 1)))

    assert voxels(decoded) == 9
    assert decoded.flags == ("contours_repeated",)
    assert decoded.doubts


# where contours lie


def test_position_decides_without_a_reference_and_nothing_is_doubted():
    decoded = decode(drawn(contour(on_frame(STACK.frames[4], square(0.5, 3.5)))))

    assert np.flatnonzero(decoded.masks[ANTERIOR].any(axis=(1, 2))).tolist() == [4]
    assert decoded.flags == decoded.doubts == ()


@pytest.mark.parametrize("part", [0.09, -0.09])
def test_a_contour_within_a_tenth_of_the_gap_is_on_the_plane(part):
    points = on_frame(STACK.frames[2], square(0.5, 3.5), above_mm=part * STACK.grid.spacing_mm[0])

    assert decode(drawn(contour(points))).masks[ANTERIOR][2].sum() == 9


def test_a_contour_that_names_another_slice_is_read_where_it_lies_and_doubted():
    points = on_frame(STACK.frames[4], square(0.5, 3.5))

    decoded = decode(drawn(contour(points, names=STACK.frames[1])))

    assert np.flatnonzero(decoded.masks[ANTERIOR].any(axis=(1, 2))).tolist() == [4]
    assert decoded.flags == ("position_conflict",)
    assert decoded.doubts


def test_a_contour_that_names_an_image_of_another_series_is_doubted():
    one = square_on(STACK, 1)
    one.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"

    decoded = decode(drawn(one))

    assert voxels(decoded) == 9
    assert decoded.flags == ("other_images",)
    assert decoded.doubts


def test_contours_between_planes_are_left_out_and_lower_the_confidence():
    between = contour(on_frame(STACK.frames[2], square(0.5, 3.5), above_mm=1.0))

    decoded = decode(drawn(square_on(STACK, 1), square_on(STACK, 2), square_on(STACK, 3), between))

    assert voxels(decoded) == 27
    assert decoded.flags == ("contours_off_planes",)
    assert decoded.confidence[ANTERIOR] == 0.75
    assert decoded.doubts


def test_an_oblique_contour_is_left_out():
    points = on_frame(STACK.frames[2], square(0.5, 3.5))
    points[0] += 2.0 * STACK.grid.normal

    decoded = decode(drawn(square_on(STACK, 1), square_on(STACK, 2), contour(points)))

    assert voxels(decoded) == 18
    assert decoded.flags == ("contours_off_planes",)


def test_a_drawing_on_other_slices_is_refused():
    contours = [contour(on_frame(frame, square(0.5, 3.5), above_mm=1.0)) for frame in STACK.frames]

    with pytest.raises(CorrectionError, match=r"6 of 7 contours lie on no slice .* drawn on other slices"):
        decode(drawn(*contours, square_on(STACK, 1)))


def test_a_label_whose_contours_lie_on_no_plane_is_unknown_not_empty():
    off = contour(on_frame(STACK.frames[2], square(0.5, 3.5), above_mm=1.0))
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1), square_on(STACK, 2)], POSTERIOR: [off]})

    decoded = decode(ds)

    assert set(decoded.masks) == set(decoded.confidence) == {ANTERIOR}
    assert decoded.empty_labels == ()
    assert any(doubt.startswith(POSTERIOR) for doubt in decoded.doubts)


def test_contours_too_small_for_a_voxel_leave_the_label_unknown():
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], POSTERIOR: [square_on(STACK, 1, 0.2, 0.4)]})

    decoded = decode(ds)

    assert decoded.empty_labels == ()
    assert decoded.flags == ("no_voxels",)


def test_contours_on_every_other_slice_are_doubted():
    decoded = decode(drawn(*(square_on(STACK, index) for index in (0, 2, 4))))

    assert decoded.flags == ("slices_skipped",)
    assert decoded.doubts


def test_contours_beyond_the_image_are_cut_off_and_doubted():
    decoded = decode(drawn(square_on(STACK, 1, 4.5, 12.5)))

    assert voxels(decoded) == 4 * 3
    assert decoded.flags == ("contours_outside",)
    assert decoded.doubts


# frame of reference and series


def test_a_structure_in_another_frame_of_reference_is_not_read():
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], POSTERIOR: [square_on(STACK, 1)]})
    ds.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"

    decoded = decode(ds)

    assert set(decoded.masks) == {ANTERIOR}
    assert decoded.empty_labels == ()
    assert "other_frame_of_reference" in decoded.flags
    assert decoded.doubts


def test_an_object_in_another_frame_of_reference_is_refused():
    ds = drawn(square_on(STACK, 1))
    ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"

    with pytest.raises(CorrectionError, match="another frame of reference"):
        decode(ds)


def test_the_frame_of_reference_of_the_object_counts_where_a_structure_names_none():
    ds = drawn(square_on(STACK, 1))
    del ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
    assert decode(ds).flags == ()

    ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3"
    with pytest.raises(CorrectionError, match="another frame of reference"):
        decode(ds)


def test_without_a_frame_of_reference_the_series_must_be_named():
    ds = drawn(square_on(STACK, 1))
    del ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
    del ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    assert decode(ds).flags == ("frame_of_reference_missing",)

    del ds.ReferencedFrameOfReferenceSequence
    del ds.ROIContourSequence[0].ContourSequence[0].ContourImageSequence
    with pytest.raises(CorrectionError, match="neither frame of reference nor series"):
        decode(ds)


def test_a_series_without_a_frame_of_reference_takes_what_names_it():
    grid = replace(STACK.grid, frame_of_reference_uid="2.25.1", has_own_frame_of_reference=False)

    decoded = decode(drawn(square_on(STACK, 1)), stack=replace(STACK, grid=grid))

    assert voxels(decoded) == 9
    assert decoded.flags == ("frame_of_reference_missing",)


def test_a_structure_set_of_another_series_is_refused():
    ds = drawn(square_on(STACK, 1))
    series = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence
    series[0].SeriesInstanceUID = "1.2.3"

    assert rtstruct_read.referenced_series(ds) == "1.2.3"
    with pytest.raises(CorrectionError, match=r"made on series 1\.2\.3"):
        decode(ds)


def test_of_several_series_the_one_that_contours_name_is_meant():
    ds = drawn(square_on(STACK, 1))
    study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    other = item(SeriesInstanceUID="1.2.3", ContourImageSequence=[item(ReferencedSOPInstanceUID="1.2.3.4")])
    study.RTReferencedSeriesSequence.insert(0, other)

    assert rtstruct_read.referenced_series(ds) == STACK.series_instance_uid
    assert voxels(decode(ds)) == 9
    del ds.ROIContourSequence[0].ContourSequence[0].ContourImageSequence
    with pytest.raises(CorrectionError, match="references 2 series"):
        rtstruct_read.referenced_series(ds)


def test_images_are_those_of_header_and_contours():
    ds = drawn(square_on(STACK, 1))
    ds.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"

    own = {frame.sop_instance_uid for frame in STACK.frames}
    assert rtstruct_read.referenced_instances(ds) == own | {"1.2.3"}


def test_nothing_is_referenced_by_an_object_without_references():
    ds = Dataset()

    assert rtstruct_read.referenced_series(ds) is None
    assert rtstruct_read.referenced_instances(ds) == frozenset()


# which stack


def two_echoes():
    """One multi-frame image of two stacks at the same places."""
    groups = [
        frame_groups((0, 0, 2.0 * k), MREchoSequence=item(EffectiveEchoTime=echo))
        for echo in (5.0, 90.0)
        for k in range(3)
    ]
    return read_stacks([multi_frame(groups, np.arange(6 * 30, dtype=np.uint16).reshape(6, 5, 6))])


def written_on(stack):
    series = stack_volume(stack)
    findings = measure(series.image.with_array(noise(stack.shape)), series=series, card=CARD)
    return reread(rtstruct_write.encode(findings, run=RUN))


def without_references(ds):
    del ds.ReferencedFrameOfReferenceSequence
    for roi in ds.ROIContourSequence:
        for one in roi.ContourSequence:
            del one.ContourImageSequence
    return ds


@pytest.mark.parametrize("at", [0, 1])
def test_the_stack_is_that_of_the_frames_that_contours_name(at):
    stacks = two_echoes()
    assert len(stacks) == 2

    assert rtstruct_read.stack_of(written_on(stacks[at]), stacks) is stacks[at]


def test_stacks_at_one_place_cannot_be_told_apart_without_references():
    stacks = two_echoes()
    ds = without_references(written_on(stacks[0]))

    with pytest.raises(CorrectionError, match="it fits as well"):
        rtstruct_read.stack_of(ds, stacks)


@pytest.mark.parametrize("at", [0, 1])
def test_without_references_the_stack_is_told_by_where_contours_lie(at):
    sagittal = [
        plane(10 + k, (4 * k, 0, 8), cosines=(0, 1, 0, 0, 0, -1), pixels=np.zeros((3, 4), np.uint16))
        for k in range(3)
    ]
    stacks = read_stacks([*column_of_planes([0, 4, 8]), *sagittal])
    ds = without_references(written_on(stacks[at]))

    assert rtstruct_read.stack_of(ds, stacks) is stacks[at]
