"""Segmentations on planes that are no plain column: multi-frame, tilted, gapped, several stacks."""

import numpy as np
import pytest

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.stacks import only_stack, read_stacks
from dicomnode.imaging.reading import seg_canvas, seg_read
from dicomnode.imaging.reading.seg_canvas import Canvas
from tests.frame_builders import column_of_planes, frame_groups, item, multi_frame, plane, tilted
from tests.imaging_builders import foreign_seg, make_card

CARD = make_card()
ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"


def one_pixel(row, column, size=(3, 4)):
    mask = np.zeros(size, bool)
    mask[row, column] = True
    return mask


def places(decoded, label=ANTERIOR):
    return np.argwhere(decoded.masks[label]).tolist()


def frames_at(heights, *, number=1, **groups):
    """A multi-frame image with axial frames of 3 x 4 at these heights."""
    pixels = np.zeros((len(heights), 3, 4), np.uint16)
    own = [
        frame_groups((0, 0, z), **{key: values[k] for key, values in groups.items()})
        for k, z in enumerate(heights)
    ]
    return multi_frame(own, pixels, number=number)


def position_of(ds, frame=0):
    return ds.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]


def reference_of(ds, frame=0):
    return ds.PerFrameFunctionalGroupsSequence[frame].DerivationImageSequence[0].SourceImageSequence[0]


# multi-frame sources


@pytest.mark.parametrize(("has_frame_numbers", "by_position"), [(True, False), (True, True), (False, True)])
def test_a_frame_of_a_multi_frame_source_is_found_by_its_number_or_by_position(
    has_frame_numbers, by_position
):
    stack = only_stack([frames_at([8, 0, 4, 12])])  # ascending: frames 2, 3, 1, 4
    frames = [(1, k, one_pixel(k % 3, k)) for k in range(4)]
    ds = foreign_seg(stack, frames, has_frame_numbers=has_frame_numbers, by_position=by_position)

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert places(decoded) == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 0, 3]]
    assert decoded.doubts == ()


def test_a_reference_to_a_whole_multi_frame_image_names_no_plane():
    stack = only_stack([frames_at([0, 4, 8])])
    ds = foreign_seg(stack, [(1, 2, one_pixel(1, 1))], has_frame_numbers=False, by_position=False)

    with pytest.raises(CorrectionError, match="on no slice"):
        seg_read.decode(ds, stack=stack, card=CARD)


def test_a_multi_frame_image_of_one_frame_needs_no_frame_number():
    stack = only_stack([frames_at([4 * k], number=k + 1) for k in range(3)])
    ds = foreign_seg(stack, [(1, 2, one_pixel(1, 1))], has_frame_numbers=False, by_position=False)

    assert places(seg_read.decode(ds, stack=stack, card=CARD)) == [[2, 1, 1]]


def test_frames_are_found_in_a_stack_that_is_split_over_several_multi_frame_images():
    stack = only_stack([frames_at([0, 8], number=1), frames_at([4, 12], number=2)])
    ds = foreign_seg(stack, [(1, k, one_pixel(0, k)) for k in range(4)], by_position=False)

    assert places(seg_read.decode(ds, stack=stack, card=CARD)) == [[0, 0, 0], [1, 0, 1], [2, 0, 2], [3, 0, 3]]


def test_a_frame_number_on_a_single_frame_source_is_not_looked_at():
    stack = only_stack(column_of_planes([0, 4, 8]))
    ds = foreign_seg(stack, [(1, k, one_pixel(0, k)) for k in range(3)], by_position=False)
    for frame in range(3):
        reference_of(ds, frame).ReferencedFrameNumber = 1  # as OHIF 3.13 writes
    reference_of(ds, 2).ReferencedFrameNumber = 3

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert places(decoded) == [[0, 0, 0], [1, 0, 1], [2, 0, 2]]
    assert decoded.flags == ("no_positions",)


def test_a_frame_number_that_the_source_does_not_have_leaves_the_position_to_decide():
    stack = only_stack([frames_at([0, 4, 8])])
    ds = foreign_seg(stack, [(1, 2, one_pixel(1, 1))])
    reference_of(ds).ReferencedFrameNumber = 9

    assert places(seg_read.decode(ds, stack=stack, card=CARD)) == [[2, 1, 1]]


