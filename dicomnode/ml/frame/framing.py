"""Put an image into the frame of a network, and labels back onto the image's own voxels.

In: permute and flip the axes (no interpolation), leave out a border of zeros, normalise the
intensities, resample. Back: resample the scores (see ``ml.inference``), put the labels into the
border again, permute and flip. The order is that of nnU-Net v2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from highdicom import Volume
from numpy.typing import NDArray

from dicomnode.ml.frame import grid, intensities, resampling
from dicomnode.ml.frame.grid import AxisChange, Shape
from dicomnode.ml.frame.resampling import Method
from dicomnode.ml.model.plan import Interpolation, Plan, Stage

FloatArray = NDArray[np.float32]
Labels = NDArray[np.uint8]

_LABELS = Interpolation(order=1, separate="auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """An image as a network sees it, and what is needed to come back."""

    array: FloatArray  # (S, R, K) along the axes of the plan; normalised, on the grid of the network
    change: AxisChange
    full_shape: Shape  # along the axes of the plan, before cropping
    box: tuple[slice, slice, slice]  # what cropping left of it
    spacing_mm: tuple[float, float, float]  # of the image, along the axes of the plan
    target_mm: tuple[float, float, float]  # of the network
    is_constant: bool  # nothing to be seen in it

    @property
    def shape(self) -> Shape:
        """Shape after cropping and before resampling, along the axes of the plan."""
        sizes = [part.stop - part.start for part in self.box]
        return sizes[0], sizes[1], sizes[2]

    def position_of(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """Say where a point of the image, in its voxel indices, lies in this array's voxels."""
        sizes = np.empty(3)
        sizes[list(self.change.order)] = self.full_shape
        mirrored = [sizes[axis] - 1 - x if axis in self.change.flips else x for axis, x in enumerate(point)]
        ratios = np.asarray(self.array.shape) / np.asarray(self.shape)
        oriented = np.asarray(mirrored)[list(self.change.order)] - [part.start for part in self.box]
        first, second, third = ((oriented + 0.5) * ratios - 0.5).tolist()
        return first, second, third


def frame(image: Volume, plan: Plan, stage: Stage, *, device: torch.device | None = None) -> Framed:
    """Bring an image to what the network of a stage sees.

    Parameters
    ----------
    image
        Any orientation, oblique included, and any spacing; modality units; no channels; left unchanged.
    plan, stage
        The stage is one of the plan's.
    device
        Where resampling is computed; None: the CPU.

    Raises
    ------
    GeometryError
        Fewer than two voxels along an axis, channels, no patient frame, or a grid too large.
    UnsupportedSeriesError
        NaN or infinite intensities.
    """
    grid.check_image(image)
    change = axis_change(image, plan)
    oriented = change.apply(image.array)
    box = intensities.nonzero_box(oriented) if plan.crop_to_nonzero else whole(oriented.shape)
    spacing = tuple(float(image.spacing[axis]) for axis in change.order)
    target = tuple(
        own if wanted is None else wanted for own, wanted in zip(spacing, stage.spacing_mm, strict=True)
    )
    cropped = oriented[box]
    shape = grid.resampled_shape(
        cropped.shape, spacing_mm=spacing, target_mm=target, tolerance=stage.spacing_tolerance
    )
    method = resampling.method_for(stage.image_interpolation, spacing_mm=spacing, target_mm=target)
    full = oriented.shape
    return Framed(
        array=_normal(cropped, shape, method, stage, device),
        change=change,
        full_shape=(full[0], full[1], full[2]),
        box=box,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        target_mm=(target[0], target[1], target[2]),
        is_constant=bool(cropped.min() == cropped.max()),
    )


def axis_change(image: Volume, plan: Plan) -> AxisChange:
    """Find the flips and the permutation from the axes of an image to those of a plan."""
    towards = grid.change_towards(image, orientation=plan.orientation)
    first, second, third = (towards.order[axis] for axis in plan.axis_order)
    return AxisChange(order=(first, second, third), flips=towards.flips)


def whole(shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Give the box that leaves nothing out."""
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def frame_labels(labels: Labels, framed: Framed, *, by_majority: bool = False) -> Labels:
    """Bring class indices on the grid of an image to the grid of its framed form.

    Each class is resampled on its own and the largest share wins, so borders stay smooth.

    Parameters
    ----------
    labels
        (S, R, K) on the grid of the image.
    by_majority
        The rule of nnU-Net: a class needs at least half of a voxel, the higher class wins a tie, and where no
        class has half there is background.
    """
    cropped = framed.change.apply(labels)[framed.box]
    sizes = framed.array.shape
    shape = (sizes[0], sizes[1], sizes[2])
    if cropped.shape == shape:
        return np.ascontiguousarray(cropped)
    method = resampling.method_for(_LABELS, spacing_mm=framed.spacing_mm, target_mm=framed.target_mm)
    best = (
        np.full(shape, np.float32(0.5)) if by_majority else resampling.resample(cropped == 0, shape, method)
    )
    moved = np.zeros(shape, np.uint8)
    for index in np.unique(cropped[cropped > 0]):
        share = resampling.resample(cropped == index, shape, method)
        if by_majority:
            moved[share >= best] = index
        else:
            moved[share > best] = index
            np.maximum(best, share, out=best)
    return moved


def unframe_labels(labels: Labels, framed: Framed) -> Labels:
    """Bring class indices on the cropped grid (``framed.shape``) back to the grid of the image, exactly."""
    if labels.shape == framed.full_shape:
        whole_image = labels
    else:
        whole_image = np.zeros(framed.full_shape, np.uint8)
        whole_image[framed.box] = labels
    return np.ascontiguousarray(framed.change.undo(whole_image))


def _normal(
    cropped: NDArray[np.generic], shape: Shape, method: Method, stage: Stage, device: torch.device | None
) -> FloatArray:
    """Normalise and resample; voxels outside the region of a z-score keep their value, as in nnU-Net."""
    if intensities.region_is_needed(stage.normalisation):
        normal = intensities.normalise(cropped, stage.normalisation)
        return resampling.resample(normal, shape, method, device=device)
    scaling = intensities.scaling(cropped, stage.normalisation)
    return resampling.resample(cropped, shape, method, convert=scaling.apply, device=device)
