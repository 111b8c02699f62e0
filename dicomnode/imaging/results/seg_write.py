"""What a model found, as DICOM Segmentations of the source series (PS3.3 A.51).

Two forms: BINARY in Explicit VR Little Endian, which every archive and most viewers take, and one
label map in RLE Lossless. The same findings and run give the same bytes: every UID derives from the
content and every time from the run. Before an object is given away its bytes are read back and compared
with the findings.
"""

from collections.abc import Sequence

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, SegmentationStorage

from dicomnode.domain import ModelCard
from dicomnode.imaging.images.frame_padding import padding_frames
from dicomnode.imaging.images.functional_groups import per_frame_groups
from dicomnode.imaging.results import seg_check, seg_header
from dicomnode.imaging.results.findings import Findings, Measure, Run
from dicomnode.imaging.results.result_header import LONG_STRING, series_description
from dicomnode.imaging.results.seg_encode import Frame, encode_rle, pack_frames
from dicomnode.imaging.results.seg_parts import split

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
LABEL_MAP_SERIES_NUMBER = 9000
FIRST_SERIES_NUMBER = 9001


def encode_binary(findings: Findings, *, run: Run) -> tuple[Dataset, ...]:
    """Write findings as BINARY segmentations: one, or several by organ group above 30 found labels.

    Labels without voxels are left out and the others are renumbered 1..N in the order of the card:
    BINARY numbers must be consecutive (PS3.3 C.8.20.2.4) and viewers stall on empty segments. The
    identity of a label is its Segment Label and Tracking UID, never its number.

    Parameters
    ----------
    run
        Part of both UIDs: a repeated run gives the same objects, a revised series a new series beside the
        superseded one.

    Returns
    -------
        Each in a series of its own; () when no voxel is labelled: an empty result sends no segmentation.

    Raises
    ------
    UnreadableInstanceError
        A source image cannot be referred to, because it lacks a UID.
    """
    seg_header.check_references(findings.stack)
    parts = split(findings.found)
    return tuple(
        _binary_part(findings, segments, run=run, part=(index, len(parts)))
        for index, segments in enumerate(parts)
    )


def encode_label_map(findings: Findings, *, run: Run) -> Dataset:
    """Write findings as one Label Map Segmentation of bytes, from the first plane with a label to the last.

    Numbers are those of `encode_binary` with all labels in one object. Value 0 is described last in the
    Segment Sequence: it must be described (PS3.3 C.8.20.2.3.3), and readers that count items instead of
    reading Segment Number (OHIF 3.13) would otherwise give each segment the colour of the one before.

    Returns
    -------
        When nothing is found: the labels that were looked for and one plane without a voxel.

    Raises
    ------
    UnreadableInstanceError
        A source image cannot be referred to, because it lacks a UID.
    """
    seg_header.check_references(findings.stack)
    planes = np.flatnonzero(findings.voxels_per_plane.any(axis=1)).tolist() or [0]
    used = range(planes[-1], planes[0] - 1, -1)
    segments = findings.found or findings.measures
    ds = Dataset()
    ds.SOPClassUID, ds.SegmentationType = LABEL_MAP_STORAGE, "LABELMAP"
    ds.SeriesNumber = LABEL_MAP_SERIES_NUMBER
    ds.SeriesDescription = series_description(findings.card)
    _write_header(ds, findings, segments, key=("labelmap",), run=run)
    ds.SegmentSequence.append(seg_header.background_item())
    ds.add_new("PixelPaddingValue", "US", 0)
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.NumberOfFrames = len(used)
    groups = per_frame_groups(findings.stack.frames, [(None, plane) for plane in used])
    ds[groups.tag] = groups
    numbers = _renumbering(segments)
    stored = encapsulate([encode_rle(numbers[findings.labels[plane]]) for plane in used])
    ds.add_new("PixelData", "OB", stored)
    ds["PixelData"].is_undefined_length = True
    seg_header.write_file_meta(ds, RLELossless)
    seg_check.check_label_map(ds, findings, findings.found)
    return ds


def to_segment_numbers(class_indices: Volume, card: ModelCard) -> Volume:
    """Turn the class indices of a network into the segment numbers of its card (0 stays 0)."""
    table = np.zeros(256, np.uint8)
    for segment in card.segments:
        table[segment.class_index] = segment.segment_number
    return class_indices.with_array(table[np.asarray(class_indices.array, np.uint8)])


def _binary_part(
    findings: Findings, segments: Sequence[Measure], *, run: Run, part: tuple[int, int]
) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SegmentationType = SegmentationStorage, "BINARY"
    ds.SeriesNumber = FIRST_SERIES_NUMBER + part[0]
    ds.SeriesDescription = _description(findings.card, part)
    key = ("seg",) if part[1] == 1 else ("seg", f"part {part[0] + 1} of {part[1]}")
    _write_header(ds, findings, segments, key=key, run=run)
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = 0
    frames = _binary_frames(findings, segments)
    ds.NumberOfFrames = len(frames)
    groups = per_frame_groups(findings.stack.frames, frames)
    ds[groups.tag] = groups
    values = [found.segment.segment_number for found in segments]
    stored = pack_frames(findings.labels, [(values[number - 1], plane) for number, plane in frames])
    ds.add_new("PixelData", "OB", stored)
    seg_header.write_file_meta(ds, ExplicitVRLittleEndian)
    seg_check.check_binary(ds, findings, segments)
    return ds


def _write_header(
    ds: Dataset, findings: Findings, segments: Sequence[Measure], *, key: tuple[str, ...], run: Run
) -> None:
    seg_header.write_identity(ds, findings, key=key, run=run)
    seg_header.write_source(ds, findings, run=run)
    seg_header.write_image(ds, findings.stack)
    seg_header.write_dimensions(ds, has_segments=ds.SegmentationType == "BINARY")
    ds.SegmentSequence = seg_header.segment_items(segments, findings.card)


def _binary_frames(findings: Findings, segments: Sequence[Measure]) -> list[Frame]:
    """List (segment number, plane) of every frame, segment by segment, from the last plane to the first."""
    frames = [
        (number, plane)
        for number, found in enumerate(segments, start=1)
        for plane in np.flatnonzero(findings.voxels_per_plane[:, found.segment.segment_number]).tolist()
    ]
    planes, rows, columns = findings.stack.shape
    padding = padding_frames(frames, pixels=rows * columns, segments=len(segments), planes=planes)
    return sorted([*frames, *padding], key=lambda frame: (frame[0], -frame[1]))


def _renumbering(segments: Sequence[Measure]) -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for number, found in enumerate(segments, start=1):
        table[found.segment.segment_number] = number
    return table


def _description(card: ModelCard, part: tuple[int, int]) -> str:
    whole = series_description(card)
    if part[1] == 1:
        return whole
    tail = f" part {part[0] + 1} of {part[1]}"
    name = whole.removeprefix("AI ")
    return f"AI {name[-(LONG_STRING - 3 - len(tail)) :]}{tail}"
