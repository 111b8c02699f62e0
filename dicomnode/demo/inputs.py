"""What the demonstration sends: crops of the MNI ICBM152 average T1, or a folder of the user's own DICOM."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
from pydicom.uid import generate_uid

from dicomnode.errors import ConfigError
from dicomnode.imaging.results.mr_write import encode_series
from dicomnode.pipeline.folder import read_series

_MNI_FILE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_CROP_MM = (36, 52, 36)  # left-right, back-front, foot-head: the extent of the crops in the training data
_CENTRES_MM = {"left": (-27, -21, -16), "right": (27, -21, -16)}  # of each hippocampus, MNI (RAS)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSeries:
    """One image series to send: its files and what the summary calls it."""

    series_instance_uid: str
    study_instance_uid: str
    patient_id: str  # "" where the images carry none
    patient_id_issuer: str
    title: str
    files: tuple[Path, ...]


def write_mni_series(folder: Path, *, now: datetime) -> list[InputSeries]:
    """Cut both hippocampi out of the average brain and write each as an MR Image Storage series.

    Source: ICBM 2009a nonlinear symmetric average (McConnell Brain Imaging Centre), as carried by nilearn.

    Raises
    ------
    ConfigError
        nilearn is not installed.
    """
    image = nibabel.Nifti1Image.from_filename(_mni_file())
    array = np.asarray(image.dataobj, dtype=np.float32)  # (R, A, S)
    return [
        _write_crop(folder / side, *_crop(array, image.affine, centre), side=side, now=now)
        for side, centre in _CENTRES_MM.items()
    ]


def find_series(folder: Path) -> list[InputSeries]:
    """Group the DICOM images under a folder into series; files of other kinds are passed over."""
    return [
        InputSeries(
            series_instance_uid=uid,
            study_instance_uid=str(datasets[0].get("StudyInstanceUID", "")),
            patient_id=str(datasets[0].get("PatientID", "") or ""),
            patient_id_issuer=str(datasets[0].get("IssuerOfPatientID", "") or ""),
            title=f"series {number}",
            files=tuple(Path(ds.filename) for ds in datasets),
        )
        for number, (uid, datasets) in enumerate(read_series(folder).items(), 1)
    ]


def _mni_file() -> Path:
    try:
        import nilearn.datasets  # noqa: PLC0415  # optional extra, imported in this module only
    except ImportError as error:
        raise ConfigError(
            "the demonstration takes its images from nilearn, which is not installed; install "
            "dicomnode-federated[demo], or give a folder of DICOM files with --input"
        ) from error
    path = Path(nilearn.datasets.__file__).parent / "data" / _MNI_FILE
    if not path.is_file():
        raise ConfigError(f"nilearn is installed without {_MNI_FILE}; give a folder with --input")
    return path


def _crop(
    array: np.ndarray, affine_ras: np.ndarray, centre_mm: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The block around a point, with the affine of its first voxel; 1 mm voxels, axes (R, A, S)."""
    centre = np.linalg.inv(affine_ras) @ (*centre_mm, 1)
    start = np.round(centre[:3] - np.array(_CROP_MM) / 2).astype(int)
    block = array[tuple(slice(s, s + n) for s, n in zip(start, _CROP_MM, strict=True))]
    moved = affine_ras.copy()
    moved[:3, 3] = (affine_ras @ (*start, 1))[:3]
    return block, moved


def _write_crop(
    folder: Path, block: np.ndarray, affine_ras: np.ndarray, *, side: str, now: datetime
) -> InputSeries:
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    volume = hd.Volume(
        array=block,
        affine=to_lps @ affine_ras,
        coordinate_system="PATIENT",
        frame_of_reference_uid=generate_uid(),
    ).to_patient_orientation(
        "HPL"
    )  # axial slices from foot to head, rows front to back, columns right to left
    datasets = encode_series(
        volume,
        patient_id=f"DEMO-{side.upper()}",
        patient_name=f"Average^{side.capitalize()}",
        study_description="Demonstration, ICBM152 average",
        series_description=f"T1 crop, {side} hippocampus",
        study_instance_uid=generate_uid(),
        series_instance_uid=generate_uid(),
        series_number=1,
        created_at=now,
    )
    folder.mkdir(parents=True)
    files = tuple(folder / f"{n:03d}.dcm" for n in range(1, len(datasets) + 1))
    for ds, path in zip(datasets, files, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return InputSeries(
        series_instance_uid=datasets[0].SeriesInstanceUID,
        study_instance_uid=datasets[0].StudyInstanceUID,
        patient_id=datasets[0].PatientID,
        patient_id_issuer="",
        title=f"{side} hippocampus",
        files=files,
    )
