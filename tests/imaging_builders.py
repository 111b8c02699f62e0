"""Small series, cards and segmentation objects for the tests of imaging."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.domain import Code, ModelCard, ModelVersion, Segment, Sha256
from dicomnode.imaging.images.frames import SourceFrame, read_frames
from dicomnode.imaging.images.stacks import Stack
from dicomnode.imaging.results.mr_write import encode_series

NOW = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
AXIAL = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])  # columns: slice, row, column axis in LPS
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


def sct(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="SCT", meaning=meaning)


def make_card(labels: Sequence[str] = ("Hippocampus anterior", "Hippocampus posterior")) -> ModelCard:
    modifiers = [sct("255549009", "Anterior"), sct("255551008", "Posterior"), sct("24028007", "Right"), None]
    return ModelCard(
        name="hippocampus",
        version=ModelVersion("hippocampus@0123456789ab"),
        weights_sha256=Sha256("0123456789ab" + 52 * "0"),
        segments=tuple(
            Segment(
                class_index=number,
                segment_number=number,
                label=label,
                category=sct("123037004", "Anatomical Structure"),
                type=sct("5366008", "Hippocampus"),
                type_modifier=modifiers[(number - 1) % 4],
                region=sct("12738006", "Brain") if number % 2 else None,
                rgb=((230, 60, 60), (60, 120, 230), (60, 200, 90), (240, 200, 40))[(number - 1) % 4],
            )
            for number, label in enumerate(labels, 1)
        ),
    )


def make_volume(
    array: NDArray[np.generic],
    *,
    axes: NDArray[np.float64] = AXIAL,
    spacing_mm: tuple[float, float, float] = (2.0, 0.75, 0.5),
    origin_mm: tuple[float, float, float] = (-10.0, 20.0, 30.0),
) -> hd.Volume:
    """A volume whose slice, row and column axes are the columns of `axes`, in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing_mm)
    affine[:3, 3] = origin_mm
    return hd.Volume(array, affine, "PATIENT", frame_of_reference_uid="1.2.826.0.1.3680043.10.1.1")


def make_series(volume: hd.Volume, *, series_uid: str = "1.2.826.0.1.3680043.10.1.2") -> list[Dataset]:
    """An MR series of a volume, written to Part 10 and read again, in the order of the slice axis."""
    datasets = encode_series(
        volume,
        patient_id="P1",
        patient_name="Case^One",
        study_description="Study",
        series_description="T1",
        study_instance_uid="1.2.826.0.1.3680043.10.1.3",
        series_instance_uid=series_uid,
        series_number=3,
        created_at=NOW,
    )
    return [reread(ds) for ds in datasets]


def plain_series(shape: tuple[int, int, int] = (4, 5, 6)) -> list[Dataset]:
    """An axial series with the values 0, 1, 2, ..."""
    return make_series(make_volume(np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)))


def part_10(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def reread(ds: Dataset) -> Dataset:
    return dcmread(io.BytesIO(part_10(ds)))


def item(**attributes: object) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def foreign_seg(
    sources: Sequence[Dataset] | Stack,
    frames: Sequence[tuple[int, int, NDArray[np.bool_]]],
    *,
    labels: Sequence[str] = ("Hippocampus anterior", "Hippocampus posterior"),
    by_reference: bool = True,
    by_position: bool = True,
    preserved: str = "YES",
    manufacturer: str = "QIICR",
    has_frame_numbers: bool = True,
) -> Dataset:
    """A bare BINARY segmentation such as other writers make; frames are (segment number, slice, mask).

    `sources` are in slice order. No dimension indices, no pixel measures. References to frames of multi-frame
    sources name the frame unless told otherwise.
    """
    planes = sources.frames if isinstance(sources, Stack) else read_frames(sources)
    first = planes[0].ds
    ds = item(
        SOPClassUID=SEGMENTATION,
        SOPInstanceUID="1.2.826.0.1.3680043.10.9.1",
        StudyInstanceUID=first.StudyInstanceUID,
        SeriesInstanceUID="1.2.826.0.1.3680043.10.9.2",
        FrameOfReferenceUID=first.FrameOfReferenceUID,
        Modality="SEG",
        Manufacturer=manufacturer,
        SegmentationType="BINARY",
        ReferencedSeriesSequence=[item(SeriesInstanceUID=first.SeriesInstanceUID)],
        SegmentSequence=[
            item(SegmentNumber=number, SegmentLabel=label, SegmentAlgorithmType="MANUAL")
            for number, label in enumerate(labels, 1)
        ],
        SharedFunctionalGroupsSequence=[Dataset()],
        PerFrameFunctionalGroupsSequence=[
            _frame_groups(
                planes[k],
                number,
                by_reference=by_reference,
                by_position=by_position,
                preserved=preserved,
                has_frame_number=has_frame_numbers and planes[k].is_multi_frame,
            )
            for number, k, _ in frames
        ],
        NumberOfFrames=len(frames),
        Rows=frames[0][2].shape[0],
        Columns=frames[0][2].shape[1],
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        SamplesPerPixel=1,
        PixelRepresentation=0,
        PhotometricInterpretation="MONOCHROME2",
    )
    ds.PixelData = pack_bits(np.stack([mask for _, _, mask in frames]).astype(np.uint8).reshape(-1))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _frame_groups(
    source: SourceFrame,
    number: int,
    *,
    by_reference: bool,
    by_position: bool,
    preserved: str,
    has_frame_number: bool,
) -> Dataset:
    groups = item(SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)])
    if by_reference:
        reference = item(
            ReferencedSOPClassUID=source.ds.SOPClassUID,
            ReferencedSOPInstanceUID=source.sop_instance_uid,
            SpatialLocationsPreserved=preserved,
        )
        if has_frame_number:
            reference.ReferencedFrameNumber = source.frame_number
        groups.DerivationImageSequence = [item(SourceImageSequence=[reference])]
    if by_position:
        position = [f"{value:.10g}" for value in source.position_mm]
        groups.PlanePositionSequence = [item(ImagePositionPatient=position)]
    return groups
