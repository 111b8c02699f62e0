"""Corrected cases in the frame of a network: what a radiologist has seen counts, the rest does not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from highdicom import Volume
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dicomnode.errors import CorrectionError, GeometryError
from dicomnode.ml.frame import framing
from dicomnode.ml.frame.framing import Framed
from dicomnode.ml.model.architecture import Triple
from dicomnode.ml.model.plan import Plan
from dicomnode.ml.training import losses


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCase:
    """A corrected image with the truth as far as a person has reviewed it."""

    image: NDArray[np.float32]  # (S, R, K), modality units
    affine: NDArray[np.float64]  # (4, 4), (slice, row, column) index to LPS millimetres
    labels: NDArray[np.uint8]  # (S, R, K) class indices
    slice_weights: NDArray[np.float32]  # (classes - 1, S): trust in a label on a slice; 0 is unknown
    patient_key: str  # pseudonym, for counting patients


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedVolume:
    """A case in the frame of the plan; the arrays may lie on disk."""

    image: NDArray[np.float32]  # (S, R, K) normalised
    labels: NDArray[np.uint8]  # (S, R, K); 0 where the label marked there is not known
    slices: NDArray[np.int32]  # (S, R, K): slice of the case that each voxel comes from
    slice_weights: NDArray[np.float32]  # (classes - 1, slices of the case): trust in a label; 0 is unknown
    centres: tuple[tuple[float, float, float], ...]  # one for each reviewed slice, plan's voxels
    border: NDArray[np.float32] | None = None  # (S, R, K), see :func:`losses.border_weights`


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One training sample, centred on a reviewed slice."""

    image: Tensor  # (S, R, K)
    labels: Tensor  # (S, R, K)
    weights: Tensor  # (S, R, K): trust; 0 is unknown, or outside the image
    known: Tensor  # (classes, S, R, K)
    border: Tensor  # (S, R, K)


def bring(case: TrainingCase, plan: Plan) -> ReviewedVolume:
    """Bring a corrected case into the frame of a network.

    Raises
    ------
    CorrectionError
        Arrays of different shapes, an unknown class, or weights that are not finite and >= 0.
    GeometryError, UnsupportedSeriesError
        The image cannot be used; see :func:`dicomnode.ml.frame.framing.frame`.
    """
    _check(case, classes=plan.classes)
    framed = framing.frame(_volume(case), plan, plan.final)
    labels = framing.frame_labels(case.labels, framed)
    slices = _framed_slice_index(case.labels.shape, framed)
    certain = np.concatenate([np.ones((1, case.slice_weights.shape[1]), bool), case.slice_weights > 0])
    return ReviewedVolume(
        image=framed.array,
        labels=np.where(certain[labels, slices], labels, 0).astype(np.uint8),
        slices=slices,
        slice_weights=case.slice_weights,
        centres=_centres(case, framed),
    )


def trust(
    labels: NDArray[np.uint8], slices: NDArray[np.int32], slice_weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Give each voxel the trust of its label; where none is marked, the least among the known labels.

    Parameters
    ----------
    labels, slices
        Of one shape.
    slice_weights
        (classes - 1, slices of the case).
    """
    least = np.where(slice_weights > 0, slice_weights, np.inf).min(axis=0)
    unmarked = np.where(np.isfinite(least), least, 0.0)
    found: NDArray[np.float32] = np.concatenate([unmarked[None], slice_weights])[labels, slices]
    return found.astype(np.float32)


def cut(volume: ReviewedVolume, centre: Sequence[float], shape: Triple) -> Patch:
    """Cut a patch around a point, as far inside the image as it fits; padded where it does not."""
    starts = [
        min(max(round(middle - (wanted - 1) / 2), 0), max(size - wanted, 0))
        for middle, wanted, size in zip(centre, shape, volume.image.shape, strict=True)
    ]
    window = tuple(slice(start, start + wanted) for start, wanted in zip(starts, shape, strict=True))
    labels, slices = np.array(volume.labels[window]), np.array(volume.slices[window])
    known = np.concatenate([np.ones((1, *labels.shape), bool), (volume.slice_weights > 0)[:, slices]])
    border = np.zeros(labels.shape, np.float32) if volume.border is None else np.array(volume.border[window])
    lacking = [wanted - size for wanted, size in zip(shape, labels.shape, strict=True)]
    padding = [side for gap in reversed(lacking) for side in (gap // 2, gap - gap // 2)]

    def padded(array: NDArray[np.generic]) -> Tensor:
        return functional.pad(torch.from_numpy(array), padding)

    return Patch(
        image=padded(np.array(volume.image[window])),
        labels=padded(labels.astype(np.int64)),
        weights=padded(trust(labels, slices, volume.slice_weights)),
        known=padded(known),
        border=padded(border),
    )


def balance(volumes: Iterable[ReviewedVolume], *, classes: int) -> NDArray[np.float32]:
    """Weigh classes by how rare they are on the reviewed slices; see :func:`losses.balance_weights`."""
    planes = (
        labels[trust(labels, slices, volume.slice_weights) > 0]
        for volume in volumes
        for labels, slices in zip(volume.labels, volume.slices, strict=True)
    )
    return losses.balance_weights(planes, classes=classes).astype(np.float32)


def _check(case: TrainingCase, *, classes: int) -> None:
    if case.image.shape != case.labels.shape or case.image.ndim != 3:
        raise CorrectionError(
            f"Image {case.image.shape} and labels {case.labels.shape} have different grids."
        )
    expected = (classes - 1, case.image.shape[0])
    if case.slice_weights.shape != expected:
        raise CorrectionError(
            f"Slice weights have the shape {case.slice_weights.shape}; {expected} is expected."
        )
    if not np.isfinite(case.slice_weights).all() or (case.slice_weights < 0).any():
        raise CorrectionError("Slice weights must be finite and not negative.")
    if case.labels.size and int(case.labels.max()) >= classes:
        raise CorrectionError(
            f"The labels hold class {int(case.labels.max())}; the model has {classes} classes."
        )


def _volume(case: TrainingCase) -> Volume:
    try:
        return Volume(case.image, case.affine, coordinate_system="PATIENT")
    except ValueError as error:
        raise GeometryError(f"The affine of a training case cannot be used: {error}") from error


def _framed_slice_index(shape: tuple[int, ...], framed: Framed) -> NDArray[np.int32]:
    """Say for each voxel of the framed image in which slice of the case it lies."""
    slices = np.broadcast_to(np.arange(shape[0])[:, None, None], shape)
    oriented = framed.change.apply(slices)[framed.box]
    picks = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.intp), old - 1)
        for new, old in zip(framed.array.shape, oriented.shape, strict=True)
    ]
    return oriented[np.ix_(*picks)].astype(np.int32)


def _centres(case: TrainingCase, framed: Framed) -> tuple[tuple[float, float, float], ...]:
    reviewed = np.flatnonzero(case.slice_weights.max(axis=0) > 0)
    known = np.concatenate([np.zeros((1, case.slice_weights.shape[1]), bool), case.slice_weights > 0])
    slices = np.arange(len(case.labels))[:, None, None]
    marked = np.argwhere(known[case.labels, slices])
    middle = marked.mean(axis=0) if len(marked) else (np.asarray(case.labels.shape) - 1) / 2
    return tuple(framed.position_of((float(index), float(middle[1]), float(middle[2]))) for index in reviewed)
