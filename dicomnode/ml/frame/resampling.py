"""Bring values to a voxel grid of another size over the same extent.

Resampling with B-splines is linear and works axis by axis, so along each axis it is one small
matrix, and the whole is three matrix products: quick on any device, the same numbers on all of
them, and done slab by slab in bounded memory. The matrices come from SciPy, which therefore
decides what happens at the borders: voxel edges, not centres, are aligned, and the outermost
voxels go on for ever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dicomnode.ml.model.plan import Interpolation, Order

FloatArray = NDArray[np.float32]
Shape = tuple[int, int, int]

_ANISOTROPY = 3.0
"""Ratio of spacings above which the coarsest axis is treated apart (nnU-Net)."""
_SLAB_VOXELS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How each axis is interpolated."""

    orders: tuple[Order, Order, Order]
    apart: int | None = None  # the axis that is treated separately
    antialias: bool = False


def method_for(
    interpolation: Interpolation, *, spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> Method:
    """Decide how each axis is interpolated from one spacing to another (the rule of nnU-Net)."""
    order, apart = interpolation.order, _axis_apart(interpolation.separate, spacing_mm, target_mm)
    orders = [interpolation.order_across if axis == apart else order for axis in range(3)]
    return Method(orders=(orders[0], orders[1], orders[2]), apart=apart, antialias=interpolation.antialias)


def _axis_apart(separate: str, spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    if separate == "never":
        return None
    deciding = spacing_mm
    if separate == "auto":
        uneven = [s for s in (spacing_mm, target_mm) if max(s) / min(s) > _ANISOTROPY]
        if not uneven:
            return None
        deciding = uneven[0]
    coarsest = [axis for axis in range(3) if deciding[axis] == max(deciding)]
    return coarsest[0] if len(coarsest) == 1 else None


def resample(
    source: NDArray[np.generic],
    shape: Shape,
    method: Method,
    *,
    convert: Callable[[FloatArray], FloatArray] = lambda slab: slab,
    device: torch.device | None = None,
) -> FloatArray:
    """Put an array on a grid of another size over the same extent.

    Parameters
    ----------
    source
        (S, R, K), any type; read slab by slab and left unchanged.
    shape
        Of the result.
    method
        See :func:`method_for`. The result stays within the range of the source, or of each of its slices
        across the axis that is treated apart.
    convert
        Applied to each slab, as a float32 copy, before all else: normalisation, so that no converted copy
        of the whole image is needed.
    device
        Where the products are computed; None: the CPU.
    """
    first = method.apart or 0
    moved = np.moveaxis(source, first, 0)
    across = (shape[first], *(size for axis, size in enumerate(shape) if axis != first))
    orders = (method.orders[first], *(o for axis, o in enumerate(method.orders) if axis != first))
    result = _resample_first(moved, across, orders, method, convert, device or torch.device("cpu"))
    return np.ascontiguousarray(np.moveaxis(result, 0, first))


def _resample_first(
    source: NDArray[np.generic],
    shape: tuple[int, ...],
    orders: tuple[Order, ...],
    method: Method,
    convert: Callable[[FloatArray], FloatArray],
    device: torch.device,
) -> FloatArray:
    """Resample within the slices of the first axis, slab by slab, then across them."""
    within = torch.empty((source.shape[0], *shape[1:]))
    thickness = max(1, _SLAB_VOXELS // max(1, source.shape[1] * source.shape[2]))
    low, high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for start in range(0, source.shape[0], thickness):
        plain = convert(np.array(source[start : start + thickness], dtype=np.float32, order="C"))
        slab = torch.from_numpy(plain).to(device)
        low, high = torch.minimum(low, slab.min().cpu()), torch.maximum(high, slab.max().cpu())
        resampled = along(slab, 2, shape[2], orders[2], antialias=method.antialias)
        resampled = along(resampled, 1, shape[1], orders[1], antialias=method.antialias)
        if method.apart is not None:
            edges = slab.flatten(1)
            resampled = torch.clamp(resampled, edges.amin(1)[:, None, None], edges.amax(1)[:, None, None])
        within[start : start + thickness] = resampled.cpu()
    result = along(within, 0, shape[0], orders[0], antialias=method.antialias)
    return result.clamp_(low, high).numpy()


def along(values: Tensor, axis: int, size: int, order: Order, *, antialias: bool = False) -> Tensor:
    """Resample one axis of a three-dimensional tensor."""
    old = values.shape[axis]
    if size == old:
        return values
    if order == 0:
        return values.index_select(axis, torch.from_numpy(nearest(old, size)).to(values.device))
    weights = torch.from_numpy(matrix(old, size, order, antialias=antialias)).to(values.device)
    if axis == 2:
        return values @ weights.T
    if axis == 1:
        return weights @ values
    flat: Tensor = weights @ values.flatten(1)
    return flat.view(size, *values.shape[1:])


@lru_cache(maxsize=32)
def matrix(old: int, new: int, order: Order, *, antialias: bool = False) -> FloatArray:
    """Give the (new, old) matrix that resamples an axis of ``old`` voxels to ``new``."""
    columns = np.eye(old)
    factor = old / new
    if antialias and factor > 1:
        columns = ndimage.gaussian_filter1d(columns, (factor - 1) / 2, axis=0, mode="nearest")
    found = ndimage.zoom(columns, (new / old, 1), order=order, mode="nearest", grid_mode=True)
    weights: FloatArray = np.ascontiguousarray(found, dtype=np.float32)
    return weights


@lru_cache(maxsize=32)
def nearest(old: int, new: int) -> NDArray[np.int64]:
    """Say for each of ``new`` voxels which of ``old`` voxels is the nearest."""
    places = (np.arange(new) + 0.5) * (old / new) - 0.5
    chosen: NDArray[np.int64] = np.clip(np.floor(places + 0.5), 0, old - 1).astype(np.int64)
    return chosen


@lru_cache(maxsize=32)
def neighbours(old: int, new: int, order: Order) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    """Say for each of ``new`` voxels between which two of ``old`` it lies, and how far along: 0 to 1.

    For nearest-neighbour interpolation both are the same voxel.
    """
    if order == 0 or old == new:
        chosen = nearest(old, new)
        return chosen, chosen, np.zeros(new, np.float32)
    places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    lower = np.minimum(np.floor(places).astype(np.int64), old - 1)
    return lower, np.minimum(lower + 1, old - 1), (places - lower).astype(np.float32)
