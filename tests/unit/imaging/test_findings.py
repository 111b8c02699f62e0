"""Figures of each label: voxels, volume, mean, SD and digest."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dicomnode.imaging.identity import mask_sha256, voxels_sha256
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results.findings import measure
from tests.imaging_builders import make_card, make_series, make_volume, plain_series
from tests.seg_builders import found_at

CARD = make_card()


def test_voxels_volume_mean_and_sd_are_those_of_the_labelled_pixels():
    # pixels hold 0, 1, 2, ... in the order of memory; voxels are 2 x 0.75 x 0.5 mm
    findings = found_at(plain_series((4, 5, 6)), CARD, ((0, 0, 1), (0, 0, 3), (2, 0, 0)), ())

    first, second = findings
    assert first.voxels == 3
    assert first.millilitres == pytest.approx(3 * 0.75 / 1000)
    assert first.mean == pytest.approx((1 + 3 + 60) / 3)
    assert first.sd == pytest.approx(np.std([1, 3, 60]))
    assert (second.voxels, second.millilitres, second.mean, second.sd) == (0, 0.0, None, None)
    assert findings.found == (first,)
    assert findings.voxels_per_plane[:, 1].tolist() == [2, 0, 1, 0]


def test_the_sd_of_large_values_that_hardly_differ_keeps_its_digits():
    series = to_volume(plain_series((4, 3, 3)))
    planes = np.float32(4e6) + np.arange(4, dtype=np.float32)[:, None, None] * np.ones((3, 3), np.float32)
    labels = series.image.with_array(np.ones((4, 3, 3), np.uint8))

    found = measure(labels, series=replace(series, planes=planes), card=CARD).measures[0]

    assert found.mean == pytest.approx(4e6 + 1.5, abs=1e-8)
    assert found.sd == pytest.approx(np.std([0, 1, 2, 3]), abs=1e-9)


@given(
    labels=arrays.arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 3)),
    values=arrays.arrays(np.int16, (4, 5, 6), elements=st.integers(-1000, 3000)),
)
def test_figures_are_those_of_a_plain_computation(labels, values):
    card = make_card(("A", "B", "C"))
    datasets = make_series(make_volume((values + 1000).astype(np.uint16)))
    series = to_volume(datasets)

    findings = measure(series.image.with_array(labels), series=series, card=card)

    for found in findings:
        mask = labels == found.segment.segment_number
        inside = series.planes[mask].astype(np.float64)
        assert found.voxels == inside.size
        assert found.sha256 == mask_sha256(mask)
        assert found.mean == (pytest.approx(inside.mean()) if inside.size else None)
        assert found.sd == (pytest.approx(inside.std(), abs=1e-9) if inside.size else None)
    masks = {segment.label: labels == segment.segment_number for segment in card.segments}
    assert findings.voxels_sha256 == voxels_sha256(masks)


def test_labels_off_the_grid_are_a_bug_of_the_caller():
    series = to_volume(plain_series())
    labels = series.image.with_array(np.ones(series.image.shape, np.uint8))

    with pytest.raises(ValueError, match="do not lie on the grid"):
        measure(labels[1:], series=series, card=CARD)
    with pytest.raises(ValueError, match=r"values \[7\] are no segment numbers"):
        measure(labels.with_array(labels.array * 7), series=series, card=CARD)
    with pytest.raises(ValueError, match="labels are int32"):
        measure(labels.with_array(labels.array.astype(np.int32)), series=series, card=CARD)
