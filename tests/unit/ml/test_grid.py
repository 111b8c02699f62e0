"""Images reach the network in its own frame, whatever their axes, spacing and scale."""

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from highdicom import Volume
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dicomnode.errors import GeometryError, UnsupportedSeriesError
from dicomnode.ml.frame import grid
from dicomnode.ml.model.plan import Normalisation

NORMAL = Normalisation()
ONE = (1.0, 1.0, 1.0)
AXES = ("LR", "AP", "FH")
ORIENTATIONS = ["".join(letters) for axes in permutations(AXES) for letters in product(*axes)]


def framed(
    image: Volume, orientation: str = "HPL", spacing_mm: tuple[float, float, float] = ONE
) -> grid.Framed:
    return grid.frame(image, orientation=orientation, spacing_mm=spacing_mm, normalisation=NORMAL)


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
    frame = grid.Framed(array=moved, change=change, shape=moved.shape, is_constant=False)

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


def test_resampling_aligns_edges_and_interpolates_linearly() -> None:
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], (4, 3, 3))

    fine = grid.resample(ramp, (8, 3, 3))

    # Centres of the halves of voxel i lie at i - 0.25 and i + 0.25; the outermost are held.
    assert fine[:, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(grid.resample(fine, (4, 3, 3))[1:3, 0, 0], [1, 2], atol=1e-3)


@given(
    shape=st.tuples(*[st.integers(2, 12)] * 3),
    target=st.tuples(*[st.integers(1, 15)] * 3),
    level=st.floats(0, 1, width=32),
)
def test_resampling_never_leaves_the_range_of_its_input(
    shape: tuple[int, int, int], target: tuple[int, int, int], level: float
) -> None:
    array = np.random.default_rng(0).random(shape, dtype=np.float32) * np.float32(level)

    moved = grid.resample(array, target)

    assert moved.shape == target
    assert array.min() - 1e-6 <= moved.min() <= moved.max() <= array.max() + 1e-6


@given(
    array=npst.arrays(np.float32, (4, 4, 4), elements=st.integers(0, 1000).map(float)),
    scale=st.floats(1e-3, 1e3),
    offset=st.floats(-1e3, 1e3),
)
def test_a_positive_affine_change_of_intensities_changes_nothing(
    array: np.ndarray, scale: float, offset: float
) -> None:
    plain = grid.normalise(array, NORMAL)
    # Double precision keeps the change itself exact enough to compare.
    changed = grid.normalise(array.astype(np.float64) * scale + offset, NORMAL)  # type: ignore[arg-type]

    np.testing.assert_allclose(changed, plain, atol=1e-3)


def test_normalised_intensities_have_mean_zero_and_deviation_one_without_outliers() -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    array[0, 0, 0] = 1e9

    normal = grid.normalise(array, NORMAL)

    assert abs(float(normal.mean())) < 1e-5
    assert float(normal.std()) == pytest.approx(1, abs=1e-5)
    assert float(normal.max()) < 2


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

    moved = grid.frame_labels(labels, framed(image))

    assert moved.shape == (12, 12, 12)
    assert moved[3, 4].tolist() == [0] * 4 + [1] * 4 + [2] * 4
