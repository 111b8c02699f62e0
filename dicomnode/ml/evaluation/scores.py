"""Agreement of a segmentation with the truth, per label, in fractions and millimetres."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain import Segment

Mask = NDArray[np.bool_]


MISSING_HD95_MM = 100.0
"""Stands for an infinite distance (one mask empty) in means: about the diagonal of a head crop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAgreement:
    """How well one label of one case was found."""

    label: str
    dice: float  # 0 to 1; 1.0 when both masks are empty
    hd95_mm: float  # infinite when exactly one mask is empty


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseScore:
    """How well one model did on one case, for the labels whose truth is known."""

    case_id: str
    labels: tuple[LabelAgreement, ...]


def score_case(
    case_id: str,
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    *,
    segments: Sequence[Segment],
    spacing_mm: Sequence[float],
) -> CaseScore:
    """Compare two maps of class indices on one grid, for the given segments only."""
    agreements = []
    for segment in segments:
        found, wanted = prediction == segment.class_index, truth == segment.class_index
        distance = hd95_mm(found, wanted, spacing_mm=spacing_mm)
        agreements.append(LabelAgreement(label=segment.label, dice=dice(found, wanted), hd95_mm=distance))
    return CaseScore(case_id=case_id, labels=tuple(agreements))


def dice(prediction: Mask, truth: Mask) -> float:
    """Give the Dice coefficient of two masks on one grid; 1.0 when both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def hd95_mm(prediction: Mask, truth: Mask, *, spacing_mm: Sequence[float]) -> float:
    """Give the 95th percentile of the surface distance, the larger of both directions.

    Surface voxels are those of a mask with a face neighbour outside it; beyond the border of the
    image counts as outside. The percentile is interpolated linearly. (Maier-Hein et al., Metrics
    reloaded, Nat Methods 21, 2024.)

    Parameters
    ----------
    prediction, truth
        Masks on one grid, (S, R, K).
    spacing_mm
        Voxel spacing along the axes; need not be equal.

    Returns
    -------
        Millimetres between voxel centres; 0.0 when both masks are empty, infinite when one is.
    """
    if not prediction.any() or not truth.any():
        return 0.0 if prediction.any() == truth.any() else float("inf")
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction[box], truth[box])]
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces]
    one_way = np.percentile(distances[1][surfaces[0]], 95)
    other_way = np.percentile(distances[0][surfaces[1]], 95)
    return float(max(one_way, other_way))
