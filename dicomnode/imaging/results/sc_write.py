"""What was found, as Secondary Capture images for viewers that show nothing else (PS3.3 A.8.1).

The first image is an overview with a legend. The others are labelled source slices, each on exactly the
grid of its source and at its place in patient space, with the labels drawn into the pixels. No patient
data are drawn.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicomnode.domain import Code, ResultForm
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.functional_groups import decimal_string
from dicomnode.imaging.pictures.overlay import Window, display_window, paint, to_grey
from dicomnode.imaging.pictures.preview import (
    BACKGROUND,
    INK,
    NOT_VERIFIED,
    NOTHING_FOUND,
    findings_montage,
    font,
)
from dicomnode.imaging.results.findings import Findings, Run
from dicomnode.imaging.results.result_header import coded, copy_element, series_description
from dicomnode.imaging.results.result_object import (
    description,
    finish,
    frame_reference,
    result_object,
    stack_references,
)

SERIES_NUMBER = 9301
MAXIMUM_SLICES = 60
SMALLEST_WITH_TEXT = 192
"""Pixels: smaller slices carry no words, which would cover them."""
MOST_NAMES = 12
OBLIQUE = 0.1
"""Direction cosines below this add no letter to Patient Orientation."""

_SOURCE = Code(value="121322", scheme="DCM", meaning="Source image for image processing operation")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def encode(findings: Findings, *, run: Run) -> tuple[Dataset, ...]:
    """Draw what was found: an overview, and the labelled slices in the order of the stack.

    At most 60 slices are drawn, evenly spread over the labelled ones; the overview and the description of
    each image say so. Where nothing was found the one image says that over the middle slice.

    Returns
    -------
        Uncompressed RGB in Explicit VR Little Endian, ready for `save_as`, all of one series.
    """
    shown = _shown_slices(findings)
    labelled = int(np.count_nonzero(findings.voxels_per_plane[:, 1:].any(axis=1)))
    note = f"{len(shown)} of {labelled} labelled slices follow, evenly spread" if labelled else NOTHING_FOUND
    if 0 < labelled == len(shown):
        note = "all labelled slices follow" if labelled > 1 else "the labelled slice follows"
    window = display_window(findings.stack, findings.planes)
    images = [_overview(findings, run, note)]
    images += [
        _slice(findings, run, index=index, number=number, window=window)
        for number, index in enumerate(shown, start=2)
    ]
    for ds in images:
        ds.DerivationDescription = f"{ds.DerivationDescription}; {note}"
        finish(ds, sop_class_uid=SecondaryCaptureImageStorage, transfer_syntax_uid=ExplicitVRLittleEndian)
    return tuple(images)


def _shown_slices(findings: Findings) -> list[int]:
    labelled = np.flatnonzero(findings.voxels_per_plane[:, 1:].any(axis=1))
    at = np.linspace(0, max(len(labelled) - 1, 0), min(MAXIMUM_SLICES, len(labelled)))
    return [int(labelled[round(place)]) for place in at]


def _overview(findings: Findings, run: Run, note: str) -> Dataset:
    notes = [f"{note[0].upper()}{note[1:]}"] if findings.found else []
    picture = findings_montage(findings, title=series_description(findings.card), notes=notes)
    ds = _image(findings, run, np.asarray(picture), number=1)
    del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator  # the picture lies nowhere
    ds.PatientOrientation = ""
    ds.DerivationDescription = "Overview of labelled slices with legend"
    ds.SourceImageSequence = [_as_source(item) for item in stack_references(findings.stack)]
    return ds


def _slice(findings: Findings, run: Run, *, index: int, number: int, window: Window) -> Dataset:
    frame = findings.stack.frames[index]
    grey = to_grey(findings.planes[index], window)
    pixels = _with_words(paint(grey, findings.labels[index], findings.card.segments), findings, index)
    ds = _image(findings, run, pixels, number=number)
    _place(ds, frame)
    ds.DerivationDescription = "Labels drawn into the source image"
    reference = _as_source(frame_reference(frame))
    reference.SpatialLocationsPreserved = "YES"
    ds.SourceImageSequence = [reference]
    return ds


def _image(findings: Findings, run: Run, pixels: NDArray[np.uint8], *, number: int) -> Dataset:
    """Begin an image of the series with its pixels (row, column, 3)."""
    ds = result_object(findings, run=run, form=ResultForm.SC, instance_number=number)
    ds.Modality = "OT"
    ds.Laterality = ""
    ds.SeriesNumber = SERIES_NUMBER
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.BurnedInAnnotation = "YES"
    ds.ImageComments = description(findings.stack)
    ds.DateOfSecondaryCapture, ds.TimeOfSecondaryCapture = ds.ContentDate, ds.ContentTime
    source = findings.stack.first
    if attributes.text(source, "LossyImageCompression") == "01":  # once lossy, always lossy (C.7.6.1.1.5)
        for keyword in _LOSSY:
            copy_element(source, ds, keyword)
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    stored = np.ascontiguousarray(pixels).tobytes()
    ds["PixelData"] = DataElement("PixelData", "OB", stored + b"\0" * (len(stored) % 2))
    return ds


def _place(ds: Dataset, frame: SourceFrame) -> None:
    """Put an image where its source lies (PS3.3 C.7.6.2)."""
    cosines = (*frame.row_cosines.tolist(), *frame.column_cosines.tolist())
    ds.ImagePositionPatient = [decimal_string(value) for value in frame.position_mm.tolist()]
    ds.ImageOrientationPatient = [decimal_string(value) for value in cosines]
    ds.PixelSpacing = [decimal_string(value) for value in frame.pixel_spacing_mm.tolist()]
    ds.PatientOrientation = [_orientation(frame.row_cosines), _orientation(frame.column_cosines)]
    thickness = frame.slice_thickness_mm
    ds.SliceThickness = decimal_string(thickness) if thickness else None


def _orientation(direction: FloatArray) -> str:
    """Name a direction in patient space by up to three letters, the nearest first (PS3.3 C.7.6.1.1.1)."""
    letters = [("L", "R"), ("P", "A"), ("H", "F")]
    nearest = np.argsort(-np.abs(direction), kind="stable").tolist()
    return "".join(letters[k][int(direction[k] < 0)] for k in nearest if abs(direction[k]) > OBLIQUE)


def _with_words(pixels: NDArray[np.uint8], findings: Findings, index: int) -> NDArray[np.uint8]:
    """Write on a slice that nobody verified it, and the names of its labels in their colours."""
    rows, columns = pixels.shape[:2]
    if min(rows, columns) < SMALLEST_WITH_TEXT:
        return pixels
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    size = max(12, min(columns, 1024) // 36)
    present = findings.voxels_per_plane[index]
    here = [s for s in findings.card.segments if present[s.segment_number]]
    lines = [(s.label, s.rgb) for s in here[:MOST_NAMES]]
    if len(here) > MOST_NAMES:
        lines.append((f"and {len(here) - MOST_NAMES} more", INK))
    for number, (text, rgb) in enumerate(lines):
        at = (4, 3 + number * (size + 3))
        draw.text(at, text, fill=rgb, font=font(size), stroke_width=1, stroke_fill=BACKGROUND)
    at = (4, rows - size - 7)
    draw.text(at, NOT_VERIFIED, fill=INK, font=font(size), stroke_width=1, stroke_fill=BACKGROUND)
    return np.asarray(picture)


def _as_source(reference: Dataset) -> Dataset:
    reference.PurposeOfReferenceCodeSequence = [coded(_SOURCE)]
    return reference
