"""How a correction differs from the model's own result, measured so that mistakes of handling show.

Arrays have the axes (slice, row, column). A label is looked at on the slices on which it is known, and only
there; the result of the model is whole. Everything happens inside the box around what either side marked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.optimize import linear_sum_assignment

from dicomnode.errors import CorrectionError
from dicomnode.ml.evaluation import surfaces
from dicomnode.ml.evaluation.surfaces import Mask

REACH = 8
"""So many voxels a correction may be shifted along each axis."""
SHIFTED_VOXELS = 300_000
"""If the box of a label is larger, every second voxel of each axis is shifted, or every third, and so on."""
SURFACE_POINTS = 4000
"""So many points of a surface, at most, are asked for their distance."""
_MARGIN = 2
_SMOOTHING_VOXELS = 1.0

Labels = NDArray[np.uint8]
Triple = tuple[float, float, float]
Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SuspectCase:
    """A correction, and what it corrects."""

    case_id: str
    image: NDArray[np.float32]  # (S, R, K), modality units
    correction: Labels  # (S, R, K) class indices
    prediction: Labels  # (S, R, K) class indices: the model's own result
    slice_weights: NDArray[np.float32]  # (classes - 1, S): trust in a label on a slice; 0 is unknown
    spacing_mm: Triple


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFigures:
    """How one label differs, on the slices on which it is known; None where there is nothing to measure."""

    class_index: int
    correction_voxels: int
    prediction_voxels: int
    reviewed_voxels: int
    dice: float  # 1.0 when both are empty
    offset_mm: float | None  # mean distance of the correction's surface from the model's; negative is inside
    spread_mm: float | None  # standard deviation of that distance
    edge_ratio: float | None  # mean step of the image across the correction's surface / across the model's


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """Labels that resemble another label of the model more than their own."""

    classes: tuple[tuple[int, int], ...]  # (of the correction, of the model), in the best assignment
    dice: float  # mean over these labels, as given
    renamed_dice: float  # mean after the renaming

    @property
    def is_exchange(self) -> bool:
        """Answer whether the labels trade places, and none is left over."""
        return {theirs for theirs, _ in self.classes} == {ours for _, ours in self.classes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """The rigid shift after which all labels together agree best."""

    offset_mm: Triple  # of the correction from the model's result, along (slice, row, column)
    dice: float  # as given
    shifted_dice: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFigures:
    """Everything measured of one case."""

    labels: tuple[LabelFigures, ...]  # those known on some slice
    renaming: Renaming | None  # None where each label resembles its own most
    shift: Shift | None  # None where the two have no label in common
    edge_ratio: float | None  # as of a label, over all labels
    voxel_mm: float  # the smallest of the spacings


def measure(case: SuspectCase) -> CaseFigures:
    """Compare a correction with the result that it corrects.

    Raises
    ------
    CorrectionError
        Arrays of different shapes, or a class without a row of weights.
    """
    _check(case)
    crop = _crop(case)
    joint = _joint_counts(crop)
    classes = [int(row) + 1 for row in np.flatnonzero((case.slice_weights > 0).any(axis=1))]
    surfaces_of = _edges_of(crop, classes)
    return CaseFigures(
        labels=tuple(_label(case, crop, joint, index, surfaces_of[index]) for index in classes),
        renaming=_renaming(crop, joint, classes),
        shift=_shift(crop, classes),
        edge_ratio=_ratio(list(surfaces_of.values())),
        voxel_mm=float(min(case.spacing_mm)),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Crop:
    """The box around what is marked."""

    image: NDArray[np.float32]
    correction: Labels
    prediction: Labels
    known: Mask  # (classes - 1, S)
    boxes: tuple[Box | None, ...]  # around each label on both sides, one voxel wider
    spacing_mm: Triple

    def masks(self, index: int, box: Box) -> tuple[Mask, Mask, Mask]:
        """Give a label of correction and model inside a box, and on which slices it is known, (S, 1, 1)."""
        known = self.known[index - 1, box[0]][:, None, None]
        return self.correction[box] == index, self.prediction[box] == index, known


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """Steps of the image across a surface."""

    total: float  # sum over its faces of step per mm times area
    area_mm2: float


_EdgePair = tuple[_Edge, _Edge]
"""Of the correction and of the model."""


def _check(case: SuspectCase) -> None:
    shapes = {case.image.shape, case.correction.shape, case.prediction.shape}
    if len(shapes) > 1 or case.image.ndim != 3:
        raise CorrectionError(
            f"Image {case.image.shape}, correction {case.correction.shape} and result "
            f"{case.prediction.shape} of case {case.case_id} must have one shape of three axes."
        )
    needed = max(int(labels.max(initial=0)) for labels in (case.correction, case.prediction))
    rows, slices = case.slice_weights.shape
    if slices != case.image.shape[0] or needed > rows:
        raise CorrectionError(
            f"Slice weights of case {case.case_id} have the shape {case.slice_weights.shape}; a row for each "
            f"of at least {needed} labels and {case.image.shape[0]} columns, one for each slice, is expected."
        )


def _crop(case: SuspectCase) -> _Crop:
    marked = ndimage.find_objects(((case.correction > 0) | (case.prediction > 0)).view(np.uint8))
    box = _grown(marked[0] if marked else (slice(0, 1),) * 3, case.image.shape, _MARGIN)
    correction, prediction = case.correction[box], case.prediction[box]
    labels = len(case.slice_weights)
    both = zip(
        ndimage.find_objects(correction, labels), ndimage.find_objects(prediction, labels), strict=True
    )
    return _Crop(
        image=case.image[box],
        correction=correction,
        prediction=prediction,
        known=case.slice_weights[:, box[0]] > 0,
        boxes=tuple(_joined(pair, correction.shape) for pair in both),
        spacing_mm=case.spacing_mm,
    )


def _joined(boxes: Sequence[Box | None], shape: Sequence[int]) -> Box | None:
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    around = tuple(
        slice(min(one.start for one in along), max(one.stop for one in along))
        for along in zip(*found, strict=True)
    )
    return _grown(around, shape, 1)


def _grown(box: Box, shape: Sequence[int], margin: int) -> Box:
    return tuple(
        slice(max(along.start - margin, 0), min(along.stop + margin, size))
        for along, size in zip(box, shape, strict=True)
    )


def _joint_counts(crop: _Crop) -> NDArray[np.int64]:
    """Count voxels by slice, class of the correction and class of the model: (S, classes, classes)."""
    classes = len(crop.known) + 1
    pairs = crop.correction.astype(np.int64) * classes + crop.prediction
    pairs += np.arange(len(pairs))[:, None, None] * classes**2
    counts = np.bincount(pairs.ravel(), minlength=len(pairs) * classes**2)
    return counts.reshape(len(pairs), classes, classes)


def _label(
    case: SuspectCase, crop: _Crop, joint: NDArray[np.int64], index: int, edges: _EdgePair
) -> LabelFigures:
    counts = joint[crop.known[index - 1]].sum(axis=0)
    theirs, ours = int(counts[index].sum()), int(counts[:, index].sum())
    offset, spread = _offset(crop, index) if theirs and ours else (None, None)
    plane = case.image.shape[1] * case.image.shape[2]
    return LabelFigures(
        class_index=index,
        correction_voxels=theirs,
        prediction_voxels=ours,
        reviewed_voxels=int(np.count_nonzero(case.slice_weights[index - 1] > 0)) * plane,
        dice=2 * int(counts[index, index]) / (theirs + ours) if theirs + ours else 1.0,
        offset_mm=offset,
        spread_mm=spread,
        edge_ratio=_ratio([edges]),
    )


def _offset(crop: _Crop, index: int) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the signed distance from one surface to the other.

    Beyond the slices that are known nothing counts as outside: where the review ends is no surface.
    """
    box = crop.boxes[index - 1]
    if box is None:
        return None, None
    theirs, ours, known = crop.masks(index, box)
    start, end = (_known_border(mask, known) for mask in (theirs, ours))
    if not len(start) or not len(end):
        return None, None
    start = start[:: -(-len(start) // SURFACE_POINTS)]
    distances = surfaces.nearest_mm(start, end, spacing_mm=crop.spacing_mm)
    signed = np.where(ours[tuple(start.T)], -distances, distances)
    return float(signed.mean()), float(signed.std())


def _known_border(mask: Mask, known: Mask) -> surfaces.Points:
    points: surfaces.Points = surfaces.border(mask | ~known)
    found: surfaces.Points = points[known[points[:, 0], 0, 0]]
    return found


def _edges_of(crop: _Crop, classes: Sequence[int]) -> dict[int, _EdgePair]:
    steps = _steps(crop)
    nothing = _Edge(total=0.0, area_mm2=0.0)
    edges = {}
    for index in classes:
        box = crop.boxes[index - 1]
        if box is None:
            edges[index] = (nothing, nothing)
            continue
        theirs, ours, known = crop.masks(index, box)
        local = [along[box] for along in steps]
        edges[index] = (
            _edge(theirs, known, local, crop.spacing_mm),
            _edge(ours, known, local, crop.spacing_mm),
        )
    return edges


def _steps(crop: _Crop) -> list[NDArray[np.float32]]:
    """Give the size of the step of the smoothed image to the next voxel along each axis, per mm.

    The last voxel of an axis has the step 0. An image with values that are not finite has no steps.
    """
    if not np.isfinite(crop.image).all():
        return [np.zeros(crop.image.shape, np.float32)] * 3
    sigmas = [_SMOOTHING_VOXELS * min(crop.spacing_mm) / spacing for spacing in crop.spacing_mm]
    smooth = ndimage.gaussian_filter(crop.image.astype(np.float32), sigmas, truncate=3.0)
    return [
        (np.abs(np.diff(smooth, axis=axis, append=smooth.take([-1], axis=axis))) / spacing).astype(np.float32)
        for axis, spacing in enumerate(crop.spacing_mm)
    ]


def _edge(
    mask: Mask, known: Mask, steps: Sequence[NDArray[np.float32]], spacing_mm: Sequence[float]
) -> _Edge:
    """Sum the steps over the faces of voxels that a surface parts, on the slices that are known."""
    total = area = 0.0
    for axis, along in enumerate(steps):
        parted = np.diff(mask, axis=axis)
        parted &= known[1:] & known[:-1] if axis == 0 else known
        inner = along[tuple(slice(-1) if one == axis else slice(None) for one in range(3))]
        face = float(np.prod(spacing_mm)) / spacing_mm[axis]
        total += face * float(inner[parted].sum(dtype=np.float64))
        area += face * int(np.count_nonzero(parted))
    return _Edge(total=total, area_mm2=area)


def _ratio(edges: Sequence[_EdgePair]) -> float | None:
    """Compare the mean steps across two surfaces; None where one is missing, or the model's has no step."""
    theirs, ours = _sum(theirs for theirs, _ in edges), _sum(ours for _, ours in edges)
    if not theirs.area_mm2 or not ours.area_mm2 or ours.total <= 0:
        return None
    return (theirs.total / theirs.area_mm2) / (ours.total / ours.area_mm2)


def _sum(edges: Iterable[_Edge]) -> _Edge:
    found = list(edges)
    return _Edge(total=sum(one.total for one in found), area_mm2=sum(one.area_mm2 for one in found))


def _renaming(crop: _Crop, joint: NDArray[np.int64], classes: Sequence[int]) -> Renaming | None:
    """Assign each known label of the correction to one of the model, so that they agree best."""
    if not classes:
        return None
    dice = np.stack([_dice_with_all(joint[crop.known[index - 1]].sum(axis=0), index) for index in classes])
    rows, columns = linear_sum_assignment(dice, maximize=True)
    own, best = dice[rows, np.asarray(classes)[rows] - 1], dice[rows, columns]
    better = best > own
    if not better.any():
        return None
    return Renaming(
        classes=tuple(
            (classes[row], int(column) + 1) for row, column in zip(rows[better], columns[better], strict=True)
        ),
        dice=float(own[better].mean()),
        renamed_dice=float(best[better].mean()),
    )


def _dice_with_all(counts: NDArray[np.int64], index: int) -> NDArray[np.float64]:
    """Dice of one label of the correction with each label of the model; counts are (classes, classes)."""
    totals = counts[index].sum() + counts[:, 1:].sum(axis=0)
    return np.asarray(2 * counts[index, 1:] / np.maximum(totals, 1), np.float64)


def _shift(crop: _Crop, classes: Sequence[int]) -> Shift | None:
    """Find the shift with the largest Dice of all labels together, each measured where it is known."""
    boxes = {index: box for index in classes if (box := crop.boxes[index - 1]) is not None}
    if not boxes:
        return None
    largest = max(np.prod([along.stop - along.start for along in box]) for box in boxes.values())
    stride = int(np.ceil((largest / SHIFTED_VOXELS) ** (1 / 3)))
    overlaps, sizes = np.zeros((2 * REACH + 1,) * 3), np.zeros((2 * REACH + 1, 1, 1))
    for index, box in boxes.items():
        theirs, ours, known = (mask[::stride, ::stride, ::stride] for mask in crop.masks(index, box))
        theirs = theirs & known
        overlaps += _overlaps(theirs, ours)
        sizes += np.count_nonzero(theirs) + _seen(ours, known)
    if overlaps.max() <= 0:
        return None
    dice = 2 * overlaps / np.maximum(sizes, 1)
    best = np.unravel_index(int(dice.argmax()), dice.shape)
    offset = [(int(index) - REACH) * stride * mm for index, mm in zip(best, crop.spacing_mm, strict=True)]
    return Shift(
        offset_mm=(offset[0], offset[1], offset[2]),
        dice=float(dice[REACH, REACH, REACH]),
        shifted_dice=float(dice[best]),
    )


def _overlaps(theirs: Mask, ours: Mask) -> NDArray[np.float64]:
    """Count the voxels that two masks share after each shift of the second, by Fourier transforms.

    Along each axis the shifts go from -8 to 8; the padding keeps what leaves on one side from coming back.
    """
    shape = [fft.next_fast_len(size + REACH, real=True) for size in theirs.shape]
    spectra = [fft.rfftn(mask.astype(np.float32), shape) for mask in (theirs, ours)]
    shared = fft.irfftn(spectra[0] * spectra[1].conj(), shape)
    shifts = [np.arange(-REACH, REACH + 1) % size for size in shape]
    return np.rint(shared[np.ix_(*shifts)]).astype(np.float64)


def _seen(ours: Mask, known: Mask) -> NDArray[np.float64]:
    """Count the voxels of a mask that lie on known slices after each shift along the slices, (17, 1, 1).

    Beyond the box the review is taken to go on as at its end.
    """
    counts = ours.sum(axis=(1, 2))
    around = np.pad(known[:, 0, 0], REACH, mode="edge")
    seen = [float(counts[around[start : start + len(counts)]].sum()) for start in range(2 * REACH + 1)]
    return np.asarray(seen)[:, None, None]
