"""Segmentations on another grid than their source: crops voxel for voxel, others by nearest neighbour."""

import numpy as np
import pytest
import SimpleITK

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read, seg_resample
from dicomnode.imaging.reading.seg_geometry import FrameGeometry
from dicomnode.imaging.reading.seg_planes import PlaneIndex
from tests.frame_builders import column_of_planes, tilted
from tests.imaging_builders import AXIAL, foreign_seg, item, make_card, make_series, make_volume

CARD = make_card()
ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"
OBLIQUE = np.array([[0.6, 0.0, 0.8], [0.8, 0.0, -0.6], [0.0, -1.0, 0.0]])
SOURCE = {"axes": AXIAL, "spacing_mm": (2.0, 0.75, 0.5), "origin_mm": (-10.0, 20.0, 30.0)}


def stack_on(shape, **grid):
    return only_stack(make_series(make_volume(np.zeros(shape, np.uint16), **{**SOURCE, **grid})))


def drawn_on(labels, *, stack, keep_empty=False, **grid):
    """A segmentation of labels 1 and 2 on a grid of its own, in the frame of reference of a stack."""
    own = stack_on(labels.shape, **grid)
    frames = [
        (number, k, labels[k] == number)
        for number in (1, 2)
        for k in range(len(labels))
        if keep_empty or (labels[k] == number).any()
    ]
    ds = foreign_seg(own, frames, by_reference=False)
    first = own.frames[0]
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = stack.series_instance_uid
    ds.FrameOfReferenceUID = stack.first.FrameOfReferenceUID
    cosines = [*first.row_cosines, *first.column_cosines]
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=cosines)]
    shared.PixelMeasuresSequence = [
        item(
            PixelSpacing=first.pixel_spacing_mm.tolist(),
            SliceThickness=own.grid.spacing_mm[0],
            SpacingBetweenSlices=own.grid.spacing_mm[0],
        )
    ]
    return ds


def decode(ds, stack):
    return seg_read.decode(ds, stack=stack, card=CARD)


def picture(array, grid):
    image = SimpleITK.GetImageFromArray(array.astype(np.uint8))
    grid = {**SOURCE, **grid}
    image.SetSpacing(grid["spacing_mm"][::-1])
    image.SetOrigin(grid["origin_mm"])
    image.SetDirection(np.ascontiguousarray(grid["axes"][:, ::-1]).reshape(-1).tolist())
    return image


def ball(shape, centre, radius, spacing_mm=(2.0, 0.75, 0.5)):
    indices = np.indices(shape).reshape(3, -1).T * spacing_mm
    near = np.linalg.norm(indices - np.array(centre) * spacing_mm, axis=1) < radius
    return near.reshape(shape).astype(np.uint8)


# crops: the same lattice


def test_a_crop_is_placed_voxel_for_voxel():
    stack = stack_on((4, 5, 6))
    labels = np.zeros((2, 3, 2), np.uint8)
    labels[0, 0, 1], labels[1, 2, 0] = 1, 1
    origin = (-10 + 3 * 0.5, 20 + 0.75, 30 + 2.0)  # from slice 1, row 1, column 3 on
    ds = drawn_on(labels, stack=stack, origin_mm=origin)

    decoded = decode(ds, stack)

    assert np.argwhere(decoded.masks[ANTERIOR]).tolist() == [[1, 1, 4], [2, 3, 3]]
    assert decoded.empty_labels == (POSTERIOR,)
    assert decoded.flags == ("cropped", "no_references")
    assert decoded.doubts == ()


def test_a_crop_whose_references_name_its_planes_is_trusted_wholly():
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((1, 2, 2), np.uint8), stack=stack, origin_mm=(-10.0, 20.0, 34.0))
    reference = item(ReferencedSOPInstanceUID=stack.frames[2].sop_instance_uid)
    group = ds.PerFrameFunctionalGroupsSequence[0]
    group.DerivationImageSequence = [item(SourceImageSequence=[reference])]

    decoded = decode(ds, stack)
    assert (decoded.flags, decoded.confidence[ANTERIOR], decoded.doubts) == (("cropped",), 1.0, ())

    reference.ReferencedSOPInstanceUID = stack.frames[1].sop_instance_uid
    held = decode(ds, stack)
    assert held.masks[ANTERIOR][2].any()
    assert "name different slices" in held.doubts[0]


