"""The header of a segmentation: what is taken from the source images, from the model and from the clock."""

from collections.abc import Sequence

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from pydicom import Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from dicomnode.domain import Code, ModelCard
from dicomnode.errors import UnreadableInstanceError
from dicomnode.imaging import attributes
from dicomnode.imaging.identity import derived_uid, tracking_identifier
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.functional_groups import decimal_string
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.results.findings import Findings, Measure, Run
from dicomnode.imaging.results.result_header import (
    LONG_STRING,
    coded,
    copy_element,
    write_equipment,
    write_patient_and_study,
    write_times,
)

CONTENT_LABEL = "AI_SEG"
CONTENT_DESCRIPTION = "AI result, not verified by a physician"
SEE_COMMENTS = "; see Image Comments"
LONG_TEXT = 10240

_SEGMENT_NUMBER = (0x0062000B, 0x0062000A, "Referenced Segment Number")
_POSITION = (0x00200032, 0x00209113, "Image Position Patient")
_BACKGROUND_CATEGORY = Code(value="309825002", scheme="SCT", meaning="Spatial and Relational Concept")
_BACKGROUND = Code(value="125040", scheme="DCM", meaning="Background")
_LOSSY = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")


def check_references(stack: Stack) -> None:
    """Raise `UnreadableInstanceError` for sources that cannot be referred to."""
    keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")
    for source in stack.datasets:
        missing = [keyword for keyword in keywords if not attributes.text(source, keyword)]
        if missing:
            raise UnreadableInstanceError(
                f"series {stack.series_instance_uid}: instance {attributes.text(source, 'SOPInstanceUID')} "
                f"lacks {', '.join(missing)}"
            )


def write_identity(ds: Dataset, findings: Findings, *, key: tuple[str, ...], run: Run) -> None:
    """Derive the UIDs of a segmentation from source, model and run; that of the instance from voxels too.

    `key` tells the forms of result and their parts apart.
    """
    card, stack = findings.card, findings.stack
    name = (stack.name,) if stack.name else ()
    base = (*name, card.name, card.version, findings.label_table_sha256, run.revision)
    series_key, *part = key
    ds.SeriesInstanceUID = derived_uid(f"{series_key} series", stack.series_instance_uid, *base, *part)
    ds.SOPInstanceUID = derived_uid(
        f"{series_key} instance", stack.series_instance_uid, *base, *part, findings.voxels_sha256
    )
    ds.InstanceNumber = 1


def write_source(ds: Dataset, findings: Findings, *, run: Run) -> None:
    """Write patient, study, frame of reference, references to the source images, device and times."""
    stack = findings.stack
    write_patient_and_study(ds, stack.first)
    ds.StudyInstanceUID = attributes.text(stack.first, "StudyInstanceUID")
    write_equipment(ds)
    write_times(ds, stack.first, run.created_at)
    ds.FrameOfReferenceUID = stack.grid.frame_of_reference_uid
    ds.PositionReferenceIndicator = attributes.text(stack.first, "PositionReferenceIndicator")
    series = Dataset()
    series.SeriesInstanceUID = stack.series_instance_uid
    series.ReferencedInstanceSequence = [_reference(source) for source in stack.datasets]
    ds.ReferencedSeriesSequence = [series]


def write_image(ds: Dataset, stack: Stack) -> None:
    """Write what segmentations of every type say of their pixels and planes."""
    ds.Modality = "SEG"
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.Rows, ds.Columns = stack.shape[1:]
    ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    lossy = [source for source in stack.datasets if attributes.text(source, "LossyImageCompression") == "01"]
    ds.LossyImageCompression = "01" if lossy else "00"
    for keyword in _LOSSY if lossy else ():
        copy_element(lossy[0], ds, keyword)
    ds.SegmentsOverlap = "NO"
    _write_comments(ds, stack)
    ds.SharedFunctionalGroupsSequence = [_shared_groups(stack)]


