"""Bare RT Structure Sets such as other programs write, for the tests of the reader."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian

from dicomnode.domain import STRUCTURE_SET_SOP_CLASS
from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.stacks import Stack
from tests.imaging_builders import item

Corners = Iterable[tuple[float, float]]


def square(low: float, high: float) -> list[tuple[float, float]]:
    """Corners of a square, (row, column)."""
    return [(low, low), (low, high), (high, high), (high, low)]


def on_frame(frame: SourceFrame, corners: Corners, *, above_mm: float = 0.0) -> NDArray[np.float64]:
    """Place (row, column) corners in patient space, some way above the plane of a frame."""
    steps = np.stack([frame.column_cosines, frame.row_cosines]) * frame.pixel_spacing_mm[:, None]
    normal = np.cross(frame.row_cosines, frame.column_cosines)
    return np.asarray(frame.position_mm + np.array(list(corners)) @ steps + above_mm * normal)


def contour(
    points: NDArray[np.float64], *, kind: str = "CLOSED_PLANAR", names: SourceFrame | None = None
) -> Dataset:
    """One contour, which names an image or none."""
    ds = item(
        ContourGeometricType=kind,
        NumberOfContourPoints=len(points),
        ContourData=[f"{value:.10g}" for value in np.reshape(points, -1).tolist()],
    )
    if names is not None:
        ds.ContourImageSequence = [item(ReferencedSOPInstanceUID=names.sop_instance_uid)]
    return ds


def square_on(stack: Stack, index: int, low: float = 0.5, high: float = 3.5) -> Dataset:
    """A square on a plane of a stack, which it names."""
    frame = stack.frames[index]
    return contour(on_frame(frame, square(low, high)), names=frame)


def structure_set(stack: Stack, rois: Mapping[str, Sequence[Dataset]]) -> Dataset:
    """An object with structures of these names and contours, numbered from 1."""
    uid = stack.grid.frame_of_reference_uid
    images = [item(ReferencedSOPInstanceUID=frame.sop_instance_uid) for frame in stack.frames]
    series = item(SeriesInstanceUID=stack.series_instance_uid, ContourImageSequence=images)
    study = item(RTReferencedSeriesSequence=[series])
    ds = item(
        SOPClassUID=STRUCTURE_SET_SOP_CLASS,
        SOPInstanceUID="1.2.826.0.1.3680043.10.8.1",
        Modality="RTSTRUCT",
        ReferencedFrameOfReferenceSequence=[item(FrameOfReferenceUID=uid, RTReferencedStudySequence=[study])],
        StructureSetROISequence=[
            item(ROINumber=number, ReferencedFrameOfReferenceUID=uid, ROIName=name)
            for number, name in enumerate(rois, 1)
        ],
        ROIContourSequence=[
            item(ReferencedROINumber=number, ContourSequence=list(contours))
            for number, contours in enumerate(rois.values(), 1)
        ],
        RTROIObservationsSequence=[
            item(ObservationNumber=number, ReferencedROINumber=number) for number in range(1, len(rois) + 1)
        ],
    )
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return ds


def distance(polygon: NDArray[np.float64], centre: NDArray[np.float64]) -> float:
    """Measure how far a point is from a polygon's edges."""
    nearest = np.inf
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        way = end - start
        length = float(way @ way)
        along = np.clip((centre - start) @ way / length, 0, 1) if length else 0.0
        nearest = min(nearest, float(np.linalg.norm(centre - start - along * way)))
    return nearest
