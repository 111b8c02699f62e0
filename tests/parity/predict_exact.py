"""Predict with nnU-Net whose buffers are float32 instead of float16; run by the interpreter that has it.

    PYTHON predict_exact.py OUT MODEL_FOLDER FOLD[,FOLD] IMAGE_0000.nii.gz ... --   (and so on)

All else is nnU-Net's own: weights, preprocessing, tiles, resampling. So a difference to these labels is a
difference in what is computed, not in how sums are rounded.
"""

import sys
import types
from pathlib import Path

import nnunetv2.inference.predict_from_raw_data as prediction
import torch


class WithoutHalf(types.ModuleType):
    """The module torch, whose half precision is single precision."""

    def __getattr__(self, name: str) -> object:
        return torch.float32 if name == "half" else getattr(torch, name)


def exact_gaussian(*args: object, **options: object) -> torch.Tensor:
    """The same weights of a tile's voxels, as float32."""
    weights: torch.Tensor = ORIGINAL(*args, **options).float()
    return weights


ORIGINAL = prediction.compute_gaussian
exact_gaussian.cache_clear = lambda: None  # nnU-Net empties the cache of its own function
prediction.torch = WithoutHalf("torch")
prediction.compute_gaussian = exact_gaussian


def predict(out: Path, model: Path, folds: list[str], images: list[Path]) -> None:
    """Predict without mirroring, and save the probabilities too."""
    out.mkdir(parents=True, exist_ok=True)
    predictor = prediction.nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    chosen = [int(fold) if fold.isdigit() else fold for fold in folds]
    predictor.initialize_from_trained_model_folder(str(model), chosen, "checkpoint_final.pth")
    names = [str(out / path.name.removesuffix("_0000.nii.gz")) for path in images]
    predictor.predict_from_files_sequential([[str(path)] for path in images], names, save_probabilities=True)


def main(arguments: list[str]) -> None:
    """Do one job after the other."""
    while arguments:
        job = arguments[: arguments.index("--")]
        predict(Path(job[0]), Path(job[1]), job[2].split(","), [Path(path) for path in job[3:]])
        arguments = arguments[len(job) + 1 :]


if __name__ == "__main__":
    main(sys.argv[1:])
