"""Notes by which a reader rejects whole results: Key Object Selection documents (IHE IOCM)."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import KEY_OBJECT_SOP_CLASS
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes

REJECTIONS = {"113001": "rejected for quality reasons", "113037": "rejected for patient safety reasons"}
"""Document titles (PS3.16 CID 7011) that speak of what an object shows; others only take it out of use."""

MOST_REFERENCES = 20_000
"""Objects of a study in one note; each is looked up in the database."""


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

    Raises
    ------
    CorrectionError
        It names more than `MOST_REFERENCES`.
    """
    titles = {
        attributes.text(item, "CodeValue")
        for item in attributes.items(ds, "ConceptNameCodeSequence")
        if attributes.text(item, "CodingSchemeDesignator") == "DCM"
    }
    found = sorted(titles & REJECTIONS.keys())
    if not found:
        return None
    uids = tuple(dict.fromkeys(_evidence(ds)))
    if len(uids) > MOST_REFERENCES:
        name = attributes.text(ds, "SOPInstanceUID") or "(no UID)"
        raise CorrectionError(
            f"rejection note {name} names {len(uids)} objects; at most {MOST_REFERENCES} are looked up"
        )
    return Rejection(reason=REJECTIONS[found[0]], sop_instance_uids=uids)


def _evidence(ds: Dataset) -> Iterator[str]:
    for study in attributes.items(ds, "CurrentRequestedProcedureEvidenceSequence"):
        for series in attributes.items(study, "ReferencedSeriesSequence"):
            for item in attributes.items(series, "ReferencedSOPSequence"):
                uid = attributes.text(item, "ReferencedSOPInstanceUID")
                if uid:
                    yield uid
