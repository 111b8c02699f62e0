"""Attributes of received objects, read without trusting their value representation or their bytes.

pydicom decodes an element when it is first looked at, and raises then. These functions answer
"nothing" for an element that is absent or does not hold what it must; the caller decides what that means.
"""

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

FloatArray = NDArray[np.float64]

UNREADABLE = (
    AttributeError,
    BytesLengthException,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What pydicom raises on an element that does not hold what its value representation says."""


def element(ds: Dataset, keyword: str) -> DataElement | None:
    """Give an element with its decoded value; None where it is absent or cannot be decoded."""
    if keyword not in ds:
        return None
    try:
        return ds[keyword]
    except UNREADABLE:
        return None


def has_value(ds: Dataset, keyword: str) -> bool:
    """Answer whether an element is there and not empty, readable or not."""
    found = element(ds, keyword)
    return keyword in ds and (found is None or not found.is_empty)


def texts(ds: Dataset, keyword: str) -> list[str]:
    """Give the values of a textual element without outer blanks; empty values are left out."""
    found = element(ds, keyword)
    if found is None or found.value is None or isinstance(found.value, bytes) or found.VR == "SQ":
        return []
    values = found.value if isinstance(found.value, (MultiValue, list)) else [found.value]
    return [text for text in (str(value).strip(" \0") for value in values) if text]


def text(ds: Dataset, keyword: str) -> str:
    """Give the one value of a textual element; "" where it is absent, empty or has several values."""
    found = texts(ds, keyword)
    return found[0] if len(found) == 1 else ""


def numbers(ds: Dataset, keyword: str) -> FloatArray | None:
    """Give the values of a numerical element, shape (n,); None where they are no finite numbers."""
    found = element(ds, keyword)
    if found is None or found.value is None or isinstance(found.value, (bytes, str)) or found.VR == "SQ":
        return None
    try:
        values = np.array(found.value, np.float64).reshape(-1)
    except UNREADABLE:
        return None
    return values if values.size and np.isfinite(values).all() else None


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
