"""Pixel Data of a segmentation as it lies in the object: one uncompressed piece, or a code for each frame.

What the transfer syntax says is not always what is there: dcmjs 0.46 to 0.49.1 wrapped uncompressed pixels
in items. They are unwrapped where the lengths prove it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicomnode.imaging import attributes
from dicomnode.imaging.images.codestreams import can_decode
from dicomnode.imaging.reading.encapsulation import ITEM, Code, frame_codes, joined, read_items
from dicomnode.imaging.reading.seg_codes import Shape

NATIVE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian}
)
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
"""Compressions that change the values: labels would become others."""
MAYBE_LOSSY = frozenset({JPEG2000, HTJ2K})
"""Compressions that may have changed the values without a trace in the codestream."""

_RLE_HEADER = struct.Struct("<16L")
_SIGNATURES: dict[str, bytes] = {
    **dict.fromkeys([JPEGLossless, JPEGLosslessSV1, JPEGLSLossless], b"\xff\xd8\xff"),
    **dict.fromkeys(
        [JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K], b"\xff\x4f\xff\x51"
    ),
}
"""What each frame begins with, where something marks it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Content:
    """Pixel Data of one object, not yet decoded."""

    native: bytes = b""  # uncompressed frames in one piece, little endian; b"" where there are codes
    codes: Sequence[Code] = ()
    transfer_syntax_uid: str = ""  # of the codes
    flags: frozenset[str] = frozenset()


def read_content(ds: Dataset, shape: Shape, frames: int) -> Content:
    """Take Pixel Data apart without decoding it.

    Raises
    ------
    ValueError, struct.error
        A transfer syntax that is not read, or lengths that contradict the shape.
    """
    syntax = attributes.text(getattr(ds, "file_meta", Dataset()), "TransferSyntaxUID")
    if syntax in LOSSY:
        raise ValueError(f"labels in {UID(syntax).name}, which does not keep values, are not read")
    value = attributes.pixel_bytes(ds)
    if syntax in NATIVE:
        if value[:4] == ITEM and not (_has_known_length(ds) and fits_native(len(value), shape, frames)):
            try:
                return _unwrapped(value, shape, frames)
            except ValueError as error:
                raise ValueError(
                    f"compressed pixels under an uncompressed transfer syntax: {error}"
                ) from error
        return Content(native=_little_endian(ds, value) if syntax == ExplicitVRBigEndian else value)
    if not can_decode(syntax):
        raise ValueError(f"pixels in transfer syntax {UID(syntax).name or '(missing)'} are not read")
    return _encapsulated(ds, syntax, shape, frames)


def fits_native(found: int, shape: Shape, frames: int) -> bool:
    """Answer whether uncompressed pixel data may be so long, 1-bit frames packed or each from a byte on."""
    return any(found in {size, size + size % 2} for size in native_sizes(shape, frames))


def native_sizes(shape: Shape, frames: int) -> tuple[int, int]:
    """Give the length of uncompressed frames without gaps, and of frames that each start on a byte."""
    return (shape.pixels * shape.bits * frames + 7) // 8, shape.size_bytes * frames


def _has_known_length(ds: Dataset) -> bool:
    found = attributes.element(ds, "PixelData")
    return found is not None and not found.is_undefined_length


def _little_endian(ds: Dataset, value: bytes) -> bytes:
    """Swap the bytes of words: pixels of any size that are sent as OW (PS3.5 A.3)."""
    found = attributes.element(ds, "PixelData")
    if found is None or found.VR != "OW" or len(value) % 2:
        return value
    return np.frombuffer(value, ">u2").astype("<u2").tobytes()


def _encapsulated(ds: Dataset, syntax: str, shape: Shape, frames: int) -> Content:
    table = attributes.element(ds, "ExtendedOffsetTable")
    codes = frame_codes(
        read_items(attributes.pixel_bytes(ds), frames=frames),
        frames=frames,
        extended_offsets=table.value if table is not None and isinstance(table.value, bytes) else b"",
        signature=_SIGNATURES.get(syntax, b""),
    )
    is_one_bit_rle = shape.bits == 1 and syntax == RLELossless
    flags = {"one_bit_rle": is_one_bit_rle, "maybe_lossy": syntax in MAYBE_LOSSY}
    return Content(
        codes=codes,
        transfer_syntax_uid=syntax,
        flags=frozenset(flag for flag, is_set in flags.items() if is_set),
    )


def _unwrapped(value: bytes, shape: Shape, frames: int) -> Content:
    """Take pixels out of items where the transfer syntax has none: all in one piece, or frame by frame.

    Raises
    ------
    ValueError
        The lengths fit neither uncompressed pixels nor run lengths, or both.
    """
    flags = frozenset({"encapsulated_under_native"})
    items = read_items(value, frames=frames)
    is_run_lengths = _begins_as_rle(items.fragments[0], shape)
    whole = joined(items.fragments)
    if fits_native(len(whole), shape, frames):
        if is_run_lengths:
            raise ValueError("whether the items hold run lengths or uncompressed pixels cannot be told")
        return Content(native=whole, flags=flags)
    return Content(
        codes=frame_codes(items, frames=frames),
        transfer_syntax_uid=RLELossless if is_run_lengths else ExplicitVRLittleEndian,
        flags=flags | ({"one_bit_rle"} if is_run_lengths and shape.bits == 1 else frozenset()),
    )


def _begins_as_rle(fragment: memoryview, shape: Shape) -> bool:
    """Answer whether a fragment begins as a frame of run lengths does (PS3.5 G.5)."""
    if len(fragment) < _RLE_HEADER.size:
        return False
    count, first, *others = _RLE_HEADER.unpack_from(fragment)
    is_header = count == shape.bytes_per_pixel and first == _RLE_HEADER.size
    return is_header and not any(others[count - 1 :])
