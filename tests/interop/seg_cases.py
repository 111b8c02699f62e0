"""Series and label volumes that the interoperability tests of segmentations share."""

from pathlib import Path

import numpy as np
import SimpleITK
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import dcmread

from dicomnode.domain import ModelCard
from dicomnode.imaging.images.series import SeriesVolume, stack_volume, to_volume
from dicomnode.imaging.images.stacks import read_stacks
from dicomnode.imaging.results.findings import Findings, measure
from tests.ct_builders import ct_series, nifti_volume
from tests.imaging_builders import make_series, make_volume

HIPPOCAMPUS_STUDIES = ("Study1", "Study2", "Study3")
OBLIQUE = np.array([[0.6, 0.0, 0.8], [0.8, 0.0, -0.6], [0.0, -1.0, 0.0]])
FOLDERS = {
    **{name: f"hippocampus_dicom/{name}" for name in HIPPOCAMPUS_STUDIES},
    "pet": "studies/acrin_nsclc_petct/317561081015",
    "ge": "ge_mprage/GE_Pioneer_T1",
    "prostate axial": "studies/prostatex_0207/015689445322",
    "prostate sagittal": "studies/prostatex_0207/650592350501",
    "prostate coronal": "studies/prostatex_0207/025223370792",
}
ENHANCED = {  # multi-frame files, and which of their stacks
    "enhanced axial": ("enhanced/nema/BRTUM001", 0),
    "enhanced of many types": ("enhanced/dcm_qa_enh/In/Philips/IM_0027_fMAP.dcm", 1),
}
SPLEEN = "organs/spleen_msd/sub-spleen2/ct/sub-spleen2_ct.nii.gz"
NAMES = (*FOLDERS, *ENHANCED, "spleen", "made")


def read_series(folder: Path) -> SeriesVolume:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt")
    return to_volume([dcmread(path) for path in files])


def series_named(name: str, data_dir: Path) -> SeriesVolume:
    """One of the real series; `spleen`: a real CT written as DICOM; `made`: an oblique one of our writer."""
    if name in FOLDERS:
        return read_series(data_dir / FOLDERS[name])
    if name in ENHANCED:
        path, index = ENHANCED[name]
        return stack_volume(read_stacks([dcmread(data_dir / path)])[index])
    if name == "spleen":
        return to_volume(ct_series(nifti_volume(data_dir / SPLEEN)))
    values = np.random.default_rng(5).integers(0, 900, (7, 12, 10)).astype(np.uint16)
    return to_volume(make_series(make_volume(values, axes=OBLIQUE, spacing_mm=(3.3, 0.9, 0.7))))


def blobs(image: Volume) -> Volume:
    """Segment numbers 1 and 2: two blocks and single voxels at corners, where shifts and flips show."""
    labels = np.zeros(image.shape, np.uint8)
    slices, rows, columns = image.shape
    labels[1 : slices // 2, 1 : rows // 2, 2 : columns // 2] = 1
    labels[slices // 3 : slices - 2, rows // 2 :, columns // 3 : columns - 1] = 2
    labels[slices - 1, 0, 0] = 1
    labels[0, rows - 1, columns - 1] = 2
    return image.with_array(labels)


def blobs_in(series: SeriesVolume, card: ModelCard) -> Findings:
    """What a model would have found, had it found the `blobs`."""
    return measure(blobs(series.image), series=series, card=card)


def on_grid(picture: SimpleITK.Image, image: Volume, value: int | None = None) -> NDArray[np.bool_]:
    """The voxels of an ITK image with a value (None: not 0), carried through patient space onto a grid."""
    array = SimpleITK.GetArrayFromImage(picture)
    indices = np.argwhere(array != 0 if value is None else array == value)[:, ::-1]
    spacing, origin = np.array(picture.GetSpacing()), np.array(picture.GetOrigin())
    direction = np.array(picture.GetDirection()).reshape(3, 3)
    points = origin + (indices * spacing) @ direction.T
    found = np.hstack([points, np.ones((len(points), 1))]) @ np.linalg.inv(image.affine).T[:, :3]
    rounded = np.rint(found).astype(int)
    assert not found.size or np.abs(found - rounded).max() < 0.05
    mask = np.zeros(image.shape, bool)
    mask[tuple(rounded.T)] = True
    return mask


def to_itk(mask: NDArray[np.generic], image: Volume) -> SimpleITK.Image:
    picture = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    affine = np.asarray(image.affine)[:3, [2, 1, 0, 3]]
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    picture.SetSpacing(spacing.tolist())
    picture.SetDirection((affine[:, :3] / spacing).reshape(-1).tolist())
    picture.SetOrigin(affine[:, 3].tolist())
    return picture
