"""What a received segmentation is, how it differs from our prediction, and what of it was reviewed.

Everything here works on masks of one shape, axes (slice, row, column): on the planes of the source stack
as `seg_read.decode` gives them, or all brought to the grid of the image. `prediction` is ours: label -> mask,
labels without voxels left out or empty.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.domain import LabelScore, ModelCard, Recognition, Sha256
from dicomnode.imaging import attributes
from dicomnode.imaging.decoded import Decoded
from dicomnode.imaging.identity import BoolArray, is_own_device, voxels_sha256
from dicomnode.imaging.seg_frames import is_dcmjs, source_images

SIMILAR_DICE = 0.5
SIMILAR_SLICES = 0.3
FLIP_GAIN = 0.2
FLIP_DICE = 0.6

EDITED = 1.0
ACCEPTED_IN_RANGE = 1.0
ACCEPTED_OUTSIDE = 0.5

_VIEWER_MANUFACTURERS = frozenset({"", "unspecified", "qiicr", "monai consortium"})
_TOOL_NAMES = frozenset({"", "slicer", "mitk", "reader1", "dicomnode", "anonymous"})
_NESTED_REFERENCES = ("ReferencedSeriesSequence", "ReferencedSOPSequence", "ReferencedInstanceSequence")
_REFERENCES = ("PredecessorDocumentsSequence", "SourceInstanceSequence", "ReferencedInstanceSequence")


_Found = tuple[Recognition, str, "SentObject | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentObject:
    """What is kept of an object that we made of the same source series: a segmentation or a part of one."""

    sop_instance_uid: str
    series_instance_uid: str
    voxels_sha256: Sha256 | None  # of the labels in it; None where it holds no voxels (a report, contours)
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
    """The kind of a received segmentation, why, and which of our objects it goes back to.

    With `is_suspect_flip` the slices are probably in reverse order: set the object aside.
    """

    kind: Recognition
    reasons: tuple[str, ...]
    corrects: SentObject | None
    is_suspect_flip: bool = False


def recognise(received: Dataset, *, decoded: Decoded, known: Known) -> Recognised:
    """Tell what a received segmentation is; the first rule that applies decides.

    1. our SOP Instance UID: loop-back if the voxels are equal, else a correction in place;
    2. voxels equal to an object sent: loop-back from our own device, else accepted unchanged;
    3. a reference to our object, or a new object in our series: correction;
    4. our Tracking UIDs: correction;
    5. no label of the model, or another vendor's algorithm: foreign;
    6. similar to our latest result (Dice >= 0.5 in a label, or 30 % of a label's slices equal voxel by
       voxel): probable correction;
    7. else a new annotation: for a person to admit unless the sender is trusted.

    The algorithm type of a segment alone never decides: viewers keep AUTOMATIC on edited segments.
    Foreign stands before similarity, because another vendor's result resembles ours without
    being a correction.
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
        is_suspect_flip=is_suspect_flip(known.prediction, decoded.masks),
    )


def with_absent_emptied(correction: Decoded, card: ModelCard, *, corrects: SentObject | None) -> Decoded:
    """Take the labels that a correction does not list as emptied, where the site reads absence so.

    Only the labels of the object that was corrected: what stood in another part of the result was not
    before the reader, and stays unknown. Where no object of ours was corrected, all labels of the model.
    """
    spoken = {*correction.masks, *correction.empty_labels}
    absent = [
        segment.label
        for segment in card.segments
        if segment.label not in spoken and (corrects is None or segment.label in corrects.labels)
    ]
    return replace(correction, empty_labels=(*correction.empty_labels, *absent))


def compare(
    prediction: Mapping[str, BoolArray], correction: Decoded, card: ModelCard
) -> tuple[LabelScore, ...]:
    """Score the prediction against the correction, for the labels that the correction speaks of.

    A label with voxels is spoken of, and so is one listed without voxels: its segment was emptied. A
    label that is absent is unknown and gets no score (but see `with_absent_emptied`).

    Returns
    -------
        In the order of the card; `edited_slices` are indices along the slice axis.
    """
    return tuple(
        LabelScore(
            label=label,
            dice=dice(ours, theirs),
            edited_slices=tuple(np.flatnonzero((ours ^ theirs).any(axis=(1, 2))).tolist()),
            prediction_voxels=int(np.count_nonzero(ours)),
            correction_voxels=int(np.count_nonzero(theirs)),
        )
        for label, ours, theirs in _pairs(prediction, correction, card)
        if theirs is not None
    )


