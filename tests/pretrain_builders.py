"""A folder of made-up blobs, and a plan so small that a network learns them in seconds."""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch

from dicomnode.domain import Segment
from dicomnode.ml.model.architecture import UNetPlan
from dicomnode.ml.model.plan import Interpolation, Plan, Stage, ZScore
from dicomnode.ml.training import dataset, pretrain
from dicomnode.ml.training.course import Moment
from dicomnode.ml.training.dataset import CaseSource
from dicomnode.ml.training.ground import Blueprint
from dicomnode.ml.training.order import Machine, Observer, Order, PretrainRecipe
from dicomnode.ml.training.pretrain import PretrainReport
from dicomnode.ml.training.processes import Processes

BLOCK = (3, 3, 3)
ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))
QUICK = PretrainRecipe(epochs=2, epoch_steps=3, validation_steps=2, validation_fraction=0.2)


def make_blobs(folder: Path, *, cases: int = 10, enlarged: int = 1) -> None:
    """Write cases with label 1 above label 2, in the layout of the Decathlon."""
    for index in range(cases):
        generator = np.random.default_rng(index)
        labels = np.zeros((10, 11, 12), np.uint8)
        start = generator.integers(2, 5, 3)
        labels[start[0] : start[0] + 4, start[1] : start[1] + 4, start[2] : start[2] + 5] = 1
        labels[start[0] + 2 : start[0] + 4, start[1] : start[1] + 4, start[2] : start[2] + 5] = 2
        labels = labels.repeat(enlarged, 0).repeat(enlarged, 1).repeat(enlarged, 2)
        image = (generator.normal(0, 5, labels.shape) + 40 * labels).astype(np.float32)
        for kind, array in (("imagesTr", image), ("labelsTr", labels)):
            (folder / kind).mkdir(exist_ok=True, parents=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / kind / f"blob_{index}.nii.gz")


def small_stage(*, classes: int = 3, dimensions: int = 3, features: tuple[int, ...] = (4, 8, 8)) -> Stage:
    """A stage with patches of 8 voxels along each axis, or of one slice."""
    thin = dimensions == 2
    kernel, stride = ((1, 3, 3), (1, 2, 2)) if thin else (BLOCK, (2, 2, 2))
    network = UNetPlan(
        kind="plain_conv_unet",
        dimensions=2 if thin else 3,
        classes=classes,
        features=features,
        kernels=(kernel, kernel, kernel),
        strides=((1, 1, 1), stride, stride),
        encoder_depths=(1, 1, 1),
        decoder_depths=(1, 1),
    )
    return Stage(
        spacing_mm=(None, 1.0, 1.0) if thin else (1.0, 1.0, 1.0),
        patch_shape=(1, 8, 8) if thin else (8, 8, 8),
        normalisation=ZScore(),
        image_interpolation=Interpolation(order=1),
        score_interpolation=Interpolation(order=1),
        network=network,
        mirror_axes=(1, 2) if thin else (0, 1, 2),
    )


def small_plan(
    stage: Stage | None = None, *, name: str = "blobs", region_classes: tuple[int, ...] = ()
) -> Plan:
    """A plan of one such stage."""
    stage = stage or small_stage(classes=len(region_classes) or 3)
    return Plan(
        name=name,
        modalities=("MR",),
        orientation="HPL",
        region_classes=region_classes,
        stages=(stage,),
    )


def small_order(
    folder: Path, segments: tuple[Segment, ...], recipe: PretrainRecipe = QUICK, *, plan: Plan | None = None
) -> Order:
    """Order a model of the blobs of a folder."""
    chosen = plan or small_plan()

    def planner(_: Sequence[CaseSource]) -> Blueprint:
        return Blueprint(plan=chosen, batch_size=4, batch_dice=True)

    return Order(
        name=chosen.name,
        segments=segments,
        sources=dataset.open_folder(folder, classes=3).cases,
        planner=planner,
        planner_words=repr(chosen),
        recipe=recipe,
        about="Made-up blobs.",
    )


def quiet_observer(*, stop_after: int | None = None) -> Observer:
    """Watch without a word; ask to stop after so many steps."""
    steps = 0

    def watch(_: Moment) -> None:
        nonlocal steps
        steps += 1

    return Observer(
        tell=lambda *_: None,
        watch=watch,
        should_stop=lambda: stop_after is not None and steps + 1 >= stop_after,
    )


def run(
    order: Order, out: Path, *, machine: Machine | None = None, stop_after: int | None = None
) -> PretrainReport | None:
    """Train in this process."""
    return pretrain.pretrain(
        order,
        out,
        machine=machine or Machine(processes=ALONE, workers=0, threads=1),
        observer=quiet_observer(stop_after=stop_after),
    )
