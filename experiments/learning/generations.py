"""Generations: 13 nights of six new corrections, a fifth of them wrong; Dafne's way against ours.

All contenders begin with the same model, see the same corrections, have the same hold-out, wrong cases
included, and take the same number of steps. Every night the version in use is measured on clean test cases.

``dafne``: its recipe on the cases of the night; the trained weights are refused below a fixed Dice on the
hold-out, else merged half and half with the version in use, and the merged ones in use unless they are below.
``ours``: cases under suspicion count less or not at all, in training and hold-out; the recipe with replay of
all earlier cases; the gate compares with the version in use; inconclusive cases stay new.
``ours_trusting``: the same without suspicion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import base
import data
import numpy as np
import tuning
from adaptation import BATCH_SIZE
from data import Example
from stream import Correction, Stream, stream_of
from trust import Trust, trust_in
from world import Json, Result, Run, World, read, write

from dicomnode.domain import Verdict
from dicomnode.ml.evaluation import gate
from dicomnode.ml.evaluation.scores import CaseScore
from dicomnode.ml.model import package
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.training.increment import Lesson
from dicomnode.ml.training.lessons import CaseSource
from dicomnode.ml.training.recipes import RECIPES, Recipe

CONTENDERS = ("dafne", "ours", "ours_trusting")
DAFNE_THRESHOLD = 0.5
"""Of its server in 2022; the default of the code, -0.001, accepts everything."""
KEPT_SHARE = 0.5
EXCLUDED_BELOW = 0.5
REPLAY = 0.5
SAMPLES_PER_CASE = 8


@dataclass(slots=True, kw_only=True)
class Site:
    """A site on its way through the nights."""

    stream: Stream
    current: ModelPackage
    folder: Path
    earlier: list[Correction] = field(default_factory=list)
    pending: list[Correction] = field(default_factory=list)
    hold_out: list[Correction] = field(default_factory=list)
    trust: Trust = field(default_factory=Trust)
    nights: list[dict[str, Json]] = field(default_factory=list)

    def example(self, one: Correction) -> Example:
        """Give a correction as this site has it."""
        return one.example(self.stream.seed)


def runs(seeds: Sequence[int], world: World) -> list[Run]:
    """List the contenders for each seed."""
    found = []
    rate = RECIPES[world.recipe].learning_rate
    for seed in seeds:
        for contender in CONTENDERS:
            words = contender if contender == "dafne" else f"{contender}_{world.recipe}_{rate:g}"
            name = f"{words}_{seed}"
            found.append(Run(experiment="generations", name=name, do=partial(_live, contender, name, seed)))
    return found


def _live(contender: str, name: str, seed: int, world: World) -> Result:
    """Go through all nights, or on from the last one that is on the disk."""
    stream = stream_of(seed, world.scale.nights)
    recipe = "dafne" if contender == "dafne" else world.recipe
    start = base.weak(world, seed, training=stream.base, test=stream.test)
    test = data.examples(stream.test)
    site = _arrived(stream, start, world.work / "generations" / name)
    before = tuning.figures(tuning.score(tuning.loaded(start), test))
    for number in range(len(site.nights), len(stream.nights)):
        _receive(site, stream.nights[number])
        steps, verdict, reason = (
            _dafne(site, number, world)
            if contender == "dafne"
            else _ours(site, number, world, is_wary=contender == "ours")
        )
        clean = tuning.figures(tuning.score(tuning.loaded(site.current), test))
        site.nights.append(_record(site, number, clean, (steps, verdict, reason)))
        _keep(site)
    return {
        "contender": contender,
        "recipe": recipe,
        "learning_rate": RECIPES[recipe].learning_rate,
        "seed": seed,
        "start": dict(before),
        "nights": list[Json](site.nights),
        "wrong": {one.name: str(one.mistake) for one in stream.wrong},
        "base_cases": list[Json](stream.base),
        "commissioning_cases": [one.name for one in stream.commissioning],
        "test_cases": list[Json](stream.test),
    }


def _dafne(site: Site, number: int, world: World) -> tuple[int, str, str]:
    new = site.pending
    site.earlier, site.pending = [*site.earlier, *new], []
    recipe = _budgeted(RECIPES["dafne"], world)
    lesson = Lesson(
        package=site.current,
        new=tuple(data.source(site.example(one)) for one in new),
        recipe=replace(recipe, kept_share=0.0),
        seed=_seed(site, number),
    )
    tuned = tuning.tune(lesson)
    old = package.read_weights(site.current)
    merged = {name: KEPT_SHARE * old[name] + (1 - KEPT_SHARE) * one for name, one in tuned.tensors.items()}
    hold_out = [site.example(one) for one in site.hold_out]
    for what, tensors in (("trained", tuned.tensors), ("merged", merged)):
        dice = tuning.dices(tuning.loaded(site.current, tensors), hold_out)
        if dice < DAFNE_THRESHOLD:
            return tuned.fit.steps, Verdict.REFUSED.value, f"{what}: {dice:.3f} is below {DAFNE_THRESHOLD:g}"
    site.current = base.with_weights(site.folder / f"night_{number}", site.current, merged)
    return tuned.fit.steps, Verdict.ACCEPTED.value, f"{dice:.3f} is not below {DAFNE_THRESHOLD:g}"


def _ours(site: Site, number: int, world: World, *, is_wary: bool) -> tuple[int, str, str]:
    if is_wary:
        _doubt(site)
    sources = {one.name: _source(site, one) for one in (*site.earlier, *site.pending)}
    new = tuple(sources[one.name] for one in site.pending)
    if not any(one.trust > 0 for one in new):
        return 0, "skipped", "no new case is trusted"
    lesson = Lesson(
        package=site.current,
        new=new,
        earlier=tuple(sources[one.name] for one in site.earlier),
        recipe=_budgeted(replace(RECIPES[world.recipe], replay=REPLAY if site.earlier else 0.0), world),
        seed=_seed(site, number),
    )
    tuned = tuning.tune(lesson)
    candidate = base.with_weights(site.folder / f"night_{number}", site.current, tuned.tensors)
    report = gate.gate(
        *_scores(site, candidate),
        unchanged=candidate.card.weights_sha256 == site.current.card.weights_sha256,
        generator=np.random.default_rng(int(candidate.card.weights_sha256[:8], 16)),
    )
    if report.verdict is not Verdict.INCONCLUSIVE:
        site.earlier, site.pending = [*site.earlier, *site.pending], []
    if report.verdict is Verdict.ACCEPTED:
        site.current = candidate
    return tuned.fit.steps, report.verdict.value, report.reason


def _doubt(site: Site) -> None:
    """Look at all corrections with the version in use: at the new ones, and anew at the earlier ones."""
    model = tuning.loaded(site.current)
    corrections = [*site.earlier, *site.pending, *site.hold_out]
    known = {one.name for one in site.earlier} | {one.name for one in site.stream.commissioning}
    cases = [(site.example(one), tuning.segment(model, site.example(one))) for one in corrections]
    site.trust = trust_in(cases, known=known, before=site.trust)


def _source(site: Site, one: Correction) -> CaseSource:
    return data.source(site.example(one), trust=site.trust.of(one.name))


def _scores(site: Site, candidate: ModelPackage) -> tuple[list[CaseScore], list[CaseScore]]:
    """Score the version in use and the candidate on the hold-out, without the cases under suspicion."""
    kept = [one for one in site.hold_out if site.trust.of(one.name) >= EXCLUDED_BELOW]
    cases = [site.example(one) for one in kept]
    current, tuned = (tuning.score(tuning.loaded(one), cases) for one in (site.current, candidate))
    return current, tuned


def _budgeted(recipe: Recipe, world: World) -> Recipe:
    """Give every contender the same steps: with replay a case gives half as many samples."""
    return replace(
        recipe,
        epochs=world.scale.night_epochs,
        batch_size=BATCH_SIZE,
        samples_per_case=round(SAMPLES_PER_CASE * (1 - recipe.replay)),
    )


def _seed(site: Site, number: int) -> int:
    return 100 * site.stream.seed + number


def _receive(site: Site, night: Sequence[Correction]) -> None:
    site.hold_out += [one for one in night if one.is_hold_out]
    site.pending += [one for one in night if not one.is_hold_out]


def _record(
    site: Site, number: int, clean: dict[str, float], outcome: tuple[int, str, str]
) -> dict[str, Json]:
    steps, verdict, reason = outcome
    return {
        "night": number + 1,
        "steps": steps,
        "verdict": verdict,
        "reason": reason,
        "figures": dict(clean),
        "hold_out": len(site.hold_out),
        "pending": [one.name for one in site.pending],
        "doubted": {name: [weight, *reasons] for name, weight, reasons in site.trust.doubted()},
    }


def _keep(site: Site) -> None:
    write(
        site.folder / "site.json",
        {
            "current": str(site.current.folder),
            "nights": list[Json](site.nights),
            "trust": {name: [weight, *reasons] for name, weight, reasons in site.trust.doubted()},
        },
    )


def _arrived(stream: Stream, start: ModelPackage, folder: Path) -> Site:
    """Give a site as the last finished night left it; at the beginning where there is none."""
    site = Site(stream=stream, current=start, folder=folder, hold_out=list(stream.commissioning))
    if not (folder / "site.json").is_file():
        return site
    state = read(folder / "site.json")
    nights, doubts = state["nights"], state["trust"]
    if not isinstance(nights, list) or not isinstance(doubts, dict):
        raise TypeError(f"{folder / 'site.json'} is damaged; remove the folder")
    site.nights = [one for one in nights if isinstance(one, dict)]
    site.current = package.read(Path(str(state["current"])))
    site.trust = Trust.from_json(doubts)
    for night in stream.nights[: len(site.nights)]:
        _receive(site, night)
    last = site.nights[-1]["pending"] if site.nights else []
    waiting = set(last) if isinstance(last, list) else set()
    site.earlier = [one for one in site.pending if one.name not in waiting]
    site.pending = [one for one in site.pending if one.name in waiting]
    return site