def test_a_reference_to_several_frames_leaves_the_position_to_decide_and_is_flagged():
    stack = only_stack([frames_at([0, 4, 8])])
    ds = foreign_seg(stack, [(1, 2, one_pixel(1, 1))])
    reference_of(ds).ReferencedFrameNumber = [2, 3]

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert places(decoded) == [[2, 1, 1]]
    assert decoded.flags == ("reference_conflict",)
    assert decoded.doubts == ()


def test_a_position_beside_all_frames_that_are_referred_to_is_held():
    stack = only_stack([frames_at([0, 4, 8])])
    ds = foreign_seg(stack, [(1, 2, one_pixel(1, 1))])
    reference_of(ds).ReferencedFrameNumber = [1, 2]

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert places(decoded) == [[2, 1, 1]]
    assert decoded.doubts


def test_mirrored_positions_of_dcmjs_on_a_multi_frame_source_are_settled_by_the_frame_number():
    stack = only_stack([frames_at([0, 4, 8])])
    ds = foreign_seg(stack, [(1, 2, one_pixel(1, 1))], manufacturer="Unspecified", preserved="NO")
    position_of(ds).ImagePositionPatient = [0, 0, 0]

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert places(decoded) == [[2, 1, 1]]
    assert decoded.flags == ("position_conflict",)


# tilted and gapped stacks


def test_masks_lie_on_the_planes_of_a_tilted_stack_and_not_on_its_grid():
    stack = only_stack(tilted(6))
    assert stack.grid.shape != stack.shape
    frames = [(1, k, one_pixel(k % 5, k, (5, 6))) for k in range(6)]

    for by_reference in (True, False):
        ds = foreign_seg(stack, frames, by_reference=by_reference)
        decoded = seg_read.decode(ds, stack=stack, card=CARD)
        assert decoded.shape == stack.shape == (6, 5, 6)
        assert places(decoded) == [[k, k % 5, k] for k in range(6)]
        assert decoded.doubts == ()


def test_a_frame_of_a_tilted_stack_must_lie_where_its_own_plane_lies():
    stack = only_stack(tilted(6))  # 0.5 mm, half a pixel, further along y from plane to plane
    ds = foreign_seg(stack, [(1, 5, one_pixel(1, 1, (5, 6)))], by_reference=False)
    x, y, z = position_of(ds).ImagePositionPatient

    position_of(ds).ImagePositionPatient = [x, float(y) + 0.09, z]
    assert places(seg_read.decode(ds, stack=stack, card=CARD)) == [[5, 1, 1]]
    position_of(ds).ImagePositionPatient = [x, float(y) - 2.5, z]  # as if the stack were not tilted
    with pytest.raises(CorrectionError, match="on no slice"):
        seg_read.decode(ds, stack=stack, card=CARD)


def test_masks_lie_on_the_planes_of_a_gapped_stack():
    stack = only_stack(column_of_planes([0, 2, 4, 8, 10]))
    assert stack.grid.shape[0] == 6
    ds = foreign_seg(stack, [(1, k, one_pixel(0, 1)) for k in range(5)], by_reference=False)

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert places(decoded) == [[k, 0, 1] for k in range(5)]


@pytest.mark.parametrize(
    ("height", "expected"),
    [(0.15, 0), (0.25, None), (4.15, 2), (4.25, None), (6, None), (9.3, None), (9.5, 3)],
)
def test_how_far_a_frame_may_lie_from_a_plane_depends_on_the_planes_beside_it(height, expected):
    stack = only_stack(column_of_planes([0, 2, 4, 10]))
    ds = foreign_seg(stack, [(1, 0, one_pixel(0, 1))], by_reference=False)
    position_of(ds).ImagePositionPatient = [0, 0, height]

    if expected is None:
        with pytest.raises(CorrectionError, match="on no slice"):
            seg_read.decode(ds, stack=stack, card=CARD)
    else:
        assert places(seg_read.decode(ds, stack=stack, card=CARD)) == [[expected, 0, 1]]


# several stacks in one series


def two_echoes():
    """Single-frame images at the same heights, of two echo times."""
    images = [
        plane(10 * echo + k, (0, 0, 4 * k), EchoTime=10.0 * echo) for echo in (1, 2) for k in range(1, 4)
    ]
    stacks = read_stacks(images)
    assert len(stacks) == 2
    return stacks


