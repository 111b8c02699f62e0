"""Train small nnU-Net models with nnU-Net itself and predict with them, for the parity tests.

Run by the interpreter that has nnunetv2: ``train_models.py FOLDER [--data DATA] [--only MODEL ...]``. Every
model gets

- ``FOLDER/<model>/model/nnUNetTrainer__<plans>__<configuration>/`` as nnU-Net writes it,
- ``FOLDER/<model>/export.zip`` where the recipe says so, as ``nnUNetv2_export_model_to_zip`` writes it,
- ``FOLDER/<model>/inputs/<case>_0000.nii.gz``,
- ``FOLDER/<model>/expected/<mode>/<case>.nii.gz`` and ``.npz`` of the last configuration, and
  ``FOLDER/<model>/expected_<configuration>/<mode>/`` of those before it,
- ``FOLDER/<model>/model.json``, written last: a model that has one is left as it is.
"""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
os.environ.update({"nnUNet_def_n_proc": str(THREADS), "nnUNet_compile": "false"})

import numpy as np  # noqa: E402 - nnunetv2 reads these variables when it is imported
import SimpleITK  # noqa: E402
import torch  # noqa: E402
from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # noqa: E402
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.model_sharing.model_export import export_pretrained_model  # noqa: E402
from nnunetv2.run.run_training import get_trainer_from_args  # noqa: E402
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402
from recipes import RECIPES, Configuration, Fold, Mode, Recipe  # noqa: E402
from volumes import COLLECTIONS, Case, Collection  # noqa: E402

CPU = torch.device("cpu")
SEED = 20261120
LEARNING_RATE = 3e-3
TRAINER = "nnUNetTrainer"
KEPT = ("plans.json", "dataset.json", "dataset_fingerprint.json")
log = logging.getLogger("train_models")


def make_model(recipe: Recipe, folder: Path, data: Path | None) -> None:
    """Make one model with its predictions, unless it is there already."""
    target = folder / recipe.name
    if (target / "model.json").is_file():
        log.info("%s is there already", recipe.name)
        return
    shutil.rmtree(target, ignore_errors=True)
    start = time.monotonic()
    work = target / "work"
    for part in ("raw", "preprocessed", "results"):
        (work / part).mkdir(parents=True)
        os.environ[f"nnUNet_{part}"] = str(work / part)
    collection = COLLECTIONS[recipe.collection](data)
    _write_dataset(recipe, collection, work / "raw" / recipe.dataset)
    plans = _plan(recipe, work / "preprocessed" / recipe.dataset)
    for configuration in recipe.configurations:
        _train(recipe, configuration, plans)
    trained = time.monotonic()
    _keep(recipe, plans, work / "results" / recipe.dataset, target)
    _predict(recipe, plans, collection, target)
    shutil.rmtree(work)
    _describe(recipe, plans, collection, target)
    end = time.monotonic()
    log.info("%s: %.0f s, of these %.0f s predicting", recipe.name, end - start, end - trained)


def _write_dataset(recipe: Recipe, collection: Collection, folder: Path) -> None:
    for case in collection.training:
        _write_image(case, folder / "imagesTr")
        (folder / "labelsTr").mkdir(exist_ok=True)
        SimpleITK.WriteImage(case.labels, str(folder / "labelsTr" / f"{case.name}.nii.gz"))
    description: dict[str, object] = {
        "channel_names": {"0": recipe.channel},
        "labels": {
            name: list(value) if isinstance(value, tuple) else value for name, value in recipe.labels.items()
        },
        "numTraining": len(collection.training),
        "file_ending": ".nii.gz",
    }
    if recipe.regions_class_order is not None:
        description["regions_class_order"] = list(recipe.regions_class_order)
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))


def _write_image(case: Case, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.name}_0000.nii.gz"
    SimpleITK.WriteImage(case.image, str(path))
    return path


def _plan(recipe: Recipe, folder: Path) -> str:
    """Plan and preprocess with nnU-Net; answer the name of the plans."""
    os.environ.update({"nnUNet_n_proc_DA": str(THREADS)})  # how many threads the planner gives torch
    with _threads_for_processes():
        extract_fingerprints([recipe.number], num_processes=THREADS, show_progress_bar=False)
        plans_name = str(plan_experiments([recipe.number], recipe.planner))
        path = folder / f"{plans_name}.json"
        plans = json.loads(path.read_text())
        for configuration in recipe.configurations:
            _shrink(plans, configuration)
        path.write_text(json.dumps(plans, indent=2))
        names = [c.name for c in recipe.configurations]
        preprocess([recipe.number], plans_name, names, [THREADS], show_progress_bar=False)
    return plans_name


