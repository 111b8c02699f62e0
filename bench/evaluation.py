"""Dice, HD95 and surface Dice of 20 labels on one large case, beside MONAI and surface-distance.

    python bench/evaluation.py [--slices 300] [--size 512] [--labels 20] [--repeats 3] [--folder DIR]

The truth is the label map of `seg.py`, of 0.8 x 0.8 x 1 mm. The prediction is the same, moved by a slice and
two rows, farther in places, and a few labels have a stray voxel in the corner of the image, as networks
leave them. Each contender runs in a process of its own, in turn, with one thread; the clock runs from two
label maps in memory to the three measures of every label. All are given the two whole maps or masks and
crop them themselves.

surface-distance is not installed with the node (`pip install surface-distance`); without it, it is left out.
Its HD95 weighs the surface by area, which MONAI's and the node's do not, and is not compared. The other
figures must agree: HD95 within 1e-3 mm, surface Dice within 1e-5. The figures are medians; "peak" is the
resident memory of the whole process, "added" what the clocked part put on top of the rest. Ratios are
ours / theirs, those of memory of what was added.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import seg
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.ml.evaluation.measures import MeasuredLabel, measure_case

SPACING_MM = (1.0, 0.8, 0.8)
TOLERANCE_MM = 1.0
STRAY = (3, 7, 12)
"""Labels that have a voxel far from the rest."""

Labels = NDArray[np.uint8]
Measures = list[tuple[float, float, float]]
"""Dice, HD95 in mm and surface Dice of each label."""


def main() -> None:
    """Measure, print the table and one JSON line."""
    arguments = _arguments()
    if arguments.contender:
        print(json.dumps(run_contender(arguments.contender, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        make_case(folder, slices=arguments.slices, size=arguments.size, labels=arguments.labels)
        runs = defaultdict[str, list[dict[str, float]]](list)
        measures: dict[str, Measures] = {}
        for _ in range(arguments.repeats):
            for name in CONTENDERS:
                if name == "surface-distance" and find_spec("surface_distance") is None:
                    continue
                found = in_fresh_process(name, folder)
                measures[name] = found.pop("measures")
                runs[name].append(found)
    figures = {
        name: {key: round(median(run[key] for run in found), 3) for key in found[0]}
        for name, found in runs.items()
    }
    differences = {name: largest_difference(measures["node"], found) for name, found in measures.items()}
    print_table(figures, differences)
    print(json.dumps(summary(figures, differences, arguments)))
    check(differences)


def summary(
    figures: dict[str, dict[str, float]], differences: dict[str, list[float]], arguments: argparse.Namespace
) -> dict[str, object]:
    """Put the figures beside each other; ratios below 1 mean that the node needed less."""
    return {
        "bench": "evaluation",
        **{key: getattr(arguments, key) for key in ("slices", "size", "labels", "repeats")},
        "figures": figures,
        "largest_difference": differences,
        "ratios": {
            f"{what}_vs_{name}": round(figures["node"][key] / values[key], 3)
            for what, key in (("time", "seconds"), ("memory", "added_mb"))
            for name, values in figures.items()
            if name != "node"
        },
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def largest_difference(ours: Measures, theirs: Measures) -> list[float]:
    """Give the largest difference of Dice, HD95 and surface Dice over the labels."""
    return [float(value) for value in np.abs(np.subtract(ours, theirs)).max(axis=0).round(7)]


def check(differences: dict[str, list[float]]) -> None:
    """End with an error when a contender that has the same definition has other figures."""
    for name, (dice, hd95_mm, surface) in differences.items():
        if dice > 1e-6 or surface > 1e-5 or (name == "monai" and hd95_mm > 1e-3):
            raise SystemExit(f"{name} has other figures: Dice {dice}, HD95 {hd95_mm} mm, NSD {surface}")


def in_fresh_process(name: str, folder: Path) -> dict[str, object]:
    """Run one contender with one thread; give its figures and measures."""
    command = [sys.executable, "-W", "ignore", __file__, "--contender", name, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_contender(name: str, folder: Path) -> dict[str, object]:
    """Measure one contender in this process."""
    torch.set_num_threads(1)
    prediction, truth = np.load(folder / "prediction.npy"), np.load(folder / "truth.npy")
    measure = CONTENDERS[name]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparation
    before_mb = seg.peak_mb()
    began = time.perf_counter()
    measures = measure(prediction, truth)
    seconds = time.perf_counter() - began
    peak_mb = seg.peak_mb()
    return {"seconds": seconds, "peak_mb": peak_mb, "added_mb": peak_mb - before_mb, "measures": measures}


def node() -> Callable[[Labels, Labels], Measures]:
    """Prepare the node's measures."""

    def measure(prediction: Labels, truth: Labels) -> Measures:
        labels = [MeasuredLabel(name=str(n), values=(n,), tolerance_mm=TOLERANCE_MM) for n in numbers(truth)]
        case = measure_case("case", prediction, truth, labels=labels, spacing_mm=SPACING_MM)
        return [(one.dice or 0.0, one.hd95_mm or 0.0, one.surface_dice or 0.0) for one in case.labels]

    return measure


