"""The default model beside an nnU-Net that trained as long, on the same cases, on the same machine.

    python experiments/default_model.py --minutes 45 [--threads 2] [--only ours] [--work DIR] [--out DIR]

Both learn from the training cases of the split of the shipped model, nnU-Net through its own planner, trainer
and predictor (DICOMNODE_NNUNET names a Python interpreter that has nnunetv2), with the clock described in
``nnunet_timed.py``. Ours is `dicomnode pretrain` with a plan by the rules of nnU-Net, with a share of its
features (--features), so that the package stays small. Both then segment the hold-out with mirroring, and
`dicomnode.ml.evaluation` compares the files with the truth. Cut off, the same command goes on. The folder of
--out gets ``default_model.json`` and a picture.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
from default_model_plot import draw

from dicomnode.ml.evaluation import label_maps, measures, summary
from dicomnode.ml.evaluation.label_maps import Pair
from dicomnode.ml.evaluation.measures import CaseMeasures, MeasuredLabel
from dicomnode.ml.inference import engine
from dicomnode.ml.model import package
from dicomnode.ml.planning import fingerprint, planned, planner
from dicomnode.ml.planning.planned import Aim
from dicomnode.ml.planning.planner import Rules
from dicomnode.ml.training import dataset
from dicomnode.ml.training.dataset import LabelledFolder
from dicomnode.ml.training.order import PretrainRecipe
from dicomnode.ml.training.pretrain import WORK_FOLDER
from dicomnode.ml.training.splits import CaseSplit, SplitCase, split_cases

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "models" / "hippocampus"
DATA = Path(os.environ.get("DICOMNODE_DATA", REPOSITORY.parent / "shared" / "data")) / "hippocampus"
CLASSES = 3
RAW_NAME = "Dataset004_Hippocampus"
LABELS = (MeasuredLabel(name="anterior", values=(1,)), MeasuredLabel(name="posterior", values=(2,)))
CONTENDERS = ("ours", "nnunet")
OURS = ("--optimiser", "adamw", "--learning-rate", "0.002", "--average", "0.998", "--batch-size", "4")
"""In few steps SGD as nnU-Net takes it comes nowhere near."""


def main() -> None:
    """Train what is not trained, segment, compare, and write the result."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    folder = dataset.open_folder(DATA, classes=CLASSES)
    split = split_of(folder)
    cases: dict[str, list[CaseMeasures]] = {}
    facts: dict[str, object] = {}
    for name in options.only or CONTENDERS:
        run = partial(run_ours, folder) if name == "ours" else run_nnunet
        predictions, facts[name] = run(split, options)
        cases[name] = [compare(predictions, case) for case in split.hold_out]
    result = {
        "minutes": options.minutes,
        "threads": options.threads,
        "machine": _machine(),
        "cases": {"training": len(split.training), "hold_out": len(split.hold_out)},
        "contenders": facts,
        "labels": {name: [asdict(one) for one in _summaries(found)] for name, found in cases.items()},
        "ours_minus_nnunet": _differences(cases) if len(cases) == len(CONTENDERS) else None,
    }
    options.out.mkdir(exist_ok=True)
    (options.out / "default_model.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(cases, minutes=options.minutes).save(options.out / "default_model.png")
    print(json.dumps(result["ours_minus_nnunet"] or result["labels"]))


def split_of(folder: LabelledFolder) -> CaseSplit:
    """Split as `dicomnode pretrain` does with seed 0."""
    usual = PretrainRecipe()
    read = (case.read() for case in folder.cases)
    return split_cases(
        [SplitCase(name=case.name, stratum=case.stratum) for case in read],
        hold_out_fraction=usual.hold_out_fraction,
        validation_fraction=usual.validation_fraction,
        generator=np.random.default_rng(usual.seed),
    )


def run_ours(folder: LabelledFolder, split: CaseSplit, options: argparse.Namespace) -> tuple[Path, object]:
    """Train with `dicomnode pretrain`, and segment the hold-out."""
    work = options.work / f"ours_{options.features}"
    work.mkdir(exist_ok=True)
    model = work / "hippocampus"
    if not (model / package.WEIGHTS_FILE).is_file() or (model / WORK_FOLDER).exists():
        plan = write_plan(folder, split, work / "planning.json", features=options.features)
        words = ["pretrain", DATA, "--labels", MODEL / "labels.toml", "--about", MODEL / "about.md"]
        words += ["--plan", plan, "--minutes", options.minutes, "--out", model, "--epoch-steps", 25]
        words += ["--bfloat16", *OURS, *options.pretrain]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        subprocess.run([sys.executable, "-m", "dicomnode", *map(str, words)], check=True, env=environment)
    loaded = engine.load(package.read(model), device="cpu")
    for case in folder.cases:
        path = work / f"{case.name}.nii.gz"
        if case.name in split.hold_out and not path.is_file():
            stored = nibabel.load(_image_path(case.name))
            found = engine.predict(loaded, case.read().image).array
            nibabel.save(nibabel.Nifti1Image(found, stored.affine), path)
    last = (model / "training.csv").read_text().splitlines()[-1].split(",")
    return work, {"steps": int(last[1]), "seconds": float(last[-1]), "version": loaded.card.version}


def write_plan(folder: LabelledFolder, split: CaseSplit, path: Path, *, features: int) -> Path:
    """Plan from the training cases, and give the network fewer features on all levels."""
    training = [case for case in folder.cases if case.name in split.training]
    found = fingerprint.measure(
        ((case.image, case.labels) for case in (source.read() for source in training)),
        count=len(training),
        orientation="HPL",
        modalities=("MR",),
    )
    aim = Aim(name="hippocampus", classes=CLASSES)
    planning = planner.plan(found, aim, Rules(), only="3d_fullres")
    (one,) = planning.configurations
    stage = one.plan.final
    widths = tuple(width * features // 32 for width in stage.network.features)
    stage = replace(stage, network=replace(stage.network, features=widths))
    changed = replace(one, plan=replace(one.plan, stages=(stage,)), memory=None)
    path.write_text(planned.render(replace(planning, configurations=(changed,))), encoding="utf-8")
    return path


def run_nnunet(split: CaseSplit, options: argparse.Namespace) -> tuple[Path, object]:
    """Give nnU-Net the same cases, and let it train and segment."""
    work = options.work / "nnunet"
    raw = work / "raw" / RAW_NAME
    if not (work / "done.json").is_file():
        names = [*split.training, *split.validation]
        for kind in ("imagesTr", "labelsTr", "imagesTs"):
            (raw / kind).mkdir(parents=True, exist_ok=True)
        for name in (*names, *split.hold_out):
            images = raw / ("imagesTs" if name in split.hold_out else "imagesTr")
            _link(_image_path(name), images / f"{name}_0000.nii.gz")
        for name in names:
            _link(DATA / "labels" / f"{name}.nii.gz", raw / "labelsTr" / f"{name}.nii.gz")
        described = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "anterior": 1, "posterior": 2},
            "numTraining": len(names),
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(described))
        sides = [{"train": list(split.training), "val": list(split.validation)}]
        (work / "split.json").write_text(json.dumps(sides))
        script = Path(__file__).with_name("nnunet_timed.py")
        words = [options.nnunet, script, work, "--minutes", options.minutes, "--threads", options.threads]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        subprocess.run(list(map(str, words)), check=True, env=environment)
    return work / "predictions", json.loads((work / "done.json").read_text())


