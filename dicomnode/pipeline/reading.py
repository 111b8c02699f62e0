"""A received segmentation beside what the site knows of the series that it is about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import (
    Decision,
    ModelCard,
    Recognition,
    ResultForm,
    SeriesInstanceUid,
    Sha256,
    StoredInstance,
)
from dicomnode.errors import CorrectionError, InputError
from dicomnode.imaging import attributes
from dicomnode.imaging.corrections import mirror, repeated
from dicomnode.imaging.corrections.exchanged import exchanged_labels
from dicomnode.imaging.corrections.mirror import MirrorVerdict
from dicomnode.imaging.corrections.recognition import (
    Known,
    Recognised,
    SentObject,
    author,
    names_model,
    recognise,
)
from dicomnode.imaging.identity import BoolArray, voxels_sha256
from dicomnode.imaging.images.series import SeriesVolume, stack_volume, supported_images
from dicomnode.imaging.images.stacks import Stack, read_stacks
from dicomnode.imaging.reading import received, seg_stack
from dicomnode.imaging.reading.decoded import Decoded
from dicomnode.pipeline.routing import choose
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import ResultObject, ResultRecord

Masks = dict[str, BoolArray]

_WITHOUT_DOUBT = frozenset({Recognition.LOOP_BACK, Recognition.FOREIGN, Recognition.ACCEPTED_UNCHANGED})
"""What is never learned from, or equals voxel for voxel what we sent."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A received object on the planes of its stack, and our results of that stack."""

    received: StoredInstance
    ds: Dataset
    series: SeriesVolume  # of the stack that was segmented
    stacks: Sequence[Stack]  # all of the series
    card: ModelCard
    results: Sequence[ResultRecord]  # ours of that series, oldest first; the one that stands is the last
    decoded: Decoded
    author: str
    is_trusted: bool

    @property
    def source_uid(self) -> SeriesInstanceUid:
        """The series that was segmented."""
        return SeriesInstanceUid(self.series.stack.series_instance_uid)

    @property
    def stack(self) -> Stack:
        """The stack that was segmented."""
        return self.series.stack


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """What a received object is, the masks that count, and the prediction that they are compared with."""

    found: Recognised
    decoded: Decoded
    prediction: Masks
    result: ResultRecord | None  # ours that was corrected
    doubts: tuple[str, ...]  # why a person must look first


def source_series(ds: Dataset, tools: Tools) -> SeriesInstanceUid | None:
    """Find the series that an object is about: named, or that of the images it names, or the one it fits.

    Returns
    -------
        Also a series that is not held here; None where nothing tells it.

    Raises
    ------
    CorrectionError
        It names several.
    """
    named = received.referenced_series(ds)
    if named is None or tools.store.series.get(named) is None:
        uids = sorted(uid for uid in received.referenced_instances(ds) if "." in uid)  # else a row's number
        images = (tools.store.series.instance(uid) for uid in uids)
        held = {image.series_instance_uid for image in images if image is not None}
        named = held.pop() if len(held) == 1 else named
    return SeriesInstanceUid(named) if named else _fitting_series(ds, tools)


def concerns_no_model(ds: Dataset, tools: Tools) -> bool:
    """Answer whether an object lists no label of any model of this site: its images are not needed then."""
    cards = [tools.current_card(name) for name in tools.model_names]
    try:
        return not any(received.labels_listed(ds, card, aliases=tools.corrections.aliases) for card in cards)
    except CorrectionError:
        return False


def read(instance: StoredInstance, source_uid: SeriesInstanceUid, tools: Tools) -> Reading:
    """Put the masks of a received object on the planes of the images that it is about.

    Raises
    ------
    InputError
        The object or its images cannot be read, or do not fit each other.
    """
    (ds,) = tools.spool.read([instance])
    images = tools.spool.read(tools.store.series.instances_of(source_uid))
    stacks = read_stacks(supported_images(images))
    stack = received.stack_of(ds, stacks)
    results = _results(ds, source_uid, tools)
    card = _card(stack, results, tools)
    by = author(ds, instance.sender)
    return Reading(
        received=instance,
        ds=ds,
        # Missing slices never hinder a correction: what was drawn is on planes that are there.
        series=stack_volume(stack, maximum_missing=stack.missing_slices),
        stacks=stacks,
        card=card,
        results=results,
        decoded=received.decode(ds, stack=stack, card=card, aliases=tools.corrections.aliases),
        author=by,
        is_trusted=bool({instance.sender, by} & set(tools.corrections.trusted_ae_titles)),
    )


