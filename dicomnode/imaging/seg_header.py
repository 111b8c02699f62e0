"""The header of a segmentation: what is taken from the source images, from the model and from the clock."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime, timedelta, timezone, tzinfo

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM, format_number_as_ds

from dicomnode.domain import Code, ModelCard, Segment
from dicomnode.errors import UnreadableInstanceError
from dicomnode.imaging import attributes
from dicomnode.imaging.geometry import SliceGrid
from dicomnode.imaging.identity import derived_uid, tracking_uid

LONG_STRING = 64
NOT_VERIFIED = "(not verified)"

_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialSiteID",
    "ClinicalTrialSubjectID",
    "ClinicalTrialTimePointID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "StudyDescription",
    "StudyID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
_REQUIRED_EMPTY = (  # type 2 of the patient and study modules (PS3.3 C.7.1.1, C.7.2.1)
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
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
        _copy(ds, header, "ImagePositionPatient")
        for keyword in _OF_FIRST_SLICE:
            _copy(sources[0], header, keyword)
        for keyword in _REQUIRED_EMPTY:
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
        segmented_property_category=_coded(segment.category),
        segmented_property_type=_coded(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(card),
        tracking_uid=uid,
        tracking_id=f"{segment.label} {uid[-12:]}",
        anatomic_regions=[_coded(segment.region)] if segment.region else None,
        display_color=CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.type_modifier:
        modifier = [_coded(segment.type_modifier)]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return description


def series_description(card: ModelCard) -> str:
    """`AI <model> <version> (not verified)`, the model's name shortened where 64 characters do not do."""
    version = card.version.removeprefix(f"{card.name}@")
    tail = f" {version} {NOT_VERIFIED}"[-(LONG_STRING - 4) :]
    return f"AI {card.name[: LONG_STRING - 3 - len(tail)]}{tail}"


def finish_header(ds: Dataset, *, source: Dataset, created_at: datetime) -> None:
    """Write into a fresh segmentation what highdicom took from the clock, from chance, or could not take."""
    _copy_patient_and_study(source, ds)
    when = _local_time(source, created_at)
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S.%f")
    for prefix in ("InstanceCreation", "Content", "Series"):
        setattr(ds, f"{prefix}Date", date)
        setattr(ds, f"{prefix}Time", time)
    if _offset(source) is not None:
        ds.TimezoneOffsetFromUTC = attributes.text(source, "TimezoneOffsetFromUTC")
    for equipment in ds.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = date + time
    organization = derived_uid("dimensions", str(ds.SOPInstanceUID))
    for item in [*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization


def _slice_thickness(source: Dataset, grid: SliceGrid) -> str:
    nominal = attributes.numbers(source, "SliceThickness")
    if nominal is None or nominal[0] <= 0:
        return format_number_as_ds(grid.spacing_mm[0])
    return format_number_as_ds(float(nominal[0]))


def _copy(source: Dataset, target: Dataset, keyword: str) -> None:
    found = attributes.element(source, keyword)
    if found is not None:
        target[keyword] = deepcopy(found)


def _copy_patient_and_study(source: Dataset, ds: Dataset) -> None:
    for keyword in _PATIENT_AND_STUDY:
        if attributes.has_value(source, keyword) and _is_valid(source, keyword):
            _copy(source, ds, keyword)
        elif keyword in _REQUIRED_EMPTY:
            setattr(ds, keyword, "")
    if _has_known_character_set(source):
        _copy(source, ds, "SpecificCharacterSet")
    elif attributes.texts(source, "SpecificCharacterSet"):
        ds.SpecificCharacterSet = "ISO_IR 192"


def _is_valid(source: Dataset, keyword: str) -> bool:
    checks: dict[str, Callable[[str], object]] = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
    value = attributes.text(source, keyword)
    if keyword == "PatientSex":
        return value in {"M", "F", "O"}
    if keyword not in checks:
        return attributes.element(source, keyword) is not None
    try:
        return bool(checks[keyword](value))
    except ValueError:
        return False


def _has_known_character_set(source: Dataset) -> bool:
    if not attributes.texts(source, "SpecificCharacterSet"):
        return False
    try:
        convert_encodings(source.SpecificCharacterSet)
    except (LookupError, *attributes.UNREADABLE):
        return False
    return True


def _local_time(source: Dataset, created_at: datetime) -> datetime:
    if created_at.tzinfo is None:
        raise ValueError("created_at must be aware of its time zone")
    return created_at.astimezone(_offset(source) or created_at.tzinfo)


def _offset(source: Dataset) -> tzinfo | None:
    text = attributes.text(source, "TimezoneOffsetFromUTC")
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit():
        return None
    minutes = int(text[1:3]) * 60 + int(text[3:])
    if minutes >= 24 * 60:
        return None
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _algorithm(card: ModelCard) -> AlgorithmIdentificationSequence:
    return AlgorithmIdentificationSequence(
        name=card.name[:LONG_STRING],
        version=card.version[:LONG_STRING],
        family=codes.cid7162.ArtificialIntelligence,
        source="dicomnode",
        parameters={"weights_sha256": card.weights_sha256[:12]},
    )


def _coded(code: Code) -> CodedConcept:
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)
