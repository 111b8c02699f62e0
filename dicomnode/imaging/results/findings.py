"""What a model found in a series: the label map on the received planes, and figures per label."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from dicomnode.domain import ModelCard, Segment, Sha256
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import MaskDigest, joined_sha256, label_table_sha256, tracking_uid
from dicomnode.imaging.images.series import SeriesVolume
from dicomnode.imaging.images.stacks import Stack

NUMBERS = 256
"""Segment numbers that fit a label map of bytes, with 0 for background."""


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
    of the card in its order. `voxels_per_plane` counts them, (frame, segment number).
    """

    stack: Stack
    card: ModelCard
    labels: NDArray[np.uint8]
    planes: NDArray[np.float32]
    measures: tuple[Measure, ...]
    voxels_per_plane: NDArray[np.int64]
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
    """Bring a model's labels to the received planes and take the figures of each label, in one pass.

    Volumes are counted on the grid of the image, which is regular; mean, SD and digests are taken on the
    received planes, whose pixels nobody interpolated.

    Parameters
    ----------
    labels
        uint8 segment numbers of `card` on the grid of `series.image`.

    Raises
    ------
    ValueError
        The labels do not lie on that grid, or hold numbers that the card does not.
    """
    _check_grid(labels, series)
    on_grid = np.asarray(labels.array)
    on_planes = series.on_planes(on_grid)
    tally = _Tally(on_planes.shape)
    for index, plane in enumerate(on_planes):
        tally.add(index, plane, series.planes[index])
    counts = tally.counts.sum(axis=0) if on_planes is on_grid else _counts(on_grid)
    _check_numbers(counts, card)
    millilitres = counts * (float(np.prod(series.image.spacing)) / 1000.0)
    measures = tuple(
        tally.measure(
            segment,
            millilitres=float(millilitres[segment.segment_number]),
            series_instance_uid=series.stack.series_instance_uid,
        )
        for segment in card.segments
    )
    return Findings(
        stack=series.stack,
        card=card,
        labels=on_planes,
        planes=series.planes,
        measures=measures,
        voxels_per_plane=tally.counts,
        label_table_sha256=label_table_sha256(card),
        voxels_sha256=joined_sha256({m.segment.label: m.sha256 for m in measures if m.voxels}),
    )


class _Tally:
    """Voxels, mean, sum of squared differences from the mean, and digest of every segment number.

    Planes are joined by the update of Chan, Golub and LeVeque (1983), which loses no digits where a
    label's values are large and close together.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.counts: NDArray[np.int64] = np.zeros((shape[0], NUMBERS), np.int64)
        self.voxels: NDArray[np.int64] = np.zeros(NUMBERS, np.int64)
        self._shape = shape
        self._mean: FloatArray = np.zeros(NUMBERS)
        self._squares: FloatArray = np.zeros(NUMBERS)
        self._digests: dict[int, MaskDigest] = {}

    def add(self, index: int, labels: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
        """Take in one plane (row, column)."""
        rows, columns = np.flatnonzero(labels.any(axis=1)), np.flatnonzero(labels.any(axis=0))
        if not rows.size:
            return
        corner = (int(rows[0]), int(columns[0]))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        labels, values = labels[box], values[box]
        self._take_values(index, labels, values)
        for number in np.flatnonzero(self.counts[index]).tolist():
            digest = self._digests.setdefault(number, MaskDigest(self._shape))
            digest.add(index, labels == number, corner=corner)

    def _take_values(self, index: int, labels: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
        is_labelled = labels != 0
        numbers = labels[is_labelled].astype(np.intp)
        inside = values[is_labelled].astype(np.float64)
        count = np.bincount(numbers, minlength=NUMBERS)
        filled = np.maximum(count, 1)
        mean = np.bincount(numbers, inside, NUMBERS) / filled
        inside -= mean[numbers]
        squares = np.bincount(numbers, inside * inside, NUMBERS)
        total = self.voxels + count
        step = mean - self._mean
        weight = count / np.maximum(total, 1)
        self._squares += squares + np.where(count > 0, step * step * self.voxels * weight, 0)
        self._mean += np.where(count > 0, step * weight, 0)
        self.voxels = total
        self.counts[index] = count

    def measure(self, segment: Segment, *, millilitres: float, series_instance_uid: str) -> Measure:
        """Give the figures of one label."""
        number = segment.segment_number
        voxels = int(self.voxels[number])
        return Measure(
            segment=segment,
            voxels=voxels,
            millilitres=millilitres,
            mean=float(self._mean[number]) if voxels else None,
            sd=float(np.sqrt(self._squares[number] / voxels)) if voxels else None,
            sha256=self._digests.get(number, MaskDigest(self._shape)).sha256(),
            tracking_uid=tracking_uid(series_instance_uid, segment.label),
        )


def _counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts = np.zeros(NUMBERS, np.int64)
    for plane in labels:
        counts += np.bincount(plane[plane != 0], minlength=NUMBERS)
    return counts


def _check_grid(labels: Volume, series: SeriesVolume) -> None:
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are {labels.dtype}, uint8 segment numbers were expected")
    image = series.image
    if labels.shape != image.shape or not np.allclose(labels.affine, image.affine, atol=1e-3):
        raise ValueError(f"labels {labels.shape} do not lie on the grid {image.shape} of the source series")


def _check_numbers(counts: NDArray[np.int64], card: ModelCard) -> None:
    unknown = set(np.flatnonzero(counts).tolist()) - {segment.segment_number for segment in card.segments}
    if unknown:
        raise ValueError(f"label values {sorted(unknown)} are no segment numbers of model {card.version}")