@pytest.mark.parametrize("at", [0, 1])
def test_the_stack_is_the_one_whose_planes_are_referred_to(at):
    stacks = two_echoes()
    ds = foreign_seg(stacks[at], [(1, 1, one_pixel(1, 2))])

    found = seg_read.stack_of(ds, stacks)

    assert found is stacks[at]
    assert places(seg_read.decode(ds, stack=found, card=CARD)) == [[1, 1, 2]]


@pytest.mark.parametrize("at", [0, 1])
def test_the_stack_in_a_multi_frame_image_is_told_by_the_frame_numbers(at):
    echoes = [item(EffectiveEchoTime=10.0 * (1 + k % 2)) for k in range(6)]
    stacks = read_stacks([frames_at([0, 0, 4, 4, 8, 8], MREchoSequence=echoes)])
    assert len(stacks) == 2
    ds = foreign_seg(stacks[at], [(1, 2, one_pixel(1, 2))], by_position=False)

    found = seg_read.stack_of(ds, stacks)

    assert found is stacks[at]
    assert places(seg_read.decode(ds, stack=found, card=CARD)) == [[2, 1, 2]]
    unnumbered = foreign_seg(stacks[at], [(1, 2, one_pixel(1, 2))], has_frame_numbers=False)
    with pytest.raises(CorrectionError, match="cannot be told; by its size and positions it fits as well"):
        seg_read.stack_of(unnumbered, stacks)


@pytest.mark.parametrize("at", [0, 1])
def test_stacks_of_an_instance_each_are_told_by_references_without_frame_numbers(at):
    echoes = [[item(EffectiveEchoTime=10.0 * n)] * 3 for n in (1, 2)]
    stacks = read_stacks([frames_at([0, 4, 8], number=n + 1, MREchoSequence=echoes[n]) for n in range(2)])
    assert len(stacks) == 2
    ds = foreign_seg(stacks[at], [(1, 2, one_pixel(1, 2))], has_frame_numbers=False)

    assert seg_read.stack_of(ds, stacks) is stacks[at]


@pytest.mark.parametrize("at", [0, 1])
def test_the_instances_that_the_header_lists_tell_the_stack_where_frames_name_none(at):
    stacks = two_echoes()
    ds = foreign_seg(stacks[at], [(1, 1, one_pixel(1, 2))], by_reference=False)
    with pytest.raises(CorrectionError, match=r"echo time 10 ms .* echo time 20 ms"):
        seg_read.stack_of(ds, stacks)
    listed = [item(ReferencedSOPInstanceUID=frame.sop_instance_uid) for frame in stacks[at].frames]
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence = listed

    assert seg_read.stack_of(ds, stacks) is stacks[at]


def test_a_list_of_all_instances_of_the_series_tells_nothing():
    stacks = two_echoes()
    ds = foreign_seg(stacks[0], [(1, 1, one_pixel(1, 2))], by_reference=False)
    listed = [
        item(ReferencedSOPInstanceUID=frame.sop_instance_uid) for stack in stacks for frame in stack.frames
    ]
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence = listed

    with pytest.raises(CorrectionError, match="cannot be told"):
        seg_read.stack_of(ds, stacks)


def test_a_segmentation_of_planes_of_two_stacks_is_refused():
    stacks = two_echoes()
    ds = foreign_seg(stacks[0], [(1, 0, one_pixel(1, 2)), (1, 1, one_pixel(1, 2))])
    reference_of(ds, 1).ReferencedSOPInstanceUID = stacks[1].frames[1].sop_instance_uid

    with pytest.raises(CorrectionError, match="refers to planes of several stacks"):
        seg_read.stack_of(ds, stacks)


def axial_and_sagittal():
    axial = column_of_planes([0, 4, 8])
    sagittal = [
        plane(10 + k, (4 * k, 0, 8), cosines=(0, 1, 0, 0, 0, -1), pixels=np.zeros((3, 4), np.uint16))
        for k in range(3)
    ]
    stacks = read_stacks([*axial, *sagittal])
    assert len(stacks) == 2
    return stacks


@pytest.mark.parametrize("at", [0, 1])
def test_without_references_the_stack_is_told_by_orientation_and_positions(at):
    stacks = axial_and_sagittal()
    ds = foreign_seg(stacks[at], [(1, 1, one_pixel(1, 2))], by_reference=False)
    cosines = [*stacks[at].frames[0].row_cosines, *stacks[at].frames[0].column_cosines]
    ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [item(ImageOrientationPatient=cosines)]

    found = seg_read.stack_of(ds, stacks)

    assert found is stacks[at]
    assert places(seg_read.decode(ds, stack=found, card=CARD)) == [[1, 1, 2]]


