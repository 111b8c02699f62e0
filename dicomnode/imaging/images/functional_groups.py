"""The Per-Frame Functional Groups of a segmentation (PS3.3 C.7.6.16), encoded without a data set per frame.

A segmentation of 20 labels on 300 slices has thousands of frames, each with a dozen nested elements that say
little new. Here the parts that belong to a plane are encoded once, in Explicit VR Little Endian, and joined
frame by frame; pydicom decodes them when somebody looks.
"""

import struct
from collections.abc import Sequence

from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.valuerep import format_number_as_ds

from dicomnode.imaging import attributes
from dicomnode.imaging.images.frames import SourceFrame

PER_FRAME_FUNCTIONAL_GROUPS = 0x52009230
DERIVATION_IMAGE = 0x00089124
FRAME_CONTENT = 0x00209111
PLANE_POSITION = 0x00209113
SEGMENT_IDENTIFICATION = 0x0062000A

GroupsFrame = tuple[int | None, int]  # segment number (None in a label map), index of the plane

_ITEM = struct.pack("<HH", 0xFFFE, 0xE000)


def per_frame_groups(planes: Sequence[SourceFrame], frames: Sequence[GroupsFrame]) -> RawDataElement:
    """Encode what each frame shows, where it lies and which image it was made of.

    Parameters
    ----------
    planes
        Of the stack, in its order.
    frames
        In the order in which they are stored. Their dimension indices are the segment number, where there is
        one, and the rank of the plane among those of this object, from the last plane to the first: the
        order in which viewers mirror nothing.
    """
    used = sorted({index for _, index in frames}, reverse=True)
    ranks = {index: rank for rank, index in enumerate(used, start=1)}
    derivations = {index: _derivation(planes[index]) for index in used}
    positions = {index: _position(planes[index]) for index in used}
    items = [
        derivations[index] + _content(number, ranks[index]) + positions[index] + _identification(number)
        for number, index in frames
    ]
    value = _items(*items)
    return RawDataElement(Tag(PER_FRAME_FUNCTIONAL_GROUPS), "SQ", len(value), value, 0, False, True)


def decimal_string(value: float) -> str:
    """Write a number as a Decimal String of at most 16 characters (PS3.5 6.2)."""
    text = repr(float(value))
    return text if len(text) <= 16 else format_number_as_ds(float(value))


def _derivation(frame: SourceFrame) -> bytes:
    number = _text(0x00081160, "IS", str(frame.frame_number)) if frame.is_multi_frame else b""
    source = (
        _text(0x00081150, "UI", attributes.text(frame.ds, "SOPClassUID"))
        + _text(0x00081155, "UI", frame.sop_instance_uid)
        + number
        + _text(0x0028135A, "CS", "YES")  # Spatial Locations Preserved
        + _code(0x0040A170, "121322", "Source image for image processing operation")
    )
    return _sequence(
        DERIVATION_IMAGE, _sequence(0x00082112, source) + _code(0x00089215, "113076", "Segmentation")
    )


def _content(number: int | None, rank: int) -> bytes:
    indices = (rank,) if number is None else (number, rank)
    values = struct.pack(f"<{len(indices)}I", *indices)
    return _sequence(FRAME_CONTENT, _element(0x00209157, "UL", values))


def _position(frame: SourceFrame) -> bytes:
    text = "\\".join(decimal_string(value) for value in frame.position_mm)
    return _sequence(PLANE_POSITION, _text(0x00200032, "DS", text))


def _identification(number: int | None) -> bytes:
    if number is None:
        return b""
    return _sequence(SEGMENT_IDENTIFICATION, _element(0x0062000B, "US", struct.pack("<H", number)))


def _code(tag: int, value: str, meaning: str) -> bytes:
    texts = ((0x00080100, "SH", value), (0x00080102, "SH", "DCM"), (0x00080104, "LO", meaning))
    return _sequence(tag, b"".join(_text(*text) for text in texts))


def _sequence(tag: int, *items: bytes) -> bytes:
    value = _items(*items)
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"SQ", 0, len(value)) + value


def _items(*items: bytes) -> bytes:
    return b"".join(part for item in items for part in (_ITEM, struct.pack("<I", len(item)), item))


def _text(tag: int, vr: str, value: str) -> bytes:
    encoded = value.encode("ascii")
    padding = b"\0" if vr == "UI" else b" "
    return _element(tag, vr, encoded + padding * (len(encoded) % 2))


def _element(tag: int, vr: str, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode("ascii"), len(value)) + value
