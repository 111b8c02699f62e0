"""RLE Lossless (PS3.5 Annex G): the byte segments of one frame, with every length checked."""

import struct

import imagecodecs
import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 64
_MOST_SEGMENTS = 15


def decode_segments(code: bytes, *, count: int, most: int) -> list[NDArray[np.uint8]]:
    """Decode the segments of a frame, the most significant byte of the pixels first.

    Segment by segment: imagecodecs' own decoder of whole frames ends the process on one that is cut.

    Parameters
    ----------
    count
        How many segments there must be.
    most
        Bytes that a segment may decode to; no more is allocated.

    Raises
    ------
    ValueError, RuntimeError
        The header contradicts this, or a segment is cut or would decode to more.
    """
    offsets = _offsets(code, count)
    return [
        np.frombuffer(_unpacked(code[start:end], most), np.uint8)
        for start, end in zip(offsets, (*offsets[1:], len(code)), strict=True)
    ]


def _unpacked(segment: bytes, most: int) -> bytes:
    """Decode run lengths with at most one byte of padding, which dcmjs up to 0.48 sets to 1 instead of 0.

    A last byte that begins a run and has nothing to repeat is padding; a segment that is cut elsewhere does
    not decode without it either, or decodes to too little.
    """
    try:
        return bytes(imagecodecs.packbits_decode(segment, out=most))
    except RuntimeError:
        if len(segment) % 2:
            raise
        return bytes(imagecodecs.packbits_decode(segment[:-1], out=most))


def _offsets(code: bytes, count: int) -> tuple[int, ...]:
    if len(code) < _HEADER_BYTES:
        raise ValueError(f"an RLE frame of {len(code)} bytes is cut in its header")
    found, *offsets = struct.unpack_from("<16L", code)
    if found != count or count > _MOST_SEGMENTS:
        raise ValueError(f"{found} RLE segments, {count} were expected")
    used = tuple(offsets[:count])
    if list(used) != sorted(used) or used[0] < _HEADER_BYTES or used[-1] > len(code):
        raise ValueError(f"RLE segments at {used} in a frame of {len(code)} bytes")
    return used
