"""Predict how much memory a network takes at its peak, without running it.

The network is built and run on torch's ``meta`` device, where tensors have shapes and no content. Every block
of memory that would be taken and given back is noted, the blocks that autograd keeps for the backward pass
included; the largest sum is the peak of what the network asks for. What a device adds to it is written down
below as few figures: on a CPU, glibc keeps blocks below 32 MiB in a heap with holes; on a GPU there are the
CUDA context and the workspace of the convolutions.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dicomnode.ml.model import network as networks
from dicomnode.ml.model.architecture import NetworkPlan, Triple, UNetPlan
from dicomnode.ml.model.plan import Plan

DeviceKind = Literal["cpu", "cuda"]

_MIB = 2**20
_HEAP_BLOCK = 32 * _MIB
"""Smaller blocks come from glibc's heap in the end, larger ones are mapped one by one (mallopt(3))."""
_CUDA_CONTEXT = 500 * _MIB
_CUDA_ROUNDING = 1.05  # of PyTorch's caching allocator
_HALF_COPIES = 2  # float32 values of each weight beside the bfloat16 one in training: itself, its momentum

Bytes = Annotated[int, Field(ge=0)]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class PredictedMemory:
    """Peak bytes that a model takes beyond those of a process that has only imported torch."""

    inference_cpu: Bytes  # one tile, float32
    inference_cuda: Bytes  # one tile, bfloat16
    training_cpu: Bytes  # one batch, float32, SGD with momentum
    training_cuda: Bytes  # one batch, bfloat16 with float32 weights, SGD with momentum


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Peak:
    """What a network asks for, whatever the device: figures of blocks that are alive at once."""

    live_bytes: Bytes  # at most, weights included
    heap_bytes: Bytes  # in blocks below 32 MiB, at most, weights included
    weight_bytes: Bytes
    workspace_bytes: Bytes  # that one convolution reads and writes, at most


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class _Heap:
    """What a process on a CPU takes beyond its live blocks: measured, see bench/memory.py."""

    holes: float  # share of the blocks of the heap that are not weights
    fixed_mib: dict[int, int]  # code and scratch memory of oneDNN, in two and in three dimensions


_SEGMENTING = _Heap(holes=0.57, fixed_mib={2: 17, 3: 31})
_TRAINING = _Heap(holes=0.53, fixed_mib={2: 86, 3: 108})
"""Training also imports more of torch with its first step."""


def predict(plan: Plan, *, batch_size: int) -> PredictedMemory:
    """Predict what a model takes: to segment with all its stages, to train its last."""
    final = plan.final

    def training(device: DeviceKind) -> int:
        return training_bytes(final.network, final.patch_shape, device=device, batch_size=batch_size)

    return PredictedMemory(
        inference_cpu=_model_inference(plan, "cpu"),
        inference_cuda=_model_inference(plan, "cuda"),
        training_cpu=training("cpu"),
        training_cuda=training("cuda"),
    )


def inference_bytes(network: NetworkPlan, tile: Triple, *, device: DeviceKind, batch_size: int = 1) -> int:
    """Predict the peak of one pass of tiles through one network, its weights included."""
    peak = walk(network, tile, batch_size=batch_size, use="inference", half=device == "cuda")
    if device == "cuda":
        return _on_cuda(peak, extra=peak.weight_bytes)  # float32 weights, converted when they are used
    return _on_cpu(peak, _SEGMENTING, network.dimensions)


def training_bytes(network: NetworkPlan, patch: Triple, *, device: DeviceKind, batch_size: int) -> int:
    """Predict the peak of a training that runs: weights, gradients and momentum included."""
    peak = walk(network, patch, batch_size=batch_size, use="training", half=device == "cuda")
    return _on_cuda(peak, extra=0) if device == "cuda" else _on_cpu(peak, _TRAINING, network.dimensions)


