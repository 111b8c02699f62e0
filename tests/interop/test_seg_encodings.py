"""Every type of segmentation in every transfer syntax that highdicom writes, or that may be made of it."""

import highdicom as hd
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.reading.seg_codes import DEFLATED_FRAMES
from dicomnode.imaging.reading.seg_pixels import fraction_threshold, iter_frames, pixel_flags
from tests.imaging_builders import make_series, make_volume
from tests.seg_pixel_builders import as_bits, deflated, reread, run_lengths

UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
CODECS = (RLELossless, JPEG2000Lossless, JPEGLSLossless)
WRITTEN = [  # highdicom compresses bits with JPEG 2000 only
    *(("BINARY", syntax) for syntax in (*UNCOMPRESSED, JPEG2000Lossless)),
    *((kind, syntax) for kind in ("PROBABILITY", "OCCUPANCY") for syntax in (*UNCOMPRESSED, *CODECS)),
    *((kind, syntax) for kind in ("LABELMAP", "words") for syntax in (*UNCOMPRESSED, *CODECS)),
]
NUMBERS = {"words": (1, 2, 300)}


@pytest.fixture(scope="module")
def series():
    """Frames of 41 x 35 pixels, no whole number of bytes, with everything that highdicom insists on."""
    sources = make_series(make_volume(np.zeros((35, 41, 35), np.uint16)))
    for source in sources:
        source.PatientBirthDate = source.PatientSex = ""
    return to_volume(sources)


def segments(series):
    """Three masks (segment, slice, row, column), one of which has a single voxel at a corner."""
    masks = np.zeros((3, *series.image.shape), bool)
    masks[0, 5:20, 10:25, 8:20] = True
    masks[1, 15:22, 26:40, 9:33] = True
    masks[2, 30, -1, -1] = True
    return masks


def written(series, kind, syntax):
    """What highdicom writes, through a file, and what it was given: (segment, slice, row, column)."""
    masks = segments(series)
    numbers = NUMBERS.get(kind, (1, 2, 3))
    is_labels = kind in {"LABELMAP", "words"}
    values = np.moveaxis(masks, 0, -1).astype(np.float32)
    if kind in {"PROBABILITY", "OCCUPANCY"}:
        values *= np.linspace(0.3, 1, series.image.shape[2])[:, None]  # a half is crossed within each mask
    if is_labels:
        values = np.select(list(masks), numbers, 0).astype(np.uint16)
    seg_type = "LABELMAP" if is_labels else "BINARY" if kind == "BINARY" else "FRACTIONAL"
    native = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    ds = hd.seg.Segmentation(
        source_images=series.sources,
        pixel_array=values.astype(np.uint8) if kind == "BINARY" else values,
        segmentation_type=seg_type,
        segment_descriptions=[
            hd.seg.SegmentDescription(number, f"segment {number}", codes.SCT.Organ, codes.SCT.Brain, "MANUAL")
            for number in numbers
        ],
        fractional_type=kind if seg_type == "FRACTIONAL" else "PROBABILITY",
        max_fractional_value=200,
        series_instance_uid=generate_uid(),
        series_number=5,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Other",
        manufacturer_model_name="Other",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=native,
    )
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    if is_labels:
        return reread(ds), np.stack([values == number for number in numbers])
    return reread(ds), np.moveaxis(values, -1, 0)


def read(ds, series, numbers):
    """Put the frames where their functional groups say: (segment, slice, row, column)."""
    places = {source.SOPInstanceUID: k for k, source in enumerate(f.ds for f in series.stack.frames)}
    stored = np.zeros((len(numbers), *series.image.shape), np.uint16)
    for frame, groups in zip(iter_frames(ds), ds.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        k = places[source.ReferencedSOPInstanceUID]
        if ds.SegmentationType == "LABELMAP":
            for index, number in enumerate(numbers):
                stored[index, k] = frame == number
        else:
            number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            stored[numbers.index(number), k] = frame
    return stored


@pytest.mark.parametrize(("kind", "syntax"), WRITTEN, ids=lambda value: getattr(value, "name", value))
def test_what_highdicom_writes_is_read_voxel_by_voxel(kind, syntax, series):
    ds, given = written(series, kind, syntax)

    stored = read(ds, series, NUMBERS.get(kind, (1, 2, 3)))

    if kind in {"PROBABILITY", "OCCUPANCY"}:
        np.testing.assert_array_equal(stored, np.around(given * 200))
        np.testing.assert_array_equal(stored >= fraction_threshold(ds), np.around(given * 200) >= 100)
    else:
        np.testing.assert_array_equal(stored, given)
    assert ds.BitsAllocated == {"BINARY": 1, "words": 16}.get(kind, 8)
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert pixel_flags(ds) == frozenset()


RECODED = [
    ("BINARY", "deflated frames"),
    ("BINARY", "RLE bits"),
    ("BINARY", "RLE bytes"),
    ("BINARY", "wrapped"),
    ("LABELMAP", "deflated frames"),
    ("LABELMAP", "wrapped"),
    ("PROBABILITY", "deflated frames"),
    ("PROBABILITY", "wrapped"),
    ("words", "deflated frames"),
]


@pytest.mark.parametrize(("kind", "form"), RECODED)
def test_forms_that_highdicom_does_not_write_are_read_voxel_by_voxel(kind, form, series):
    ds, _ = written(series, kind, ExplicitVRLittleEndian)
    numbers = NUMBERS.get(kind, (1, 2, 3))
    wanted = read(ds, series, numbers)
    frames = list(iter_frames(ds))
    plain = [as_bits(frame) if kind == "BINARY" else frame.tobytes() for frame in frames]
    codes_of = {
        "deflated frames": lambda: [deflated(one) for one in plain],
        "RLE bits": lambda: [run_lengths(one) for one in plain],
        "RLE bytes": lambda: [run_lengths(frame.tobytes()) for frame in frames],
        "wrapped": lambda: [ds.PixelData],
    }
    syntaxes = {"deflated frames": DEFLATED_FRAMES, "wrapped": ExplicitVRLittleEndian}
    ds.file_meta.TransferSyntaxUID = UID(syntaxes.get(form, RLELossless))
    ds.PixelData = encapsulate(codes_of[form]())
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True

    np.testing.assert_array_equal(read(reread(ds), series, numbers), wanted)


def test_frames_that_are_cut_under_any_syntax_are_refused_by_name(series):
    for kind, syntax in WRITTEN:
        ds, _ = written(series, kind, syntax)
        ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]
        with pytest.raises(CorrectionError, match=ds.SOPInstanceUID.replace(".", r"\.")):
            list(iter_frames(ds))
