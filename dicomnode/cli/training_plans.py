"""What ``dicomnode pretrain`` plans: from the training cases, or from a file that was made before."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydantic import ValidationError

from dicomnode.errors import InputError
from dicomnode.ml.model import plan as plans
from dicomnode.ml.model.plan import Plan
from dicomnode.ml.planning import fingerprint, planned, planner
from dicomnode.ml.planning.planned import Aim, PlannedTraining
from dicomnode.ml.planning.planner import Rules
from dicomnode.ml.training.dataset import IGNORED, CaseSource
from dicomnode.ml.training.ground import Blueprint

ORIENTATION = "HPL"
"""Slices towards the head, rows towards the back, columns towards the left: a common axial image."""
BATCH_OF_A_PLAN = 2
"""Samples in a batch where a plan says nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWish:
    """How a training is to be planned."""

    rules: Rules
    configuration: str | None = None  # such as "2d"; None: 3d_fullres, or the only one
    file: Path | None = None  # a file of `dicomnode plan`, or plan.json of a model, in place of rules


def planner_of(
    wish: PlanWish, aim: Aim, *, modalities: tuple[str, ...]
) -> tuple[Callable[[Sequence[CaseSource]], Blueprint], str]:
    """Give the planner of a training, and words for all that decides its plan beside the cases.

    Raises
    ------
    InputError
        The file cannot be read, or is no plan for these classes.
    """
    if wish.file is not None:
        blueprint = _from_file(wish.file, wish, aim)
        return lambda _: blueprint, repr(blueprint)
    return partial(_from_cases, wish, aim, modalities), repr((wish, aim, modalities, ORIENTATION))


def _from_cases(
    wish: PlanWish, aim: Aim, modalities: tuple[str, ...], cases: Sequence[CaseSource]
) -> Blueprint:
    found = fingerprint.measure(
        _read(cases), count=len(cases), orientation=ORIENTATION, modalities=modalities
    )
    planning = planner.plan(found, aim, wish.rules, only=wish.configuration)
    return _blueprint(planning.choose(wish.configuration))


def _read(cases: Sequence[CaseSource]) -> Iterator[tuple[Volume, NDArray[np.uint8]]]:
    for source in cases:
        case = source.read()
        yield case.image, np.where(case.labels == IGNORED, 0, case.labels).astype(np.uint8)


def _from_file(path: Path, wish: PlanWish, aim: Aim) -> Blueprint:
    try:
        text = path.read_text(encoding="utf-8")
        is_planning = "configurations" in json.loads(text)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--plan: {path} cannot be read as JSON: {error}") from error
    if is_planning:
        blueprint = _blueprint(planned.parse(text).choose(wish.configuration))
    else:
        blueprint = Blueprint(plan=plans.parse(text).plan, batch_size=BATCH_OF_A_PLAN)
    try:
        plan = replace(blueprint.plan, name=aim.name)
    except ValidationError as error:
        raise plans.plan_error(error) from error
    _check(plan, aim, path)
    return Blueprint(plan=plan, batch_size=blueprint.batch_size, batch_dice=blueprint.batch_dice)


def _check(plan: Plan, aim: Aim, path: Path) -> None:
    if plan.classes != aim.classes or plan.region_classes != aim.region_classes:
        raise InputError(
            f"--plan: {path} is for {plan.classes} classes with background and the regions "
            f"{plan.region_classes}; these labels have {aim.classes} and {aim.region_classes}."
        )


def _blueprint(chosen: PlannedTraining) -> Blueprint:
    plan = chosen.plan
    if len(plan.stages) > 1 or plan.final.members > 1:
        raise InputError(
            f"{chosen.configuration} has {plan.networks} networks; one network is trained at a time. "
            "Choose another --configuration, such as 3d_fullres or 2d."
        )
    return Blueprint(plan=plan, batch_size=chosen.batch_size, batch_dice=chosen.batch_dice)
