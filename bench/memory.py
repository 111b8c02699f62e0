"""Predicted beside measured peak memory of networks that segment and train on the CPU.

    python bench/memory.py [--largest-gb 3] [--only NAME]

Each row is a process of its own. It builds a network as a planner gives it and runs it as the node does: a
tile through the prepared network, or steps of the training with momentum and, where the network has it, deep
supervision. Reported is the peak of its resident memory less what it had after its imports. The plans are
those for collections like the hippocampi of the Medical Segmentation Decathlon, spleen CT and whole trunks,
and the same with smaller patches. Rows that are predicted to take more than ``--largest-gb`` are left out.
The last line is JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import TypeAdapter

from dicomnode.ml.inference import acceleration
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.architecture import NetworkPlan, Triple
from dicomnode.ml.planning import memory, planner
from dicomnode.ml.planning.fingerprint import CaseSize, Fingerprint, ForegroundIntensities
from dicomnode.ml.planning.planned import Aim
from dicomnode.ml.planning.planner import Rules
from dicomnode.ml.training.fit import Batch
from dicomnode.ml.training.objective import from_scratch
from dicomnode.ml.training.pace import OPTIMISERS
from dicomnode.ml.training.processes import Processes
from dicomnode.ml.training.run import Method, Run, fresh

ALLOWED = 0.15
SHARES = (1.0, 0.75, 0.5)  # of each axis of the planned patch
STEPS = 3
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run: a network, a patch, and what is done with it."""

    name: str
    use: Literal["segment", "train"]
    network: NetworkPlan
    patch: Triple
    batch_size: int

    @property
    def predicted(self) -> int:
        """Bytes at the peak."""
        if self.use == "segment":
            return memory.inference_bytes(self.network, self.patch, device="cpu", batch_size=self.batch_size)
        return memory.training_bytes(self.network, self.patch, device="cpu", batch_size=self.batch_size)


ROW: TypeAdapter[Row] = TypeAdapter(Row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Images to plan for."""

    name: str
    shape: Triple
    spacing_mm: tuple[float, float, float]
    classes: int
    cases: int


COLLECTIONS = (
    Collection(name="hippocampus", shape=(36, 50, 35), spacing_mm=(1.0, 1.0, 1.0), classes=3, cases=170),
    Collection(name="spleen CT", shape=(30, 116, 106), spacing_mm=(3.0, 1.5, 1.5), classes=2, cases=40),
    Collection(name="trunk CT", shape=(80, 101, 122), spacing_mm=(3.0, 3.0, 3.0), classes=25, cases=100),
)
RULES = {
    "nnU-Net": Rules(),
    "ResEnc M": Rules(preset="M"),
    "DynUNet": Rules(planner="dante"),
}


def main() -> None:
    """Run every row in a process of its own, print the table and one JSON line."""
    arguments = _arguments()
    if arguments.row:
        print(measure(ROW.validate_json(arguments.row)))
        return
    done = []
    print(f"{'plan':32} {'use':8} {'patch':14} batch {'predicted':>10} {'measured':>9} {'ratio':>6}  (MiB)")
    for row in rows():
        if arguments.only not in row.name or row.predicted > arguments.largest_gb * 2**30:
            continue
        measured = run(row)
        done.append((row, row.predicted / measured))
        patch = "x".join(map(str, row.patch))
        figures = f"{row.predicted / MIB:10.0f} {measured / MIB:9.0f} {row.predicted / measured:6.2f}"
        print(f"{row.name:32} {row.use:8} {patch:14} {row.batch_size:5} {figures}", flush=True)
    print(json.dumps(summary(done)))


def rows() -> Iterator[Row]:
    """Plan for each collection by each planner, and take smaller patches too."""
    for collection in COLLECTIONS:
        size = CaseSize(
            shape=collection.shape, shape_after_crop=collection.shape, spacing_mm=collection.spacing_mm
        )
        fingerprint = Fingerprint(
            orientation="HAR",
            modalities=("MR",),
            median_relative_size_after_cropping=1.0,
            foreground_intensity_properties_per_channel=(
                ForegroundIntensities(
                    mean=0, median=0, std=1, min=-3, max=3, percentile_00_5=-2, percentile_99_5=2
                ),
            ),
            cases=(size,) * collection.cases,
        )
        aim = Aim(name="bench", classes=collection.classes)
        for rules_name, rules in RULES.items():
            for planned in planner.plan(fingerprint, aim, rules).configurations:
                stage = planned.plan.final
                name = f"{collection.name}, {rules_name} {planned.configuration}"
                for patch in patches(stage.patch_shape, stage.network.divisors):
                    batch_size = 16 if stage.network.dimensions == 2 else 2
                    kind = {"name": name, "network": stage.network, "patch": patch}
                    yield Row(use="segment", batch_size=1, **kind)
                    yield Row(use="train", batch_size=batch_size, **kind)


def patches(planned: Triple, divisors: Triple) -> list[Triple]:
    """Shrink a patch in steps that the network can take; two voxels stay where it is coarsest."""
    found: dict[Triple, None] = {}
    for share in SHARES:
        sizes = [
            size if step == 1 else max(round(size * share / step), 2) * step
            for size, step in zip(planned, divisors, strict=True)
        ]
        found[sizes[0], sizes[1], sizes[2]] = None
    return list(found)


def run(row: Row) -> int:
    """Measure a row in a fresh process."""
    command = [sys.executable, __file__, "--row", ROW.dump_json(row).decode()]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(answer.stdout.splitlines()[-1])


def measure(row: Row) -> int:
    """Run a row in this process and give the bytes at its peak."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    torch.manual_seed(0)
    images = torch.randn(row.batch_size, row.network.input_channels, *row.patch)
    if row.use == "segment":
        segment(row, images)
    else:
        train(row, images)
    return resident("VmHWM") - before


def segment(row: Row, images: torch.Tensor) -> None:
    """Score tiles as the sliding window does."""
    cpu = torch.device("cpu")
    network = acceleration.prepare(networks.build(row.network), cpu)
    with torch.inference_mode(), acceleration.precision(cpu):
        for _ in range(STEPS):
            network(acceleration.layout(images)).float()


def train(row: Row, images: torch.Tensor) -> None:
    """Take steps as a training does."""
    labels = torch.randint(0, row.network.classes, (row.batch_size, *row.patch), dtype=torch.uint8)
    loss = from_scratch(regions=(), batch_dice=False, shared=False)
    method = Method(loss=loss, optimiser=OPTIMISERS["sgd"], learning_rate=1e-3)
    processes = Processes(rank=0, count=1, device=torch.device("cpu"))
    course = Run(fresh(row.network, seed=0), method, processes, seed=0)
    for number in range(STEPS):
        course.step(Batch(images=images, labels=labels), number=number, done=0.0)


def resident(key: str) -> int:
    """Read a figure of this process from the kernel: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def summary(done: list[tuple[Row, float]]) -> dict[str, object]:
    """Say how far predictions were off."""
    ratios = np.asarray([ratio for _, ratio in done])
    return {
        "bench": "memory",
        "rows": len(done),
        "within_15_percent": int((np.abs(ratios - 1) <= ALLOWED).sum()),
        "ratios": {
            f"{use}_{name}": round(float(figure([ratio for row, ratio in done if row.use == use])), 3)
            for use in ("segment", "train")
            for name, figure in (("lowest", min), ("median", np.median), ("highest", max))
            if any(row.use == use for row, _ in done)
        },
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest-gb", type=float, default=3.0)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
