"""The planes of a series are sorted into stacks, each with a name that says what it is."""

import random

import numpy as np
import pytest
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)

from dicomnode.errors import GeometryError, UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.images.stacks import only_stack, read_stacks
from tests.frame_builders import column_of_planes, frame_groups, item, multi_frame, plane, shared_groups
from tests.imaging_builders import make_series, make_volume

HEIGHTS = (0, 2, 4)


def repeated(*variants, heights=HEIGHTS):
    """Planes at every height once for each variant, a dict of attributes."""
    places = [(z, variant) for variant in variants for z in heights]
    datasets = [plane(number, (0, 0, z), **variant) for number, (z, variant) in enumerate(places, start=1)]
    random.Random(5).shuffle(datasets)
    return datasets


def names(datasets):
    stacks = read_stacks(datasets)
    assert sum(len(stack.frames) for stack in stacks) == len(datasets)
    assert all(stack.is_regular for stack in stacks)
    return [stack.name for stack in stacks]


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ([{"EchoTime": 4.6}, {"EchoTime": 2.3}], ["echo time 2.3 ms", "echo time 4.6 ms"]),
        ([{"EchoNumbers": 1}, {"EchoNumbers": 2}], ["echo number 1", "echo number 2"]),
        ([{"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}], ["b-value 0 s/mm2", "b-value 800 s/mm2"]),
        (
            [{"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}],
            ["temporal position 1", "temporal position 2"],
        ),
        ([{"TriggerTime": 0.0}, {"TriggerTime": 40.5}], ["trigger time 0 ms", "trigger time 40.5 ms"]),
        ([{"AcquisitionNumber": 3}, {"AcquisitionNumber": 4}], ["acquisition 3", "acquisition 4"]),
        ([{}, {"ContrastBolusAgent": "Agent"}], ["no contrast phase", "contrast phase Agent"]),
        (
            [{"InversionTime": 700}, {"InversionTime": 2500}],
            ["inversion time 700 ms", "inversion time 2500 ms"],
        ),
        (
            [{"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}],
            ["convolution kernel B30f", "convolution kernel B70f"],
        ),
        (
            [{"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}],
            ["image type M", "image type P"],
        ),
        (
            [
                {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "WATER"]},
                {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "FAT"]},
            ],
            ["image type FAT", "image type WATER"],
        ),
    ],
)
def test_repeated_positions_are_told_apart_by_what_the_images_say(variants, expected):
    assert names(repeated(*variants)) == expected


def test_two_facts_are_taken_where_one_is_not_enough():
    datasets = repeated(
        *({"EchoTime": echo, "ImageType": ["ORIGINAL", "PRIMARY", kind]} for echo in (2, 4) for kind in "MP")
    )

    assert names(datasets) == [
        "image type M, echo time 2 ms",
        "image type M, echo time 4 ms",
        "image type P, echo time 2 ms",
        "image type P, echo time 4 ms",
    ]


def test_one_fact_is_taken_where_it_is_enough_though_others_differ_too():
    datasets = repeated({"EchoTime": 2, "AcquisitionNumber": 1}, {"EchoTime": 4, "AcquisitionNumber": 2})

    assert names(datasets) == ["echo time 2 ms", "echo time 4 ms"]


def test_the_stacks_and_their_frames_do_not_depend_on_the_order_of_the_files():
    datasets = repeated({"EchoTime": 2}, {"EchoTime": 4})

    def uids(stacks):
        return [[frame.sop_instance_uid for frame in stack.frames] for stack in stacks]

    assert uids(read_stacks(datasets)) == uids(read_stacks(datasets[::-1]))


def private(group, creator, element, vr, value):
    def write(ds):
        ds.private_block(group, creator, create=True).add_new(element, vr, value)
        return ds

    return write


@pytest.mark.parametrize(
    ("group", "creator", "element", "vr", "low", "high", "expected"),
    [
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", 50, 800, 800),
        (0x0019, "SIEMENS MR HEADER", 0x0C, "UN", b"50", b"800 ", 800),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", 50.0, 800.0, 800),
        (0x2001, "Philips Imaging DD 001", 0x03, "UN", b"\0\0\x48\x42", b"\0\0\x48\x44", 800),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", [50, 8, 0, 0], [1000000800, 8, 0, 0], 800),
        (0x0043, "GEMS_PARM_01", 0x39, "UN", b"50\\8\\0\\0 ", b"1000000800\\8\\0\\0 ", 800),
    ],
)
def test_b_values_are_read_from_the_private_attributes_of_the_vendors(
    group, creator, element, vr, low, high, expected
):
    datasets = [
        private(group, creator, element, vr, value)(plane(number, (0, 0, z)))
        for value, first in ((low, 1), (high, 4))
        for number, z in enumerate(HEIGHTS, start=first)
    ]

    stacks = read_stacks(datasets)

    assert [stack.facts.b_value for stack in stacks] == [50, expected]
    assert stacks[1].name == "b-value 800 s/mm2"


def test_diffusion_directions_are_told_apart_beside_one_image_without():
    datasets = repeated(
        {"DiffusionBValue": 0.0},
        *(
            {"DiffusionBValue": 700.0, "DiffusionGradientOrientation": direction}
            for direction in ([1.0, 0, 0], [0, 1.0, 0])
        ),
    )

    assert names(datasets) == [
        "no diffusion direction",
        "diffusion direction 0/1/0",
        "diffusion direction 1/0/0",
    ]


def test_phases_whose_times_differ_from_slice_to_slice_are_taken_by_rank():
    datasets = [
        plane(10 * slice_index + phase, (0, 0, 2 * slice_index), TriggerTime=40.0 * phase + 3 * slice_index)
        for slice_index in range(3)
        for phase in (2, 1, 3)
    ]

    stacks = read_stacks(datasets)

    assert [stack.name for stack in stacks] == [f"trigger time rank {rank}" for rank in (1, 2, 3)]
    assert [[ds.SOPInstanceUID[-1] for ds in stack.datasets] for stack in stacks] == [
        ["1"] * 3,
        ["2"] * 3,
        ["3"] * 3,
    ]


def test_a_slice_that_was_sent_twice_is_refused_with_its_place_and_both_uids():
    datasets = column_of_planes([0, 2, 4, 2])

    with pytest.raises(
        GeometryError, match=r"10\.7.*at one position, 2\.000 mm.*10\.7\.2 and instance .*7\.4"
    ):
        read_stacks(datasets)


def test_times_that_differ_everywhere_do_not_explain_one_repeated_slice():
    datasets = column_of_planes([0, 2, 4, 6, 2])
    for number, ds in enumerate(datasets):
        ds.AcquisitionTime = f"1200{number:02}"

    with pytest.raises(GeometryError, match="two slices at one position"):
        read_stacks(datasets)


def test_stacks_that_overlap_at_their_ends_are_told_apart():
    datasets = [
        *column_of_planes([0, 2, 4, 6], AcquisitionNumber=1),
        *(plane(n, (0, 0, z), AcquisitionNumber=2) for n, z in ((5, 6), (6, 8), (7, 10), (8, 12))),
        *(plane(n, (0, 0, z), AcquisitionNumber=3) for n, z in ((9, 12), (10, 14), (11, 16))),
    ]

    assert names(datasets) == ["acquisition 1", "acquisition 2", "acquisition 3"]


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], ["axial", "sagittal"]),
        ("PixelSpacing", [0.5, 0.5], ["pixels of 1 x 1 mm", "pixels of 0.5 x 0.5 mm"]),
        (
            "FrameOfReferenceUID",
            "1.2.3",
            ["frame of reference 1.2.826.0.1.3680043.10.5", "frame of reference 1.2.3"],
        ),
        (
            "ImageOrientationPatient",
            [0.8, 0.6, 0, -0.6, 0.8, 0],
            [
                "orientation 1.000 0.000 0.000 0.000 1.000 0.000",
                "orientation 0.800 0.600 0.000 -0.600 0.800 0.000",
            ],
        ),
    ],
)
def test_planes_that_lie_differently_are_different_stacks(keyword, value, expected):
    datasets = column_of_planes([0, 2, 4, 6, 8])
    for number, ds in enumerate(datasets[3:]):
        setattr(ds, keyword, value)
        ds.ImagePositionPatient = [2 * number, 0, 2 * number]

    assert [stack.name for stack in read_stacks(datasets)] == expected


def test_a_series_of_several_stacks_is_no_single_volume_and_they_are_named():
    datasets = repeated({"EchoTime": 2}, {"EchoTime": 4})

    with pytest.raises(
        UnsupportedSeriesError, match=r"2 stacks: echo time 2 ms \(3 slices\); echo time 4 ms \(3 slices\)"
    ):
        only_stack(datasets)


def test_many_stacks_are_counted_and_not_all_named():
    datasets = repeated(*({"TemporalPositionIdentifier": k} for k in range(1, 13)))

    with pytest.raises(UnsupportedSeriesError, match=r"12 stacks.*temporal position 8.*; and 4 more;"):
        only_stack(datasets)


def test_the_facts_of_a_stack_are_typed_and_absent_where_nothing_is_said():
    facts = only_stack(column_of_planes(HEIGHTS, EchoTime=4.6, AcquisitionNumber=2)).facts

    assert (facts.echo_time_ms, facts.acquisition_number) == (4.6, 2)
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "M")
    assert facts.b_value is None
    assert facts.temporal_position is None
    assert facts.diffusion_direction is None


