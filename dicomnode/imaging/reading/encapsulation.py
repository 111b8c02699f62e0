"""Encapsulated pixel data (PS3.5 A.4): its items, and which of them make up which frame.

Stricter than pydicom, which believes every offset and takes what is left of a cut item: a frame made of
another's items would be a mask at a wrong place.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

ITEM = b"\xfe\xff\x00\xe0"
_DELIMITER = b"\xfe\xff\xdd\xe0"
_HEADER_BYTES = 8

Code = Sequence[memoryview]
"""The fragments of one frame, in order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items:
    """A Basic Offset Table, and the fragments after it with their places, counted from the first one."""

    offsets: tuple[int, ...]
    starts: tuple[int, ...]
    fragments: tuple[memoryview, ...]


def read_items(value: bytes, *, frames: int) -> Items:
    """Read the items of encapsulated pixel data; nothing is copied.

    Raises
    ------
    ValueError
        An item is cut or of another tag, there are no fragments, or absurdly many for so many frames.
    """
    spans = _spans(value, most=16_384 + 64 * frames)
    if len(spans) < 2:
        raise ValueError("there are no fragments after the Basic Offset Table")
    (table, end), *rest = spans
    if (end - table) % 4:
        raise ValueError(f"the Basic Offset Table has {end - table} bytes, no multiple of 4")
    view = memoryview(value)
    return Items(
        offsets=struct.unpack_from(f"<{(end - table) // 4}L", value, table),
        starts=tuple(start - _HEADER_BYTES - end for start, _ in rest),
        fragments=tuple(view[start:stop] for start, stop in rest),
    )


def frame_codes(
    items: Items, *, frames: int, extended_offsets: bytes = b"", signature: bytes = b""
) -> list[Code]:
    """Say which fragments make up each frame.

    Where there is one fragment for each frame, the tables are not needed, and only one that puts the
    frames in another order is refused. Otherwise a table decides, or the first bytes of the fragments.

    Parameters
    ----------
    extended_offsets
        Extended Offset Table (PS3.3 C.7.6.3.1.8), as bytes.
    signature
        What every codestream of this transfer syntax begins with; b"" where nothing marks the beginning.

    Raises
    ------
    ValueError
        There are fewer fragments than frames, or more and nothing says which belong together.
    """
    count = len(items.fragments)
    if count < frames:
        raise ValueError(f"there are {count} fragments, {frames} frames were expected")
    tables = [items.offsets, _long_offsets(extended_offsets), _marked(items, signature)]
    if count == frames:
        if any(table != items.starts and sorted(table) == list(items.starts) for table in tables):
            raise ValueError("the offset table puts the frames in another order")
        return [[fragment] for fragment in items.fragments]
    if frames == 1 and all(len(table) <= 1 for table in tables):
        return [items.fragments]
    for table in tables:
        if _begins_frames(table, items, frames):
            return _grouped(table, items)
    raise ValueError(f"which of its {count} fragments make up each of {frames} frames is not said")


def joined(code: Code) -> bytes:
    """Give the codestream of one frame in one piece."""
    return b"".join(code)


def _spans(value: bytes, *, most: int) -> list[tuple[int, int]]:
    """Find where the content of each item begins and ends."""
    spans: list[tuple[int, int]] = []
    at = 0
    while len(value) - at >= _HEADER_BYTES and value[at : at + 4] != _DELIMITER:
        tag, length = struct.unpack_from("<4sL", value, at)
        at += _HEADER_BYTES
        if tag != ITEM:
            raise ValueError(f"bytes {tag.hex(' ')} stand where an item was expected")
        if length > len(value) - at:
            raise ValueError(f"an item claims {length} bytes, {len(value) - at} are left")
        spans.append((at, at + length))
        if len(spans) > most:
            raise ValueError(f"there are more than {most} items")
        at += length
    if value[at:].removeprefix(_DELIMITER).strip(b"\0"):
        raise ValueError("there are bytes after the last item")
    return spans


def _long_offsets(table: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(table) // 8}Q", table) if len(table) % 8 == 0 else ()


def _marked(items: Items, signature: bytes) -> tuple[int, ...]:
    return tuple(
        start
        for start, fragment in zip(items.starts, items.fragments, strict=True)
        if signature and fragment[: len(signature)] == signature
    )


def _begins_frames(table: tuple[int, ...], items: Items, frames: int) -> bool:
    is_rising = all(first < second for first, second in pairwise(table))
    return len(table) == frames > 1 and table[0] == 0 and is_rising and set(table) <= set(items.starts)


def _grouped(table: tuple[int, ...], items: Items) -> list[Code]:
    at = {start: index for index, start in enumerate(items.starts)}
    first = [at[offset] for offset in table]
    return [items.fragments[begin:end] for begin, end in pairwise([*first, len(items.fragments)])]
