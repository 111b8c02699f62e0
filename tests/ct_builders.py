"""CT series for tests: a volume written as single-frame CT images, as a scanner would send them."""

from datetime import UTC, datetime
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tests.imaging_builders import reread

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ROOT = "1.2.826.0.1.3680043.10.7"
INTERCEPT = -1024


def ct_series(volume: hd.Volume, *, number: int = 1) -> list[Dataset]:
    """Write a volume in Hounsfield units (whole numbers) slice by slice."""
    return [reread(_slice(volume, index, number)) for index in range(volume.spatial_shape[0])]


def nifti_volume(path: Path, *, dtype: type[np.generic] = np.int16) -> hd.Volume:
    """Read a NIfTI file as a volume with axial slices, axes (slice, row, column), LPS."""
    image = nib.as_closest_canonical(nib.load(path))  # i right, j anterior, k superior
    values = np.rint(np.asarray(image.dataobj)).astype(dtype).transpose(2, 1, 0)[:, ::-1, ::-1]
    to_ras = image.affine
    size = image.shape
    affine = np.eye(4)
    flip = np.diag([-1.0, -1.0, 1.0])
    affine[:3, 0] = flip @ to_ras[:3, 2]
    affine[:3, 1] = flip @ -to_ras[:3, 1]
    affine[:3, 2] = flip @ -to_ras[:3, 0]
    affine[:3, 3] = flip @ (to_ras @ [size[0] - 1, size[1] - 1, 0, 1])[:3]
    return hd.Volume(np.ascontiguousarray(values), affine, "PATIENT", frame_of_reference_uid=f"{ROOT}.1")


def _slice(volume: hd.Volume, index: int, number: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{ROOT}.2.{number}.{index + 1}"
    ds.StudyInstanceUID = f"{ROOT}.3.{number}"
    ds.SeriesInstanceUID = f"{ROOT}.4.{number}"
    ds.FrameOfReferenceUID = volume.frame_of_reference_uid
    ds.Modality, ds.Manufacturer, ds.ImageType = "CT", "Tests", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "CT-1", "Case^One", "", "O"
    ds.StudyDate, ds.StudyTime = NOW.strftime("%Y%m%d"), NOW.strftime("%H%M%S")
    ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ds.PositionReferenceIndicator = ""
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 2, index + 1, 1
    ds.KVP, ds.PatientPosition = "120", "HFS"
    affine = volume.affine
    ds.ImagePositionPatient = [f"{x:.6f}" for x in affine @ [index, 0, 0, 1]][:3]
    row_mm, column_mm = volume.spacing[1:]
    cosines = [*(affine[:3, 2] / column_mm), *(affine[:3, 1] / row_mm)]
    ds.ImageOrientationPatient = [f"{x:.9f}" for x in cosines]
    ds.PixelSpacing = [f"{row_mm:.6f}", f"{column_mm:.6f}"]
    ds.SliceThickness = f"{volume.spacing[0]:.6f}"
    ds.Rows, ds.Columns = volume.spatial_shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", str(INTERCEPT), "HU"
    stored = np.asarray(volume.array[index], np.int32) - INTERCEPT
    ds.PixelData = stored.astype("<i2").tobytes()
    return ds
