"""The pixels of a segmentation, frame by frame, with every length checked before memory is taken."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.codestreams import FrameFormat, can_decode, decode_frame
from dicomnode.imaging.seg_frames import is_dcmjs

MAXIMUM_PIXELS = 2**32
"""Rows x Columns x Frames of one object: 16 thousand frames of 512 x 512."""
MAXIMUM_FRAMES = 100_000

NATIVE = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian})
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
"""Compressions that change the values: labels would become others."""
_DECODING_ERRORS = (*attributes.UNREADABLE, EOFError, IndexError, RuntimeError, struct.error, zlib.error)
_FIRST_ITEM = b"\xfe\xff\x00\xe0"


def iter_frames(ds: Dataset) -> Iterator[NDArray[np.integer]]:
    """Give the frames of a segmentation one after the other, each (row, column), in stored order.

    Raises
    ------
    CorrectionError
        Lengths that contradict each other or exceed the limits; a compression that is not read.
    """
    name = segmentation_name(ds)
    rows, columns, frames = checked_size(ds)
    syntax = UID(attributes.text(getattr(ds, "file_meta", Dataset()), "TransferSyntaxUID"))
    if not syntax:
        raise CorrectionError(f"{name} has no transfer syntax")
    bits = attributes.integer(ds, "BitsAllocated") or 0
    if bits == 1:
        if syntax not in NATIVE:
            raise CorrectionError(
                f"{name}: 1-bit pixels in {syntax.name} are not read; send them uncompressed"
            )
        yield from _packed_frames(ds, rows, columns, frames)
        return
    if syntax in LOSSY:
        raise CorrectionError(f"{name}: labels in {syntax.name}, which does not keep values, are not read")
    if syntax in NATIVE:
        _check_length(ds, rows * columns * frames * (bits // 8))
    decoded = _encapsulated_frames(ds) if can_decode(syntax) else iter_pixels(ds, raw=True)
    yield from _checked_frames(decoded, ds, (rows, columns), frames)


def checked_size(ds: Dataset) -> tuple[int, int, int]:
    """Read Rows, Columns and Number of Frames and hold them against the limits, before allocating."""
    name = segmentation_name(ds)
    rows, columns = attributes.integer(ds, "Rows") or 0, attributes.integer(ds, "Columns") or 0
    frames = (attributes.integer(ds, "NumberOfFrames") or 0) if "NumberOfFrames" in ds else 1
    if min(rows, columns, frames) < 1:
        raise CorrectionError(f"{name} has {frames} frames of {rows} x {columns}")
    if frames > MAXIMUM_FRAMES or rows * columns * frames > MAXIMUM_PIXELS:
        raise CorrectionError(
            f"{name} claims {frames} frames of {rows} x {columns}; "
            f"at most {MAXIMUM_FRAMES} frames and {MAXIMUM_PIXELS} pixels are read"
        )
    bits, samples = attributes.integer(ds, "BitsAllocated"), attributes.integer(ds, "SamplesPerPixel")
    if bits not in {1, 8, 16} or samples not in {1, None}:
        raise CorrectionError(f"{name}: {bits} bits allocated, 1, 8 or 16 were expected")
    if not attributes.pixel_bytes(ds):
        raise CorrectionError(f"{name} has no pixel data")
    return rows, columns, frames


def has_aligned_frames(ds: Dataset) -> bool:
    """Answer whether each 1-bit frame starts on a byte of its own, which is against PS3.5 8.1.1.

    Cornerstone adapters 5.x write uncompressed frames so. Where Rows x Columns is a multiple of 8,
    the two forms are the same and the answer is False.

    Raises
    ------
    CorrectionError
        The length of the pixel data fits neither form, or both for such a writer.
    """
    rows, columns, frames = checked_size(ds)
    if attributes.integer(ds, "BitsAllocated") != 1 or rows * columns % 8 == 0 or frames == 1:
        return False
    packed, aligned = (rows * columns * frames + 7) // 8, frames * ((rows * columns + 7) // 8)
    found = len(attributes.pixel_bytes(ds))
    if not _fits(found, aligned):
        return False
    if _fits(found, packed) and is_dcmjs(ds):
        name = segmentation_name(ds)
        raise CorrectionError(
            f"{name}: whether its frames are packed or each starts on a byte cannot be told from "
            f"{found} bytes; save it as a label map"
        )
    return not _fits(found, packed)


def _packed_frames(ds: Dataset, rows: int, columns: int, frames: int) -> Iterator[NDArray[np.integer]]:
    pixels = rows * columns
    stride = -(-pixels // 8) * 8 if has_aligned_frames(ds) else pixels
    _check_length(ds, (stride * frames + 7) // 8)
    stored = np.frombuffer(attributes.pixel_bytes(ds), np.uint8)
    for index in range(frames):
        first = index * stride
        part = stored[first // 8 : (first + pixels + 7) // 8]
        bits = np.unpackbits(part, bitorder="little")[first % 8 : first % 8 + pixels]
        yield bits.reshape(rows, columns)


def _encapsulated_frames(ds: Dataset) -> Iterator[NDArray[np.integer]]:
    rows, columns, frames = checked_size(ds)
    bits = attributes.integer(ds, "BitsAllocated") or 0
    form = FrameFormat(rows=rows, columns=columns, bytes_per_pixel=bits // 8)
    syntax = attributes.text(ds.file_meta, "TransferSyntaxUID")
    for code in generate_frames(attributes.pixel_bytes(ds), number_of_frames=frames):
        yield decode_frame(code, syntax, form)[0]


def _checked_frames(
    decoded: Iterator[NDArray[np.integer]], ds: Dataset, shape: tuple[int, int], frames: int
) -> Iterator[NDArray[np.integer]]:
    name = segmentation_name(ds)
    count = 0
    try:
        for frame in decoded:
            count += 1
            if frame.shape != shape:
                raise CorrectionError(f"{name}: a frame decodes to {frame.shape}, {shape} was expected")
            yield frame
    except _DECODING_ERRORS as error:
        raise CorrectionError(f"{name}: frame {count + 1} cannot be decoded: {error}") from error
    if count != frames:
        raise CorrectionError(f"{name} holds {count} frames and claims {frames}")


def _check_length(ds: Dataset, expected: int) -> None:
    found = len(attributes.pixel_bytes(ds))
    if _fits(found, expected):
        return
    name = segmentation_name(ds)
    if attributes.pixel_bytes(ds)[:4] == _FIRST_ITEM:
        raise CorrectionError(f"{name}: compressed pixels under an uncompressed transfer syntax")
    raise CorrectionError(f"{name}: {found} bytes of pixel data, {expected} were expected")


def _fits(found: int, expected: int) -> bool:
    return found in {expected, expected + expected % 2}
