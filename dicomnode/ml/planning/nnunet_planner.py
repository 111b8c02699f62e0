"""Plan as nnU-Net v2 does (Isensee et al. 2021, 2024): the same spacing, patch, network and batch.

Checked against nnunetv2 2.8.1: its ExperimentPlanner and its residual encoder presets M, L and XL.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dicomnode.errors import ConfigError, InputError
from dicomnode.ml.model.architecture import Triple, UNetPlan
from dicomnode.ml.model.plan import (
    ClipAndStandardise,
    Interpolation,
    Normalisation,
    Plan,
    SpacingMm,
    Stage,
    ZScore,
    plan_error,
)
from dicomnode.ml.planning.fingerprint import Fingerprint
from dicomnode.ml.planning.planned import Aim, PlannedTraining, image_extent
from dicomnode.ml.planning.topology import Topology, feature_map_voxels, topology

Vector = NDArray[np.float64]
Order = tuple[int, int, int]
PresetName = Literal["plain", "M", "L", "XL"]

_ANISOTROPY = 3.0
_FEATURES = 32
_MAXIMUM_FEATURES: Mapping[int, int] = MappingProxyType({2: 512, 3: 320})
_FIRST_PATCH: Mapping[int, int] = MappingProxyType({2: 2048, 3: 256})  # edge of a square or cube
_REFERENCE_BATCH: Mapping[int, int] = MappingProxyType({2: 12, 3: 2})
_SMALLEST_BATCH = 2
_LOWRES_BELOW = 0.25  # share of the median image that a patch covers
_LOWRES_STEP = 1.03
_LOWRES_GAIN = 2.0  # the coarser image has at most half of the voxels
_CROPPED_BELOW = 0.75  # share of the voxels that cropping leaves; with less, zeros do not count
_SMALLEST_DEVIATION = 1e-8
_OVERLAP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A family of networks and how much of a GPU they may fill."""

    kind: Literal["plain_conv_unet", "residual_encoder_unet"]
    memory_gb: float  # that the feature maps below stand for
    voxels: Mapping[int, int]  # of feature maps, in two and three dimensions
    first_depths: tuple[int, ...]  # of the encoder; deeper levels have the last
    decoder_depth: int
    dataset_share: float  # of all voxels that one batch may hold
    smallest_batch: Mapping[int, int]  # that the patch is shrunk for


def _residual(*, memory_gb: float, flat: int, solid: int) -> Preset:
    return Preset(
        kind="residual_encoder_unet",
        memory_gb=memory_gb,
        voxels=MappingProxyType({2: flat, 3: solid}),
        first_depths=(1, 3, 4, 6),
        decoder_depth=1,
        dataset_share=1.0,
        smallest_batch=_REFERENCE_BATCH,
    )


