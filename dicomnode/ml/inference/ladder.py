"""What to try when memory runs out: smaller batches, then smaller tiles, then the CPU."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from dicomnode.errors import GpuMemoryError
from dicomnode.ml.model.architecture import Triple
from dicomnode.ml.model.plan import Stage

Outcome = TypeVar("Outcome")

_BATCHES = (4, 1)
"""Tiles in one pass through a GPU, the first choice first; a CPU gains nothing from more than one."""
_SMALLEST_TILE_VOXELS = 2**15
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
    "could not execute a primitive",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One way to run a stage."""

    device: torch.device
    batch: int
    tile: Triple

    @property
    def in_words(self) -> str:
        """Say what is different about it."""
        return f"{self.batch} tiles of {self.tile} at once on {self.device}"


def steps(stage: Stage, device: torch.device) -> Iterator[Step]:
    """Give the ways to run a stage, from the quickest to the leanest."""
    smaller = list(_smaller_tiles(stage))
    if device.type != "cpu":
        yield from (Step(device=device, batch=batch, tile=stage.patch_shape) for batch in _BATCHES)
        yield from (Step(device=device, batch=1, tile=tile) for tile in smaller)
    cpu = torch.device("cpu")
    yield from (Step(device=cpu, batch=1, tile=tile) for tile in (stage.patch_shape, *smaller))


def climb_down(
    ways: Iterator[Step], run: Callable[[Step], Outcome], *, note: Callable[[str], None]
) -> Outcome:
    """Run the first way that memory allows.

    Parameters
    ----------
    note
        Told in words what did not fit, before the next way is tried.

    Raises
    ------
    GpuMemoryError
        No way fits: on a GPU or in the memory of the machine.
    """
    tried = []
    for way in ways:
        try:
            return run(way)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            tried.append(way.in_words)
        release()  # outside the handler, where the frames of the failed attempt are gone
        note(f"too little memory for {tried[-1]}")
    raise GpuMemoryError(
        f"too little memory, even for {tried[-1]}: give the process more memory, "
        "or use a model with a smaller patch"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Answer whether an error says that memory ran out, of whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def release() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _smaller_tiles(stage: Stage) -> Iterator[Triple]:
    """Halve the longest axis again and again, as far as the network allows."""
    tile, divisors = stage.patch_shape, stage.network.divisors
    while True:
        halves = [(size // 2) // step * step for size, step in zip(tile, divisors, strict=True)]
        # A network cannot normalise a single voxel: two are left at its coarsest level.
        possible = [axis for axis in range(3) if halves[axis] >= 2 * divisors[axis] and tile[axis] > 1]
        if not possible or tile[0] * tile[1] * tile[2] // 2 < _SMALLEST_TILE_VOXELS:
            return
        longest = max(possible, key=lambda axis: tile[axis])
        shorter = [halves[axis] if axis == longest else size for axis, size in enumerate(tile)]
        tile = (shorter[0], shorter[1], shorter[2])
        yield tile