def test_a_crop_that_lies_flipped_is_turned_before_it_is_placed():
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.array([[[1, 1, 0], [0, 0, 0]]], np.uint8), stack=stack)
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    position = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [-10 + 4 * 0.5, 20 + 3 * 0.75, 30]  # its first pixel: row 3, column 4

    decoded = decode(ds, stack)

    assert np.argwhere(decoded.masks[ANTERIOR]).tolist() == [[0, 3, 3], [0, 3, 4]]


def test_what_lies_beside_the_images_is_left_out_and_held():
    stack = stack_on((4, 5, 6))
    labels = np.ones((6, 7, 8), np.uint8)
    ds = drawn_on(labels, stack=stack, origin_mm=(-10.5, 19.25, 28.0))  # one voxel more on every side

    decoded = decode(ds, stack)

    assert decoded.masks[ANTERIOR].all()
    assert set(decoded.flags) == {"cropped", "no_references", "outside_of_images", "voxels_dropped"}
    assert "where the series has no image" in decoded.doubts[0]


def test_a_margin_without_voxels_beside_the_images_is_no_reason_to_hold():
    stack = stack_on((4, 5, 6))
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:5, 1:6, 1:7] = 1
    ds = drawn_on(labels, stack=stack, origin_mm=(-10.5, 19.25, 28.0), keep_empty=True)

    decoded = decode(ds, stack)

    assert decoded.masks[ANTERIOR].all()
    assert "outside_of_images" in decoded.flags
    assert decoded.doubts == ()


def test_a_label_whose_voxels_are_all_beside_the_images_is_unknown_and_not_empty():
    stack = stack_on((4, 5, 6))
    labels = np.zeros((6, 5, 6), np.uint8)
    labels[0], labels[3] = 2, 1
    ds = drawn_on(labels, stack=stack, origin_mm=(-10.0, 20.0, 28.0))

    decoded = decode(ds, stack)

    assert list(decoded.masks) == [ANTERIOR]
    assert decoded.empty_labels == ()
    assert list(decoded.confidence) == [ANTERIOR]
    assert decoded.doubts


# other grids


