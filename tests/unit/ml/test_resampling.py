"""Resampling by matrices is what SciPy does with the same spline, in any order and along any axis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from dicomnode.ml.frame import resampling
from dicomnode.ml.frame.resampling import Method
from dicomnode.ml.model.plan import Interpolation

LINEAR = Method(orders=(1, 1, 1))
CUBIC = Method(orders=(3, 3, 3))


def spline(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    factors = np.asarray(shape) / np.asarray(array.shape)
    moved = ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(moved, array.min(), array.max())


def test_edges_are_aligned_and_values_between_lie_on_a_line() -> None:
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], (4, 3, 3))

    fine = resampling.resample(ramp, (8, 3, 3), LINEAR)

    # Centres of the halves of voxel i lie at i - 0.25 and i + 0.25; the outermost are held.
    assert fine[:, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(9, 17, 23), (5, 4, 3), (11, 8, 20), (10, 11, 12)])
def test_three_matrices_give_what_scipy_gives(order: int, shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(1).normal(size=(10, 11, 12)).astype(np.float32)

    moved = resampling.resample(array, shape, Method(orders=(order, order, order)))  # type: ignore[arg-type]

    np.testing.assert_allclose(moved, spline(array, shape, order), atol=3e-6)


@pytest.mark.parametrize("apart", [0, 1, 2])
def test_an_axis_apart_is_resampled_slice_by_slice_and_never_leaves_the_range_of_a_slice(apart: int) -> None:
    array = np.random.default_rng(2).normal(size=(6, 7, 8)).astype(np.float32)
    orders = [3, 3, 3]
    orders[apart] = 0
    shape = (9, 10, 13)

    moved = resampling.resample(array, shape, Method(orders=tuple(orders), apart=apart))  # type: ignore[arg-type]

    within = tuple(size for axis, size in enumerate(shape) if axis != apart)
    slices = [spline(one, within, 3) for one in np.moveaxis(array, apart, 0)]
    chosen = resampling.nearest(array.shape[apart], shape[apart])
    expected = np.moveaxis(np.stack([slices[index] for index in chosen]), 0, apart)
    np.testing.assert_allclose(moved, expected, atol=3e-6)


def test_the_slabs_of_a_long_image_join_without_a_seam() -> None:
    array = np.random.default_rng(3).normal(size=(70, 300, 300)).astype(np.float32)

    moved = resampling.resample(array, (50, 80, 90), CUBIC)
    lines = moved[:, ::37, ::41]

    np.testing.assert_allclose(lines, spline(array, moved.shape, 3)[:, ::37, ::41], atol=1e-5)


@given(
    shape=st.tuples(*[st.integers(2, 12)] * 3),
    target=st.tuples(*[st.integers(1, 15)] * 3),
    order=st.sampled_from([0, 1, 3]),
    antialias=st.booleans(),
)
def test_the_range_of_the_source_is_never_left(
    shape: tuple[int, int, int], target: tuple[int, int, int], order: int, *, antialias: bool
) -> None:
    array = np.random.default_rng(0).random(shape, dtype=np.float32)

    moved = resampling.resample(array, target, Method(orders=(order, order, order), antialias=antialias))  # type: ignore[arg-type]

    assert moved.shape == target
    assert array.min() <= moved.min() <= moved.max() <= array.max()


def test_an_anti_aliased_chequerboard_shrinks_to_grey() -> None:
    board = np.indices((24, 24, 24)).sum(0) % 2

    plain = resampling.resample(board, (8, 8, 8), LINEAR)
    smooth = resampling.resample(board, (8, 8, 8), Method(orders=(1, 1, 1), antialias=True))

    assert np.ptp(plain) == 1
    assert np.ptp(smooth[1:-1, 1:-1, 1:-1]) < 0.01


def test_the_coarse_axis_is_treated_apart_above_a_ratio_of_three() -> None:
    auto = Interpolation(order=3, order_across=0, separate="auto")

    def apart(spacing_mm: tuple[float, ...], target_mm: tuple[float, ...] = (1, 1, 1)) -> int | None:
        return resampling.method_for(auto, spacing_mm=spacing_mm, target_mm=target_mm).apart

    assert apart((3, 1, 1)) is None
    assert apart((3.01, 1, 1)) == 0
    assert apart((1, 1, 5)) == 2
    assert apart((1, 1, 1), (1, 4, 1)) == 1  # the network's spacing decides when the image's does not
    assert apart((0.2, 1, 1)) is None  # two coarse axes: none stands apart
    assert resampling.method_for(auto, spacing_mm=(5, 1, 1), target_mm=(1, 1, 1)).orders == (0, 3, 3)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (5, 7), (7, 5), (1, 3), (3, 1), (6, 6)])
def test_two_neighbours_and_a_share_say_the_same_as_the_matrix(old: int, new: int) -> None:
    values = np.random.default_rng(old).normal(size=old).astype(np.float32)

    lower, upper, share = resampling.neighbours(old, new, 1)

    linear = values[lower] + (values[upper] - values[lower]) * share
    expected = values if old == new else resampling.matrix(old, new, 1) @ values
    np.testing.assert_allclose(linear, expected, atol=1e-6)