@pytest.mark.parametrize("at", [0, 1])
def test_without_references_and_positions_the_stack_is_told_by_its_size(at):
    small = column_of_planes([0, 4, 8])
    large = [plane(10 + k, (0, 0, 4 * k), pixels=np.zeros((6, 8), np.uint16)) for k in range(3)]
    stacks = read_stacks([*small, *large])
    size = stacks[at].frames[0].size
    ds = foreign_seg(stacks[at], [(1, 1, one_pixel(1, 2, size))], by_reference=False, by_position=False)

    assert seg_read.stack_of(ds, stacks) is stacks[at]


def test_a_segmentation_that_fits_no_stack_is_refused_with_their_names():
    stacks = two_echoes()
    ds = foreign_seg(stacks[0], [(1, 1, one_pixel(1, 2))], by_reference=False)
    position_of(ds).ImagePositionPatient = [0, 0, 99]

    with pytest.raises(CorrectionError, match=r"none of echo time 10 ms \(3 slices\); echo time 20 ms"):
        seg_read.stack_of(ds, stacks)


def test_in_a_series_of_one_stack_there_is_nothing_to_tell():
    stack = only_stack(column_of_planes([0, 4, 8]))
    ds = foreign_seg(stack, [(1, 1, one_pixel(1, 2))], by_reference=False, by_position=False)

    assert seg_read.stack_of(ds, [stack]) is stack


# overlap and memory


def test_an_overlap_on_one_plane_is_found_among_many_labels():
    card = make_card(("A", "B", "C"))
    stack = only_stack(column_of_planes([0, 4, 8]))
    frames = [
        (1, 0, one_pixel(0, 0)),
        (2, 1, one_pixel(0, 0)),
        (3, 2, one_pixel(0, 0)),
        (2, 2, one_pixel(0, 0)),
    ]
    ds = foreign_seg(stack, frames, labels=("A", "B", "C"))

    assert seg_read.decode(ds, stack=stack, card=card).flags == ("labels_overlap",)
    assert (
        seg_read.decode(foreign_seg(stack, frames[:3], labels=("A", "B", "C")), stack=stack, card=card).flags
        == ()
    )


def test_a_hundred_labels_on_six_hundred_slices_are_taken_where_each_is_on_some_of_them():
    canvas = Canvas((600, 512, 512), name="segmentation")

    for number in range(1, 105):
        canvas.add(number, number, one_pixel(7, 9, (512, 512)))

    assert len(canvas.painted) == 104
    assert canvas.taken == 104 * 512 * 512


def test_segments_that_fill_more_than_memory_are_refused(monkeypatch):
    monkeypatch.setattr(seg_canvas, "MAXIMUM_PAINTED_VOXELS", 3 * 12)
    canvas = Canvas((3, 3, 4), name="segmentation")
    for number, plane_index in ((1, 0), (1, 0), (1, 1), (2, 0)):
        canvas.add(number, plane_index, one_pixel(1, 1))

    with pytest.raises(CorrectionError, match="segmentation: its segments fill more than 36 voxels"):
        canvas.add(2, 1, one_pixel(1, 1))


# slices left out


@pytest.mark.parametrize(
    ("drawn", "doubted"), [((0, 2, 4), True), ((0, 3), False), ((0, 1, 3, 5), False), ((5, 1, 3), True)]
)
def test_a_label_on_every_other_slice_is_held_because_those_between_may_have_been_meant_too(drawn, doubted):
    stack = only_stack(column_of_planes([0, 4, 8, 12, 16, 20]))
    ds = foreign_seg(stack, [(1, at, one_pixel(1, 1)) for at in drawn] + [(2, 0, one_pixel(2, 2))])

    decoded = seg_read.decode(ds, stack=stack, card=CARD)

    assert decoded.flags == (("slices_skipped",) if doubted else ())
    assert ["probably skipped" in doubt for doubt in decoded.doubts] == [True] * doubted
    assert decoded.confidence == {ANTERIOR: 0.5 if doubted else 1.0, POSTERIOR: 1.0}
