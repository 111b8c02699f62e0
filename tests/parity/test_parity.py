"""Labels of the node agree with nnU-Net's own predictions, model by model and voxel by voxel.

nnU-Net adds logits up in float16, so that at the border of two classes its rounding decides. With float32
buffers in nnU-Net and all else its own, labels must agree but for ties of 1e-3; with nnU-Net as it is, at a
Dice of 0.999.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.ml.imports.importer import ImportOptions, import_model
from dicomnode.ml.inference import engine
from dicomnode.ml.inference.engine import LoadedModel
from tests.parity.compare import TIE, Comparison, compare, read_volume
from tests.parity.made_models import NnunetModel, Prediction
from tests.parity.recipes import RECIPES

DICE = 0.999
FEW = 15  # voxels that rounding may turn in labels of a thousand voxels, where it costs more than 0.001 Dice

Load = Callable[[NnunetModel, Prediction], LoadedModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Import a model with the folds of a prediction, once, and load it."""
    packages = tmp_path_factory.mktemp("packages")
    loaded: dict[str, LoadedModel] = {}

    def load(model: NnunetModel, prediction: Prediction) -> LoadedModel:
        folds = tuple(str(fold) for fold in prediction.folds)
        key = "-".join((_source(model).stem, model.name, prediction.configuration, *folds))
        if key not in loaded:
            options = ImportOptions(
                name="parity",
                configuration=prediction.configuration,
                folds=folds,
                orientation="acquired",
                modalities=("OT",),
            )
            made = import_model(_source(model), packages / key, options=options, progress=lambda *_: None)
            loaded[key] = engine.load(made.package, device="cpu")
        return loaded[key]

    return load


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_labels_of_every_kind_of_model_are_those_of_nnunet(
    recipe, trained_models: Mapping[str, NnunetModel], load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    _check(trained_models[recipe.name], load, capsys)


@pytest.mark.parametrize("name", ["hippocampus", "ct_residual_encoder"])
def test_labels_of_longer_trained_models_are_those_of_nnunet(
    name: str,
    reference_models: Mapping[str, NnunetModel],
    load: Load,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _check(reference_models[name], load, capsys)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_labels_agree_voxel_by_voxel_with_nnunet_in_single_precision(
    recipe,
    trained_models: Mapping[str, NnunetModel],
    exact_predictions: Mapping[str, Sequence[Prediction]],
    load: Load,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = trained_models[recipe.name]
    for prediction in exact_predictions[recipe.name]:
        for case, path in prediction.images.items():
            labels = engine.predict(load(model, prediction), read_volume(path), mirror=False).array
            found = compare(labels, prediction.labels(case), regions_class_order=model.regions_class_order)
            with capsys.disabled():
                print("exact:", _line(model, prediction, case, found))
            assert found.is_tied, _line(model, prediction, case, found)


@pytest.fixture(scope="module")
def exact_predictions(
    nnunet_python: Path, trained_models: Mapping[str, NnunetModel], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Sequence[Prediction]]:
    """What nnU-Net predicts with float32 buffers: plain passes; of a cascade the first stage."""
    folder = tmp_path_factory.mktemp("exact")
    wanted: dict[str, list[Prediction]] = {name: [] for name in trained_models}
    words: list[str] = []
    for name, model in trained_models.items():
        for one in model.predicted_by(model.configurations[0]):
            out = folder / name / "-".join(map(str, one.folds))
            if one.mirroring or out in [prediction.folder for prediction in wanted[name]]:
                continue
            wanted[name].append(replace(one, folder=out))
            folds = ",".join(map(str, one.folds))
            words += [
                str(out),
                str(model.folders[one.configuration]),
                folds,
                *map(str, one.images.values()),
                "--",
            ]
    program = Path(__file__).with_name("predict_exact.py")
    subprocess.run([str(nnunet_python), str(program), *words], check=True, capture_output=True)
    return wanted


def _check(model: NnunetModel, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    faults = []
    for prediction in model.predictions:
        loaded = load(model, prediction)
        for case, path in prediction.images.items():
            labels = engine.predict(loaded, read_volume(path), mirror=prediction.mirroring).array
            found = compare(labels, prediction.labels(case), regions_class_order=model.regions_class_order)
            with capsys.disabled():
                print(_line(model, prediction, case, found))
            if min(found.dice.values()) < DICE and found.differing > FEW:
                faults.append(_line(model, prediction, case, found))
    assert not faults, "\n".join(faults)


def _line(model: NnunetModel, prediction: Prediction, case: str, found: Comparison) -> str:
    margin = "unknown" if found.largest_margin is None else f"{found.largest_margin:.5f}"
    passes = "mirrored" if prediction.mirroring else "plain"
    mode = f"{prediction.configuration} folds {prediction.folds} {passes}"
    return (
        f"{model.name} {mode} {case}: lowest Dice {min(found.dice.values()):.5f}, "
        f"{found.differing} voxels differ, largest margin {margin} (tie: {TIE})"
    )


def _source(model: NnunetModel) -> Path:
    """A zip where there is one; else the folder that holds the configurations."""
    if model.archive is not None and len(model.configurations) == 1:
        return model.archive
    return next(iter(model.folders.values())).parent
