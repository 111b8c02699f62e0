"""Which label of the model a segment of a received object is, and which segment a frame belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import Code, ModelCard, Segment
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.identity import tracking_uid
from dicomnode.imaging.reading.seg_frames import is_dcmjs

LABEL_MAP_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"
BACKGROUND_CODE = ("125040", "DCM")
VOID_TYPES = frozenset({"T-D0050", "85756007"})
"""'Tissue', which OHIF writes for every segment: it says nothing about which label is meant."""
CODELESS_MANUFACTURERS = frozenset({"MONAI Consortium"})
"""MONAI Label gives the code of the spleen to every segment."""

MAXIMUM_SEGMENTS = 4096
"""Of one object; the largest atlases have some hundreds."""

_SEGMENT_NUMBER_TAG = 0x0062000B
_ABSENT = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One item of the Segment Sequence."""

    name: str  # its Segment Label, or a stand-in
    label: str | None  # the model's label; None where it is none
    is_background: bool
    flags: frozenset[str] = frozenset()  # how the label was found, and what speaks against it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claims:
    """What one segment says about which label it is; None where it says nothing."""

    name: str
    tracked: str | None
    named: str | None
    coded: str | None

    @property
    def sure(self) -> str | None:
        return self.tracked or self.named

    @property
    def contradict(self) -> bool:
        return len({self.tracked, self.named, self.coded} - {None}) > 1


def listed_segments(
    ds: Dataset, card: ModelCard, series_uid: str, *, aliases: Mapping[str, str]
) -> dict[int, Listed]:
    """Map every listed segment number to a label of the model, where it is one.

    Our Tracking UID decides first, then Segment Label (case and outer blanks ignored), then the coded
    type with its modifier and region, if exactly one label of the model and one segment of the object have
    them, then the alias of its Segment Label.

    Parameters
    ----------
    aliases
        Names that readers use -> label of the model; case and outer blanks ignored.

    Raises
    ------
    CorrectionError
        There is no Segment Sequence, or a number is missing or listed twice, or they are too many.
    """
    items = _numbered_items(ds)
    background = {number for number, item in items.items() if _is_background(ds, number, item)}
    claims = _claims(ds, items, card, series_uid)
    others = [one for number, one in claims.items() if number not in background]
    folded = {name.strip().casefold(): label for name, label in aliases.items()}
    return {
        number: _listed(
            one,
            others,
            is_background=number in background,
            alias=card.segment_labelled(folded.get(_folded(one), "")),
        )
        for number, one in claims.items()
    }


def _claims(
    ds: Dataset, items: Mapping[int, Dataset], card: ModelCard, series_uid: str
) -> dict[int, _Claims]:
    own = {tracking_uid(series_uid, segment.label): segment.label for segment in card.segments}
    reads_codes = attributes.text(ds, "Manufacturer") not in CODELESS_MANUFACTURERS
    claims = {}
    for number, item in items.items():
        name = attributes.text(item, "SegmentLabel") or f"segment {number}"
        named = card.segment_labelled(name)
        claims[number] = _Claims(
            name=name,
            tracked=own.get(attributes.text(item, "TrackingUID")),
            named=named.label if named else None,
            coded=_label_coded(item, card) if reads_codes else None,
        )
    return claims


def _numbered_items(ds: Dataset) -> dict[int, Dataset]:
    items = attributes.items(ds, "SegmentSequence")
    if not items:
        raise CorrectionError(f"{segmentation_name(ds)} lists no segments")
    if len(items) > MAXIMUM_SEGMENTS:
        raise CorrectionError(
            f"{segmentation_name(ds)} lists {len(items)} segments, at most {MAXIMUM_SEGMENTS} are read"
        )
    numbered: dict[int, Dataset] = {}
    for item in items:
        number = attributes.integer(item, "SegmentNumber")
        if number is None or number in numbered:
            raise CorrectionError(
                f"{segmentation_name(ds)}: segment number {number} is missing or listed twice"
            )
        numbered[number] = item
    return numbered


def _is_background(ds: Dataset, number: int, item: Dataset) -> bool:
    """Answer whether a segment is none; Pixel Padding Value means that in label maps only."""
    is_padding = is_label_map(ds) and number == attributes.integer(ds, "PixelPaddingValue")
    return number == 0 or is_padding or _type_code(item) == BACKGROUND_CODE


