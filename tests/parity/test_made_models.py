"""What the comparisons rest on: predictions of nnU-Net with every label, and probabilities on their grid."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.parity.compare import LabelArray, read_labels, read_probabilities, read_volume
from tests.parity.made_models import NnunetModel, Prediction
from tests.parity.recipes import RECIPES


def _cases(model: NnunetModel) -> Iterator[tuple[Prediction, str]]:
    for prediction in model.predictions:
        for case in prediction.images:
            yield prediction, case


def _decide(model: NnunetModel, probabilities: np.ndarray) -> LabelArray:
    if model.regions_class_order is None:
        return probabilities.argmax(0).astype(np.uint8)
    labels = np.zeros(probabilities.shape[1:], np.uint8)
    for region, label in zip(probabilities, model.regions_class_order, strict=True):
        labels[region > 0.5] = label
    return labels


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_probabilities_beside_a_prediction_give_its_labels(trained_models, recipe):
    model = trained_models[recipe.name]
    compared = 0
    for prediction, case in _cases(model):
        labels = read_labels(prediction.labels(case))
        assert labels.shape == read_volume(prediction.images[case]).spatial_shape
        npz = prediction.folder / f"{case}.npz"
        if npz.is_file():
            assert np.array_equal(_decide(model, read_probabilities(npz)), labels), (prediction.folder, case)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_nnunet_found_every_label_in_every_case(trained_models, recipe):
    model = trained_models[recipe.name]
    wanted = set(recipe.regions_class_order or recipe.labels.values()) - {recipe.labels.get("ignore")}
    for prediction, case in _cases(model):
        assert set(np.unique(read_labels(prediction.labels(case)))) >= wanted, (prediction.folder, case)


@pytest.mark.parametrize("name", ["hippocampus", "ct_residual_encoder"])
def test_models_beside_the_real_images_are_whole(reference_models, name):
    model = reference_models[name]
    assert model.archive.is_file()
    assert {prediction.mirroring for prediction in model.predictions} == {False, True}
    for prediction, case in _cases(model):
        labels, volume = read_labels(prediction.labels(case)), read_volume(prediction.images[case])
        assert labels.shape == volume.spatial_shape
        assert set(np.unique(labels)) >= {0, 1}
