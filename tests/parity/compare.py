"""Compare labels with a prediction of nnU-Net, and tell ties from mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import SimpleITK
from numpy.typing import NDArray

TIE = 1e-3  # logits closer than this are a matter of rounding: nnU-Net adds them up in float16

LabelArray = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far two label maps of one image are from each other.

    Attributes
    ----------
    dice
        By label, for each foreground label that is in either of the two maps.
    differing
        Number of voxels with another label.
    largest_margin
        By how much nnU-Net preferred its own label, in logits, at the differing voxel where it was surest;
        0 where no voxel differs, None where voxels differ and no probabilities were given.
    """

    dice: Mapping[int, float]
    differing: int
    largest_margin: float | None

    @property
    def is_tied(self) -> bool:
        """Whether every differing voxel is a tie, so far as the probabilities tell."""
        return self.largest_margin is not None and self.largest_margin <= TIE


def read_volume(path: Path) -> hd.Volume:
    """Read a NIfTI file in LPS; the array is SimpleITK's, so its axes are the stored ones backwards."""
    image = SimpleITK.ReadImage(str(path))
    columns = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3] = columns[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return hd.Volume(SimpleITK.GetArrayFromImage(image), affine, "PATIENT")


def read_labels(path: Path) -> LabelArray:
    """Read a label map; axes as in :func:`read_volume`."""
    labels: LabelArray = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), SimpleITK.sitkUInt8))
    return labels


def read_probabilities(path: Path) -> NDArray[np.float32]:
    """Read what nnU-Net saves beside a prediction; (channel, slice, row, column)."""
    with np.load(path) as archive:
        probabilities: NDArray[np.float32] = archive["probabilities"]
    return probabilities


def compare(
    predicted: LabelArray, expected: Path, *, regions_class_order: Sequence[int] | None = None
) -> Comparison:
    """Compare labels with nnU-Net's NIfTI file, and with the probabilities beside it where there are any.

    Parameters
    ----------
    predicted
        Axes as in :func:`read_volume`.
    expected
        Such as ``case.nii.gz``; its probabilities are in ``case.npz``.
    regions_class_order
        Of a model with regions: the label that each channel writes, in this order.
    """
    labels = read_labels(expected)
    assert predicted.shape == labels.shape, f"predicted {predicted.shape}, nnU-Net {labels.shape}"
    differs = predicted != labels
    differing = int(np.count_nonzero(differs))
    npz = expected.with_name(f"{expected.name.removesuffix('.nii.gz')}.npz")
    margin: float | None = None
    if differing == 0:
        margin = 0.0
    elif npz.is_file():
        probabilities = read_probabilities(npz)[:, differs].astype(np.float64)
        if regions_class_order is None:
            margins = class_margins(probabilities, wanted=predicted[differs], found=labels[differs])
        else:
            margins = region_margins(probabilities, wanted=predicted[differs], order=regions_class_order)
        margin = float(margins.max())
    return Comparison(dice=dice(predicted, labels), differing=differing, largest_margin=margin)


def dice(one: LabelArray, other: LabelArray) -> dict[int, float]:
    """Dice of each foreground label that is in either of two label maps."""
    present = np.union1d(np.unique(one), np.unique(other))
    return {
        int(label): float(
            2
            * np.count_nonzero((one == label) & (other == label))
            / (np.count_nonzero(one == label) + np.count_nonzero(other == label))
        )
        for label in present
        if label != 0
    }


def class_margins(
    probabilities: NDArray[np.float64], *, wanted: NDArray[np.integer], found: NDArray[np.integer]
) -> NDArray[np.float64]:
    """By how many logits the class ``wanted`` lost to the class ``found``, for each voxel.

    A softmax keeps differences of logits as differences of logarithms. Probabilities are (channel, voxel); a
    class without a channel lost by infinity.
    """
    count, voxels = len(probabilities), np.arange(probabilities.shape[1])
    with np.errstate(divide="ignore"):
        logarithms = np.log(probabilities)
    margins = logarithms[found, voxels] - logarithms[np.minimum(wanted, count - 1), voxels]
    margins[wanted >= count] = np.inf
    return margins


def region_margins(
    probabilities: NDArray[np.float64], *, wanted: NDArray[np.integer], order: Sequence[int]
) -> NDArray[np.float64]:
    """How far logits would have to move for each voxel to get the label ``wanted``.

    A voxel gets the label of the last region whose sigmoid is above one half, so that region must be on and
    all after it must be off. Probabilities are (region, voxel).
    """
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) - np.log1p(-probabilities)
    to_switch_on, to_switch_off = np.maximum(-logits, 0), np.maximum(logits, 0)
    margins = np.where(wanted == 0, to_switch_off.max(axis=0), np.inf)
    for index, label in enumerate(order):
        after = to_switch_off[index + 1 :].max(axis=0, initial=0)
        here = np.maximum(to_switch_on[index], after)
        margins = np.where(wanted == label, np.minimum(margins, here), margins)
    return margins