def monai() -> Callable[[Labels, Labels], Measures]:
    """Prepare MONAI's functions, with areas for the surface Dice."""

    def measure(prediction: Labels, truth: Labels) -> Measures:
        found: Measures = []
        for number in numbers(truth):
            masks = [torch.from_numpy(labels == number)[None, None] for labels in (prediction, truth)]
            distance = compute_hausdorff_distance(
                *masks, include_background=True, percentile=95, spacing=SPACING_MM
            )
            surface = compute_surface_dice(
                *masks, [TOLERANCE_MM], include_background=True, spacing=SPACING_MM, use_subvoxels=True
            )
            found.append((float(compute_dice(*masks)), float(distance), float(surface)))
        return found

    return measure


def surface_distance() -> Callable[[Labels, Labels], Measures]:
    """Prepare DeepMind's package."""
    import surface_distance as package  # noqa: PLC0415  # may be absent

    def measure(prediction: Labels, truth: Labels) -> Measures:
        found: Measures = []
        for number in numbers(truth):
            wanted, predicted = truth == number, prediction == number
            surfaces = package.compute_surface_distances(wanted, predicted, SPACING_MM)
            found.append(
                (
                    float(package.compute_dice_coefficient(wanted, predicted)),
                    float(package.compute_robust_hausdorff(surfaces, 95)),
                    float(package.compute_surface_dice_at_tolerance(surfaces, TOLERANCE_MM)),
                )
            )
        return found

    return measure


CONTENDERS: dict[str, Callable[[], Callable[[Labels, Labels], Measures]]] = {
    "node": node,
    "monai": monai,
    "surface-distance": surface_distance,
}


def numbers(labels: Labels) -> range:
    """Give the values of the labels."""
    return range(1, int(labels.max()) + 1)


def make_case(folder: Path, *, slices: int, size: int, labels: int) -> None:
    """Write the truth and the prediction."""
    generator = np.random.default_rng(1)
    truth = seg.make_labels((slices, size, size), labels, generator)
    prediction = np.roll(truth, (1, 2, -1), (0, 1, 2))
    coarse = generator.normal(size=(slices // 8 + 1, size // 8 + 1, size // 8 + 1)).astype(np.float32)
    is_worse = ndimage.zoom(coarse, 8, order=1)[:slices, :size, :size] > 1.2
    prediction = np.where(is_worse, np.roll(truth, (2, -3, 3), (0, 1, 2)), prediction)
    for column, number in enumerate(number for number in STRAY if number <= labels):
        prediction[0, 0, column] = number
    np.save(folder / "truth.npy", truth)
    np.save(folder / "prediction.npy", prediction)


def print_table(figures: dict[str, dict[str, float]], differences: dict[str, list[float]]) -> None:
    """Print one line for each contender."""
    print(f"{'':18}{'seconds':>9}{'peak MB':>9}{'added MB':>10}{'dDice':>10}{'dHD95 mm':>10}{'dNSD':>10}")
    for name, values in figures.items():
        dice, hd95_mm, surface = differences[name]
        print(
            f"{name:18}{values['seconds']:9.2f}{values['peak_mb']:9.0f}{values['added_mb']:10.0f}"
            f"{dice:10.1e}{hd95_mm:10.1e}{surface:10.1e}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures of 20 labels beside MONAI and surface-distance.")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
