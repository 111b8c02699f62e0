"""The fingerprint of a collection of labelled images: all that a planner needs to know of it.

The keys are those of nnU-Net's ``dataset_fingerprint.json``, which is read too. Sites of a federation can
put theirs together from them: numbers of cases, moments and extremes of the foreground.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from dicomnode.errors import InputError, UnsupportedSeriesError
from dicomnode.ml.frame import grid, intensities
from dicomnode.ml.planning.readable import render_json
from dicomnode.ml.planning.sample import Sample

Voxels = Annotated[int, Field(ge=1)]
Shape = tuple[Voxels, Voxels, Voxels]
Millimetres = Annotated[float, Field(gt=0)]
TripleMm = tuple[Millimetres, Millimetres, Millimetres]

SAMPLED_VOXELS = 10**8
"""Foreground voxels that are drawn from all cases together, the same number from each (nnU-Net)."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class CaseSize:
    """Size of one image along the axes of the fingerprint."""

    shape: Shape
    shape_after_crop: Shape  # without the border of zeros
    spacing_mm: TripleMm


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ForegroundIntensities:
    """Intensities where a label is above 0, over a sample of the voxels of all cases."""

    mean: float
    median: float
    std: Annotated[float, Field(ge=0)]
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float
    voxels: Annotated[int, Field(ge=0)] = 0  # drawn; 0: not known


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Fingerprint:
    """What a collection of labelled images is like."""

    format_version: Literal[1] = 1
    orientation: Annotated[str, Field(pattern=r"^([LRAPFH]{3}|acquired)$")]
    """Where the three axes grow towards; see ``Plan.orientation``."""
    modalities: Annotated[tuple[str, ...], Field(min_length=1)]  # DICOM Modality values
    median_relative_size_after_cropping: Annotated[float, Field(gt=0, le=1)]
    foreground_intensity_properties_per_channel: Annotated[
        tuple[ForegroundIntensities, ...], Field(min_length=1)
    ]
    cases: Annotated[tuple[CaseSize, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        for index, case in enumerate(self.cases):
            if any(after > before for after, before in zip(case.shape_after_crop, case.shape, strict=True)):
                raise ValueError(f"case {index} is larger after cropping than before")
        return self

    @property
    def spacings_mm(self) -> NDArray[np.float64]:
        """Distances between voxels, (cases, 3)."""
        return np.asarray([case.spacing_mm for case in self.cases], np.float64)

    @property
    def shapes_after_crop(self) -> NDArray[np.int64]:
        """Voxels along each axis, without the border of zeros, (cases, 3)."""
        return np.asarray([case.shape_after_crop for case in self.cases], np.int64)

    def median_shape_at(self, spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Voxels of the median image at another spacing, each image rounded to whole voxels, (3,)."""
        pairs = zip(self.spacings_mm, self.shapes_after_crop, strict=True)
        shapes = [np.round(spacing / spacing_mm * shape) for spacing, shape in pairs]
        median: NDArray[np.float64] = np.median(shapes, 0)
        return median

    @property
    def extents_mm(self) -> NDArray[np.float64]:
        """Sizes of the whole images, (cases, 3)."""
        return np.asarray([case.shape for case in self.cases]) * self.spacings_mm


def measure(
    cases: Iterable[tuple[Volume, NDArray[np.uint8]]],
    *,
    count: int,
    orientation: str,
    modalities: tuple[str, ...],
    sampled_voxels: int = SAMPLED_VOXELS,
) -> Fingerprint:
    """Measure labelled images, one after the other; none is kept longer than until the next is there.

    Parameters
    ----------
    cases
        Images in modality units and their labels (0 background) on the same grid, in any order.
    count
        How many cases will come.
    orientation
        Along which axes images are measured: three letters or ``acquired``, see ``Plan.orientation``.
    modalities
        DICOM Modality values of the images.
    sampled_voxels
        Foreground voxels that are drawn from all cases together.

    Raises
    ------
    InputError
        An image cannot be measured, another number of cases came, or no label is above 0.
    """
    if count < 1:
        raise InputError("A fingerprint needs at least one labelled image.")
    sizes: list[CaseSize] = []
    sample = Sample()
    for number, (image, labels) in enumerate(cases, start=1):
        _check(image, labels, f"Image {number} of {count}")
        sizes.append(_measure_case(image, labels, orientation, sample, sampled_voxels // count))
    if len(sizes) != count:
        raise InputError(f"{len(sizes)} labelled images came where {count} were announced.")
    if sample.size == 0:
        raise InputError("No image has a voxel with a label above 0; the foreground cannot be measured.")
    kept = [np.prod(case.shape_after_crop) / np.prod(case.shape) for case in sizes]
    return Fingerprint(
        orientation=orientation,
        modalities=modalities,
        median_relative_size_after_cropping=float(np.median(kept)),
        foreground_intensity_properties_per_channel=(_foreground(sample),),
        cases=tuple(sizes),
    )


def stored_orientation(image: Volume) -> str:
    """Say where slices, rows and columns of a NIfTI file grow towards, so that its axes stay as they are.

    The file counts (column, row, slice), and so does its volume here; nnU-Net sees the reverse.
    """
    return "".join(direction.value for direction in reversed(image.get_closest_patient_orientation()))


def parse(text: str | bytes) -> Fingerprint:
    """Read a fingerprint that :func:`render` wrote.

    Raises
    ------
    InputError
        No JSON, an unknown or lacking key, or a value out of range; the message names the first.
    """
    try:
        return _FINGERPRINT.validate_json(text)
    except ValidationError as error:
        raise InputError(f"The fingerprint is wrong at {_first(error)}") from error


def parse_nnunet(text: str | bytes, *, orientation: str, modalities: tuple[str, ...]) -> Fingerprint:
    """Read nnU-Net's ``dataset_fingerprint.json``, which says neither where axes point nor the modality.

    Sizes before cropping are not in it: those after cropping stand in for them.

    Raises
    ------
    InputError
        No fingerprint of nnU-Net v2.
    """
    try:
        found = _NNUNET.validate_json(text)
        sizes = zip(found.shapes_after_crop, found.spacings, strict=True)
        return Fingerprint(
            orientation=orientation,
            modalities=modalities,
            median_relative_size_after_cropping=found.median_relative_size_after_cropping,
            foreground_intensity_properties_per_channel=tuple(
                found.foreground_intensity_properties_per_channel.values()
            ),
            cases=tuple(
                CaseSize(shape=shape, shape_after_crop=shape, spacing_mm=spacing) for shape, spacing in sizes
            ),
        )
    except ValidationError as error:
        raise InputError(f"The fingerprint of nnU-Net is wrong at {_first(error)}") from error
    except ValueError as error:
        raise InputError("The fingerprint of nnU-Net has not one spacing for each shape.") from error


def render(fingerprint: Fingerprint) -> str:
    """Write a fingerprint as JSON for human eyes: one case a line."""
    return render_json(json.loads(_FINGERPRINT.dump_json(fingerprint))) + "\n"


def _check(image: Volume, labels: NDArray[np.uint8], what: str) -> None:
    if image.array.ndim != 3 or image.array.shape != labels.shape:
        raise InputError(
            f"{what} has {image.array.shape} voxels and {labels.shape} labels; both need the same three axes."
        )
    if not np.isfinite([image.array.min(), image.array.max()]).all():
        raise UnsupportedSeriesError(f"{what} has voxels that are NaN or infinite.")


def _measure_case(
    image: Volume, labels: NDArray[np.uint8], orientation: str, sample: Sample, count: int
) -> CaseSize:
    change = grid.change_towards(image, orientation=orientation)
    oriented = change.apply(image.array)
    box = intensities.nonzero_box(oriented)
    cropped = oriented[box]
    foreground = cropped[change.apply(labels)[box] > 0]
    sample.draw(foreground.astype(np.float32, copy=False), count)
    spacing = [float(image.spacing[axis]) for axis in change.order]
    return CaseSize(
        shape=_triple(oriented.shape),
        shape_after_crop=_triple(cropped.shape),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def _foreground(sample: Sample) -> ForegroundIntensities:
    low, median, high = sample.percentiles((0.5, 50.0, 99.5))
    mean, deviation = sample.moments()
    smallest, largest = sample.range
    return ForegroundIntensities(
        mean=mean,
        median=median,
        std=deviation,
        min=smallest,
        max=largest,
        percentile_00_5=low,
        percentile_99_5=high,
        voxels=sample.size,
    )


def _triple(shape: tuple[int, ...]) -> Shape:
    return shape[0], shape[1], shape[2]


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg']}."


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore", allow_inf_nan=False))
class _NnunetFile:
    foreground_intensity_properties_per_channel: dict[str, ForegroundIntensities]
    median_relative_size_after_cropping: float
    shapes_after_crop: list[Shape]
    spacings: list[TripleMm]


_FINGERPRINT = TypeAdapter(Fingerprint)
_NNUNET = TypeAdapter(_NnunetFile)
