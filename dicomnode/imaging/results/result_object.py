"""What the plain objects among the results begin with, and how they point at their source."""

from collections import Counter
from collections.abc import Sequence

from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

from dicomnode.domain import ResultForm
from dicomnode.imaging import attributes
from dicomnode.imaging.identity import derived_uid
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.results.findings import Findings, Run
from dicomnode.imaging.results.result_header import (
    copy_element,
    series_description,
    write_equipment,
    write_patient_and_study,
    write_times,
)

NOT_VERIFIED_TEXT = "AI result, not verified by a physician"
_SHORT_TEXT = 1024


def result_object(findings: Findings, *, run: Run, form: ResultForm, instance_number: int = 1) -> Dataset:
    """Begin an object with the patient, study, equipment, times, frame of reference and UIDs of a result.

    Both UIDs derive from the source, the model, its label table and the run; that of the instance also from
    the voxels and its number. SOP class, modality, series number and content are the caller's to add.
    """
    source = findings.stack.first
    ds = Dataset()
    write_patient_and_study(ds, source)
    copy_element(source, ds, "StudyInstanceUID")
    key = _key(findings, run)
    ds.SeriesInstanceUID = derived_uid(f"{form} series", *key)
    ds.SOPInstanceUID = derived_uid(f"{form} instance", *key, findings.voxels_sha256, str(instance_number))
    ds.InstanceNumber = instance_number
    ds.SeriesDescription = series_description(findings.card)
    write_equipment(ds)
    write_times(ds, source, run.created_at)
    ds.FrameOfReferenceUID = findings.stack.grid.frame_of_reference_uid
    ds.PositionReferenceIndicator = attributes.text(source, "PositionReferenceIndicator")
    return ds


def finish(ds: Dataset, *, sop_class_uid: UID, transfer_syntax_uid: UID) -> None:
    """Name the class and the encoding of an object, so that its elements are written as they stand."""
    ds.SOPClassUID = sop_class_uid
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = sop_class_uid
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
    character_set = ds.get("SpecificCharacterSet")
    ds.set_original_encoding(
        is_implicit_vr=transfer_syntax_uid.is_implicit_VR,
        is_little_endian=True,
        character_encoding=convert_encodings(character_set) if character_set else None,
    )


def description(stack: Stack) -> str:
    """Say that nobody verified the result, and what of the stack is not regular; 1024 characters."""
    return ". ".join([NOT_VERIFIED_TEXT, *stack.remarks])[:_SHORT_TEXT]


def frame_reference(frame: SourceFrame) -> Dataset:
    """Refer to one plane (PS3.3 Table 10-3, Image SOP Instance Reference)."""
    item = _instance_reference(frame.ds)
    if frame.is_multi_frame:
        item.ReferencedFrameNumber = frame.frame_number
    return item


def stack_references(stack: Stack) -> list[Dataset]:
    """Refer to every instance of a stack; where only some frames of one belong to it, to those."""
    counted = Counter(id(frame.ds) for frame in stack.frames)
    items = []
    for ds in stack.datasets:
        item = _instance_reference(ds)
        if counted[id(ds)] < (attributes.integer(ds, "NumberOfFrames") or 1):
            item.ReferencedFrameNumber = sorted(_frame_numbers(stack.frames, ds))
        items.append(item)
    return items


def _key(findings: Findings, run: Run) -> Sequence[str]:
    stack, card = findings.stack, findings.card
    name = [stack.name] if stack.name else []
    labels = findings.label_table_sha256
    return [stack.series_instance_uid, *name, card.name, card.version, labels, run.revision]


def _frame_numbers(frames: Sequence[SourceFrame], ds: Dataset) -> list[int]:
    return [frame.frame_number for frame in frames if frame.ds is ds]


def _instance_reference(ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = attributes.text(ds, "SOPClassUID")
    item.ReferencedSOPInstanceUID = attributes.text(ds, "SOPInstanceUID")
    return item
