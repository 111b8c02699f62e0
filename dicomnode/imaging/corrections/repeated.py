"""Whether a viewer saved one slice in the place of all, which nothing inside the file shows.

OHIF 3.13.2 shows what it has just saved, but with the voxels of the first frame in every slice that has a
frame. Who saves once more, without opening the object anew, sends that. For a long structure it resembles
our result: Dice 0.89 for the spinal cord of a T2-weighted MR series.
"""

from collections import Counter
from collections.abc import Mapping

from pydicom import Dataset

from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.reading.decoded import Decoded
from dicomnode.imaging.reading.seg_frames import is_dcmjs

LEAST_PLANES = 4
LEAST_SHARE = 0.5
"""Of 1288 labels of CT and MR along any axis, only lines of single voxels had more of their planes alike."""

DOUBT = (
    "most of its slices have the same outline, as OHIF 3.13 saves them when an object is saved twice without "
    "being opened anew"
)


def repeats_one_plane(ds: Dataset, *, decoded: Decoded, prediction: Mapping[str, BoolArray]) -> bool:
    """Answer whether dcmjs wrote an object whose labels have one outline in more than half of their planes.

    Labels on fewer than four planes say nothing. It is no sign where our prediction of them is so too.

    Parameters
    ----------
    prediction
        Ours of the same series, label -> mask (frame, row, column); empty where there is none.
    """
    if not is_dcmjs(ds):
        return False
    tall = {label: mask for label, mask in decoded.masks.items() if _planes(mask) >= LEAST_PLANES}
    if not tall or not all(_share_alike(mask) > LEAST_SHARE for mask in tall.values()):
        return False
    return not all(label in prediction and _share_alike(prediction[label]) > LEAST_SHARE for label in tall)


def _planes(mask: BoolArray) -> int:
    return int(mask.any(axis=(1, 2)).sum())


def _share_alike(mask: BoolArray) -> float:
    """Part of the planes with voxels that have the most frequent outline."""
    drawn = mask[mask.any(axis=(1, 2))]
    alike = Counter(plane.tobytes() for plane in drawn)
    return max(alike.values()) / len(drawn) if alike else 0.0
