"""Images reach the network in its own frame, whatever their axes, spacing and scale."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from highdicom import Volume
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dicomnode.errors import GeometryError, UnsupportedSeriesError
from dicomnode.ml.frame import framing, grid, resampling
from dicomnode.ml.frame.framing import Framed
from dicomnode.ml.model.architecture import DynUNetPlan
from dicomnode.ml.model.plan import Interpolation, PercentileZScore, Plan, Stage

BLOCK = (3, 3, 3)
ONE = (1.0, 1.0, 1.0)
AXES = ("LR", "AP", "FH")
ORIENTATIONS = ["".join(letters) for axes in permutations(AXES) for letters in product(*axes)]


def plan(orientation: str = "HPL", **changes: object) -> Plan:
    stage = Stage(
        spacing_mm=ONE,
        spacing_tolerance=0.01,
        patch_shape=(8, 8, 8),
        normalisation=PercentileZScore(),
        image_interpolation=Interpolation(order=1, antialias=True),
        score_interpolation=Interpolation(order=1),
        network=DynUNetPlan(
            classes=3, filters=(4, 4, 4), kernels=(BLOCK,) * 3, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2))
        ),
        mirror_axes=(),
    )
    return replace(
        Plan(name="tiny", modalities=("MR",), orientation=orientation, stages=(stage,)),
        **changes,  # type: ignore[arg-type]
    )


def framed(image: Volume, orientation: str = "HPL", **changes: object) -> Framed:
    made = plan(orientation, **changes)
    return framing.frame(image, made, made.final)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_of_an_image_looks_the_same_to_the_network(
    orientation: str, make_volume: Callable[..., Volume]
) -> None:
    upright = make_volume()
    turned = upright.to_patient_orientation(orientation)

    assert len(ORIENTATIONS) == 48
    np.testing.assert_array_equal(framed(turned).array, framed(upright).array)
    np.testing.assert_array_equal(framed(upright, orientation).array, framed(turned, orientation).array)


@given(
    order=st.permutations([0, 1, 2]),
    flips=st.sets(st.integers(0, 2)),
    array=npst.arrays(np.int32, npst.array_shapes(min_dims=3, max_dims=3, max_side=4)),
)
def test_an_axis_change_is_undone_exactly(order: list[int], flips: set[int], array: np.ndarray) -> None:
    change = grid.AxisChange(order=(order[0], order[1], order[2]), flips=tuple(flips))

    np.testing.assert_array_equal(change.undo(change.apply(array)), array)


@given(
    order=st.permutations([0, 1, 2]),
    flips=st.sets(st.integers(0, 2)),
    point=st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)),
)
def test_a_point_is_found_again_after_an_axis_change(
    order: list[int], flips: set[int], point: tuple[int, int, int]
) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[point] = 1
    change = grid.AxisChange(order=(order[0], order[1], order[2]), flips=tuple(flips))
    moved = change.apply(array)
    frame = Framed(
        array=moved,
        change=change,
        full_shape=moved.shape,
        box=framing.whole(moved.shape),
        spacing_mm=ONE,
        target_mm=ONE,
        is_constant=False,
    )

    assert moved[tuple(round(x) for x in frame.position_of(point))] == 1


def test_an_oblique_image_is_taken_along_its_nearest_axes(make_volume: Callable[..., Volume]) -> None:
    upright = make_volume()
    turn = np.eye(4)
    turn[:2, :2] = [[0.9, -np.sqrt(0.19)], [np.sqrt(0.19), 0.9]]
    oblique = Volume(upright.array, turn @ upright.affine, coordinate_system="PATIENT")

    np.testing.assert_array_equal(framed(oblique).array, framed(upright).array)


def test_one_percent_of_spacing_is_not_resampled_and_more_is(make_volume: Callable[..., Volume]) -> None:
    assert framed(make_volume((20, 20, 20), (1.009, 1, 0.991))).array.shape == (20, 20, 20)
    assert framed(make_volume((20, 20, 20), (2, 0.5, 1))).array.shape == (40, 10, 20)


def test_an_image_without_contrast_is_recognised(make_volume: Callable[..., Volume]) -> None:
    grey = make_volume()
    assert framed(grey.with_array(np.full(grey.shape, 7, np.float32))).is_constant
    assert framed(grey.with_array(np.full(grey.shape, 1e30, np.float32))).is_constant
    assert not framed(grey).is_constant


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_with_nan_or_infinity_is_refused_with_a_count(
    bad: float, make_volume: Callable[..., Volume]
) -> None:
    image = make_volume()
    image.array[1, 1, 1] = bad

    with pytest.raises(UnsupportedSeriesError, match="1 voxels that are NaN or infinite"):
        framed(image)


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 1, 9), (9, 9, 1)])
def test_a_flat_image_is_refused(shape: tuple[int, int, int]) -> None:
    image = Volume(np.zeros(shape, np.float32), np.eye(4), coordinate_system="PATIENT")

    with pytest.raises(GeometryError, match="at least 2 along each"):
        framed(image)


def test_an_image_that_would_become_gigantic_is_refused() -> None:
    with pytest.raises(GeometryError, match="the image would have"):
        grid.resampled_shape((512, 512, 512), spacing_mm=(9, 9, 9), target_mm=ONE)
    with pytest.raises(GeometryError, match="not positive"):
        grid.resampled_shape((5, 5, 5), spacing_mm=(0, 1, 1), target_mm=ONE)


def test_labels_follow_the_image_onto_another_grid(make_volume: Callable[..., Volume]) -> None:
    image = make_volume((6, 6, 6), (2, 2, 2))
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[:, :, 2:4] = 1
    labels[:, :, 4:] = 2

    moved = framing.frame_labels(labels, framed(image))

    assert moved.shape == (12, 12, 12)
    assert moved[3, 4].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_acquired_axes_stay_as_they_are_and_are_then_put_in_the_order_of_the_plan(
    make_volume: Callable[..., Volume],
) -> None:
    image = make_volume((8, 9, 10)).to_patient_orientation("PLF")

    assert framed(image, "acquired").array.shape == image.shape
    moved = framed(image, "acquired", axis_order=(2, 0, 1))
    assert moved.array.shape == (image.shape[2], image.shape[0], image.shape[1])
    labels = np.arange(image.array.size, dtype=np.uint8).reshape(image.shape)
    np.testing.assert_array_equal(framing.unframe_labels(framing.frame_labels(labels, moved), moved), labels)


def test_a_border_of_zeros_is_left_out_and_comes_back_as_background(
    make_volume: Callable[..., Volume],
) -> None:
    image = make_volume((10, 12, 14))
    bordered = image.array.copy()
    bordered[:2], bordered[:, -3:], bordered[..., :1] = 0, 0, 0

    inner = framed(image.with_array(bordered), crop_to_nonzero=True)

    assert inner.shape == inner.array.shape == (8, 9, 13)
    back = framing.unframe_labels(np.ones(inner.shape, np.uint8), inner)
    np.testing.assert_array_equal(back.astype(bool), bordered != 0)
    assert inner.position_of((2, 0, 1)) == (0, 0, 0)


def test_by_majority_a_voxel_that_no_label_fills_by_half_is_background() -> None:
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[..., :2], labels[..., 2:] = 1, 2
    coarse = np.eye(4)
    image = Volume(
        np.random.default_rng(0).random((3, 4, 4), np.float32), coarse, coordinate_system="PATIENT"
    )
    made = plan("acquired")
    stage = replace(made.final, spacing_mm=(1.0, 1.0, 4 / 3))
    moved = framing.frame(image, replace(made, stages=(stage,)), stage)

    share = framing.frame_labels(labels, moved)
    majority = framing.frame_labels(labels, moved, by_majority=True)

    # Three voxels of 4/3 mm: the middle one is centred between the labels, half each: the tie.
    assert share[0, 0].tolist() == [1, 1, 2]
    assert majority[0, 0].tolist() == [1, 2, 2]


def test_a_slab_is_converted_before_it_is_resampled() -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)

    moved = resampling.resample(
        array, (2, 3, 4), resampling.Method(orders=(1, 1, 1)), convert=lambda slab: slab * 2
    )

    np.testing.assert_array_equal(moved, array * 2.0)
    assert moved.dtype == np.float32
