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

Size = Annotated[int, Field(ge=1, le=4096)]
Millimetres = Annotated[float, Field(gt=0, le=10_000)]
Triple = tuple[Size, Size, Size]
TripleMm = tuple[Millimetres, Millimetres, Millimetres]
Axis = Annotated[int, Field(ge=0, le=2)]
Percent = Annotated[float, Field(ge=0, le=100)]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Normalisation:
    """How intensities reach the network: clip between two percentiles, then z-score, per image.

    Both percentiles and moments follow any positive affine change of the intensities, so the
    scale and offset of a scanner do not matter.
    """

    method: Literal["percentile_z_score"] = "percentile_z_score"
    lower_percentile: Percent = 0.5
    upper_percentile: Percent = 99.5


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class NetworkPlan:
    """A U-Net with one entry per resolution level, the finest first."""

    kind: Literal["dynunet"] = "dynunet"
    classes: Annotated[int, Field(ge=2, le=256)]  # with background
    filters: tuple[Annotated[int, Field(ge=1, le=1024)], ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]  # the first is (1, 1, 1) by rule
    norm: Literal["instance"] = "instance"  # affine; no running statistics
    residual: bool = False

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if not 3 <= len(self.filters) <= 8 or not len(self.filters) == len(self.kernels) == len(self.strides):
            raise ValueError("filters, kernels and strides need one entry for each of 3 to 8 levels")
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the first stride must be (1, 1, 1): results are wanted at full resolution")
        return self

    @property
    def divisors(self) -> Triple:
        """What each axis of a patch must be divisible by: the product of its strides."""
        products = [1, 1, 1]
        for stride in self.strides:
            products = [product * step for product, step in zip(products, stride, strict=True)]
        return products[0], products[1], products[2]


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ImageExtent:
    """Sizes of the training images in mm along the plan's axes."""

    minimum_mm: TripleMm
    median_mm: TripleMm
    maximum_mm: TripleMm


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Plan:
    """What an image becomes before the network, and what the network is."""

    format_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    modalities: tuple[str, ...]  # DICOM Modality values that the training images had
    orientation: Annotated[
        str, Field(pattern=r"^[LRAPFH]{3}$")
    ]  # where each index grows towards, as in "HPL"
    spacing_mm: TripleMm
    patch_shape: Triple
    normalisation: Normalisation
    network: NetworkPlan
    mirror_axes: tuple[Axis, ...]  # axes whose mirror images are averaged at inference
    overlap: Annotated[float, Field(ge=0, lt=1)]  # of neighbouring patches
    image_extent: ImageExtent

    @model_validator(mode="after")
    def _check_geometry(self) -> Self:
        axes = {frozenset("LR"), frozenset("AP"), frozenset("FH")}
        if {axis for axis in axes if axis & set(self.orientation)} != axes:
            raise ValueError(f"orientation {self.orientation!r} does not name each of L/R, A/P and F/H once")
        if any(size % step for size, step in zip(self.patch_shape, self.network.divisors, strict=True)):
            raise ValueError(f"patch_shape {self.patch_shape} is not divisible by {self.network.divisors}")
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
    """Write ``plan.json`` for human eyes: one key a line, lists on one line."""
    return _render_value(_PLAN_FILE.dump_python(file, mode="json"), indent=0) + "\n"


def architecture_sha256(plan: Plan) -> Sha256:
    """Identify what must agree before weights of two models may be averaged.

    Covers the network, voxel spacing, orientation and normalisation: equal names and shapes alone
    do not show a different stride or resolution.
    """
    entries: dict[str, object] = _PLAN.dump_python(plan, mode="json")
    kept = {key: entries[key] for key in ("network", "spacing_mm", "orientation", "normalisation")}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return Sha256(hashlib.sha256(canonical.encode()).hexdigest())


def _render_value(value: object, *, indent: int) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    inner = " " * (indent + 2)
    lines = [
        f"{inner}{json.dumps(key)}: {_render_value(item, indent=indent + 2)}" for key, item in value.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
