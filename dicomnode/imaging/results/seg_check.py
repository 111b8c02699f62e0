"""Reads a segmentation that was just made, from its bytes, and holds it against the findings."""

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_frames
from pydicom.filereader import read_sequence

from dicomnode.imaging import attributes
from dicomnode.imaging.identity import MaskDigest
from dicomnode.imaging.images.functional_groups import (
    DERIVATION_IMAGE,
    FRAME_CONTENT,
    PER_FRAME_FUNCTIONAL_GROUPS,
    PLANE_POSITION,
    SEGMENT_IDENTIFICATION,
)
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.results.findings import Findings, Measure
from dicomnode.imaging.results.seg_encode import decode_rle, unpack_frame

POSITION_ERROR_MM = 1e-3
"""How exactly a position must be read back; viewers match positions as exactly (Cornerstone3D)."""


def check_binary(ds: Dataset, findings: Findings, segments: Sequence[Measure]) -> None:
    """Raise if the encoded functional groups and pixels of a BINARY segmentation do not say what was found.

    The groups are read by pydicom; each frame's plane is found by its source reference and its position,
    which must agree. The masks are digested and compared with the digests that were taken of the label
    map, so that a voxel too many, too few or elsewhere is noticed.

    Raises
    ------
    RuntimeError
        Something is not read back as it was found: a defect of the writer.
    """
    shape = findings.stack.shape
    frames = _frames(ds, findings.stack)
    packed = np.frombuffer(attributes.pixel_bytes(ds), np.uint8)
    if packed.size != (len(frames) * shape[1] * shape[2] + 15) // 16 * 2 or len(set(frames)) < len(frames):
        raise _error(ds, f"{packed.size} bytes, {len(frames)} frames, {len(set(frames))} of them different")
    digests: dict[int, MaskDigest] = {}
    for index in sorted(range(len(frames)), key=frames.__getitem__):
        number, plane = frames[index]
        mask = unpack_frame(packed, index, shape=shape[1:])
        digests.setdefault(number, MaskDigest(shape)).add(plane, mask)
    _compare(ds, digests, segments)


def check_label_map(ds: Dataset, findings: Findings, segments: Sequence[Measure]) -> None:
    """Raise if the groups and pixels of a label map do not say what was found; see `check_binary`."""
    shape = findings.stack.shape
    frames = _frames(ds, findings.stack)
    stored = generate_frames(attributes.pixel_bytes(ds), number_of_frames=len(frames))
    digests: dict[int, MaskDigest] = {}
    planes = {plane: frame for (_, plane), frame in zip(frames, stored, strict=True)}
    for plane, frame in sorted(planes.items()):
        labels = decode_rle(frame, shape=shape[1:])
        for number in np.flatnonzero(np.bincount(labels[labels != 0])).tolist():
            digests.setdefault(number, MaskDigest(shape)).add(plane, labels == number)
    if len(planes) < len(frames):
        raise _error(ds, "a plane is there twice")
    _compare(ds, digests, segments)


def _compare(ds: Dataset, digests: dict[int, MaskDigest], segments: Sequence[Measure]) -> None:
    described = {int(item.SegmentNumber): str(item.SegmentLabel) for item in ds.SegmentSequence}
    for number, measure in enumerate(segments, start=1):
        label, digest = measure.segment.label, digests.pop(number, None)
        if described.get(number) != label or digest is None or digest.sha256() != measure.sha256:
            raise _error(ds, f"label {label} is not read back as it was found")
    if digests:
        raise _error(ds, f"segments {sorted(digests)} were not found")


def _frames(ds: Dataset, stack: Stack) -> list[tuple[int, int]]:
    """Read segment number (0 in a label map) and plane of each frame from the encoded groups."""
    raw = ds.get_item(PER_FRAME_FUNCTIONAL_GROUPS)
    if not isinstance(raw, RawDataElement) or raw.value is None:
        raise _error(ds, "its functional groups are not encoded")
    items = read_sequence(io.BytesIO(raw.value), False, True, raw.length, "iso8859")
    places = {(frame.sop_instance_uid, frame.frame_number): k for k, frame in enumerate(stack.frames)}
    frames = []
    for item in items:
        groups = [_value(item, tag) for tag in (SEGMENT_IDENTIFICATION, DERIVATION_IMAGE, PLANE_POSITION)]
        number = _segment_number(groups[0]) if groups[0] else 0
        plane = places.get(_source(groups[1]), -1)
        beside = np.abs(np.array(_position(groups[2])) - stack.frames[plane].position_mm).max()
        if plane < 0 or beside > POSITION_ERROR_MM:
            raise _error(ds, f"frame {len(frames) + 1} is not on a plane of the series")
        frames.append((number, plane))
    if len(frames) != ds.NumberOfFrames:
        raise _error(ds, f"{len(frames)} frames are described and {ds.NumberOfFrames} claimed")
    _check_indices(ds, [_value(item, FRAME_CONTENT) for item in items], frames)
    return frames


def _check_indices(ds: Dataset, contents: list[bytes], frames: list[tuple[int, int]]) -> None:
    """Hold the dimension indices against segment numbers and the order of the planes."""
    used = sorted({plane for _, plane in frames}, reverse=True)
    ranks = {plane: rank for rank, plane in enumerate(used, start=1)}
    expected = [(number, ranks[plane]) if number else (ranks[plane],) for number, plane in frames]
    size = 4 * len(expected[0])
    read = tuple(np.atleast_1d(_first(contents[0]).DimensionIndexValues).tolist())
    is_alike = all(content[:-size] == contents[0][:-size] for content in contents)
    stored: NDArray[np.uint32] = np.frombuffer(b"".join(content[-size:] for content in contents), "<u4")
    if not is_alike or read != expected[0] or stored.tolist() != [i for indices in expected for i in indices]:
        raise _error(ds, "dimension indices do not count segments and planes")


def _value(item: Dataset, tag: int) -> bytes:
    element = item.get_item(tag) if tag in item else None
    return element.value if isinstance(element, RawDataElement) and element.value else b""


@lru_cache(maxsize=4096)
def _segment_number(value: bytes) -> int:
    return int(_first(value).ReferencedSegmentNumber)


@lru_cache(maxsize=4096)
def _source(value: bytes) -> tuple[str, int]:
    (source,) = _first(value).SourceImageSequence
    return str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber", 1))


@lru_cache(maxsize=4096)
def _position(value: bytes) -> tuple[float, ...]:
    return tuple(float(number) for number in _first(value).ImagePositionPatient)


def _first(value: bytes) -> Dataset:
    (item,) = read_sequence(io.BytesIO(value), False, True, len(value), "iso8859")
    return item


def _error(ds: Dataset, reason: str) -> RuntimeError:
    return RuntimeError(f"segmentation {ds.SOPInstanceUID}: {reason}")
