"""Plan a model for a collection of images, by the rules of one's choice."""

from dataclasses import dataclass, replace
from typing import Literal

from dicomnode.errors import ConfigError
from dicomnode.ml.planning import dante_planner, memory, nnunet_planner
from dicomnode.ml.planning.fingerprint import Fingerprint
from dicomnode.ml.planning.nnunet_planner import PRESETS, PresetName
from dicomnode.ml.planning.planned import Aim, PlannedTraining, Planning

PlannerName = Literal["nnunet", "dante"]

_DANTE_MEMORY_GB = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Whose rules, and for how much memory."""

    planner: PlannerName = "nnunet"
    preset: PresetName = "plain"  # of nnU-Net
    memory_gb: float | None = None  # of the GPU; None: that of the preset, or 8; 0: there is no GPU


def plan(fingerprint: Fingerprint, aim: Aim, rules: Rules, *, only: str | None = None) -> Planning:
    """Plan every configuration that suits the images, and predict what each takes.

    Parameters
    ----------
    only
        Name of the one configuration that is wanted, such as ``3d_fullres``.

    Raises
    ------
    InputError
        The images are too small or have several channels, or the wanted configuration does not suit them.
    ConfigError
        The rules do not go together, or the memory is too small.
    ModelFormatError
        The name or the classes are not those that a plan may have.
    """
    memory_gb, planned = _planned(fingerprint, aim, rules)
    planning = Planning(
        planner=rules.planner,
        preset=rules.preset,
        memory_gb=memory_gb,
        configurations=planned,
        fingerprint=fingerprint,
    )
    chosen = planned if only is None else (planning.choose(only),)
    return replace(planning, configurations=tuple(map(_with_memory, chosen)))


def _planned(
    fingerprint: Fingerprint, aim: Aim, rules: Rules
) -> tuple[float | None, tuple[PlannedTraining, ...]]:
    if rules.memory_gb is not None and rules.memory_gb < 0:
        raise ConfigError(f"{rules.memory_gb:g} GB of memory cannot be planned for")
    if rules.planner == "dante":
        if rules.preset != "plain":
            raise ConfigError("presets M, L and XL are nnU-Net's; Dante's rules have none")
        memory_gb = _DANTE_MEMORY_GB if rules.memory_gb is None else rules.memory_gb or None
        return memory_gb, (dante_planner.plan(fingerprint, aim, memory_gb=memory_gb),)
    if rules.memory_gb == 0:
        raise ConfigError("nnU-Net's rules need a GPU memory to plan for; give --memory-gb or take Dante's")
    memory_gb = rules.memory_gb or PRESETS[rules.preset].memory_gb
    return memory_gb, nnunet_planner.plan(fingerprint, aim, preset=rules.preset, memory_gb=memory_gb)


def _with_memory(planned: PlannedTraining) -> PlannedTraining:
    return replace(planned, memory=memory.predict(planned.plan, batch_size=planned.batch_size))
