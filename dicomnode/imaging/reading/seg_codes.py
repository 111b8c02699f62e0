"""One frame of a segmentation as it is stored, to its values: bits, bytes or words, compressed or not.

A frame of 1-bit pixels is found in two forms in compressed objects: eight pixels to a byte, the first in the
lowest bit, as where nothing is compressed, or one byte for each pixel. PS3.5 has no rule for
run lengths of bits; Cornerstone writes the first form, pydicom the second. Their lengths tell them apart.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from dicomnode.imaging.images.codestreams import FrameFormat, Stored, check_lossless, decode_frame
from dicomnode.imaging.reading.rle import decode_segments

ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the data set says of each frame."""

    rows: int
    columns: int
    bits: int  # allocated for a pixel: 1, 8 or 16

    @property
    def pixels(self) -> int:
        """How many pixels a frame has."""
        return self.rows * self.columns

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of a decoded pixel; 1 for 1 bit."""
        return max(1, self.bits // 8)

    @property
    def size_bytes(self) -> int:
        """Length of a frame that starts on a byte of its own, eight 1-bit pixels to a byte."""
        return (self.pixels * self.bits + 7) // 8


def decode_code(code: bytes, transfer_syntax_uid: str, shape: Shape) -> Stored:
    """Decode one frame; no more than the frame and a few bytes is allocated for what it decodes to.

    Returns
    -------
        Values (row, column), unsigned.

    Raises
    ------
    ValueError, RuntimeError, zlib.error
        It is cut, damaged, of another length or size, or compressed with loss.
    """
    if transfer_syntax_uid == RLELossless:
        return _from_run_lengths(code, shape)
    if transfer_syntax_uid == DEFLATED_FRAMES:
        return from_bytes(
            np.frombuffer(_inflated(code, most=shape.pixels * shape.bytes_per_pixel + 1), np.uint8), shape
        )
    if transfer_syntax_uid in {ENCAPSULATED_UNCOMPRESSED, ExplicitVRLittleEndian}:
        return from_bytes(np.frombuffer(code, np.uint8), shape)
    return _from_codestream(code, transfer_syntax_uid, shape)


def from_bytes(stored: Bytes, shape: Shape) -> Stored:
    """Read one uncompressed frame, little endian, with at most one byte of padding.

    Raises
    ------
    ValueError
        It has another length, or it can be read in two ways that differ.
    """
    if shape.bits == 1:
        return _bits(stored, shape.pixels).reshape(shape.rows, shape.columns)
    if not _fits(stored, shape.size_bytes):
        raise ValueError(f"{stored.size} bytes, {shape.size_bytes} were expected")
    values = stored[: shape.size_bytes].view(f"<u{shape.bytes_per_pixel}")
    return values.reshape(shape.rows, shape.columns)


def _from_run_lengths(code: bytes, shape: Shape) -> Stored:
    planes = decode_segments(code, count=shape.bytes_per_pixel, most=shape.pixels + 1)
    if len(planes) == 1:
        return from_bytes(planes[0], shape)
    high, low = (from_bytes(plane, Shape(rows=shape.rows, columns=shape.columns, bits=8)) for plane in planes)
    words: Stored = high.astype(np.uint16) << 8 | low
    return words


def _from_codestream(code: bytes, transfer_syntax_uid: str, shape: Shape) -> Stored:
    form = FrameFormat(rows=shape.rows, columns=shape.columns, bytes_per_pixel=shape.bytes_per_pixel)
    check_lossless(code)
    values, _ = decode_frame(code, transfer_syntax_uid, form)
    if values.shape != (shape.rows, shape.columns):
        raise ValueError(f"it decodes to {values.shape}, {(shape.rows, shape.columns)} was expected")
    if values.min() < 0:
        raise ValueError("it holds negative values")
    if shape.bits > 1:
        return values.astype(f"u{values.dtype.itemsize}", copy=False)
    bits = two_valued(values)
    if bits is None:
        raise ValueError(f"1-bit pixels decode to {values.max()}")
    return bits


def _inflated(code: bytes, *, most: int) -> bytes:
    """Inflate a frame (PS3.5 A.4.13), whose stream must end within `most` bytes."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(code, most)
    if not stream.eof:
        raise ValueError(f"the deflated frame is cut, or holds more than {most} bytes")
    if len(stream.unused_data) > 1:
        raise ValueError(f"{len(stream.unused_data)} bytes stand after the deflated frame")
    return inflated


def _bits(stored: Bytes, pixels: int) -> Bytes:
    """Read 1-bit pixels in the form that their length and their values allow.

    Both lengths fit for one or two pixels only, and bits after the last pixel, or bytes that are neither 0
    nor 1 (or 255), speak against a form. What is left must agree.
    """
    found = [read for read in (_packed(stored, pixels), _one_per_byte(stored, pixels)) if read is not None]
    if not found:
        raise ValueError(
            f"{stored.size} bytes hold {pixels} pixels neither as {(pixels + 7) // 8} bytes of bits "
            f"nor as {pixels} bytes of 0 and 1"
        )
    if any(not np.array_equal(read, found[0]) for read in found):
        raise ValueError(f"whether {stored.size} bytes hold {pixels} pixels as bits or as bytes is not told")
    return found[0]


def _packed(stored: Bytes, pixels: int) -> Bytes | None:
    size = (pixels + 7) // 8
    if not _fits(stored, size):
        return None
    bits = np.unpackbits(stored[:size], bitorder="little")
    return None if bits[pixels:].any() else bits[:pixels]


def _one_per_byte(stored: Bytes, pixels: int) -> Bytes | None:
    if not _fits(stored, pixels):
        return None
    return two_valued(stored[:pixels])


def two_valued(values: Stored) -> Bytes | None:
    """Give 0 and 1 for values that are all 0 or 1, or all 0 or 255; None for others."""
    highest = int(values.max(initial=0))
    if highest not in {0, 1, 255} or (highest == 255 and not np.isin(values, (0, 255)).all()):
        return None
    bits: Bytes = (values != 0).astype(np.uint8)
    return bits


def _fits(stored: Bytes, size: int) -> bool:
    return stored.size == size or (stored.size == size + 1 and size % 2 == 1 and not stored[-1])
