"""Corrected cases in the frame of a network: what a radiologist has seen counts, the rest does not."""

from collections.abc import Sequence
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
    """A case in the frame of the plan."""

    image: NDArray[np.float32]  # (S, R, K) normalised
    labels: NDArray[np.uint8]  # (S, R, K); 0 where the label marked there is not known
    known: NDArray[np.bool_]  # (classes, S, R, K)
    trust: NDArray[np.float32]  # (S, R, K): weight of the review; 0 is unknown
    centres: tuple[tuple[float, float, float], ...]  # one for each reviewed slice, plan's voxels


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One training sample, centred on a reviewed slice."""

    image: Tensor  # (S, R, K)
    labels: Tensor  # (S, R, K)
    weights: Tensor  # (S, R, K); 0 outside the image
    known: Tensor  # (classes, S, R, K)


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
    slice_trust = case.slice_weights[:, slices]  # (classes - 1, S, R, K)
    known = np.concatenate([np.ones((1, *labels.shape), bool), slice_trust > 0])
    marked = np.take_along_axis(known, labels[None].astype(np.intp), axis=0)[0]
    labels = np.where(marked, labels, 0).astype(np.uint8)
    return ReviewedVolume(
        image=framed.array,
        labels=labels,
        known=known,
        trust=_trust(labels, slice_trust),
        centres=_centres(case, framed),
    )


def cut(
    volume: ReviewedVolume, weights: NDArray[np.float32], centre: Sequence[float], shape: Triple
) -> Patch:
    """Cut a patch around a point, as far inside the image as it fits; padded where it does not."""
    starts = [
        min(max(round(middle - (wanted - 1) / 2), 0), max(size - wanted, 0))
        for middle, wanted, size in zip(centre, shape, volume.image.shape, strict=True)
    ]
    window = tuple(slice(start, start + wanted) for start, wanted in zip(starts, shape, strict=True))
    found = volume.image[window].shape
    lacking = [wanted - size for wanted, size in zip(shape, found, strict=True)]
    padding = [side for gap in reversed(lacking) for side in (gap // 2, gap - gap // 2)]
    return Patch(
        image=functional.pad(torch.from_numpy(volume.image[window]), padding),
        labels=functional.pad(torch.from_numpy(volume.labels[window].astype(np.int64)), padding),
        weights=functional.pad(torch.from_numpy(weights[window]), padding),
        known=functional.pad(torch.from_numpy(volume.known[(slice(None), *window)]), padding),
    )


def dafne_weights(volumes: Sequence[ReviewedVolume], *, classes: int) -> list[NDArray[np.float32]]:
    """Weigh every voxel for balance, borders and review: ``trust * (av / freq_c + border)`` (Dafne)."""
    planes = [
        labels[trust > 0]
        for volume in volumes
        for labels, trust in zip(volume.labels, volume.trust, strict=True)
    ]
    balance = losses.balance_weights(planes, classes=classes).astype(np.float32)
    return [
        volume.trust * (balance[volume.labels] + losses.border_weights(volume.image, volume.labels))
        for volume in volumes
    ]


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


def _framed_slice_index(shape: tuple[int, ...], framed: Framed) -> NDArray[np.intp]:
    """Say for each voxel of the framed image in which slice of the case it lies."""
    slices = np.broadcast_to(np.arange(shape[0])[:, None, None], shape)
    oriented = framed.change.apply(slices)[framed.box]
    picks = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.intp), old - 1)
        for new, old in zip(framed.array.shape, oriented.shape, strict=True)
    ]
    return oriented[np.ix_(*picks)]


def _trust(labels: NDArray[np.uint8], slice_trust: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the trust of the marked label; where none is marked, the least among the known labels."""
    least = np.where(slice_trust > 0, slice_trust, np.inf).min(axis=0)
    unmarked = np.where(np.isfinite(least), least, 0.0)
    with_background = np.concatenate([unmarked[None], slice_trust])
    trust: NDArray[np.float32] = np.take_along_axis(with_background, labels[None].astype(np.intp), axis=0)[0]
    return trust.astype(np.float32)


def _centres(case: TrainingCase, framed: Framed) -> tuple[tuple[float, float, float], ...]:
    reviewed = np.flatnonzero(case.slice_weights.max(axis=0) > 0)
    known = np.concatenate([np.zeros((1, case.slice_weights.shape[1]), bool), case.slice_weights > 0])
    slices = np.arange(len(case.labels))[:, None, None]
    marked = np.argwhere(known[case.labels, slices])
    middle = marked.mean(axis=0) if len(marked) else (np.asarray(case.labels.shape) - 1) / 2
    return tuple(framed.position_of((float(index), float(middle[1]), float(middle[2]))) for index in reviewed)
