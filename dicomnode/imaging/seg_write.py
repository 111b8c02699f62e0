"""A label volume on the grid of its source series, as a DICOM Segmentation (PS3.3 A.51).

The result is BINARY in Explicit VR Little Endian, one instance in a series of its own. The same
inputs give the same data set byte for byte: every UID derives from the content and every time
from `created_at`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from highdicom import Volume
from highdicom.seg import Segmentation, SegmentationTypeValues
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.domain import ModelCard, Segment, Sha256
from dicomnode.errors import GeometryError
from dicomnode.imaging import attributes, seg_read
from dicomnode.imaging.frame_padding import pad_frames
from dicomnode.imaging.geometry import SliceGrid, read_grid
from dicomnode.imaging.identity import (
    DEVICE,
    BoolArray,
    derived_uid,
    label_table_sha256,
    mask_sha256,
    tracking_uid,
    voxels_sha256,
)
from dicomnode.imaging.result_header import series_description
from dicomnode.imaging.seg_header import finish_header, segment_description, source_headers

__all__ = ["DEVICE", "EncodedSeg", "encode", "label_table_sha256", "to_segment_numbers"]

SERIES_NUMBER = 9001
SMALLEST_FRAME = 8
"""Pixels: highdicom packs the bits of smaller frames wrongly."""
CONTENT_LABEL = "AI_SEG"
CONTENT_DESCRIPTION = "AI result, not verified by a physician"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSeg:
    """A segmentation object and the facts about it that the node keeps.

    The per-label tuples hold every label of the card in its order, empty labels included;
    `tracking_uids` only the labels that were written.
    """

    ds: Dataset
    sop_instance_uid: str
    series_instance_uid: str
    source_series_uid: str
    label_table_sha256: Sha256
    voxels_sha256: Sha256
    label_sha256: tuple[tuple[str, Sha256], ...]
    voxels: tuple[tuple[str, int], ...]
    millilitres: tuple[tuple[str, float], ...]
    tracking_uids: tuple[tuple[str, str], ...]


def encode(
    labels: Volume, *, sources: Sequence[Dataset], card: ModelCard, created_at: datetime, run_id: str = ""
) -> EncodedSeg | None:
    """Write a label volume as a segmentation of its source series.

    Labels without voxels are left out and the others are renumbered 1..N in the order of the card:
    BINARY numbers must be consecutive (PS3.3 C.8.20.2.4) and viewers stall on empty segments. The
    identity of a label is its Segment Label and Tracking UID, never its number.

    Parameters
    ----------
    labels
        uint8 segment numbers of `card` (0 is background), on the grid of `series.to_volume(sources)`.
        Network output goes through `to_segment_numbers` first.
    sources
        The images of the series in any order; left unchanged, pixels are not read.
    created_at
        Aware. Written in the sources' time zone where they name one (0008,0201), else as it stands.
    run_id
        What tells two runs on the same series apart, such as the digest of the received bytes; "" takes
        a digest of the sources' SOP Instance UIDs. It is part of both UIDs: a repeated run gives the same
        object, a revised series a new series beside the superseded one.

    Returns
    -------
        None when no voxel is labelled: an empty result sends no segmentation.

    Raises
    ------
    GeometryError
        The sources form no regular grid, or their slices have fewer than 8 pixels.
    """
    ordered, grid = read_grid(sources)
    if grid.shape[1] * grid.shape[2] < SMALLEST_FRAME:
        raise GeometryError(
            f"series {grid.series_instance_uid}: slices of {grid.shape[1]} x {grid.shape[2]} pixels"
        )
    _check_labels(labels, grid, card)
    masks = {s.label: np.asarray(labels.array == s.segment_number) for s in card.segments}
    written = tuple(segment for segment in card.segments if masks[segment.label].any())
    if not written:
        return None
    voxels = voxels_sha256(masks)
    run = run_id or _run_of(ordered)
    key = (grid.series_instance_uid, card.name, card.version, label_table_sha256(card), run)
    uids = (derived_uid("series", *key), derived_uid("instance", *key, voxels))
    numbers = _renumbered(masks, written, grid)
    ds = _segmentation(numbers, source_headers(ordered, grid), segments=written, card=card, uids=uids)
    pad_frames(ds, numbers, ordered)
    finish_header(ds, source=ordered[0], created_at=created_at)
    _check_round_trip(ds, masks, ordered, card)
    return _record(ds, masks, written, grid, card)


def to_segment_numbers(class_indices: Volume, card: ModelCard) -> Volume:
    """Turn the class indices of a network into the segment numbers of its card (0 stays 0)."""
    table = np.zeros(256, np.uint8)
    for segment in card.segments:
        table[segment.class_index] = segment.segment_number
    return class_indices.with_array(table[np.asarray(class_indices.array, np.uint8)])


def _check_labels(labels: Volume, grid: SliceGrid, card: ModelCard) -> None:
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are {labels.dtype}, uint8 segment numbers were expected")
    on_grid = labels.shape == grid.shape and np.allclose(labels.affine, grid.affine, atol=1e-3)
    if not on_grid:
        raise ValueError(f"labels {labels.shape} do not lie on the grid {grid.shape} of the source series")
    known = {0, *(segment.segment_number for segment in card.segments)}
    unknown = set(np.unique(labels.array).tolist()) - known
    if unknown:
        raise ValueError(f"label values {sorted(unknown)} are no segment numbers of model {card.version}")


def _run_of(sources: Sequence[Dataset]) -> str:
    uids = "\n".join(sorted(attributes.text(ds, "SOPInstanceUID") for ds in sources))
    return hashlib.sha256(uids.encode()).hexdigest()


def _renumbered(
    masks: Mapping[str, BoolArray], written: Sequence[Segment], grid: SliceGrid
) -> NDArray[np.uint8]:
    numbers = np.zeros(grid.shape, np.uint8)
    for number, segment in enumerate(written, start=1):
        numbers[masks[segment.label]] = number
    return numbers


def _segmentation(
    numbers: NDArray[np.uint8],
    headers: Sequence[Dataset],
    *,
    segments: Sequence[Segment],
    card: ModelCard,
    uids: tuple[str, str],
) -> Dataset:
    series_uid = str(headers[0].SeriesInstanceUID)
    return Segmentation(
        source_images=headers,
        pixel_array=numbers,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            segment_description(segment, number, card=card, series_instance_uid=series_uid)
            for number, segment in enumerate(segments, start=1)
        ],
        series_instance_uid=uids[0],
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids[1],
        instance_number=1,
        manufacturer=DEVICE.manufacturer,
        manufacturer_model_name=DEVICE.manufacturer_model_name,
        software_versions=DEVICE.software_versions,
        device_serial_number=DEVICE.device_serial_number,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        content_label=CONTENT_LABEL,
        content_description=CONTENT_DESCRIPTION,
        series_description=series_description(card),
        workers=0,
    )


def _check_round_trip(
    ds: Dataset, masks: Mapping[str, BoolArray], sources: Sequence[Dataset], card: ModelCard
) -> None:
    decoded = seg_read.decode(ds, sources=sources, card=card)
    for label, mask in masks.items():
        read_back = decoded.masks.get(label)
        same = not mask.any() if read_back is None else np.array_equal(read_back, mask)
        if not same:
            raise RuntimeError(f"segmentation {ds.SOPInstanceUID}: label {label} is not read back as written")
    if decoded.flags or decoded.unmapped_labels:
        raise RuntimeError(f"segmentation {ds.SOPInstanceUID} reads back with {decoded.flags}")


def _record(
    ds: Dataset, masks: Mapping[str, BoolArray], written: Sequence[Segment], grid: SliceGrid, card: ModelCard
) -> EncodedSeg:
    counts = tuple((segment.label, int(np.count_nonzero(masks[segment.label]))) for segment in card.segments)
    voxel_ml = float(np.prod(grid.spacing_mm)) / 1000.0
    series_uid = grid.series_instance_uid
    return EncodedSeg(
        ds=ds,
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        source_series_uid=series_uid,
        label_table_sha256=label_table_sha256(card),
        voxels_sha256=voxels_sha256(masks),
        label_sha256=tuple((s.label, mask_sha256(masks[s.label])) for s in card.segments),
        voxels=counts,
        millilitres=tuple((label, count * voxel_ml) for label, count in counts),
        tracking_uids=tuple((s.label, tracking_uid(series_uid, s.label)) for s in written),
    )
