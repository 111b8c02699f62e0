"""All measures of one case, for each label: overlap, surface distances and volumes, in mm and ml."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.ml.evaluation import scores
from dicomnode.ml.evaluation.surfaces import Mask

TOLERANCE_MM = 1.0
_CUBIC_MM_PER_ML = 1000.0

LabelMap = NDArray[np.unsignedinteger]
Box = tuple[slice, ...]


class Presence(StrEnum):
    """On which side a label has voxels."""

    BOTH = "both"
    MISSED = "missed"  # in the truth only
    INVENTED = "invented"  # in the prediction only
    ABSENT = "absent"  # on neither side


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLabel:
    """What is measured under one name: one value of the label maps, or several as one region."""

    name: str
    values: tuple[int, ...]  # each >= 1
    tolerance_mm: float = TOLERANCE_MM  # of the surface Dice


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMeasures:
    """How well one label of one case was found; None where the question has no answer."""

    label: str
    presence: Presence
    dice: float | None  # 0 to 1; 0 where missed or invented; None where absent
    hd95_mm: float | None  # infinite where missed or invented; None where absent
    surface_dice: float | None  # as dice
    tolerance_mm: float
    truth_voxels: int
    prediction_voxels: int
    truth_ml: float
    prediction_ml: float
    volume_error_ml: float  # prediction - truth
    volume_error_percent: float | None  # of the truth; None where the truth has nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMeasures:
    """What was measured of one case."""

    case_id: str
    spacing_mm: tuple[float, ...]
    labels: tuple[LabelMeasures, ...]


def measure_case(
    case_id: str,
    prediction: LabelMap,
    truth: LabelMap,
    *,
    labels: Sequence[MeasuredLabel],
    spacing_mm: Sequence[float],
    ignored: int | None = None,
    threads: int = 1,
) -> CaseMeasures:
    """Compare two label maps on one grid.

    Every label is measured within the box around its voxels on both sides. An axis of one voxel is no axis:
    the slice is measured in its plane, with contours in place of surfaces; volumes count its thickness.

    Parameters
    ----------
    prediction, truth
        Label values of the same shape, two or three axes.
    spacing_mm
        Voxel spacing along the axes; need not be equal.
    ignored
        Value of the truth that means "not known": whatever is predicted there counts as background.
    threads
        For the search of nearest points.
    """
    if ignored is not None:
        prediction = np.where(truth == ignored, np.zeros_like(prediction), prediction)
    voxel_ml = float(np.prod(spacing_mm)) / _CUBIC_MM_PER_ML
    kept = [axis for axis, length in enumerate(truth.shape) if length > 1]
    if len(kept) >= 2:
        flat = tuple(axis for axis in range(truth.ndim) if axis not in kept)
        prediction, truth = prediction.squeeze(flat), truth.squeeze(flat)
    else:
        kept = list(range(truth.ndim))
    spacing = [float(spacing_mm[axis]) for axis in kept]
    boxes = ndimage.find_objects(prediction), ndimage.find_objects(truth)
    measured = []
    for label in labels:
        box = _union([found[value - 1] for found in boxes for value in label.values if value <= len(found)])
        masks = [np.isin(side[box], label.values) for side in (prediction, truth)]
        measured.append(_measure(label, *masks, spacing_mm=spacing, voxel_ml=voxel_ml, threads=threads))
    return CaseMeasures(case_id=case_id, spacing_mm=tuple(map(float, spacing_mm)), labels=tuple(measured))


def values_of(labels: LabelMap) -> tuple[int, ...]:
    """Give the values of a label map except 0, ascending."""
    boxes = ndimage.find_objects(labels)
    return tuple(value for value, box in enumerate(boxes, start=1) if box is not None)


def _union(boxes: Sequence[Box | None]) -> Box:
    """The box around boxes; an empty one where there is none."""
    known = [box for box in boxes if box is not None]
    if not known:
        return (slice(0, 0),)
    return tuple(
        slice(min(one.start for one in along), max(one.stop for one in along))
        for along in zip(*known, strict=True)
    )


def _measure(
    label: MeasuredLabel,
    prediction: Mask,
    truth: Mask,
    *,
    spacing_mm: Sequence[float],
    voxel_ml: float,
    threads: int,
) -> LabelMeasures:
    found, wanted = int(prediction.sum()), int(truth.sum())
    presence = _presence(found, wanted)
    dice: float | None = None
    distance: float | None = None
    surface: float | None = None
    if presence is not Presence.ABSENT:
        dice = scores.dice(prediction, truth)
        distance = scores.hd95_mm(prediction, truth, spacing_mm=spacing_mm, threads=threads)
        surface = scores.surface_dice(
            prediction, truth, spacing_mm=spacing_mm, tolerance_mm=label.tolerance_mm, threads=threads
        )
    return LabelMeasures(
        label=label.name,
        presence=presence,
        dice=dice,
        hd95_mm=distance,
        surface_dice=surface,
        tolerance_mm=label.tolerance_mm,
        truth_voxels=wanted,
        prediction_voxels=found,
        truth_ml=wanted * voxel_ml,
        prediction_ml=found * voxel_ml,
        volume_error_ml=(found - wanted) * voxel_ml,
        volume_error_percent=100 * (found - wanted) / wanted if wanted else None,
    )


def _presence(found: int, wanted: int) -> Presence:
    if found and wanted:
        return Presence.BOTH
    if wanted:
        return Presence.MISSED
    return Presence.INVENTED if found else Presence.ABSENT
