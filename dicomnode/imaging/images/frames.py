"""The planes of a received series: single-frame images, and the frames of multi-frame images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)

from dicomnode.errors import GeometryError, UnreadableInstanceError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.frame_facts import FrameFacts, FrameHeader

MULTI_FRAME_SOP_CLASSES = frozenset(
    {
        EnhancedCTImageStorage,
        EnhancedMRImageStorage,
        EnhancedPETImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
        LegacyConvertedEnhancedPETImageStorage,
    }
)
NEAREST_MM = 1e-4
FARTHEST_MM = 1e5
"""Distances and positions beyond these are no images of a patient, and would overflow grids."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceFrame:
    """One image plane and where it lies in patient space (PS3.3 C.7.6.2), LPS.

    `frame_number` counts from 1 inside `ds`; a single-frame image has the one frame 1.
    `row_cosines` and `column_cosines` are (0020,0037) values 1 to 3 and 4 to 6 as they stand.
    """

    ds: Dataset
    frame_number: int
    is_multi_frame: bool  # its instance is of a multi-frame class: references to it carry the frame number
    position_mm: FloatArray  # (3,), centre of the first pixel
    row_cosines: FloatArray  # (3,)
    column_cosines: FloatArray  # (3,)
    pixel_spacing_mm: FloatArray  # (2,): between rows, between columns
    size: tuple[int, int]  # rows, columns
    slice_spacing_mm: float | None = None  # Spacing Between Slices as said, which is often wrong
    slice_thickness_mm: float | None = None
    stack_id: str | None = None
    groups: tuple[Dataset, ...] = ()  # functional groups: its own, then those of all frames

    @property
    def sop_instance_uid(self) -> str:
        """The instance that holds this frame."""
        return attributes.text(self.ds, "SOPInstanceUID")

    @property
    def name(self) -> str:
        """Name the frame in a message."""
        where = f"instance {self.sop_instance_uid or '(no UID)'}"
        return f"frame {self.frame_number} of {where}" if self.is_multi_frame else where

    @property
    def header(self) -> FrameHeader:
        """The attributes of this frame, wherever its instance holds them."""
        return FrameHeader(self.ds, self.groups)

    @property
    def facts(self) -> FrameFacts:
        """What the frame says of itself besides its place."""
        return FrameFacts(self.header)


def is_multi_frame(ds: Dataset) -> bool:
    """Answer whether an image keeps its geometry in functional groups, frame by frame."""
    frames = attributes.integer(ds, "NumberOfFrames") or 1
    return frames > 1 or attributes.text(ds, "SOPClassUID") in MULTI_FRAME_SOP_CLASSES


def frame_headers(ds: Dataset) -> Iterator[FrameHeader]:
    """Give the header of every frame of an image.

    Raises
    ------
    UnreadableInstanceError
        A multi-frame image whose functional groups are not as many as its frames (PS3.3 C.7.6.16).
    """
    if not is_multi_frame(ds):
        yield FrameHeader(ds)
        return
    count = attributes.integer(ds, "NumberOfFrames")
    per_frame = attributes.items(ds, "PerFrameFunctionalGroupsSequence")
    if count is None or count != len(per_frame):
        raise UnreadableInstanceError(
            f"{_where(ds)}: Number of Frames is {'absent' if count is None else count}, "
            f"there are functional groups of {len(per_frame)} frames"
        )
    shared = tuple(attributes.items(ds, "SharedFunctionalGroupsSequence")[:1])
    for own in per_frame:
        yield FrameHeader(ds, (own, *shared))


def read_frames(datasets: Sequence[Dataset]) -> tuple[SourceFrame, ...]:
    """Read the planes of the instances of one series, in the order given; pixels are not decoded.

    Raises
    ------
    GeometryError
        A plane has no position, orientation or pixel spacing; the message names it.
    UnreadableInstanceError
        A multi-frame image whose functional groups are not as many as its frames.
    """
    return tuple(frame for ds in datasets for frame in _frames_of(ds))


def _frames_of(ds: Dataset) -> Iterator[SourceFrame]:
    size = (attributes.integer(ds, "Rows") or 0, attributes.integer(ds, "Columns") or 0)
    if min(size) < 1:
        raise GeometryError(f"{_where(ds)}: {size[0]} Rows and {size[1]} Columns")
    is_only = (attributes.integer(ds, "NumberOfFrames") or 1) == 1
    for number, header in enumerate(frame_headers(ds), start=1):
        try:
            yield _frame(header, number, size, FrameHeader(ds if is_only else Dataset(), header.groups))
        except GeometryError as error:
            frame = f", frame {number}" if header.groups else ""
            raise GeometryError(f"{_where(ds)}{frame}: {error}") from error


def _frame(header: FrameHeader, number: int, size: tuple[int, int], own: FrameHeader) -> SourceFrame:
    """Read one frame; its position is taken from `own`, where one for all frames does not count."""
    cosines = _numbers(header, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(header, "PixelMeasuresSequence", "PixelSpacing", 2)
    position = _numbers(own, "PlanePositionSequence", "ImagePositionPatient", 3)
    if spacing.min() < NEAREST_MM or spacing.max() > FARTHEST_MM:
        raise GeometryError(f"Pixel Spacing {spacing.tolist()} is not {NEAREST_MM} to {FARTHEST_MM:.0f} mm")
    if np.abs(position).max() > FARTHEST_MM:
        raise GeometryError(f"the position {position.tolist()} is more than {FARTHEST_MM:.0f} mm away")
    return SourceFrame(
        ds=header.ds,
        frame_number=number,
        is_multi_frame=bool(header.groups),
        position_mm=position,
        row_cosines=cosines[:3],
        column_cosines=cosines[3:],
        pixel_spacing_mm=spacing,
        size=size,
        slice_spacing_mm=_positive(header.number("PixelMeasuresSequence", "SpacingBetweenSlices")),
        slice_thickness_mm=_positive(header.number("PixelMeasuresSequence", "SliceThickness")),
        stack_id=header.text("FrameContentSequence", "StackID"),
        groups=header.groups,
    )


def _positive(value: float | None) -> float | None:
    """Spacing Between Slices may be negative (PS3.3 C.8.4.15): it says the order, which is not used."""
    return abs(value) if value is not None and NEAREST_MM <= abs(value) <= FARTHEST_MM else None


def _numbers(header: FrameHeader, sequence: str, keyword: str, count: int) -> FloatArray:
    values = header.numbers(sequence, keyword)
    if values is None and not header.has_value(sequence, keyword):
        raise GeometryError(f"a series without geometry: {keyword} is missing")
    if values is None or values.size != count:
        raise GeometryError(f"{keyword} does not hold {count} finite numbers")
    return values


def _where(ds: Dataset) -> str:
    series = attributes.text(ds, "SeriesInstanceUID")
    return f"series {series}: instance {attributes.text(ds, 'SOPInstanceUID') or '(no UID)'}"
