"""Where the images of a training were stored is understood from a word, letters or one of them."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dicomnode.errors import InputError
from dicomnode.ml.imports import orientation


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # Each column of an affine says where an axis of the file points in right, front and head.
        (((1, 0, 0), (0, 1, 0), (0, 0, 1)), "HAR"),
        (((-1, 0, 0), (0, -1, 0), (0, 0, 1)), "HPL"),  # as scanned in most axial series
        (((0, -2, 0), (0, 0, -2), (1, 0.1, 0)), "RFP"),  # sagittal, a little oblique
    ],
)
def test_an_image_tells_where_its_axes_grow_towards(
    columns: tuple[tuple[float, ...], ...], expected: str, tmp_path: Path
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(columns)
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), affine), path)

    assert orientation.read(str(path)) == expected


@pytest.mark.parametrize(("text", "expected"), [("HAR", "HAR"), ("fpl", "FPL"), ("Acquired", "acquired")])
def test_letters_and_the_word_are_taken_as_they_are(text: str, expected: str) -> None:
    assert orientation.read(text) == expected


@pytest.mark.parametrize("text", ["RAS", "HFA", "HA", "absent.nii.gz"])
def test_what_is_neither_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="give 'acquired', three letters such as HAR"):
        orientation.read(text)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"no image")

    with pytest.raises(InputError, match="is no readable NIfTI image"):
        orientation.read(str(path))


def test_what_it_means_is_said_in_words() -> None:
    assert orientation.in_words("HAR") == (
        "every image is first turned so that slices count towards the head, rows towards the front and "
        "columns towards the right"
    )
    assert "as they were scanned" in orientation.in_words("acquired")
