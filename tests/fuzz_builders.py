"""Part 10 files as trees of elements, and every way to break them."""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicomnode.imaging.images.stacks import Stack
from tests.seg_pixel_builders import deflated

_LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010

Mask = NDArray[np.bool_]


# Part 10 as a tree ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element: its bytes, or the items of a sequence."""

    tag: int
    vr: str
    value: bytes = b""
    items: "tuple[tuple[Element, ...], ...] | None" = None
    is_open: bool = False  # of undefined length: pixel data in items

    @property
    def keyword(self) -> str:
        """Name in the dictionary."""
        return keyword_for_tag(self.tag) or f"{self.tag:08X}"


Item = tuple[Element, ...]
Step = tuple[int, int]  # the element of an item, and the item of that element (-1: the element itself)
Place = tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """File meta information and data set of one file."""

    meta: Item
    content: Item

    def encode(self) -> bytes:
        """Write the file as its transfer syntax says: explicit, deflated or not."""
        meta = b"".join(map(_encoded, self.meta))
        content = b"".join(map(_encoded, self.content))
        if _syntax(self.meta) == DeflatedExplicitVRLittleEndian.encode():
            content = deflated(content)
        return bytes(128) + b"DICM" + meta + content


def parse(part10: bytes) -> Tree:
    """Take a file apart that is written in an explicit little endian transfer syntax."""
    meta: list[Element] = []
    at = 132
    while part10[at : at + 2] == b"\x02\x00":
        element, at = _read_element(part10, at)
        meta.append(element)
    content = part10[at:]
    if _syntax(meta) == DeflatedExplicitVRLittleEndian.encode():
        content = zlib.decompress(content, -zlib.MAX_WBITS)
    elements, _ = _read_elements(content, 0, len(content))
    return Tree(meta=tuple(meta), content=elements)


def _syntax(meta: Sequence[Element]) -> bytes:
    return next((one.value.rstrip(b"\0") for one in meta if one.tag == 0x00020010), b"")


def _read_elements(data: bytes, at: int, end: int) -> tuple[Item, int]:
    elements: list[Element] = []
    while at < end:
        if _tag(data, at) == _ITEM_END:
            return tuple(elements), at + 8
        element, at = _read_element(data, at)
        elements.append(element)
    return tuple(elements), at


def _read_element(data: bytes, at: int) -> tuple[Element, int]:
    tag, vr = _tag(data, at), data[at + 4 : at + 6].decode()
    is_long = vr in _LONG
    (length,) = struct.unpack_from("<L" if is_long else "<H", data, at + (8 if is_long else 6))
    at += 12 if is_long else 8
    if vr == "SQ":
        items, at = _read_items(data, at, len(data) if length == _UNDEFINED else at + length)
        return Element(tag=tag, vr=vr, items=items), at
    if length == _UNDEFINED:
        end = at
        while _tag(data, end) != _SEQUENCE_END:
            end += 8 + int(struct.unpack_from("<L", data, end + 4)[0])
        return Element(tag=tag, vr=vr, value=data[at:end], is_open=True), end + 8
    return Element(tag=tag, vr=vr, value=data[at : at + length]), at + length


def _read_items(data: bytes, at: int, end: int) -> tuple[tuple[Item, ...], int]:
    items: list[Item] = []
    while at < end:
        tag = _tag(data, at)
        (length,) = struct.unpack_from("<L", data, at + 4)
        at += 8
        if tag == _SEQUENCE_END:
            break
        elements, at = _read_elements(data, at, len(data) if length == _UNDEFINED else at + length)
        items.append(elements)
    return tuple(items), at


def _tag(data: bytes, at: int) -> int:
    group, number = struct.unpack_from("<HH", data, at)
    return int(group) << 16 | int(number)


