"""Low-rank adapters: a network learns through a small sum beside each weight, which stays as it is.

Channel-wise factorisation of N-dimensional kernels (Dante, arXiv 2605.03602; LoRA, arXiv 2106.09685): a layer
with weight ``W[o, i, k]``, where ``k`` counts the K places of its kernel, computes with

``W + dW,  dW[o, i, k] = (alpha / rank) * sum_rho A[k, o, rho] * B[k, rho, i]``

so it learns ``K * rank * (O + I)`` numbers. O and I are the sizes of the weight itself: in a layer of so many
groups the one that each group sees is divided by their number. A transposed convolution keeps its weight as
``W[i, o, k]``, a linear layer has K = 1. Because the sum is formed before the layer computes, strides,
padding, dilation and groups are those of the layer, and merging it into the weight changes no result.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from dicomnode.errors import ConfigError
from dicomnode.ml.training.unfreezing import set_learning

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
_PLACE = "parametrizations.weight.0"
"""Where :mod:`torch.nn.utils.parametrize` keeps the adapter of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """How large the adapters are, and which layers get one."""

    rank: int = 8  # components of each adapter, at least 1
    alpha: float = 16.0  # the sum is multiplied by alpha / rank
    dropout: float = 0.0  # probability that a component is left out of a training step, below 1
    targets: tuple[str, ...] = ("*",)  # names of layers, as fnmatch reads them: * stands for dots as well

    def __post_init__(self) -> None:
        """Refuse sizes that make no adapter."""
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"adapters need a rank of at least 1, an alpha above 0 and a dropout from 0 to below 1; "
                f"found rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}"
            )


