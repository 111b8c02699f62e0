"""The planes of a received series: single-frame images, and the frames of multi-frame images."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.errors import GeometryError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray


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

    @property
    def sop_instance_uid(self) -> str:
        """The instance that holds this frame."""
        return attributes.text(self.ds, "SOPInstanceUID")

    @property
    def name(self) -> str:
        """Name the frame in a message."""
        where = f"instance {self.sop_instance_uid or '(no UID)'}"
        return f"frame {self.frame_number} of {where}" if self.is_multi_frame else where


def read_frames(datasets: Sequence[Dataset]) -> tuple[SourceFrame, ...]:
    """Read the planes of the instances of one series, in the order given; pixels are not decoded.

    Raises
    ------
    GeometryError
        A plane has no position, orientation or pixel spacing; the message names it.
    """
    return tuple(_single_frame(ds) for ds in datasets)


def _single_frame(ds: Dataset) -> SourceFrame:
    cosines = _numbers(ds, "ImageOrientationPatient", 6)
    spacing = _numbers(ds, "PixelSpacing", 2)
    if spacing.min() <= 0:
        raise GeometryError(f"{_where(ds)}: Pixel Spacing {spacing.tolist()} is not positive")
    return SourceFrame(
        ds=ds,
        frame_number=1,
        is_multi_frame=False,
        position_mm=_numbers(ds, "ImagePositionPatient", 3),
        row_cosines=cosines[:3],
        column_cosines=cosines[3:],
        pixel_spacing_mm=spacing,
        size=(attributes.integer(ds, "Rows") or 0, attributes.integer(ds, "Columns") or 0),
    )


def _numbers(ds: Dataset, keyword: str, count: int) -> FloatArray:
    if not attributes.has_value(ds, keyword):
        raise GeometryError(f"{_where(ds)} is without geometry: {keyword} is missing")
    values = attributes.numbers(ds, keyword)
    if values is None or values.size != count:
        raise GeometryError(f"{_where(ds)}: {keyword} does not hold {count} finite numbers")
    return values


def _where(ds: Dataset) -> str:
    series = attributes.text(ds, "SeriesInstanceUID")
    return f"series {series}: instance {attributes.text(ds, 'SOPInstanceUID') or '(no UID)'}"
