"""Labels come back bit for bit at the same place in patient space, whatever the geometry."""

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dicomnode.imaging import seg_read
from dicomnode.imaging.findings import measure
from dicomnode.imaging.identity import mask_sha256, voxels_sha256
from dicomnode.imaging.series import to_volume
from tests.imaging_builders import make_card, make_series, make_volume, reread
from tests.seg_builders import encoded_forms

CARD = make_card(("A", "B", "C"))
LARGEST_JITTER = 0.04  # of a voxel's side, in every direction


@st.composite
def geometries(draw):
    rotation = Rotation.from_quat(
        draw(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.1))
    ).as_matrix()
    axes = rotation[:, draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 7)] * 3))
    origin = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return axes, spacing, origin


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    geometry=geometries(),
    shape=st.tuples(st.integers(2, 6), st.integers(2, 9), st.integers(2, 9)),
    jitter=st.sampled_from([0, LARGEST_JITTER]),
    seed=st.integers(0, 2**32 - 1),
)
@example(geometry=(np.eye(3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), shape=(2, 2, 3), jitter=0, seed=0)
def test_labels_come_back_where_they_were_put(geometry, shape, jitter, seed):
    generator = np.random.default_rng(seed)
    axes, spacing, origin = geometry
    labels = generator.integers(0, 4, shape).astype(np.uint8)
    labels[0, 0, 0] = 1  # never empty
    placed = make_volume(labels, axes=axes, spacing_mm=spacing, origin_mm=origin)
    files = shuffled_series(placed, generator, jitter)

    series = to_volume(files)
    wanted = at_the_place_of(placed, series.image)
    findings = measure(series.image.with_array(wanted), series=series, card=CARD)

    for ds in encoded_forms(findings).values():
        decoded = seg_read.decode(reread(ds), stack=to_volume(files[::-1]).stack, card=CARD)
        assert decoded.flags == ()
        assert set(decoded.masks) == {found.segment.label for found in findings.found}
        for found in findings.found:
            mask = decoded.masks[found.segment.label]
            np.testing.assert_array_equal(mask, wanted == found.segment.segment_number)
            assert mask_sha256(mask) == found.sha256
        assert voxels_sha256(decoded.masks) == findings.voxels_sha256
    assert np.count_nonzero(wanted) == np.count_nonzero(labels)


def shuffled_series(placed, generator, jitter):
    """A series of the placed volume, its slices a little off their place, its files in any order."""
    datasets = make_series(placed)
    for ds in datasets:
        off = placed.affine[:3, :3] @ generator.uniform(-jitter, jitter, 3)
        ds.ImagePositionPatient = [
            float(f"{p + d:.6f}") for p, d in zip(ds.ImagePositionPatient, off, strict=True)
        ]
    return [datasets[index] for index in generator.permutation(len(datasets))]


def at_the_place_of(placed, image):
    """The placed labels, looked up voxel by voxel through patient space."""
    indices = np.indices(image.shape).reshape(3, -1)
    points = image.affine @ np.vstack([indices, np.ones(indices.shape[1])])
    found = np.linalg.inv(placed.affine) @ points
    rounded = np.rint(found[:3]).astype(int)
    assert np.abs(found[:3] - rounded).max() < 2 * LARGEST_JITTER
    return placed.array[tuple(rounded)].reshape(image.shape)
