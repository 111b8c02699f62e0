"""Compressed frames: what their own headers say, checked before a decoder sees them, and the decoders.

The decoders are those of imagecodecs (libjpeg-turbo, CharLS, OpenJPEG), the fastest of those that were
measured and the only ones that let other threads work meanwhile.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from dicomnode.imaging.reading.rle import decode_segments

Stored = NDArray[np.signedinteger | np.unsignedinteger]

_SOF_JPEG = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOF_JPEG_LS = 0xF7
_SOF_LOSSLESS = 0xC3
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN = 0xDA
_CODING_STYLE = 0x52
_START_OF_TILE = 0x90
_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_LONGEST_RUN = 128
_JP2_BOX = b"\x00\x00\x00\x0cjP  "
_CODESTREAM_J2K = b"\xff\x4f\xff\x51"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFormat:
    """What the data set says that one frame decodes to."""

    rows: int
    columns: int
    bytes_per_pixel: int  # 1, 2 or 4

    @property
    def size_bytes(self) -> int:
        """Length of one decoded frame."""
        return self.rows * self.columns * self.bytes_per_pixel


@dataclass(frozen=True, slots=True)
class _Header:
    rows: int
    columns: int
    components: int
    precision: int  # bits


def can_decode(transfer_syntax_uid: str) -> bool:
    """Answer whether frames of an encapsulated transfer syntax can be decoded."""
    return transfer_syntax_uid in _DECODERS


def decode_frame(code: bytes, transfer_syntax_uid: str, frame: FrameFormat) -> tuple[Stored, int]:
    """Decode one encapsulated frame.

    Returns
    -------
        Values (rows, columns), and how many of their bits hold the value by the header of the codestream.

    Raises
    ------
    ValueError, RuntimeError, zlib.error
        The codestream is cut or damaged, or says another size than the data set.
    """
    return _DECODERS[transfer_syntax_uid](code, frame)


def check_lossless(code: bytes) -> None:
    """Refuse a codestream of JPEG, JPEG-LS or JPEG 2000 that by its own header does not keep the values.

    Raises
    ------
    ValueError
        The header does not say lossless JPEG (ITU-T T.81 B.2.2), JPEG-LS with an allowed error of 0
        (T.87 C.2.3), or JPEG 2000 with the reversible wavelet (T.800 A.6.1).
    """
    if code.startswith(_START_OF_IMAGE):
        found = dict(_segments(code, _START_OF_SCAN))
        scan = code[found.get(_START_OF_SCAN, len(code)) + 2 :][:12]  # how many components, 2 bytes for each
        near = scan[2 * scan[0] + 1 :][:1] if scan else b""
        is_lossless = _SOF_LOSSLESS in found or (_SOF_JPEG_LS in found and near == b"\0")
    else:
        start = max(code.find(_CODESTREAM_J2K), 0)
        style = dict(_segments(code[start:], _START_OF_TILE)).get(_CODING_STYLE, len(code))
        is_lossless = code[start + style + 11 :][:1] == b"\x01"  # the wavelet: 5-3 reversible
    if not is_lossless:
        raise ValueError("by its own header the codestream does not keep values")


def _jpeg(code: bytes, frame: FrameFormat) -> tuple[Stored, int]:
    """Decode with libjpeg-turbo; JPEG's precision is not where a sign is: Bits Stored alone says that."""
    _check_end(code)
    _check(_jpeg_header(code, _SOF_JPEG), frame)
    values = imagecodecs.jpeg8_decode(code)
    return values.astype(f"<u{frame.bytes_per_pixel}", copy=False), 8 * frame.bytes_per_pixel


def _jpeg_ls(code: bytes, frame: FrameFormat) -> tuple[Stored, int]:
    _check_end(code)
    precision = _check(_jpeg_header(code, frozenset({_SOF_JPEG_LS})), frame)
    return imagecodecs.jpegls_decode(code), precision


def _jpeg_2000(code: bytes, frame: FrameFormat) -> tuple[Stored, int]:
    """Decode with OpenJPEG, HTJ2K too: OpenJPH is faster, but says nothing of a damaged codestream."""
    _check_end(code)
    precision = _check(_j2k_header(code), frame)
    return imagecodecs.jpeg2k_decode(code, numthreads=1), precision


def _rle(code: bytes, frame: FrameFormat) -> tuple[Stored, int]:
    """PS3.5 Annex G; a segment may hold a run too many."""
    pixels = frame.rows * frame.columns
    planes = decode_segments(code, count=frame.bytes_per_pixel, most=pixels + _LONGEST_RUN)
    values = np.zeros(pixels, f"<u{frame.bytes_per_pixel}")
    for plane in planes:
        if plane.size < pixels:
            raise ValueError(f"an RLE segment holds {plane.size} bytes, {pixels} were expected")
        values <<= 8
        values |= plane[:pixels]
    return _whole(values, frame)


