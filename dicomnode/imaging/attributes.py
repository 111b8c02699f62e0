"""Attributes of received objects, read without trusting their value representation or their bytes.

pydicom decodes an element when it is first looked at, and raises then. These functions answer
"nothing" for an element that is absent or does not hold what it must; the caller decides what that means.
"""

import re
import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

FloatArray = NDArray[np.float64]

UNREADABLE = (
    AttributeError,
    BytesLengthException,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises on an element that does not hold what its value representation says."""


_UID = re.compile(r"[0-9][0-9.]{0,63}")


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def element(ds: Dataset, keyword: str) -> DataElement | None:
    """Give an element with its decoded value; None where it is absent or cannot be decoded."""
    tag = _tag(keyword)
    if tag not in ds:
        return None
    try:
        return ds[tag]
    except UNREADABLE:
        return None


def has_value(ds: Dataset, keyword: str) -> bool:
    """Answer whether an element is there and not empty, readable or not."""
    raw = ds.get_item(_tag(keyword), keep_deferred=True)
    if isinstance(raw, RawDataElement) and _is_decimal(raw) and raw.value and raw.value.strip(b" \0"):
        return True
    found = element(ds, keyword)
    return raw is not None and (found is None or not found.is_empty)


def texts(ds: Dataset, keyword: str) -> list[str]:
    """Give the values of a textual element without outer blanks; empty values are left out."""
    found = element(ds, keyword)
    if found is None or found.value is None or isinstance(found.value, bytes) or found.VR == "SQ":
        return []
    values = found.value if isinstance(found.value, (MultiValue, list)) else [found.value]
    return [text for text in (str(value).strip(" \0") for value in values) if text]


def text(ds: Dataset, keyword: str) -> str:
    """Give the one value of a textual element; "" where it is absent, empty or has several values.

    A UID that is none (PS3.5 9.1) is absent, too: in a damaged object it may hold the name of the patient.
    """
    found = texts(ds, keyword)
    is_one = len(found) == 1 and (not keyword.endswith("UID") or _UID.fullmatch(found[0]) is not None)
    return found[0] if is_one else ""


def numbers(ds: Dataset, keyword: str) -> FloatArray | None:
    """Give the values of a numerical element, shape (n,); None where they are no finite numbers."""
    decimals = _decimals(ds, keyword)
    if decimals is not None:
        return decimals if np.isfinite(decimals).all() else None
    found = element(ds, keyword)
    if found is None or found.value is None or isinstance(found.value, (bytes, str)) or found.VR == "SQ":
        return None
    try:
        values = np.array(found.value, np.float64).reshape(-1)
    except UNREADABLE:
        return None
    return values if values.size and np.isfinite(values).all() else None


def _decimals(ds: Dataset, keyword: str) -> FloatArray | None:
    """Read decimal strings as they stand in the file; pydicom's own values take ten times as long to make."""
    raw = ds.get_item(_tag(keyword), keep_deferred=True)
    if not isinstance(raw, RawDataElement) or not raw.value or not _is_decimal(raw):
        return None
    try:
        return np.array([float(value) for value in raw.value.split(b"\\")])
    except ValueError:
        return None


def _is_decimal(raw: RawDataElement) -> bool:
    """Answer whether an undecoded element holds decimal strings; an implicit encoding does not say so."""
    return (raw.VR or dictionary_VR(raw.tag)) == "DS"


def integer(ds: Dataset, keyword: str) -> int | None:
    """Give the one value of an integral element."""
    values = numbers(ds, keyword)
    return int(values[0]) if values is not None and values.size == 1 and values[0] == int(values[0]) else None


def items(ds: Dataset, keyword: str) -> list[Dataset]:
    """Give the items of a sequence; none where it is absent or no sequence."""
    found = element(ds, keyword)
    if found is None or found.VR != "SQ":
        return []
    try:
        return [item for item in found.value or [] if isinstance(item, Dataset)]
    except UNREADABLE:
        return []


def pixel_bytes(ds: Dataset) -> bytes:
    """Give Pixel Data as bytes; b"" where it is absent or not bytes."""
    found = element(ds, "PixelData")
    return bytes(found.value) if found is not None and isinstance(found.value, (bytes, bytearray)) else b""


def segmentation_name(ds: Dataset) -> str:
    """Name a segmentation in a message."""
    return f"segmentation {text(ds, 'SOPInstanceUID') or '(no UID)'}"