def reviewed_weights(
    prediction: Mapping[str, BoolArray],
    correction: Decoded,
    card: ModelCard,
    *,
    is_whole_study_read: bool = False,
) -> NDArray[np.float32]:
    """Say how far each slice of each label counts as reviewed.

    A segmentation has no review mark per slice. Edited slices and the range from one before the
    first to one after the last edited slice count 1; slices of the label's extent outside this range
    were seen and left, and count 0.5 (1 if `is_whole_study_read`); everything else is unknown, 0.

    Returns
    -------
        Shape (labels of the card, slice), 0..1.
    """
    rows = []
    outside = 1.0 if is_whole_study_read else ACCEPTED_OUTSIDE
    for _, ours, theirs in _pairs(prediction, correction, card):
        weights = np.zeros(ours.shape[0], np.float32)
        if theirs is not None:
            weights[(ours | theirs).any(axis=(1, 2))] = outside
            edited = np.flatnonzero((ours ^ theirs).any(axis=(1, 2)))
            if edited.size:
                weights[max(edited[0] - 1, 0) : edited[-1] + 2] = ACCEPTED_IN_RANGE
                weights[edited] = EDITED
        rows.append(weights)
    return np.stack(rows)


def correction_labels(
    prediction: Mapping[str, BoolArray], correction: Decoded, card: ModelCard
) -> NDArray[np.uint8]:
    """Give the class indices to train on, (slice, row, column).

    Labels of the correction come from it; a label that it does not speak of keeps our prediction
    (its weight is 0). Where masks overlap, the correction goes before the prediction and, within
    each, the label that stands first in the card.
    """
    pairs = _pairs(prediction, correction, card)
    class_of = {segment.label: segment.class_index for segment in card.segments}
    labels = np.zeros(pairs[0][1].shape, np.uint8)
    for label, ours, theirs in reversed(pairs):
        if theirs is None:
            labels[ours] = class_of[label]
    for label, _, theirs in reversed(pairs):
        if theirs is not None:
            labels[theirs] = class_of[label]
    return labels


def dice(one: BoolArray, other: BoolArray) -> float:
    """Dice coefficient of two masks, 0..1; 1 when both are empty."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2.0 * np.count_nonzero(one & other) / total if total else 1.0


def is_suspect_flip(prediction: Mapping[str, BoolArray], masks: Mapping[str, BoolArray]) -> bool:
    """Answer whether the masks fit our prediction far better with their slices in reverse order.

    Only the labels that both have are compared: the masks may be a part of what we found. Some viewers wrote
    positions and references mirrored alike (Cornerstone3D #2580), which nothing inside the file shows.
    """
    common = prediction.keys() & masks.keys()
    if not common:
        return False
    ours, theirs = (_foreground([side[label] for label in common]) for side in (prediction, masks))
    as_read, mirrored = dice(ours, theirs), dice(ours, theirs[::-1])
    return mirrored - as_read > FLIP_GAIN and mirrored > FLIP_DICE


def author(ds: Dataset, sender: str) -> str:
    """Name who made a segmentation: its operator, its content creator, else the calling AE title.

    Staff, not the patient; belongs in the database, never in a log.
    """
    for keyword in ("OperatorsName", "ContentCreatorName"):
        named = [name for name in attributes.texts(ds, keyword) if name.casefold() not in _TOOL_NAMES]
        if named:
            return "; ".join(named)
    return sender


def _by_uid(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    digest = _digest(decoded)
    for sent in known.sent:
        if sent.sop_instance_uid == attributes.text(received, "SOPInstanceUID"):
            if digest is not None and digest == sent.voxels_sha256:
                return Recognition.LOOP_BACK, "our object came back with the same voxels", sent
            return Recognition.CORRECTION, "our object came back under its own UID with other voxels", sent
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
    theirs = {attributes.text(item, "TrackingUID") for item in attributes.items(received, "SegmentSequence")}
    for sent in reversed(known.sent):
        if theirs & sent.tracking_uids:
            return Recognition.CORRECTION, "its segments carry our Tracking UIDs", sent
    return None


def _foreign(received: Dataset, decoded: Decoded, known: Known) -> _Found | None:
    if not decoded.masks and not decoded.empty_labels:
        return Recognition.FOREIGN, "none of its segments is a label of the model", None
    if attributes.text(received, "Manufacturer").casefold() in _VIEWER_MANUFACTURERS or is_dcmjs(received):
        return None
    items = attributes.items(received, "SegmentSequence")
    is_automatic = all(attributes.text(item, "SegmentAlgorithmType") == "AUTOMATIC" for item in items)
    names = {attributes.text(item, "SegmentAlgorithmName") for item in items}
    if is_automatic and known.model_name not in names:
        return Recognition.FOREIGN, "made by an algorithm that is not ours", None
    return None


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


def _foreground(masks: Sequence[BoolArray]) -> BoolArray:
    return np.asarray(np.logical_or.reduce(masks), np.bool_)


def _pairs(
    prediction: Mapping[str, BoolArray], correction: Decoded, card: ModelCard
) -> list[tuple[str, BoolArray, BoolArray | None]]:
    """Label, our mask and theirs, in the order of the card; theirs is None where it is unknown."""
    nothing: BoolArray = np.zeros(correction.shape, np.bool_)
    pairs: list[tuple[str, BoolArray, BoolArray | None]] = []
    for segment in card.segments:
        theirs = correction.masks.get(segment.label)
        if theirs is None and segment.label in correction.empty_labels:
            theirs = nothing
        pairs.append((segment.label, prediction.get(segment.label, nothing), theirs))
    return pairs
