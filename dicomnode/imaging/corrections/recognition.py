"""What a received segmentation is, beside everything that this site has sent about the same series.

Masks are on the planes of the source stack, axes (slice, row, column), as `received.decode` gives them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicomnode.domain import Recognition, Sha256
from dicomnode.imaging import attributes
from dicomnode.imaging.corrections.comparison import dice
from dicomnode.imaging.identity import BoolArray, is_own_device, voxels_sha256
from dicomnode.imaging.reading.decoded import Decoded
from dicomnode.imaging.reading.seg_frames import is_dcmjs, source_images
from dicomnode.imaging.reading.seg_labels import BACKGROUND_CODE

SIMILAR_DICE = 0.5
SIMILAR_SLICES = 0.3
UNLIKE_DICE = 0.05
"""A certain correction none of whose labels overlaps ours by so much is shown to a person first."""

_VIEWER_MANUFACTURERS = frozenset({"", "unspecified", "qiicr", "monai consortium", "monai label"})
_VIEWER_ALGORITHMS = frozenset(
    {"", "ohif brush", "mitk segmentation", "slicer", "monailabel", "monai label", "manual"}
)
"""Names that viewers give to what a person drew or edited, whatever type they claim with them."""
_NESTED_REFERENCES = ("ReferencedSeriesSequence", "ReferencedSOPSequence", "ReferencedInstanceSequence")
_REFERENCES = (
    "PredecessorDocumentsSequence",
    "PredecessorStructureSetSequence",
    "SourceInstanceSequence",
    "ReferencedInstanceSequence",
)

_IN_PLACE = "our object came back under its own UID with other voxels"
_Found = tuple[Recognition, str, "SentObject | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentObject:
    """What is kept of an object that we made of the same source series: a segmentation or a part of one."""

    sop_instance_uid: str
    series_instance_uid: str
    voxels_sha256: Sha256 | None  # of the labels in it; None where it holds no voxels (a report)
    labels: frozenset[str]  # what it speaks of: every label of the model, or those of its part
    tracking_uids: frozenset[str] = frozenset()  # of its labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the node knows of the source series when a segmentation of it comes in."""

    sent: Sequence[SentObject]  # oldest first; of one result the whole before its parts
    prediction: Mapping[str, BoolArray]  # of the latest result, all labels; empty where there is none
    model_name: str
    is_trusted_sender: bool = False  # site's allow list of AE titles and authors


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """The kind of a received segmentation, why, and which of our objects it goes back to."""

    kind: Recognition
    reasons: tuple[str, ...]
    corrects: SentObject | None
    doubts: tuple[str, ...] = ()  # why a person must look before anything is learned from it

    @property
    def is_in_place(self) -> bool:
        """Answer whether somebody overwrote our object under its own UID."""
        return self.kind is Recognition.CORRECTION and _IN_PLACE in self.reasons


def recognise(received: Dataset, *, decoded: Decoded, known: Known) -> Recognised:
    """Tell what a received segmentation is; the first rule that applies decides.

    1. our SOP Instance UID: loop-back if the voxels are equal, else a correction in place;
    2. voxels equal to an object sent: loop-back from our own device, foreign if another vendor's
       algorithm made it, else accepted unchanged;
    3. a reference to our object, or a new object in our series: correction;
    4. our Tracking UIDs: correction;
    5. no label of the model, or another vendor's algorithm: foreign;
    6. similar to our latest result (Dice >= 0.5 in a label, or 30 % of a label's slices equal voxel by
       voxel): probable correction;
    7. else a new annotation, in doubt unless the sender is trusted.

    The algorithm type of a segment alone never decides: viewers keep AUTOMATIC on edited segments.
    Foreign stands before similarity, because another vendor's result resembles ours without
    being a correction. What carries our own device but voxels that we never sent is in doubt: another
    node made it, or a viewer kept our equipment; so is a correction that shares next to nothing with
    what it claims to correct, and one that another vendor's algorithm made.
    """
    rules = (_by_uid, _by_voxels, _by_reference, _by_tracking, _foreign, _by_similarity)
    for rule in rules:
        found = rule(received, decoded, known)
        if found is not None:
            break
    else:
        trust = "from a trusted sender" if known.is_trusted_sender else "sender is not trusted"
        found = (Recognition.NEW_ANNOTATION, f"no relation to an object of ours, {trust}", None)
    kind, reason, corrects = found
    return Recognised(
        kind=kind,
        reasons=(reason, *decoded.flags),
        corrects=corrects,
        doubts=tuple(_doubts(received, found, decoded, known)),
    )


