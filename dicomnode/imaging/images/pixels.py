"""Pixel data of received images, in modality units and in single precision."""

import math
import mmap
import os
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_frames
from pydicom.filereader import read_deferred_data_element
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomnode.errors import UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging import attributes
from dicomnode.imaging.images.codestreams import FrameFormat, Stored, can_decode, decode_frame
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.modality import read_transform

VOLUME_LIMIT_BYTES = 8 * 1024**3
"""No volume above this is decoded: a header can claim any size. 2048 slices of 1024 by 1024 fill it."""
MOST_THREADS = 16

_PIXEL_DATA = 0x7FE00010
_NATIVE = frozenset(
    {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
    }
)
_DECODING_ERRORS = (
    *attributes.UNREADABLE,
    EOFError,
    IndexError,
    MemoryError,
    RuntimeError,
    UnreadableInstanceError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Image:
    """What an instance says of its pixels (PS3.3 C.7.6.3)."""

    ds: Dataset
    transfer_syntax_uid: str
    frame_count: int
    frame: FrameFormat
    bits_stored: int
    high_bit: int
    is_signed: bool
    padding: tuple[int, int] | None  # lowest and highest stored value that stands for no value

    @property
    def is_native(self) -> bool:
        """Answer whether the pixels are not encapsulated."""
        return self.transfer_syntax_uid in _NATIVE

    @property
    def is_little_endian(self) -> bool:
        """Answer for native pixels; encapsulated ones say it themselves."""
        return self.transfer_syntax_uid != ExplicitVRBigEndian


_Encoded = bytes | Sequence[bytes]
"""Pixel Data of an instance: native pixels in one piece, or the codestream of each frame."""
_Range = tuple[float, float]


def decode_planes(
    frames: Sequence[SourceFrame], *, shape: tuple[int, int, int], threads: int | None = None
) -> NDArray[np.float32]:
    """Decode frames, each on its own, into one array in modality units.

    Modality LUT or slope and intercept are applied frame by frame; bits beyond Bits Stored (old overlays,
    PS3.5 8.1.1) are dropped. Values of MONOCHROME1 images stay as they are: the photometric interpretation
    says how to show values, not what they mean.

    Pixel Padding Value (PS3.3 C.7.5.1.1.2) is compared with the stored values, before the transformation,
    and stands for no value: outside the circle of a CT it would become about -3000 HU. A padded pixel beyond
    the range of the valid values of all frames is brought to its end, as a rule to the lowest value; where
    signal is measured (not in CT) the range goes down to 0. Within the range it stays as received.

    Parameters
    ----------
    frames
        Frames of one size in the order of the result; their instances are left unchanged, and what is
        fetched from a file is not kept.
    shape
        (frames, rows, columns).
    threads
        How many decode at once; None: one for each processor. The result does not depend on it.

    Returns
    -------
        Values, float32, each rounded once.

    Raises
    ------
    UnreadableInstanceError
        The pixels of a frame are cut, damaged or of another size than said; the message names the frame.
    UnsupportedSeriesError
        The volume would be larger than `VOLUME_LIMIT_BYTES`, or a transfer syntax is not known.
    """
    _check_volume(frames, shape)
    images = {id(frame.ds): frame for frame in frames}
    read = {key: _read_image(frame, shape) for key, frame in images.items()}
    uses = Counter(id(frame.ds) for frame in frames)
    held = {key: _fetch(read[key], images[key]) for key, count in uses.items() if count > 1}
    planes = _uninitialised(shape)

    def decode(index: int) -> _Range | None:
        frame = frames[index]
        return _decode_into(planes[index], frame, read[id(frame.ds)], held.get(id(frame.ds)))

    with ThreadPoolExecutor(threads or min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(decode, range(len(frames))))
        if any(found):
            valid = _valid_range(planes, found, is_ct=attributes.text(frames[0].ds, "Modality") == "CT")
            list(pool.map(lambda plane: np.clip(plane, *valid, out=plane), planes))
    return planes


def _check_volume(frames: Sequence[SourceFrame], shape: tuple[int, int, int]) -> None:
    size_bytes = 4 * math.prod(shape)
    if size_bytes > VOLUME_LIMIT_BYTES:
        series_uid = attributes.text(frames[0].ds, "SeriesInstanceUID")
        raise UnsupportedSeriesError(
            f"series {series_uid}: {shape[0]} planes of {shape[1]} by {shape[2]} pixels would take "
            f"{size_bytes / 1024**3:.1f} GiB, at most {VOLUME_LIMIT_BYTES / 1024**3:.0f} GiB are decoded"
        )


def _uninitialised(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Make an array of ordinary memory pages.

    NumPy asks for huge pages. Measured on a virtual machine, the kernel then took 0.3 to 0.9 s for 300 slices
    of 512 by 512, with ordinary pages 0.2 s.
    """
    memory = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float32).reshape(shape)


def _undecodable(frame: SourceFrame, error: BaseException) -> UnreadableInstanceError:
    return UnreadableInstanceError(f"the pixels of {frame.name} cannot be decoded: {error}")


def _read_image(frame: SourceFrame, shape: tuple[int, int, int]) -> _Image:
    ds = frame.ds
    syntax = str(getattr(ds, "file_meta", {}).get("TransferSyntaxUID", ""))
    if syntax not in _NATIVE and not can_decode(syntax):
        raise UnsupportedSeriesError(
            f"{frame.name}: pixels in transfer syntax {syntax or '(missing)'} cannot be decoded"
        )
    try:
        image = _image(ds, syntax)
        _check_length(image)
    except _DECODING_ERRORS as error:
        raise _undecodable(frame, error) from error
    if (image.frame.rows, image.frame.columns) != shape[1:]:
        found = f"{image.frame.rows} rows and {image.frame.columns} columns"
        raise UnreadableInstanceError(f"{frame.name} has {found}, {shape[1]} and {shape[2]} were expected")
    return image


def _image(ds: Dataset, syntax: str) -> _Image:
    bits_allocated, bits_stored = _whole(ds, "BitsAllocated", 1, 32), _whole(ds, "BitsStored", 1, 32)
    if bits_allocated not in {8, 16, 32} or bits_stored > bits_allocated:
        raise ValueError(f"{bits_stored} bits stored in {bits_allocated} allocated are not read")
    is_signed = bool(_whole(ds, "PixelRepresentation", 0, 1))
    return _Image(
        ds=ds,
        transfer_syntax_uid=syntax,
        frame_count=_whole(ds, "NumberOfFrames", 1, 2**31, absent=1),
        frame=FrameFormat(
            rows=_whole(ds, "Rows", 1, 65535),
            columns=_whole(ds, "Columns", 1, 65535),
            bytes_per_pixel=bits_allocated // 8,
        ),
        bits_stored=bits_stored,
        high_bit=_whole(ds, "HighBit", bits_stored - 1, bits_allocated - 1, absent=bits_stored - 1),
        is_signed=is_signed,
        padding=_padding(ds, bits_allocated, is_signed=is_signed),
    )


def _whole(ds: Dataset, keyword: str, least: int, most: int, *, absent: int | None = None) -> int:
    if absent is not None and not attributes.has_value(ds, keyword):
        return absent
    value = attributes.integer(ds, keyword)
    if value is None or not least <= value <= most:
        raise ValueError(f"{keyword} is {value}, {least} to {most} was expected")
    return value


def _padding(ds: Dataset, bits_allocated: int, *, is_signed: bool) -> tuple[int, int] | None:
    """Read Pixel Padding Value and Range Limit; writers mistake signed for unsigned (63536 for -2000)."""
    bounds = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = attributes.integer(ds, keyword)
        if value is not None:
            value %= 1 << bits_allocated
            bounds.append(
                value - (1 << bits_allocated) if is_signed and value >> bits_allocated - 1 else value
            )
    if "PixelPaddingValue" not in ds or not bounds:
        return None
    return min(bounds), max(bounds)


def _pixel_data(ds: Dataset) -> RawDataElement:
    """Give Pixel Data unread where its value is still in the file; reading it through `ds` would keep it."""
    found = ds.get_item(_PIXEL_DATA, keep_deferred=True)
    if found is None:
        raise ValueError("there is no Pixel Data")
    if isinstance(found, RawDataElement):
        return found
    value = found.value if isinstance(found.value, (bytes, bytearray)) else b""
    return RawDataElement(found.tag, found.VR, len(value), bytes(value), 0, False, True)


def _check_length(image: _Image) -> None:
    """Refuse cut native pixels before anything of their size is made."""
    length, expected = _pixel_data(image.ds).length, image.frame_count * image.frame.size_bytes
    if image.is_native and length < expected:
        raise ValueError(f"there are {length} bytes of Pixel Data, {expected} were expected")


def _fetch(image: _Image, frame: SourceFrame) -> _Encoded:
    """Get the encoded pixels of all frames of an instance.

    Raises
    ------
    UnreadableInstanceError
        The file is gone or cut, or the pixels are not as many as said.
    """
    try:
        value = _value(image.ds)
        return _native(value, image) if image.is_native else _codestreams(value, image)
    except _DECODING_ERRORS as error:
        raise _undecodable(frame, error) from error


def _value(ds: Dataset) -> bytes:
    raw = _pixel_data(ds)
    if raw.value is None and raw.length:
        raw = read_deferred_data_element(ds.fileobj_type, ds.filename or ds.buffer, ds.timestamp, raw)
    return raw.value or b""


def _native(value: bytes, image: _Image) -> bytes:
    expected = image.frame_count * image.frame.size_bytes
    if len(value) < expected:
        raise ValueError(f"there are {len(value)} bytes of Pixel Data, {expected} were expected")
    if not image.is_little_endian and image.frame.bytes_per_pixel == 1 and _pixel_data(image.ds).VR == "OW":
        value = np.frombuffer(value[: len(value) // 2 * 2], ">u2").astype("<u2").tobytes()  # PS3.5 A.3
    if value[expected:].strip(b"\0"):  # more than padding: Rows, Columns or Bits Allocated are of another
        raise ValueError(f"there are {len(value)} bytes of Pixel Data, only {expected} were expected")
    return value


def _codestreams(value: bytes, image: _Image) -> Sequence[bytes]:
    offsets, lengths = (
        attributes.element(image.ds, keyword)
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    )
    table = (offsets.value, lengths.value) if offsets is not None and lengths is not None else None
    found = list(generate_frames(value, number_of_frames=image.frame_count, extended_offsets=table))
    if len(found) != image.frame_count:
        raise ValueError(f"there are {len(found)} frames, {image.frame_count} were expected")
    return found


def _decode_into(
    plane: NDArray[np.float32], frame: SourceFrame, image: _Image, encoded: _Encoded | None
) -> _Range | None:
    """Decode a frame, and give the range of its valid values where the image names a padding value."""
    if encoded is None:
        encoded = _fetch(image, frame)
    try:
        stored = _stored(image, encoded, frame.frame_number)
        read_transform(frame.ds, frame.groups).apply(stored, plane)
    except _DECODING_ERRORS as error:
        raise _undecodable(frame, error) from error
    if image.padding is None:
        return None
    low, high = image.padding
    is_valid = (stored < low) | (stored > high)
    return float(plane.min(where=is_valid, initial=np.inf)), float(plane.max(where=is_valid, initial=-np.inf))


def _stored(image: _Image, encoded: _Encoded, frame_number: int) -> Stored:
    """Give the stored values of a frame, (rows, columns), with the sign that the data set says."""
    if not 1 <= frame_number <= image.frame_count:
        raise ValueError(f"there are {image.frame_count} frames")
    values, precision = _decoded(image, encoded, frame_number)
    form = image.frame
    if values.shape != (form.rows, form.columns) or values.dtype.kind not in "iu":
        raise ValueError(f"the decoder gave {values.dtype} values of shape {values.shape}")
    width = 8 * values.dtype.itemsize
    values = values.view(f"{values.dtype.str[0]}{'i' if image.is_signed else 'u'}{width // 8}")
    bits = min(precision, image.bits_stored, width)
    is_whole = precision == width == 8 * form.bytes_per_pixel
    above = width - 1 - image.high_bit if is_whole else width - bits
    if above or bits < width:
        values = values << above >> (width - bits)
    return values


def _decoded(image: _Image, encoded: _Encoded, frame_number: int) -> tuple[Stored, int]:
    form = image.frame
    if not isinstance(encoded, bytes):
        return decode_frame(encoded[frame_number - 1], image.transfer_syntax_uid, form)
    order = "<" if image.is_little_endian else ">"
    values: Stored = np.frombuffer(
        encoded,
        f"{order}u{form.bytes_per_pixel}",
        count=form.rows * form.columns,
        offset=(frame_number - 1) * form.size_bytes,
    )
    return values.reshape(form.rows, form.columns), 8 * form.bytes_per_pixel


def _valid_range(planes: NDArray[np.float32], found: Sequence[_Range | None], *, is_ct: bool) -> _Range:
    """Join the ranges of the frames; that of a frame without padding value is all of its own."""
    ranges = [
        known or (float(plane.min()), float(plane.max())) for known, plane in zip(found, planes, strict=True)
    ]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if low > high:  # all is padding
        return -np.inf, np.inf
    return (low if is_ct else min(low, 0.0)), high
