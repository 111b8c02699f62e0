"""Plan as Dante does (arXiv 2605.03602): a DynUNet, its patch from bytes per voxel, for a GPU or without one.

Its rules are kept; what went wrong in them is not: the spacing is not rounded to half precision, a patch is
divisible by the strides and never larger than the image, images are counted at one spacing, and a plan is
checked against the predicted memory before it is given out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dicomnode.errors import ConfigError, InputError
from dicomnode.ml.model.architecture import DynUNetPlan, Triple
from dicomnode.ml.model.plan import Interpolation, Plan, Stage, ZScore, plan_error
from dicomnode.ml.planning import memory
from dicomnode.ml.planning.fingerprint import Fingerprint
from dicomnode.ml.planning.planned import Aim, PlannedTraining, image_extent

Vector = NDArray[np.float64]

CONFIGURATION = "3d_fullres"
_GIB = 2**30
_USABLE = 0.8  # of the GPU memory, less what CUDA itself takes
_CUDA_BYTES = 500 * 2**20
_BYTES_PER_VOXEL = 5500
_BATCHES = (2, 8)
_CPU_PATCH = (32.0, 128.0, 128.0)
_FIRST_FILTERS, _MAXIMUM_FILTERS = 32, 320
_LEVELS = (3, 8)  # that a DynUNet may have
_LARGEST_RATIO = 2.0
_SMALLEST_HALVED = 8
_SAFE = 0.9  # share of the GPU memory that the prediction may reach
_OVERLAP = 0.25


def plan(fingerprint: Fingerprint, aim: Aim, *, memory_gb: float | None) -> PlannedTraining:
    """Plan a model.

    Parameters
    ----------
    memory_gb
        GPU memory to plan for; None: there is no GPU.

    Raises
    ------
    InputError
        The images are too small, or their labels overlap.
    ConfigError
        The memory is too small for the smallest patch.
    ModelFormatError
        The name or the classes are not those that a plan may have.
    """
    if aim.region_classes:
        raise InputError("Dante's rules are for labels that exclude each other, not for regions.")
    spacing: Vector = np.median(fingerprint.spacings_mm, axis=0)
    shape = fingerprint.median_shape_at(spacing)
    size, batch_size = _first_patch(shape, memory_gb)
    try:
        network = _network(size, spacing, classes=aim.classes)
        patch = _rounded_down(size, network.divisors)
        if memory_gb is not None:
            patch, batch_size = _shrunk(network, patch, batch_size, shape=shape, memory_gb=memory_gb)
        return PlannedTraining(
            configuration=CONFIGURATION,
            plan=_plan(fingerprint, aim, spacing, network, patch),
            batch_size=batch_size,
            batch_dice=False,
            median_shape=(float(shape[0]), float(shape[1]), float(shape[2])),
        )
    except ValidationError as error:
        raise plan_error(error) from error


def _first_patch(shape: Vector, memory_gb: float | None) -> tuple[Vector, int]:
    """Cover the median image as far as memory allows; the room that is left makes the batch larger."""
    fewest, most = _BATCHES
    if memory_gb is None:
        return np.minimum(shape, _CPU_PATCH), fewest
    usable = _USABLE * memory_gb * _GIB - _CUDA_BYTES
    if usable <= 0:
        raise ConfigError(f"{memory_gb:g} GB are too little for any patch; plan for more with --memory-gb")
    voxels, budget = float(np.prod(shape)), usable / (_BYTES_PER_VOXEL * fewest)
    if voxels > budget:
        return shape * (budget / voxels) ** (1 / 3), fewest
    return shape, int(np.clip(usable // (voxels * _BYTES_PER_VOXEL), fewest, most))


def _network(size: Vector, spacing_mm: Vector, *, classes: int) -> DynUNetPlan:
    """Halve each axis that is at most twice as coarse as the finest and long enough, until none is left."""
    length, spacing = size.copy(), spacing_mm.copy()
    strides, kernels = [(1, 1, 1)], []
    while len(strides) < _LEVELS[1]:
        is_fine = spacing / spacing.min() <= _LARGEST_RATIO
        step = np.where(is_fine & (length >= _SMALLEST_HALVED), 2, 1)
        if step.max() == 1:
            break
        kernels.append(_triple(np.where(is_fine, 3, 1)))
        strides.append(_triple(step))
        length, spacing = length / step, spacing * step
    if len(strides) < _LEVELS[0]:
        voxels = " x ".join(f"{edge:.0f}" for edge in size)
        raise InputError(
            f"A patch of {voxels} voxels is too small for three levels; it takes larger images or memory."
        )
    kernels.append((3, 3, 3))
    filters = (min(_FIRST_FILTERS * 2**level, _MAXIMUM_FILTERS) for level in range(len(strides)))
    return DynUNetPlan(
        classes=classes, filters=tuple(filters), kernels=tuple(kernels), strides=tuple(strides), residual=True
    )


def _rounded_down(size: Vector, divisors: Triple) -> Triple:
    steps = np.asarray(divisors)
    return _triple(np.maximum(size // steps, 1).astype(int) * steps)


def _shrunk(
    network: DynUNetPlan, patch: Triple, batch_size: int, *, shape: Vector, memory_gb: float
) -> tuple[Triple, int]:
    """Take samples from the batch, then steps from the patch, until the predicted memory is there."""
    while True:
        needed = memory.training_bytes(network, patch, device="cuda", batch_size=batch_size)
        if needed <= _SAFE * memory_gb * _GIB:
            return patch, batch_size
        if batch_size > _BATCHES[0]:
            batch_size -= 1
            continue
        steps = network.divisors
        longer = [axis for axis in range(3) if patch[axis] > steps[axis]]
        if not longer:
            raise ConfigError(f"{memory_gb:g} GB are too little for the smallest patch; plan for more")
        axis = max(longer, key=lambda one: patch[one] / shape[one])
        patch = _triple([size - steps[axis] * (one == axis) for one, size in enumerate(patch)])


def _plan(
    fingerprint: Fingerprint, aim: Aim, spacing_mm: Vector, network: DynUNetPlan, patch: Triple
) -> Plan:
    stage = Stage(
        name=CONFIGURATION,
        spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])),
        patch_shape=patch,
        normalisation=ZScore(over="nonzero"),
        image_interpolation=Interpolation(order=3, separate="auto", order_across=1),
        score_interpolation=Interpolation(order=1),
        network=network,
        mirror_axes=(),
        overlap=_OVERLAP,
    )
    return Plan(
        name=aim.name,
        modalities=fingerprint.modalities,
        orientation=fingerprint.orientation,
        crop_to_nonzero=True,
        stages=(stage,),
        image_extent=image_extent(fingerprint, (0, 1, 2)),
    )


def _triple(values: Sequence[int] | NDArray[np.int_]) -> Triple:
    return int(values[0]), int(values[1]), int(values[2])
