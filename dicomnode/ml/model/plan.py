"""The plan of a model: everything but its weights that decides what the network sees and is.

Kept as ``plan.json``. The network is always built from the plan by this package's own code: a plan
names sizes, never code. Axes are (slice, row, column) in the plan's orientation.
"""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from dicomnode.domain import Sha256
from dicomnode.errors import ModelFormatError
from dicomnode.ml.model.architecture import Axis, NetworkPlan, Triple

Millimetres = Annotated[float, Field(gt=0, le=10_000)]
TripleMm = tuple[Millimetres, Millimetres, Millimetres]
SpacingMm = tuple[Millimetres | None, Millimetres | None, Millimetres | None]
Percent = Annotated[float, Field(ge=0, le=100)]
Order = Literal[0, 1, 2, 3]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class PercentileZScore:
    """Clip between two percentiles of the image, then bring to mean 0 and deviation 1.

    Both percentiles and moments follow any positive affine change of the intensities, so the
    scale and offset of a scanner do not matter.
    """

    method: Literal["percentile_z_score"] = "percentile_z_score"
    lower_percentile: Percent = 0.5
    upper_percentile: Percent = 99.5


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ZScore:
    """Mean 0 and deviation 1 over some voxels of the image; what lies outside the region is left alone.

    ``nonzero`` are the voxels that are not 0; ``nonzero_filled`` those and the holes in them (nnU-Net's
    ``use_mask_for_norm``).
    """

    method: Literal["z_score"] = "z_score"
    over: Literal["image", "nonzero", "nonzero_filled"] = "image"


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ClipAndStandardise:
    """Clip to fixed bounds, subtract a fixed mean, divide by a fixed deviation (nnU-Net for CT)."""

    method: Literal["clip_and_standardise"] = "clip_and_standardise"
    lower: float
    upper: float
    mean: float
    deviation: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ImageRange:
    """Stretch the range of the image to 0..1."""

    method: Literal["image_range"] = "image_range"


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class FixedRange:
    """Map a fixed range of intensities to another, by a straight line."""

    method: Literal["fixed_range"] = "fixed_range"
    source: tuple[float, float]
    target: tuple[float, float] = (0.0, 1.0)
    clip: bool = False

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.source[0] < self.source[1]:
            raise ValueError("the range to map from must go from a lower to a higher intensity")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class AsItIs:
    """Intensities reach the network as they come."""

    method: Literal["none"] = "none"


