"""Studies in a row under memory limits that force each fall-back: what was tried, and what is left after.

    python bench/memory_limit.py [--studies 10] [--patch 64 128 128]

Runs on the device that is there. On the CPU the address space of the process is limited before each study
(RLIMIT_AS) to what it has and so many MiB more; on a GPU the share of its memory that the process may
use. The limits go from ample to so little that only small tiles fit, and back. "Held" is the resident memory
after the study, less that after the first: it must not grow.
"""

import argparse
import gc
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from highdicom import Volume

from dicomnode.domain import Code, Segment
from dicomnode.errors import GpuMemoryError
from dicomnode.ml.inference import engine
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.ml.model import network, package
from dicomnode.ml.model.architecture import DynUNetPlan
from dicomnode.ml.model.plan import Interpolation, Plan, Stage, ZScore

MIB = 1024 * 1024
BLOCK = (3, 3, 3)


def main() -> None:
    """Measure, print the table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 128, 128))
    arguments = parser.parse_args()
    model = make_model(tuple(arguments.patch))
    image = make_image()
    room = needed_mib(model, image)
    shares = [4.0, 1.0, 0.6, 0.45, 0.35, 0.35, 0.45, 0.6, 1.0, 4.0]
    base, rows = 0.0, []
    for study in range(arguments.studies):
        limit = room * shares[study % len(shares)]
        told: list[str] = []
        outcome = segment(model, image, limit_mib=limit, told=told)
        held = held_mib()
        base = base or held
        rows.append(
            {
                "study": study + 1,
                "room_mib": round(limit),
                "outcome": outcome,
                "tried": told,
                "held_mib": round(held - base, 1),
            }
        )
        print(
            f"{study + 1:3}  room {limit:7.0f} MiB  {outcome:12}  held {held - base:+7.1f} MiB  "
            f"{len(told)} steps down"
        )
    print(
        json.dumps(
            {"bench": "memory_limit", "device": str(model.device), "needed_mib": round(room), "studies": rows}
        )
    )


def segment(model: LoadedModel, image: Volume, *, limit_mib: float, told: list[str]) -> str:
    """Segment one study within a limit, and lift the limit again."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if model.device.type == "cuda":
        total = torch.cuda.get_device_properties(model.device).total_memory
        used = torch.cuda.memory_allocated(model.device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (used + limit_mib * MIB) / total), model.device)
    else:
        resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + int(limit_mib * MIB), hard))
    try:
        labels = engine.predict(model, image, note=told.append)
    except GpuMemoryError:
        return "no way fits"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return "segmented" if labels.array.any() else "empty"


def needed_mib(model: LoadedModel, image: Volume) -> float:
    """Measure what a study needs when there is room: the rise of the peak over what is held before."""
    engine.predict(model, image)  # the first run also loads libraries
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        engine.predict(model, image)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status_bytes("VmRSS")
    engine.predict(model, image)
    return (status_bytes("VmHWM") - before) / MIB


def held_mib() -> float:
    """Resident memory, and memory on the GPU, when nothing is under way."""
    gc.collect()
    on_gpu = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
    return (status_bytes("VmRSS") + on_gpu) / MIB


def status_bytes(key: str) -> int:
    """Read one figure of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def make_model(patch: tuple[int, int, int]) -> LoadedModel:
    """Make a model of 32 channels with random weights; its answers mean nothing, its size is real."""
    plan = Plan(
        name="large",
        modalities=("CT",),
        orientation="acquired",
        stages=(
            Stage(
                spacing_mm=(1.0, 1.0, 1.0),
                patch_shape=patch,
                normalisation=ZScore(),
                image_interpolation=Interpolation(order=1),
                score_interpolation=Interpolation(order=1),
                network=DynUNetPlan(
                    classes=3,
                    filters=(32, 64, 128),
                    kernels=(BLOCK,) * 3,
                    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
                ),
                mirror_axes=(),
            ),
        ),
    )
    organ = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
    segments = [
        Segment(
            class_index=index,
            segment_number=index,
            label=f"Part {index}",
            category=organ,
            type=organ,
            type_modifier=None,
            region=None,
            rgb=(255, 0, 0),
        )
        for index in (1, 2)
    ]
    torch.manual_seed(0)
    tensors = network.tensors_of(network.build(plan.final.network))
    with tempfile.TemporaryDirectory() as folder:
        return engine.load(package.write(Path(folder), plan, segments, tensors, "# large\n"))


def make_image() -> Volume:
    """Make a study of a few tiles."""
    array = np.random.default_rng(0).normal(0, 100, (80, 160, 160)).astype(np.float32)
    return Volume(array, np.eye(4), coordinate_system="PATIENT")


if __name__ == "__main__":
    main()
