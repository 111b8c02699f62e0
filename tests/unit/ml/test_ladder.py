"""When memory runs out, leaner ways are tried in order, and what a failed way held is free again."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from highdicom import Volume
from torch import Tensor, nn

from dicomnode.errors import GpuMemoryError
from dicomnode.ml.inference import engine, ladder
from dicomnode.ml.inference.ladder import Step
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import Plan

CPU = torch.device("cpu")


def test_a_gpu_tries_smaller_batches_then_smaller_tiles_then_the_cpu(plan: Plan) -> None:
    stage = replace(plan.final, patch_shape=(64, 64, 64))

    found = list(ladder.steps(stage, torch.device("cuda")))

    assert [(one.device.type, one.batch, one.tile) for one in found] == [
        ("cuda", 4, (64, 64, 64)),
        ("cuda", 1, (64, 64, 64)),
        ("cuda", 1, (32, 64, 64)),
        ("cuda", 1, (32, 32, 64)),
        ("cuda", 1, (32, 32, 32)),
        ("cpu", 1, (64, 64, 64)),
        ("cpu", 1, (32, 64, 64)),
        ("cpu", 1, (32, 32, 64)),
        ("cpu", 1, (32, 32, 32)),
    ]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_way_to_say_out_of_memory_is_understood(error: Exception) -> None:
    assert ladder.is_out_of_memory(error)


def test_other_faults_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(_: Step) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        ladder.climb_down(iter([Step(device=CPU, batch=1, tile=(8, 8, 8))] * 2), broken, note=print)


def test_what_a_failed_way_held_is_free_before_the_next_is_tried() -> None:
    held: list[weakref.ref[Tensor]] = []
    told: list[str] = []

    def run(way: Step) -> str:
        assert all(one() is None for one in held)
        buffer = torch.zeros(10)
        held.append(weakref.ref(buffer))
        if way.batch > 1:
            raise MemoryError
        return "done"

    ways = [Step(device=CPU, batch=batch, tile=(8, 8, 8)) for batch in (4, 2, 1)]
    gc.disable()
    try:
        assert ladder.climb_down(iter(ways), run, note=told.append) == "done"
    finally:
        gc.enable()

    assert told == [
        "too little memory for 4 tiles of (8, 8, 8) at once on cpu",
        "too little memory for 2 tiles of (8, 8, 8) at once on cpu",
    ]


class Hungry(nn.Module):
    """A network that fails above a number of voxels in one pass, as if memory ran out."""

    def __init__(self, most_voxels: int) -> None:
        super().__init__()
        self._most = most_voxels

    def forward(self, images: Tensor) -> Tensor:
        if images.numel() > self._most:
            raise torch.OutOfMemoryError("out of memory")
        return torch.cat([-images, images, torch.full_like(images, -100)], dim=1)


def test_a_study_that_does_not_fit_is_segmented_with_smaller_tiles_and_the_change_is_told(
    tiny: ModelPackage, make_volume: Callable[..., Volume]
) -> None:
    loaded = engine.load(tiny, device="cpu")
    stage = replace(loaded.plan.final, patch_shape=(64, 64, 64))
    roomy = replace(loaded, plan=replace(loaded.plan, stages=(stage,)), networks=((Hungry(64**3),),))
    model = replace(roomy, networks=((Hungry(32 * 32 * 64),),))
    image = make_volume((40, 40, 40))
    told: list[str] = []

    labels = engine.predict(model, image, note=told.append)

    np.testing.assert_array_equal(labels.array, engine.predict(roomy, image).array)
    assert labels.array.any()
    assert len(told) == 2


def test_a_study_that_fits_in_no_way_fails_clearly(
    tiny: ModelPackage, make_volume: Callable[..., Volume]
) -> None:
    model = replace(engine.load(tiny, device="cpu"), networks=((Hungry(10),),))

    with pytest.raises(GpuMemoryError, match="even for 1 tiles"):
        engine.predict(model, make_volume(), note=lambda _: None)
