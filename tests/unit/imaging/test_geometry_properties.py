"""For any orientation, spacing, order and tilt: what lies at a place in the patient is found there again."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dicomnode.imaging.images.regrid import backed_slices, labels_to_planes, mask_to_image, planes_to_image
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.images.stacks import Stack, only_stack
from tests.frame_builders import plane

ROWS, COLUMNS = 5, 6


@dataclass(frozen=True)
class Scan:
    """Planes as a scanner makes them; column k of `axes` is the slice, row and column direction."""

    axes: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    origin_mm: NDArray[np.float64]
    places: tuple[int, ...]  # of the slices, in spacings; without those that are missing
    tilt: tuple[float, float]  # rows and columns by which each slice lies beside the one before
    order: tuple[int, ...]  # of the files

    def position(self, place):
        steps = np.array([place, place * self.tilt[0], place * self.tilt[1]]) * self.spacing_mm
        return self.origin_mm + self.axes @ steps

    def datasets(self, jitter=None):
        jitter = np.zeros((len(self.places), 3)) if jitter is None else jitter
        made = [
            plane(
                index + 1,
                self.position(place) + self.axes @ (jitter[index] * self.spacing_mm),
                pixels=np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS) + 100 * index,
                cosines=[*self.axes[:, 2], *self.axes[:, 1]],
                spacing=self.spacing_mm[1:],
            )
            for index, place in enumerate(self.places)
        ]
        return [made[index] for index in self.order]


UPRIGHT = st.just((0.0, 0.0))


@st.composite
def scans(draw, *, tilts=UPRIGHT, may_miss=False):
    quaternion = draw(
        st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
        | st.sampled_from([(0, 0, 0, 1), (1, 0, 0, 0), (0.5, 0.5, 0.5, 0.5), (0, 0, 1, 0)])
    )
    spacing = tuple(round(draw(st.floats(0.3, 6)), 4) for _ in range(3))
    count = draw(st.integers(4, 9))
    missing = set()
    if may_miss:
        missing = draw(st.sets(st.integers(2, count - 2), max_size=1))
    places = tuple(place for place in range(count) if place not in missing)
    return Scan(
        axes=Rotation.from_quat(quaternion).as_matrix()[
            :, [0, 2, 1]
        ],  # row x column cosines is the slice axis
        spacing_mm=spacing,
        origin_mm=np.array([round(draw(st.floats(-300, 300)), 3) for _ in range(3)]),
        places=places,
        tilt=draw(tilts),
        order=tuple(draw(st.permutations(range(len(places))))),
    )


steep = st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)).filter(lambda tilt: max(map(abs, tilt)) > 0.4)
any_tilt = st.one_of(UPRIGHT, steep)


def places_of(affine, shape):
    """Patient coordinates of every voxel, (..., 3)."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def plane_places(stack: Stack):
    """Patient coordinates of every received pixel, from the headers alone, (frame, row, column, 3)."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    return np.stack(
        [
            frame.position_mm
            + rows[..., None] * frame.pixel_spacing_mm[0] * frame.column_cosines
            + columns[..., None] * frame.pixel_spacing_mm[1] * frame.row_cosines
            for frame in stack.frames
        ]
    )


def closeness(stack: Stack):
    """Largest distance from any point to the nearest voxel centre of a grid without gaps."""
    return float(np.linalg.norm(stack.grid.spacing_mm)) / 2


@given(scan=scans(), data=st.data())
def test_slices_in_any_order_and_orientation_give_the_volume_with_every_value_at_its_place(scan, data):
    along = st.floats(-0.04, 0.04)  # of the spacing: inside the tolerance, wherever the fitted grid lies
    across = st.floats(-0.01, 0.01)
    jitter = np.array([[data.draw(along), data.draw(across), data.draw(across)] for _ in scan.places])
    smallest = min(scan.spacing_mm[1:])
    jitter[:, 1:] *= smallest / np.array(scan.spacing_mm[1:])

    volume = to_volume(scan.datasets(jitter))

    assert volume.stack.is_regular
    assert volume.image.array is volume.planes or np.shares_memory(volume.image.array, volume.planes)
    for index in range(len(scan.places)):
        assert volume.image.array[index, 1, 2] == 100 * index + COLUMNS + 2
        found = volume.image.affine @ [index, 1, 2, 1]
        meant = scan.position(index) + scan.axes @ (np.array([0, 1, 2]) * scan.spacing_mm)
        np.testing.assert_allclose(found[:3], meant, atol=0.15 * scan.spacing_mm[0] + 0.05 * smallest)


@given(scan=scans(tilts=any_tilt, may_miss=True))
def test_the_offsets_say_where_each_plane_lies_on_the_grid(scan):
    stack = only_stack(scan.datasets())

    for frame, offset in zip(stack.frames, stack.offsets, strict=True):
        np.testing.assert_allclose(
            (stack.grid.affine @ [*offset, 1])[:3], frame.position_mm, atol=1e-3 * min(scan.spacing_mm) + 1e-6
        )
    assert stack.missing_slices == scan.places[-1] + 1 - len(scan.places)
    assert bool(stack.remarks) is (not stack.is_regular)
    assert stack.is_regular is (scan.tilt == (0, 0) and stack.missing_slices == 0)


@given(scan=scans(tilts=any_tilt, may_miss=True), slope=st.tuples(*[st.floats(-3, 3)] * 3))
def test_a_field_that_grows_linearly_through_the_patient_does_so_in_the_image(scan, slope):
    stack = only_stack(scan.datasets())
    planes = (plane_places(stack) @ slope).astype(np.float32)

    image = planes_to_image(planes, stack)

    meant = places_of(stack.grid.affine, stack.grid.shape) @ slope
    known = is_between_planes(stack)
    scale = np.abs(planes).max() + 1
    np.testing.assert_allclose(image[known], meant[known], atol=1e-4 * scale)
    outside = is_beside_planes(stack)
    np.testing.assert_allclose(image[outside], planes.min(), atol=1e-6 * scale)


def is_between_planes(stack: Stack):
    """Voxels that lie inside the pixels of both planes between which they lie."""
    return _voxels(stack, 0, np.logical_and)


def is_beside_planes(stack: Stack):
    """Voxels more than a pixel outside the pixels of both planes between which they lie."""
    return ~_voxels(stack, 1, np.logical_or)


def _voxels(stack: Stack, margin, join):
    found = np.zeros(stack.grid.shape, bool)
    rows, columns = np.mgrid[: stack.grid.shape[1], : stack.grid.shape[2]]
    for index in range(stack.grid.shape[0]):
        inside = []
        for k in sorted(
            {
                np.flatnonzero(stack.offsets[:, 0] <= index)[-1],
                np.flatnonzero(stack.offsets[:, 0] >= index)[0],
            }
        ):
            row, column = rows - stack.offsets[k, 1], columns - stack.offsets[k, 2]
            slack = margin - 1e-6 if margin else 1e-6
            inside.append(
                (row >= -slack)
                & (row <= ROWS - 1 + slack)
                & (column >= -slack)
                & (column <= COLUMNS - 1 + slack)
            )
        found[index] = join.reduce(inside)
    return found


@given(scan=scans(tilts=any_tilt, may_miss=True), data=st.data())
def test_labels_about_a_point_of_the_patient_are_about_that_point_on_the_planes(scan, data):
    stack = only_stack(scan.datasets())
    sites = places_of(stack.grid.affine, stack.grid.shape)
    centre = sites[tuple(data.draw(st.integers(0, n - 1)) for n in stack.grid.shape)]
    radius = data.draw(st.floats(0.5, 3)) * closeness(stack)
    labels = (np.linalg.norm(sites - centre, axis=-1) <= radius).astype(np.uint8)

    on_planes = labels_to_planes(labels, stack)

    distance = np.linalg.norm(plane_places(stack) - centre, axis=-1)
    assert on_planes.shape == stack.shape
    assert distance[on_planes == 1].max(initial=0) <= radius + closeness(stack) * 1.001
    assert distance[on_planes == 0].min(initial=np.inf) >= radius - closeness(stack) * 1.001


@given(scan=scans(tilts=any_tilt, may_miss=True), seed=st.integers(0, 2**16))
def test_masks_come_back_from_the_grid_bit_for_bit(scan, seed):
    stack = only_stack(scan.datasets())
    mask = np.random.default_rng(seed).random(stack.shape) < 0.5

    on_grid = mask_to_image(mask, stack)

    np.testing.assert_array_equal(labels_to_planes(on_grid.astype(np.uint8), stack), mask)
    assert not on_grid[~backed_slices(stack)].any()
    assert backed_slices(stack).sum() == len(scan.places)
