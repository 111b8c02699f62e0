"""Labels painted from planes of scores are those of scores interpolated in full."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomnode.ml.frame import resampling
from dicomnode.ml.frame.resampling import Method
from dicomnode.ml.inference.painting import Painter

CPU = torch.device("cpu")
Shape = tuple[int, int, int]


def paint(scores: np.ndarray, shape: Shape, method: Method, regions: tuple[int, ...] = ()) -> np.ndarray:
    painter = Painter(scores.shape[1:], shape, method, region_classes=regions, device=CPU)
    for planes in torch.from_numpy(scores).split(2, dim=1):
        painter.take(planes)
    return painter.labels


def in_full(scores: np.ndarray, shape: Shape, method: Method) -> np.ndarray:
    return np.stack([resampling.resample(channel, shape, method) for channel in scores])


@settings(max_examples=60)
@given(
    source=st.tuples(*[st.integers(1, 7)] * 3),
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    classes=st.integers(2, 6),
    orders=st.sampled_from([(1, 1, 1), (0, 1, 1), (1, 1, 0)]),
    seed=st.integers(0, 5),
)
def test_the_largest_of_the_interpolated_scores_wins(
    source: Shape, shape: Shape, classes: int, orders: tuple[int, int, int], seed: int
) -> None:
    scores = np.random.default_rng(seed).normal(size=(classes, *source)).astype(np.float32)
    method = Method(orders=orders)  # type: ignore[arg-type]

    labels = paint(scores, shape, method)

    full = in_full(scores, shape, method)
    top = np.sort(full, axis=0)
    clear = top[-1] - top[-2] > 1e-5  # a tie may fall either way
    np.testing.assert_array_equal(labels[clear], full.argmax(0)[clear])


@settings(max_examples=30)
@given(source=st.tuples(*[st.integers(1, 6)] * 3), shape=st.tuples(*[st.integers(1, 12)] * 3))
def test_regions_are_painted_one_over_the_other(source: Shape, shape: Shape) -> None:
    scores = np.random.default_rng(1).normal(size=(3, *source)).astype(np.float32)
    method = Method(orders=(1, 1, 1))

    labels = paint(scores, shape, method, (1, 3, 2))

    full = in_full(scores, shape, method)
    expected = np.zeros(shape, np.uint8)
    for score, value in zip(full, (1, 3, 2), strict=True):
        expected[score > 0] = value
    clear = (np.abs(full) > 1e-5).all(axis=0)
    np.testing.assert_array_equal(labels[clear], expected[clear])


@pytest.mark.parametrize("size", [3, 9, 10])
def test_no_more_planes_are_kept_than_a_slice_lies_between(size: int) -> None:
    painter = Painter((40, 4, 4), (size, 4, 4), Method(orders=(1, 1, 1)), region_classes=(), device=CPU)
    kept = 0
    for plane in torch.randn(2, 40, 4, 4).split(1, dim=1):
        painter.take(plane)
        kept = max(kept, painter.planes_kept)

    assert kept <= 40 / size + 2