GRIDS = {
    "oversampled": ((24, 40, 40), {"spacing_mm": (0.7, 0.33, 0.31), "origin_mm": (-9.31, 20.4, 30.3)}),
    "coarser": ((6, 9, 9), {"spacing_mm": (2.9, 1.37, 1.33), "origin_mm": (-9.4, 20.3, 31.1)}),
    "other slices": ((14, 24, 24), {"spacing_mm": (1.3, 0.75, 0.5), "origin_mm": (-10.0, 20.0, 30.4)}),
    "turned": (
        (40, 40, 40),
        {
            "axes": np.linalg.qr(OBLIQUE + 0.1 * np.eye(3))[0] @ np.diag([1, 1, 1.0]),
            "spacing_mm": (0.61, 0.63, 0.67),
            "origin_mm": (0.0, 0.0, 0.0),
        },
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_an_object_on_another_grid_is_what_an_independent_resampling_makes_of_it(name):
    shape, grid = GRIDS[name]
    grid = dict(grid)
    stack = stack_on((9, 24, 24))
    if name == "turned":
        axes = grid["axes"].copy()
        axes[:, 0] = np.cross(axes[:, 2], axes[:, 1])  # slice axis = column direction x row direction
        centre = np.array([-4.0, 29.0, 38.0])
        middle = axes @ (np.array(grid["spacing_mm"]) * (np.array(shape) - 1) / 2)
        grid.update(axes=axes, origin_mm=tuple((centre - middle).tolist()))
    labels = ball(shape, (np.array(shape) - 1) / 2, 4.0, grid["spacing_mm"])
    ds = drawn_on(labels, stack=stack, **grid)

    decoded = decode(ds, stack)

    reference = SimpleITK.Resample(
        picture(labels, grid),
        picture(np.zeros(stack.shape), {}),
        SimpleITK.Transform(),
        SimpleITK.sitkNearestNeighbor,
    )
    np.testing.assert_array_equal(decoded.masks[ANTERIOR], SimpleITK.GetArrayFromImage(reference) == 1)
    assert decoded.masks[ANTERIOR].sum() > 100
    assert decoded.flags == ("no_references", "resampled")
    assert decoded.confidence[ANTERIOR] == pytest.approx(0.7 * 0.95)
    assert decoded.doubts == ()


def test_each_voxel_takes_its_nearest_one():
    stack = stack_on((4, 4, 4), spacing_mm=(2.0, 1.0, 1.0))
    labels = np.zeros((8, 8, 8), np.uint8)  # half the size each; centres at -0.25, 0.25, 0.75, ... voxels
    labels[2:6, 0:4, 4:8] = 1
    ds = drawn_on(labels, stack=stack, spacing_mm=(1.0, 0.5, 0.5), origin_mm=(-10.25, 19.75, 29.5))

    decoded = decode(ds, stack)

    wanted = np.zeros((4, 4, 4), bool)
    wanted[1:3, 0:2, 2:4] = True
    np.testing.assert_array_equal(decoded.masks[ANTERIOR], wanted)


def test_a_label_too_thin_for_the_coarser_grid_is_unknown_while_others_are_kept():
    stack = stack_on((8, 8, 8), spacing_mm=(2.0, 1.0, 1.0))
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[2:10, 2:10, 2:10] = 1
    labels[12, 2:14, 2:14] = 2  # a sheet of half a slice
    ds = drawn_on(labels, stack=stack, spacing_mm=(1.0, 0.5, 0.5), origin_mm=(-10.25, 19.75, 29.5))

    decoded = decode(ds, stack)

    assert list(decoded.masks) == list(decoded.confidence) == [ANTERIOR]
    assert decoded.empty_labels == ()
    assert set(decoded.flags) == {"no_references", "resampled", "thin_label_left_out"}
    assert decoded.doubts == ()


def test_a_label_whose_volume_changes_by_more_than_a_tenth_is_unknown():
    stack = stack_on((8, 8, 8), spacing_mm=(2.0, 1.0, 1.0))
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[3:8, 2:10, 2:10] = 1  # 5 mm high, of which three slices of 2 mm are made
    ds = drawn_on(labels, stack=stack, spacing_mm=(1.0, 0.5, 0.5), origin_mm=(-10.25, 19.75, 29.5))

    assert decode(ds, stack).masks == {}


def test_voxels_beside_the_images_are_left_out_and_held_when_resampled():
    stack = stack_on((8, 8, 8), spacing_mm=(2.0, 1.0, 1.0))
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[:8, 2:10, 2:10] = 1
    ds = drawn_on(labels, stack=stack, spacing_mm=(1.0, 0.5, 0.5), origin_mm=(-10.25, 19.75, 25.5))

    decoded = decode(ds, stack)

    assert decoded.masks[ANTERIOR].sum() == 2 * 4 * 4
    assert "voxels_dropped" in decoded.flags
    assert decoded.doubts


def test_the_planes_of_a_tilted_stack_are_sampled_where_they_lie():
    stack = only_stack(tilted(6))  # 5 x 6 pixels of 1 mm; each plane 2 mm higher and 0.5 mm further along y
    labels = np.zeros((30, 40, 40), np.uint8)  # 0.5 mm; the first voxel at (-14.9, 15.1, 28.6)
    labels[:, 18:28] = 1  # y from 24.1 to 28.6
    spacing, origin = (0.5, 0.5, 0.5), (-14.9, 15.1, 28.6)
    ds = drawn_on(labels, stack=stack, spacing_mm=spacing, origin_mm=origin)

    indices, is_on = seg_resample.nearest_voxels(
        seg_resample.own_grid(FrameGeometry(ds)), PlaneIndex(stack), 5
    )

    assert is_on.all()
    rows = indices[1][:, 0]
    # plane 5 begins at y = 22.5: its rows at 22.5, 23.5, ... are nearest to (22.5 - 15.1) / 0.5 = 14.8, ...
    assert rows.tolist() == [15, 17, 19, 21, 23]
    assert set(indices[0].reshape(-1).tolist()) == {23}  # z = 40: (40 - 28.6) / 0.5 = 22.8


# refusals


def test_an_object_that_lies_nowhere_on_the_images_is_refused():
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((4, 5, 6), np.uint8), stack=stack, origin_mm=(500.0, 20.0, 30.7))

    with pytest.raises(CorrectionError, match="lies nowhere on the images"):
        decode(ds, stack)


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("PixelMeasuresSequence", "its pixel spacing would be needed"),
        ("PlaneOrientationSequence", "its orientation would be needed"),
    ],
)
def test_another_grid_that_is_not_told_is_refused(lost, reason):
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((4, 7, 9), np.uint8), stack=stack, origin_mm=(-10.0, 20.0, 30.7))
    del ds.SharedFunctionalGroupsSequence[0][lost]

    with pytest.raises(CorrectionError, match=reason):
        decode(ds, stack)


