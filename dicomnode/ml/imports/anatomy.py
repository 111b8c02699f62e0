"""From the name that a data set gives a structure to its coded concept.

The table ``anatomy.csv`` has one line for each concept, with the names that data sets use for it. Left and
right, and a finding in an organ ("kidney tumor left"), are put together here from codes of the table; no code
is made up. The column ``source`` tells where the code was taken from: ``DICOM`` for the concepts of PS3.16 as
pydicom lists them, ``TotalSegmentator`` for that project's ``totalsegmentator_snomed_mapping.csv``.
"""

import csv
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType

from dicomnode.domain import Code

Colour = tuple[int, int, int]
Words = frozenset[str]
"""A name without order, case, spelling and plural: ``left kidneys`` and ``Kidney_L`` are the same."""

SCT = "SCT"
SIDES: Mapping[str, Code] = MappingProxyType(  # PS3.16 CID 244
    {
        "left": Code(value="7771000", scheme=SCT, meaning="Left"),
        "right": Code(value="24028007", scheme=SCT, meaning="Right"),
    }
)
_TABLE = "anatomy.csv"
_FILLERS = frozenset({"the", "of", "structure"})
_NO_PLACE = frozenset({"dataset", "data", "task", "ct", "mr", "mri", "seg", "segmentation"})
_SPELLINGS = {
    "l": "left",
    "lt": "left",
    "r": "right",
    "rt": "right",
    "tumour": "tumor",
    "neoplasm": "tumor",
    "cancer": "tumor",
    "caecum": "cecum",
    "coeliac": "celiac",
    "grey": "gray",
    "hepatic": "liver",
    "renal": "kidney",
    "lense": "len",  # the singular of "lenses", as `_singular` makes it of "lens" too
    "masse": "mass",
    "1st": "first",
    "2nd": "second",
    "3rd": "third",
    "4th": "fourth",
}
_NEW_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z]{3})(?=[0-9])")


class Kind(StrEnum):
    """What a line of the table stands for."""

    PART = "part"
    GENERAL = "general"  # a part that says little without its organ: a vessel, an artery
    TISSUE = "tissue"
    SUBSTANCE = "substance"
    ABNORMALITY = "abnormality"
    OBJECT = "object"