def _shrink(plans: dict, configuration: Configuration) -> None:
    """Make the planned network narrower and shallower, and its patch smaller; add the stages of a cascade."""
    planned = plans["configurations"]
    full = planned["2d" if configuration.name == "2d" else "3d_fullres"]
    own = planned.setdefault(configuration.name, {})
    if configuration.previous is not None:
        own.update({"inherits_from": "3d_fullres", "previous_stage": configuration.previous})
        planned[configuration.previous]["next_stage"] = configuration.name
    if configuration.coarser is not None:
        own.update(full)
        own["spacing"] = [value * configuration.coarser for value in full["spacing"]]
        own["data_identifier"] = f"{plans['plans_name']}_{configuration.name}"
    own["architecture"] = _cut(full["architecture"], configuration)
    own["patch_size"] = list(configuration.patch_size)
    own["batch_size"] = configuration.batch_size


def _cut(architecture: dict, configuration: Configuration) -> dict:
    """Answer the same network with fewer stages and features."""
    network, stages = dict(architecture["arch_kwargs"]), configuration.stages
    for key in ("kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"):
        if key in network:
            network[key] = network[key][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
    network["features_per_stage"] = list(configuration.features[:stages])
    network["n_stages"] = stages
    divisors = np.prod(network["strides"], axis=0)
    assert not np.any(np.mod(configuration.patch_size, divisors)), (configuration.patch_size, divisors)
    return {**architecture, "arch_kwargs": network}


def _train(recipe: Recipe, configuration: Configuration, plans: str) -> None:
    """Train every fold with the stock trainer; predict for the next stage where there is one."""
    os.environ.update({"nnUNet_n_proc_DA": "0"})  # augmentation in this process, so that the seeds hold
    for number, fold in enumerate(recipe.folds):
        random.seed(SEED + number)
        np.random.seed(SEED + number)  # nnU-Net draws from the global generator
        torch.manual_seed(SEED + number)
        trainer = _short_trainer(recipe, configuration, fold, plans)
        trainer.run_training()
        folder = Path(trainer.output_folder)
        if trainer.configuration_manager.next_stage_names:
            with _threads_for_processes():
                trainer.perform_actual_validation()
        else:
            (folder / "validation").mkdir(exist_ok=True)
            (folder / "validation" / "summary.json").write_text("{}")  # an export asks for the file
        (folder / "debug.json").unlink()  # names the machine


def _short_trainer(recipe: Recipe, configuration: Configuration, fold: Fold, plans: str) -> nnUNetTrainer:
    """Set up nnU-Net's trainer for a few quick steps."""
    trainer = get_trainer_from_args(recipe.dataset, configuration.name, fold, TRAINER, plans, device=CPU)
    trainer.num_epochs = configuration.epochs
    trainer.num_iterations_per_epoch = configuration.iterations
    trainer.num_val_iterations_per_epoch = 1
    trainer.oversample_foreground_percent = 0.8
    trainer.configure_optimizers = partial(_fast_optimizer, trainer)
    if not recipe.is_mirrored:
        planned = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = partial(
            _without_mirroring, trainer, planned
        )
    return trainer


def _without_mirroring(trainer: nnUNetTrainer, planned: Callable[[], tuple]) -> tuple:
    """What nnUNetTrainerNoMirroring does: neither training nor prediction mirrors."""
    rotation, dummy_2d, patch_size, _ = planned()
    trainer.inference_allowed_mirroring_axes = None
    return rotation, dummy_2d, patch_size, None


def _fast_optimizer(trainer: nnUNetTrainer) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
    """Adam, which finds every label in a hundred steps; nnU-Net's own momentum takes five times as many."""
    optimizer = torch.optim.AdamW(trainer.network.parameters(), LEARNING_RATE)
    return optimizer, PolyLRScheduler(optimizer, LEARNING_RATE, trainer.num_epochs)


def _keep(recipe: Recipe, plans: str, results: Path, target: Path) -> None:
    """Export the model, and keep what a trained model's folder needs for predictions."""
    names = [c.name for c in recipe.configurations]
    if recipe.is_exported:
        export_pretrained_model(
            recipe.dataset, str(target / "export.zip"), names, TRAINER, plans, recipe.folds
        )
    for name in names:
        trained = results / _model_folder(plans, name)
        kept = target / "model" / trained.name
        for fold in recipe.folds:
            (kept / f"fold_{fold}").mkdir(parents=True)
            shutil.move(trained / f"fold_{fold}" / "checkpoint_final.pth", kept / f"fold_{fold}")
        for file in KEPT:
            shutil.copy(trained / file, kept / file)


def _predict(recipe: Recipe, plans: str, collection: Collection, target: Path) -> None:
    images = {case.name: _write_image(case, target / "inputs") for case in collection.tested}
    for mode in recipe.modes:
        previous: Path | None = None
        for configuration in recipe.configurations:
            model = target / "model" / _model_folder(plans, configuration.name)
            output = target / _predictions_folder(recipe, configuration) / mode.name
            output.mkdir(parents=True)
            chosen = [images[name] for name in mode.cases or images]
            _predict_mode(model, mode, chosen, output, previous)
            previous = output


def _predict_mode(model: Path, mode: Mode, images: list[Path], output: Path, previous: Path | None) -> None:
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=mode.mirroring, device=CPU, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), mode.folds)
    predictor.predict_from_files_sequential(
        [[str(image)] for image in images],
        [str(output / image.name.removesuffix("_0000.nii.gz")) for image in images],
        save_probabilities=mode.probabilities,
        folder_with_segs_from_prev_stage=None if previous is None else str(previous),
    )
    for name in ("predict_from_raw_data_args.json", "dataset.json", "plans.json"):
        (output / name).unlink()
    for pickled in output.glob("*.pkl"):
        pickled.unlink()