def _encoded(element: Element) -> bytes:
    header = struct.pack("<HH", element.tag >> 16, element.tag & 0xFFFF)
    value = element.value
    if element.items is not None:
        value = b"".join(_encoded_item(one) for one in element.items)
    value += b"\0" * (len(value) % 2 and element.vr in {"OB", "UI", "UN"}) + b" " * (
        len(value) % 2 and element.vr not in {"OB", "UI", "UN"}
    )
    if element.is_open:
        return header + element.vr.encode() + struct.pack("<HL", 0, _UNDEFINED) + value + _END_OF_ITEMS
    if element.vr in _LONG:
        return header + element.vr.encode() + struct.pack("<HL", 0, len(value)) + value
    if len(value) > 0xFFFF:  # more than the short form holds: the form for that (PS3.5 6.2.2)
        return header + b"UN" + struct.pack("<HL", 0, len(value)) + value
    return header + element.vr.encode() + struct.pack("<H", len(value)) + value


_END_OF_ITEMS = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def _encoded_item(elements: Item) -> bytes:
    content = b"".join(map(_encoded, elements))
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


# Places in a tree -------------------------------------------------------------------------------------------


def walk(elements: Item, above: Place = ()) -> Iterator[tuple[Place, Element]]:
    """Give every element at every depth with its place."""
    for index, element in enumerate(elements):
        yield (*above, (index, -1)), element
        for number, one in enumerate(element.items or ()):
            yield from walk(one, (*above, (index, number)))


def words(elements: Item, path: Place) -> tuple[str, ...]:
    """Name a place by the keywords of the elements on the way."""
    names = []
    for index, number in path:
        names.append(elements[index].keyword)
        elements = elements[index].items[number] if number >= 0 else ()  # type: ignore[index]
    return tuple(names)


def changed(elements: Item, path: Place, change: Callable[[Element], Sequence[Element]]) -> Item:
    """Put other elements in the place of one; everything else is shared with the tree as it was."""
    (index, number), *rest = path
    element = elements[index]
    if not rest:
        return (*elements[:index], *change(element), *elements[index + 1 :])
    items = list(element.items or ())
    items[number] = changed(items[number], tuple(rest), change)
    return (*elements[:index], replace(element, items=tuple(items)), *elements[index + 1 :])


# Whole objects ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Base:
    """An object that is read right, and what is read from it."""

    name: str
    tree: Tree
    stack: Stack
    truth: Mapping[str, Mask]
    sop_instance_uid: str


# Ways to break them -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A broken file, what was done to it, and the names of the places that were touched."""

    content: bytes
    told: tuple[str, ...]
    touched: tuple[tuple[str, ...], ...]


Change = Callable[[Element], Sequence[Element]]

_EXTREMES = (b"0", b"-1", b"65535", b"2147483647", b"nan", b"inf", b"1e308", b"9" * 400, b"1e-320", b"abc")
_WORDS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "AT": "L"}
_NUMBERS = (0.0, 1.0, 2.0, 5.0, -1.0, 65535.0, 2.0**31 - 1, float("nan"), float("inf"), 1e308)
_NEAR = (-1.0, 0.3, 1.0, 2.0)
_REPRESENTATIONS = ("UN", "LO", "DS", "US", "SQ", "OB", "FD", "IS", "UI", "AT", "XX")


def leaf_changes(element: Element, others: Sequence[Element]) -> dict[str, Change]:
    """Give every change of an element that is no sequence; `others` are those of the same object."""
    changes: dict[str, Change] = {
        "removed": lambda _: [],
        "emptied": lambda e: [replace(e, value=b"", is_open=False)],
        "doubled value": lambda e: [replace(e, value=e.value + (b"\\" * (e.vr not in _WORDS)) + e.value)],
        "odd length": lambda e: [replace(e, vr="UN", value=e.value + b"\1\2\3")],
        "a million letters": lambda e: [replace(e, value=b"A" * 1_000_000)],
        "a hundred thousand values": lambda e: [replace(e, value=b"1\\" * 100_000)],
        "nested 200 deep": lambda e: [replace(e, vr="SQ", value=nested(e.tag, 200), is_open=False)],
        "of no items": lambda e: [replace(e, vr="SQ", items=(), is_open=False)],
    }
    for vr in _REPRESENTATIONS:
        changes[f"as {vr}"] = lambda e, vr=vr: [  # type: ignore[misc]
            replace(e, vr=vr, items=((),) if vr == "SQ" else None, is_open=False)
        ]
    for value in _extremes(element):
        changes[f"value {value[:12]!r}"] = lambda e, value=value: [replace(e, value=value)]  # type: ignore[misc]
    for value in dict.fromkeys(other.value for other in others if other.vr == element.vr):
        if value != element.value:
            changes[f"value of another {value[:40]!r}"] = lambda e, value=value: [replace(e, value=value)]  # type: ignore[misc]
    if element.tag == _PIXEL_DATA:
        changes |= _pixel_changes()
    return changes