_ANATOMY = Code(value="123037004", scheme=SCT, meaning="Anatomical Structure")
_CATEGORIES = {  # PS3.16 CID 7150
    Kind.PART: _ANATOMY,
    Kind.GENERAL: _ANATOMY,
    Kind.TISSUE: Code(value="85756007", scheme=SCT, meaning="Tissue"),
    Kind.SUBSTANCE: Code(value="91720002", scheme=SCT, meaning="Body Substance"),
    Kind.ABNORMALITY: Code(value="49755003", scheme=SCT, meaning="Morphologically Abnormal Structure"),
    Kind.OBJECT: Code(value="260787004", scheme=SCT, meaning="Physical object"),
}
_FINDINGS = frozenset({Kind.ABNORMALITY, Kind.OBJECT})
_PLACES = frozenset({Kind.PART, Kind.TISSUE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """The coded meaning of a structure, and how a viewer may call and colour it."""

    label: str
    kind: Kind
    type: Code
    type_modifier: Code | None
    region: Code | None
    is_paired: bool  # left and right may be told apart
    colours: tuple[Colour, ...]  # none; one; or without side, left, right

    @property
    def category(self) -> Code:
        """The segmented property category."""
        return _CATEGORIES[self.kind]

    @property
    def rgb(self) -> Colour | None:
        """The colour of the table, if it has one."""
        return self.colours[0] if self.colours else None


def find(name: str, *, context: str = "") -> Concept | None:
    """Find the concept that a name stands for.

    Parameters
    ----------
    name
        In any order and spelling: ``kidney_left``, ``Left Kidney``, ``kidney L``.
    context
        What the data set is called, such as ``Dataset004_Hippocampus``: it completes a name that by itself
        says nothing, or not where (``Anterior``, ``cancer``).
    """
    words = words_of(name)
    found = _lookup(words)
    if not words or (found is not None and not _lacks_a_place(found)):
        return found
    place = frozenset(word for word in words_of(context) - _NO_PLACE if not word.isdecimal())
    place -= _words_of(Kind.ABNORMALITY)
    organ = place - _words_of(Kind.GENERAL)  # of a data set of vessels, for what is no vessel
    return _lookup(words | place) or _lookup(words | organ) or found


def words_of(name: str) -> Words:
    """Split a name into its words, each in one spelling and in the singular."""
    ascii_text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    found = re.findall("[a-z0-9]+", _NEW_WORD.sub(" ", ascii_text).casefold())
    return frozenset(map(_one_spelling, found)) - _FILLERS


@cache
def table() -> Mapping[Words, Concept]:
    """Read the table of concepts: each under every name that it has."""
    text = resources.files(__package__).joinpath(_TABLE).read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return MappingProxyType({words: concept for row in rows for words, concept in _read_row(row)})


def _read_row(row: Mapping[str, str]) -> Iterator[tuple[Words, Concept]]:
    concept = Concept(
        label=row["label"],
        kind=Kind(row["kind"]),
        type=Code(value=row["type"], scheme=row["scheme"], meaning=row["meaning"]),
        type_modifier=_code(row["modifier"], row["modifier_meaning"]),
        region=_code(row["region"], row["region_meaning"]),
        is_paired=row["paired"] == "yes",
        colours=tuple(_colour(text) for text in row["colours"].split()),
    )
    for name in (row["label"], *filter(None, row["names"].split(";"))):
        yield words_of(name), concept


def _code(value: str, meaning: str) -> Code | None:
    return Code(value=value, scheme=SCT, meaning=meaning) if value else None


def _colour(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


def _one_spelling(word: str) -> str:
    if word.isdecimal():
        return str(int(word))
    if word.startswith("oe"):  # oesophagus, oedema
        word = word[1:]
    word = _singular(word.replace("haem", "hem"))
    return _SPELLINGS.get(word, word)


def _singular(word: str) -> str:
    """Cut the plural off, and as much off a singular that looks like one: both sides are cut alike."""
    if len(word) <= 3 or word.endswith("ss"):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-1] if word.endswith(("s", "ae")) else word


def _lookup(words: Words) -> Concept | None:
    """Look for a concept, for one side of it, or for a finding in it."""
    return _part(words) or _finding(words)


def _part(words: Words) -> Concept | None:
    sides = words & SIDES.keys()
    concept = table().get(words)
    if concept is not None or len(sides) != 1:
        return concept
    [side] = sides
    concept = table().get(words - sides)
    return _on_side(concept, side) if concept is not None and concept.is_paired else None


def _on_side(concept: Concept, side: str) -> Concept:
    colours = concept.colours
    if len(colours) > 1:
        colours = (colours[1] if side == "left" else colours[2],)
    return replace(
        concept, label=f"{concept.label} {side}", type_modifier=SIDES[side], is_paired=False, colours=colours
    )


def _finding(words: Words) -> Concept | None:
    """Look for a finding whose other words name the place that it is in."""
    for own_words, finding in _findings():
        if own_words < words:
            place = _part(words - own_words)
            if place is not None and _is_plain_place(place):
                return _within(finding, place)
    return None


def _within(finding: Concept, place: Concept) -> Concept:
    # The side goes to the finding: a Segment has no modifier of its region.
    return replace(
        finding,
        label=f"{place.label} {finding.label.lower()}",
        type_modifier=place.type_modifier,
        region=place.type,
        colours=(),
    )


def _is_plain_place(place: Concept) -> bool:
    is_whole = place.type_modifier is None or place.type_modifier in SIDES.values()
    return place.kind in _PLACES and place.region is None and is_whole


def _lacks_a_place(concept: Concept) -> bool:
    return concept.kind in {Kind.GENERAL, Kind.ABNORMALITY} and concept.region is None


@cache
def _findings() -> tuple[tuple[Words, Concept], ...]:
    """The findings that may be anywhere, those with most words first."""
    found = [
        (words, concept)
        for words, concept in table().items()
        if concept.kind in _FINDINGS and concept.region is None and concept.type_modifier is None
    ]
    return tuple(sorted(found, key=lambda one: -len(one[0])))


@cache
def _words_of(kind: Kind) -> Words:
    """The words of what may be anywhere; those of "liver tumor" are of a place as well."""
    return frozenset(
        word for words, one in table().items() if one.kind is kind and one.region is None for word in words
    )
