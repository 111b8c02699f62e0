"""Series and label volumes that the interoperability tests of segmentations share."""

from pathlib import Path

import numpy as np
import SimpleITK
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import dcmread

from dicomnode.imaging.series import SeriesVolume, to_volume
from tests.imaging_builders import make_series, make_volume

HIPPOCAMPUS_STUDIES = ("Study1", "Study2", "Study3")
OBLIQUE = np.array([[0.6, 0.0, 0.8], [0.8, 0.0, -0.6], [0.0, -1.0, 0.0]])


def read_series(folder: Path) -> SeriesVolume:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return to_volume([dcmread(path) for path in files])


def series_named(name: str, data_dir: Path) -> SeriesVolume:
    """One of the hippocampus series, or `made`: an oblique series of our own writer."""
    if name != "made":
        return read_series(data_dir / "hippocampus_dicom" / name)
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


def on_grid(picture: SimpleITK.Image, image: Volume) -> NDArray[np.bool_]:
    """The non-zero voxels of an ITK image, carried through patient space onto the grid of a volume."""
    mask = np.zeros(image.shape, bool)
    for x, y, z in np.argwhere(SimpleITK.GetArrayFromImage(picture) > 0)[:, ::-1].tolist():
        point = picture.TransformIndexToPhysicalPoint((x, y, z))
        index = (np.linalg.inv(image.affine) @ [*point, 1])[:3]
        rounded = np.rint(index).astype(int)
        assert np.abs(index - rounded).max() < 0.05
        mask[tuple(rounded)] = True
    return mask


def to_itk(mask: NDArray[np.generic], image: Volume) -> SimpleITK.Image:
    picture = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    affine = np.asarray(image.affine)[:3, [2, 1, 0, 3]]
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    picture.SetSpacing(spacing.tolist())
    picture.SetDirection((affine[:, :3] / spacing).reshape(-1).tolist())
    picture.SetOrigin(affine[:, 3].tolist())
    return picture
