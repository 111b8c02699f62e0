"""Small DICOM objects made up for the wire, and the bytes of data sets in files."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import split_dataset

from tests.peers import wait_until


def data_set_bytes(path: Path) -> bytes:
    """The data set of a Part 10 file exactly as encoded, without preamble and file meta information."""
    _, offset = split_dataset(path)
    return path.read_bytes()[offset:]


def make_image(
    *, series_uid: str = "", number: int = 1, size: int = 16, sop_uid: str = "", seed: int = 0
) -> Dataset:
    """Make an MR image with random pixels and file meta information."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = sop_uid or generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.Modality = "MR"
    ds.PatientName, ds.PatientID = "Wire^Test", "wire"
    ds.StudyInstanceUID = generate_uid()
    ds.SeriesInstanceUID = series_uid or generate_uid()
    ds.InstanceNumber = number
    ds.Rows = ds.Columns = size
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    pixels = np.random.default_rng(seed + number).integers(0, 4096, (size, size), dtype=np.uint16)
    ds.PixelData = pixels.tobytes()
    return ds


def write_series(folder: Path, *, count: int, size: int = 16) -> list[Path]:
    """Write the images of one new series as files."""
    folder.mkdir(parents=True, exist_ok=True)
    series_uid = generate_uid()
    return [
        write(make_image(series_uid=series_uid, number=n, size=size), folder) for n in range(1, count + 1)
    ]


def write(ds: Dataset, folder: Path) -> Path:
    """Write an object as a Part 10 file named by its SOP instance UID."""
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def dicom_files(folders: Sequence[Path]) -> list[Path]:
    """Every Part 10 file under the folders, in order of path."""
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if path.read_bytes()[128:132] == b"DICM"]


def names_itself(path: Path) -> bool:
    """Whether the data set of a file has the UIDs that every object must have."""
    ds = dcmread(path, stop_before_pixels=True)
    return all(k in ds for k in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"))


def is_consistent(path: Path) -> bool:
    """Whether file meta information and data set name the same object; edited files may not."""
    ds = dcmread(path, stop_before_pixels=True)
    return bool(ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID)


def store_raw(
    assoc: Association, encoded: bytes, *, sop_class_uid: str, sop_instance_uid: str, context: int = 1
) -> Dataset | None:
    """Send a C-STORE request with any bytes as data set and any UIDs, and give the answer."""
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.DataSet = BytesIO(encoded)
    assoc._reactor_checkpoint.clear()
    wait_until(lambda: assoc._is_paused)
    assoc.dimse.send_msg(request, context)
    _, answer = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    if answer is None:
        return None
    found = Dataset()
    found.Status, found.ErrorComment = answer.Status, answer.ErrorComment or ""
    return found