def _listed(one: _Claims, others: Sequence[_Claims], *, is_background: bool, alias: Segment | None) -> Listed:
    label, flags = one.sure, set[str]()
    if one.sure and one.contradict:
        flags.add("label_conflict")
    if is_background and label:
        flags.add("label_as_background")
    # Codes tell a label only where no other segment has them or the label's name: a reader copies segments.
    rivals = [o for o in others if o is not one and one.coded and one.coded in {o.sure, o.coded}]
    if label is None and one.coded and not rivals:
        label = one.coded
        flags.add("label_by_codes")
    if label is None and alias is not None:
        label = alias.label
        flags.add("label_by_alias")
    if label is None and any(rival.sure is None for rival in rivals):
        flags.add("codes_ambiguous")
    return Listed(name=one.name, label=label, is_background=is_background, flags=frozenset(flags))


def _folded(one: _Claims) -> str:
    return one.name.strip().casefold()


def is_label_map(ds: Dataset) -> bool:
    """Answer whether pixel values are segment numbers (PS3.3 C.8.20.2.4)."""
    is_class = attributes.text(ds, "SOPClassUID") == LABEL_MAP_SOP_CLASS
    return is_class or attributes.text(ds, "SegmentationType") == "LABELMAP"


def segment_numbers(ds: Dataset, listed: Sequence[int]) -> tuple[tuple[int, ...], frozenset[str]]:
    """Give the segment number of every frame of an object that is no label map.

    Some versions of Cornerstone renumber the Segment Sequence and leave old numbers in the frames
    (dcmjs #339). Where a frame's number is not listed, all numbers are taken from Dimension Index
    Values, which count the listed segments, else by rank if there are as many numbers as segments. Where
    labels overlap, the old numbers may be the new ones of other segments; so those of dcmjs are always held
    against Dimension Index Values, which it wrote together with the list.

    Raises
    ------
    CorrectionError
        A frame names no segment, or the numbers cannot be matched without guessing.
    """
    frames = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
    shared = _identified(_first(ds, "SharedFunctionalGroupsSequence"))
    found = [_identified(frame) or shared for frame in frames]
    numbers = tuple(number for number in found if number is not None)
    if len(numbers) != len(frames):
        raise CorrectionError(f"{segmentation_name(ds)}: a frame names no segment")
    if set(numbers) <= set(listed):
        if is_dcmjs(ds):
            return _confirmed(ds, numbers, sorted(listed))
        return numbers, _contradiction(ds, numbers)
    return _remapped(ds, numbers, listed)


def _contradiction(ds: Dataset, numbers: Sequence[int]) -> frozenset[str]:
    """Flag dimension indices that count other segments than the frames name."""
    ranks = _dimension_ranks(ds)
    if not ranks or _is_one_to_one(numbers, ranks):
        return frozenset()
    return frozenset({"segment_numbers_contradicted"})


def _is_one_to_one(numbers: Sequence[int], ranks: Sequence[int]) -> bool:
    pairs = set(zip(numbers, ranks, strict=True))
    return len(pairs) == len({number for number, _ in pairs}) == len({rank for _, rank in pairs})


def _confirmed(
    ds: Dataset, numbers: tuple[int, ...], order: Sequence[int]
) -> tuple[tuple[int, ...], frozenset[str]]:
    ranks = _dimension_ranks(ds)
    if len(ranks) != len(numbers) or set(ranks) != set(range(1, len(order) + 1)):
        return numbers, _contradiction(ds, numbers)  # segments without frames: what ranks count is not told
    counted = tuple(order[rank - 1] for rank in ranks)
    if counted == numbers:
        return counted, frozenset()
    return counted, _contradiction(ds, numbers) | {"segment_numbers_remapped"}


def _remapped(
    ds: Dataset, numbers: Sequence[int], listed: Sequence[int]
) -> tuple[tuple[int, ...], frozenset[str]]:
    order = sorted(listed)
    ranks = _dimension_ranks(ds)
    is_one_to_one = bool(ranks) and _is_one_to_one(numbers, ranks)
    if is_one_to_one and all(1 <= rank <= len(order) for rank in ranks):
        return tuple(order[rank - 1] for rank in ranks), frozenset({"segment_numbers_remapped"})
    used = sorted(set(numbers))
    if len(used) != len(order):
        raise CorrectionError(
            f"{segmentation_name(ds)}: frames belong to segments {used}, segments {order} are listed; "
            "which is which cannot be told"
        )
    by_rank = dict(zip(used, order, strict=True))
    return tuple(by_rank[number] for number in numbers), frozenset({"segment_numbers_by_rank"})


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


def _label_coded(item: Dataset, card: ModelCard) -> str | None:
    """Give the one label of the model that has a segment's codes."""
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
