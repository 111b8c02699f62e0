"""Findings on small series, and segmentations of them, for the tests of the writers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.domain import ModelCard
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results import seg_write
from dicomnode.imaging.results.findings import Findings, Run, measure
from tests.imaging_builders import NOW

RUN = Run(created_at=NOW, revision="first")
Voxel = tuple[int, int, int]


def found_in(datasets: Sequence[Dataset], labels: NDArray[np.uint8], card: ModelCard) -> Findings:
    """Measure labels on the grid of a series."""
    series = to_volume(datasets)
    return measure(series.image.with_array(labels), series=series, card=card)


def found_at(datasets: Sequence[Dataset], card: ModelCard, *voxels: Sequence[Voxel]) -> Findings:
    """Measure labels that have a few voxels each, those of the card's first segment first."""
    series = to_volume(datasets)
    labels = np.zeros(series.image.shape, np.uint8)
    for segment, places in zip(card.segments, voxels, strict=False):
        for at in places:
            labels[at] = segment.segment_number
    return measure(series.image.with_array(labels), series=series, card=card)


def encoded_forms(findings: Findings, run: Run = RUN) -> dict[str, Dataset]:
    """Write findings as one BINARY segmentation and as a label map."""
    (binary,) = seg_write.encode_binary(findings, run=run)
    return {"binary": binary, "label map": seg_write.encode_label_map(findings, run=run)}
