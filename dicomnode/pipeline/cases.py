"""The training case of a series: what all its corrections that stand say together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog

from dicomnode.casebook import Case, CaseInfo
from dicomnode.domain import CorrectionState, Decision, Split
from dicomnode.errors import CorrectionError, InputError
from dicomnode.imaging import attributes
from dicomnode.imaging.corrections import comparison
from dicomnode.imaging.corrections.comparison import Merged, Spoken
from dicomnode.imaging.corrections.mirror import SLICES_TURNED
from dicomnode.imaging.images.regrid import backed_slices, mask_to_image
from dicomnode.imaging.reading import received
from dicomnode.imaging.reading.decoded import Decoded
from dicomnode.pipeline.reading import Judged, Masks, Reading, judge, read
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import CorrectionRecord

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contribution:
    """What one correction that stands says of its series, on the grid of the image."""

    correction_id: int | None  # None: it is being read just now
    instance_id: int  # in the order of arrival
    sop_instance_uid: str
    order: str  # when the reader made it, else when it came
    spoken: tuple[Spoken, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Built:
    """A case as it is to stand, and which of the corrections behind it have nothing left to say."""

    case: Case
    seen: frozenset[int]  # numbers of the other corrections in it
    replaced: frozenset[int | None]  # of those, and None for the one that is being read


def speaks(judged: Judged) -> bool:
    """Answer whether an object says anything of the labels of the model."""
    return bool(judged.decoded.masks or judged.decoded.empty_labels)


def spoken_of(reading: Reading, judged: Judged, tools: Tools) -> Decoded:
    """What the reader's object says of our labels, as this site reads the labels that it does not list."""
    if not tools.corrections.absence_means_empty or not received.is_whole_save(reading.ds):
        return judged.decoded
    corrects = judged.found.corrects
    if corrects is None:  # drawn anew: labels that are not there were never before the reader
        return judged.decoded
    return comparison.with_absent_emptied(judged.decoded, reading.card, corrects=corrects.labels)


def contribution(
    reading: Reading, judged: Judged, tools: Tools, *, instance_id: int, correction_id: int | None = None
) -> Contribution:
    """Say what a correction teaches, slice by slice; slices that nobody received weigh nothing."""
    stack = reading.stack
    readers = set(tools.corrections.whole_study_readers)
    said = comparison.spoken(
        _on_image(judged.prediction, reading),
        _decoded_on_image(spoken_of(reading, judged, tools), reading),
        reading.card,
        is_whole_study_read=bool({reading.received.sender, reading.author} & readers),
    )
    backed = backed_slices(stack)
    came = reading.received.received_at.astimezone().strftime("%Y%m%d%H%M%S.%f")
    made = received.content_time(reading.ds)
    return Contribution(
        correction_id=correction_id,
        instance_id=instance_id,
        sop_instance_uid=reading.received.sop_instance_uid,
        order=min(made, came) if made else came,  # a clock that runs ahead does not go before later ones
        spoken=tuple(replace(one, weights=one.weights * backed) for one in said),
    )


def build(reading: Reading, judged: Judged, contributions: Sequence[Contribution], tools: Tools) -> Built:
    """Put the corrections of a series together into its training case, latest per label.

    Image, labels and what of them was reviewed, all on the grid of the image, without anything that names the
    patient.

    Parameters
    ----------
    reading, judged
        Of any of the corrections: they have images, model and stack in common.

    Raises
    ------
    CorrectionError
        The images are in the casebook as another patient's, on the other side.
    """
    ordered = _heard(sorted(contributions, key=lambda one: (one.order, one.instance_id)))
    merged = comparison.merge(
        _on_image(judged.prediction, reading),
        [one.spoken for one in ordered],
        reading.card,
        shape=reading.stack.grid.shape,
    )
    replaced = {one.correction_id for one, stands in zip(ordered, merged.standing, strict=True) if not stands}
    seen = {one.correction_id for one in ordered if one.correction_id is not None}
    return Built(case=_case(reading, merged, tools), seen=frozenset(seen), replaced=frozenset(replaced))


def others_standing(reading: Reading, instance_id: int | None, tools: Tools) -> list[Contribution]:
    """Read again the other corrections of the same stack for the same model that were kept.

    Those that have nothing left to say say nothing: one correction more gives them no word back. Neither does
    one whose file is lost or damaged hinder those that come after it.
    """
    found = []
    case = case_id(reading, tools)
    for record in tools.store.corrections.kept_of(reading.source_uid, model_name=reading.card.name):
        if record.case_id != case or record.instance_id == instance_id:
            continue
        found.append(_silent(record) if record.replaced else _still_said(record, tools))
    return found


def _still_said(record: CorrectionRecord, tools: Tools) -> Contribution:
    try:
        return _contribution_of(record, *read_again(record, tools), tools)
    except InputError as error:
        log.warning("correction cannot be read any more", correction=record.id, reason=str(error))
        return _silent(record)


def read_again(record: CorrectionRecord, tools: Tools) -> tuple[Reading, Judged]:
    """Read a correction on record once more, as it was decided then.

    Raises
    ------
    InputError
        Its file or its images are gone or cannot be read.
    """
    if record.source_series_uid is None:
        raise CorrectionError(f"the images of correction {record.id} never came: {'; '.join(record.reasons)}")
    instance = None if record.instance_id is None else tools.store.series.instance(record.instance_id)
    if instance is None:
        raise CorrectionError(f"the file of correction {record.id} is no longer known")
    reading = read(instance, record.source_series_uid, tools)
    return reading, judge(reading, tools, decision=_decision(record))


