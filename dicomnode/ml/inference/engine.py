"""Segment an image with a model: labels on exactly the voxels of the input."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from highdicom import Volume
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomnode.domain import ModelCard
from dicomnode.errors import ConfigError, GpuMemoryError
from dicomnode.ml.frame import framing, resampling
from dicomnode.ml.frame.framing import Framed
from dicomnode.ml.inference import acceleration, heap, ladder, window
from dicomnode.ml.inference.ladder import Step
from dicomnode.ml.inference.painting import Painter
from dicomnode.ml.inference.window import Progress, Window
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.package import ModelPackage, read_weights
from dicomnode.ml.model.plan import Plan, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to segment, on its device."""

    plan: Plan
    card: ModelCard
    networks: tuple[tuple[nn.Module, ...], ...]  # of each stage, its members
    device: torch.device

    @property
    def size_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(
            tensor.numel() * tensor.element_size()
            for members in self.networks
            for member in members
            for tensor in (*member.parameters(), *member.buffers())
        )


def load(package: ModelPackage, *, device: str = "auto") -> LoadedModel:
    """Build the networks of a package and put their weights in.

    Parameters
    ----------
    device
        ``"auto"`` takes the GPU when there is one; else a torch device such as ``"cpu"``.

    Raises
    ------
    ModelFormatError
        The weights are not those of the plan, or not finite.
    GpuMemoryError
        The accelerator has no room for the networks.
    ConfigError
        No such device here, or the networks need an extra that is not installed.
    """
    chosen = choose_device(device)
    built = networks.build_all(package.plan, read_weights(package))
    try:
        placed = tuple(tuple(acceleration.prepare(one, chosen) for one in members) for members in built)
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(f"No room for the networks of {package.card.version} on {chosen}.") from error
    return LoadedModel(plan=package.plan, card=package.card, networks=placed, device=chosen)


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


def predict(
    model: LoadedModel,
    image: Volume,
    *,
    progress: Progress | None = None,
    mirror: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Volume:
    """Segment an image.

    When memory runs out, leaner ways are tried: fewer tiles at once, smaller tiles (whose result differs a
    little), the CPU.

    Parameters
    ----------
    model
        From :func:`load`.
    image
        Modality units, any scale; any orientation and spacing; left unchanged.
    progress
        Called after each pass with the passes done and all passes of the stage.
    mirror
        Whether mirrored passes are averaged, as the plan says; without them a segmentation takes up to
        an eighth of the time.
    note
        Told in words when a leaner way had to be taken.

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
        Too little memory for the leanest way.
    """
    wishes = _Wishes(mirror=mirror, progress=progress, note=note)
    labels: NDArray[np.uint8] | None = None
    for stage in model.plan.stages:
        framed = framing.frame(image, model.plan, stage, device=model.device)
        if framed.is_constant:
            return image.with_array(np.zeros(image.spatial_shape, np.uint8))
        channels = _channels(framed, labels, classes=model.plan.classes)
        labels = _segment(model, stage, framed, channels, wishes=wishes)
    if labels is None:
        raise RuntimeError("a plan has no stage")
    return image.with_array(labels)


def _channels(framed: Framed, previous: NDArray[np.uint8] | None, *, classes: int) -> Tensor:
    """Stack what a network sees: the image and, in a cascade, one channel for each class found before."""
    image = torch.from_numpy(framed.array)[None]  # (C, S, R, K)
    if previous is None:
        return image
    found = torch.from_numpy(framing.frame_labels(previous, framed, by_majority=True))
    return torch.cat([image, torch.stack([found == index for index in range(1, classes)]).float()])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wishes:
    """What the caller of :func:`predict` asked for."""

    mirror: bool
    progress: Progress | None
    note: Callable[[str], None]


def _segment(
    model: LoadedModel, stage: Stage, framed: Framed, channels: Tensor, *, wishes: _Wishes
) -> NDArray[np.uint8]:
    """Run one stage, in the first way that memory allows: labels on the grid of the image."""
    members = model.networks[model.plan.stages.index(stage)]

    def run(step: Step) -> NDArray[np.uint8]:
        painter = _painter(model.plan, stage, framed, step.device)
        mirror_axes = stage.mirror_axes if wishes.mirror else ()
        at_home = step.device == model.device
        with heap.kept():
            window.slide(
                members if at_home else [acceleration.copy_to(one, step.device) for one in members],
                channels,
                Window(tile=step.tile, overlap=stage.overlap, mirror_axes=mirror_axes, batch=step.batch),
                device=step.device,
                emit=painter.take,
                progress=wishes.progress,
            )
        return painter.labels

    labels = ladder.climb_down(ladder.steps(stage, model.device), run, note=wishes.note)
    return framing.unframe_labels(labels, framed)


def _painter(plan: Plan, stage: Stage, framed: Framed, device: torch.device) -> Painter:
    slices, rows, columns = framed.array.shape
    method = resampling.method_for(
        stage.score_interpolation, spacing_mm=framed.target_mm, target_mm=framed.spacing_mm
    )
    return Painter(
        (slices, rows, columns), framed.shape, method, region_classes=plan.region_classes, device=device
    )