def write_dimensions(ds: Dataset, *, has_segments: bool) -> None:
    """Say what frames are sorted by (PS3.3 C.7.6.17): by segment, except in a label map, and position."""
    organization = derived_uid("dimensions", str(ds.SOPInstanceUID))
    ds.DimensionOrganizationSequence = [Dataset()]
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    items = []
    for pointer, group, label in (_SEGMENT_NUMBER, _POSITION) if has_segments else (_POSITION,):
        item = Dataset()
        item.DimensionOrganizationUID = organization
        item.DimensionIndexPointer, item.FunctionalGroupPointer = pointer, group
        item.DimensionDescriptionLabel = label
        items.append(item)
    ds.DimensionIndexSequence = items


def write_file_meta(ds: Dataset, transfer_syntax: UID) -> None:
    """Say how the data set is encoded, so that its functional groups are written as they stand."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = transfer_syntax
    character_set = ds.get("SpecificCharacterSet")
    ds.set_original_encoding(
        is_implicit_vr=False,
        is_little_endian=True,
        character_encoding=convert_encodings(character_set) if character_set else default_encoding,
    )


def segment_items(segments: Sequence[Measure], card: ModelCard) -> list[Dataset]:
    """Describe segments (PS3.3 C.8.20.4), numbered from 1 in the order given."""
    algorithm = AlgorithmIdentificationSequence(
        name=card.name[:LONG_STRING],
        version=card.version[:LONG_STRING],
        family=codes.cid7162.ArtificialIntelligence,
        source="dicomnode",
        parameters={"weights_sha256": card.weights_sha256[:12]},
    )
    return [_segment_item(measure, number, algorithm) for number, measure in enumerate(segments, start=1)]


def background_item() -> Dataset:
    """Describe the value 0 of a label map, which must be described as every other (PS3.3 C.8.20.2.3.3)."""
    description = SegmentDescription(
        segment_number=1,  # 0 is refused by the constructor
        segment_label="Background",
        segmented_property_category=coded(_BACKGROUND_CATEGORY),
        segmented_property_type=coded(_BACKGROUND),
        algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
        display_color=CIELabColor(0.0, 0.0, 0.0),
    )
    description.SegmentNumber = 0
    return description


def _segment_item(
    measure: Measure, number: int, algorithm: AlgorithmIdentificationSequence
) -> SegmentDescription:
    segment, uid = measure.segment, measure.tracking_uid
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=coded(segment.category),
        segmented_property_type=coded(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=uid,
        tracking_id=tracking_identifier(segment.label, uid),
        anatomic_regions=[coded(segment.region)] if segment.region else None,
        display_color=CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.type_modifier:
        modifier = [coded(segment.type_modifier)]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return description


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = attributes.text(source, "SOPClassUID")
    item.ReferencedSOPInstanceUID = attributes.text(source, "SOPInstanceUID")
    return item


def _write_comments(ds: Dataset, stack: Stack) -> None:
    ds.ContentLabel = CONTENT_LABEL
    ds.ContentDescription = CONTENT_DESCRIPTION
    ds.ContentCreatorName = ""
    comments = (*((f"stack: {stack.name}",) if stack.name else ()), *stack.remarks)
    if comments:
        ds.ContentDescription += SEE_COMMENTS
        ds.ImageComments = "; ".join(comments).encode("ascii", "replace").decode()[:LONG_TEXT]


def _shared_groups(stack: Stack) -> Dataset:
    first = stack.frames[0]
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [
        decimal_string(value) for value in (*first.row_cosines, *first.column_cosines)
    ]
    measures.SliceThickness = decimal_string(_slice_thickness(first) or stack.grid.spacing_mm[0])
    measures.SpacingBetweenSlices = decimal_string(stack.grid.spacing_mm[0])
    measures.PixelSpacing = [decimal_string(value) for value in first.pixel_spacing_mm]
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    return shared


def _slice_thickness(frame: SourceFrame) -> float | None:
    own = attributes.items(frame.ds, "PerFrameFunctionalGroupsSequence")[frame.frame_number - 1 :][:1]
    groups = [*own, *attributes.items(frame.ds, "SharedFunctionalGroupsSequence")]
    measures = [item for group in groups for item in attributes.items(group, "PixelMeasuresSequence")]
    for ds in (*measures, frame.ds):
        found = attributes.numbers(ds, "SliceThickness")
        if found is not None and found[0] > 0:
            return float(found[0])
    return None