def author(ds: Dataset, sender: str) -> str:
    """Name who made a segmentation: its operator, its content creator, else the calling AE title.

    Staff, not the patient; belongs in the database, never in a log.
    """
    for keyword in ("OperatorsName", "ContentCreatorName"):
        named = [name for name in attributes.texts(ds, keyword) if name.casefold() not in _TOOL_NAMES]
        if named:
            return "; ".join(named)
    return sender


def names_model(ds: Dataset, model_name: str) -> bool:
    """Answer whether an object names a model as the algorithm of a segment.

    By its name, or as our contours do: by the description of our series (`result_header.series_description`).
    """
    folded = model_name.casefold()
    names = [name.casefold() for _, name in _algorithms(ds)]
    return any(name == folded or name.startswith(f"ai {folded} ") for name in names)


_TOOL_NAMES = frozenset({"", "slicer", "mitk", "reader1", "dicomnode", "anonymous"})


def _doubts(received: Dataset, found: _Found, decoded: Decoded, known: Known) -> Iterator[str]:
    kind, reason, _ = found
    if kind is Recognition.NEW_ANNOTATION and not known.is_trusted_sender:
        yield "it resembles no result of ours, and its sender is not in corrections.trusted_ae_titles"
    if kind not in {Recognition.CORRECTION, Recognition.PROBABLE_CORRECTION}:
        return
    if is_own_device(received) and reason != _IN_PLACE:
        yield (
            "it names this product as its device, but its voxels were never sent from here: another node's "
            "result, or a viewer that keeps the equipment of what it edits"
        )
    elif kind is Recognition.CORRECTION and _is_by_another_algorithm(received, known):
        yield "it goes back to our result, but another product's algorithm made it"
    if kind is Recognition.CORRECTION and _is_unlike(known.prediction, decoded.masks):
        yield "no label of it overlaps our result, although it claims to correct it"


def _is_unlike(prediction: Mapping[str, BoolArray], masks: Mapping[str, BoolArray]) -> bool:
    common = [label for label in masks if label in prediction and prediction[label].any()]
    return bool(common) and all(dice(prediction[label], masks[label]) < UNLIKE_DICE for label in common)


