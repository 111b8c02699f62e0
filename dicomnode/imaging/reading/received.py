"""Objects in which a reader's correction comes back, whatever form a viewer gave them."""

from collections.abc import Mapping, Sequence

from pydicom import Dataset

from dicomnode.domain import STRUCTURE_SET_SOP_CLASS, ModelCard
from dicomnode.imaging import attributes
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading import rtstruct_read, rtstruct_rois, seg_labels, seg_read, seg_stack
from dicomnode.imaging.reading.decoded import Decoded

_WRITES_PARTS = frozenset({"mitk"})
"""Content creators that save one object per group of segments: what is absent may stand in another object."""


def is_structure_set(ds: Dataset) -> bool:
    """Answer whether an object holds contours instead of masks."""
    return attributes.text(ds, "SOPClassUID") == STRUCTURE_SET_SOP_CLASS


def referenced_series(ds: Dataset) -> str | None:
    """Series that an object says it was made on; None where it names none.

    Raises
    ------
    CorrectionError
        It names several.
    """
    return rtstruct_read.referenced_series(ds) if is_structure_set(ds) else seg_read.referenced_series(ds)


def referenced_instances(ds: Dataset) -> frozenset[str]:
    """SOP Instance UIDs of all images that an object refers to."""
    if is_structure_set(ds):
        return rtstruct_read.referenced_instances(ds)
    return seg_read.referenced_instances(ds)


def stack_of(ds: Dataset, stacks: Sequence[Stack]) -> Stack:
    """Find the stack of a series that an object was made on.

    Raises
    ------
    CorrectionError
        It fits none, or several alike.
    """
    return rtstruct_read.stack_of(ds, stacks) if is_structure_set(ds) else seg_stack.stack_of(ds, stacks)


def labels_listed(ds: Dataset, card: ModelCard, *, aliases: Mapping[str, str]) -> frozenset[str]:
    """Labels of a model that an object lists, with or without voxels; its images are not needed.

    Raises
    ------
    CorrectionError
        It lists nothing, or its list contradicts itself.
    """
    series_uid = referenced_series(ds) or ""
    if is_structure_set(ds):
        rois = rtstruct_rois.listed_rois(ds, card, series_uid=series_uid, aliases=aliases)
        return frozenset(roi.label for roi in rois if roi.label is not None)
    listed = seg_labels.listed_segments(ds, card, series_uid, aliases=aliases)
    return frozenset(one.label for one in listed.values() if one.label is not None and not one.is_background)


def decode(ds: Dataset, *, stack: Stack, card: ModelCard, aliases: Mapping[str, str]) -> Decoded:
    """Read an object onto the planes of its source stack; see `seg_read.decode`, `rtstruct_read.decode`.

    Parameters
    ----------
    aliases
        Names that readers give to segments -> labels of a model.

    Raises
    ------
    CorrectionError
        It cannot be read without guessing; the message says why.
    """
    read = rtstruct_read.decode if is_structure_set(ds) else seg_read.decode
    return read(ds, stack=stack, card=card, aliases=aliases)


def is_whole_save(ds: Dataset) -> bool:
    """Answer whether its writer saves all segments together, so that an absent one may have been erased."""
    return attributes.text(ds, "ContentCreatorName").casefold() not in _WRITES_PARTS


def content_time(ds: Dataset) -> str:
    """When the reader says that the content was made, local "YYYYMMDDHHMMSS.ffffff"; "" if it does not.

    Content Date and Time (PS3.3 C.7.6.16, C.8.20), of a structure set those of the structure set (C.8.8.5).
    """
    names = (
        ("StructureSetDate", "StructureSetTime") if is_structure_set(ds) else ("ContentDate", "ContentTime")
    )
    day, clock = (attributes.text(ds, name).replace("-", "").replace(":", "") for name in names)
    if len(day) != len("YYYYMMDD") or not day.isdigit():
        return ""
    whole, _, fraction = clock.partition(".")
    return f"{day}{whole:0<6.6}.{fraction:0<6.6}"