# Multi-frame images


def values(frames):
    """Each frame with its own number from 1."""
    return np.repeat(np.arange(1, frames + 1, dtype=np.uint16), 12).reshape(frames, 3, 4)


def test_a_multi_frame_image_becomes_a_volume_in_the_order_of_its_positions():
    frames = [frame_groups((5, 6, z)) for z in (4, 0, 2)]

    volume = to_volume([multi_frame(frames, values(3))])

    assert volume.image.array[:, 0, 0].tolist() == [2, 3, 1]
    assert [frame.frame_number for frame in volume.stack.frames] == [2, 3, 1]
    assert [frame.is_multi_frame for frame in volume.stack.frames] == [True] * 3
    np.testing.assert_allclose(volume.image.affine @ [2, 1, 1, 1], [6, 7, 4, 1])
    assert len(volume.sources) == 1


@pytest.mark.parametrize(
    "sop_class",
    [
        EnhancedCTImageStorage,
        EnhancedMRImageStorage,
        EnhancedPETImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
        LegacyConvertedEnhancedPETImageStorage,
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_every_multi_frame_class_of_ct_mr_and_pet_is_read(sop_class, count):
    frames = [frame_groups((0, 0, z)) for z in range(count)]

    volume = to_volume([multi_frame(frames, values(count), SOPClassUID=sop_class)])

    assert volume.image.array[:, 0, 0].tolist() == list(range(1, count + 1))
    assert all(frame.is_multi_frame for frame in volume.stack.frames)


def test_functional_groups_of_a_frame_come_before_those_of_all_frames():
    own = {
        "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.25], SliceThickness=3, SpacingBetweenSlices=-2),
        "PlaneOrientationSequence": item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    }
    frames = [frame_groups((x, 0, 0), **own) for x in (0, 2)]

    stack = only_stack([multi_frame(frames, values(2))])

    assert stack.grid.spacing_mm == (2.0, 0.5, 0.25)
    assert stack.frames[0].slice_thickness_mm == 3
    assert stack.frames[0].slice_spacing_mm == 2
    np.testing.assert_allclose(stack.grid.normal, [-1, 0, 0])


def test_a_multi_frame_image_of_several_echoes_is_split():
    frames = [
        frame_groups((0, 0, z), MREchoSequence=item(EffectiveEchoTime=echo))
        for z in HEIGHTS
        for echo in (2.5, 5.0)
    ]

    first, second = read_stacks([multi_frame(frames, values(6))])

    assert (first.name, second.name) == ("echo time 2.5 ms", "echo time 5 ms")
    assert [frame.frame_number for frame in second.frames] == [2, 4, 6]
    assert second.facts.echo_time_ms == 5.0


def test_one_stack_may_be_split_over_several_multi_frame_images():
    datasets = [
        multi_frame([frame_groups((0, 0, z)) for z in (0, 4)], values(2), number=1),
        multi_frame([frame_groups((0, 0, z)) for z in (2, 6)], values(2) + 10, number=2),
    ]

    volume = to_volume(datasets[::-1])

    assert volume.image.array[:, 0, 0].tolist() == [1, 11, 2, 12]
    assert len(volume.sources) == 2


def test_frames_of_different_stack_ids_are_different_stacks_though_no_position_repeats():
    frames = [
        frame_groups((0, 0, z), FrameContentSequence=item(StackID=name))
        for name, start in (("1", 0), ("2", 100))
        for z in (start, start + 2, start + 4)
    ]

    assert [stack.name for stack in read_stacks([multi_frame(frames, values(6))])] == ["stack 1", "stack 2"]


def test_a_converted_image_says_its_facts_in_unassigned_attributes():
    frames = [
        frame_groups((0, 0, z), UnassignedPerFrameConvertedAttributesSequence=item(EchoTime=echo))
        for z in HEIGHTS
        for echo in (2.5, 5.0)
    ]
    ds = multi_frame(frames, values(6), SOPClassUID=LegacyConvertedEnhancedMRImageStorage)

    assert [stack.facts.echo_time_ms for stack in read_stacks([ds])] == [2.5, 5.0]


def test_dimensions_tell_frames_apart_that_differ_in_nothing_else():
    pointers = [item(DimensionIndexPointer=tag) for tag in (0x00209056, 0x00209057, 0x20051413)]
    frames = [
        frame_groups((0, 0, z), FrameContentSequence=item(DimensionIndexValues=[1, index + 1, kind]))
        for kind in (1, 2)
        for index, z in enumerate(HEIGHTS)
    ]
    ds = multi_frame(frames, values(6), DimensionIndexSequence=pointers)

    assert [stack.name for stack in read_stacks([ds])] == ["dimension index 1", "dimension index 2"]


@pytest.mark.parametrize("said", [2, 4, 2_000_000_000, 0])
def test_a_number_of_frames_that_the_functional_groups_contradict_is_refused(said):
    ds = multi_frame([frame_groups((0, 0, z)) for z in HEIGHTS], values(3))
    ds.NumberOfFrames = said

    with pytest.raises(UnreadableInstanceError, match=f"Number of Frames is {said}, .* groups of 3 frames"):
        read_stacks([ds])


@pytest.mark.parametrize(
    "missing", ["PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"]
)
def test_a_frame_without_geometry_is_named(missing):
    frames = [frame_groups((0, 0, z)) for z in HEIGHTS]
    shared = shared_groups()
    for groups in (frames[1], shared):
        if missing in groups:
            delattr(groups, missing)

    with pytest.raises(GeometryError, match=r"10\.7\.1, frame [12]: a series without geometry"):
        read_stacks([multi_frame(frames, values(3), shared=shared)])


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("ImagePositionPatient", [0, 0, 1e300], "more than 100000 mm away"),
        ("PixelSpacing", [1e-9, 1], "Pixel Spacing"),
        ("PixelSpacing", [0, 1], "Pixel Spacing"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "not two orthogonal unit vectors"),
        ("ImageOrientationPatient", [0] * 6, "not two orthogonal unit vectors"),
        ("Rows", 0, "0 Rows"),
    ],
)
def test_hostile_geometry_is_refused_before_anything_is_made_of_it(keyword, value, message):
    datasets = column_of_planes(HEIGHTS)
    for ds in datasets:
        setattr(ds, keyword, value)

    with pytest.raises(GeometryError, match=message):
        read_stacks(datasets)