def judge(reading: Reading, tools: Tools, *, decision: Decision = Decision.NONE) -> Judged:
    """Tell what an object is, which way round its slices are, and whether a person must look first.

    Parameters
    ----------
    decision
        Of a person who has looked: doubts no longer count, and `MIRRORED` turns the slices.
    """
    latest = prediction_of(reading, reading.results[-1], tools) if reading.results else {}
    known = Known(
        sent=[sent for result in reading.results for sent in _sent(result, reading, tools)],
        prediction=latest,
        model_name=reading.card.name,
        is_trusted_sender=reading.is_trusted,
    )
    found = recognise(reading.ds, decoded=reading.decoded, known=known)
    result = _result_of(reading, found.corrects)
    prediction = latest
    if result is not None and result is not reading.results[-1]:
        prediction = prediction_of(reading, result, tools)
    decoded, mirror_doubts = _right_way_round(reading, prediction, decision, tools)
    doubts = (
        *found.doubts,
        *decoded.doubts,
        *mirror_doubts,
        *_unsure(decoded, tools),
        *_implausible(reading.ds, decoded, prediction),
    )
    return Judged(
        found=found,
        decoded=decoded,
        prediction=prediction,
        result=result,
        doubts=() if found.kind in _WITHOUT_DOUBT else doubts,
    )


def prediction_of(reading: Reading, result: ResultRecord, tools: Tools) -> Masks:
    """All labels of a result of ours, as it was kept; nothing where it is about another stack."""
    stored = tools.store.series.instance(result.sop_instance_uid)
    if stored is None:
        raise CorrectionError(f"our result {result.sop_instance_uid} is no longer in the spool")
    (ds,) = tools.spool.read([stored])
    if seg_stack.stack_of(ds, reading.stacks) is not reading.stack:
        return {}
    return dict(received.decode(ds, stack=reading.stack, card=reading.card, aliases={}).masks)


def _right_way_round(
    reading: Reading, prediction: Masks, decision: Decision, tools: Tools
) -> tuple[Decoded, tuple[str, ...]]:
    """Turn the slices where a person or the site's rule says so, or say that they may be in reverse order."""
    if decision is Decision.MIRRORED:
        return mirror.turned(reading.decoded), ()
    if decision is Decision.AS_READ:
        return reading.decoded, ()
    found = mirror.arbitrate(
        reading.ds,
        decoded=reading.decoded,
        prediction=prediction,
        image=reading.series.planes,
        unflip=tools.corrections.unflip,
    )
    if found.verdict is MirrorVerdict.TURNED:
        return mirror.turned(reading.decoded), ()
    return reading.decoded, (found.sentence,) if found.verdict is MirrorVerdict.SUSPECT else ()


def _unsure(decoded: Decoded, tools: Tools) -> list[str]:
    least = tools.corrections.minimum_confidence
    return [
        f"{label} was read with confidence {value:.2f}, below corrections.minimum_confidence = {least:g}"
        for label, value in decoded.confidence.items()
        if value < least
    ]


def _implausible(ds: Dataset, decoded: Decoded, prediction: Masks) -> Iterator[str]:
    """Say what only the comparison with our prediction shows."""
    for theirs, ours in exchanged_labels(prediction, decoded.masks):
        yield f"what came as {theirs} lies where our {ours} is: labels may have been exchanged"
    if repeated.repeats_one_plane(ds, decoded=decoded, prediction=prediction):
        yield repeated.DOUBT


def _fitting_series(ds: Dataset, tools: Tools) -> SeriesInstanceUid | None:
    """Find the one series of the study on whose planes all frames lie, for an object that names no image."""
    study_uid = attributes.text(ds, "StudyInstanceUID")
    fitting = [
        row.series_instance_uid
        for row in tools.store.series.of_study(study_uid)
        if seg_stack.fits(ds, _stacks(row.series_instance_uid, tools))
    ]
    return fitting[0] if len(fitting) == 1 else None


