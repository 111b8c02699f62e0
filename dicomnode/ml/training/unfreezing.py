"""Which layers learn, and how fast, by how far they lie from the output (Dante, arXiv 2605.03602)."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dicomnode.errors import ConfigError

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_OUTPUTS = "seg_layers"
"""So the U-Nets of dynamic-network-architectures call their output layers, one for each resolution."""

_SLACK = 1e-9
"""Shares such as 1/49 * 49 fall a rounding error short of a whole number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layers:
    """The modules of one network that have parameters of their own, each once, the input's end first."""

    modules: tuple[nn.Module, ...]  # norms among them; the last ones are the head
    head: tuple[nn.Module, ...]  # output layers: they give the scores of the classes

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """What is frozen and unfrozen: all but the norms."""
        return tuple(module for module in self.modules if not isinstance(module, _NORMS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfreezing:
    """Dante's schedule: the part of a network at the output learns from the beginning, the rest joins in.

    In epoch e of E, wherever e is a multiple of ``max(1, floor(0.1 E))``, the share of blocks that learn
    becomes ``min(1, 1 - degree + e / floor(0.75 E))``.
    """

    degree: float = 0.5  # share of the blocks that is frozen at first; 0 to below 1
    epochs: int = 50  # E; a training of any length is taken as so many

    def __post_init__(self) -> None:
        """Refuse a schedule in which nothing learns at first, or that has no time."""
        if not 0 <= self.degree < 1 or self.epochs < 1:
            raise ConfigError(
                "gradual unfreezing needs a degree from 0 to below 1 and at least one epoch; "
                f"found degree {self.degree} and {self.epochs} epochs"
            )

    def fraction(self, done: float) -> float:
        """Give the share of the blocks that learn, when this share of the training lies behind (0 to 1)."""
        epoch = math.floor(done * self.epochs + _SLACK)
        epoch -= epoch % max(1, self.epochs // 10)
        return min(1.0, 1.0 - self.degree + epoch / max(1, math.floor(0.75 * self.epochs)))


def layers_of(network: nn.Module, shape: tuple[int, ...]) -> Layers:
    """Put the layers of a network in the order in which it computes.

    The order of registration is another one: nnU-Net's decoders register all their blocks, then all
    upsampling, then all outputs. So an input passes through a copy of the network, and the first call of each
    module counts. The copy lies on torch's meta device, where tensors have shapes only: it takes no memory,
    computes nothing and leaves the network as it is, on whichever device that is.

    A layer that the pass does not call has the place of the module that it lies in. Output layers come last,
    those of coarse resolutions first, whether or not the network gives their scores at the moment.

    Parameters
    ----------
    shape
        Of one input without the batch, ``(C, S, R, K)``: channels, and a patch that the network can take.
    """
    called = _first_calls(network, shape)
    names = sorted(_owners(network), key=lambda name: _place(name, called))
    modules = [network.get_submodule(name) for name in names]
    head = _coarse_outputs(network) or tuple(_last_block(modules))
    return Layers(modules=(*(module for module in modules if module not in head), *head), head=head)


def apply(layers: Layers, fraction: float) -> None:
    """Let this share of the blocks learn, counted from the output; norms always learn.

    Of N blocks the first ``floor(N * (1 - fraction))`` are frozen. Frozen parameters lose their gradients, so
    that no optimiser still applies them.
    """
    blocks = layers.blocks
    frozen = set(blocks[: math.floor(len(blocks) * (1.0 - fraction) + _SLACK)])
    for module in layers.modules:
        set_learning(module.parameters(recurse=False), learns=module not in frozen)


def only_head(layers: Layers) -> None:
    """Let nothing but the output layers learn, norms neither."""
    for module in layers.modules:
        set_learning(module.parameters(recurse=False), learns=module in layers.head)


def discriminative_rates(layers: Layers) -> list[tuple[list[nn.Parameter], float]]:
    """Give parameters with the factors of their learning rates: 0.1 at the input to 1 at the output.

    Module i of N, norms included, has ``0.1 + 0.9 i / (N - 1)``. Each parameter is there once; one that
    several modules share goes with the first.
    """
    seen: set[nn.Parameter] = set()
    rates = []
    last = len(layers.modules) - 1
    for index, module in enumerate(layers.modules):
        own = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
        seen.update(own)
        rates.append((own, 0.1 + 0.9 * index / last if last else 1.0))
    return [(own, factor) for own, factor in rates if own]


def set_learning(parameters: Iterable[nn.Parameter], *, learns: bool) -> None:
    """Let parameters learn or not; those that do not lose gradients that an optimiser might still apply."""
    for parameter in parameters:
        parameter.requires_grad_(learns)
        if not learns:
            parameter.grad = None


def _owners(network: nn.Module) -> Iterator[str]:
    """Go through the modules with parameters of their own, by the first name of each."""
    for name, module in network.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            yield name


@torch.no_grad()
def _first_calls(network: nn.Module, shape: tuple[int, ...]) -> Mapping[str, int]:
    """Number the modules by their first call; those that are not called are missing."""
    twin = _twin(network)
    names = {module: name for name, module in twin.named_modules()}
    called: dict[str, int] = {}

    def note(caller: nn.Module, _: object) -> None:
        called.setdefault(names[caller], len(called))

    for module in names:
        module.register_forward_pre_hook(note)
    twin(torch.empty(1, *shape, device="meta"))
    return called


def _twin(network: nn.Module) -> nn.Module:
    """Copy a network without the values of its tensors: copying begins with those already replaced."""
    empty: dict[int, object] = {}
    for parameter in network.parameters():
        ghost = torch.empty_like(parameter, device="meta", requires_grad=False)
        empty[id(parameter)] = nn.Parameter(ghost, requires_grad=False)
    for buffer in network.buffers():
        empty[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, empty)


def _place(name: str, called: Mapping[str, int]) -> int:
    while name not in called:
        name = name.rpartition(".")[0]  # the outermost module, which has no name, is always called
    return called[name]


def _coarse_outputs(network: nn.Module) -> tuple[nn.Module, ...]:
    """Find the output layers of a network that has one per resolution; the finest is last."""
    for name, module in network.named_modules():
        if name.rpartition(".")[2] == _OUTPUTS:
            return tuple(module.children())
    return ()


def _last_block(modules: list[nn.Module]) -> list[nn.Module]:
    return [module for module in modules if not isinstance(module, _NORMS)][-1:]
