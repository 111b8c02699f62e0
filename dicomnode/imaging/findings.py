"""What a model found in a series: the label map on the received planes, and figures per label."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from dicomnode.domain import ModelCard, Segment, Sha256
from dicomnode.imaging.identity import label_table_sha256, mask_sha256, tracking_uid, voxels_sha256
from dicomnode.imaging.series import SeriesVolume
from dicomnode.imaging.stacks import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Figures of one label; `mean` and `sd` are in modality units, None where the label has no voxel."""

    segment: Segment
    voxels: int
    millilitres: float
    mean: float | None
    sd: float | None  # of the population of voxels
    sha256: Sha256
    tracking_uid: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """A label map on the received planes, which every form of result is written from.

    `labels` are segment numbers of `card`, uint8, (frame, row, column) in the order of `stack.frames`;
    0 is background. `planes` are the pixels there, float32 in modality units. `measures` hold every label
    of the card in its order.
    """

    stack: Stack
    card: ModelCard
    labels: NDArray[np.uint8]
    planes: NDArray[np.float32]
    measures: tuple[Measure, ...]
    label_table_sha256: Sha256
    voxels_sha256: Sha256

    @property
    def found(self) -> tuple[Measure, ...]:
        """The labels that have voxels, in the order of the card."""
        return tuple(measure for measure in self.measures if measure.voxels)

    def __iter__(self) -> Iterator[Measure]:
        return iter(self.measures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One segmentation of one revision of a series; the same run gives the same objects byte for byte.

    `created_at` is aware. It is written in the sources' time zone where they name one (0008,0201), else as
    it stands. `revision` tells two runs on the same series apart: the digest of the received bytes.
    """

    created_at: datetime
    revision: str


def measure(labels: Volume, *, series: SeriesVolume, card: ModelCard) -> Findings:
    """Bring a model's labels to the received planes and take the figures of each label.

    Parameters
    ----------
    labels
        uint8 segment numbers of `card` on the grid of `series.image`.

    Raises
    ------
    ValueError
        The labels do not lie on that grid, or hold numbers that the card does not.
    """
    _check_labels(labels, series, card)
    on_planes = series.on_planes(np.asarray(labels.array, np.uint8))
    masks = {s.label: on_planes == s.segment_number for s in card.segments}
    voxel_ml = float(np.prod(series.image.spacing)) / 1000.0
    measures = []
    for segment in card.segments:
        mask = masks[segment.label]
        values = series.planes[mask].astype(np.float64)
        measures.append(
            Measure(
                segment=segment,
                voxels=int(values.size),
                millilitres=int(np.count_nonzero(labels.array == segment.segment_number)) * voxel_ml,
                mean=float(values.mean()) if values.size else None,
                sd=float(values.std()) if values.size else None,
                sha256=mask_sha256(mask),
                tracking_uid=tracking_uid(series.stack.series_instance_uid, segment.label),
            )
        )
    return Findings(
        stack=series.stack,
        card=card,
        labels=on_planes,
        planes=series.planes,
        measures=tuple(measures),
        label_table_sha256=label_table_sha256(card),
        voxels_sha256=voxels_sha256(masks),
    )


def _check_labels(labels: Volume, series: SeriesVolume, card: ModelCard) -> None:
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are {labels.dtype}, uint8 segment numbers were expected")
    image = series.image
    if labels.shape != image.shape or not np.allclose(labels.affine, image.affine, atol=1e-3):
        raise ValueError(f"labels {labels.shape} do not lie on the grid {image.shape} of the source series")
    known = {0, *(segment.segment_number for segment in card.segments)}
    unknown = set(np.unique(labels.array).tolist()) - known
    if unknown:
        raise ValueError(f"label values {sorted(unknown)} are no segment numbers of model {card.version}")