def _plain(code: bytes, frame: FrameFormat) -> tuple[Stored, int]:
    return _whole(np.frombuffer(code[: frame.size_bytes], np.uint8), frame)


def _deflated(code: bytes, frame: FrameFormat) -> tuple[Stored, int]:
    """PS3.5 A.4.13: each frame is one deflate stream."""
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(code, frame.size_bytes + 1)
    return _whole(np.frombuffer(inflated, np.uint8), frame)


def _whole(decoded: Stored, frame: FrameFormat) -> tuple[Stored, int]:
    if decoded.nbytes != frame.size_bytes:
        raise ValueError(f"{decoded.nbytes} bytes, {frame.size_bytes} were expected")
    values = decoded.view(f"<u{frame.bytes_per_pixel}").reshape(frame.rows, frame.columns)
    return values, 8 * frame.bytes_per_pixel


def _check(header: _Header, frame: FrameFormat) -> int:
    found = (header.rows, header.columns, header.components)
    if found != (frame.rows, frame.columns, 1):
        raise ValueError(
            f"the codestream holds {found[0]} rows, {found[1]} columns and {found[2]} components, "
            f"{frame.rows}, {frame.columns} and 1 were expected"
        )
    if not 1 <= header.precision <= 8 * frame.bytes_per_pixel:
        raise ValueError(
            f"the codestream has {header.precision} bits per pixel, "
            f"at most {8 * frame.bytes_per_pixel} were expected"
        )
    return header.precision


def _check_end(code: bytes) -> None:
    """Refuse a codestream without end: decoders fill with grey what a cut one lacks."""
    if not code.rstrip(b"\xff\0").endswith(_END_OF_IMAGE):  # some writers pad with 0xFF
        raise ValueError("the codestream is cut: it has no end marker")


def _jpeg_header(code: bytes, starts: frozenset[int]) -> _Header:
    """Read the frame header of a JPEG (ITU-T T.81 B.2.2) or JPEG-LS (T.87 C.2.2) codestream."""
    if not code.startswith(_START_OF_IMAGE):
        raise ValueError("the codestream does not begin as JPEG does")
    for marker, at in _segments(code, _START_OF_SCAN):
        if marker in starts:
            return _frame_header(code[at + 2 : at + 8])
    raise ValueError("the codestream has no frame header of its transfer syntax")


def _segments(code: bytes, last: int) -> Iterator[tuple[int, int]]:
    """Give the markers of a header up to one of them, and where the length after each stands."""
    at = 2
    while at + 4 <= len(code) and code[at] == 0xFF:
        marker = code[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            yield marker, at + 2
            if marker == last:
                return
            at += 2 + int.from_bytes(code[at + 2 : at + 4], "big")


def _frame_header(fields: bytes) -> _Header:
    if len(fields) < 6:
        raise ValueError("the codestream is cut in its frame header")
    precision, rows, columns, components = struct.unpack(">BHHB", fields)
    return _Header(rows, columns, components, precision)


def _j2k_header(code: bytes) -> _Header:
    """Read the SIZ segment (ITU-T T.800 A.5.1); a JP2 file around the codestream is passed over."""
    at = code.find(_CODESTREAM_J2K) if code.startswith(_JP2_BOX) else 0
    siz = code[at : at + 45] if at >= 0 else b""
    if len(siz) < 45 or siz[:4] != _CODESTREAM_J2K:
        raise ValueError("the codestream does not begin as JPEG 2000 does")
    width, height, left, top = struct.unpack_from(">4L", siz, 8)
    components, depth, *steps = struct.unpack_from(">H3B", siz, 40)
    if steps != [1, 1]:
        raise ValueError(f"the codestream holds only every {steps} pixel")
    return _Header(height - top, width - left, components, (depth & 0x7F) + 1)


_Decoder = Callable[[bytes, FrameFormat], tuple[Stored, int]]
_DECODERS: dict[str, _Decoder] = {
    uid.JPEGBaseline8Bit: _jpeg,
    uid.JPEGExtended12Bit: _jpeg,
    uid.JPEGLossless: _jpeg,
    uid.JPEGLosslessSV1: _jpeg,
    uid.JPEGLSLossless: _jpeg_ls,
    uid.JPEGLSNearLossless: _jpeg_ls,
    uid.JPEG2000Lossless: _jpeg_2000,
    uid.JPEG2000: _jpeg_2000,
    uid.HTJ2KLossless: _jpeg_2000,
    uid.HTJ2KLosslessRPCL: _jpeg_2000,
    uid.HTJ2K: _jpeg_2000,
    uid.RLELossless: _rle,
    "1.2.840.10008.1.2.1.98": _plain,  # Encapsulated Uncompressed Explicit VR Little Endian
    "1.2.840.10008.1.2.8.1": _deflated,  # Deflated Image Frame Compression
}
