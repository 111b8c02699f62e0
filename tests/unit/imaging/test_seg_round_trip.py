"""Labels come back bit for bit at the same place in patient space, whatever the geometry."""

import io

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from scipy.spatial.transform import Rotation

from dicomnode.imaging import seg_read, seg_write
from dicomnode.imaging.series import to_volume
from tests.imaging_builders import NOW, make_card, make_series, make_volume, part_10

CARD = make_card(("A", "B", "C"))


@st.composite
def geometries(draw):
    rotation = Rotation.from_quat(
        draw(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.1))
    ).as_matrix()
    axes = rotation[:, draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 7)] * 3))
    origin = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return axes, spacing, origin


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    geometry=geometries(),
    shape=st.tuples(st.integers(2, 6), st.integers(3, 9), st.integers(3, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_come_back_where_they_were_put(geometry, shape, seed):
    generator = np.random.default_rng(seed)
    axes, spacing, origin = geometry
    placed = make_volume(
        generator.integers(0, 4, shape).astype(np.uint8), axes=axes, spacing_mm=spacing, origin_mm=origin
    )
    datasets = make_series(placed)
    files = [datasets[index] for index in generator.permutation(len(datasets))]

    image = to_volume(files).image
    labels = image.with_array(_at_the_place_of(placed, image))
    encoded = seg_write.encode(labels, sources=files, card=CARD, created_at=NOW)
    if encoded is None:
        assert not placed.array.any()
        return
    received = dcmread(io.BytesIO(part_10(encoded.ds)))
    decoded = seg_read.decode(received, sources=files[::-1], card=CARD)

    assert decoded.flags == ()
    for segment in CARD.segments:
        mask = decoded.masks.get(segment.label, np.zeros(shape, bool))
        np.testing.assert_array_equal(mask, labels.array == segment.segment_number)
    assert sum(mask.sum() for mask in decoded.masks.values()) == np.count_nonzero(placed.array)


def _at_the_place_of(placed, image):
    """The placed labels, looked up voxel by voxel through patient space."""
    indices = np.indices(image.shape).reshape(3, -1)
    points = image.affine @ np.vstack([indices, np.ones(indices.shape[1])])
    found = np.linalg.inv(placed.affine) @ points
    rounded = np.rint(found[:3]).astype(int)
    assert np.abs(found[:3] - rounded).max() < 0.01
    return placed.array[tuple(rounded)].reshape(image.shape)