def compare(predictions: Path, case: str) -> CaseMeasures:
    """Measure one segmented case."""
    pair = Pair(
        case_id=case,
        prediction=predictions / f"{case}.nii.gz",
        truth=DATA / "labels" / f"{case}.nii.gz",
    )
    prediction, truth, spacing_mm = label_maps.read_pair(pair)
    return measures.measure_case(case, prediction, truth, labels=LABELS, spacing_mm=spacing_mm)


def _summaries(cases: Sequence[CaseMeasures]) -> tuple[summary.LabelSummary, ...]:
    return summary.summarise(cases, labels=LABELS, generator=np.random.default_rng(0))


def _differences(cases: dict[str, list[CaseMeasures]]) -> dict[str, dict[str, object]]:
    """Give the mean difference over the cases, with its interval, for each label and figure."""
    found: dict[str, dict[str, object]] = {}
    for index, label in enumerate(LABELS):
        found[label.name] = {}
        for figure in ("dice", "hd95_mm"):
            pairs = [
                [getattr(one.labels[index], figure) for one in both]
                for both in zip(cases["ours"], cases["nnunet"], strict=True)
            ]
            values = [ours - theirs for ours, theirs in pairs if np.isfinite(ours) and np.isfinite(theirs)]
            generator = np.random.default_rng(0)
            estimate = summary.estimate(values, resamples=summary.RESAMPLES, generator=generator)
            found[label.name][figure] = asdict(estimate)
    return found


def _image_path(name: str) -> Path:
    return DATA / "images" / f"{name}.nii.gz"


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.symlink_to(source)


def _machine() -> dict[str, str]:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {"cpu": cpu, "python": platform.python_version(), "torch": version("torch")}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=45.0, help="training time of each")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--features", type=int, default=16, help="of the finest level of ours; nnU-Net has 32"
    )
    parser.add_argument("--pretrain", nargs=argparse.REMAINDER, default=[], help="more options of pretrain")
    parser.add_argument("--only", action="append", choices=CONTENDERS)
    parser.add_argument(
        "--nnunet", default=os.environ.get("DICOMNODE_NNUNET"), help="interpreter with nnunetv2"
    )
    parser.add_argument("--work", type=Path, default=REPOSITORY / "output" / "default_model")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "experiments")
    options = parser.parse_args()
    if options.nnunet is None and "nnunet" in (options.only or CONTENDERS):
        parser.error("DICOMNODE_NNUNET must name a Python interpreter that has nnunetv2, or use --only ours")
    return options


if __name__ == "__main__":
    main()
