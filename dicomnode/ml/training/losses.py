"""Losses of the recipes for corrections, and the voxel weights of Dafne's.

Shapes: logits (B, classes, S, R, K); labels and weights (B, S, R, K); known (B, classes, S, R, K).
``known`` tells for which classes a voxel's truth is certain. A voxel whose label is 0 may belong to
any class that is not known there: "not marked" is never taken for background.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

BORDER_BAND = 49.0
"""Variance, in voxels squared, of the border weight (Dafne: 49 for all models but one)."""
BORDER_GAIN = 10.0
_HISTOGRAM_BINS = 256


def marginal_cross_entropy(logits: Tensor, labels: Tensor, *, weights: Tensor, known: Tensor) -> Tensor:
    """Weighted cross-entropy with partial labels, averaged over the voxels that count.

    ``E = -sum_x w(x) log(sum_c y_c(x) p_c(x))`` where ``y_c`` is 1 for the label of the voxel and,
    where that is 0, for every class not known there. Voxels with weight 0 give no gradient.
    """
    possible = _possible(labels, known)
    hidden = logits.masked_fill(~possible, -torch.inf)
    surprise = torch.logsumexp(logits, dim=1) - torch.logsumexp(hidden, dim=1)
    return (weights * surprise).sum() / (weights > 0).sum().clamp_min(1)


def marginal_dice_cross_entropy(logits: Tensor, labels: Tensor, *, weights: Tensor, known: Tensor) -> Tensor:
    """Soft Dice over the foreground classes where they are known, plus :func:`marginal_cross_entropy`.

    Voxels count in the Dice with their weights, and the loss of a class counts with the mean of these: half
    the trust gives half the loss in both parts, in a batch of one case too. A class that is known nowhere in
    the batch adds nothing.
    """
    axes = (0, 2, 3, 4)
    reviewed = known[:, 1:] & (weights > 0)[:, None]
    counted = reviewed * weights[:, None]
    shares = torch.softmax(logits, dim=1)[:, 1:]
    truth = functional.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)[:, 1:]
    overlap = (shares * truth * counted).sum(axes)
    total = ((shares + truth) * counted).sum(axes)
    trust = counted.sum(axes) / reviewed.sum(axes).clamp_min(1)
    dice_loss = (trust * (1 - (2 * overlap + 1) / (total + 1))).mean()
    return dice_loss + marginal_cross_entropy(logits, labels, weights=weights, known=known)


def balance_weights(labels: Iterable[NDArray[np.uint8]], *, classes: int) -> NDArray[np.float64]:
    """Give ``av / freq_c`` for each class over all training slices.

    ``freq_c`` is the share of class ``c`` in the slices that contain it, ``av`` the mean of the
    ``freq_c`` (Dafne). A class in no slice gets 0.

    Parameters
    ----------
    labels
        Slices of class indices, of any shape: the reviewed voxels of each.
    """
    counts = np.zeros(classes)
    sizes = np.zeros(classes)
    for plane in labels:
        found = np.bincount(plane.ravel(), minlength=classes)[:classes]
        counts += found
        sizes += np.where(found > 0, plane.size, 0)
    frequencies = counts / np.maximum(sizes, 1)
    present = counts > 0
    average = frequencies[present].mean() if present.any() else 0.0
    return np.where(present, average / np.where(present, frequencies, 1.0), 0.0)


def border_weights(image: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give ``10 exp(-(d1 + d2)^2 / (2 * 49))`` where the image is brighter than Otsu's threshold.

    ``d1`` and ``d2`` are the distances in voxels to the nearest and second-nearest class other than
    the voxel's own, background included, at most ``3 * sqrt(49)``. Dafne measures along the axes of
    a slice; here the distance is Euclidean and three-dimensional, because the network is.

    Parameters
    ----------
    image, labels
        (S, R, K) on one grid.
    """
    limit = 3 * np.sqrt(BORDER_BAND)
    distances = np.full((max(2, int(labels.max()) + 1), *labels.shape), limit)
    for index in np.unique(labels):
        other = labels != index
        if other.any():
            # Inside its own class the distance is 0 and must not count: the limit takes its place.
            distance = np.minimum(ndimage.distance_transform_edt(other), limit)
            distances[index] = np.where(other, distance, limit)
    nearest = np.sort(distances, axis=0)[:2].sum(axis=0)
    weight = BORDER_GAIN * np.exp(-(nearest**2) / (2 * BORDER_BAND))
    return np.where(image > otsu_threshold(image), weight, 0.0).astype(np.float32)


def otsu_threshold(image: NDArray[np.float32]) -> float:
    """Find the grey level that separates dark from bright best (Otsu 1979), over 256 bins.

    Without contrast it is the largest grey level, so that nothing is bright.
    """
    counts, edges = np.histogram(image, bins=_HISTOGRAM_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    valid = (below > 0) & (above > 0)
    if not valid.any():
        return float(image.max())
    difference = mass / np.maximum(below, 1) - (mass[-1] - mass) / np.maximum(above, 1)
    return float(edges[1:][np.argmax(np.where(valid, below * above * difference**2, -1.0))])


def _possible(labels: Tensor, known: Tensor) -> Tensor:
    marked = functional.one_hot(labels.long(), known.shape[1]).movedim(-1, 1).bool()
    return marked | ((labels == 0)[:, None] & ~known)
