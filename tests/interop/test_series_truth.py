"""Series of several vendors and transfer syntaxes, against NIfTI files that other people made of them."""

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from dicomnode.errors import GeometryError, UnsupportedSeriesError
from dicomnode.imaging.series import to_volume

CASES = [
    ("generic/anatomical", "001"),
    ("generic/anatomical", "001_implicit"),
    ("generic/anatomical", "002_non_isotropic"),
    ("ge/anatomical", "001"),
    ("ge/anatomical", "001_implicit"),
    ("generic/compressed", "001"),
    ("generic/compressed_j2k", "001"),
    ("generic/compressed_jpeg", "001"),
    ("generic/compressed_jpegls", "001"),
    ("generic/compressed_rle", "001"),
]


def read(folder):
    return to_volume([dcmread(path) for path in folder.iterdir()]).image


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_every_voxel_has_the_value_and_the_place_of_the_truth(folder, name, data_dir):
    vendors = data_dir / "vendors" / folder
    image = read(vendors / name)
    truth = nibabel.load(vendors / f"{name}_ground_truth.nii.gz")

    indices = np.indices(image.shape).reshape(3, -1)
    points = image.affine @ np.vstack([indices, np.ones(indices.shape[1])])  # LPS
    places = (np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ truth.affine) @ points)[:3]
    rounded = np.rint(places).astype(int)

    assert np.abs(places - rounded).max() < 1e-3
    values = np.asarray(truth.dataobj)[tuple(rounded)]
    np.testing.assert_allclose(image.array.reshape(-1), values, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "error"),
    [
        ("vendors/failing/gantrytilting/001", GeometryError),
        ("duplicate_positions", GeometryError),
        ("vendors/generic/rgb/001", UnsupportedSeriesError),
        ("vendors/philips_enhanced/anatomical/001", UnsupportedSeriesError),
    ],
)
def test_series_that_are_no_single_volume_are_refused(folder, error, data_dir):
    paths = [path for path in (data_dir / folder).iterdir() if path.suffix not in {".md", ".txt"}]

    with pytest.raises(error):
        to_volume([dcmread(path) for path in paths])
