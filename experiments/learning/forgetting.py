"""Forgetting: what a model that learned A still knows of it after it has adapted to B with 10 cases.

Each recipe of the product learns without anything that holds it; some also with one of these: replay (half of
the samples come from 20 of the cases that the model was pretrained on), elastic weight consolidation, and
distillation, which only acts where labels are unknown: these runs know the anterior part alone. Learning
rates are those of the recipes; the number of steps is the same for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import adaptation
import base
import data
import tuning
from data import Domain
from world import Json, Result, Run, World

from dicomnode.ml.training.increment import Lesson
from dicomnode.ml.training.recipes import RECIPES, Recipe

SIDES: tuple[Domain, ...] = ("A", "B")
CASES = 10
EARLIER = 20
REPLAY = 0.5
EWC_WEIGHTS = (0.5, 100.0)
"""Dante's weight, and one that is felt."""
DISTILLATION = 1.0
HELD = ("full", "unfreezing")
"""Recipes with elastic weight consolidation; it holds weights, and those of LoRA do not move."""
PARTIAL = ("+partial", "+distillation")
"""Arms in which only the anterior part of the new cases is known."""


def arms() -> Mapping[str, Recipe]:
    """List the arms: a recipe as it is but without replay, or with what holds it."""
    found = {name: replace(recipe, replay=0.0) for name, recipe in RECIPES.items()}
    for name in (*HELD, "lora"):
        found[f"{name}+replay"] = replace(found[name], replay=REPLAY)
    for name in HELD:
        for weight in EWC_WEIGHTS:
            found[f"{name}+ewc{weight:g}"] = replace(found[name], ewc=weight)
    found["full+partial"] = found["full"]
    found["full+distillation"] = replace(found["full"], distillation=DISTILLATION)
    return found


def runs(seeds: Sequence[int]) -> list[Run]:
    """List every arm for each seed."""
    return [
        Run(experiment="forgetting", name=f"{arm}_{seed}", do=partial(_forget, arm, seed))
        for seed in seeds
        for arm in arms()
    ]


def _forget(arm: str, seed: int, world: World) -> Result:
    split, start = data.split_of(seed), base.pretrained(world, seed)
    names, earlier = split.b_pool[:CASES], split.pretraining[:EARLIER]
    known = (True, not arm.endswith(PARTIAL))
    lesson = Lesson(
        package=start,
        new=tuple(data.source(one, known=known) for one in data.examples(names, "B")),
        earlier=tuple(map(data.source, data.examples(earlier))),
        recipe=_budgeted(arms()[arm], world),
        seed=seed,
    )
    tuned = tuning.tune(lesson)
    tests = {domain: data.examples(split.test(domain), domain) for domain in SIDES}
    sides: dict[str, Json] = {}
    for domain, cases in tests.items():
        after = tuning.figures(tuning.score(tuning.loaded(start, tuned.tensors), cases))
        sides[domain] = {"before": dict(_before(domain, seed, world)), "after": dict(after)}
    return {
        "arm": arm,
        "seed": seed,
        "figures": sides,
        "steps": tuned.fit.steps,
        "seconds": tuned.fit.seconds,
        "training_cases": list[Json](names),
        "earlier_cases": list[Json](earlier),
        "test_cases": {"A": list[Json](split.a_test), "B": list[Json](split.b_test)},
    }


@cache
def _before(domain: Domain, seed: int, world: World) -> dict[str, float]:
    """Judge the model that all arms of a seed begin with."""
    cases = data.examples(data.split_of(seed).test(domain), domain)
    return tuning.figures(tuning.score(tuning.loaded(base.pretrained(world, seed)), cases))


def _budgeted(recipe: Recipe, world: World) -> Recipe:
    """Give all arms the same steps: with replay a case gives half as many samples."""
    whole = adaptation.budgeted(recipe, world, cases=CASES)
    samples = whole.samples_per_case or 1
    if not recipe.replay:
        return whole
    return replace(whole, replay=recipe.replay, samples_per_case=max(1, samples // 2))
