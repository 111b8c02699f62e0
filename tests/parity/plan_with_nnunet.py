"""Measure and plan data sets with nnU-Net itself, for the parity tests.

Run by the interpreter that has nnunetv2: ``plan_with_nnunet.py FOLDER``. ``FOLDER/jobs.json`` names data sets
under ``FOLDER/raw`` and the planners to run on each; ``FOLDER/results.json`` gets their fingerprints and
plans. A job with a fingerprint of its own needs no images: empty files of their names do.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

os.environ["nnUNet_def_n_proc"] = "2"  # noqa: SIM112 - the name that nnU-Net reads
FOLDER = Path(sys.argv[1])
for part in ("raw", "preprocessed", "results"):
    (FOLDER / part).mkdir(exist_ok=True)
    os.environ[f"nnUNet_{part}"] = str(FOLDER / part)

import torch  # noqa: E402 - nnunetv2 reads the variables when it is imported
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (  # noqa: E402
    DatasetFingerprintExtractor,
)
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (  # noqa: E402
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E402
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

PLANNERS = {
    "plain": ExperimentPlanner,
    "M": nnUNetPlannerResEncM,
    "L": nnUNetPlannerResEncL,
    "XL": nnUNetPlannerResEncXL,
}


def main() -> None:
    """Do all jobs."""
    jobs = json.loads((FOLDER / "jobs.json").read_text())
    results = {}
    for name, job in jobs.items():
        with contextlib.redirect_stdout(sys.stderr):
            results[name] = {"fingerprint": fingerprint(name, job), "plans": plans(name, job)}
        print(name, flush=True)
    (FOLDER / "results.json").write_text(json.dumps(results))


def fingerprint(name: str, job: dict[str, object]) -> object:
    """Keep the fingerprint that the job brings, or measure the images."""
    path = FOLDER / "preprocessed" / name / "dataset_fingerprint.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if job["fingerprint"] is not None:
        path.write_text(json.dumps(job["fingerprint"]))
    else:
        DatasetFingerprintExtractor(name, num_processes=2).run(overwrite_existing=True)
    return json.loads(path.read_text())


def plans(name: str, job: dict[str, object]) -> dict[str, object]:
    """Plan by each planner. The networks are only counted, so they need no memory."""
    made = {}
    for wish in job["planners"]:
        preset, memory_gb = wish.split(":")
        options = {"gpu_memory_target_in_gb": float(memory_gb)} if memory_gb else {}
        with torch.device("meta"):
            planner = PLANNERS[preset](name, plans_name=f"plans_{preset}", **options)
            planner.plan_experiment()
        path = FOLDER / "preprocessed" / name / f"plans_{preset}.json"
        made[wish] = json.loads(path.read_text())
        path.unlink()
    return made


if __name__ == "__main__":
    main()
