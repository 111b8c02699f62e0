"""What a planner decides: plans with their batches, and the file that keeps them."""

import json
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dicomnode.errors import InputError
from dicomnode.ml.model.plan import ImageExtent, Plan, TripleMm
from dicomnode.ml.planning.fingerprint import Fingerprint
from dicomnode.ml.planning.memory import PredictedMemory
from dicomnode.ml.planning.readable import render_json

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Aim:
    """What a model is to find."""

    name: str  # of the model: lower-case letters, digits, "_" and "-"
    classes: Annotated[int, Field(ge=2, le=256)]  # with background
    region_classes: tuple[int, ...] = ()
    """Where outputs may overlap: the class that each paints, see ``Plan.region_classes``."""
    has_unknown: bool = False  # the truth of some voxels is not known (nnU-Net's "ignore")

    @property
    def outputs(self) -> int:
        """Outputs of the network: classes, or regions."""
        return len(self.region_classes) or self.classes


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class PlannedTraining:
    """A plan, the batches to train it with, and what it will take."""

    configuration: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]  # such as "3d_fullres"
    plan: Plan
    batch_size: Annotated[int, Field(ge=1)]
    batch_dice: bool  # one Dice over the whole batch, for patches that are small beside the image
    median_shape: tuple[float, float, float]
    """Voxels of the median image on the grid of the last stage."""
    memory: PredictedMemory | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Planning:
    """What was measured and what was decided: the content of a planning file."""

    format_version: Literal[1] = 1
    planner: Literal["nnunet", "dante"]
    preset: str  # of the planner
    memory_gb: float | None  # GPU memory that was planned for; None: no GPU
    configurations: tuple[PlannedTraining, ...]
    fingerprint: Fingerprint

    def choose(self, configuration: str | None) -> PlannedTraining:
        """Give one of the configurations; without a name the one that is usual: 3d_fullres, or the only one.

        Raises
        ------
        InputError
            There is none of this name.
        """
        named = {planned.configuration: planned for planned in self.configurations}
        wanted = configuration or ("3d_fullres" if "3d_fullres" in named else next(iter(named), "any"))
        if wanted not in named:
            raise InputError(
                f"{wanted} is not planned for these images; planned are {', '.join(named) or 'none'}."
            )
        return named[wanted]


def parse(text: str | bytes) -> Planning:
    """Read a planning file.

    Raises
    ------
    InputError
        No JSON, an unknown or lacking key, or a value out of range; the message names the first.
    """
    try:
        return _PLANNING.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"The planning file is wrong at {where}: {first['msg']}.") from error


def render(planning: Planning) -> str:
    """Write a planning file for human eyes: the decisions, then what was measured, one case a line."""
    return render_json(json.loads(_PLANNING.dump_json(planning))) + "\n"


def image_extent(fingerprint: Fingerprint, axis_order: tuple[int, int, int]) -> ImageExtent:
    """Say how large the images are along the axes of a plan."""
    extents = fingerprint.extents_mm[:, list(axis_order)]
    return ImageExtent(
        minimum_mm=_millimetres(extents.min(axis=0)),
        median_mm=_millimetres(np.median(extents, axis=0)),
        maximum_mm=_millimetres(extents.max(axis=0)),
    )


def _millimetres(values: NDArray[np.float64]) -> TripleMm:
    first, second, third = np.round(values, 4).tolist()
    return first, second, third


_PLANNING = TypeAdapter(Planning)
