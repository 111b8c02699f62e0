"""A network on its way from first weights to last ones: what changes with every step of a training."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dicomnode.ml.model import network as networks
from dicomnode.ml.model.architecture import NetworkPlan, UNetPlan
from dicomnode.ml.training.fit import Batch
from dicomnode.ml.training.objective import Loss, Regions, agreement
from dicomnode.ml.training.pace import Optimiser
from dicomnode.ml.training.processes import Processes
from dicomnode.weights import Tensors

_WEIGHTS, _AVERAGE, _MEMORY = "weights", "average", "optimiser-"
"""Kinds of tensors in a checkpoint; the optimiser has one for each thing that it remembers of a weight."""


Groups = Sequence[tuple[Sequence[nn.Parameter], float]]
"""Weights that learn, and the share of the learning rate that they learn with."""


def alike(network: nn.Module) -> Groups:
    """Let all weights that can learn do so with the same rate."""
    return [([one for one in network.parameters() if one.requires_grad], 1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a network learns from a batch."""

    loss: Loss
    optimiser: Optimiser
    learning_rate: float  # highest
    regions: Regions = ()  # label values of each output; empty: outputs are classes that exclude each other
    clip_norm: float | None = 12.0  # of all gradients together
    average_decay: float | None = None  # of the running mean of the weights, per step; None: no mean
    bfloat16: bool = False  # convolutions in bfloat16; weights and loss stay in single precision
    groups: Callable[[nn.Module], Groups] = alike
    thaw: Callable[[nn.Module, float], None] | None = None  # with the share done: says which weights learn
    penalty: Callable[[nn.Module], Tensor] | None = None  # on the weights themselves
    finish: Callable[[nn.Module], None] | None = None  # makes the network whose weights are the result


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a step saw."""

    loss: float  # NaN or infinite where the training has come to nothing
    agreement: Tensor  # (2, labels): see :func:`dicomnode.ml.training.objective.agreement`


def fresh(plan: NetworkPlan, *, seed: int) -> nn.Module:
    """Build a network to train from scratch; the U-Nets of nnU-Net are supervised at all resolutions."""
    torch.manual_seed(seed)
    return networks.build(plan, deep_supervision=isinstance(plan, UNetPlan))


class Run:
    """One network, its optimiser, and the running mean of its weights."""

    def __init__(self, network: nn.Module, method: Method, processes: Processes, *, seed: int) -> None:
        self._method = method
        self._processes = processes
        self._seed = seed
        bare = network.to(processes.device)
        self._keeps_channels_last = _is_quick_with_channels_last(bare, method, processes.device)
        if self._keeps_channels_last:
            bare = bare.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._bare = bare
        self._shared = processes.share(bare)
        self._optimizer = method.optimiser.make(_param_groups(method.groups(bare)), method.learning_rate)
        decay = method.average_decay
        self._average = (
            None if decay is None else AveragedModel(bare, multi_avg_fn=_blend(decay), use_buffers=True)
        )

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def begin_from(self, tensors: Tensors) -> None:
        """Put other first weights in; errors as :func:`dicomnode.ml.model.network.load`."""
        networks.load(self._bare, tensors)

    def step(self, batch: Batch, *, number: int, done: float) -> Learned:
        """Learn from a batch.

        Parameters
        ----------
        number
            Of the step, from 0; decides what is random in the network.
        done
            Share of the training that lies behind, which decides the learning rate.
        """
        torch.manual_seed(
            (self._seed * 1_000_003 + number * self._processes.count + self._processes.rank) % 2**63
        )
        for group in self._optimizer.param_groups:
            group["lr"] = group["share"] * self._method.learning_rate * self._method.optimiser.fall(done)
        self._shared.train()
        if self._method.thaw is not None:
            self._method.thaw(self._bare, done)
        self._optimizer.zero_grad(set_to_none=True)
        outputs, placed = self._outputs(self._shared, batch)
        loss = self._method.loss(outputs, placed)
        if self._method.penalty is not None:
            loss = loss + self._method.penalty(self._bare)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._method.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._bare.parameters(), self._method.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._bare)
        found = agreement(_finest(outputs).detach().float(), placed, regions=self._method.regions)
        return Learned(loss=float(loss.detach()), agreement=found.cpu())

    @torch.no_grad()
    def judge(self, batches: Iterable[Batch]) -> tuple[float, list[float | None]]:
        """Compare what the network finds with the truth of some batches, all processes together.

        Returns
        -------
            Mean loss of the batches, and the Dice of each label over all of them, None where there is none.
        """
        network = self._bare if self._average is None else self._average.module
        network.eval()
        losses, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(0)
        for batch in batches:
            outputs, placed = self._outputs(network, batch)
            scores = _finest(outputs).float()
            losses += torch.tensor([float(self._method.loss(scores, placed)), 1.0])
            found = agreement(scores, placed, regions=self._method.regions).cpu()
            counts = found if not len(counts) else counts + found
        losses, counts = self._processes.sum(losses), self._processes.sum(counts)
        return float(losses[0] / losses[1]), dice_of(counts)

    def result(self) -> Tensors:
        """Give the weights that the training is for: their running mean where there is one."""
        network: nn.Module = self._bare if self._average is None else self._average.module
        if self._method.finish is not None:
            network = copy.deepcopy(network)
            self._method.finish(network)
        return networks.tensors_of(network)

    def state(self) -> dict[str, Tensors]:
        """Give all tensors that decide how the training goes on, by kind."""
        kinds = {_WEIGHTS: networks.tensors_of(self._bare)}
        for name, parameter in self._bare.named_parameters():
            for key, value in self._optimizer.state[parameter].items():
                kinds.setdefault(_MEMORY + key, {})[name] = (
                    torch.as_tensor(value).detach().cpu().clone().contiguous()
                )
        if self._average is not None:
            kinds[_AVERAGE] = networks.tensors_of(self._average.module)
        return kinds

    def restore(self, kinds: dict[str, Tensors], *, steps: int) -> None:
        """Go on from a state after so many steps; errors as :func:`dicomnode.ml.model.network.load`."""
        networks.load(self._bare, kinds[_WEIGHTS])
        for name, parameter in self._bare.named_parameters():
            for kind, tensors in kinds.items():
                if kind.startswith(_MEMORY) and name in tensors:
                    kept = tensors[name].clone()  # what was read is a view of the file
                    value = kept if kept.dim() == 0 else kept.to(parameter.device)
                    self._optimizer.state[parameter][kind.removeprefix(_MEMORY)] = value
        if self._average is not None:
            networks.load(self._average.module, kinds[_AVERAGE])
            self._average.n_averaged.fill_(steps)

    def _outputs(self, network: nn.Module, batch: Batch) -> tuple[Tensor | list[Tensor], Batch]:
        device = self._processes.device
        placed = batch.to(device)
        images = placed.images
        if self._keeps_channels_last:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._method.bfloat16):
            outputs: Tensor | list[Tensor] = network(images)
        return outputs, placed


def dice_of(counts: Tensor) -> list[float | None]:
    """Give the Dice of each label from counts of voxels (2, labels); None where there are none."""
    return [None if total == 0 else overlap / total for overlap, total in counts.T.tolist()]


def _finest(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def _param_groups(groups: Groups) -> list[dict[str, object]]:
    return [{"params": list(parameters), "share": share} for parameters, share in groups if parameters]


def _is_quick_with_channels_last(network: nn.Module, method: Method, device: torch.device) -> bool:
    """Answer for a three-dimensional network: yes, but for bfloat16 on a CPU, where it costs a tenth."""
    is_solid = {parameter.ndim for parameter in network.parameters()} & {4, 5} == {5}
    return is_solid and not (device.type == "cpu" and method.bfloat16)


def _blend(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Average with a decay that grows towards its value, so that the first weights are soon forgotten."""

    def blend(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        for mean, new in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - keep)
            else:
                mean.copy_(new)

    return blend
