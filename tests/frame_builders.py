"""Single planes and multi-frame images with any geometry, for the tests of frames, stacks and grids."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

from tests.imaging_builders import item, reread

SERIES = "1.2.826.0.1.3680043.10.7"
AXIAL_COSINES = (1, 0, 0, 0, 1, 0)

FloatArray = NDArray[np.float64]


def header(number: int, size: tuple[int, int], **attributes: object) -> Dataset:
    """What every image of the series `SERIES` has, without pixels and geometry."""
    ds = item(
        SOPClassUID=MRImageStorage,
        SOPInstanceUID=f"{SERIES}.{number}",
        SeriesInstanceUID=SERIES,
        StudyInstanceUID="1.2.826.0.1.3680043.10.6",
        FrameOfReferenceUID="1.2.826.0.1.3680043.10.5",
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M"],
        Rows=size[0],
        Columns=size[1],
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        **attributes,
    )
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def plane(
    number: int,
    position: Sequence[float],
    *,
    pixels: NDArray[np.uint16] | None = None,
    cosines: Sequence[float] = AXIAL_COSINES,
    spacing: Sequence[float] = (1, 1),
    **attributes: object,
) -> Dataset:
    """One single-frame image; its pixels are its number where none are given."""
    pixels = np.full((3, 4), number, np.uint16) if pixels is None else pixels
    ds = header(number, pixels.shape)
    ds.ImagePositionPatient = [float(np.round(value, 9)) for value in position]
    ds.ImageOrientationPatient = [float(np.round(value, 12)) for value in cosines]
    ds.PixelSpacing = list(spacing)
    ds.SliceThickness = 1
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    return ds


def column_of_planes(places_mm: Sequence[float], **attributes: object) -> list[Dataset]:
    """Axial planes at these heights, numbered from 1; their pixels are their number."""
    return [plane(number, (0, 0, z), **attributes) for number, z in enumerate(places_mm, start=1)]


def multi_frame(
    frames: Sequence[Dataset],
    pixels: NDArray[np.uint16],
    *,
    number: int = 1,
    shared: Dataset | None = None,
    **attributes: object,
) -> Dataset:
    """An Enhanced MR image of these functional groups, written to Part 10 and read again."""
    ds = header(number, pixels.shape[1:])
    ds.SOPClassUID = EnhancedMRImageStorage
    ds.NumberOfFrames = len(frames)
    ds.SharedFunctionalGroupsSequence = [shared or shared_groups()]
    ds.PerFrameFunctionalGroupsSequence = list(frames)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    return reread(ds)


def shared_groups(cosines: Sequence[float] = AXIAL_COSINES, spacing: Sequence[float] = (1, 1)) -> Dataset:
    return item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(cosines))],
        PixelMeasuresSequence=[item(PixelSpacing=list(spacing), SliceThickness=1)],
    )


def frame_groups(position: Sequence[float], **groups: Dataset) -> Dataset:
    """The functional groups of one frame; further groups by the keyword of their sequence."""
    own = item(PlanePositionSequence=[item(ImagePositionPatient=list(position))])
    for keyword, group in groups.items():
        setattr(own, keyword, [group])
    return own


def tilted(count: int, *, step_mm: float = 2.0, sideways_mm: float = 0.5) -> list[Dataset]:
    """Axial planes that each lie `sideways_mm` further along y, as with a tilted gantry."""
    values: Callable[[int], NDArray[np.uint16]] = lambda k: (  # noqa: E731
        np.arange(5 * 6, dtype=np.uint16).reshape(5, 6) * 7 + 100 * k
    )
    return [
        plane(k + 1, (-10, 20 + sideways_mm * k, 30 + step_mm * k), pixels=values(k)) for k in range(count)
    ]