def test_a_single_slice_of_unknown_thickness_does_not_hinder_the_stack_beside_it():
    scout = plane(90, (0, -50, 50), cosines=(1, 0, 0, 0, 0, -1))
    del scout.SliceThickness

    whole, single = read_stacks([*column_of_planes(HEIGHTS), scout])

    assert (len(whole.frames), whole.refusal) == (len(HEIGHTS), "")
    assert single.refusal.startswith("one slice and neither Spacing Between Slices nor Slice Thickness")


@pytest.mark.parametrize("begins", [((0, -100), (0, 80)), ((-60, 5), (60, 5)), ((-60, -70), (60, 70))])
def test_slabs_side_by_side_are_told_apart_by_where_they_lie(begins):
    both = [
        plane(10 * number + side, (x, y, z))
        for number, z in enumerate(HEIGHTS, 1)
        for side, (y, x) in enumerate(begins)
    ]

    first, second = read_stacks(both)

    assert [first.name, second.name] == [f"rows and columns from {y}/{x} mm" for y, x in begins]
    for stack, (y, x) in zip((first, second), begins, strict=True):
        assert stack.is_regular
        np.testing.assert_allclose(stack.grid.origin_mm, (x, y, HEIGHTS[0]))


@pytest.mark.parametrize(
    ("keyword", "unit"), [("FlipAngle", "flip angle {} degrees"), ("RepetitionTime", "repetition time {} ms")]
)
def test_images_of_several_flip_angles_or_repetition_times_are_told_apart(keyword, unit):
    both = [
        plane(10 * number + value, (0, 0, z), **{keyword: value})
        for number, z in enumerate(HEIGHTS, 1)
        for value in (3, 8)
    ]

    assert [stack.name for stack in read_stacks(both)] == [unit.format(3), unit.format(8)]


def test_slices_as_thin_as_a_microscope_makes_them_lie_at_different_positions():
    thin = [plane(k, (0, 0, 0.008 * k), spacing=(0.008, 0.008), SliceThickness=0.008) for k in range(1, 9)]
    (stack,) = read_stacks(thin)

    assert stack.is_regular
    assert stack.grid.spacing_mm == pytest.approx((0.008, 0.008, 0.008))
    assert read_stacks(thin[:4] + thin[5:])[0].missing_slices == 1


def test_slices_much_thinner_than_their_pixels_are_slices_and_no_repeats():
    stack = only_stack(make_series(make_volume(np.zeros((6, 5, 4), np.uint16), spacing_mm=(0.2, 5.0, 5.0))))

    assert stack.is_regular
    assert stack.grid.spacing_mm == pytest.approx((0.2, 5.0, 5.0))