def _extremes(element: Element) -> list[bytes]:
    code = _WORDS.get(element.vr)
    if code is None:
        near = [_moved(element.value, by) for by in _NEAR] if element.vr in {"DS", "IS"} else []
        return [*_EXTREMES, *(value for value in near if value)]
    values = []
    for number in _NUMBERS:
        try:
            values.append(struct.pack(f"<{code}", number if code in "fd" else int(number)))
        except (struct.error, OverflowError, ValueError):
            continue
    return values


def _moved(value: bytes, by: float) -> bytes:
    """Add to the last number of a decimal string, which is z of a position."""
    *first, last = value.rstrip(b" \0").split(b"\\")
    try:
        return b"\\".join([*first, f"{float(last) + by:.10g}".encode()])
    except ValueError:
        return b""


def _pixel_changes() -> dict[str, Change]:
    cuts: dict[str, Callable[[bytes], bytes]] = {
        "cut by a byte pair": lambda value: value[:-2],
        "cut to half": lambda value: value[: len(value) // 4 * 2],
        "lengthened": lambda value: value + bytes(2),
        "lengthened by ones": lambda value: value + b"\xff" * 64,
        "turned bits": lambda value: bytes(byte ^ 0xFF for byte in value),
        "in items": lambda value: encapsulate([value]),
        "twice in items": lambda value: encapsulate([value, value]),
    }
    changes: dict[str, Change] = {
        name: lambda e, cut=cut: [replace(e, value=cut(e.value))]  # type: ignore[misc]
        for name, cut in cuts.items()
    }
    changes["open"] = lambda e: [replace(e, is_open=not e.is_open)]
    return changes


def sequence_changes(element: Element, others: Sequence[Element]) -> dict[str, Change]:
    """Give every change of a sequence."""
    items = element.items or ()
    first = items[:1]
    changes: dict[str, Change] = {
        "removed": lambda _: [],
        "emptied": lambda e: [replace(e, items=())],
        "of one empty item": lambda e: [replace(e, items=((),))],
        "doubled": lambda e: [replace(e, items=items + items)],
        "in reverse order": lambda e: [replace(e, items=items[::-1])],
        "first two exchanged": lambda e: [replace(e, items=items[1:2] + items[:1] + items[2:])],
        "without the first": lambda e: [replace(e, items=items[1:])],
        "without the last": lambda e: [replace(e, items=items[:-1])],
        "first again": lambda e: [replace(e, items=items + first)],
        "last again": lambda e: [replace(e, items=items + items[-1:])],
        "first for all": lambda e: [replace(e, items=first * len(items))],
        "ten thousand items": lambda e: [replace(e, items=tuple(((),) * 10_000))],
        "ten thousand first items": lambda e: [replace(e, items=first * 10_000)],
        "nested 2000 deep": lambda e: [replace(e, items=None, value=nested(e.tag, 2000))],
        "as text": lambda e: [replace(e, vr="LO", items=None, value=b"text")],
        "as UN": lambda e: [replace(e, vr="UN")],
        "as pixels": lambda e: [replace(e, vr="OB", items=None, value=b"\1\2\3\4")],
    }
    for other in others:
        if other.items is not None and other.tag != element.tag:
            name = f"items of {other.keyword}"
            changes[name] = lambda e, other=other: [replace(e, items=other.items)]  # type: ignore[misc]
    return changes


def nested(tag: int, depth: int) -> bytes:
    """The value of a sequence whose item holds a sequence, and so on."""
    inside = b""
    for _ in range(depth):
        content = struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"SQ", 0, len(inside)) + inside
        inside = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
    return inside


def changes_of(element: Element, others: Sequence[Element]) -> dict[str, Change]:
    """Give every change of an element by its name."""
    return (leaf_changes if element.items is None else sequence_changes)(element, others)


