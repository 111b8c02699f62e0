"""Derive the plan of a new model from its training images."""

from collections.abc import Sequence

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydantic import ValidationError

from dicomnode.ml.frame import grid
from dicomnode.ml.model.plan import (
    ImageExtent,
    NetworkPlan,
    Normalisation,
    Plan,
    Triple,
    TripleMm,
    plan_error,
)

ORIENTATION = "HPL"
"""Slices towards the head, rows towards the back, columns towards the left: a common axial image."""
_MAXIMUM_PATCH_VOXELS = 96**3
_SMALLEST_HALVED = 8
_LARGEST_RATIO = 2.0

_Vector = NDArray[np.float64]


def make_plan(
    images: Sequence[Volume],
    *,
    name: str,
    modalities: tuple[str, ...],
    classes: int,
    filters: tuple[int, ...],
    mirror_axes: tuple[int, ...] = (0, 1, 2),
) -> Plan:
    """Plan a model for images of this kind.

    Spacing is the median over the images; the patch covers the median image as far as 96^3 voxels
    allow; an axis is halved from level to level while it is not much coarser than the finest and
    long enough (the rule of nnU-Net, Isensee et al. 2021).

    Parameters
    ----------
    mirror_axes
        Axes of the plan's frame along which training mirrors, and inference averages mirrored passes.

    Raises
    ------
    ModelFormatError
        A name, a count or a size that no plan may have.
    """
    orders = [list(grid.change_towards(image, orientation=ORIENTATION).order) for image in images]
    spacings = np.asarray(
        [np.asarray(image.spacing)[order] for image, order in zip(images, orders, strict=True)]
    )
    shapes = np.asarray([np.asarray(image.shape)[order] for image, order in zip(images, orders, strict=True)])
    spacing, extents = np.median(spacings, axis=0), shapes * spacings
    shape = np.median(extents, axis=0) / spacing
    try:
        network = plan_network(shape, spacing, classes=classes, filters=filters)
        return Plan(
            name=name,
            modalities=modalities,
            orientation=ORIENTATION,
            spacing_mm=_millimetres(spacing),
            patch_shape=patch_shape(shape, network.divisors),
            normalisation=Normalisation(),
            network=network,
            mirror_axes=mirror_axes,
            overlap=0.5,
            image_extent=_extent(extents),
        )
    except ValidationError as error:
        raise plan_error(error) from error


def _extent(extents: _Vector) -> ImageExtent:
    return ImageExtent(
        minimum_mm=_millimetres(extents.min(axis=0)),
        median_mm=_millimetres(np.median(extents, axis=0)),
        maximum_mm=_millimetres(extents.max(axis=0)),
    )


def plan_network(
    shape: _Vector, spacing_mm: _Vector, *, classes: int, filters: tuple[int, ...]
) -> NetworkPlan:
    """Choose kernels and strides, one level for each entry of ``filters``.

    Parameters
    ----------
    shape, spacing_mm
        Of a typical image along (slice, row, column).
    """
    size, spacing = np.asarray(shape, np.float64), np.asarray(spacing_mm, np.float64)
    strides, kernels = [(1, 1, 1)], []
    for _ in filters[1:]:
        fine = spacing / spacing.min() <= _LARGEST_RATIO
        kernels.append(_triple(np.where(fine, 3, 1)))
        step = np.where(fine & (size >= _SMALLEST_HALVED), 2, 1)
        strides.append(_triple(step))
        size, spacing = size / step, spacing * step
    kernels.append((3, 3, 3))
    return NetworkPlan(classes=classes, filters=filters, kernels=tuple(kernels), strides=tuple(strides))


def patch_shape(shape: _Vector, divisors: Triple) -> Triple:
    """Cover an image of this shape in steps of ``divisors``, as far as 96^3 voxels allow."""
    steps = np.asarray(divisors)
    patch = np.ceil(shape / steps).astype(int) * steps
    while patch.prod() > _MAXIMUM_PATCH_VOXELS:
        longest = int(np.argmax(np.where(patch > steps, patch, 0)))
        patch[longest] -= steps[longest]
    return _triple(patch)


def _triple(values: NDArray[np.int_]) -> Triple:
    return int(values[0]), int(values[1]), int(values[2])


def _millimetres(values: _Vector) -> TripleMm:
    first, second, third = np.round(values, 4).tolist()
    return first, second, third
