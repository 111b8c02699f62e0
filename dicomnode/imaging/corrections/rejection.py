"""Notes by which a reader rejects whole results: Key Object Selection documents (IHE IOCM)."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import KEY_OBJECT_SOP_CLASS
from dicomnode.imaging import attributes

REJECTIONS = {"113001": "rejected for quality reasons", "113037": "rejected for patient safety reasons"}
"""Document titles (PS3.16 CID 7011) that speak of what an object shows; others only take it out of use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """What a note rejects, and why."""

    reason: str
    sop_instance_uids: tuple[str, ...]


def is_key_object(ds: Dataset) -> bool:
    """Answer whether an object is a Key Object Selection document."""
    return attributes.text(ds, "SOPClassUID") == KEY_OBJECT_SOP_CLASS


def read_rejection(ds: Dataset) -> Rejection | None:
    """Read which objects a Key Object Selection document rejects for what they show; None for other ones.

    The objects are those of the Current Requested Procedure Evidence Sequence (PS3.3 C.17.6.2).
    """
    titles = {
        attributes.text(item, "CodeValue")
        for item in attributes.items(ds, "ConceptNameCodeSequence")
        if attributes.text(item, "CodingSchemeDesignator") == "DCM"
    }
    found = sorted(titles & REJECTIONS.keys())
    if not found:
        return None
    return Rejection(reason=REJECTIONS[found[0]], sop_instance_uids=tuple(dict.fromkeys(_evidence(ds))))


def _evidence(ds: Dataset) -> Iterator[str]:
    for study in attributes.items(ds, "CurrentRequestedProcedureEvidenceSequence"):
        for series in attributes.items(study, "ReferencedSeriesSequence"):
            for item in attributes.items(series, "ReferencedSOPSequence"):
                uid = attributes.text(item, "ReferencedSOPInstanceUID")
                if uid:
                    yield uid