def _stacks(series_uid: SeriesInstanceUid, tools: Tools) -> Sequence[Stack]:
    try:
        images = tools.spool.read(tools.store.series.instances_of(series_uid))
        return read_stacks(supported_images(images))
    except InputError:
        return ()


def _results(ds: Dataset, source_uid: SeriesInstanceUid, tools: Tools) -> list[ResultRecord]:
    """Our results of a series that a received object may go back to, the one that stands last.

    When the route went to another model meanwhile: those of the model that the object itself names.
    """
    stored = tools.store.results
    results = sorted(stored.all_for_series(source_uid), key=lambda result: not result.superseded)
    named = stored.by_sop_uid(attributes.text(ds, "SOPInstanceUID"))
    named = named or stored.by_result_series(attributes.text(ds, "SeriesInstanceUID"))
    # A Tracking UID is that of a label, whichever model found it: the name of the algorithm goes first.
    by_name = (one for one in reversed(results) if names_model(ds, _model_of(one)))
    named = named or next(by_name, None)
    for item in attributes.items(ds, "SegmentSequence"):
        tracking_uid = attributes.text(item, "TrackingUID")
        named = named or (stored.by_tracking_uid(tracking_uid) if tracking_uid else None)
    standing = named if named in results else next(reversed(results), None)
    if standing is None:
        return []
    model = _model_of(standing)
    return [result for result in results if _model_of(result) == model]


def _model_of(result: ResultRecord) -> str:
    return result.model_version.rpartition("@")[0]


def _card(stack: Stack, results: Sequence[ResultRecord], tools: Tools) -> ModelCard:
    """Labels to read by: of the model whose result was corrected, else of the one that takes the stack."""
    if results:
        return tools.shelf.card(results[-1].model_version)
    row = tools.store.series.get(stack.series_instance_uid)
    choice = choose([stack], tools.routes, sender=row.sender if row else "")
    return tools.current_card(choice.route.model)


def _result_of(reading: Reading, corrects: SentObject | None) -> ResultRecord | None:
    """The result of ours that was corrected, in whole or in part; the one that stands where none is named."""
    for result in reading.results:
        if corrects and corrects.sop_instance_uid in {one.sop_instance_uid for one in result.objects}:
            return result
    return reading.results[-1] if reading.results else None


def _sent(result: ResultRecord, reading: Reading, tools: Tools) -> list[SentObject]:
    """The objects of one result that hold voxels or contours, the whole before its parts."""
    parts = [one for one in result.objects if one.form is ResultForm.SEG]
    every = {segment.label for segment in reading.card.segments}
    sent = []
    for one in result.objects:
        if one.form not in {ResultForm.SEG, ResultForm.LABEL_MAP, ResultForm.RTSTRUCT}:
            continue
        labels = _labels_of(one, tools) if len(parts) > 1 and one in parts else every
        digest = one.voxels_sha256
        if one.form is ResultForm.RTSTRUCT and received.is_structure_set(reading.ds):
            digest = _contour_digest(one, reading, tools)
        sent.append(
            SentObject(
                sop_instance_uid=one.sop_instance_uid,
                series_instance_uid=one.series_instance_uid,
                voxels_sha256=digest,
                labels=frozenset(labels),
                tracking_uids=frozenset(uid for label, uid in result.tracking_uids if label in labels),
            )
        )
    return sent


def _contour_digest(one: ResultObject, reading: Reading, tools: Tools) -> Sha256 | None:
    """Digest of the voxels within contours of ours, filled by the rule by which received ones are filled."""
    stored = tools.store.series.instance(one.sop_instance_uid)
    if stored is None:
        return None
    (ds,) = tools.spool.read([stored])
    decoded = received.decode(ds, stack=reading.stack, card=reading.card, aliases={})
    return voxels_sha256(decoded.masks)


def _labels_of(part: ResultObject, tools: Tools) -> set[str]:
    """The labels of one part of a result; none where the part is gone."""
    stored = tools.store.series.instance(part.sop_instance_uid)
    return {
        str(item.SegmentLabel)
        for ds in tools.spool.read([stored] if stored else [])
        for item in ds.SegmentSequence
    }
