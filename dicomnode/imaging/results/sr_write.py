"""What was found, in figures: a Comprehensive 3D SR with a measurement report (PS3.3 A.35.13, TID 1500).

For each label that was found: volume, mean and SD of the pixel values, tied to its segment by the Tracking
UID. A label that was looked for and not found is said too, in code and in words, so that a report without
measurements is a report that nothing was found and never a blank.
"""

from collections.abc import Sequence

import numpy as np
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as DictionaryCode
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from dicomnode.domain import Code, ResultForm
from dicomnode.imaging import attributes
from dicomnode.imaging.identity import DEVICE, derived_uid
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.results.findings import Findings, Run
from dicomnode.imaging.results.result_header import coded
from dicomnode.imaging.results.result_object import NOT_VERIFIED_TEXT, finish, result_object
from dicomnode.imaging.results.seg_header import check_references
from dicomnode.imaging.results.sr_groups import image_references, measurement_groups, not_found

SERIES_NUMBER = 9101

_CONTAINS = RelationshipTypeValues.CONTAINS
_ACQUISITION = RelationshipTypeValues.HAS_ACQ_CONTEXT
_EVALUATIONS = Code(value="C0034375", scheme="UMLS", meaning="Qualitative Evaluations")
_SOURCE = Code(value="260753009", scheme="SCT", meaning="Source")
_ENGLISH = CodedConcept("en", "RFC5646", "English")
_PROCEDURES = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
}
_MODALITIES = {
    "CT": codes.DCM.ComputedTomography,
    "MR": codes.DCM.MagneticResonance,
    "PT": codes.DCM.PositronEmissionTomography,
}
_NOT_OF_THIS_CLASS = ("FrameOfReferenceUID", "PositionReferenceIndicator")


def encode(findings: Findings, *, run: Run, segs: Sequence[Dataset]) -> Dataset:
    """Write the figures of what was found, or that nothing was found, as a measurement report.

    Parameters
    ----------
    segs
        The segmentations of the same findings that go to the same reader: the BINARY parts, or the label
        map. () where it gets none; then the report refers to the images on which each label was found. They
        are part of the SOP Instance UID, because reports on different objects are different reports.

    Returns
    -------
        Ready for `save_as`, in Explicit VR Little Endian; UNVERIFIED and PRELIMINARY, in its own series.

    Raises
    ------
    UnreadableInstanceError
        A source image cannot be referred to, because it lacks a UID.
    ValueError
        There are segmentations, and none of them holds a label that was found.
    """
    check_references(findings.stack)
    ds = result_object(findings, run=run, form=ResultForm.SR)
    for keyword in _NOT_OF_THIS_CLASS:
        ds.pop(keyword, None)
    seg_uids = [attributes.text(seg, "SOPInstanceUID") for seg in segs]
    if seg_uids:
        ds.SOPInstanceUID = derived_uid("sr on", str(ds.SOPInstanceUID), *seg_uids)
    _write_document(ds, findings.stack, segs)
    for element in _report(findings, segs):
        ds.add(element)
    finish(ds, sop_class_uid=Comprehensive3DSRStorage, transfer_syntax_uid=ExplicitVRLittleEndian)
    return ds


def _write_document(ds: Dataset, stack: Stack, segs: Sequence[Dataset]) -> None:
    """Write the series and general modules of a document (PS3.3 C.17.1, C.17.2)."""
    ds.Modality = "SR"
    ds.SeriesNumber = SERIES_NUMBER
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    ds.CompletionFlag = "COMPLETE"
    ds.PreliminaryFlag = "PRELIMINARY"
    ds.VerificationFlag = "UNVERIFIED"
    study = Dataset()
    study.StudyInstanceUID = attributes.text(stack.first, "StudyInstanceUID")
    study.ReferencedSeriesSequence = [_evidence([seg]) for seg in segs] + [_evidence(stack.datasets)]
    ds.CurrentRequestedProcedureEvidenceSequence = [study]


def _evidence(datasets: Sequence[Dataset]) -> Dataset:
    """Refer to instances of one series."""
    series = Dataset()
    series.SeriesInstanceUID = attributes.text(datasets[0], "SeriesInstanceUID")
    series.ReferencedSOPSequence = []
    for ds in datasets:
        item = Dataset()
        item.ReferencedSOPClassUID = attributes.text(ds, "SOPClassUID")
        item.ReferencedSOPInstanceUID = attributes.text(ds, "SOPInstanceUID")
        series.ReferencedSOPSequence.append(item)
    return series


