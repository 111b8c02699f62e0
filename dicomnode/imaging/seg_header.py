"""The header of a segmentation: what is taken from the source images, from the model and from the clock."""

from collections.abc import Sequence
from datetime import datetime

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import format_number_as_ds

from dicomnode.domain import ModelCard, Segment
from dicomnode.errors import UnreadableInstanceError
from dicomnode.imaging import attributes
from dicomnode.imaging.geometry import SliceGrid
from dicomnode.imaging.identity import derived_uid, tracking_uid
from dicomnode.imaging.result_header import (
    LONG_STRING,
    REQUIRED_EMPTY,
    coded,
    copy_element,
    write_patient_and_study,
    write_times,
)

_OF_FIRST_SLICE = (  # alike over the series, or only roughly so (direction cosines)
    "ImageOrientationPatient",
    "PixelSpacing",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


def source_headers(sources: Sequence[Dataset], grid: SliceGrid) -> list[Dataset]:
    """Copy of the sources that highdicom can take: no pixels, nothing missing, nobody's name.

    The patient's and the study's attributes are left empty here, because highdicom refuses
    malformed values and logs unusual names; `finish_header` writes them as the source has them.
    """
    if not all(attributes.text(ds, k) for ds in sources for k in ("SOPClassUID", "StudyInstanceUID")):
        raise UnreadableInstanceError(
            f"series {grid.series_instance_uid} lacks a SOP Class or Study Instance UID"
        )
    headers = []
    for ds in sources:
        header = Dataset()
        header.SOPClassUID = attributes.text(ds, "SOPClassUID")
        header.SOPInstanceUID = attributes.text(ds, "SOPInstanceUID")
        header.StudyInstanceUID = attributes.text(sources[0], "StudyInstanceUID")
        header.SeriesInstanceUID = grid.series_instance_uid
        header.Modality = attributes.text(sources[0], "Modality")
        copy_element(ds, header, "ImagePositionPatient")
        for keyword in _OF_FIRST_SLICE:
            copy_element(sources[0], header, keyword)
        for keyword in REQUIRED_EMPTY:
            setattr(header, keyword, None)
        header.SliceThickness = _slice_thickness(sources[0], grid)
        header.SpacingBetweenSlices = format_number_as_ds(grid.spacing_mm[0])
        header.Rows, header.Columns = grid.shape[1:]
        header.FrameOfReferenceUID = grid.frame_of_reference_uid
        header.PatientBirthDate = ""
        headers.append(header)
    return headers


def segment_description(
    segment: Segment, number: int, *, card: ModelCard, series_instance_uid: str
) -> SegmentDescription:
    """Describe one segment (PS3.3 C.8.20.4) under the number that it has in this object."""
    uid = tracking_uid(series_instance_uid, segment.label)
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=coded(segment.category),
        segmented_property_type=coded(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(card),
        tracking_uid=uid,
        tracking_id=f"{segment.label} {uid[-12:]}",
        anatomic_regions=[coded(segment.region)] if segment.region else None,
        display_color=CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.type_modifier:
        modifier = [coded(segment.type_modifier)]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return description


def finish_header(ds: Dataset, *, source: Dataset, created_at: datetime) -> None:
    """Write into a fresh segmentation what highdicom took from the clock, from chance, or could not take."""
    write_patient_and_study(ds, source)
    write_times(ds, source, created_at)
    organization = derived_uid("dimensions", str(ds.SOPInstanceUID))
    for item in [*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization


def _slice_thickness(source: Dataset, grid: SliceGrid) -> str:
    nominal = attributes.numbers(source, "SliceThickness")
    if nominal is None or nominal[0] <= 0:
        return format_number_as_ds(grid.spacing_mm[0])
    return format_number_as_ds(float(nominal[0]))


def _algorithm(card: ModelCard) -> AlgorithmIdentificationSequence:
    return AlgorithmIdentificationSequence(
        name=card.name[:LONG_STRING],
        version=card.version[:LONG_STRING],
        family=codes.cid7162.ArtificialIntelligence,
        source="dicomnode",
        parameters={"weights_sha256": card.weights_sha256[:12]},
    )
