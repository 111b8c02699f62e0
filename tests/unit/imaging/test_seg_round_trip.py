"""Labels come back bit for bit at the same place in patient space, whatever the geometry."""

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dicomnode.imaging.identity import mask_sha256, voxels_sha256
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.results.findings import measure
from tests.frame_builders import frame_groups, multi_frame, plane
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
    # slices closer than a twentieth of a pixel would be taken for repeats of one position
    spacing = draw(st.tuples(*[st.floats(0.4, 7)] * 3))
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


def planes_in(kind, size, generator):
    """Instances of one series whose planes are no plain single-frame grid."""
    if kind == "tilted":
        return [
            plane(k + 1, (-10, 20 + 0.6 * k, 30 + 2 * k), pixels=noise(size, generator)) for k in range(6)
        ]
    if kind == "gapped":
        return [
            plane(k + 1, (0, 0, 2 * k), pixels=noise(size, generator), SliceThickness=2)
            for k in (0, 1, 2, 4, 5, 6)
        ]
    parts = {"multi-frame": [range(6)], "multi-frame in parts": [(0, 2, 4), (5, 3, 1)]}[kind]
    return [
        multi_frame(
            [frame_groups((0, 0, 3 * k)) for k in part],
            np.stack([noise(size, generator) for _ in part]),
            number=number,
        )
        for number, part in enumerate(parts, start=1)
    ]


def noise(size, generator):
    return generator.integers(0, 900, size).astype(np.uint16)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["tilted", "gapped", "multi-frame", "multi-frame in parts"]),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_of_planes_that_are_no_plain_grid_come_back_on_the_planes(kind, size, seed):
    generator = np.random.default_rng(seed)
    files = planes_in(kind, size, generator)
    files = [files[index] for index in generator.permutation(len(files))]
    series = to_volume(files, maximum_missing=1)
    labels = generator.integers(1, 4, series.image.shape).astype(np.uint8)

    findings = measure(series.image.with_array(labels), series=series, card=CARD)

    for form, ds in encoded_forms(findings).items():
        read = reread(ds)
        decoded = seg_read.decode(read, stack=only_stack(files[::-1]), card=CARD)
        assert decoded.flags == ()
        for found in findings.found:
            np.testing.assert_array_equal(
                decoded.masks[found.segment.label], findings.labels == found.segment.segment_number
            )
        remarks = findings.stack.remarks
        assert ("see Image Comments" in read.ContentDescription) == bool(remarks)
        assert all(remark in read.get("ImageComments", "") for remark in remarks)
        if form == "label map":
            assert_frames_lie_on_their_planes(read, findings.stack.frames)


def assert_frames_lie_on_their_planes(ds, planes):
    for groups, place in zip(ds.PerFrameFunctionalGroupsSequence, planes[::-1], strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == place.sop_instance_uid
        assert source.get("ReferencedFrameNumber") == (place.frame_number if place.is_multi_frame else None)
        np.testing.assert_allclose(
            groups.PlanePositionSequence[0].ImagePositionPatient, place.position_mm, atol=1e-9
        )
