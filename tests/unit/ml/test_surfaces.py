"""Surfaces and surface Dice against hand-worked shapes, MONAI and SimpleITK."""

import itertools
import math

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.surface_dice import compute_surface_dice
from scipy import ndimage

from dicomnode.ml.evaluation import scores, surfaces

ANISOTROPIC = (2.0, 3.0, 6.0)


def box(start: tuple[int, int, int], stop: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*pair) for pair in zip(start, stop, strict=True))] = True
    return mask


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Two uneven, overlapping masks that touch the edge of the image, and a spacing."""
    generator = np.random.default_rng(seed)
    shape = generator.integers(8, 22, 3)
    first = ndimage.gaussian_filter(generator.normal(size=shape), 1.5)
    second = first + 0.7 * ndimage.gaussian_filter(generator.normal(size=shape), 1.5)
    one, other = (field > np.quantile(field, 0.7) for field in (first, second))
    return one, other, generator.uniform(0.4, 5, 3).tolist()


def ball(radius_mm: float, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    index = np.stack(np.indices(shape), axis=-1)
    centre = (np.asarray(shape) - 1) / 2
    return (((index - centre) * spacing_mm) ** 2).sum(axis=-1) <= radius_mm**2


def test_the_surface_of_a_voxel_is_an_octahedron_through_the_middles_of_its_edges() -> None:
    found = surfaces.elements(np.ones((1, 1, 1), bool), spacing_mm=ANISOTROPIC)

    # Eight triangles; the corners of each lie 1, 1.5 and 3 mm from the centre of the voxel along the axes.
    triangle = math.sqrt((1 * 1.5) ** 2 + (1.5 * 3) ** 2 + (3 * 1) ** 2) / 2
    assert found.areas == pytest.approx([triangle] * 8)


def test_the_surface_of_a_box_is_its_faces_bevelled_at_edges_and_corners() -> None:
    count = (4, 5, 7)
    found = surfaces.elements(np.ones(count, bool), spacing_mm=ANISOTROPIC)

    # Along each axis the bevel takes the outer half voxel of a face, so that n - 1 voxels of it are left.
    left = [(voxels - 1) * length for voxels, length in zip(count, ANISOTROPIC, strict=True)]
    faces = 2 * (left[0] * left[1] + left[1] * left[2] + left[2] * left[0])
    bevels = [math.hypot(a / 2, b / 2) for a, b in ((3.0, 6.0), (2.0, 6.0), (2.0, 3.0))]
    edges = 4 * sum(length * bevel for length, bevel in zip(left, bevels, strict=True))
    corners = 8 * math.sqrt((1 * 1.5) ** 2 + (1.5 * 3) ** 2 + (3 * 1) ** 2) / 2
    assert found.areas.sum() == pytest.approx(faces + edges + corners)


def test_the_contour_of_a_rectangle_is_its_sides_bevelled_at_the_corners() -> None:
    found = surfaces.elements(np.ones((4, 6), bool), spacing_mm=(2, 3))

    assert found.areas.sum() == pytest.approx(2 * (3 * 2 + 5 * 3) + 4 * math.hypot(1, 1.5))


def test_the_border_are_voxels_with_a_face_neighbour_outside() -> None:
    mask = box((1, 1, 1), (4, 4, 4), (5, 5, 5))

    # All but the middle of 27; beyond the edge of the image is outside as well.
    assert len(surfaces.border(mask)) == 26
    assert [2, 2, 2] not in surfaces.border(mask).tolist()
    assert len(surfaces.border(np.ones((3, 3, 3), bool))) == 26


def test_surface_dice_of_a_voxel_moved_by_one_slice() -> None:
    one, other = box((1, 1, 1), (2, 2, 2), (5, 3, 3)), box((2, 1, 1), (3, 2, 2), (5, 3, 3))

    # Of the eight equal pieces of each the four in between lie on both; the other four are 3 mm away.
    def at(tolerance_mm: float) -> float:
        return scores.surface_dice(one, other, spacing_mm=(3, 1, 1), tolerance_mm=tolerance_mm)

    assert at(0) == at(2.99) == pytest.approx(0.5)
    assert at(3) == 1.0


def test_surface_dice_of_a_voxel_moved_by_two_slices() -> None:
    one, other = box((1, 1, 1), (2, 2, 2), (5, 3, 3)), box((3, 1, 1), (4, 2, 2), (5, 3, 3))

    found = [scores.surface_dice(one, other, spacing_mm=(3, 1, 1), tolerance_mm=t) for t in (2.9, 3, 5.9, 6)]
    assert found == pytest.approx([0, 0.5, 0.5, 1])


def test_a_spacing_rounded_by_a_file_does_not_decide_what_is_within_the_tolerance() -> None:
    one, other = box((1, 1, 1), (2, 2, 2), (5, 3, 3)), box((2, 1, 1), (3, 2, 2), (5, 3, 3))

    spacing = float(np.nextafter(np.float32(1), np.float32(2)))
    assert spacing > 1
    assert scores.surface_dice(one, other, spacing_mm=(spacing, 1, 1), tolerance_mm=1) == 1.0


def test_surface_dice_with_empty_masks() -> None:
    full, empty = np.ones((2, 2, 2), bool), np.zeros((2, 2, 2), bool)

    assert scores.surface_dice(empty, empty, spacing_mm=(1, 1, 1), tolerance_mm=1) == 1.0
    assert scores.surface_dice(full, empty, spacing_mm=(1, 1, 1), tolerance_mm=1) == 0.0
    assert scores.surface_dice(empty, full, spacing_mm=(1, 1, 1), tolerance_mm=1) == 0.0


@given(
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.tuples(*[st.integers(2, 5)] * 3),
    st.integers(0, 2),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_hd95_of_a_box_that_grew_on_one_side_is_the_growth(
    spacing: tuple[float, float, float], size: tuple[int, int, int], axis: int, growth: int
) -> None:
    shape = (12, 12, 12)
    longer = list(size)
    longer[axis] += growth
    one = box((2, 2, 2), tuple(2 + n for n in size), shape)
    other = box((2, 2, 2), tuple(2 + n for n in longer), shape)

    # The new face is more than 5 % of the border; all of it is that far away, and nothing is farther.
    face = math.prod(n for number, n in enumerate(size) if number != axis)
    assert face > 0.05 * len(surfaces.border(other)) + 1
    found = scores.hd95_mm(one, other, spacing_mm=spacing)
    assert found == pytest.approx(growth * spacing[axis], abs=1e-3)


def test_balls_inside_each_other_have_their_analytic_distance_and_area() -> None:
    spacing, shape = (1.5, 0.5, 0.75), (24, 70, 48)
    small, large = (ball(radius, spacing, shape) for radius in (12.0, 15.0))

    assert scores.hd95_mm(small, large, spacing_mm=spacing) == pytest.approx(3, abs=0.75)
    assert scores.surface_dice(small, large, spacing_mm=spacing, tolerance_mm=1.5) < 0.01
    assert scores.surface_dice(small, large, spacing_mm=spacing, tolerance_mm=4.5) == 1.0
    area = surfaces.elements(large, spacing_mm=spacing).areas.sum()
    # The surface follows the steps of the voxels, which are coarse here, and is too large for it.
    assert 1.0 < area / (4 * math.pi * 15**2) < 1.2


@pytest.mark.parametrize("seed", range(8))
def test_hd95_agrees_with_simpleitk_on_anisotropic_grids(seed: int) -> None:
    one, other, spacing = blobs(seed)

    assert scores.hd95_mm(one, other, spacing_mm=spacing) == pytest.approx(
        simpleitk_hd95_mm(one, other, spacing), abs=1e-3
    )


@pytest.mark.parametrize("seed", range(8))
def test_surface_dice_agrees_with_monai_on_anisotropic_grids(seed: int) -> None:
    one, other, spacing = blobs(seed)
    tolerance = 0.4 + seed / 2

    theirs = compute_surface_dice(
        torch.from_numpy(one)[None, None],
        torch.from_numpy(other)[None, None],
        class_thresholds=[tolerance],
        include_background=True,
        spacing=spacing,
        use_subvoxels=True,
    )

    ours = scores.surface_dice(one, other, spacing_mm=spacing, tolerance_mm=tolerance)
    assert 0 < ours < 1
    assert ours == pytest.approx(float(theirs), abs=1e-5)


@given(st.integers(0, 2**32), st.tuples(*[st.floats(0.2, 5)] * 3))
@settings(max_examples=40, deadline=None)
def test_nearest_points_are_those_of_all_pairs(seed: int, spacing: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(seed)
    one, other = (np.argwhere(generator.random((4, 5, 6)) < share) for share in (0.2, 0.1))
    one, other = np.vstack([one, [[4, 0, 0]]]), np.vstack([other, [[4, 1, 0]]])

    apart = np.linalg.norm((one[:, None] - other[None]) * spacing, axis=-1).min(axis=1)

    assert surfaces.nearest_mm(one, other, spacing_mm=spacing) == pytest.approx(apart)
    near = surfaces.nearest_mm(one, other, spacing_mm=spacing, limit_mm=2.0, threads=2)
    assert np.array_equal(np.isfinite(near), apart < 2.0)


def simpleitk_hd95_mm(one: np.ndarray, other: np.ndarray, spacing: list[float]) -> float:
    """The definition in the words of another library: contours, and Maurer's distance from them."""
    images = []
    for mask in (one, other):
        image = SimpleITK.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        images.append(SimpleITK.LabelContour(image, fullyConnected=False))
    both = []
    for start, end in itertools.permutations(images):
        away = SimpleITK.SignedMaurerDistanceMap(end, squaredDistance=False, useImageSpacing=True)
        distances = np.maximum(SimpleITK.GetArrayFromImage(away), 0)
        both.append(np.percentile(distances[SimpleITK.GetArrayFromImage(start) > 0], 95))
    return float(max(both))
