"""What was found, as an RT Structure Set of closed planar contours on the received planes (PS3.3 A.19).

Each contour lies in the plane of its own source slice and refers to it. Filling the contours by the rule
"the centre of the pixel is inside" gives the labels back exactly; see `contours` for holes. Its area is
that of the polygon, which cuts the corners of pixels: a single pixel becomes a diamond of half its area.
The volume of the pixels is given as ROI Volume.
"""

import struct
from collections.abc import Sequence
from math import ceil, log10

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy import ndimage

from dicomnode.domain import ModelCard, ResultForm, Segment
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import DEVICE, tracking_identifier
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.functional_groups import decimal_string
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.results.contours import closed_rings
from dicomnode.imaging.results.findings import Findings, Measure, Run
from dicomnode.imaging.results.result_header import LONG_STRING, coded, series_description
from dicomnode.imaging.results.result_object import (
    description,
    finish,
    frame_reference,
    result_object,
    stack_references,
)

SERIES_NUMBER = 9201
STRUCTURE_SET_LABEL = "AI_RTSTRUCT"
PRECISION = 1e-4
"""Part of a pixel to which coordinates are rounded."""

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired: what readers expect there
_ORGANS = frozenset({("SCT", "123037004"), ("SCT", "91723000"), ("SRT", "T-D000A")})
_ROI_CONTOURS, _CONTOURS = Tag("ROIContourSequence"), Tag("ContourSequence")
_ITEM = struct.pack("<HH", 0xFFFE, 0xE000)


def encode(findings: Findings, *, run: Run) -> Dataset | None:
    """Write what was found as an RT Structure Set.

    ROI Number is the segment number and ROI Name the Segment Label of the model's card. Each ROI carries the
    Tracking UID of its label, as a standard extension of this class.

    Returns
    -------
        Ready for `save_as`, in Implicit VR Little Endian: Contour Data may exceed the 65534 bytes that the
        explicit form of its value representation can hold (PS3.5 7.1.2). None when nothing is found.
    """
    if not findings.found:
        return None
    ds = result_object(findings, run=run, form=ResultForm.RTSTRUCT)
    ds.Modality = "RTSTRUCT"
    ds.SeriesNumber = SERIES_NUMBER
    ds.OperatorsName = ""
    _add_structure_set(ds, findings)
    contours = _contours(findings)
    planes = _plane_characteristics(findings.stack)
    rois = [_roi_contour(one.segment, contours[one.segment.segment_number], planes) for one in findings.found]
    ds[_ROI_CONTOURS] = _raw(_ROI_CONTOURS, "SQ", _items(rois))
    ds.RTROIObservationsSequence = [_observation(one.segment) for one in findings.found]
    ds.ApprovalStatus = "UNAPPROVED"
    finish(ds, sop_class_uid=RTStructureSetStorage, transfer_syntax_uid=ImplicitVRLittleEndian)
    return ds


def _add_structure_set(ds: Dataset, findings: Findings) -> None:
    """Add the Structure Set module (PS3.3 C.8.8.5)."""
    stack, card = findings.stack, findings.card
    ds.StructureSetLabel = STRUCTURE_SET_LABEL
    ds.StructureSetName = series_description(card)
    ds.StructureSetDescription = description(stack)
    ds.StructureSetDate, ds.StructureSetTime = ds.ContentDate, ds.ContentTime
    del ds.ContentDate, ds.ContentTime  # not of this class
    images = stack_references(stack)
    series = Dataset()
    series.SeriesInstanceUID = stack.series_instance_uid
    series.ContourImageSequence = images
    study = Dataset()
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = attributes.text(stack.first, "StudyInstanceUID")
    study.RTReferencedSeriesSequence = [series]
    frame_of_reference = Dataset()
    frame_of_reference.FrameOfReferenceUID = stack.grid.frame_of_reference_uid
    frame_of_reference.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame_of_reference]
    ds.StructureSetROISequence = [_roi(one, stack, card) for one in findings.found]


def _roi(measure: Measure, stack: Stack, card: ModelCard) -> Dataset:
    item = Dataset()
    item.ROINumber = measure.segment.segment_number
    item.ReferencedFrameOfReferenceUID = stack.grid.frame_of_reference_uid
    item.ROIName = measure.segment.label
    item.ROIVolume = f"{measure.millilitres:.8g}"
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = series_description(card)
    item.ROIDerivationAlgorithmIdentificationSequence = AlgorithmIdentificationSequence(
        name=card.name[:LONG_STRING],
        version=card.version[:LONG_STRING],
        family=codes.cid7162.ArtificialIntelligence,
        source=DEVICE.manufacturer,
    )
    item.TrackingID = tracking_identifier(measure.segment.label, measure.tracking_uid)
    item.TrackingUID = measure.tracking_uid
    return item


