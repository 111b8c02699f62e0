"""What every result has in common: patient, study, equipment, times, and the name of its series."""

from collections.abc import Callable
from copy import deepcopy
from datetime import datetime, timedelta, timezone, tzinfo

from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.valuerep import DA, TM

from dicomnode.domain import Code, ModelCard
from dicomnode.imaging import attributes
from dicomnode.imaging.identity import DEVICE

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
_CLINICAL_TRIAL = (  # PS3.3 C.7.1.3 and C.7.2.3
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
)
_EMPTY_IN_TRIAL = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
REQUIRED_EMPTY = (  # type 2 of the patient and study modules (PS3.3 C.7.1.1, C.7.2.1)
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


def copy_element(source: Dataset, target: Dataset, keyword: str) -> None:
    """Copy an element that can be decoded; one that is absent or cannot be is left out."""
    found = attributes.element(source, keyword)
    if found is not None:
        target[keyword] = deepcopy(found)


def write_patient_and_study(ds: Dataset, source: Dataset) -> None:
    """Give a result the patient and the study of its source, as they stand there (PS3.3 C.7.1, C.7.2).

    What is absent or malformed there is left out, or empty where it must be present. Names keep the bytes of
    the source's character set; a character set that is not known is replaced by UTF-8.
    """
    for keyword in _PATIENT_AND_STUDY:
        if attributes.has_value(source, keyword) and _is_valid(source, keyword):
            copy_element(source, ds, keyword)
        elif keyword in REQUIRED_EMPTY:
            setattr(ds, keyword, "")
    if _is_in_trial(source):
        _write_clinical_trial(ds, source)
    if _has_known_character_set(source):
        copy_element(source, ds, "SpecificCharacterSet")
    elif attributes.texts(source, "SpecificCharacterSet"):
        ds.SpecificCharacterSet = "ISO_IR 192"


def write_times(ds: Dataset, source: Dataset, created_at: datetime) -> None:
    """Date an object, its content, series and equipment, in the source's time zone if it names one."""
    when = _local_time(source, created_at)
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S.%f")
    for prefix in ("InstanceCreation", "Content", "Series"):
        setattr(ds, f"{prefix}Date", date)
        setattr(ds, f"{prefix}Time", time)
    if _offset(source) is not None:
        ds.TimezoneOffsetFromUTC = attributes.text(source, "TimezoneOffsetFromUTC")
    for equipment in ds.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = date + time


def write_equipment(ds: Dataset) -> None:
    """Name the node as the equipment that made an object (PS3.3 C.7.5.1, C.7.5.2)."""
    ds.Manufacturer = DEVICE.manufacturer
    ds.ManufacturerModelName = DEVICE.manufacturer_model_name
    ds.SoftwareVersions = DEVICE.software_versions
    ds.DeviceSerialNumber = DEVICE.device_serial_number


def series_description(card: ModelCard) -> str:
    """`AI <model> <version> (not verified)`, the model's name shortened where 64 characters do not do."""
    version = card.version.removeprefix(f"{card.name}@")
    tail = f" {version} {NOT_VERIFIED}"[-(LONG_STRING - 4) :]
    return f"AI {card.name[: LONG_STRING - 3 - len(tail)]}{tail}"


def _write_clinical_trial(ds: Dataset, source: Dataset) -> None:
    for keyword in _CLINICAL_TRIAL:
        if attributes.has_value(source, keyword):
            copy_element(source, ds, keyword)
        elif keyword in _EMPTY_IN_TRIAL:
            setattr(ds, keyword, "")


def _is_in_trial(source: Dataset) -> bool:
    """Answer whether the source names sponsor, protocol and subject, as the module requires."""
    subject = ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")
    names_subject = any(attributes.text(source, keyword) for keyword in subject)
    return names_subject and all(attributes.text(source, keyword) for keyword in _CLINICAL_TRIAL[:2])


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


def coded(code: Code) -> CodedConcept:
    """Turn a coded concept into the item that highdicom takes."""
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)
