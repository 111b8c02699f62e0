"""Agreement of a segmentation with the truth, per label, in fractions and millimetres."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain import Segment
from dicomnode.ml.evaluation import surfaces
from dicomnode.ml.evaluation.surfaces import Mask

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
    reviewed: Mapping[str, NDArray[np.bool_]] | None = None,
) -> CaseScore:
    """Compare two maps of class indices on one grid, for the given segments only.

    Parameters
    ----------
    prediction, truth
        (S, R, K).
    reviewed
        By label, (S,): on which slices the truth of it is known; elsewhere neither side counts. None: on all.
    """
    agreements = []
    for segment in segments:
        found, wanted = prediction == segment.class_index, truth == segment.class_index
        if reviewed is not None:
            known = reviewed[segment.label][:, None, None]
            found, wanted = found & known, wanted & known
        distance = hd95_mm(found, wanted, spacing_mm=spacing_mm)
        agreements.append(LabelAgreement(label=segment.label, dice=dice(found, wanted), hd95_mm=distance))
    return CaseScore(case_id=case_id, labels=tuple(agreements))


def dice(prediction: Mask, truth: Mask) -> float:
    """Give the Dice coefficient of two masks on one grid; 1.0 when both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def hd95_mm(prediction: Mask, truth: Mask, *, spacing_mm: Sequence[float], threads: int = 1) -> float:
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
    box = _box(prediction | truth)
    found, wanted = surfaces.border(prediction[box]), surfaces.border(truth[box])
    one_way = surfaces.nearest_mm(found, wanted, spacing_mm=spacing_mm, threads=threads)
    other_way = surfaces.nearest_mm(wanted, found, spacing_mm=spacing_mm, threads=threads)
    return float(max(np.percentile(one_way, 95), np.percentile(other_way, 95)))


def surface_dice(
    prediction: Mask, truth: Mask, *, spacing_mm: Sequence[float], tolerance_mm: float, threads: int = 1
) -> float:
    """Give the share of both surfaces that lies within a tolerance of the other one (NSD).

    Surfaces are those of marching cubes, each piece counting with its area; see
    :mod:`dicomnode.ml.evaluation.surfaces`. (Nikolov et al., J Med Internet Res 23, 2021.)

    Parameters
    ----------
    prediction, truth
        Masks on one grid, of three axes or of two.
    tolerance_mm
        A distance of exactly so much is within.

    Returns
    -------
        0 to 1; 1.0 when both masks are empty, 0.0 when one is.
    """
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    box = _box(prediction | truth)
    found, wanted = (surfaces.elements(mask[box], spacing_mm=spacing_mm) for mask in (prediction, truth))
    within = 0.0
    for one, other in ((found, wanted), (wanted, found)):
        distances = surfaces.nearest_mm(
            one.points,
            other.points,
            spacing_mm=spacing_mm,
            limit_mm=tolerance_mm + surfaces.TOLERANCE_SLACK_MM,
            threads=threads,
        )
        within += float(one.areas[np.isfinite(distances)].sum())
    return within / float(found.areas.sum() + wanted.areas.sum())


def _box(mask: Mask) -> tuple[slice, ...]:
    return ndimage.find_objects(mask.view(np.uint8))[0]
