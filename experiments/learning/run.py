"""Measure how models learn from corrections: run what has not been run yet.

    python experiments/learning/run.py adaptation|forgetting|generations|partial|all
        [--seeds 0 1 2] [--work DIR] [--threads 1] [--share 1/2] [--recipe full] [--smoke]

Every finished run is one file in ``results/<experiment>/``; cut off, the same command goes on. With --share
1/2 and --share 2/2 two processes do half of the runs each. ``report.py`` makes tables and pictures of what is
there.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import adaptation
import base
import forgetting
import generations
import partial_labels
import torch
from world import FULL, HERE, SMOKE, WORK, Run, World

from dicomnode.ml.training.recipes import RECIPES

EXPERIMENTS = ("adaptation", "forgetting", "generations", "partial")


def main() -> None:
    """Do the runs of this share, one after the other."""
    options = _options()
    torch.set_num_threads(options.threads)
    work = options.work / "smoke" if options.smoke else options.work
    world = World(
        work=work,
        results=work / "results" if options.smoke else HERE / "results",
        scale=SMOKE if options.smoke else FULL,
        recipe=options.recipe,
    )
    chosen = EXPERIMENTS if options.experiment == "all" else (options.experiment,)
    own, shares = options.share
    listed = runs_of(chosen, options.seeds, world)[own - 1 :: shares]
    waiting = [run for run in listed if not run.is_done(world)]
    print(f"{len(listed) - len(waiting)} of {len(listed)} runs are done", flush=True)
    began = time.monotonic()
    for done, run in enumerate(waiting, start=1):
        run.carry_out(world)
        passed = time.monotonic() - began
        left = passed / done * (len(waiting) - done)
        times = f"{passed:.0f} s passed, about {left:.0f} s left"
        print(f"{done}/{len(waiting)} {run.experiment}/{run.name}: {times}", flush=True)


def runs_of(experiments: Sequence[str], seeds: Sequence[int], world: World) -> list[Run]:
    """List the runs of some experiments; the base models come first."""
    known = {
        "adaptation": adaptation.runs(seeds, world),
        "forgetting": forgetting.runs(seeds),
        "generations": generations.runs(seeds, world),
        "partial": partial_labels.runs(seeds),
    }
    return [*base.runs(seeds), *(run for name in experiments for run in known[name])]


def _share(text: str) -> tuple[int, int]:
    own, _, shares = text.partition("/")
    if not (own.isdigit() and shares.isdigit() and 1 <= int(own) <= int(shares)):
        raise argparse.ArgumentTypeError("a share is written as 1/2 or 2/2")
    return int(own), int(shares)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=(*EXPERIMENTS, "all"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=WORK, help="for base models and unfinished runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=_share, default=(1, 1), metavar="K/N")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="full", help="of ours, in generations")
    parser.add_argument("--smoke", action="store_true", help="all in miniature, beside the base models")
    return parser.parse_args()


if __name__ == "__main__":
    main()