PRESETS: Mapping[PresetName, Preset] = MappingProxyType(
    {
        "plain": Preset(
            kind="plain_conv_unet",
            memory_gb=8,
            voxels=MappingProxyType({2: 85_000_000, 3: 560_000_000}),
            first_depths=(2,),
            decoder_depth=2,
            dataset_share=0.05,
            smallest_batch=MappingProxyType({2: _SMALLEST_BATCH, 3: _SMALLEST_BATCH}),
        ),
        "M": _residual(memory_gb=8, flat=135_000_000, solid=680_000_000),
        "L": _residual(memory_gb=24, flat=380_000_000, solid=2_100_000_000),
        "XL": _residual(memory_gb=40, flat=560_000_000, solid=3_600_000_000),
    }
)
"""nnU-Net's default planner and its residual encoder presets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """A voxel grid that images are brought to."""

    spacing_mm: Vector
    shape: tuple[float, ...]  # of the median image
    voxels: float  # of all images together


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """A network that fits into memory."""

    network: UNetPlan
    topology: Topology
    batch_size: int


def plan(
    fingerprint: Fingerprint, aim: Aim, *, preset: PresetName = "plain", memory_gb: float | None = None
) -> tuple[PlannedTraining, ...]:
    """Plan every configuration that nnU-Net would: 2d, 3d_lowres, 3d_fullres and the cascade.

    Images of one slice have 2d only; 3d_lowres and 3d_cascade_fullres come only where a patch of
    3d_fullres is small beside the image.

    Parameters
    ----------
    memory_gb
        GPU memory to plan for; None: that of the preset.

    Raises
    ------
    InputError
        The images are too small for a network with two levels, or have several channels.
    ConfigError
        The memory is too small for the smallest patch.
    ModelFormatError
        The name or the classes are not those that a plan may have.
    """
    if len(fingerprint.foreground_intensity_properties_per_channel) != 1:
        raise InputError("The fingerprint has several channels; models here take one image of one channel.")
    try:
        return tuple(_Planner(fingerprint, aim, PRESETS[preset], memory_gb).configurations())
    except ValidationError as error:
        raise plan_error(error) from error


def target_spacing(fingerprint: Fingerprint) -> Vector:
    """Choose the spacing of the finest grid: the median, and less along an axis that is far coarser.

    An axis is that when its spacing is more than three times that of the next, and it has less than a
    third of the voxels of each other; there the finest tenth of the images decides.
    """
    spacings = fingerprint.spacings_mm
    target: Vector = np.percentile(spacings, 50, 0)
    size = np.percentile(fingerprint.shapes_after_crop, 50, 0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    is_coarse = target[worst] > _ANISOTROPY * target[others].max()
    is_short = size[worst] * _ANISOTROPY < size[others].min()
    if is_coarse and is_short:
        finest = np.percentile(spacings[:, worst], 10)
        target[worst] = finest if finest >= target[others].max() else target[others].max() + 1e-5
    return target


def axis_order(spacing_mm: Vector) -> Order:
    """Put the coarsest axis first; the first of several."""
    coarsest = int(np.argmax(spacing_mm))
    second, third = (axis for axis in range(3) if axis != coarsest)
    return coarsest, second, third


def normalisation(fingerprint: Fingerprint) -> Normalisation:
    """CT has a scale of its own: fixed bounds; all else is standardised image by image."""
    if fingerprint.modalities == ("CT",):
        known = fingerprint.foreground_intensity_properties_per_channel[0]
        return ClipAndStandardise(
            lower=known.percentile_00_5,
            upper=known.percentile_99_5,
            mean=known.mean,
            deviation=max(known.std, _SMALLEST_DEVIATION),
        )
    is_masked = fingerprint.median_relative_size_after_cropping < _CROPPED_BELOW
    return ZScore(over="nonzero_filled" if is_masked else "image")


class _Planner:
    """The course of one planning."""

    def __init__(self, fingerprint: Fingerprint, aim: Aim, preset: Preset, memory_gb: float | None) -> None:
        self._fingerprint, self._aim, self._preset = fingerprint, aim, preset
        self._share = (preset.memory_gb if memory_gb is None else memory_gb) / preset.memory_gb
        spacing = target_spacing(fingerprint)
        self._order = axis_order(spacing)
        shape = fingerprint.median_shape_at(spacing)[list(self._order)]
        self._full = self._grid(spacing[list(self._order)], tuple(shape.tolist()), float(np.prod(shape)))

    def configurations(self) -> Iterator[PlannedTraining]:
        """Plan them in the order in which they are usually tried."""
        full = self._full
        if full.shape[0] != 1:
            fitted = self._fit(full, dimensions=3)
            low = self._lowres(fitted)
            yield self._planned("3d_fullres", [("3d_fullres", full, fitted)], batch_dice=low is not None)
            if low is not None:
                first = ("3d_lowres", *low)
                yield self._planned("3d_lowres", [first], batch_dice=False)
                both = [first, ("3d_cascade_fullres", full, fitted)]
                yield self._planned("3d_cascade_fullres", both, batch_dice=True)
        flat = replace(full, spacing_mm=full.spacing_mm[1:], shape=full.shape[1:])
        yield self._planned("2d", [("2d", flat, self._fit(flat, dimensions=2))], batch_dice=True)

    def _grid(self, spacing_mm: Vector, shape: tuple[float, ...], voxels: float) -> _Grid:
        return _Grid(spacing_mm=spacing_mm, shape=shape, voxels=voxels * len(self._fingerprint.cases))

    def _lowres(self, fullres: _Fitted) -> tuple[_Grid, _Fitted] | None:
        """Coarsen the grid step by step until a patch covers a quarter of the median image."""
        full, fitted = self._full, fullres
        spacing, voxels = full.spacing_mm.copy(), float(np.prod(full.shape))
        grid = full
        while np.prod(fitted.topology.patch) / voxels < _LOWRES_BELOW:
            finer = spacing.max() / spacing > _LOWRES_GAIN
            spacing[finer if finer.any() else slice(None)] *= _LOWRES_STEP
            exact = full.spacing_mm / spacing * np.asarray(full.shape)
            voxels = float(np.prod(exact))
            grid = self._grid(spacing.copy(), tuple(round(size) for size in exact.tolist()), voxels)
            fitted = self._fit(grid, dimensions=3)
        if grid is full or np.prod(full.shape) / voxels < _LOWRES_GAIN:
            return None
        return grid, fitted

    def _fit(self, grid: _Grid, *, dimensions: Literal[2, 3]) -> _Fitted:
        """Shrink the patch, along the axis that covers most of the image, until the network fits."""
        preset, batch = self._preset, _REFERENCE_BATCH[dimensions]
        budget = preset.voxels[dimensions] * self._share
        shape = topology(grid.spacing_mm.tolist(), self._first_patch(grid, dimensions))
        needed = self._voxels(shape, dimensions)
        while needed / batch * preset.smallest_batch[dimensions] > budget:
            shape = _next_smaller(shape, grid)
            needed = self._voxels(shape, dimensions)
        fitting = round(budget / needed * batch)
        covered = round(grid.voxels * preset.dataset_share / float(np.prod(shape.patch)))
        return _Fitted(
            network=self._network(shape, dimensions),
            topology=shape,
            batch_size=max(min(fitting, covered), _SMALLEST_BATCH),
        )

    def _first_patch(self, grid: _Grid, dimensions: int) -> list[float]:
        """A square or cube in millimetres, cut to the median image."""
        density = 1 / grid.spacing_mm
        factor = (_FIRST_PATCH[dimensions] ** dimensions / np.prod(density)) ** (1 / dimensions)
        sizes = (density * factor).tolist()
        return [min(round(size), length) for size, length in zip(sizes, grid.shape, strict=True)]

    def _voxels(self, shape: Topology, dimensions: Literal[2, 3]) -> int:
        """Count as nnU-Net does: one output for each name that dataset.json gives, background included."""
        aim = self._aim
        names = (len(aim.region_classes) + 1 if aim.region_classes else aim.classes) + aim.has_unknown
        network = replace(self._network(shape, dimensions), classes=names)
        return feature_map_voxels(network, (1,) * (3 - dimensions) + shape.patch)

    def _network(self, shape: Topology, dimensions: Literal[2, 3]) -> UNetPlan:
        if shape.levels < 2:
            raise InputError(
                f"The median image has {self._full.shape} voxels; a network with two levels needs at least 8 "
                "along two axes, or 12 along one."
            )
        preset, levels = self._preset, range(shape.levels)
        depths = preset.first_depths
        return UNetPlan(
            kind=preset.kind,
            dimensions=dimensions,
            classes=self._aim.outputs,
            features=tuple(min(_FEATURES * 2**level, _MAXIMUM_FEATURES[dimensions]) for level in levels),
            kernels=_triples(shape.kernels),
            strides=_triples(shape.strides),
            encoder_depths=tuple(depths[min(level, len(depths) - 1)] for level in levels),
            decoder_depths=(preset.decoder_depth,) * (shape.levels - 1),
        )

    def _planned(
        self, name: str, passes: Sequence[tuple[str, _Grid, _Fitted]], *, batch_dice: bool
    ) -> PlannedTraining:
        channels = [1, self._aim.classes]
        stages = tuple(
            self._stage(stage, grid, replace(fitted.network, input_channels=channels[index]), fitted.topology)
            for index, (stage, grid, fitted) in enumerate(passes)
        )
        median = self._full.shape if name == "2d" else passes[-1][1].shape
        return PlannedTraining(
            configuration=name,
            plan=Plan(
                name=self._aim.name,
                modalities=self._fingerprint.modalities,
                orientation=self._fingerprint.orientation,
                axis_order=self._order,
                crop_to_nonzero=True,
                region_classes=self._aim.region_classes,
                stages=stages,
                image_extent=image_extent(self._fingerprint, self._order),
            ),
            batch_size=passes[-1][2].batch_size,
            batch_dice=batch_dice,
            median_shape=(median[0], median[1], median[2]),
        )

    def _stage(self, name: str, grid: _Grid, network: UNetPlan, shape: Topology) -> Stage:
        return Stage(
            name=name,
            spacing_mm=_spacing(grid.spacing_mm),
            patch_shape=_triples([shape.patch])[0],
            normalisation=normalisation(self._fingerprint),
            image_interpolation=Interpolation(order=3, separate="auto", order_across=0),
            score_interpolation=Interpolation(order=1, separate="auto", order_across=0),
            network=network,
            mirror_axes=(1, 2) if network.dimensions == 2 else (0, 1, 2),
            overlap=_OVERLAP,
        )


def _next_smaller(shape: Topology, grid: _Grid) -> Topology:
    """Take one step off the axis that covers most of the median image.

    The step is what the strides of the shorter patch ask for, which may be less than those of this one.
    """
    spacing, patch = grid.spacing_mm.tolist(), list(shape.patch)
    shares = [size / length for size, length in zip(patch, grid.shape, strict=True)]
    axis = max(range(len(shares)), key=lambda one: (shares[one], one))
    shorter = [size - (one == axis) * shape.divisors[axis] for one, size in enumerate(patch)]
    patch[axis] -= topology(spacing, shorter).divisors[axis]
    smaller = topology(spacing, patch)
    if smaller.levels < 2:
        raise ConfigError("there is too little memory for any patch; plan for more with --memory-gb")
    return smaller


def _triples(values: Sequence[tuple[int, ...]]) -> tuple[Triple, ...]:
    """Give sizes along two axes a first one of 1."""
    full = [(1,) * (3 - len(one)) + one for one in values]
    return tuple((one[0], one[1], one[2]) for one in full)


def _spacing(values: Vector) -> SpacingMm:
    triple = [None] * (3 - len(values)) + values.tolist()
    return triple[0], triple[1], triple[2]