def case_id(reading: Reading, tools: Tools) -> str:
    """Name the case of the stack that was corrected, for its model."""
    return tools.casebook.case_id(reading.source_uid, stack=reading.stack.name, model_name=reading.card.name)


def keep_quota(model_name: str, tools: Tools) -> tuple[str, ...]:
    """Let training cases above the quota leave the casebook; gives those that left."""
    if tools.casebook.count() <= tools.training.maximum_cases:
        return ()
    infos = tools.casebook.cases(model_name=model_name, split=Split.TRAINING)
    untrained = frozenset(tools.store.corrections.untrained_cases(model_name))
    leaving = above_quota(infos, untrained=untrained, maximum=tools.training.maximum_cases)
    if leaving:
        tools.store.corrections.retire_cases(leaving, now=tools.now())
        for one in leaving:
            tools.casebook.remove(one)
    return leaving


def above_quota(infos: Sequence[CaseInfo], *, untrained: frozenset[str], maximum: int) -> tuple[str, ...]:
    """Choose the cases that leave: of the patient with most cases, one that has been learned from.

    Every patient keeps a voice as long as there is room. Among the cases of equal claim the case id decides,
    which is a keyed hash: a uniform sample that does not depend on the order in which cases came. Cases that
    nothing has learned from leave last.
    """
    remaining = list(infos)
    leaving = []
    for _ in range(len(infos) - maximum):
        counts: dict[str, int] = {}
        for info in remaining:
            counts[info.patient_key] = counts.get(info.patient_key, 0) + 1
        gone = max(
            remaining,
            key=lambda info: (info.case_id not in untrained, counts[info.patient_key], info.case_id),
        )
        remaining.remove(gone)
        leaving.append(gone.case_id)
    return tuple(leaving)


def without(record: CorrectionRecord, tools: Tools) -> Built | None:
    """Make the case of a correction that was taken back anew, from those that are left; None: none are.

    Where they cannot be read again any more the case leaves too, so that nothing withdrawn is learned from.
    """
    left = []
    latest = None
    kept = tools.store.corrections.kept_of(record.source_series_uid or "", model_name=record.model_name)
    try:
        for one in kept:
            if one.case_id == record.case_id and one.id != record.id:
                latest = read_again(one, tools)
                left.append(_contribution_of(one, *latest, tools))
        return None if latest is None else build(*latest, left, tools)
    except InputError as error:
        log.warning("case leaves, it cannot be made anew", case=record.case_id, reason=str(error))
        return None


def _heard(ordered: Sequence[Contribution]) -> list[Contribution]:
    """Let only the newest variant speak of what came under one UID, and who says the same again be silent.

    An archive may send an object once more in another encoding, or a viewer overwrite what it saved before.
    """
    heard: list[Contribution] = []
    for one in ordered:
        mine = one
        for index, earlier in enumerate(heard):
            is_variant = earlier.sop_instance_uid == one.sop_instance_uid
            if not earlier.spoken or not (is_variant or earlier.order == one.order):
                continue
            if _say_the_same(earlier, one):
                mine = replace(one, spoken=())
            elif is_variant:
                heard[index] = replace(earlier, spoken=())
        heard.append(mine)
    return heard


def _say_the_same(one: Contribution, other: Contribution) -> bool:
    return [said.label for said in one.spoken] == [said.label for said in other.spoken] and all(
        np.array_equal(a.weights, b.weights) and np.array_equal(a.mask, b.mask)
        for a, b in zip(one.spoken, other.spoken, strict=True)
    )


def _contribution_of(
    record: CorrectionRecord, reading: Reading, judged: Judged, tools: Tools
) -> Contribution:
    return contribution(reading, judged, tools, instance_id=record.instance_id or 0, correction_id=record.id)


def _silent(record: CorrectionRecord) -> Contribution:
    return Contribution(
        correction_id=record.id,
        instance_id=record.instance_id or 0,
        sop_instance_uid=record.sop_instance_uid,
        order="",
        spoken=(),
    )


def _decision(record: CorrectionRecord) -> Decision:
    """What was decided of a correction, by a person or by the rule of that day: settings may change."""
    if record.decision is not Decision.NONE or record.state is CorrectionState.HELD:
        return record.decision
    return Decision.MIRRORED if SLICES_TURNED in record.reasons else Decision.AS_READ


def _case(reading: Reading, merged: Merged, tools: Tools) -> Case:
    first = reading.stack.first
    image = np.asarray(reading.series.image.array, dtype=np.float32)
    patient_key = tools.casebook.patient_of(
        tools.casebook.patient_key(
            attributes.text(first, "PatientID"),
            attributes.text(first, "IssuerOfPatientID"),
            study_instance_uid=attributes.text(first, "StudyInstanceUID"),
        ),
        image,
    )
    return Case(
        case_id=case_id(reading, tools),
        patient_key=patient_key,
        split=tools.casebook.split_of(patient_key),
        model_name=reading.card.name,
        image=image,
        affine=np.asarray(reading.series.image.affine, dtype=np.float64),
        labels=merged.labels,
        reviewed=merged.weights,
        labels_known=merged.labels_known,
    )


def _on_image(masks: Masks, reading: Reading) -> Masks:
    return {label: mask_to_image(mask, reading.stack) for label, mask in masks.items()}


def _decoded_on_image(decoded: Decoded, reading: Reading) -> Decoded:
    """Bring the labels of an object from the planes of a stack to the grid of its image."""
    masks = _on_image(dict(decoded.masks), reading)
    return replace(decoded, shape=reading.stack.grid.shape, masks=masks, unmapped={})