class Adapter(nn.Module):
    """The low-rank sum beside one weight; a parametrisation of :mod:`torch.nn.utils.parametrize`.

    Parameters
    ----------
    weight
        Of the layer; its shape, type and device are taken.
    settings
        Rank, alpha and dropout.
    is_transposed
        The weight is that of a transposed convolution: input channels come first.
    generator
        Gives the first A, as a uniform He initialisation of each ``A[k]`` with slope sqrt(5): within
        ``1 / sqrt(rank)`` of 0. The first B is 0, so that the layer begins with the weight that it has.
    """

    def __init__(
        self, weight: Tensor, settings: LoraSettings, *, is_transposed: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        first, second, *self._kernel = weight.shape
        rows, columns = (second, first) if is_transposed else (first, second)
        places = math.prod(self._kernel)
        drawn = torch.empty(places, rows, settings.rank)
        nn.init.kaiming_uniform_(drawn.view(-1, settings.rank), a=math.sqrt(5), generator=generator)
        self.a = nn.Parameter(drawn.to(weight))  # (K, O, rank)
        self.b = nn.Parameter(weight.new_zeros(places, settings.rank, columns))  # (K, rank, I)
        self._is_transposed = is_transposed
        self._scale = settings.alpha / settings.rank
        self._dropout = settings.dropout

    def forward(self, weight: Tensor) -> Tensor:
        """Give W + dW; while training, whole components are left out and the others scaled up instead."""
        ones = self.a.new_ones(self.a.shape[-1])
        kept = functional.dropout(ones, self._dropout, training=self.training)
        return weight + self._product(self.a * kept)

    def change(self) -> Tensor:
        """Give dW with all its components, in the shape of the weight."""
        return self._product(self.a)

    def _product(self, a: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):  # a rounded sum would not be what is merged
            product = self._scale * torch.matmul(a, self.b)  # (K, O, I)
        axes = (2, 1, 0) if self._is_transposed else (1, 2, 0)
        ordered = product.permute(axes)
        return ordered.reshape(*ordered.shape[:2], *self._kernel)


def attach(network: nn.Module, settings: LoraSettings, *, seed: int, also: Sequence[str] = ()) -> int:
    """Give layers an adapter each, and let nothing else learn.

    A layer that is registered under several names gets one adapter; a pattern may match any of the names.
    Batch norms still take in the statistics of what they see unless the network is in evaluation mode.

    Parameters
    ----------
    network
        Changed in place: its first output is the one before.
    settings
        Sizes of the adapters, and patterns for the names of the layers that get one.
    seed
        Decides the first A of each adapter. What dropout leaves out comes from torch's global generator.
    also
        Patterns for names of modules that learn with all their parameters, such as a new output layer.
        Layers inside them get no adapter.

    Returns
    -------
        How many numbers learn.

    Raises
    ------
    ConfigError
        A pattern matches nothing.
    ValueError
        A layer has an adapter, or another parametrisation, already.
    """
    names = _names(network)
    layers: dict[nn.Module, list[str]] = {m: own for m, own in names.items() if isinstance(m, _LAYERS)}
    targets = _matching(layers, settings.targets)
    whole = _matching({m: own for m, own in names.items() if any(True for _ in m.parameters())}, also)
    within = {inner for module in whole for inner in module.modules()}
    for layer in targets:
        if parametrize.is_parametrized(layer):
            raise ValueError(f"the layer {names[layer][0]!r} has an adapter already; merge it first")
    set_learning(network.parameters(), learns=False)
    for module in whole:
        set_learning(module.parameters(), learns=True)
    generator = torch.Generator().manual_seed(seed)
    for layer in targets:
        if layer not in within:
            _adapt(layer, settings, generator)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Add each dW to its weight and take the adapters off: names and order of the tensors are the first ones.

    Afterwards all parameters may learn again. A deep copy of the network keeps its own adapters, so one can
    be merged and judged while the other goes on learning.
    """
    for name, adapter in list(_adapters(network)):
        layer = network.get_submodule(name)
        chain = layer.get_submodule("parametrizations.weight")
        weight = chain.get_parameter("original")
        weight.add_(adapter.change())
        # parametrize.remove_parametrizations takes the property off the class, which deep copies share.
        kind = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
        layer.__class__ = kind
        _register_first(layer, weight)
    network.requires_grad_(True)


def adapters(network: nn.Module) -> dict[str, Tensor]:
    """Copy A and B of each adapter, on the CPU, as ``LAYER.a`` and ``LAYER.b`` by the layer's first name."""
    return {
        f"{name}.{key}" if name else key: tensor.detach().cpu().clone()
        for name, adapter in _adapters(network)
        for key, tensor in adapter.named_parameters()
    }


@torch.no_grad()
def delta(network: nn.Module) -> dict[str, Tensor]:
    """Give the exact dW of each adapter, on the CPU, by the name of the weight that it will be added to.

    The mean of such changes is what sites agree on: a mean of A and of B would not be the mean of dW.
    """
    return {
        f"{name}.weight" if name else "weight": adapter.change().cpu() for name, adapter in _adapters(network)
    }


def _adapt(layer: nn.Module, settings: LoraSettings, generator: torch.Generator) -> None:
    adapter = Adapter(
        layer.get_parameter("weight"),
        settings,
        is_transposed=isinstance(layer, _TRANSPOSED),
        generator=generator,
    )
    parametrize.register_parametrization(layer, "weight", adapter)


def _register_first(layer: nn.Module, weight: nn.Parameter) -> None:
    """Put the weight back before the bias, where it was: optimisers and averages go by the order."""
    bias = layer.bias
    del layer.bias
    layer.register_parameter("weight", weight)
    layer.register_parameter("bias", bias if isinstance(bias, nn.Parameter) else None)


def _adapters(network: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Go through the adapters with the first name of each one's layer."""
    for name, module in network.named_modules():
        if isinstance(module, Adapter):
            yield name.removesuffix(_PLACE).removesuffix("."), module


def _names(network: nn.Module) -> dict[nn.Module, list[str]]:
    """Give all names of each module, the first one first."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _matching(names: Mapping[nn.Module, Sequence[str]], patterns: Sequence[str]) -> list[nn.Module]:
    """Choose the modules that a pattern matches by one of their names; every pattern must match something."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for own in names.values() for name in own):
            known = ", ".join(repr(own[0]) for own in names.values())
            raise ConfigError(f"the pattern {pattern!r} matches no layer; expected one of {known}")
    return [
        module
        for module, own in names.items()
        if any(fnmatchcase(name, pattern) for name in own for pattern in patterns)
    ]
