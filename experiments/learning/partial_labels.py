"""Partial labels: half of the cases know the anterior part only, the other half the posterior part only.

Two beginnings: the model of domain A learns the contrast C from 20 cases, or random weights learn from 40
cases of A and B. ``full`` knows both labels everywhere; ``masked`` knows half of them, and takes the others
for unknown, as the training of the product does; ``unmasked`` takes them for background: the warning.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import adaptation
import base
import data
import tuning
from data import Example
from world import Result, Run, World

from dicomnode.ml.training.increment import Lesson
from dicomnode.ml.training.lessons import CaseSource
from dicomnode.ml.training.recipes import Recipe

Arm = Literal["full", "masked", "unmasked"]
ARMS: tuple[Arm, ...] = ("full", "masked", "unmasked")
STARTS = ("pretrained", "scratch")


def runs(seeds: Sequence[int]) -> list[Run]:
    """List both beginnings with all arms."""
    return [
        Run(experiment="partial", name=f"{start}_{arm}_{seed}", do=partial(_learn, start, arm, seed))
        for seed in seeds
        for start in STARTS
        for arm in ARMS
    ]


def _learn(start: str, arm: Arm, seed: int, world: World) -> Result:
    split = data.split_of(seed)
    if start == "pretrained":
        model = base.pretrained(world, seed)
        cases, test = data.examples(split.c_pool, "C"), data.examples(split.c_test, "C")
    else:
        model = base.untrained(world, seed)
        cases = [*data.examples(split.a_pool), *data.examples(split.b_pool, "B")]
        test = [*data.examples(split.a_test), *data.examples(split.b_test, "B")]
    lesson = Lesson(
        package=model,
        new=tuple(_source(case, arm, known=index % 2) for index, case in enumerate(cases)),
        recipe=_recipe(start, world, cases=len(cases)),
        seed=seed,
    )
    tuned = tuning.tune(lesson)
    found = tuning.figures(tuning.score(tuning.loaded(model, tuned.tensors), test))
    return {
        "start": start,
        "arm": arm,
        "seed": seed,
        "figures": dict(found),
        "steps": tuned.fit.steps,
        "seconds": tuned.fit.seconds,
        "training_cases": [case.name for case in cases],
        "test_cases": [case.name for case in test],
    }


def _source(case: Example, arm: Arm, *, known: int) -> CaseSource:
    """Give a case of which one label is known (0 anterior, 1 posterior), or all where the arm has all."""
    if arm == "full":
        return data.source(case)
    if arm == "masked":
        return data.source(case, known=(known == 0, known == 1))
    labels = case.labels.copy()
    labels[labels == 2 - known] = 0
    return data.source(replace(case, labels=labels))


def _recipe(start: str, world: World, *, cases: int) -> Recipe:
    strategy = "scratch" if start == "scratch" else "full"
    recipe = adaptation.budgeted(adaptation.STRATEGIES[strategy], world, cases=cases)
    recipe = replace(recipe, learning_rate=adaptation.learning_rate(strategy, world))
    return replace(recipe, epochs=world.scale.fresh_epochs) if start == "scratch" else recipe
