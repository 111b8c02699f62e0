"""Train nnU-Net with its own trainer for a given time, and segment with the result.

Run by the interpreter that has nnunetv2: ``nnunet_timed.py FOLDER --minutes M --threads N``. ``FOLDER/raw``
holds one data set with images to train on and images to segment (``imagesTs``), ``FOLDER/split.json`` says
which of the first are for validation. The segmentations come to ``FOLDER/predictions``, what was done to
``FOLDER/done.json``.

The trainer is the stock one but for its clock: the learning rate falls with the time that has passed, epochs
are short, and the training ends when the time is used up. Cut off, it goes on from its last epoch.
"""

import argparse
import json
import os
import time
from pathlib import Path

OPTIONS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("folder", type=Path)
OPTIONS.add_argument("--minutes", type=float, required=True)
OPTIONS.add_argument("--threads", type=int, required=True)
ARGUMENTS = OPTIONS.parse_args()
FOLDER = ARGUMENTS.folder.resolve()
for part in ("raw", "preprocessed", "results"):
    (FOLDER / part).mkdir(exist_ok=True)
    os.environ[f"nnUNet_{part}"] = str(FOLDER / part)
os.environ |= {
    "nnUNet_n_proc_DA": "1",
    "nnUNet_def_n_proc": str(ARGUMENTS.threads),
    "nnUNet_compile": "false",
}

import torch  # noqa: E402 - nnunetv2 reads the variables when it is imported
from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # noqa: E402
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock  # noqa: E402, N813 - a module

NUMBER, NAME, CONFIGURATION = 4, "Dataset004_Hippocampus", "3d_fullres"
CPU = torch.device("cpu")
STATE = FOLDER / "state.json"
EPOCH_STEPS, VALIDATION_STEPS = 25, 5  # of the stock trainer: 250 and 50


class nnUNetTrainer(stock.nnUNetTrainer):  # noqa: N801 - the name by which nnU-Net finds it again
    """The stock trainer with a clock."""

    steps = 0
    _before = 0.0
    _started = 0.0

    @property
    def elapsed(self) -> float:
        """Share of the time that has passed."""
        return self.seconds / (60 * ARGUMENTS.minutes)

    @property
    def seconds(self) -> float:
        """Time that it has trained."""
        return self._before + time.monotonic() - self._started

    def train_step(self, batch: dict) -> dict:
        """Take a step with the learning rate that belongs to this moment."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * max(1 - self.elapsed, 0) ** 0.9
        self.steps += 1
        return super().train_step(batch)

    def run_training(self) -> None:
        """Train epoch after epoch until the time is used up."""
        self.on_train_start()
        if STATE.is_file():
            state = json.loads(STATE.read_text())
            self._before, self.steps = state["seconds"], state["steps"]
        self._started = time.monotonic()
        while self.elapsed < 1:
            self.on_epoch_start()
            self._run_epoch()
            self.on_epoch_end()
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
            STATE.write_text(json.dumps({"seconds": self.seconds, "steps": self.steps}))
        self.on_train_end()

    def _run_epoch(self) -> None:
        self.on_train_epoch_start()
        losses = []
        while len(losses) < EPOCH_STEPS and self.elapsed < 1:
            losses.append(self.train_step(next(self.dataloader_train)))
        self.on_train_epoch_end(losses)
        with torch.no_grad():
            self.on_validation_epoch_start()
            judged = [self.validation_step(next(self.dataloader_val)) for _ in range(VALIDATION_STEPS)]
            self.on_validation_epoch_end(judged)


def prepare() -> None:
    """Plan and preprocess as the command line of nnU-Net does, unless it is done."""
    preprocessed = FOLDER / "preprocessed" / NAME
    if not (preprocessed / "splits_final.json").is_file():
        extract_fingerprints([NUMBER], num_processes=ARGUMENTS.threads)
        plan_experiments([NUMBER])
        preprocess([NUMBER], configurations=[CONFIGURATION], num_processes=[ARGUMENTS.threads])
        (preprocessed / "splits_final.json").write_text((FOLDER / "split.json").read_text())


def train() -> nnUNetTrainer:
    """Train, or go on."""
    preprocessed = FOLDER / "preprocessed" / NAME
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    dataset = json.loads((FOLDER / "raw" / NAME / "dataset.json").read_text())
    plans["continue_training"] = STATE.is_file()
    trainer = nnUNetTrainer(plans, CONFIGURATION, 0, dataset, device=CPU)
    latest, final = (Path(trainer.output_folder) / f"checkpoint_{which}.pth" for which in ("latest", "final"))
    if latest.is_file():
        trainer.load_checkpoint(str(latest))
    if not final.is_file():
        trainer.run_training()
    return trainer


def segment(trainer: nnUNetTrainer) -> None:
    """Segment what is to be segmented, with mirroring, as nnU-Net does of itself."""
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    images = sorted((FOLDER / "raw" / NAME / "imagesTs").glob("*_0000.nii.gz"))
    target = FOLDER / "predictions"
    target.mkdir(exist_ok=True)
    names = [str(target / path.name.removesuffix("_0000.nii.gz")) for path in images]
    predictor.predict_from_files_sequential([[str(path)] for path in images], names, overwrite=False)


if __name__ == "__main__":
    torch.set_num_threads(ARGUMENTS.threads)
    prepare()
    trained = train()
    segment(trained)
    (FOLDER / "done.json").write_text(STATE.read_text())