def _roi_contour(segment: Segment, contours: Sequence[bytes], planes: Dataset | None) -> bytes:
    item = Dataset()
    item.ROIDisplayColor = list(segment.rgb)
    item.ReferencedROINumber = segment.segment_number
    if planes is not None:
        item.SourcePixelPlanesCharacteristicsSequence = [planes]
    item[_CONTOURS] = _raw(_CONTOURS, "SQ", _items(contours))
    item.set_original_encoding(is_implicit_vr=True, is_little_endian=True)
    return _encoded(item)


def _plane_characteristics(stack: Stack) -> Dataset | None:
    """Give the grid that the contours were made on, where the planes form one."""
    if not stack.is_regular:
        return None
    first = stack.frames[0]
    item = Dataset()
    item.SpacingBetweenSlices = decimal_string(stack.grid.spacing_mm[0])
    item.ImagePositionPatient = [decimal_string(value) for value in first.position_mm.tolist()]
    item.ImageOrientationPatient = [
        decimal_string(value) for value in (*first.row_cosines.tolist(), *first.column_cosines.tolist())
    ]
    item.NumberOfFrames = len(stack.frames)
    item.Rows, item.Columns = first.size
    item.PixelSpacing = [decimal_string(value) for value in first.pixel_spacing_mm.tolist()]
    return item


def _observation(segment: Segment) -> Dataset:
    """Say what a structure is (PS3.3 C.8.8.8)."""
    kind = coded(segment.type)
    if segment.type_modifier:
        kind.SegmentedPropertyTypeModifierCodeSequence = [coded(segment.type_modifier)]
    item = Dataset()
    item.ObservationNumber = segment.segment_number
    item.ReferencedROINumber = segment.segment_number
    item.SegmentedPropertyCategoryCodeSequence = [coded(segment.category)]
    item.RTROIIdentificationCodeSequence = [kind]
    if segment.region:
        item.AnatomicRegionSequence = [coded(segment.region)]
    is_organ = (segment.category.scheme, segment.category.value) in _ORGANS
    item.RTROIInterpretedType = "ORGAN" if is_organ else ""
    item.ROIInterpreter = ""
    return item


def _contours(findings: Findings) -> dict[int, list[bytes]]:
    """Encode the contours of each segment number, in the order of the planes."""
    contours: dict[int, list[bytes]] = {one.segment.segment_number: [] for one in findings.found}
    for frame, labels in zip(findings.stack.frames, findings.labels, strict=True):
        boxes = ndimage.find_objects(labels)
        reference = _image_reference(frame) if boxes else b""
        for number, box in enumerate(boxes, 1):
            if box is None:
                continue
            corner = np.array([box[0].start, box[1].start], np.float64)
            for ring in closed_rings(labels[box] == number):
                points = _on_plane(ring + corner, frame)
                contours[number].append(reference + _contour(points, len(contours[number]) + 1))
    return contours


def _image_reference(frame: SourceFrame) -> bytes:
    item = Dataset()
    item.ContourImageSequence = [frame_reference(frame)]
    return _encoded(item)


def _on_plane(ring: FloatArray, frame: SourceFrame) -> FloatArray:
    """Place a ring of (row, column) in patient space, rounded (PS3.3 C.7.6.2.1.1).

    It begins after the step that goes farthest in x and y: plastimatch 1.9.4 takes a last point for the
    first one repeated where only z tells them apart, as on sagittal and coronal planes.
    """
    steps = np.stack([frame.column_cosines, frame.row_cosines]) * frame.pixel_spacing_mm[:, None]
    places = max(ceil(-log10(PRECISION * float(frame.pixel_spacing_mm.min()))), 0)
    points = np.round(frame.position_mm + ring @ steps, places) + 0.0  # no negative zero
    sideways = np.abs(points - np.roll(points, 1, axis=0))[:, :2].sum(axis=1)
    return np.roll(points, -int(sideways.argmax()), axis=0)


def _contour(points: FloatArray, number: int) -> bytes:
    """Encode a contour as it stands in a file: its numbers are too many for an object each."""
    flat = points.reshape(-1).tolist()
    texts = (
        (Tag("ContourGeometricType"), "CLOSED_PLANAR"),
        (Tag("NumberOfContourPoints"), str(len(points))),
        (Tag("ContourNumber"), str(number)),
        (Tag("ContourData"), ("%.10g\\" * len(flat))[:-1] % tuple(flat)),
    )
    return b"".join(
        struct.pack("<HHI", tag.group, tag.element, len(text) + len(text) % 2)
        + (text + " " * (len(text) % 2)).encode("ascii")
        for tag, text in texts
    )


def _encoded(item: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = True, True
    write_dataset(buffer, item)
    return buffer.getvalue()


def _items(encoded: Sequence[bytes]) -> bytes:
    return b"".join(part for item in encoded for part in (_ITEM, struct.pack("<I", len(item)), item))


def _raw(tag: BaseTag, vr: str, value: bytes) -> RawDataElement:
    return RawDataElement(tag, vr, len(value), value, 0, True, True)
