"""Label maps in NIfTI files: which belong together, whether they lie on one grid, and their voxels."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from dicomnode.errors import GeometryError, InputError, UnsupportedSeriesError
from dicomnode.ml.evaluation.measures import LabelMap

SUFFIXES = (".nii.gz", ".nii")
LARGEST_VALUE = 65535
GRID_TOLERANCE = 0.1
"""Corner voxels of two maps may lie so far apart, as a share of the smallest spacing."""
_SHEAR_TOLERANCE = 1e-3
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)
"""What nibabel and the decompression raise over damaged files."""
_ROLE = re.compile(
    r"[_-](label|labels|labelmap|seg|segmentation|mask|gt|truth|pred|prediction)$", re.IGNORECASE
)
_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two files of one case."""

    case_id: str
    prediction: Path
    truth: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """What belongs together in two folders, sorted by case, and what is left over."""

    pairs: tuple[Pair, ...]
    without_prediction: tuple[str, ...]  # names of files of the truth
    without_truth: tuple[str, ...]  # names of predicted files


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLabels:
    """The voxels of one label map, and where they lie."""

    array: LabelMap  # uint8 or uint16; three axes as in the file, the third of one voxel in a plane image
    affine: NDArray[np.float64]  # voxel index to RAS mm

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between voxel centres along each axis."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))


def find_pairs(predictions: Path, truth: Path) -> Pairing:
    """Say which files of two folders belong together; two files belong together as they are.

    A case is named by its file without ``.nii`` or ``.nii.gz``. Files of the same name belong together;
    of the rest, those that differ only in an ending such as ``_label``, ``_seg`` or ``_pred``. Images of a
    case that lie beside its label map, such as ``case_0000.nii.gz``, are passed over.

    Raises
    ------
    InputError
        Nothing belongs together, two files would have the same name, or only one path is a file.
    """
    if predictions.is_file() and truth.is_file():
        pair = Pair(case_id=_name(truth), prediction=predictions, truth=truth)
        return Pairing(pairs=(pair,), without_prediction=(), without_truth=())
    if not (predictions.is_dir() and truth.is_dir()):
        raise InputError(f"{predictions} and {truth} must both be folders, or both be files.")
    found, wanted = _named_files(predictions), _named_files(truth)
    pairs = [Pair(case_id=name, prediction=found[name], truth=wanted[name]) for name in found.keys() & wanted]
    paired = {pair.case_id for pair in pairs}
    found, wanted = (_bare(files, without=paired) for files in (found, wanted))
    rest = found.keys() & wanted.keys()
    pairs += [Pair(case_id=name, prediction=found[name], truth=wanted[name]) for name in rest]
    if not pairs:
        raise InputError(
            f"No label map in {predictions} has the name of one in {truth}; files end in .nii.gz or .nii, "
            f"and a prediction is named as its truth, such as case_7.nii.gz."
        )
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.case_id)),
        without_prediction=tuple(sorted(wanted[name].name for name in wanted.keys() - rest)),
        without_truth=tuple(sorted(found[name].name for name in found.keys() - rest)),
    )


def check_grid(pair: Pair) -> None:
    """Compare the headers of two files, without reading their voxels.

    Raises
    ------
    UnsupportedSeriesError
        A file cannot be read.
    GeometryError
        The files do not lie on one grid; the message names both.
    """
    prediction, truth = (_placed_header(path) for path in (pair.prediction, pair.truth))
    _turned(prediction, truth, pair)


def read_pair(pair: Pair) -> tuple[LabelMap, LabelMap, tuple[float, ...]]:
    """Read prediction and truth on the grid of the truth, and its spacing in mm.

    A prediction whose voxels are the same but whose axes are stored in another order or direction is turned.

    Raises
    ------
    UnsupportedSeriesError
        A file cannot be read, or holds something other than whole numbers from 0 to 65535.
    GeometryError
        The files do not lie on one grid, or the grid is sheared.
    """
    prediction, truth = (read_labels(path) for path in (pair.prediction, pair.truth))
    turned = _turned(prediction, truth, pair)
    # Axes in reverse lie in memory in their own order, which is several times as quick.
    return turned.array.T, truth.array.T, truth.spacing_mm[::-1]


def read_labels(path: Path) -> PlacedLabels:
    """Read one label map; see :func:`read_pair` for the errors."""
    header = _placed_header(path)
    try:
        stored: Any = nibabel.load(path)
        voxels = np.asanyarray(stored.dataobj).reshape(header.array.shape)
    except _UNREADABLE as error:
        raise UnsupportedSeriesError(f"{path} is no readable NIfTI file: {error}.") from error
    return replace(header, array=_whole_numbers(voxels, path))


