"""Three corrections of one prediction, which every writer saves, and what the node makes of the objects."""

import re

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging.corrections import mirror
from dicomnode.imaging.corrections.mirror import Mirrored, MirrorVerdict
from dicomnode.imaging.images.series import SeriesVolume, to_volume
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.reading.decoded import Decoded
from tests.ct_builders import ct_series
from tests.imaging_builders import make_card, make_series, make_volume

LABELS = ("A first", "B second", "C third")
CARD = make_card(LABELS)
EDIT, EMPTIED, OVERLAP = "one label edited", "middle label emptied", "labels overlap"
CASES = (EDIT, EMPTIED, OVERLAP)
INFORMATION = frozenset({"labels_overlap", "fractional"})
"""Flags that tell of no repair."""

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
_UID = re.compile(r"\b[0-9]+(\.[0-9]+){2,}\b")


def mr_of_odd_size() -> SeriesVolume:
    """An axial MR whose planes of 11 x 9 pixels do not fill whole bytes."""
    values = np.random.default_rng(5).integers(0, 900, (7, 11, 9)).astype(np.uint16)
    return to_volume(make_series(make_volume(values)))


def ct_of_even_size() -> SeriesVolume:
    """An axial CT with planes of 16 x 12 pixels, 24 whole bytes each."""
    values = np.random.default_rng(6).integers(-1000, 900, (6, 16, 12)).astype(np.int16)
    return to_volume(ct_series(make_volume(values, spacing_mm=(5.0, 0.9, 0.8))))


def predicted(shape: tuple[int, int, int]) -> Labels:
    """What the node found: three labels in the lower half of the slices, so that a reversal shows."""
    slices, rows, columns = shape
    labels = np.zeros(shape, np.uint8)
    labels[1 : slices // 2, 1 : rows // 2, 2 : columns // 2] = 1
    labels[0 : slices // 2, rows // 2 + 1 : rows - 1, 1 : columns - 2] = 2
    labels[1 : slices // 2, 1 : rows // 2, columns // 2 + 1 : columns - 1] = 3
    labels[0, 0, 0] = 3  # a corner, where shifts and flips show
    return labels


def layers_of(case: str, shape: tuple[int, int, int]) -> list[Labels]:
    """Correct the prediction; labels that overlap lie in layers of their own, as viewers keep them."""
    labels = predicted(shape)
    slices, rows, columns = shape
    match case:
        case "one label edited":
            labels[1, rows // 2, 2 : columns // 2] = 1
            return [labels]
        case "middle label emptied":
            labels[labels == 2] = 0
            return [labels]
    upper = np.where(labels == 2, 2, 0).astype(np.uint8)
    upper[1 : slices // 2, rows // 2 - 1, 2 : columns // 2] = 2
    labels[labels == 2] = 0
    return [labels, upper]


def masks_of(layers: list[Labels]) -> dict[str, Mask]:
    """The voxels of every label that has some."""
    masks = {label: _has(layers, number) for number, label in enumerate(LABELS, 1)}
    return {label: mask for label, mask in masks.items() if mask.any()}


def is_exact(decoded: Decoded, truth: dict[str, Mask]) -> bool:
    """Answer whether the labels of an object are those that were drawn, voxel by voxel."""
    return decoded.masks.keys() == truth.keys() and all(
        np.array_equal(decoded.masks[label], mask) for label, mask in truth.items()
    )


def arbitrated(ds: Dataset, decoded: Decoded, *, unflip: bool = False) -> Mirrored:
    """Hold an object against the prediction."""
    prediction = masks_of([predicted(decoded.shape)])
    return mirror.arbitrate(ds, decoded=decoded, prediction=prediction, image=None, unflip=unflip)


def outcome(ds: Dataset, series: SeriesVolume, case: str) -> str:
    """Say what the node makes of an object, and hold every voxel against what was drawn.

    "read exactly", "repaired (flags)", "held: reason" or "refused: reason"; "MISREAD" where one would learn
    what nobody drew.
    """
    truth = masks_of(layers_of(case, series.image.spatial_shape))
    try:
        decoded = seg_read.decode(ds, stack=series.stack, card=CARD)
    except CorrectionError as error:
        return f"refused: {_UID.sub('…', str(error))}"
    is_suspect = arbitrated(ds, decoded).verdict is MirrorVerdict.SUSPECT
    if decoded.doubts and not is_suspect:
        return f"held: {_UID.sub('…', decoded.doubts[0])}"
    if not is_exact(mirror.turned(decoded) if is_suspect else decoded, truth):
        return "MISREAD"
    if is_suspect:
        return "held: slices in reverse order"
    repairs = sorted(set(decoded.flags) - INFORMATION)
    said = f"repaired ({', '.join(repairs)})" if repairs else "read exactly"
    if case == EMPTIED:
        said += "; listed as empty" if LABELS[1] in decoded.empty_labels else "; not listed: unknown"
    return said


def _has(layers: list[Labels], number: int) -> Mask:
    return np.logical_or.reduce([layer == number for layer in layers])
