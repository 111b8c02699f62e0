"""Read a folder of NIfTI images and label maps.

Two layouts are known: ``images/`` with ``labels/``, and ``imagesTr/`` with ``labelsTr/`` as in the
Medical Segmentation Decathlon and nnU-Net, where an image may end in ``_0000``.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from highdicom import Volume
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from dicomnode.errors import GeometryError, InputError, UnsupportedSeriesError

_LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))
_SUFFIXES = (".nii.gz", ".nii")
_AFFINE_TOLERANCE_MM = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """One image with its label map on the same grid."""

    name: str
    image: Volume  # float32
    labels: NDArray[np.uint8]  # class indices, (S, R, K) on the grid of the image
    stratum: str  # kind of intensities: the stored type and the order of magnitude


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSplit:
    """Names of cases by use; the three do not overlap."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    hold_out: tuple[str, ...]


def read_cases(folder: Path, *, classes: int) -> tuple[LabelledCase, ...]:
    """Read every image that has a label map, sorted by name; images without one are left out.

    Parameters
    ----------
    folder
        Holds ``images`` and ``labels``, or ``imagesTr`` and ``labelsTr``.
    classes
        Number of classes with background; label maps hold whole numbers below it.

    Raises
    ------
    InputError
        No layout is found or no pair exists, or a file is unreadable, has other voxels than its
        partner, or holds an unknown label; the message names the file.
    """
    images, labels = _find_layout(folder)
    found = {_case_name(path): path for path in _nifti_files(images)}
    truths = {_case_name(path): path for path in _nifti_files(labels)}
    names = sorted(found.keys() & truths.keys())
    if not names:
        raise InputError(f"No image in {images} has a label map of the same name in {labels}.")
    return tuple(_read_case(name, found[name], truths[name], classes=classes) for name in names)


def read_image(path: Path) -> Volume:
    """Read a three-dimensional NIfTI file as a volume in LPS millimetres; float32.

    Raises
    ------
    UnsupportedSeriesError
        No NIfTI file, or not three-dimensional.
    GeometryError
        The affine is sheared or singular.
    """
    try:
        nifti: Any = nibabel.load(path)
        array = np.asarray(nifti.dataobj, dtype=np.float32)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise UnsupportedSeriesError(f"{path.name} is no readable NIfTI file: {error}.") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise UnsupportedSeriesError(f"{path.name} has the shape {array.shape}; three axes are expected.")
    try:
        return Volume(array, nifti.affine, coordinate_system="PATIENT", from_reference_convention="RAS")
    except ValueError as error:
        raise GeometryError(f"The affine of {path.name} cannot be used: {error}") from error


def split_cases(
    cases: Sequence[LabelledCase],
    *,
    hold_out_fraction: float,
    validation_fraction: float,
    generator: np.random.Generator,
) -> CaseSplit:
    """Split cases by name within each stratum, so that every kind of intensities is on every side.

    The generator alone decides: the same names, strata, fractions and seed give the same split.
    """
    strata: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.name):
        strata[case.stratum].append(case.name)
    training: list[str] = []
    validation: list[str] = []
    hold_out: list[str] = []
    for stratum in sorted(strata):
        names = [str(name) for name in generator.permutation(strata[stratum])]
        first, second = round(len(names) * hold_out_fraction), round(len(names) * validation_fraction)
        hold_out += names[:first]
        validation += names[first : first + second]
        training += names[first + second :]
    return CaseSplit(
        training=tuple(sorted(training)),
        validation=tuple(sorted(validation)),
        hold_out=tuple(sorted(hold_out)),
    )


def _find_layout(folder: Path) -> tuple[Path, Path]:
    for images, labels in _LAYOUTS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    raise InputError(f"{folder} holds neither images/ with labels/ nor imagesTr/ with labelsTr/.")


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.name.endswith(_SUFFIXES) and not path.name.startswith(".")
    )


def _case_name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_0000")


def _read_case(name: str, image_path: Path, labels_path: Path, *, classes: int) -> LabelledCase:
    image, labels = read_image(image_path), read_image(labels_path)
    if image.shape != labels.shape or not np.allclose(image.affine, labels.affine, atol=_AFFINE_TOLERANCE_MM):
        raise GeometryError(f"Image and label map of {name} have different voxel grids.")
    values = np.unique(labels.array)
    if not np.isin(values, np.arange(classes)).all():
        raise UnsupportedSeriesError(
            f"The label map of {name} holds {values[:10].tolist()}; expected are 0 to {classes - 1}."
        )
    stored: Any = nibabel.load(image_path)
    return LabelledCase(
        name=name,
        image=image,
        labels=labels.array.astype(np.uint8),
        stratum=_stratum(str(stored.get_data_dtype()), image),
    )


def _stratum(dtype: str, image: Volume) -> str:
    magnitude = float(np.percentile(np.abs(image.array), 99))
    return f"{dtype}/1e{math.floor(math.log10(magnitude)) if magnitude > 0 else 0}"
