"""Every normalisation that a plan can name, against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dicomnode.ml.frame import intensities
from dicomnode.ml.model.plan import (
    AsItIs,
    ClipAndStandardise,
    FixedRange,
    ImageRange,
    Normalisation,
    PercentileZScore,
    ZScore,
)

LINE = np.array([[[0, 0, 2, 4, 6, 0]]], np.int16)


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        (AsItIs(), [0, 0, 2, 4, 6, 0]),
        (ClipAndStandardise(lower=1, upper=5, mean=3, deviation=2), [-1, -1, -0.5, 0.5, 1, -1]),
        (ImageRange(), [0, 0, 1 / 3, 2 / 3, 1, 0]),
        (FixedRange(source=(0, 4)), [0, 0, 0.5, 1, 1.5, 0]),
        (FixedRange(source=(0, 4), clip=True), [0, 0, 0.5, 1, 1, 0]),
        (FixedRange(source=(2, 4), target=(-1, 1), clip=True), [-1, -1, -1, 1, 1, -1]),
        # mean 2, variance (4 + 4 + 0 + 4 + 16 + 4) / 6 = 16 / 3
        (ZScore(), np.array([-2, -2, 0, 2, 4, -2]) / np.sqrt(16 / 3)),
        # over 2, 4, 6: mean 4, variance 8 / 3; what is outside keeps its value
        (ZScore(over="nonzero"), [0, 0, -2 / np.sqrt(8 / 3), 0, 2 / np.sqrt(8 / 3), 0]),
    ],
)
def test_a_line_of_six_voxels(normalisation: Normalisation, expected: list[float]) -> None:
    normal = intensities.normalise(LINE, normalisation)

    np.testing.assert_allclose(normal[0, 0], expected, atol=1e-6)
    assert normal.dtype == np.float32
    assert LINE.max() == 6


def test_a_hole_of_zeros_belongs_to_the_filled_region_and_the_outside_does_not() -> None:
    image = np.zeros((5, 5, 5), np.float32)
    image[1:4, 1:4, 1:4] = 3
    image[2, 2, 2] = 0  # a hole
    image[0, 2, 2] = 3  # reaches the border
    image[3, 2, 4] = 0

    filled = intensities.region(image, ZScore(over="nonzero_filled"))
    nonzero = intensities.region(image, ZScore(over="nonzero"))

    assert filled is not None
    assert nonzero is not None
    assert filled.sum() == 28
    assert nonzero.sum() == 27
    assert filled[2, 2, 2]
    assert not filled[0, 0, 0]


def test_the_box_of_what_is_not_zero() -> None:
    image = np.zeros((6, 7, 8))
    image[2, 3, 4], image[4, 3, 1] = -1, 5

    assert intensities.nonzero_box(image) == (slice(2, 5), slice(3, 4), slice(1, 5))
    assert intensities.nonzero_box(np.zeros((2, 3, 4))) == (slice(0, 2), slice(0, 3), slice(0, 4))


@given(
    array=npst.arrays(np.float32, (4, 4, 4), elements=st.integers(0, 1000).map(float)),
    scale=st.floats(1e-3, 1e3),
    offset=st.floats(-1e3, 1e3),
)
def test_a_positive_affine_change_of_intensities_changes_nothing(
    array: np.ndarray, scale: float, offset: float
) -> None:
    plain = intensities.scaling(array, PercentileZScore())
    moved = intensities.scaling(array.astype(np.float64) * scale + offset, PercentileZScore())

    # Double precision keeps the change itself exact enough to compare.
    first = (np.clip(array.astype(np.float64), plain.lower, plain.upper) - plain.shift) / plain.divisor
    changed = array.astype(np.float64) * scale + offset
    second = (np.clip(changed, moved.lower, moved.upper) - moved.shift) / moved.divisor
    if plain.lower < plain.upper and moved.lower < moved.upper:
        np.testing.assert_allclose(second, first, atol=1e-3)


def test_outliers_do_not_move_the_percentile_z_score() -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    array[0, 0, 0] = 1e9

    normal = intensities.normalise(array, PercentileZScore())

    assert abs(float(normal.mean())) < 1e-5
    assert float(normal.std()) == pytest.approx(1, abs=1e-5)
    assert float(normal.max()) < 2


@pytest.mark.parametrize("normalisation", [PercentileZScore(), ZScore(), ImageRange()])
def test_an_image_without_contrast_becomes_zeros(normalisation: Normalisation) -> None:
    assert not intensities.normalise(np.full((3, 3, 3), 7, np.float32), normalisation).any()
