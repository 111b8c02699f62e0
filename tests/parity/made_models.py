"""The models of nnU-Net that the parity tests compare with: where each one is, and what it predicted."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.parity.recipes import RECIPES, Fold

DRIVER = Path(__file__).with_name("train_models.py")
IMAGE_SUFFIX = "_0000.nii.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What nnU-Net predicted with one set of options; ``images`` has the input of each case."""

    configuration: str
    folds: tuple[Fold, ...]
    mirroring: bool
    folder: Path
    images: Mapping[str, Path]

    def labels(self, case: str) -> Path:
        """The predicted label map; `tests.parity.compare` finds the probabilities beside it."""
        return self.folder / f"{case}.nii.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetModel:
    """A trained model: folders by configuration, an exported zip, or both.

    The last of ``configurations`` is the one that segments; those before it are earlier stages of a cascade.
    """

    name: str
    configurations: tuple[str, ...]
    folders: Mapping[str, Path]
    archive: Path | None
    regions_class_order: tuple[int, ...] | None
    predictions: tuple[Prediction, ...]

    def predicted_by(self, configuration: str) -> tuple[Prediction, ...]:
        """The predictions of one configuration."""
        return tuple(p for p in self.predictions if p.configuration == configuration)


def train(python: Path, folder: Path, data: Path | None) -> Mapping[str, NnunetModel]:
    """Make every model of `RECIPES` that is not yet in the folder, with nnU-Net's interpreter; minutes.

    Two processes share the work: one network of this size keeps one core busy, not two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [recipe.name for recipe in RECIPES]
    running = [
        _start_driver(python, folder, data, names[half::2], folder / f"train_models_{half + 1}.log")
        for half in (0, 1)
    ]
    for process, _ in running:
        process.wait()
    for process, output in running:
        assert process.returncode == 0, output.read_text()[-4000:]
    return {name: read_model(folder / name) for name in names}


def _start_driver(
    python: Path, folder: Path, data: Path | None, names: Sequence[str], output: Path
) -> tuple[subprocess.Popen[bytes], Path]:
    options = [] if data is None else ["--data", str(data)]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [str(python), str(DRIVER), str(folder), *options, "--only", *names],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    return process, output


def read_model(folder: Path) -> NnunetModel:
    """Read the description of a model that ``train_models.py`` made."""
    description = json.loads((folder / "model.json").read_text())
    recipe = next(recipe for recipe in RECIPES if recipe.name == description["name"])
    archive = folder / "export.zip"
    predictions = tuple(
        Prediction(
            configuration=entry["configuration"],
            folds=tuple(entry["folds"]),
            mirroring=entry["mirroring"],
            folder=folder / entry["folder"],
            images={case: folder / "inputs" / f"{case}{IMAGE_SUFFIX}" for case in entry["voxels"]},
        )
        for entry in description["predictions"]
    )
    return NnunetModel(
        name=recipe.name,
        configurations=tuple(description["models"]),
        folders={name: folder / path for name, path in description["models"].items()},
        archive=archive if archive.is_file() else None,
        regions_class_order=recipe.regions_class_order,
        predictions=predictions,
    )


def read_reference(name: str, archive: Path, predictions: Path, images: Sequence[Path]) -> NnunetModel:
    """Read a model that lies beside the real data: a zip, and a folder of predictions by mode.

    Each of ``images`` is a folder with the inputs of some cases, with or without the channel in their names.
    """
    found = [
        Prediction(
            configuration="3d_fullres",
            folds=tuple(int(part) for part in mode.name.split("_") if part.isdigit()),
            mirroring="no_mirroring" not in mode.name,
            folder=mode,
            images={case: _find_image(case, images) for case in _cases(mode)},
        )
        for mode in sorted(path for path in predictions.iterdir() if path.is_dir())
    ]
    return NnunetModel(
        name=name,
        configurations=("3d_fullres",),
        folders={},
        archive=archive,
        regions_class_order=None,
        predictions=tuple(found),
    )


def _cases(mode: Path) -> list[str]:
    return [path.name.removesuffix(".nii.gz") for path in sorted(mode.glob("*.nii.gz"))]


def _find_image(case: str, folders: Sequence[Path]) -> Path:
    paths = [folder / f"{case}{suffix}" for folder in folders for suffix in (IMAGE_SUFFIX, ".nii.gz")]
    return next(path for path in paths if path.is_file())
