"""Adaptation: from domain A to B, or to the contrast C, with few cases, by every strategy.

All strategies take the same number of steps on the same cases, and nothing is repeated from before. The
learning rate of each is the best of four, tried with seed 0 on the pool of B: 10 cases to train, the 10
others to judge, no test case of that seed. Dafne's rate is part of what it is. From random weights all layers
learn alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import base
import data
import tuning
from data import Domain, Example
from world import Json, Result, Run, World, read, write

from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.training.increment import Lesson
from dicomnode.ml.training.lora import LoraSettings
from dicomnode.ml.training.recipes import RECIPES, Recipe

BATCH_SIZE = 2
SHARE_OF_PEAK = 0.85

STRATEGIES: Mapping[str, Recipe] = {
    "scratch": replace(RECIPES["full"], discriminative=False),
    "full": RECIPES["full"],
    "dafne": RECIPES["dafne"],
    "unfreezing": RECIPES["unfreezing"],
    "lora4": replace(RECIPES["lora"], lora=LoraSettings(rank=4, alpha=8.0)),
    "lora8": RECIPES["lora"],
    "lora16": replace(RECIPES["lora"], lora=LoraSettings(rank=16, alpha=32.0)),
    "head": RECIPES["head"],
    "scratch_long": replace(RECIPES["full"], discriminative=False),
}
RATES = (3e-3, 1e-3, 3e-4, 1e-2)
TUNED = ("scratch", "full", "unfreezing", "lora8", "head")
"""Strategies that rates are tried for."""
LONG = 4
"""``scratch_long`` has so many times the steps of the others: it shows what scratch lacks beside time."""
_RATE_OF = {"lora4": "lora8", "lora16": "lora8", "scratch_long": "scratch"}
_RATE_SEED, _RATE_CASES = 0, 10


def runs(seeds: Sequence[int], world: World) -> list[Run]:
    """List the tried rates, then all strategies, small sizes first, and last what takes long."""
    found = [
        Run(experiment="rates", name=_rate_name(strategy, rate), do=partial(_try, strategy, rate))
        for strategy in TUNED
        for rate in RATES[: world.scale.rates]
    ]
    matched = [name for name in STRATEGIES if name != "scratch_long"]
    for strategies in (matched, ["scratch_long"]):
        for seed, domain, size, strategy in product(
            seeds, world.scale.domains, world.scale.sizes, strategies
        ):
            name = f"{domain}_{size:02d}_{strategy}_{seed}"
            do: Callable[[World], Result] = partial(_adapt, strategy, domain, size, seed)
            found.append(Run(experiment="adaptation", name=name, do=do))
    return found


def budgeted(recipe: Recipe, world: World, *, cases: int) -> Recipe:
    """Give a recipe the steps that every strategy has: about so many samples an epoch, two a batch."""
    return replace(
        recipe,
        epochs=world.scale.epochs,
        batch_size=BATCH_SIZE,
        samples_per_case=max(1, round(world.scale.epoch_samples / cases)),
        replay=0.0,
    )


def learning_rate(strategy: str, world: World) -> float:
    """Give the best of the tried learning rates of a strategy; what was not tried yet is tried now."""
    strategy = _RATE_OF.get(strategy, strategy)
    if strategy not in TUNED:
        return STRATEGIES[strategy].learning_rate
    tried: dict[float, float] = {}
    for rate in RATES[: world.scale.rates]:
        path = world.path_of("rates", _rate_name(strategy, rate))
        if not path.is_file():
            write(path, _try(strategy, rate, world))
        tried[rate] = float(str(read(path)["dice"]))
    return max(tried, key=lambda rate: tried[rate])


def epochs_to(curve: Sequence[float], dice: float) -> int | None:
    """Count the epochs until a curve has reached a Dice; None where it never does.

    A curve has the Dice before the training as its first value. Who is there already counts one epoch, so
    that no saving is larger than a training could show.
    """
    reached = [index for index, value in enumerate(curve) if value >= dice]
    return max(reached[0], 1) if reached else None


def _rate_name(strategy: str, rate: float) -> str:
    return f"{strategy}_{rate:g}"


def _start(strategy: str, world: World, seed: int) -> ModelPackage:
    return base.untrained(world, seed) if strategy.startswith("scratch") else base.pretrained(world, seed)


def _try(strategy: str, rate: float, world: World) -> Result:
    pool = data.examples(data.split_of(_RATE_SEED).b_pool, "B")
    training, judged = pool[:_RATE_CASES], pool[_RATE_CASES:]
    recipe = replace(budgeted(STRATEGIES[strategy], world, cases=len(training)), learning_rate=rate)
    start = _start(strategy, world, _RATE_SEED)
    lesson = Lesson(package=start, new=tuple(map(data.source, training)), recipe=recipe, seed=_RATE_SEED)
    tuned = tuning.tune(lesson)
    dice = tuning.dices(tuning.loaded(start, tuned.tensors), judged)
    return {"strategy": strategy, "learning_rate": rate, "dice": dice, "seconds": tuned.fit.seconds}


def _adapt(strategy: str, domain: Domain, size: int, seed: int, world: World) -> Result:
    split = data.split_of(seed)
    names, test = split.pool(domain)[:size], data.examples(split.test(domain), domain)
    start = _start(strategy, world, seed)
    recipe = replace(
        budgeted(STRATEGIES[strategy], world, cases=size), learning_rate=learning_rate(strategy, world)
    )
    if strategy == "scratch_long":
        recipe = replace(recipe, epochs=LONG * recipe.epochs)
    new = tuple(map(data.source, data.examples(names, domain)))
    before = tuning.dices(tuning.loaded(start), test)
    tuned = tuning.tune(
        Lesson(package=start, new=new, recipe=recipe, seed=seed), after_epoch=partial(_dice, start, test)
    )
    curve = (before, *tuned.curve)
    return {
        "strategy": strategy,
        "domain": domain,
        "size": size,
        "seed": seed,
        "figures": dict(tuning.figures(tuning.score(tuning.loaded(start, tuned.tensors), test))),
        "curve": list[Json](curve),
        "epochs_to_own_peak": epochs_to(curve, SHARE_OF_PEAK * max(curve)),
        "trainable": tuning.trainable(start, recipe),
        "learning_rate": recipe.learning_rate,
        "epochs": tuned.fit.epochs,
        "steps": tuned.fit.steps,
        "seconds": tuned.fit.seconds,
        "training_cases": list[Json](names),
        "test_cases": list[Json](split.test(domain)),
    }


def _dice(start: ModelPackage, test: Sequence[Example], tensors: tuning.Tensors) -> float:
    return tuning.dices(tuning.loaded(start, tensors), test)
