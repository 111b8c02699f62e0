"""A segmentation from any writer, onto the planes of its source stack, without guessing.

The reader works on pydicom alone and is tolerant where the standard or the source series settles
the matter: missing dimension indices, pixel measures, orientation or positions, orphaned segment
numbers, frames that lie mirrored in their plane. What it repaired stands in `Decoded.flags`, how far the
masks are trusted in `Decoded.confidence`, why a person must look first in `Decoded.doubts`
(`seg_confidence.REMARKS` says which is which); what it would have to guess is refused with `CorrectionError`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from pydicom import Dataset

from dicomnode.domain import ModelCard, SegmentSopClasses
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import segmentation_name
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.images.codestreams import Stored
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.reading import seg_confidence
from dicomnode.imaging.reading.decoded import Decoded
from dicomnode.imaging.reading.seg_canvas import MAXIMUM_MASK_VOXELS, Canvas, is_sparse, share_voxels
from dicomnode.imaging.reading.seg_frames import FrameLocator, source_images
from dicomnode.imaging.reading.seg_labels import Listed, is_label_map, listed_segments, segment_numbers
from dicomnode.imaging.reading.seg_pixels import checked_size, fraction_threshold, iter_frames, pixel_flags
from dicomnode.imaging.reading.seg_planes import Place
from dicomnode.imaging.reading.seg_resample import own_grid, resample
from dicomnode.imaging.reading.seg_stack import fits, stack_of

__all__ = ["MAXIMUM_MASK_VOXELS", "decode", "fits", "referenced_instances", "referenced_series", "stack_of"]

_LOOKED_UP = 2**16
"""Pixels that are looked up at once: each takes eight bytes of memory."""

NO_ALIASES: Mapping[str, str] = MappingProxyType({})


def decode(ds: Dataset, *, stack: Stack, card: ModelCard, aliases: Mapping[str, str] = NO_ALIASES) -> Decoded:
    """Read a segmentation onto the planes of its source stack; `stack_of` finds the stack.

    A frame's plane is found by its source reference and, independently, by its position; a conflict
    between the two is settled by rule and flagged (PS3.3 A.51.5; see `FrameLocator`). A segment's
    label is found by our Tracking UID, by Segment Label, by coded type, then by alias. An object on another
    grid of the same frame of reference is resampled (`seg_resample`).

    Parameters
    ----------
    ds
        BINARY, FRACTIONAL or LABELMAP, read from Part 10.
    stack
        The planes that it was drawn on; of their instances only the headers are read.
    aliases
        Names that readers use -> label of the model; case and outer blanks ignored.

    Raises
    ------
    CorrectionError
        Not a readable segmentation, another frame of reference, another series, a frame without a plane, a
        grid that is not told, a compression that is not read; the message says which.
    """
    _check_object(ds, stack.series_instance_uid)
    listed = listed_segments(ds, card, stack.series_instance_uid, aliases=aliases)
    locator = FrameLocator(ds, stack)
    places = locator.places()
    frames = _Frames(ds, tuple(listed))
    if places is None:
        canvas = _resampled(frames, locator, stack)
    else:
        canvas = Canvas(stack.shape, name=frames.name)
        _paint(frames, places, canvas)
    flags = {*locator.flags, *frames.flags, *_canvas_flags(canvas, listed)}
    if places is None:
        flags.add("resampled")
    return _decoded(ds, canvas, listed, series_uid=stack.series_instance_uid, flags=flags)


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


class _Frames:
    """The frames of one object as masks, each with its segment number; `flags` says what they were."""

    def __init__(self, ds: Dataset, listed: Sequence[int]) -> None:
        self.name = segmentation_name(ds)
        self.flags = set(pixel_flags(ds))
        self._ds = ds
        self._is_label_map = is_label_map(ds)
        self._is_fractional = attributes.text(ds, "SegmentationType") == "FRACTIONAL"
        self._numbers: tuple[int, ...] = ()
        if not self._is_label_map:
            self._numbers, flags = segment_numbers(ds, listed)
            self.flags |= flags

    def __iter__(self) -> Iterator[tuple[int, int, BoolArray]]:
        """Give (index of the frame, segment number, mask); a frame of a label map holds several segments."""
        threshold = self._threshold()
        padding = attributes.integer(self._ds, "PixelPaddingValue")
        for index, pixels in enumerate(iter_frames(self._ds)):
            if self._is_label_map:
                for number in _values_in(pixels):
                    if number != padding:
                        yield index, number, pixels == number
            else:
                if self._is_fractional and np.any((pixels != 0) & (pixels != 2 * threshold)):
                    self.flags.add("fractional_thresholded")
                yield index, self._numbers[index], pixels >= threshold

    def _threshold(self) -> float:
        if not self._is_fractional:
            return 1
        self.flags.add("fractional")
        return fraction_threshold(self._ds)


def _values_in(pixels: Stored) -> list[int]:
    """Give the values of a frame but 0; only pixels that differ from the one before them are looked up."""
    is_there: BoolArray = np.zeros(np.iinfo(pixels.dtype).max + 1, np.bool_)
    flat = pixels.reshape(-1)
    is_there[flat[0]] = True
    for first in range(0, flat.size - 1, _LOOKED_UP):
        part = flat[first : first + _LOOKED_UP + 1]
        is_there[part[1:][part[1:] != part[:-1]]] = True
    is_there[0] = False
    return np.flatnonzero(is_there).tolist()


def _check_object(ds: Dataset, series_uid: str) -> None:
    sop_class = attributes.text(ds, "SOPClassUID")
    if sop_class not in SegmentSopClasses:
        raise CorrectionError(
            f"{segmentation_name(ds)} is no Segmentation (SOP class {sop_class or 'missing'})"
        )
    _, _, count = checked_size(ds)
    groups = len(attributes.items(ds, "PerFrameFunctionalGroupsSequence"))
    if groups != count:
        raise CorrectionError(f"{segmentation_name(ds)} has {count} frames and {groups} functional groups")
    named = referenced_series(ds)
    if named is not None and named != series_uid:
        raise CorrectionError(f"{segmentation_name(ds)} was made on series {named}, not on {series_uid}")


def _paint(frames: _Frames, places: Sequence[Place | None], canvas: Canvas) -> None:
    for index, number, mask in frames:
        place = places[index]
        if place is not None:
            laid, is_cut = place.lay(mask, canvas.shape[1:])
            canvas.add(number, place.plane_index, laid)
        else:
            is_cut = bool(mask.any())
        if is_cut:
            canvas.cut.add(number)


def _resampled(frames: _Frames, locator: FrameLocator, stack: Stack) -> Canvas:
    grid = own_grid(locator.geometry)
    drawn = Canvas(grid.shape, name=frames.name, reserve=math.prod(stack.shape))
    for index, number, mask in frames:
        drawn.add(number, grid.slices[index], mask)
    return resample(drawn, grid, stack, name=frames.name)


def _canvas_flags(canvas: Canvas, listed: Mapping[int, Listed]) -> Iterator[str]:
    drawn = {*canvas.painted, *canvas.cut, *canvas.left_out}
    if canvas.is_repeated:
        yield "frames_repeated"
    if canvas.cut:
        yield from ("outside_of_images", "voxels_dropped")
    if any(number in listed and listed[number].label is not None for number in canvas.left_out):
        yield "thin_label_left_out"
    if drawn - listed.keys():
        yield "unlisted_segment"
    if not drawn:
        yield "nothing_drawn"


def _decoded(
    ds: Dataset, canvas: Canvas, listed: Mapping[int, Listed], *, series_uid: str, flags: set[str]
) -> Decoded:
    numbers = _numbers_of(listed)
    unknown = {label for label, own in numbers.items() if canvas.left_out & own or _is_lost(canvas, own)}
    known = {label: own for label, own in numbers.items() if label not in unknown}
    masks = {label: _union(canvas, own) for label, own in known.items() if own & canvas.painted.keys()}
    if share_voxels(list(masks.values()), planes=set().union(*canvas.planes.values())):
        flags.add("labels_overlap")
    of_labels = {label: _label_flags(listed, own, canvas) for label, own in numbers.items()}
    found = flags.union(*of_labels.values(), *(segment.flags for segment in listed.values()))
    return Decoded(
        sop_instance_uid=attributes.text(ds, "SOPInstanceUID"),
        referenced_series_uid=series_uid,
        shape=canvas.shape,
        masks=masks,
        empty_labels=tuple(label for label in known if label not in masks),
        unmapped=_unlabelled(canvas, listed),
        flags=tuple(sorted(found)),
        confidence={label: seg_confidence.confidence(flags, of_labels[label]) for label in known},
        doubts=seg_confidence.doubts(found),
    )


def _numbers_of(listed: Mapping[int, Listed]) -> dict[str, set[int]]:
    """Give the segment numbers of each label of the model that is listed."""
    numbers: dict[str, set[int]] = {}
    for number, segment in listed.items():
        if segment.label is not None and not segment.is_background:
            numbers.setdefault(segment.label, set()).add(number)
    return numbers


def _is_lost(canvas: Canvas, numbers: set[int]) -> bool:
    """Answer whether a label has voxels, but none of them on the images."""
    return bool(numbers & canvas.cut) and not numbers & canvas.painted.keys()


def _label_flags(listed: Mapping[int, Listed], numbers: set[int], canvas: Canvas) -> set[str]:
    planes = set[int]().union(*(canvas.planes.get(number, set[int]()) for number in numbers))
    found = {"label_repeated": len(numbers) > 1, "slices_skipped": is_sparse(planes)}
    met = {flag for flag, is_met in found.items() if is_met}
    return met.union(*(listed[number].flags for number in numbers))


def _union(canvas: Canvas, numbers: set[int]) -> BoolArray:
    first, *others = (canvas.painted[number] for number in sorted(numbers & canvas.painted.keys()))
    for other in others:
        first |= other
    return first


def _unlabelled(canvas: Canvas, listed: Mapping[int, Listed]) -> dict[str, BoolArray]:
    unmapped: dict[str, BoolArray] = {}
    nothing: BoolArray = np.zeros(canvas.shape, np.bool_)  # one for all that have no voxels
    for number, segment in listed.items():
        if segment.label is None and not segment.is_background:
            unmapped[_free_name(segment.name, unmapped)] = canvas.painted.get(number, nothing)
    for number in sorted(canvas.painted.keys() - listed.keys()):
        unmapped[_free_name(f"segment {number}", unmapped)] = canvas.painted[number]
    return unmapped


def _free_name(name: str, taken: Mapping[str, BoolArray]) -> str:
    candidate, count = name, 2
    while candidate in taken:
        candidate, count = f"{name} ({count})", count + 1
    return candidate