def _placed_header(path: Path) -> PlacedLabels:
    """What the header says; the voxels are a stand-in that takes no memory."""
    try:
        stored: Any = nibabel.load(path)
    except _UNREADABLE as error:
        raise UnsupportedSeriesError(f"{path} is no readable NIfTI file: {error}.") from error
    shape = tuple(map(int, stored.shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise UnsupportedSeriesError(f"{path} has the shape {shape}; two or three axes are expected.")
    shape += (1,) * (3 - len(shape))
    affine = np.asarray(stored.affine, np.float64)
    _check_affine(affine, path)
    return PlacedLabels(array=np.broadcast_to(np.uint8(0), shape), affine=affine)


def _check_affine(affine: NDArray[np.float64], path: Path) -> None:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        raise GeometryError(
            f"The affine of {path} is singular; distances in mm need the spacing of the voxels."
        )
    cosines = (affine[:3, :3] / lengths).T @ (affine[:3, :3] / lengths)
    if np.abs(cosines - np.eye(3)).max() > _SHEAR_TOLERANCE:
        raise GeometryError(
            f"The axes of {path} are not at right angles; resample it to a regular grid first."
        )


def _whole_numbers(voxels: NDArray[Any], path: Path) -> LabelMap:
    if voxels.dtype.kind not in "biuf":
        raise UnsupportedSeriesError(f"{path} holds {voxels.dtype}; a label map holds whole numbers.")
    lowest, highest = voxels.min(), voxels.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)) or lowest < 0 or highest > LARGEST_VALUE:
        raise UnsupportedSeriesError(
            f"{path} holds values from {lowest} to {highest}; a label map holds 0 to {LARGEST_VALUE}."
        )
    labels: LabelMap = voxels.astype(np.uint8 if highest < 256 else np.uint16, copy=False)
    if voxels.dtype.kind == "f" and not np.array_equal(labels, voxels):
        raise UnsupportedSeriesError(f"{path} holds broken numbers; a label map holds whole ones.")
    return labels


def _turned(prediction: PlacedLabels, truth: PlacedLabels, pair: Pair) -> PlacedLabels:
    """Put the axes of a prediction into the order and direction of the truth."""
    if not _is_one_grid(prediction, truth):
        stored, wanted = (io_orientation(side.affine) for side in (prediction, truth))  # type: ignore[no-untyped-call]
        axes = ornt_transform(stored, wanted)  # type: ignore[no-untyped-call]
        affine = prediction.affine @ inv_ornt_aff(axes, prediction.array.shape)  # type: ignore[no-untyped-call]
        array = apply_orientation(prediction.array, axes)  # type: ignore[no-untyped-call]
        prediction = PlacedLabels(array=array, affine=affine)
    if not _is_one_grid(prediction, truth):
        raise GeometryError(
            f"{pair.prediction} lies on another grid ({_in_words(prediction)}) than {pair.truth} "
            f"({_in_words(truth)}); predict on the original image, or resample one to the other first."
        )
    return prediction


def _is_one_grid(one: PlacedLabels, other: PlacedLabels) -> bool:
    if one.array.shape != other.array.shape:
        return False
    ends = [(0, length - 1) for length in other.array.shape]
    corners = np.stack(np.meshgrid(*ends, [1]), axis=-1).reshape(-1, 4)
    apart = np.linalg.norm(corners @ (one.affine - other.affine).T, axis=1).max()
    return bool(apart <= GRID_TOLERANCE * min(other.spacing_mm))


def _in_words(labels: PlacedLabels) -> str:
    shape = " x ".join(map(str, labels.array.shape))
    spacing = " x ".join(f"{length:.4g}" for length in labels.spacing_mm)
    first = ", ".join(f"{value:.2f}" for value in labels.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm, the first at {first}"


def _named_files(folder: Path) -> dict[str, Path]:
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)]
    return _unique([(_name(path), path) for path in files if not path.name.startswith(".")])


def _bare(files: dict[str, Path], *, without: set[str]) -> dict[str, Path]:
    """Name the other files less their ending; images of a case that lie beside its label map are left out."""
    bare = _unique([(_ROLE.sub("", name), path) for name, path in files.items() if name not in without])
    return {
        name: path for name, path in bare.items() if _CHANNEL.sub("", name) not in {*bare, *without} - {name}
    }


def _unique(named: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for name, path in named:
        if name in files:
            raise InputError(
                f"{files[name]} and {path} would both be the label map of {name}; keep one of them."
            )
        files[name] = path
    return files


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
