"""The pixels of a segmentation, frame by frame, with every length checked before memory is taken."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.images.codestreams import Stored
from dicomnode.imaging.reading.encapsulation import joined
from dicomnode.imaging.reading.seg_codes import Shape, decode_code, from_bytes, two_valued
from dicomnode.imaging.reading.seg_content import Content, native_sizes, read_content
from dicomnode.imaging.reading.seg_frames import is_dcmjs
from dicomnode.imaging.reading.seg_labels import is_label_map

MAXIMUM_PIXELS = 2**34
"""Rows x Columns x Frames of one object, which are read one by one: 104 labels on 600 slices of 512 x 512."""
MAXIMUM_FRAMES = 100_000
MAXIMUM_FRAME_PIXELS = 2**25
"""Rows x Columns, more than of the largest mammograms: a frame of a few bytes may unpack to so many."""

_DECODING_ERRORS = (*attributes.UNREADABLE, EOFError, IndexError, RuntimeError, struct.error, zlib.error)


def iter_frames(ds: Dataset) -> Iterator[Stored]:
    """Give the frames of a segmentation one after the other, each (row, column), in stored order.

    Returns
    -------
        Unsigned values: 0 and 1 of BINARY, segment numbers of LABELMAP, fractions of FRACTIONAL as stored.

    Raises
    ------
    CorrectionError
        Lengths that contradict each other or exceed the limits; a compression that is not read, is damaged
        or would yield more than a frame; values that the header excludes.
    """
    pixels = _read(ds)
    for index in range(pixels.frames):
        yield pixels.frame(index)


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
    if rows * columns > MAXIMUM_FRAME_PIXELS:
        raise CorrectionError(
            f"{name} claims frames of {rows} x {columns}, at most {MAXIMUM_FRAME_PIXELS} pixels are read"
        )
    bits, samples = attributes.integer(ds, "BitsAllocated"), attributes.integer(ds, "SamplesPerPixel")
    if bits not in {1, 8, 16}:
        raise CorrectionError(f"{name}: {bits} bits allocated, 1, 8 or 16 were expected")
    if samples not in {1, None}:
        raise CorrectionError(f"{name}: {samples} samples per pixel, 1 was expected")
    if not attributes.pixel_bytes(ds):
        raise CorrectionError(f"{name} has no pixel data")
    return rows, columns, frames


def has_aligned_frames(ds: Dataset) -> bool:
    """Answer whether each 1-bit frame starts on a byte of its own, which is against PS3.5 8.1.1.

    Cornerstone adapters 5.x write uncompressed frames so. Where Rows x Columns is a multiple of 8,
    the two forms are the same and the answer is False; for compressed frames too.

    Raises
    ------
    CorrectionError
        The length of the pixel data fits neither form, or both for such a writer.
    """
    pixels = _read(ds)
    return pixels.stride != pixels.shape.pixels


def pixel_flags(ds: Dataset) -> frozenset[str]:
    """Say what is unusual in how the pixels are stored.

    Returns
    -------
        `frames_byte_aligned`, see `has_aligned_frames`; `encapsulated_under_native`, items where the
        transfer syntax has none, unwrapped; `one_bit_rle`, run lengths of 1-bit pixels, for which there is
        no standard. Reasons to look before anything is learned: `maybe_lossy`, a compression that may have
        changed labels; `no_maximum_fractional_value`, see `fraction_threshold`; `fractions_below_half`, no
        pixel of the whole object reaches the threshold though some are not 0. `fractions_of_one`: dcmjs put 1
        for the maximum.

    Raises
    ------
    CorrectionError
        As `iter_frames`.
    """
    flags = set(_read(ds).content.flags)
    if has_aligned_frames(ds):
        flags.add("frames_byte_aligned")
    if _kind(ds) == "FRACTIONAL":
        if _maximum_fraction(ds) is None:
            flags.add("no_maximum_fractional_value")
        highest, threshold = _highest_found(ds), fraction_threshold(ds)
        if highest == 1 and threshold < 1 < (_maximum_fraction(ds) or 1):
            flags.add("fractions_of_one")
        elif 0 < highest < threshold:
            flags.add("fractions_below_half")
    return frozenset(flags)


def fraction_threshold(ds: Dataset) -> float:
    """From which stored value on a pixel of a FRACTIONAL segmentation belongs to its segment.

    Half of Maximum Fractional Value (PS3.3 C.8.20.2), for probability and occupancy alike. Where that is
    missing or impossible, the pixels decide if they are 0 or one other value. In RLE, dcmjs up to 0.48
    writes masks as fractions of 255 with the value 1.

    Raises
    ------
    CorrectionError
        There is no Maximum Fractional Value, and the pixels have several values; as `iter_frames`.
    """
    maximum = _maximum_fraction(ds)
    if maximum is not None:
        return 0.5 if is_dcmjs(ds) and _highest_found(ds) == 1 else maximum / 2
    values = set[int]()
    for frame in iter_frames(ds):
        values.update(np.flatnonzero(np.bincount(frame.reshape(-1))).tolist())
    values.discard(0)
    if len(values) > 1:
        raise CorrectionError(
            f"{segmentation_name(ds)} has fractions without a Maximum Fractional Value of 1 to "
            f"{_highest_stored(ds)}, and {len(values)} values beside 0"
        )
    return max(values, default=1) / 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pixels:
    name: str
    shape: Shape
    frames: int
    content: Content
    stride: int  # pixels from the first of a frame to the first of the next, uncompressed
    highest: int | None  # that a pixel may have; None where pixels only belong or do not

    def frame(self, index: int) -> Stored:
        """Decode one frame and hold its values against the header."""
        which = f"{self.name}: frame {index + 1}"
        try:
            values = self._decoded(index)
        except _DECODING_ERRORS as error:
            raise CorrectionError(f"{which} cannot be decoded: {error}") from error
        checked = two_valued(values) if self.highest is None else values
        if checked is None:
            raise CorrectionError(f"{which} holds values up to {values.max()}, 0 and 1 were expected")
        if self.highest is not None and checked.max() > self.highest:
            raise CorrectionError(f"{which} holds {checked.max()}, at most {self.highest} was expected")
        return checked

    def _decoded(self, index: int) -> Stored:
        shape = self.shape
        if self.content.codes:
            return decode_code(joined(self.content.codes[index]), self.content.transfer_syntax_uid, shape)
        first = index * self.stride * shape.bits
        end = first + shape.pixels * shape.bits
        stored = np.frombuffer(self.content.native, np.uint8)[first // 8 : (end + 7) // 8]
        if shape.bits > 1:
            return from_bytes(stored, shape)
        bits = np.unpackbits(stored, bitorder="little")[first % 8 :]
        if self.stride > shape.pixels and bits[shape.pixels :].any():
            raise ValueError("it starts on a byte by the length of all, but the bits after it are set")
        return bits[: shape.pixels].reshape(shape.rows, shape.columns)


def _read(ds: Dataset) -> _Pixels:
    name = segmentation_name(ds)
    rows, columns, frames = checked_size(ds)
    shape = Shape(rows=rows, columns=columns, bits=attributes.integer(ds, "BitsAllocated") or 0)
    if shape.bits == 1 and _kind(ds) != "BINARY":
        raise CorrectionError(f"{name}: {_kind(ds)} pixels of 1 bit, 8 or 16 were expected")
    try:
        content = read_content(ds, shape, frames)
    except _DECODING_ERRORS as error:
        raise CorrectionError(f"{name}: {error}") from error
    return _Pixels(
        name=name,
        shape=shape,
        frames=frames,
        content=content,
        stride=shape.pixels if content.codes else _stride(ds, len(content.native), shape, frames),
        highest=_highest_value(ds),
    )


def _stride(ds: Dataset, found: int, shape: Shape, frames: int) -> int:
    """Tell by the length of uncompressed pixels whether there are gaps between frames."""
    name = segmentation_name(ds)
    packed, aligned = native_sizes(shape, frames)
    is_packed, is_aligned = (found in {size, size + size % 2} for size in (packed, aligned))
    if not is_packed and not is_aligned:
        raise CorrectionError(f"{name}: {found} bytes of pixel data, {packed} were expected")
    gap = 8 * shape.size_bytes - shape.bits * shape.pixels
    if not gap or frames == 1:
        return shape.pixels
    if is_packed and is_aligned and is_dcmjs(ds):
        raise CorrectionError(
            f"{name}: whether its frames are packed or each starts on a byte cannot be told from "
            f"{found} bytes; save it as a label map"
        )
    return shape.pixels if is_packed else shape.pixels + gap


def _kind(ds: Dataset) -> str:
    if is_label_map(ds):
        return "LABELMAP"
    return "FRACTIONAL" if attributes.text(ds, "SegmentationType") == "FRACTIONAL" else "BINARY"


def _highest_value(ds: Dataset) -> int | None:
    match _kind(ds):
        case "LABELMAP":
            return _highest_stored(ds)
        case "FRACTIONAL":
            return _maximum_fraction(ds) or _highest_stored(ds)
    return None


def _maximum_fraction(ds: Dataset) -> int | None:
    maximum = attributes.integer(ds, "MaximumFractionalValue")
    return maximum if maximum is not None and 1 <= maximum <= _highest_stored(ds) else None


def _highest_found(ds: Dataset) -> int:
    return max(int(frame.max()) for frame in iter_frames(ds))


def _highest_stored(ds: Dataset) -> int:
    """Say which value fills Bits Stored, which must be the low ones."""
    allocated = attributes.integer(ds, "BitsAllocated") or 0
    stored, high = (attributes.integer(ds, keyword) for keyword in ("BitsStored", "HighBit"))
    stored = allocated if stored is None else stored
    if not 1 <= stored <= allocated or high not in {None, stored - 1}:
        raise CorrectionError(
            f"{segmentation_name(ds)}: {stored} bits stored up to bit {high} of {allocated} allocated"
        )
    return (1 << stored) - 1
