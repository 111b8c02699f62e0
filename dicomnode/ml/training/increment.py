"""Tune a model on corrected cases."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from dicomnode import weights
from dicomnode.errors import CorrectionError, GpuMemoryError, ModelFormatError
from dicomnode.ml.inference.engine import choose_device
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.architecture import Triple
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.training.fit import Batch, FitReport, Learner, Progress, ShouldStop, epoch_generator, fit
from dicomnode.ml.training.losses import marginal_cross_entropy, marginal_dice_cross_entropy
from dicomnode.ml.training.reviewed import ReviewedVolume, TrainingCase, bring, cut, dafne_weights

_Sample = tuple[ReviewedVolume, NDArray[np.float32], tuple[float, float, float]]
"""A case, its voxel weights, and the centre of the patch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is tuned on corrected cases."""

    name: str
    epochs: int
    batch_size: int
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    loss: Callable[..., Tensor]  # (logits, labels, *, weights, known)
    balanced: bool  # voxels weighted for rare classes and borders, or for the review alone
    flip_axes: tuple[int, ...] = ()


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Dafne's incremental learning (arXiv 2302.06352; Radiology: AI 7(3) e240097, 2025), on 3-D patches.
        "dafne": Recipe(
            name="dafne",
            epochs=5,
            batch_size=5,
            optimizer=partial(torch.optim.Adam, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, amsgrad=True),
            loss=marginal_cross_entropy,
            balanced=True,
        ),
        # Smaller steps with the loss that the model was pretrained with.
        "gentle": Recipe(
            name="gentle",
            epochs=10,
            batch_size=5,
            optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=1e-5),
            loss=marginal_dice_cross_entropy,
            balanced=False,
            flip_axes=(0, 1, 2),
        ),
    }
)


def train_increment(
    package: ModelPackage,
    cases: Sequence[TrainingCase],
    recipe: Recipe,
    *,
    seed: int,
    should_stop: ShouldStop,
    progress: Progress,
    device: str = "auto",
) -> tuple[weights.Tensors, FitReport]:
    """Tune a model on corrected cases.

    One sample is a patch of the model's size centred on one reviewed slice (a slice on which at
    least one label has a weight above 0); the other reviewed slices inside the patch count as well.
    An epoch takes ``floor(n / batch size)`` steps, at least one, and no sample twice. Voxels that
    nobody reviewed, and labels that a correction does not hold, give no gradient.

    Parameters
    ----------
    package
        The model to start from; left unchanged.
    cases
        At least one reviewed slice among them.
    recipe
        One of :data:`RECIPES`.
    seed
        Decides the order of the samples and the flips.
    should_stop, progress
        As in :func:`fit`. Stopped early, the weights are unfinished and the report says so.

    Returns
    -------
        The last weights, on the CPU, and what was done.

    Raises
    ------
    CorrectionError
        No case has a reviewed slice, or a case does not fit the model.
    ModelFormatError
        The model has several networks, or outputs that do not exclude each other.
    TrainingDivergedError
        The loss is not finite.
    GpuMemoryError
        The accelerator has too little memory.
    """
    check_trainable(package)
    plan = package.plan
    samples = _samples([bring(case, plan) for case in cases], package, recipe)
    if not samples:
        raise CorrectionError(f"None of the {len(cases)} cases has a reviewed slice to train on.")
    chosen = choose_device(device)
    base = weights.read(package.weights_path)
    network = networks.build(plan.final.network)
    networks.load(network, base)
    learner = Learner(
        loss=partial(_partial_loss, recipe),
        optimizer=recipe.optimizer(network.parameters()),
        epochs=recipe.epochs,
    )
    batches = partial(_batches, samples, plan.final.patch_shape, recipe, seed, chosen)
    try:
        report = fit(network.to(chosen), batches, learner, should_stop=should_stop, progress=progress)
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(f"Too little memory on {chosen} to train {package.card.version}.") from error
    tuned = networks.tensors_of(network)
    return tuned, replace(
        report,
        unchanged=weights.is_equal(tuned, base),
        n_patients=len({case.patient_key for case in cases}),
        n_slices=len(samples),
    )


def check_trainable(package: ModelPackage) -> None:
    """Refuse a model that corrections cannot tune.

    Raises
    ------
    ModelFormatError
        It has several networks, or outputs that do not exclude each other.
    """
    plan, version = package.plan, package.card.version
    if plan.networks > 1:
        raise ModelFormatError(
            f"{version} consists of {plan.networks} networks (folds, or the stages of a cascade); only a "
            "model of one network learns from corrections. Import one fold of one stage to have it learn."
        )
    if plan.region_classes:
        raise ModelFormatError(
            f"{version} finds regions that lie in each other; only a model whose labels exclude each other "
            "learns from corrections."
        )


def _samples(volumes: Sequence[ReviewedVolume], package: ModelPackage, recipe: Recipe) -> list[_Sample]:
    if recipe.balanced:
        voxel_weights = dafne_weights(volumes, classes=package.plan.classes)
    else:
        voxel_weights = [volume.trust for volume in volumes]
    return [
        (volume, weight, centre)
        for volume, weight in zip(volumes, voxel_weights, strict=True)
        for centre in volume.centres
    ]


def _batches(
    samples: Sequence[_Sample], shape: Triple, recipe: Recipe, seed: int, device: torch.device, epoch: int
) -> Iterator[Batch]:
    generator = epoch_generator(seed, epoch)
    order = torch.randperm(len(samples), generator=generator).tolist()
    steps = max(1, len(samples) // recipe.batch_size)
    for step in range(steps):
        chosen = [
            samples[index] for index in order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        ]
        patches = [cut(volume, weight, centre, shape) for volume, weight, centre in chosen]
        batch = Batch(
            images=torch.stack([patch.image for patch in patches])[:, None].to(device),  # (B, C, S, R, K)
            labels=torch.stack([patch.labels for patch in patches]).to(device),
            weights=torch.stack([patch.weights for patch in patches]).to(device),
            known=torch.stack([patch.known for patch in patches]).to(device),
        )
        yield _flipped(batch, recipe.flip_axes, generator=generator)


def _flipped(batch: Batch, axes: tuple[int, ...], *, generator: torch.Generator) -> Batch:
    """Mirror the whole batch along each axis with probability one half."""
    axes = tuple(axis - 3 for axis in axes if torch.rand((), generator=generator) < 0.5)
    if not axes or batch.weights is None or batch.known is None:
        return batch
    return Batch(
        images=batch.images.flip(axes),
        labels=batch.labels.flip(axes),
        weights=batch.weights.flip(axes),
        known=batch.known.flip(axes),
    )


def _partial_loss(recipe: Recipe, logits: Tensor, batch: Batch) -> Tensor:
    return recipe.loss(logits, batch.labels, weights=batch.weights, known=batch.known)