Normalisation = Annotated[
    PercentileZScore | ZScore | ClipAndStandardise | ImageRange | FixedRange | AsItIs,
    Field(discriminator="method"),
]
"""How intensities reach the network."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Interpolation:
    """How values are brought to another voxel grid: B-splines over the aligned edges of the image.

    The result never leaves the range of its source (of its slice, where the axes are separate).
    """

    order: Order = 1  # 0 nearest, 1 linear, 3 cubic
    separate: Literal["never", "auto", "always"] = "never"
    """Treat the coarsest axis apart; ``auto`` where its spacing, in the image or the network, is more than
    three times the finest (nnU-Net)."""
    order_across: Order = 0  # along the separate axis
    antialias: bool = False  # blur before shrinking, by (factor - 1) / 2 voxels


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Stage:
    """One pass over the image: what the network sees, and the network itself.

    A model has one stage, or two in a cascade, where the second also sees what the first found.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "main"
    spacing_mm: SpacingMm  # null: the spacing of the image stays along this axis
    spacing_tolerance: Annotated[float, Field(ge=0, le=0.1)] = 0.0  # share that the spacing may be off
    patch_shape: Triple
    normalisation: Normalisation
    image_interpolation: Interpolation
    score_interpolation: Interpolation
    network: NetworkPlan
    mirror_axes: tuple[Axis, ...]  # axes whose mirror images are averaged at inference
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of neighbouring patches, at least
    members: Annotated[int, Field(ge=1, le=32)] = 1  # networks (folds) whose scores are averaged

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        if any(size % step for size, step in zip(self.patch_shape, self.network.divisors, strict=True)):
            raise ValueError(f"patch_shape {self.patch_shape} is not divisible by {self.network.divisors}")
        if self.network.dimensions == 2 and self.patch_shape[0] != 1:
            raise ValueError("a two-dimensional network takes patches of one slice")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ImageExtent:
    """Sizes of the training images in mm along the plan's axes."""

    minimum_mm: TripleMm
    median_mm: TripleMm
    maximum_mm: TripleMm


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Plan:
    """What an image becomes before the network, and what the network is."""

    format_version: Literal[2] = 2
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    modalities: tuple[str, ...]  # DICOM Modality values that the training images had
    orientation: Annotated[str, Field(pattern=r"^([LRAPFH]{3}|acquired)$")]
    """Where each index grows towards, as in "HPL"; "acquired": slice, row and column as they were scanned."""
    axis_order: tuple[Axis, Axis, Axis] = (0, 1, 2)
    """Permutation after that: axis i of the network was axis ``axis_order[i]``. The stages count axes so."""
    crop_to_nonzero: bool = False  # leave out the border of zeros before all else
    region_classes: tuple[Annotated[int, Field(ge=1, le=255)], ...] = ()
    """Empty: the outputs exclude each other (softmax). Else output i is a region of its own (sigmoid) and
    paints this class where it is more likely than not, one after the other."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=2)]
    image_extent: ImageExtent | None = None

    @property
    def final(self) -> Stage:
        """The stage whose result counts."""
        return self.stages[-1]

    @property
    def classes(self) -> int:
        """Number of classes of a label map, with background."""
        return max(self.region_classes) + 1 if self.region_classes else self.final.network.classes

    @property
    def networks(self) -> int:
        """Number of networks whose weights the model has."""
        return sum(stage.members for stage in self.stages)

    @model_validator(mode="after")
    def _check_geometry(self) -> Self:
        axes = {frozenset("LR"), frozenset("AP"), frozenset("FH")}
        if self.orientation != "acquired" and {axis for axis in axes if axis & set(self.orientation)} != axes:
            raise ValueError(f"orientation {self.orientation!r} does not name each of L/R, A/P and F/H once")
        if sorted(self.axis_order) != [0, 1, 2]:
            raise ValueError(f"axis_order {self.axis_order} does not name each axis once")
        return self

    @model_validator(mode="after")
    def _check_outputs(self) -> Self:
        if self.region_classes and len(self.region_classes) != self.final.network.classes:
            raise ValueError("region_classes needs one class for each output of the network")
        if not self.region_classes and self.final.network.classes < 2:
            raise ValueError(
                "a network whose outputs exclude each other needs two of them, background included"
            )
        wanted = [1, 1 + (self.classes - 1)][: len(self.stages)]
        if [stage.network.input_channels for stage in self.stages] != wanted:
            raise ValueError(f"the stages take {wanted} channels: the image, and what the stage before found")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class PlanFile:
    """``plan.json``: the plan together with the digest of the weights that belong to it."""

    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    plan: Plan


_PLAN_FILE = TypeAdapter(PlanFile)
_PLAN = TypeAdapter(Plan)


def parse(text: str | bytes) -> PlanFile:
    """Read ``plan.json``.

    Raises
    ------
    ModelFormatError
        No JSON, an unknown or lacking key, or a value out of range; the message names the first.
    """
    try:
        return _PLAN_FILE.validate_json(text)
    except ValidationError as error:
        raise plan_error(error) from error


def plan_error(error: ValidationError) -> ModelFormatError:
    """Say in one line what is wrong with a plan: the first fault and where it is."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return ModelFormatError(f"The plan of the model is wrong at {where}: {first['msg']}.")


def render(file: PlanFile) -> str:
    """Write ``plan.json`` for human eyes: one key a line, lists of numbers on one line."""
    return _render_value(_PLAN_FILE.dump_python(file, mode="json"), indent=0) + "\n"


def architecture_sha256(plan: Plan) -> Sha256:
    """Identify what must agree before weights of two models may be averaged.

    Covers for each stage the network, voxel spacing, normalisation and number of networks, and the order and
    direction of the axes: equal names and shapes alone do not show a different stride or resolution.
    """
    entries: dict[str, object] = _PLAN.dump_python(plan, mode="json")
    stages: list[dict[str, object]] = _STAGES.dump_python(plan.stages, mode="json")
    kept = {key: entries[key] for key in ("orientation", "axis_order", "region_classes")} | {
        "stages": [
            {key: stage[key] for key in ("network", "spacing_mm", "normalisation", "members")}
            for stage in stages
        ]
    }
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return Sha256(hashlib.sha256(canonical.encode()).hexdigest())


_STAGES = TypeAdapter(tuple[Stage, ...])


def _render_value(value: object, *, indent: int) -> str:
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        lines = [
            f"{inner}{json.dumps(key)}: {_render_value(item, indent=indent + 2)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [inner + _render_value(item, indent=indent + 2) for item in value]
        return "[\n" + ",\n".join(items) + "\n" + " " * indent + "]"
    return json.dumps(value)
