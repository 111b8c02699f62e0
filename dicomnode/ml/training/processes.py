"""One training on several GPUs or processors: who this process is among those that ``torchrun`` started."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dicomnode.errors import ConfigError
from dicomnode.ml.inference.engine import choose_device

_PATIENCE = timedelta(days=2)
"""The first process prepares the cases while the others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those that train together."""

    rank: int  # from 0; the first one writes
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def is_group(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.is_group:
            distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Add up figures over all processes."""
        if not self.is_group:
            return values
        shared = values.to(self.device)
        distributed.all_reduce(shared)
        return shared.to(values.device)

    def share(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that gradients are averaged over all processes."""
        if not self.is_group:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)


@contextmanager
def joined(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or be alone, and leave afterwards.

    Parameters
    ----------
    device
        ``"auto"``, ``"cpu"`` or a CUDA device; of several processes each takes the GPU of its local rank.

    Raises
    ------
    ConfigError
        No such device here, or fewer GPUs than processes.
    """
    count, rank = int(environment.get("WORLD_SIZE", "1")), int(environment.get("RANK", "0"))
    chosen = choose_device(device)
    if count == 1:
        yield Processes(rank=0, count=1, device=chosen)
        return
    if chosen.type == "cuda":
        local = int(environment.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started process {local + 1} on this machine, which has "
                f"{torch.cuda.device_count()} GPUs; start one process for each GPU (--nproc-per-node)."
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(rank=rank, count=count, device=chosen)
    finally:
        distributed.destroy_process_group()
