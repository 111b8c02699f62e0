"""Where the axes of a model's training images grow towards, from a word, three letters or an image."""

from pathlib import Path

import nibabel
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage

from dicomnode.errors import InputError

ACQUIRED = "acquired"
ASSUMED = "HAR"
"""Slices towards the head, rows to the front, columns to the right: a NIfTI image stored as "RAS"."""

_OURS = dict(zip("SIARLP", "HFARLP", strict=True))
_TOWARDS = dict(
    zip("HFAPLR", ("the head", "the feet", "the front", "the back", "the left", "the right"), strict=True)
)
_AXES = (frozenset("HF"), frozenset("AP"), frozenset("LR"))


def read(text: str) -> str:
    """Understand ``acquired``, letters such as ``HAR``, or the path of a NIfTI image of the training.

    Returns
    -------
        ``acquired``, or where slice, row and column grow towards.

    Raises
    ------
    InputError
        None of the three, or an image that cannot be read.
    """
    if text.casefold() == ACQUIRED:
        return ACQUIRED
    letters = text.upper()
    if len(letters) == 3 and all(len(axis & set(letters)) == 1 for axis in _AXES):
        return letters
    if Path(text).is_file():
        return of_image(Path(text))
    raise InputError(
        f"{text!r} is no orientation; give {ACQUIRED!r}, three letters such as {ASSUMED} (towards Head or "
        "Feet, Anterior or Posterior, Left or Right; for slice, row and column), or a NIfTI image of the "
        "training"
    )


def of_image(path: Path) -> str:
    """Read from the header of a NIfTI image where slice, row and column grow towards."""
    try:
        image = nibabel.load(path)
    except (ImageFileError, OSError) as error:
        raise InputError(f"{path} is no readable NIfTI image: {error}") from error
    if not isinstance(image, SpatialImage) or len(image.shape) < 3:
        raise InputError(f"{path} is no three-dimensional image")
    codes = nibabel.orientations.aff2axcodes(image.affine)  # type: ignore[no-untyped-call]
    if None in codes:
        raise InputError(f"the header of {path} does not say where its axes point")
    # The file counts (column, row, slice); its axes are named by the patient's own sides.
    return "".join(_OURS[code] for code in reversed(codes))


def in_words(orientation: str) -> str:
    """Say what an orientation means for the images of a site."""
    if orientation == ACQUIRED:
        return "images are taken with slices, rows and columns as they were scanned"
    slices, rows, columns = (_TOWARDS[letter] for letter in orientation)
    return (
        f"every image is first turned so that slices count towards {slices}, rows towards {rows} and columns "
        f"towards {columns}"
    )