def _describe(recipe: Recipe, plans: str, collection: Collection, target: Path) -> None:
    """Write what was made and how many voxels each label got."""
    predictions = []
    for mode in recipe.modes:
        for configuration in recipe.configurations:
            folder = target / _predictions_folder(recipe, configuration) / mode.name
            files = sorted(folder.glob("*.nii.gz"))
            voxels = {path.name.removesuffix(".nii.gz"): _count(path) for path in files}
            _check_labels(recipe, folder, voxels)
            predictions.append(
                {
                    "configuration": configuration.name,
                    "folds": list(mode.folds),
                    "mirroring": mode.mirroring,
                    "folder": str(folder.relative_to(target)),
                    "voxels": voxels,
                }
            )
    description = {
        "name": recipe.name,
        "cases": [case.name for case in collection.tested],
        "models": {c.name: f"model/{_model_folder(plans, c.name)}" for c in recipe.configurations},
        "predictions": predictions,
    }
    (target / "model.json").write_text(json.dumps(description, indent=2))


def _check_labels(recipe: Recipe, folder: Path, voxels: dict[str, dict[str, int]]) -> None:
    """Refuse predictions that lack a label: agreement on what nobody predicts tests nothing."""
    wanted = {str(label) for label in recipe.regions_class_order or recipe.labels.values()}
    if "ignore" in recipe.labels:
        wanted.discard(str(recipe.labels["ignore"]))
    for case, counts in voxels.items():
        lacking = wanted - counts.keys()
        assert not lacking, f"{folder}: {case} has no voxel of label {', '.join(sorted(lacking))}"


def _count(path: Path) -> dict[str, int]:
    values, counts = np.unique(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), return_counts=True
    )
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _model_folder(plans: str, configuration: str) -> str:
    return f"{TRAINER}__{plans}__{configuration}"


def _predictions_folder(recipe: Recipe, configuration: Configuration) -> str:
    is_last = configuration is recipe.configurations[-1]
    return "expected" if is_last else f"expected_{configuration.name}"


class _Threads:
    """What nnU-Net asks of a multiprocessing context."""

    Pool = ThreadPool

    def __init__(self, method: str | None = None) -> None:
        self.method = method


@contextlib.contextmanager
def _threads_for_processes() -> Iterator[None]:
    """Let nnU-Net work in threads: to start a process takes longer than its work on these images."""
    original = multiprocessing.get_context
    multiprocessing.get_context = _Threads
    try:
        yield
    finally:
        multiprocessing.get_context = original


def main() -> None:
    """Make the models that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="folder of real images; without it they are made")
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="the models to make")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    torch.set_num_threads(THREADS)
    for recipe in RECIPES:
        if recipe.name in options.only:
            make_model(recipe, options.folder.resolve(), options.data)


if __name__ == "__main__":
    main()
