"""The pixels of a segmentation as bytes, and back: bits of BINARY frames, run lengths of label maps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dicomnode.imaging.identity import BoolArray

Frame = tuple[int, int]  # value in the label map, index of the plane

_AT_ONCE = 8  # so many frames fill a whole number of bytes, whatever their size
_LONGEST_RUN = 128
_HEADER_BYTES = 64


def pack_frames(labels: NDArray[np.uint8], frames: Sequence[Frame]) -> bytes:
    """Pack the masks of frames without a gap, the first pixel in the lowest bit (PS3.5 8.1.1).

    Parameters
    ----------
    labels
        Label map (plane, row, column).
    frames
        Which value on which plane, in the order in which they are stored.

    Returns
    -------
        An even number of bytes.
    """
    masks = np.empty((min(_AT_ONCE, len(frames)), *labels.shape[1:]), np.bool_)
    bits = len(frames) * masks[0].size
    packed = np.zeros((bits + 15) // 16 * 2, np.uint8)
    end = 0
    for first in range(0, len(frames), _AT_ONCE):
        chunk = frames[first : first + _AT_ONCE]
        for mask, (value, plane) in zip(masks, chunk, strict=False):
            np.equal(labels[plane], value, out=mask)
        start, end = end, end + (len(chunk) * masks[0].size + 7) // 8
        packed[start:end] = np.packbits(masks[: len(chunk)], bitorder="little")
    return packed.tobytes()


def unpack_frame(packed: NDArray[np.uint8], index: int, *, shape: tuple[int, int]) -> BoolArray:
    """Give one of the masks (row, column) that `pack_frames` packed."""
    pixels = shape[0] * shape[1]
    first = index * pixels
    part = packed[first // 8 : (first + pixels + 7) // 8]
    bits = np.unpackbits(part, bitorder="little")[first % 8 : first % 8 + pixels]
    return bits.view(np.bool_).reshape(shape)


def encode_rle(frame: NDArray[np.uint8]) -> bytes:
    """Compress one frame (row, column) with the run lengths of PS3.5 G.3, row by row.

    Runs of 2 to 128 equal bytes become a replicate run, single bytes a literal run of one. That is
    two bytes for each run, which is short where neighbours are mostly alike, as in a label map.
    """
    flat = frame.reshape(-1)
    is_start = np.empty(flat.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[:: frame.shape[1]] = True  # each row is encoded separately (PS3.5 G.3.1)
    starts = np.flatnonzero(is_start)
    runs = np.diff(starts, append=flat.size)
    pieces = (runs + _LONGEST_RUN - 1) // _LONGEST_RUN
    lengths = np.full(int(pieces.sum()), _LONGEST_RUN)
    lengths[np.cumsum(pieces) - 1] = runs - (pieces - 1) * _LONGEST_RUN
    pairs = np.empty((lengths.size, 2), np.uint8)
    pairs[:, 0] = np.where(lengths == 1, 0, 257 - lengths)
    pairs[:, 1] = np.repeat(flat[starts], pieces)
    header = np.zeros(_HEADER_BYTES // 4, "<u4")
    header[:2] = 1, _HEADER_BYTES  # one segment, and where it starts (PS3.5 G.5)
    return header.tobytes() + pairs.tobytes()


def decode_rle(stored: bytes, *, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Give the frame (row, column) that `encode_rle` compressed.

    Raises
    ------
    ValueError
        The bytes are not of that form: a run crosses the end of a row, or is literal and longer than one.
    """
    header = np.frombuffer(stored, "<u4", _HEADER_BYTES // 4)
    pairs = np.frombuffer(stored, np.uint8, offset=_HEADER_BYTES).reshape(-1, 2)
    control = pairs[:, 0].astype(np.intp)
    lengths = np.where(control == 0, 1, 257 - control)
    ends = np.cumsum(lengths)
    is_whole = ends.size > 0 and ends[-1] == shape[0] * shape[1]
    rows_crossed = (ends - 1) // shape[1] != (ends - lengths) // shape[1]
    is_ours = header.tolist() == [1, _HEADER_BYTES] + 14 * [0] and not np.isin(control, range(1, 129)).any()
    if not is_whole or not is_ours or rows_crossed.any():
        raise ValueError(f"run lengths do not fill {shape[0]} rows of {shape[1]} pixels")
    return np.repeat(pairs[:, 1], lengths).reshape(shape)