def _by_uid(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    for sent in known.sent:
        if sent.sop_instance_uid == attributes.text(received, "SOPInstanceUID"):
            digest = _digest(decoded)
            if digest is not None and digest == sent.voxels_sha256:
                return Recognition.LOOP_BACK, "our object came back with the same voxels", sent
            return Recognition.CORRECTION, _IN_PLACE, sent
    return None


def _by_voxels(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    digest = _digest(decoded)
    for sent in reversed(known.sent):
        if digest is not None and digest == sent.voxels_sha256:
            if is_own_device(received):
                return (
                    Recognition.LOOP_BACK,
                    "the voxels of our object from our own device under another UID",
                    sent,
                )
            if _is_by_another_algorithm(received, known):
                return Recognition.FOREIGN, "our voxels, made by an algorithm that is not ours", sent
            return Recognition.ACCEPTED_UNCHANGED, "saved by a viewer with the voxels of our object", sent
    return None


def _by_reference(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    del decoded
    named = set(_referenced_objects(received))
    for sent in reversed(known.sent):
        if sent.sop_instance_uid in named:
            return Recognition.CORRECTION, "it references our object", sent
        if sent.series_instance_uid == attributes.text(received, "SeriesInstanceUID"):
            return Recognition.CORRECTION, "it is a new object in the series of ours", sent
    return None


def _by_tracking(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    del decoded
    theirs = {
        attributes.text(item, "TrackingUID")
        for keyword in ("SegmentSequence", "StructureSetROISequence")
        for item in attributes.items(received, keyword)
    } - {""}
    for sent in reversed(known.sent):
        if theirs & sent.tracking_uids:
            return Recognition.CORRECTION, "its segments carry our Tracking UIDs", sent
    return None


def _foreign(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    """Refuse what is no label of ours, or what an algorithm made that is neither ours nor a viewer's."""
    if not decoded.masks and not decoded.empty_labels:
        return Recognition.FOREIGN, "none of its segments is a label of the model", None
    if _is_by_another_algorithm(received, known):
        return Recognition.FOREIGN, "made by an algorithm that is not ours", None
    return None


def _is_by_another_algorithm(received: Dataset, known: Known) -> bool:
    """Answer whether all of an object is of an algorithm that is neither ours nor a viewer's.

    The algorithm's name decides before the manufacturer: other products write with the libraries of
    viewers. Without a name the manufacturer must be a viewer's.
    """
    algorithms = list(_algorithms(received))
    if not algorithms or any(kind != "AUTOMATIC" for kind, _ in algorithms):
        return False
    names = {name.casefold() for _, name in algorithms}
    if names_model(received, known.model_name):
        return False
    is_viewer = attributes.text(received, "Manufacturer").casefold() in _VIEWER_MANUFACTURERS
    return not (names <= _VIEWER_ALGORITHMS and (is_viewer or is_dcmjs(received)))


def _algorithms(ds: Dataset) -> Iterator[tuple[str, str]]:
    """Give type and name of the algorithm behind each segment or region of interest, background apart."""
    for item in attributes.items(ds, "SegmentSequence"):
        if not _is_background(item):
            yield attributes.text(item, "SegmentAlgorithmType"), attributes.text(item, "SegmentAlgorithmName")
    for item in attributes.items(ds, "StructureSetROISequence"):
        yield (
            attributes.text(item, "ROIGenerationAlgorithm"),
            attributes.text(item, "ROIGenerationDescription"),
        )


def _is_background(segment: Dataset) -> bool:
    kinds = attributes.items(segment, "SegmentedPropertyTypeCodeSequence")
    codes = {
        (attributes.text(one, "CodeValue"), attributes.text(one, "CodingSchemeDesignator")) for one in kinds
    }
    return attributes.integer(segment, "SegmentNumber") == 0 or BACKGROUND_CODE in codes


def _by_similarity(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    del received
    latest = _latest_about(decoded, known.sent)
    for label, theirs in decoded.masks.items():
        ours = known.prediction.get(label)
        if ours is None:
            continue
        if dice(ours, theirs) >= SIMILAR_DICE:
            return Recognition.PROBABLE_CORRECTION, f"{label} resembles ours", latest
        foreground = (ours | theirs).any(axis=(1, 2))
        equal = ~(ours ^ theirs).any(axis=(1, 2)) & foreground
        if int(np.count_nonzero(equal)) >= SIMILAR_SLICES * int(np.count_nonzero(foreground)):
            return Recognition.PROBABLE_CORRECTION, f"{label} has slices equal to ours", latest
    return None


def _latest_about(decoded: Decoded, sent: Sequence[SentObject]) -> SentObject | None:
    """Give the latest object that speaks of all labels received, a part of a result before the whole."""
    spoken = {*decoded.masks, *decoded.empty_labels}
    return next((one for one in reversed(sent) if spoken <= one.labels), sent[-1] if sent else None)


def _digest(decoded: Decoded) -> Sha256 | None:
    if any(mask.any() for mask in decoded.unmapped.values()):
        return None
    return voxels_sha256(decoded.masks)


def _referenced_objects(ds: Dataset) -> Iterator[str]:
    """SOP Instance UIDs named anywhere outside the source series: predecessors, sources, derivations."""
    for keyword in _REFERENCES:
        yield from _uids_within(attributes.items(ds, keyword))
    for frame in attributes.items(ds, "PerFrameFunctionalGroupsSequence"):
        yield from (attributes.text(item, "ReferencedSOPInstanceUID") for item in source_images(frame))


def _uids_within(items: Sequence[Dataset]) -> Iterator[str]:
    for item in items:
        yield attributes.text(item, "ReferencedSOPInstanceUID")
        for keyword in _NESTED_REFERENCES:
            yield from _uids_within(attributes.items(item, keyword))
