"""A first ``labels.toml`` for a model that names its classes but does not code them.

The draft is for a person to read before the model is used: codes come from :mod:`anatomy`, and no guess is
made at a name that the table does not know.
"""

import colorsys
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from dicomnode.domain import Code, Segment
from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports import anatomy
from dicomnode.ml.imports.anatomy import Colour, Concept
from dicomnode.ml.model import package

LONGEST_LABEL = 64
UNKNOWN = Code(value="85756007", scheme=anatomy.SCT, meaning="Tissue")
"""Category and type of a structure that the table does not know: legal, and says no more than it must."""

_TABLE_START = "\n[[segments]]\n"
_GOLDEN = 0.618034
_SHADES = ((0.85, 0.95), (0.45, 0.95), (0.9, 0.6))  # saturation and value
_OKABE_ITO: tuple[Colour, ...] = (  # told apart by readers with a colour deficiency too
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownName:
    """A class whose name the table does not know."""

    class_index: int
    name: str  # as the model gives it
    label: str  # as the draft gives it


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedLabels:
    """Segments in the order of their classes, and those that a person must complete."""

    segments: tuple[Segment, ...]
    unknown: tuple[UnknownName, ...]


def draft(names: Mapping[int, str] | Sequence[tuple[int, str]], *, context: str = "") -> DraftedLabels:
    """Give every class of a network a label, a coded concept and a colour of its own.

    Parameters
    ----------
    names
        Class index and name; the background, 0, may be among them and is left out. The indices are taken as
        they are: a package wants 1, 2, ... without gaps, so whoever imports a model that has gaps first
        numbers its classes anew.
    context
        What the data set is called; see :func:`dicomnode.ml.imports.anatomy.find`.

    Returns
    -------
        Segment numbers are 1, 2, ... in the order of the classes. An unknown name keeps its words as a label
        and has :data:`UNKNOWN` as category and type.

    Raises
    ------
    ModelFormatError
        A class index is negative or there twice.
    """
    drafted: list[Segment] = []
    unknown: list[UnknownName] = []
    for class_index, name in _checked(names):
        concept = anatomy.find(name, context=context)
        wished = (concept.label if concept else "", _plain(name), f"Class {class_index}")
        label = _free_label(wished, taken={one.label.casefold() for one in drafted})
        rgb = _free_colour(concept, taken={one.rgb for one in drafted})
        if concept is None:
            unknown.append(UnknownName(class_index=class_index, name=name, label=label))
        drafted.append(_segment(concept, class_index, len(drafted) + 1, label=label, rgb=rgb))
    return DraftedLabels(segments=tuple(drafted), unknown=tuple(unknown))


def render(drafted: DraftedLabels) -> str:
    """Write the draft as ``labels.toml``, with a remark above each table that a person must complete."""
    header, *tables = package.render_labels(drafted.segments).split(_TABLE_START)
    names = {one.class_index: one.name for one in drafted.unknown}
    parts = [header]
    for segment, table in zip(drafted.segments, tables, strict=True):
        if segment.class_index in names:
            parts.append(
                # "!a" also spells out what a comment of TOML must not hold.
                f"\n# TO COMPLETE: no code is known for {names[segment.class_index]!a}; "
                "put the right category and type here."
            )
        parts.append(f"{_TABLE_START}{table}")
    return "".join(parts)


def _checked(names: Mapping[int, str] | Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    pairs = sorted(names.items() if isinstance(names, Mapping) else names)
    indices = [index for index, _ in pairs]
    if len(set(indices)) != len(indices) or (indices and indices[0] < 0):
        raise ModelFormatError(f"the classes of a model are 0, 1, 2, ..., each once; found {indices}")
    return [(index, name) for index, name in pairs if index != 0]


def _segment(
    concept: Concept | None, class_index: int, segment_number: int, *, label: str, rgb: Colour
) -> Segment:
    return Segment(
        class_index=class_index,
        segment_number=segment_number,
        label=label,
        category=concept.category if concept else UNKNOWN,
        type=concept.type if concept else UNKNOWN,
        type_modifier=concept.type_modifier if concept else None,
        region=concept.region if concept else None,
        rgb=rgb,
    )


def _plain(name: str) -> str:
    """Turn a name into words that a label may hold: printable ASCII without underscores."""
    ascii_text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"[^!-~]+|_+", " ", ascii_text).split()
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def _free_label(wished: Sequence[str], *, taken: set[str]) -> str:
    """Take the first wish that is still free, else the last but numbered; never longer than allowed."""
    usable = [text[:LONGEST_LABEL].strip() for text in wished if text.strip()]
    for text in usable:
        if text.casefold() not in taken:
            return text
    numbered = (f"{usable[0][: LONGEST_LABEL - 8]} ({number})" for number in count(2))
    return next(text for text in numbered if text.casefold() not in taken)


def _free_colour(concept: Concept | None, *, taken: set[Colour]) -> Colour:
    if concept is not None and concept.rgb is not None and concept.rgb not in taken:
        return concept.rgb
    return next(colour for colour in _palette() if colour not in taken)


def _palette() -> Iterator[Colour]:
    """Yield colours that differ, first those easiest to tell apart; more than any model has classes."""
    yield from _OKABE_ITO
    for number in range(4096):
        saturation, value = _SHADES[number % len(_SHADES)]
        red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, saturation, value)
        yield round(red * 255), round(green * 255), round(blue * 255)
