"""Empty frames that let OHIF open a BINARY segmentation of slices with an odd number of pixels."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.utils import pack_bits

from dicomnode.imaging import attributes
from dicomnode.imaging.seg_frames import source_images

_Frame = tuple[int, int]  # segment number, slice index


def pad_frames(ds: Dataset, numbers: NDArray[np.uint8], sources: Sequence[Dataset]) -> None:
    """Add empty frames until the packed pixels fill an even number of bytes by themselves.

    Pixel Data must have an even length (PS3.5 8.1.1), so that an odd number of bytes gets one more.
    Cornerstone adapters 5.x (OHIF 3.13) then refuse the object ("Unexpected 1-bit SEG PixelData length"),
    or take it for frames that each start on a byte, if that gives the same length. Where Rows x Columns is
    a multiple of 16, as usual, nothing is to be done. An empty frame of a segment that has others is
    allowed, and every reader takes it.

    Parameters
    ----------
    ds
        A BINARY segmentation as highdicom makes it; changed in place.
    numbers
        The segment numbers of this object, (slice, row, column).
    sources
        In slice order.
    """
    slice_of = {attributes.text(source, "SOPInstanceUID"): index for index, source in enumerate(sources)}
    found = {_frame_of(item, slice_of): item for item in ds.PerFrameFunctionalGroupsSequence}
    spare = _spare_frames(list(found), len(ds.SegmentSequence), len(sources))
    count = _frame_count(ds.Rows * ds.Columns, len(found), len(found) + len(spare))
    if count == len(found):
        return
    for number, index in spare[: count - len(found)]:
        template = next(item for (other, _), item in found.items() if other == number)
        found[number, index] = _moved(template, sources[index])
    order = sorted(found, key=lambda frame: (frame[0], -frame[1]))
    planes = sorted({index for _, index in order}, reverse=True)
    for number, index in order:
        content = found[number, index].FrameContentSequence[0]
        content.DimensionIndexValues = [number, planes.index(index) + 1]
    ds.PerFrameFunctionalGroupsSequence = [found[frame] for frame in order]
    ds.NumberOfFrames = len(order)
    stacked = np.stack([numbers[index] == number for number, index in order])
    ds.PixelData = pack_bits(stacked.astype(np.uint8).reshape(-1))


def _frame_count(pixels: int, present: int, possible: int) -> int:
    """Give the smallest number of frames with an even number of bytes that no aligned frames would fill."""
    for count in range(present, possible + 1):
        packed, aligned = (pixels * count + 7) // 8, count * ((pixels + 7) // 8)
        is_clear = pixels % 8 == 0 or count == 1 or packed != aligned
        if packed % 2 == 0 and is_clear:
            return count
    return present


def _spare_frames(present: Sequence[_Frame], segments: int, slices: int) -> list[_Frame]:
    """List the frames that are not there, first those on slices that other segments have."""
    planes = np.array(sorted({index for _, index in present}))
    absent = {(number, index) for number in range(1, segments + 1) for index in range(slices)} - set(present)
    return sorted(absent, key=lambda frame: (int(np.abs(planes - frame[1]).min()), *frame))


def _frame_of(item: Dataset, slice_of: dict[str, int]) -> _Frame:
    number = int(item.FrameContentSequence[0].DimensionIndexValues[0])
    (source,) = source_images(item)
    return number, slice_of[attributes.text(source, "ReferencedSOPInstanceUID")]


def _moved(template: Dataset, source: Dataset) -> Dataset:
    moved = deepcopy(template)
    moved.PlanePositionSequence[0].ImagePositionPatient = deepcopy(source.ImagePositionPatient)
    (reference,) = source_images(moved)
    reference.ReferencedSOPClassUID = attributes.text(source, "SOPClassUID")
    reference.ReferencedSOPInstanceUID = attributes.text(source, "SOPInstanceUID")
    return moved
