"""Empty frames that let OHIF open a BINARY segmentation of slices with an odd number of pixels."""

from collections.abc import Sequence

import numpy as np

_Frame = tuple[int, int]  # segment number, index of the plane


def padding_frames(
    frames: Sequence[_Frame], *, pixels: int, segments: int, planes: int
) -> tuple[_Frame, ...]:
    """Choose empty frames to add until the packed pixels fill an even number of bytes by themselves.

    Pixel Data must have an even length (PS3.5 8.1.1), so that an odd number of bytes gets one more.
    Cornerstone adapters 5.x (OHIF 3.13) then refuse the object ("Unexpected 1-bit SEG PixelData length"),
    or take it for frames that each start on a byte, if that gives the same length. Where Rows x Columns is
    a multiple of 16, as usual, nothing is to be done. An empty frame of a segment that has others is
    allowed, and every reader takes it.

    Parameters
    ----------
    frames
        Those that have voxels.
    pixels
        Rows x Columns.
    segments, planes
        How many there are; segments count from 1, planes from 0.

    Returns
    -------
        None where nothing helps: every segment has a frame on every plane.
    """
    possible = segments * planes
    count = _frame_count(pixels, len(frames), possible)
    if count == len(frames):
        return ()
    return tuple(_spare_frames(frames, segments, planes)[: count - len(frames)])


def _frame_count(pixels: int, present: int, possible: int) -> int:
    """Give the smallest number of frames with an even number of bytes that no aligned frames would fill."""
    for count in range(present, possible + 1):
        packed, aligned = (pixels * count + 7) // 8, count * ((pixels + 7) // 8)
        is_clear = pixels % 8 == 0 or count == 1 or packed != aligned
        if packed % 2 == 0 and is_clear:
            return count
    return present


def _spare_frames(present: Sequence[_Frame], segments: int, planes: int) -> list[_Frame]:
    """List the frames that are not there, first those on planes that other segments have."""
    used = np.array(sorted({index for _, index in present}))
    absent = {(number, index) for number in range(1, segments + 1) for index in range(planes)} - set(present)
    return sorted(absent, key=lambda frame: (int(np.abs(used - frame[1]).min()), *frame))
