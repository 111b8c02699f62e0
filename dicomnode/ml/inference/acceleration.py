"""Make a network quick on the device it runs on, without changing what it computes.

On the CPU the time of a U-Net goes into convolutions, and as much again into copies between memory
layouts around them: PyTorch normalises instances in one layout and convolves in another, and leaves
small convolutions to a slow path. Here channels stay last throughout, every convolution goes to
oneDNN, instances are normalised and blocks of voxels averaged where they lie.

On a GPU the same layout is kept and convolutions run in bfloat16.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional


def prepare(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to its device for inference; it is changed in place and can no longer be trained."""
    network = network.to(device).eval().requires_grad_(requires_grad=False)
    if any(parameter.ndim == 5 for parameter in network.parameters()):
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        _replace(network)
    return network


def copy_to(network: nn.Module, device: torch.device) -> nn.Module:
    """Give a copy of a network that was prepared for a GPU on another device, for as long as it is wanted."""
    return prepare(copy.deepcopy(network), device)


def layout(images: Tensor) -> Tensor:
    """Bring images (B, C, S, R, K) into the memory layout that prepared networks are quick with."""
    return images.contiguous(memory_format=torch.channels_last_3d)


def precision(device: torch.device) -> AbstractContextManager[object]:
    """Give the context that a network runs in: bfloat16 on a GPU that has it, single precision elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


class _Convolution(nn.Module):
    """A convolution by oneDNN, whatever its size."""

    def __init__(self, plain: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self._padding = _fixed(plain.padding)
        self._stride, self._dilation, self._groups = plain.stride, plain.dilation, plain.groups

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = torch.mkldnn_convolution(
            images, self.weight, self.bias, self._padding, self._stride, self._dilation, self._groups
        )
        return result


class _Normalisation(nn.Module):
    """Instance normalisation that keeps the memory layout, with sums as exact as PyTorch's own."""

    def __init__(self, plain: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self._eps = plain.weight, plain.bias, plain.eps

    def forward(self, images: Tensor) -> Tensor:
        normal = [self._normalise(one[None]) for one in images]
        return normal[0] if len(normal) == 1 else torch.cat(normal)

    def _normalise(self, image: Tensor) -> Tensor:
        mean, variance = _moments(image)
        return functional.batch_norm(image, mean, variance, self.weight, self.bias, eps=self._eps)


class _Pooling(nn.Module):
    """The mean of blocks that do not overlap, without the copies that PyTorch's own makes around it."""

    def __init__(self, plain: nn.AvgPool3d) -> None:
        super().__init__()
        self._plain = plain
        self._block = _three(plain.kernel_size)

    def forward(self, images: Tensor) -> Tensor:
        if any(size % wanted for size, wanted in zip(images.shape[2:], self._block, strict=True)):
            plain: Tensor = self._plain(images)
            return plain
        first, *others = (self._every(images, offsets) for offsets in product(*map(range, self._block)))
        total = first.clone()
        for other in others:
            total += other
        return total.div_(math.prod(self._block))

    def _every(self, images: Tensor, offsets: Sequence[int]) -> Tensor:
        """Take one voxel of each block."""
        steps = (slice(offset, None, step) for offset, step in zip(offsets, self._block, strict=True))
        return images[(slice(None), slice(None), *steps)]


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and variance of each channel of an image (1, C, S, R, K).

    PyTorch sums this layout voxel after voxel in single precision, which costs four digits in a large
    image. Interleaved parts are therefore summed as if they were channels of their own, and
    put together in double precision.
    """
    channels = image.shape[1]
    rows = image.movedim(1, -1).reshape(-1, channels)
    parts = (
        math.gcd(len(rows), max(1, 2 ** int(math.log2(_MOST_SUMS / channels))))
        if channels < _MOST_SUMS
        else 1
    )
    means, variances = torch.batch_norm_update_stats(rows.reshape(-1, parts * channels), None, None, 0.0)
    means, variances = (part.double().view(parts, channels) for part in (means, variances))
    mean = means.mean(0)
    variance = (variances + (means - mean) ** 2).mean(0)
    return mean.float(), variance.float()


_MOST_SUMS = 2**13

_REPLACEMENTS: tuple[tuple[type[nn.Module], Callable[..., nn.Module]], ...] = (
    (nn.Conv3d, _Convolution),
    (nn.InstanceNorm3d, _Normalisation),
    (nn.AvgPool3d, _Pooling),
)


def _replace(network: nn.Module) -> None:
    made: dict[int, nn.Module] = {}  # networks register a layer under several names
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if id(child) not in made and _can_replace(child):
                made[id(child)] = _replacement(child)
            if id(child) in made:
                setattr(module, name, made[id(child)])


def _can_replace(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv3d):
        return type(module) is nn.Conv3d and module.padding_mode == "zeros" and module.padding != "same"
    if isinstance(module, nn.InstanceNorm3d):
        return type(module) is nn.InstanceNorm3d and not module.track_running_stats
    if isinstance(module, nn.AvgPool3d):
        return _three(module.stride) == _three(module.kernel_size) and not any(_three(module.padding))
    return False


def _replacement(module: nn.Module) -> nn.Module:
    return next(make(module) for kind, make in _REPLACEMENTS if isinstance(module, kind))


def _three(sizes: int | Sequence[int]) -> tuple[int, ...]:
    return (sizes,) * 3 if isinstance(sizes, int) else tuple(sizes)


def _fixed(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    return (0, 0, 0) if isinstance(padding, str) else padding
