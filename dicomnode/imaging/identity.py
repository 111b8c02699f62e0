"""What marks an object as ours: device attributes, derived UIDs and digests of label volumes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.domain import Code, ModelCard, Sha256
from dicomnode.imaging import attributes

BoolArray = NDArray[np.bool_]

_NAMESPACE = UUID("9a1f0e4c-6f0a-5b57-8f6d-2f3b8f0c7e21")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Equipment attributes (PS3.3 C.7.5.1) of every object that the node writes."""

    manufacturer: str
    manufacturer_model_name: str
    software_versions: str
    device_serial_number: str


DEVICE = Device(
    manufacturer="dicomnode-federated",
    manufacturer_model_name="dicomnode",
    software_versions="dicomnode 0.1",
    device_serial_number="dicomnode-seg-1",
)


def is_own_device(ds: Dataset) -> bool:
    """Answer whether an object carries the equipment attributes of a node, of any version.

    The serial number may be gone: de-identification removes it (PS3.15 E.3.7).
    """
    keywords = ("Manufacturer", "ManufacturerModelName")
    found = [attributes.text(ds, keyword) for keyword in keywords]
    is_named = found == [DEVICE.manufacturer, DEVICE.manufacturer_model_name]
    return is_named and attributes.text(ds, "DeviceSerialNumber") in {"", DEVICE.device_serial_number}


def derived_uid(*key: str) -> str:
    """Derive a UID from its key: the same key gives the same UID (PS3.5 B.2)."""
    return f"2.25.{uuid5(_NAMESPACE, '|'.join(key)).int}"


def tracking_uid(series_instance_uid: str, label: str) -> str:
    """Tracking UID of a label in the results of one source series, whatever the model's version."""
    return derived_uid("tracking", series_instance_uid, label.casefold())


def tracking_identifier(label: str, uid: str) -> str:
    """Name a tracked label for people: the same in every form of result."""
    return f"{label} {uid[-12:]}"


class MaskDigest:
    """Digest of one mask (slice, row, column), taken slice by slice in ascending order.

    It covers the shape and, for each slice that has voxels, its index, the smallest box of rows and columns
    that holds them, and the bits in that box. Slices without voxels need not be given.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._sha256 = hashlib.sha256("x".join(str(size) for size in shape).encode() + b"\n")

    def add(
        self, index: int, mask: NDArray[np.bool_ | np.integer], *, corner: tuple[int, int] = (0, 0)
    ) -> None:
        """Take one slice in: `mask` (row, column), zero or not, from `corner` on; all else is zero."""
        rows = np.flatnonzero(mask.any(axis=1))
        if not rows.size:
            return
        columns = np.flatnonzero(mask.any(axis=0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        place = (index, corner[0] + rows[0], corner[1] + columns[0], *box.shape)
        self._sha256.update(np.array(place, "<u4").tobytes())
        self._sha256.update(np.packbits(box).tobytes())

    def sha256(self) -> Sha256:
        """Give the digest of the slices so far."""
        return Sha256(self._sha256.hexdigest())


def mask_sha256(mask: BoolArray) -> Sha256:
    """Digest of one mask (slice, row, column): its shape and its voxels."""
    digest = MaskDigest(mask.shape)
    for index in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        digest.add(index, mask[index])
    return digest.sha256()


def voxels_sha256(masks: Mapping[str, BoolArray]) -> Sha256:
    """Digest of a label volume in canonical form, independent of segment numbers and encoding.

    Only labels with voxels count; overlapping masks are as good as others. `masks` are on
    the grid of the source series in slice order.
    """
    return joined_sha256({label: mask_sha256(mask) for label, mask in masks.items() if mask.any()})


def joined_sha256(digests: Mapping[str, Sha256]) -> Sha256:
    """Digest of a label volume from the `mask_sha256` of its labels that have voxels."""
    lines = sorted(f"{label}\t{digest}\n" for label, digest in digests.items())
    return Sha256(hashlib.sha256("".join(lines).encode()).hexdigest())


def label_table_sha256(card: ModelCard) -> Sha256:
    """Version of a model's label table: changes with any label, number or code, not with colours."""
    lines = [
        "\t".join(
            [
                str(segment.class_index),
                str(segment.segment_number),
                segment.label,
                *(
                    _code_key(c)
                    for c in (segment.category, segment.type, segment.type_modifier, segment.region)
                ),
            ]
        )
        for segment in card.segments
    ]
    return Sha256(hashlib.sha256("\n".join(lines).encode()).hexdigest())


def _code_key(code: Code | None) -> str:
    return f"{code.scheme}:{code.value}" if code else "-"
