"""The radiologist of the demonstration: opens our SEG as a viewer would, edits it, saves it as a new object.

Everything here goes through highdicom, not through the node's own reader and writer, and the saved object
carries what a viewer's would: other UIDs, another manufacturer, manual segments, no tracking UIDs.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid
from scipy import ndimage

from dicomnode.errors import CorrectionError

_READER_SERIES_NUMBER = 501


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderEdit:
    """What the reader saved, and what was changed in it."""

    ds: Dataset
    edited_slices: int
    added_voxels: int


def correct(seg: Dataset, sources: Sequence[Dataset]) -> ReaderEdit:
    """Draw every structure one voxel wider in the middle third of its slices, and save that.

    Parameters
    ----------
    seg
        The object that the node sent.
    sources
        The images that it was made from; left unchanged.

    Raises
    ------
    CorrectionError
        The object holds no voxel, so there is nothing to edit.
    """
    ours = hd.seg.Segmentation.from_dataset(seg)
    image = hd.image.get_volume_from_series(list(sources))
    labels = ours.get_volume(combine_segments=True).match_geometry(image)
    edited = _widen(labels.array)
    changed = np.any(edited != labels.array, axis=(1, 2))
    if not changed.any():
        raise CorrectionError(f"SEG {seg.SOPInstanceUID}: nothing in it that a reader could edit")
    return ReaderEdit(
        ds=_save(labels.with_array(edited), ours, sources),
        edited_slices=int(changed.sum()),
        added_voxels=int((edited > 0).sum() - (labels.array > 0).sum()),
    )


def _widen(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Grow each label by one voxel in plane, into background only; axes (slice, row, column)."""
    edited = labels.astype(np.uint8)
    cross = ndimage.generate_binary_structure(2, 1)[np.newaxis]
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        extent = np.flatnonzero(mask.any(axis=(1, 2)))
        third = len(extent) // 3
        chosen = extent[third : len(extent) - third]
        grown = np.zeros_like(mask)
        grown[chosen] = ndimage.binary_dilation(mask[chosen], structure=cross)
        edited[grown & (edited == 0)] = number
    return edited


def _save(labels: hd.Volume, ours: hd.seg.Segmentation, sources: Sequence[Dataset]) -> Dataset:
    kept = [ours.get_segment_description(n) for n in ours.segment_numbers]
    return hd.seg.Segmentation(
        source_images=[_with_type_2_attributes(ds) for ds in sources],
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=segment.segment_label,
                segmented_property_category=segment.segmented_property_category,
                segmented_property_type=segment.segmented_property_type,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
            for number, segment in enumerate(kept, 1)
        ],
        series_instance_uid=generate_uid(),
        series_number=_READER_SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Demonstration viewer",
        manufacturer_model_name="Reader with a brush",
        software_versions="1",
        device_serial_number="1",
        series_description="Corrected segmentation",
    )


def _with_type_2_attributes(ds: Dataset) -> Dataset:
    """Fill in what a sparse header lacks and every SEG must repeat from its source."""
    filled = deepcopy(ds)
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
    ):
        if keyword not in filled:
            setattr(filled, keyword, "")
    return filled