def _report(findings: Findings, segs: Sequence[Dataset]) -> Dataset:
    """Write the root of the content (TID 1500); measurements only where there are some (row 6)."""
    modality = attributes.text(findings.stack.first, "Modality")
    procedure = _PROCEDURES.get(modality, codes.cid100.ImagingProcedure)
    groups = [item for group in measurement_groups(findings, segs) for item in group]
    root = ContainerContentItem(codes.cid7021.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = ContentSequence(
        [
            *LanguageOfContentItemAndDescendants(_ENGLISH),
            *ObservationContext(observer_device_context=_observer()),
            CodeContentItem(codes.DCM.ProcedureReported, procedure, RelationshipTypeValues.HAS_CONCEPT_MOD),
            _image_library(findings.stack),
            *([_container(codes.DCM.ImagingMeasurements, groups)] if groups else []),
            _container(coded(_EVALUATIONS), [*not_found(findings), *_remarks(findings)]),
        ]
    )
    return root


def _observer() -> ObserverContext:
    """Name the node as the device that observed (TID 1004)."""
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", DEVICE.manufacturer, DEVICE.device_serial_number),
            name=DEVICE.software_versions,
            manufacturer_name=DEVICE.manufacturer,
            model_name=DEVICE.manufacturer_model_name,
            serial_number=DEVICE.device_serial_number,
        ),
    )


def _image_library(stack: Stack) -> ContainerContentItem:
    """List the images that were looked at, with what they have in common (TID 1600)."""
    source = coded(_SOURCE)
    items = [
        *_common_descriptors(stack),
        *(
            ImageContentItem(source, sop_class, instance, numbers, relationship_type=_CONTAINS)
            for sop_class, instance, numbers in image_references(stack.frames)
        ),
    ]
    group = _container(codes.DCM.ImageLibraryGroup, items)
    return _container(codes.DCM.ImageLibrary, [group])


def _common_descriptors(stack: Stack) -> list[ContentItem]:
    """Write TID 1602 and 1604 of the whole stack."""
    rows_mm, columns_mm = stack.frames[0].pixel_spacing_mm.tolist()
    lengths = (
        (codes.DCM.HorizontalPixelSpacing, columns_mm),
        (codes.DCM.VerticalPixelSpacing, rows_mm),
        (codes.DCM.SpacingBetweenSlices, float(stack.grid.spacing_mm[0])),
    )
    modality = _MODALITIES.get(attributes.text(stack.first, "Modality"))
    frame_of_reference = stack.grid.frame_of_reference_uid
    return [
        *([CodeContentItem(codes.DCM.Modality, modality, _ACQUISITION)] if modality else []),
        UIDRefContentItem(codes.DCM.FrameOfReferenceUID, frame_of_reference, _ACQUISITION),
        *(
            NumContentItem(name, length, codes.UCUM.Millimeter, relationship_type=_ACQUISITION)
            for name, length in lengths
        ),
    ]


def _remarks(findings: Findings) -> list[TextContentItem]:
    """Say in words what a reader must know of the result."""
    texts = [NOT_VERIFIED_TEXT, *_outcome(findings)]
    if findings.stack.name:
        texts.append(f"Images: {findings.stack.name}")
    texts += findings.stack.remarks
    return [TextContentItem(codes.DCM.Comment, _plain(text), _CONTAINS) for text in texts]


def _outcome(findings: Findings) -> list[str]:
    """Say which labels were found, which not, and by which model."""
    model = findings.card.version
    found = [f"{one.segment.label} ({_figure(one.millilitres)} ml)" for one in findings.found]
    missing = [one.segment.label for one in findings.measures if not one.voxels]
    if not found:
        return [f"Nothing was found. Model {model} looked in these images for: {', '.join(missing)}"]
    said = [f"Found by model {model}: {', '.join(found)}"]
    return [*said, f"Looked for and not found: {', '.join(missing)}"] if missing else said


def _figure(value: float) -> str:
    """Write four significant digits, never with an exponent."""
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")


def _container(name: CodedConcept | DictionaryCode, items: Sequence[ContentItem]) -> ContainerContentItem:
    container = ContainerContentItem(name, relationship_type=_CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container


def _plain(text: str) -> str:
    """Keep to characters that every character set of a source can write."""
    return text.encode("ascii", "replace").decode()
