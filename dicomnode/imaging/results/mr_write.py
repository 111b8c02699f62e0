"""A volume as a series of MR images (MR Image Storage, PS3.3 A.4), for demonstrations and tests."""

from copy import deepcopy
from datetime import datetime

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.identity import DEVICE, derived_uid

MAXIMUM_STORED = 32767
"""Stored values stay below 2**15, so that readers that take them for signed are right too."""
IMPLEMENTATION_CLASS_UID = derived_uid("implementation")


def encode_series(  # noqa: PLR0913  # the identifying attributes of a series, each of them needed
    image: Volume,
    *,
    patient_id: str,
    patient_name: str,
    study_description: str,
    series_description: str,
    study_instance_uid: str,
    series_instance_uid: str,
    series_number: int,
    created_at: datetime,
    frame_of_reference_uid: str = "",
) -> list[Dataset]:
    """Write a volume as one MR image per slice.

    MR values have no unit and MR Image Storage no rescaling, so the values are stored as they are where they
    are whole numbers from 0 to 32767, and otherwise scaled linearly onto 0 to 4095.

    Parameters
    ----------
    image
        Axes (slice, row, column), affine to LPS; any real type. The series keeps its orientation.
    created_at
        Aware; becomes the date and time of study, series and content.
    frame_of_reference_uid
        "" takes the volume's own, or one derived from the series where it has none.

    Returns
    -------
        Data sets with file meta information, ready for `save_as`, in the order of the slice axis;
        SOP Instance UIDs derive from the series UID and the slice.
    """
    stored = _stored_values(np.asarray(image.array))
    window = _window(stored)
    common = Dataset()
    _add_patient_and_study(common, created_at, patient_id=patient_id, patient_name=patient_name)
    common.StudyDescription = study_description
    common.SeriesDescription = series_description
    common.StudyInstanceUID = study_instance_uid
    common.SeriesInstanceUID = series_instance_uid
    common.SeriesNumber = series_number
    common.FrameOfReferenceUID = (
        frame_of_reference_uid or image.frame_of_reference_uid or derived_uid("frame", series_instance_uid)
    )
    _add_equipment_and_acquisition(common)
    _add_plane(common, image)
    _add_pixel_module(common, stored.shape, window)
    return [_slice(common, image, stored, index) for index in range(stored.shape[0])]


def _stored_values(values: NDArray[np.generic]) -> NDArray[np.uint16]:
    real = values.astype(np.float64)
    low, high = float(real.min()), float(real.max())
    if low >= 0 and high <= MAXIMUM_STORED and np.array_equal(real, np.rint(real)):
        return real.astype(np.uint16)
    scale = 4095.0 / (high - low) if high > low else 0.0
    return np.rint((real - low) * scale).astype(np.uint16)


def _window(stored: NDArray[np.uint16]) -> tuple[int, int]:
    low, high = np.percentile(stored, [1, 99.5])
    width = max(int(high - low), 2)
    return int(low) + width // 2, width


def _add_patient_and_study(ds: Dataset, created_at: datetime, *, patient_id: str, patient_name: str) -> None:
    if not (patient_id + patient_name).isascii():
        ds.SpecificCharacterSet = "ISO_IR 192"
    date, time = created_at.strftime("%Y%m%d"), created_at.strftime("%H%M%S")
    ds.PatientID = patient_id
    ds.PatientName = patient_name
    ds.PatientBirthDate = ""
    ds.PatientSex = ""
    ds.AccessionNumber = ""
    ds.StudyID = ""
    ds.ReferringPhysicianName = ""
    for event in ("Study", "Series", "Content", "Acquisition"):
        setattr(ds, f"{event}Date", date)
        setattr(ds, f"{event}Time", time)


def _add_equipment_and_acquisition(ds: Dataset) -> None:
    ds.SOPClassUID = MRImageStorage
    ds.Modality = "MR"
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    ds.Manufacturer = DEVICE.manufacturer
    ds.ManufacturerModelName = f"{DEVICE.manufacturer_model_name} image writer"
    ds.SoftwareVersions = DEVICE.software_versions
    ds.ScanningSequence = "RM"  # research mode: the acquisition is unknown
    ds.SequenceVariant = "NONE"
    ds.ScanOptions = ""
    ds.MRAcquisitionType = "3D"
    ds.EchoTime = None
    ds.RepetitionTime = None
    ds.EchoTrainLength = None
    ds.PatientPosition = "HFS"
    ds.Laterality = ""
    ds.PositionReferenceIndicator = ""


def _add_plane(ds: Dataset, image: Volume) -> None:
    matrix: FloatArray = np.asarray(image.affine, np.float64)
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / steps
    ds.ImageOrientationPatient = _decimals([*directions[:, 2], *directions[:, 1]])
    ds.PixelSpacing = _decimals(steps[1:])
    ds.SliceThickness = _decimals(steps[:1])[0]
    ds.SpacingBetweenSlices = _decimals(steps[:1])[0]


def _add_pixel_module(ds: Dataset, shape: tuple[int, ...], window: tuple[int, int]) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = shape[1:]
    ds.BitsAllocated = 16
    ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 0
    ds.WindowCenter, ds.WindowWidth = (str(value) for value in window)


def _slice(common: Dataset, image: Volume, stored: NDArray[np.uint16], index: int) -> Dataset:
    ds = deepcopy(common)
    ds.SOPInstanceUID = derived_uid("slice", str(common.SeriesInstanceUID), str(index))
    ds.InstanceNumber = index + 1
    ds.AcquisitionNumber = 1
    ds.ImagePositionPatient = _decimals((np.asarray(image.affine) @ [index, 0, 0, 1])[:3])
    ds.PixelData = np.ascontiguousarray(stored[index], dtype="<u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    return ds


def _decimals(values: FloatArray | list[float]) -> list[str]:
    return [format_number_as_ds(float(value) + 0.0) for value in values]