def walk(
    network: NetworkPlan,
    patch: Triple,
    *,
    batch_size: int,
    use: Literal["inference", "training"],
    half: bool = False,
) -> Peak:
    """Follow a network through one pass, or one step of a training, on the meta device.

    Parameters
    ----------
    half
        Weights, images and intermediate results in bfloat16 instead of float32.
    """
    blocks, dtype = _Blocks(), torch.bfloat16 if half else torch.float32
    is_training = use == "training"
    with torch.device("meta"), blocks:
        built = networks.build(network, deep_supervision=is_training and isinstance(network, UNetPlan))
        built = built.to(dtype)
        images = torch.zeros((batch_size, network.input_channels, *patch), dtype=dtype)
        blocks.begin()
        step: Callable[[nn.Module, Tensor], None] = _learn if is_training else _score
        step(built, images)
    return Peak(
        live_bytes=blocks.peak,
        heap_bytes=blocks.heap_peak,
        weight_bytes=sum(weight.nbytes for weight in built.parameters()),
        workspace_bytes=blocks.workspace,
    )


def _model_inference(plan: Plan, device: DeviceKind) -> int:
    """All networks are there at once; one stage runs after the other."""
    weights = [sum(weight.nbytes for weight in _on_meta(stage.network).parameters()) for stage in plan.stages]
    waiting = sum(size * stage.members for size, stage in zip(weights, plan.stages, strict=True))
    peaks = (
        inference_bytes(stage.network, stage.patch_shape, device=device) - size
        for size, stage in zip(weights, plan.stages, strict=True)
    )
    return max(peaks) + waiting


def _on_meta(network: NetworkPlan) -> nn.Module:
    with torch.device("meta"):
        return networks.build(network)


def _on_cpu(peak: Peak, heap: _Heap, dimensions: int) -> int:
    passing = peak.heap_bytes - min(peak.weight_bytes, peak.heap_bytes)
    return peak.live_bytes + int(heap.holes * passing) + heap.fixed_mib[dimensions] * _MIB


def _on_cuda(peak: Peak, *, extra: int) -> int:
    return int((peak.live_bytes + peak.workspace_bytes + extra) * _CUDA_ROUNDING) + _CUDA_CONTEXT


def _score(network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        network(images).float()


def _learn(network: nn.Module, images: Tensor) -> None:
    """Take a step of a training that has been running, so that the momentum of each weight is there."""
    copies = _HALF_COPIES if images.dtype == torch.bfloat16 else 1
    states = [torch.zeros(weight.shape) for weight in network.parameters() for _ in range(copies)]
    outputs = network(images)
    loss = sum(map(_loss, [outputs] if isinstance(outputs, Tensor) else outputs), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    states.clear()


def _loss(scores: Tensor) -> Tensor:
    """Soft Dice and cross-entropy, with the intermediate results that the loss of training has."""
    scores = scores.float()
    labels = torch.zeros((scores.shape[0], *scores.shape[2:]), dtype=torch.uint8)
    known = labels != 255
    truth = functional.one_hot(labels.masked_fill(~known, 0).long(), scores.shape[1])
    truth = truth.movedim(-1, 1)[:, 1:].to(scores.dtype)
    surprise = functional.cross_entropy(scores, labels.long(), reduction="sum")
    counted = torch.softmax(scores, dim=1)[:, 1:] * known[:, None]
    return surprise + (counted * truth).sum() + counted.sum() + (truth * known[:, None]).sum()


class _Blocks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the blocks of memory that are alive while operations run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.heap_peak = 0  # of the blocks that come from a heap
        self.workspace = 0  # bytes that one convolution reads and writes, at most
        self._now = 0
        self._heap_now = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def begin(self) -> None:
        """Forget what was needed to come here, but not what is alive."""
        self.peak, self.heap_peak, self.workspace = self._now, self._heap_now, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note the blocks that its results need."""
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._note(tensor.untyped_storage())
        if "conv" in func.__name__:
            read = max(tensor.nbytes for tensor in args if isinstance(tensor, Tensor))
            self.workspace = max(self.workspace, read + max(tensor.nbytes for tensor in tensors))
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._change(size)
        weakref.finalize(storage, self._change, -size)

    def _change(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)
        if abs(size) < _HEAP_BLOCK:
            self._heap_now += size
            self.heap_peak = max(self.heap_peak, self._heap_now)
