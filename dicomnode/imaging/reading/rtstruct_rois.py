"""The structures that a received RT Structure Set lists, and which labels of the model they are."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import ModelCard
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.reading.seg_labels import Listed, listed_segments

MAXIMUM_ROIS = 1000

_CODES = {  # attribute of a segment <- attribute of an observation
    "SegmentedPropertyTypeCodeSequence": "RTROIIdentificationCodeSequence",
    "AnatomicRegionSequence": "AnatomicRegionSequence",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Roi:
    """One structure."""

    number: int
    name: str  # its ROI Name, or a stand-in
    label: str | None  # the model's label; None where it is none
    frame_of_reference_uid: str  # "" where nothing says it
    contour_items: tuple[Dataset, ...]  # its items of the ROI Contour Sequence
    flags: frozenset[str] = frozenset()


def structure_set_name(ds: Dataset) -> str:
    """Name a structure set in a message."""
    return f"structure set {attributes.text(ds, 'SOPInstanceUID') or '(no UID)'}"


def listed_rois(
    ds: Dataset, card: ModelCard, *, series_uid: str, aliases: Mapping[str, str]
) -> tuple[Roi, ...]:
    """List the structures of an object; those that have contours and are not listed come last, unmapped.

    What is a label of the model: our Tracking UID decides first, then ROI Name, then ROI Observation Label
    (case and outer blanks ignored), then the identification code with its modifier and region if exactly one
    label has them, then the aliases of ROI Name.

    Raises
    ------
    CorrectionError
        There is no Structure Set ROI Sequence or no ROI Contour Sequence, a number is missing or listed
        twice, or they are too many.
    """
    items = _numbered(ds)
    contours = _by_number(ds, "ROIContourSequence")
    observations = _by_number(ds, "RTROIObservationsSequence")
    labels = _labels(ds, items, observations, card=card, series_uid=series_uid, aliases=aliases)
    default = _frame_of_reference(ds)
    rois = [
        Roi(
            number=number,
            name=attributes.text(item, "ROIName") or f"ROI {number}",
            label=labels[number].label,
            frame_of_reference_uid=attributes.text(item, "ReferencedFrameOfReferenceUID") or default,
            contour_items=tuple(contours.get(number, ())),
            flags=labels[number].flags
            | _conflict(item, observations.get(number, ()), card)
            | ({"structure_repeated"} if len(contours.get(number, ())) > 1 else set()),
        )
        for number, item in items.items()
    ]
    return (
        *rois,
        *(_unlisted(number, contours[number], default) for number in contours if number not in items),
    )


def _numbered(ds: Dataset) -> dict[int, Dataset]:
    items = attributes.items(ds, "StructureSetROISequence")
    if not items:
        raise CorrectionError(f"{structure_set_name(ds)} lists no structures")
    if "ROIContourSequence" not in ds:
        raise CorrectionError(f"{structure_set_name(ds)} has no ROI Contour Sequence")
    numbered: dict[int, Dataset] = {}
    for item in items:
        number = attributes.integer(item, "ROINumber")
        if number is None or number in numbered:
            raise CorrectionError(f"{structure_set_name(ds)}: ROI number {number} is missing or listed twice")
        numbered[number] = item
    check_count(ds, len(items))
    return numbered


def _by_number(ds: Dataset, keyword: str) -> dict[int, list[Dataset]]:
    items = attributes.items(ds, keyword)
    if not items and attributes.has_value(ds, keyword):
        raise CorrectionError(f"{structure_set_name(ds)}: its {keyword} cannot be read")
    check_count(ds, len(items))
    found: dict[int, list[Dataset]] = defaultdict(list)
    for item in items:
        number = attributes.integer(item, "ReferencedROINumber")
        if number is None and keyword == "ROIContourSequence":
            raise CorrectionError(f"{structure_set_name(ds)}: contours belong to no structure")
        if number is not None:
            found[number].append(item)
    return dict(found)


def check_count(ds: Dataset, count: int) -> None:
    """Refuse more structures than are read, before anything of them is decoded."""
    if count > MAXIMUM_ROIS:
        raise CorrectionError(
            f"{structure_set_name(ds)} has {count} structures, at most {MAXIMUM_ROIS} are read"
        )


def _frame_of_reference(ds: Dataset) -> str:
    """Give the frame of reference of structures that name none: the only one of the object."""
    named = {
        attributes.text(item, "FrameOfReferenceUID")
        for item in attributes.items(ds, "ReferencedFrameOfReferenceSequence")
    } - {""}
    return named.pop() if len(named) == 1 else attributes.text(ds, "FrameOfReferenceUID")


def _labels(
    ds: Dataset,
    items: Mapping[int, Dataset],
    observations: Mapping[int, Sequence[Dataset]],
    *,
    card: ModelCard,
    series_uid: str,
    aliases: Mapping[str, str],
) -> dict[int, Listed]:
    """Map structures as the segments of a segmentation are mapped: one rule for both."""
    stand_in = Dataset()
    stand_in.SOPInstanceUID = attributes.text(ds, "SOPInstanceUID")
    stand_in.Manufacturer = attributes.text(ds, "Manufacturer")
    order = list(items)
    stand_in.SegmentSequence = [
        _as_segment(place, items[number], observations.get(number, ()), card)
        for place, number in enumerate(order, 1)
    ]
    listed = listed_segments(stand_in, card, series_uid, aliases=aliases)
    return {number: listed[place] for place, number in enumerate(order, 1)}


def _as_segment(place: int, item: Dataset, observations: Sequence[Dataset], card: ModelCard) -> Dataset:
    segment = Dataset()
    segment.SegmentNumber = place
    segment.SegmentLabel = _telling_name(item, observations, card)
    segment.TrackingUID = attributes.text(item, "TrackingUID")
    for theirs, ours in _CODES.items():
        codes = [code for one in observations for code in attributes.items(one, ours)]
        setattr(segment, theirs, codes[:1])
    return segment


def _telling_name(item: Dataset, observations: Sequence[Dataset], card: ModelCard) -> str:
    """Give the first of ROI Name and observation labels that is a label of the model, else the name."""
    name = attributes.text(item, "ROIName")
    names = [name, *_observation_labels(observations)]
    return next((one for one in names if card.segment_labelled(one) is not None), name)


def _observation_labels(observations: Sequence[Dataset]) -> list[str]:
    return [attributes.text(one, "ROIObservationLabel") for one in observations]


def _conflict(item: Dataset, observations: Sequence[Dataset], card: ModelCard) -> frozenset[str]:
    names = [attributes.text(item, "ROIName"), *_observation_labels(observations)]
    meant = {segment.label for segment in map(card.segment_labelled, names) if segment is not None}
    return frozenset({"label_conflict"}) if len(meant) > 1 else frozenset()


def _unlisted(number: int, items: Sequence[Dataset], frame_of_reference_uid: str) -> Roi:
    return Roi(
        number=number,
        name=f"ROI {number}",
        label=None,
        frame_of_reference_uid=frame_of_reference_uid,
        contour_items=tuple(items),
        flags=frozenset({"unlisted_roi"}),
    )
