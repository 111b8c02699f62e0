"""Labelled images in a folder of NIfTI files: which there are, and each of them when it is wanted.

Three layouts are known: ``images/`` with ``labels/``; ``imagesTr/`` with ``labelsTr/`` as in the Medical
Segmentation Decathlon; and the raw folders of nnU-Net v2, where images end in ``_0000`` and ``dataset.json``
says what the labels are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from highdicom import Volume
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from dicomnode.errors import GeometryError, InputError, UnsupportedSeriesError
from dicomnode.ml.training.raw_dataset import RawDataset, read_raw

IGNORED = 255
"""Stands in a label map where the truth is not known: such voxels teach nothing and are not judged."""

_LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))
_SUFFIXES = (".nii.gz", ".nii")
_AFFINE_TOLERANCE_MM = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """One image with its label map on the same grid."""

    name: str
    image: Volume  # float32
    labels: NDArray[np.uint8]  # class indices or IGNORED, (S, R, K) on the grid of the image
    stratum: str  # kind of intensities: the stored type and the order of magnitude


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSource:
    """A labelled image that is read when it is wanted, so that a large collection needs little memory."""

    name: str  # unique, and fit for the name of a folder
    version: str  # another one when the image or its labels have changed
    read: Callable[[], LabelledCase]
    patient: str = ""  # cases of one patient stay on one side; empty: a patient of its own
    is_hold_out: bool | None = None  # a side that was fixed before; None: drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFolder:
    """What a folder holds."""

    cases: tuple[CaseSource, ...]  # by name
    raw: RawDataset | None  # from dataset.json, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    name: str
    image: Path
    labels: Path


def open_folder(folder: Path, *, classes: int) -> LabelledFolder:
    """Find every image that has a label map; images without one are left out.

    Parameters
    ----------
    folder
        Holds ``images`` and ``labels``, or ``imagesTr`` and ``labelsTr``.
    classes
        Number of classes with background; label maps hold whole numbers below it, and the number that
        dataset.json calls ``ignore``.

    Raises
    ------
    InputError
        No layout is found, no pair exists, or dataset.json speaks of other classes, of several channels or of
        another kind of file. What is wrong inside a file is found when the case is read.
    """
    raw = read_raw(folder / "dataset.json", classes=classes)
    images, labels = _find_layout(folder)
    found = _named(images)
    truths = _named(labels)
    names = sorted(found.keys() & truths.keys())
    if not names:
        raise InputError(f"No image in {images} has a label map of the same name in {labels}.")
    ignored = raw.ignored if raw is not None else None
    return LabelledFolder(
        cases=tuple(
            _source(_Files(name=name, image=found[name], labels=truths[name]), classes, ignored)
            for name in names
        ),
        raw=raw,
    )


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


def stratum(dtype: str, array: NDArray[np.float32]) -> str:
    """Say of what kind intensities are: their type on disk and the order of magnitude of the bright ones."""
    magnitude = float(np.percentile(np.abs(array), 99))
    return f"{dtype}/1e{math.floor(math.log10(magnitude)) if magnitude > 0 else 0}"


def _find_layout(folder: Path) -> tuple[Path, Path]:
    for images, labels in _LAYOUTS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    raise InputError(f"{folder} holds neither images/ with labels/ nor imagesTr/ with labelsTr/.")


def _named(folder: Path) -> Mapping[str, Path]:
    files = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES))
    return {_case_name(path): path for path in files if not path.name.startswith(".")}


def _case_name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_0000")


def _source(files: _Files, classes: int, ignored: int | None) -> CaseSource:
    stats = [path.stat() for path in (files.image, files.labels)]
    return CaseSource(
        name=files.name,
        version=" ".join(f"{stat.st_size}/{stat.st_mtime_ns}" for stat in stats),
        read=partial(_read_case, files, classes, ignored),
    )


def _read_case(files: _Files, classes: int, ignored: int | None) -> LabelledCase:
    image, labels = read_image(files.image), read_image(files.labels)
    if image.shape != labels.shape or not np.allclose(image.affine, labels.affine, atol=_AFFINE_TOLERANCE_MM):
        raise GeometryError(f"Image and label map of {files.name} have different voxel grids.")
    values = np.unique(labels.array)
    known = [*range(classes), *([] if ignored is None else [ignored])]
    if not np.isin(values, known).all():
        raise UnsupportedSeriesError(
            f"The label map of {files.name} holds {values[:10].tolist()}; expected are 0 to {classes - 1}"
            + (f" and {ignored}, which means unknown." if ignored is not None else ".")
        )
    truth = labels.array.astype(np.uint8)
    if ignored is not None:
        truth[labels.array == ignored] = IGNORED
    stored: Any = nibabel.load(files.image)
    return LabelledCase(
        name=files.name,
        image=image,
        labels=truth,
        stratum=stratum(str(stored.get_data_dtype()), image.array),
    )
