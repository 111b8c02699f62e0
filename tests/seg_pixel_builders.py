"""Segmentations of a few pixels without any headers, and their frames in every stored form."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode.imaging.reading.seg_codes import DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED
from dicomnode.imaging.reading.seg_content import NATIVE
from dicomnode.imaging.results.seg_encode import encode_rle
from tests.imaging_builders import LABEL_MAP, SEGMENTATION, item, part_10


def blob_masks(frames: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Masks of 0 and 1 in which no two frames, rows or columns are mistaken for each other."""
    masks = np.zeros((frames, *size), np.uint8)
    for index, mask in enumerate(masks):
        mask[: 1 + index % size[0], size[1] // 3 :] = 1
        mask[0, 0], mask[-1, -1] = index % 2, 1 - index % 2
    return masks


def bare_seg(
    values: NDArray[np.unsignedinteger],
    *,
    value: bytes,
    kind: str = "BINARY",
    syntax: str = ExplicitVRLittleEndian,
    bits: int | None = None,
) -> Dataset:
    """A segmentation of the shape of `values` (frame, row, column) with `value` as Pixel Data."""
    if bits is None:
        bits = 1 if kind == "BINARY" else 8 * values.dtype.itemsize
    ds = item(
        SOPClassUID=LABEL_MAP if kind == "LABELMAP" else SEGMENTATION,
        SOPInstanceUID="1.2.826.0.1.3680043.10.9.1",
        SegmentationType=kind,
        NumberOfFrames=len(values),
        Rows=values.shape[1],
        Columns=values.shape[2],
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        SamplesPerPixel=1,
        PixelRepresentation=0,
        PhotometricInterpretation="MONOCHROME2",
        PixelData=value,
    )
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = syntax not in NATIVE
    return ds


def reread(ds: Dataset) -> Dataset:
    """Write a segmentation and read it again; pydicom does not write deflated frames."""
    syntax, stand_in = ds.file_meta.TransferSyntaxUID, UID(ENCAPSULATED_UNCOMPRESSED)
    if syntax != DEFLATED_FRAMES:
        return dcmread(io.BytesIO(part_10(ds)))
    ds.file_meta.TransferSyntaxUID = stand_in
    written = part_10(ds).replace(stand_in.encode(), syntax.encode().ljust(len(stand_in), b"\0"))
    ds.file_meta.TransferSyntaxUID = syntax
    return dcmread(io.BytesIO(written))


def as_bits(mask: NDArray[np.uint8]) -> bytes:
    """Eight pixels to a byte, the first in the lowest bit."""
    return np.packbits(mask.reshape(-1), bitorder="little").tobytes()


def run_lengths(stored: bytes) -> bytes:
    """One RLE segment with its header."""
    return encode_rle(np.frombuffer(stored, np.uint8).reshape(1, -1))


def deflated(stored: bytes) -> bytes:
    """A raw deflate stream."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(stored) + stream.flush()


def items(fragments: Sequence[bytes], *, offsets: Sequence[int]) -> bytes:
    """Encapsulated Pixel Data of fragments as they are, under a Basic Offset Table."""
    table = struct.pack(f"<{len(offsets)}L", *offsets)
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<L", len(one)) + one for one in (table, *fragments))
