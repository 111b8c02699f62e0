"""Images of a few pixels in any transfer syntax, for the tests of their decoding."""

import io
import struct
from collections.abc import Sequence

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.imaging.images.frames import SourceFrame

NOWHERE = np.zeros(3)


def make_image(
    stored: NDArray[np.generic], *, syntax: str = ExplicitVRLittleEndian, **attributes: object
) -> Dataset:
    """A CT image of stored values, (rows, columns) or (frames, rows, columns), written and read again."""
    frames = stored.reshape(-1, *stored.shape[-2:])
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.SOPClassUID = EnhancedMRImageStorage if stored.ndim == 3 else CTImageStorage
    ds.SOPInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.7", "1.2.826.0.1.6"
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = "CT", "MONOCHROME2", 1
    ds.Rows, ds.Columns = frames.shape[1:]
    if stored.ndim == 3:
        ds.NumberOfFrames = len(frames)
    ds.BitsAllocated = ds.BitsStored = 8 * stored.dtype.itemsize
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.HighBit = attributes.get("HighBit", int(ds.BitsStored) - 1)
    ds.PixelData = encode(frames, syntax)
    ds["PixelData"].VR = "OW" if not UID(syntax).is_encapsulated else "OB"
    ds["PixelData"].is_undefined_length = UID(syntax).is_encapsulated
    return reread(ds)


def reread(ds: Dataset) -> Dataset:
    """Write a data set and read it again, so that its elements are raw."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return dcmread(io.BytesIO(buffer.getvalue()))


def encode(frames: NDArray[np.generic], syntax: str) -> bytes:
    """Encode frames as Pixel Data of a transfer syntax."""
    if syntax == ExplicitVRBigEndian:
        size = frames.dtype.itemsize  # 8-bit pixels are written as words, PS3.5 A.3
        swapped = frames.tobytes() if size > 1 else even(frames.tobytes())
        return np.frombuffer(swapped, f"<u{max(size, 2)}").byteswap().tobytes()
    if not UID(syntax).is_encapsulated:
        return even(frames.tobytes())
    return encapsulate([encode_frame(frame, syntax) for frame in frames])


def encode_frame(frame: NDArray[np.generic], syntax: str) -> bytes:
    """Encode one frame without loss."""
    if syntax in {JPEG2000Lossless, HTJ2KLossless}:
        encoder = imagecodecs.jpeg2k_encode if syntax == JPEG2000Lossless else imagecodecs.htj2k_encode
        options = {"level": 0, "codecformat": "j2k"} if syntax == JPEG2000Lossless else {}
        return bytes(encoder(frame, reversible=True, **options))
    unsigned = np.ascontiguousarray(frame).view(f"<u{frame.dtype.itemsize}")  # these hold no sign
    if syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(unsigned))
    if syntax == JPEGLosslessSV1:
        return bytes(
            imagecodecs.jpeg8_encode(
                unsigned, lossless=True, predictor=1, bitspersample=8 * frame.dtype.itemsize
            )
        )
    assert syntax == RLELossless
    return rle(unsigned)


def rle(frame: NDArray[np.generic]) -> bytes:
    """Encode one frame as RLE Lossless (PS3.5 Annex G)."""
    size = frame.dtype.itemsize
    columns = np.ascontiguousarray(frame).view(np.uint8).reshape(-1, size)
    segments = [even(imagecodecs.packbits_encode(columns[:, byte].tobytes())) for byte in range(size)[::-1]]
    offsets = np.cumsum([64, *map(len, segments[:-1])]).tolist()
    return struct.pack("<16L", size, *offsets, *[0] * (15 - size)) + b"".join(segments)


def even(value: bytes) -> bytes:
    """Pad to an even length."""
    return value + bytes(len(value) % 2)


def frames_of(ds: Dataset, *, groups: Sequence[tuple[Dataset, ...]] = ()) -> list[SourceFrame]:
    """All frames of an image, at no particular place."""
    count = int(ds.get("NumberOfFrames", 1))
    return [
        SourceFrame(
            ds=ds,
            frame_number=number,
            is_multi_frame=count > 1,
            position_mm=NOWHERE,
            row_cosines=NOWHERE,
            column_cosines=NOWHERE,
            pixel_spacing_mm=NOWHERE[:2],
            size=(int(ds.Rows), int(ds.Columns)),
            groups=groups[number - 1] if groups else (),
        )
        for number in range(1, count + 1)
    ]
