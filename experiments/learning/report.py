"""Make tables and pictures of the runs that are there.

    python experiments/learning/report.py [--results DIR] [--out DIR]

For each experiment: ``<experiment>.json``, ``<experiment>.md`` and ``<experiment>.png``. Runs that are
missing are counted; what needs them is left out.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import report_adaptation
import report_forgetting
import report_generations
import report_partial
from PIL import Image
from run import EXPERIMENTS, runs_of
from world import FULL, HERE, WORK, Json, World, read, write

Results = Sequence[Mapping[str, Json]]


MAKERS: Mapping[str, Callable[[Results], tuple[dict[str, Json], str, Image.Image]]] = {
    "adaptation": report_adaptation.make,
    "forgetting": report_forgetting.make,
    "generations": report_generations.make,
    "partial": report_partial.make,
}


def main() -> None:
    """Write a page for each experiment that has results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    for experiment in EXPERIMENTS:
        paths = sorted((options.results / experiment).glob("*.json"))
        if not paths:
            print(f"{experiment}: no results")
            continue
        missing = _missing(experiment, options.seeds, options.results)
        summary, text, picture = MAKERS[experiment]([read(path) for path in paths])
        state = f"{len(paths)} runs; {len(missing)} of those planned are missing."
        write(options.out / f"{experiment}.json", {"runs": len(paths), "missing": len(missing), **summary})
        (options.out / f"{experiment}.md").write_text(f"{text}\n{state}\n", encoding="utf-8")
        picture.save(options.out / f"{experiment}.png")
        print(f"{experiment}: {state}")


def _missing(experiment: str, seeds: Sequence[int], results: Path) -> list[str]:
    world = World(work=WORK, results=results, scale=FULL, recipe="full")
    planned = [run for run in runs_of((experiment,), seeds, world) if run.experiment == experiment]
    there = {path.stem for path in (results / experiment).glob("*.json")}
    return [run.name for run in planned if run.name not in there]


if __name__ == "__main__":
    main()
