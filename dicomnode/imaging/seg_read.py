"""A segmentation from any writer, onto the planes of its source stack, without guessing.

The reader works on pydicom alone and is tolerant where the standard or the source series settles
the matter: missing dimension indices, pixel measures, orientation or positions, orphaned segment
numbers, frames that lie mirrored in their plane. What it repaired stands in `Decoded.flags`;
what it would have to guess is refused with `CorrectionError`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from pydicom import Dataset

from dicomnode.domain import ModelCard, SegmentSopClasses
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.decoded import Decoded
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.seg_frames import FrameLocator, source_images
from dicomnode.imaging.seg_labels import Listed, listed_segments, segment_numbers
from dicomnode.imaging.seg_pixels import checked_size, has_aligned_frames, iter_frames
from dicomnode.imaging.seg_stack import stack_of
from dicomnode.imaging.stacks import Stack

__all__ = ["decode", "referenced_instances", "referenced_series", "stack_of"]

MAXIMUM_MASK_VOXELS = 2**33
"""Segments x voxels that are taken into memory for one object, in bytes."""
LABEL_MAP_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"


def decode(ds: Dataset, *, stack: Stack, card: ModelCard) -> Decoded:
    """Read a segmentation onto the planes of its source stack; `stack_of` finds the stack.

    A frame's plane is found by its source reference and, independently, by its position; a conflict
    between the two is settled by rule and flagged (PS3.3 A.51.5; see `FrameLocator`). A segment's
    label is found by our Tracking UID, then by Segment Label, then by coded type.

    Parameters
    ----------
    ds
        BINARY or FRACTIONAL (native) or LABELMAP (any encoding that pydicom decodes), read from Part 10.
    stack
        The planes that it was drawn on; of their instances only the headers are read.

    Raises
    ------
    CorrectionError
        Not a readable segmentation, another grid or frame of reference, another series,
        a frame without a plane, a compression that is not read; the message says which.
    """
    _check_object(ds, stack.series_instance_uid)
    locator = FrameLocator(ds, stack)
    listed = listed_segments(ds, card, stack.series_instance_uid)
    numbers, number_flags = ((), frozenset()) if _is_label_map(ds) else segment_numbers(ds, tuple(listed))
    pixel_flags = {"frames_byte_aligned"} if has_aligned_frames(ds) else set()
    canvas = _Canvas(listed=listed, shape=stack.shape)
    for index, pixels in enumerate(iter_frames(ds)):
        place = locator.locate(index)
        for number, mask in _frame_masks(ds, pixels, numbers, index):
            canvas.add(number, place.plane_index, place.turn(mask))
    return _decoded(
        ds, canvas, series_uid=stack.series_instance_uid, flags={*number_flags, *locator.flags, *pixel_flags}
    )


def referenced_series(ds: Dataset) -> str | None:
    """Series that a segmentation says it was made on (0008,1115); None where it names none.

    Raises
    ------
    CorrectionError
        It names several.
    """
    series_uids = {
        attributes.text(item, "SeriesInstanceUID")
        for item in attributes.items(ds, "ReferencedSeriesSequence")
    } - {""}
    if len(series_uids) > 1:
        raise CorrectionError(
            f"{segmentation_name(ds)} references {len(series_uids)} series, one was expected"
        )
    return next(iter(series_uids), None)


def referenced_instances(ds: Dataset) -> frozenset[str]:
    """SOP Instance UIDs of all images that the frames or the header of a segmentation refer to.

    For objects without Referenced Series Sequence: the series is that of these images.
    """
    references = [
        reference
        for series in attributes.items(ds, "ReferencedSeriesSequence")
        for reference in attributes.items(series, "ReferencedInstanceSequence")
    ]
    for frame in attributes.items(ds, "PerFrameFunctionalGroupsSequence"):
        references += source_images(frame)
    return frozenset(attributes.text(item, "ReferencedSOPInstanceUID") for item in references) - {""}


class _Canvas:
    """The masks of one object while its frames are painted, one per listed segment number."""

    def __init__(self, *, listed: Mapping[int, Listed], shape: tuple[int, int, int]) -> None:
        self.listed = listed
        self.shape = shape
        self.painted: dict[int, BoolArray] = {}
        self.planes: dict[int, set[int]] = {}  # those that were painted on

    def add(self, number: int, plane_index: int, mask: BoolArray) -> None:
        rows = np.flatnonzero(mask.any(axis=1))
        if not rows.size:
            return
        if number not in self.painted:
            if (len(self.painted) + 1) * math.prod(self.shape) > MAXIMUM_MASK_VOXELS:
                raise CorrectionError(f"more than {len(self.painted)} segments on {self.shape} voxels")
            self.painted[number] = np.zeros(self.shape, np.bool_)
            self.planes[number] = set()
        # Rows without a voxel are left untouched: memory that is never written to costs nothing.
        used = np.s_[rows[0] : rows[-1] + 1]
        self.painted[number][plane_index, used] |= mask[used]
        self.planes[number].add(plane_index)


def _check_object(ds: Dataset, series_uid: str) -> None:
    sop_class = attributes.text(ds, "SOPClassUID")
    if sop_class not in SegmentSopClasses:
        raise CorrectionError(
            f"{segmentation_name(ds)} is no Segmentation (SOP class {sop_class or 'missing'})"
        )
    checked_size(ds)
    named = referenced_series(ds)
    if named is not None and named != series_uid:
        raise CorrectionError(f"{segmentation_name(ds)} was made on series {named}, not on {series_uid}")


def _frame_masks(
    ds: Dataset, pixels: np.ndarray, numbers: Sequence[int], index: int
) -> Iterator[tuple[int, BoolArray]]:
    if _is_label_map(ds):
        for number in np.flatnonzero(np.bincount(pixels[pixels != 0])).tolist():
            if number != attributes.integer(ds, "PixelPaddingValue"):
                yield number, pixels == number
    elif attributes.text(ds, "SegmentationType") == "FRACTIONAL":
        maximum = attributes.integer(ds, "MaximumFractionalValue") or 255
        yield numbers[index], pixels.astype(np.float64) >= 0.5 * maximum
    else:
        yield numbers[index], pixels.astype(np.bool_)


def _is_label_map(ds: Dataset) -> bool:
    is_class = attributes.text(ds, "SOPClassUID") == LABEL_MAP_SOP_CLASS
    return is_class or attributes.text(ds, "SegmentationType") == "LABELMAP"


def _decoded(ds: Dataset, canvas: _Canvas, *, series_uid: str, flags: set[str]) -> Decoded:
    masks = _labelled(canvas, flags)
    listed = [s.label for s in canvas.listed.values() if s.label is not None and not s.is_background]
    if attributes.text(ds, "SegmentationType") == "FRACTIONAL":
        flags.add("fractional")
    if _overlap(list(masks.values()), planes=set().union(*canvas.planes.values())):
        flags.add("labels_overlap")
    return Decoded(
        sop_instance_uid=attributes.text(ds, "SOPInstanceUID"),
        referenced_series_uid=series_uid,
        shape=canvas.shape,
        masks=masks,
        empty_labels=tuple(label for label in dict.fromkeys(listed) if label not in masks),
        unmapped=_unlabelled(canvas, flags),
        flags=tuple(sorted(flags)),
    )


def _labelled(canvas: _Canvas, flags: set[str]) -> dict[str, BoolArray]:
    masks: dict[str, BoolArray] = {}
    for number, segment in canvas.listed.items():
        if segment.is_background or segment.label is None or number not in canvas.painted:
            continue
        if segment.label in masks:
            flags.add("label_repeated")
            masks[segment.label] |= canvas.painted[number]
        else:
            masks[segment.label] = canvas.painted[number]
    return masks


def _unlabelled(canvas: _Canvas, flags: set[str]) -> dict[str, BoolArray]:
    unmapped: dict[str, BoolArray] = {}
    for number, segment in canvas.listed.items():
        if segment.label is None and not segment.is_background:
            mask = canvas.painted.get(number)
            unmapped[_free_name(segment.name, unmapped)] = _or_nothing(mask, canvas.shape)
    for number in canvas.painted.keys() - canvas.listed.keys():
        flags.add("unlisted_segment")
        unmapped[_free_name(f"segment {number}", unmapped)] = canvas.painted[number]
    return unmapped


def _or_nothing(mask: BoolArray | None, shape: tuple[int, int, int]) -> BoolArray:
    return np.zeros(shape, np.bool_) if mask is None else mask


def _free_name(name: str, taken: Mapping[str, BoolArray]) -> str:
    candidate, count = name, 2
    while candidate in taken:
        candidate, count = f"{name} ({count})", count + 1
    return candidate


def _overlap(masks: Sequence[BoolArray], *, planes: Iterable[int]) -> bool:
    """Answer whether two masks share a voxel on one of these planes."""
    for plane in planes:
        seen: BoolArray = np.zeros(masks[0].shape[1:] if masks else (0, 0), np.bool_)
        for mask in masks:
            if np.any(seen & mask[plane]):
                return True
            seen |= mask[plane]
    return False
