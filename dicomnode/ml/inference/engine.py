"""Segment an image with a model: labels on exactly the voxels of the input."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from highdicom import Volume
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomnode import weights
from dicomnode.domain import ModelCard
from dicomnode.errors import ConfigError, GpuMemoryError
from dicomnode.ml.frame import grid
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import Plan

Progress = Callable[[int, int], None]
"""Called with (passes done, passes) while an image is segmented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to segment, on its device."""

    plan: Plan
    card: ModelCard
    network: nn.Module
    device: torch.device


def load(package: ModelPackage, *, device: str = "auto") -> LoadedModel:
    """Build the network of a package and put its weights in.

    Parameters
    ----------
    device
        ``"auto"`` takes the GPU when there is one; else a torch device such as ``"cpu"``.

    Raises
    ------
    ModelFormatError
        The weights are not those of the plan, or not finite.
    GpuMemoryError
        The accelerator has no room for the network.
    """
    network = networks.build(package.plan.network)
    networks.load(network, weights.read(package.weights_path))
    return assemble(package.plan, package.card, network, device=device)


def choose_device(device: str) -> torch.device:
    """Turn a device name of the settings into a device: ``"auto"`` takes the GPU when there is one.

    Raises
    ------
    ConfigError
        No such device here.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(found if device == "auto" else device)
    except RuntimeError as error:
        raise ConfigError(f"No device is called {device!r}; use auto, cpu or cuda.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"The device {device!r} was asked for, but no GPU that torch can use is here.")
    return chosen


def assemble(plan: Plan, card: ModelCard, network: nn.Module, *, device: str = "auto") -> LoadedModel:
    """Make a network that is already in memory ready to segment; it is moved, not copied."""
    chosen = choose_device(device)
    try:
        placed = network.to(chosen).eval()
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(f"No room for the network of {card.version} on {chosen}.") from error
    return LoadedModel(plan=plan, card=card, network=placed, device=chosen)


def predict(model: LoadedModel, image: Volume, *, progress: Progress | None = None) -> Volume:
    """Segment an image.

    Parameters
    ----------
    model
        From :func:`load`.
    image
        Modality units, any scale; any orientation and spacing; left unchanged.
    progress
        Called after each mirrored pass.

    Returns
    -------
        Class indices, uint8, 0 for background, on the grid of ``image``. An image without contrast
        is all background.

    Raises
    ------
    GeometryError
        Fewer than two voxels along an axis, or no single-channel volume in patient space.
    UnsupportedSeriesError
        NaN or infinite intensities.
    GpuMemoryError
        The accelerator has too little memory.
    """
    plan = model.plan
    framed = grid.frame(
        image, orientation=plan.orientation, spacing_mm=plan.spacing_mm, normalisation=plan.normalisation
    )
    if framed.is_constant:
        return image.with_array(np.zeros(image.spatial_shape, np.uint8))
    try:
        probabilities = _probabilities(model, framed.array, progress=progress)
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(
            f"Too little memory on {model.device} for an image of {image.spatial_shape}."
        ) from error
    labels = _largest_class(probabilities, shape=framed.shape)
    return image.with_array(np.ascontiguousarray(framed.change.undo(labels)))


def _probabilities(
    model: LoadedModel, array: NDArray[np.float32], *, progress: Progress | None
) -> NDArray[np.float32]:
    """Average the softmax over mirrored passes: (classes, S, R, K)."""
    images = torch.from_numpy(array)[None, None].to(model.device)  # (B, C, S, R, K)
    flips = list(_mirrors(model.plan.mirror_axes))
    total = torch.zeros(())
    with torch.inference_mode():
        for done, axes in enumerate(flips, start=1):
            logits = _window_pass(model, images.flip(axes))
            total = total + torch.softmax(logits.flip(axes), dim=1)[0].cpu()
            if progress is not None:
                progress(done, len(flips))
    return (total / len(flips)).numpy()


def _mirrors(axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for count in range(len(axes) + 1):
        for chosen in combinations(axes, count):
            yield tuple(axis + 2 for axis in chosen)


def _window_pass(model: LoadedModel, images: Tensor) -> Tensor:
    logits = sliding_window_inference(
        images,
        roi_size=model.plan.patch_shape,
        sw_batch_size=2,
        predictor=model.network,
        overlap=model.plan.overlap,
        mode="gaussian",
    )
    if not isinstance(logits, Tensor):
        raise TypeError("the network gave more than one output")
    return logits.float()


def _largest_class(probabilities: NDArray[np.float32], *, shape: grid.Shape) -> NDArray[np.uint8]:
    best = grid.resample(probabilities[0], shape)
    labels = np.zeros(shape, np.uint8)
    for index in range(1, len(probabilities)):
        channel = grid.resample(probabilities[index], shape)
        labels[channel > best] = index
        np.maximum(best, channel, out=best)
    return labels
