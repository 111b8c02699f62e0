"""Which label of the model a segment of a received object is, and which segment a frame belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import Code, ModelCard, Segment
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.identity import tracking_uid
from dicomnode.imaging.seg_pixels import checked_size

BACKGROUND_CODE = ("125040", "DCM")
VOID_TYPES = frozenset({"T-D0050", "85756007"})
"""'Tissue', which OHIF writes for every segment: it says nothing about which label is meant."""

_SEGMENT_NUMBER_TAG = 0x0062000B
_ABSENT = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One item of the Segment Sequence."""

    name: str  # its Segment Label, or a stand-in
    label: str | None  # the model's label; None where it is none
    is_background: bool


def listed_segments(ds: Dataset, card: ModelCard, series_uid: str) -> dict[int, Listed]:
    """Map every listed segment number to a label of the model, where it is one.

    Our Tracking UID decides first, then Segment Label (case and outer blanks ignored), then the
    coded type with its modifier and region if exactly one label of the model has them.

    Raises
    ------
    CorrectionError
        There is no Segment Sequence, or a number is missing or listed twice.
    """
    items = attributes.items(ds, "SegmentSequence")
    if not items:
        raise CorrectionError(f"{segmentation_name(ds)} lists no segments")
    own = {tracking_uid(series_uid, segment.label): segment.label for segment in card.segments}
    padding = attributes.integer(ds, "PixelPaddingValue")
    listed: dict[int, Listed] = {}
    for item in items:
        number = attributes.integer(item, "SegmentNumber")
        if number is None or number in listed:
            raise CorrectionError(
                f"{segmentation_name(ds)}: segment number {number} is missing or listed twice"
            )
        name = attributes.text(item, "SegmentLabel") or f"segment {number}"
        listed[number] = Listed(
            name=name,
            label=own.get(attributes.text(item, "TrackingUID")) or _by_name_or_code(item, name, card),
            is_background=number in {0, padding} or _type_code(item) == BACKGROUND_CODE,
        )
    return listed


def segment_numbers(ds: Dataset, listed: Sequence[int]) -> tuple[tuple[int, ...], frozenset[str]]:
    """Give the segment number of every frame of an object that is no label map.

    Some versions of Cornerstone renumber the Segment Sequence and leave old numbers in the frames
    (dcmjs #339). Where a frame's number is not listed, all numbers are taken from Dimension Index
    Values, which count the listed segments, else by rank if there are as many numbers as segments.

    Raises
    ------
    CorrectionError
        A frame names no segment, or the numbers cannot be matched without guessing.
    """
    frames = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
    shared = _identified(_first(ds, "SharedFunctionalGroupsSequence"))
    _, _, count = checked_size(ds)
    if len(frames) != count:
        raise CorrectionError(
            f"{segmentation_name(ds)} has {count} frames and {len(frames)} functional groups"
        )
    found = [_identified(frame) or shared for frame in frames]
    numbers = tuple(number for number in found if number is not None)
    if len(numbers) != count:
        raise CorrectionError(f"{segmentation_name(ds)}: a frame names no segment")
    if set(numbers) <= set(listed):
        return numbers, frozenset()
    return _remapped(ds, numbers, listed), frozenset({"segment_numbers_remapped"})


def _remapped(ds: Dataset, numbers: Sequence[int], listed: Sequence[int]) -> tuple[int, ...]:
    order = sorted(listed)
    ranks = _dimension_ranks(ds)
    pairs = set(zip(numbers, ranks, strict=True)) if len(ranks) == len(numbers) else set()
    is_one_to_one = len(pairs) == len({n for n, _ in pairs}) == len({r for _, r in pairs})
    if pairs and is_one_to_one and all(1 <= rank <= len(order) for rank in ranks):
        return tuple(order[rank - 1] for rank in ranks)
    used = sorted(set(numbers))
    if len(used) != len(order):
        raise CorrectionError(
            f"{segmentation_name(ds)}: frames belong to segments {used}, segments {order} are listed; "
            "which is which cannot be told"
        )
    by_rank = dict(zip(used, order, strict=True))
    return tuple(by_rank[number] for number in numbers)


def _dimension_ranks(ds: Dataset) -> list[int]:
    dimensions = [
        attributes.integer(item, "DimensionIndexPointer")
        for item in attributes.items(ds, "DimensionIndexSequence")
    ]
    if _SEGMENT_NUMBER_TAG not in dimensions:
        return []
    at = dimensions.index(_SEGMENT_NUMBER_TAG)
    ranks = []
    for frame in attributes.items(ds, "PerFrameFunctionalGroupsSequence"):
        content = _first(frame, "FrameContentSequence")
        values = attributes.numbers(content, "DimensionIndexValues")
        if values is None or len(values) <= at:
            return []
        ranks.append(int(values[at]))
    return ranks


def _identified(group: Dataset) -> int | None:
    return attributes.integer(_first(group, "SegmentIdentificationSequence"), "ReferencedSegmentNumber")


def _first(ds: Dataset, keyword: str) -> Dataset:
    """Give the first item of a sequence, or an empty data set."""
    return next(iter(attributes.items(ds, keyword)), Dataset())


def _type_code(item: Dataset) -> tuple[str, str]:
    return _code(_first(item, "SegmentedPropertyTypeCodeSequence"))


def _code(item: Dataset) -> tuple[str, str]:
    return attributes.text(item, "CodeValue"), attributes.text(item, "CodingSchemeDesignator")


def _by_name_or_code(item: Dataset, name: str, card: ModelCard) -> str | None:
    named = card.segment_labelled(name)
    if named is not None:
        return named.label
    if _type_code(item)[0] in VOID_TYPES:
        return None
    fitting = [segment for segment in card.segments if _has_codes(item, segment)]
    return fitting[0].label if len(fitting) == 1 else None


def _has_codes(item: Dataset, segment: Segment) -> bool:
    type_item = _first(item, "SegmentedPropertyTypeCodeSequence")
    modifier = _code(_first(type_item, "SegmentedPropertyTypeModifierCodeSequence"))
    region = _code(_first(item, "AnatomicRegionSequence"))
    return (
        _code(type_item) == _key(segment.type)
        and modifier == _key(segment.type_modifier)
        and (region == _ABSENT or segment.region is None or region == _key(segment.region))
    )


def _key(code: Code | None) -> tuple[str, str]:
    return (code.value, code.scheme) if code else _ABSENT