def test_another_grid_in_a_series_without_frame_of_reference_is_refused():
    sources = make_series(make_volume(np.zeros((4, 5, 6), np.uint16), **SOURCE))
    stack = only_stack(sources)
    ds = drawn_on(np.ones((4, 7, 9), np.uint8), stack=stack)
    for source in sources:
        del source.FrameOfReferenceUID

    with pytest.raises(CorrectionError, match="without a common frame of reference"):
        decode(ds, only_stack(sources))


def test_a_writer_that_draws_on_the_series_only_is_not_resampled():
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((4, 5, 6), np.uint8), stack=stack, origin_mm=(-10.0, 20.0, 30.7))
    ds.Manufacturer = "Unspecified"

    with pytest.raises(CorrectionError, match="draws on the planes of the series only"):
        decode(ds, stack)


@pytest.mark.parametrize(
    ("keyword", "is_refused"), [("SoftwareVersions", True), ("ContentCreatorName", False)]
)
def test_one_mark_of_a_writer_that_draws_on_the_series_only_does_not_make_it_that_writer(keyword, is_refused):
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((8, 10, 12), np.uint8), stack=stack, origin_mm=(-10.0, 20.0, 30.7))
    ds.ContentLabel = "SEGMENTATION"
    setattr(ds, keyword, "0")

    if is_refused:
        with pytest.raises(CorrectionError, match="draws on the planes of the series only"):
            decode(ds, stack)
    else:
        assert "resampled" in decode(ds, stack).flags


def test_slices_at_uneven_distances_are_refused():
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((4, 5, 6), np.uint8), stack=stack, origin_mm=(-10.0, 20.0, 30.7))
    position = ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    position.ImagePositionPatient = [-10.0, 20.0, 35.6]

    with pytest.raises(CorrectionError, match="how far its slices are apart is not told"):
        decode(ds, stack)


def test_two_slices_far_apart_tell_no_distance_of_slices():
    stack = stack_on((9, 8, 8))
    labels = np.zeros((9, 8, 8), np.uint8)
    labels[1, 2:6, 2:6] = labels[7, 2:6, 2:6] = 1
    ds = drawn_on(labels, stack=stack, spacing_mm=(1.0, 0.75, 0.5), origin_mm=(-10.0, 20.0, 30.3))
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices

    with pytest.raises(CorrectionError, match="how far its slices are apart is not told"):
        decode(ds, stack)


@pytest.mark.parametrize("value", [1e-9, 1e9, 0.0, -1.0])
def test_pixels_of_impossible_size_are_refused(value):
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((4, 7, 9), np.uint8), stack=stack)
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [value, 0.5]

    with pytest.raises(CorrectionError, match="has pixels of"):
        decode(ds, stack)


def test_a_position_that_is_in_no_patient_is_refused():
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((4, 7, 9), np.uint8), stack=stack)
    ds.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1e12]

    with pytest.raises(CorrectionError, match="which is in no patient"):
        decode(ds, stack)


def test_a_grid_of_too_many_voxels_is_refused_before_memory_is_taken():
    stack = stack_on((4, 5, 6))
    ds = drawn_on(np.ones((3, 500, 500), np.uint8), stack=stack, origin_mm=(-10.0, 20.0, 30.7))
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = 0.001
    for frame, height in enumerate((30.7, 30.701, 130.69)):
        position = ds.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]
        position.ImagePositionPatient = [-10.0, 20.0, height]

    with pytest.raises(CorrectionError, match=r"more than 0 segments on \(99991, 500, 500\)"):
        decode(ds, stack)


@pytest.mark.parametrize(
    ("shape", "is_thick"), [((2, 2, 2), True), ((1, 9, 9), False), ((9, 1, 9), False), ((9, 9, 1), False)]
)
def test_a_mask_is_thick_where_two_voxels_meet_along_every_axis(shape, is_thick):
    mask = np.zeros((12, 12, 12), bool)
    mask[1 : 1 + shape[0], 1 : 1 + shape[1], 1 : 1 + shape[2]] = True

    assert seg_resample.is_thick(mask, range(12)) is is_thick


def test_a_column_of_planes_with_a_gap_takes_voxels_only_where_it_has_planes():
    stack = only_stack(column_of_planes([0, 2, 4, 8, 10]))
    first = stack.frames[0]
    labels = np.ones((12, *first.size), np.uint8)
    spacing = (1.0, *first.pixel_spacing_mm.tolist())
    ds = drawn_on(
        labels, stack=stack, spacing_mm=spacing, origin_mm=tuple((first.position_mm - [0, 0, 0.4]).tolist())
    )

    decoded = decode(ds, stack)

    assert "voxels_dropped" in decoded.flags
    assert decoded.doubts
