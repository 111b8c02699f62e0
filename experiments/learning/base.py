"""The models that the experiments start from: pretrained on domain A, trained too little, or random.

The plan is the one of the product by the rules of nnU-Net, on a coarser grid (1.5 mm) and with a smaller
network, so that a training takes seconds on one core of a processor: patches of 24 x 40 x 24 voxels, about
the size of a case, four levels of 12 to 96 features, one convolution each.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import data
import tuning
from data import CLASSES, DOMAINS, REPOSITORY
from world import Json, Result, Run, World

from dicomnode import durable
from dicomnode.ml.model import network as networks
from dicomnode.ml.model import package
from dicomnode.ml.model.architecture import UNetPlan
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import Plan
from dicomnode.ml.planning import fingerprint, planner
from dicomnode.ml.planning.planned import Aim
from dicomnode.ml.planning.planner import Rules
from dicomnode.ml.training.dataset import CaseSource
from dicomnode.ml.training.ground import Blueprint
from dicomnode.ml.training.order import Machine, Observer, Order, PretrainRecipe
from dicomnode.ml.training.pretrain import WORK_FOLDER, pretrain
from dicomnode.ml.training.processes import Processes
from dicomnode.ml.training.run import fresh

LABELS_TOML = REPOSITORY / "models" / "hippocampus" / "labels.toml"
SPACING_MM = (1.5, 1.5, 1.5)
PATCH = (24, 40, 24)
FEATURES = (12, 24, 48, 96)
BATCH_SIZE = 2
EPOCH_STEPS = 25
LEARNING_RATE = 3e-3
AVERAGE_DECAY = 0.99
WEAK_CASES = 6


def small_plan(cases: Sequence[CaseSource]) -> Blueprint:
    """Plan for cases by the rules of nnU-Net, then make grid, patch and network small."""
    found = fingerprint.measure(
        ((case.image, case.labels) for case in (one.read() for one in cases)),
        count=len(cases),
        orientation="HPL",
        modalities=("MR",),
    )
    (one,) = planner.plan(
        found, Aim(name="learning", classes=CLASSES), Rules(), only="3d_fullres"
    ).configurations
    levels = len(FEATURES)
    network = UNetPlan(
        kind="plain_conv_unet",
        classes=CLASSES,
        features=FEATURES,
        kernels=((3, 3, 3),) * levels,
        strides=((1, 1, 1), *((2, 2, 2),) * (levels - 1)),
        encoder_depths=(1,) * levels,
        decoder_depths=(1,) * (levels - 1),
    )
    stage = replace(one.plan.final, spacing_mm=SPACING_MM, patch_shape=PATCH, network=network)
    return Blueprint(plan=replace(one.plan, stages=(stage,)), batch_size=BATCH_SIZE)


def pretrained(world: World, seed: int) -> ModelPackage:
    """Give the model pretrained on 60 cases of A; made once for each seed."""
    split = data.split_of(seed)
    return _trained(
        world.work / f"base_{seed}_{world.scale.base_epochs}",
        training=split.pretraining,
        test=split.a_test,
        epochs=world.scale.base_epochs,
        seed=seed,
    )


def weak(world: World, seed: int, *, training: Sequence[str], test: Sequence[str]) -> ModelPackage:
    """Give a model that has seen few cases, and these only briefly."""
    return _trained(
        world.work / f"weak_{seed}_{world.scale.weak_epochs}",
        training=training,
        test=test,
        epochs=world.scale.weak_epochs,
        seed=seed,
    )


def untrained(world: World, seed: int) -> ModelPackage:
    """Give random weights with the plan of the pretrained model."""
    folder = world.work / f"random_{seed}"
    with durable.locked(_lock(folder)):
        if not (folder / "done").is_file():
            plan = pretrained(world, seed).plan
            tensors = networks.tensors_of(fresh(plan.final.network, seed=1000 + seed))
            _write(folder, plan, tensors, "# random weights\n")
            (folder / "done").touch()
    return package.read(folder)


def with_weights(folder: Path, model: ModelPackage, tensors: tuning.Tensors) -> ModelPackage:
    """Write a model with other weights."""
    return _write(folder, model.plan, tensors, "# a night of an experiment\n")


def runs(seeds: Sequence[int]) -> list[Run]:
    """Pretrain for each seed, and judge the model where it has not been trained."""
    return [Run(experiment="base", name=f"{seed}", do=partial(_judge, seed)) for seed in seeds]


def _judge(seed: int, world: World) -> Result:
    model = tuning.loaded(pretrained(world, seed))
    split = data.split_of(seed)
    found: dict[str, Json] = {
        domain: dict(tuning.figures(tuning.score(model, data.examples(split.test(domain), domain))))
        for domain in DOMAINS
    }
    return {"seed": seed, "figures": found, "training_cases": list[Json](split.pretraining)}


def _trained(
    folder: Path, *, training: Sequence[str], test: Sequence[str], epochs: int, seed: int
) -> ModelPackage:
    with durable.locked(_lock(folder)):
        if not (folder / package.WEIGHTS_FILE).is_file() or (folder / WORK_FOLDER).exists():
            _pretrain(folder, training=training, test=test, epochs=epochs, seed=seed)
    return package.read(folder)


def _pretrain(folder: Path, *, training: Sequence[str], test: Sequence[str], epochs: int, seed: int) -> None:
    known = data.folder_sources()
    order = Order(
        name="learning",
        segments=package.read_labels(LABELS_TOML),
        sources=tuple(
            replace(known[name], is_hold_out=is_test)
            for names, is_test in ((training, False), (test, True))
            for name in names
        ),
        planner=small_plan,
        planner_words="small plan of experiments/learning",
        recipe=PretrainRecipe(
            optimiser="adamw",
            learning_rate=LEARNING_RATE,
            epochs=epochs,
            epoch_steps=EPOCH_STEPS,
            average_decay=AVERAGE_DECAY,
            validation_steps=0,
            hold_out_fraction=0.0,
            validation_fraction=0.0,
            seed=seed,
        ),
    )
    machine = Machine(
        processes=Processes(rank=0, count=1, device=tuning.CPU), workers=0, threads=1, checkpoint_s=30.0
    )
    observer = Observer(tell=lambda *_: None, watch=lambda _: None, should_stop=lambda: False)
    if pretrain(order, folder, machine=machine, observer=observer) is None:
        raise RuntimeError("the pretraining was not finished")


def _write(folder: Path, plan: Plan, tensors: tuning.Tensors, card: str) -> ModelPackage:
    shutil.rmtree(folder, ignore_errors=True)
    return package.write(folder, plan, package.read_labels(LABELS_TOML), tensors, card)


def _lock(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.with_name(folder.name + ".lock")