def mutate(tree: Tree, path: Place, name: str, change: Change, *, in_meta: bool = False) -> tuple[Tree, str]:
    """Change one element; also say what was done."""
    part = tree.meta if in_meta else tree.content
    told = f"{'.'.join(words(part, path))} at {[index for step in path for index in step]}: {name}"
    new = changed(part, path, change)
    return (replace(tree, meta=new) if in_meta else replace(tree, content=new)), told


def elements_of(tree: Tree) -> list[tuple[bool, Place, Element]]:
    """Give every element of a file: whether it is of the file meta information, its place, itself."""
    return [
        *((True, path, element) for path, element in walk(tree.meta)),
        *((False, path, element) for path, element in walk(tree.content)),
    ]


def every_single(base: Base) -> Iterator[tuple[bool, Place, str, Change]]:
    """Give every change of every element at every depth."""
    found = elements_of(base.tree)
    others = [element for _, _, element in found]
    for in_meta, path, element in found:
        for name, change in changes_of(element, others).items():
            yield in_meta, path, name, change


def mutant(base: Base, *changes: tuple[bool, Place, str, Change]) -> Mutant:
    """Apply changes, the last place first so that the others keep theirs."""
    tree, told, touched = base.tree, [], []
    for in_meta, path, name, change in sorted(changes, key=lambda one: (one[0], one[1]), reverse=True):
        part = base.tree.meta if in_meta else base.tree.content
        try:
            tree, what = mutate(tree, path, name, change, in_meta=in_meta)
        except (IndexError, TypeError):
            continue  # its place is gone with an earlier change
        told.append(what)
        touched.append(words(part, path))
    return Mutant(content=tree.encode(), told=tuple(told), touched=tuple(touched))


# Bytes ------------------------------------------------------------------------------------------------------

_Value = tuple[tuple[int, ...], tuple[str, ...], str]
Edit = tuple[str, int, int]  # what, where, and a number from 0 to 255

EDITS: Mapping[str, Callable[[bytes, int, int], bytes]] = {
    "bit": lambda data, at, by: data[:at] + bytes([data[at] ^ (1 << by % 8)]) + data[at + 1 :],
    "byte": lambda data, at, by: data[:at] + bytes([by]) + data[at + 1 :],
    "digit": lambda data, at, by: data[:at] + b"0123456789.-"[by % 12 : by % 12 + 1] + data[at + 1 :],
    "left out": lambda data, at, by: data[:at] + data[at + 2 * by :],
    "put in": lambda data, at, by: data[:at] + bytes(range(by)) + data[at:],
    "twice": lambda data, at, by: data[: at + 2 * by] + data[at:],
    "cut": lambda data, at, by: data[: at + by],
}


def edited(base: Base, edits: Sequence[Edit]) -> Mutant:
    """Change bytes of a file; touched are the elements that no longer stand in it as they did."""
    content = base.tree.encode()
    for what, at, by in edits:
        if at < len(content):
            content = EDITS[what](content, at, by)
    return Mutant(content=content, told=tuple(map(str, edits)), touched=_differences(base, content))


def _differences(base: Base, content: bytes) -> tuple[tuple[str, ...], ...]:
    """Name the elements that pydicom finds changed, absent or added; none where it cannot read the file."""
    try:
        found = _values(dcmread(BytesIO(content)))
    except Exception:  # the node is held to its own errors when it reads the same file
        return ()
    own = _values(dcmread(BytesIO(base.tree.encode())))
    return tuple({words for _, words, _ in own ^ found})


def _values(ds: Dataset, above: tuple[str, ...] = (), place: tuple[int, ...] = ()) -> set[_Value]:
    values: set[_Value] = set()
    for tag in list(ds.keys()):
        names = (*above, keyword_for_tag(tag) or str(tag))
        try:
            element = ds[tag]
            items = element.value if element.VR == "SQ" else ()
            values.add(((*place, tag), names, str(len(items)) if items else repr(element.value)))
        except Exception:  # what cannot be decoded is changed
            values.add(((*place, tag), names, ""))
            continue
        for number, one in enumerate(items):
            values |= _values(one, names, (*place, tag, number))
    return values
