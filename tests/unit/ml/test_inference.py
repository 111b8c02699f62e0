"""Predictions come back on the voxels of the input, at the right place in the patient."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from highdicom import Volume
from torch import Tensor, nn

from dicomnode.errors import ConfigError, GeometryError, UnsupportedSeriesError
from dicomnode.ml.inference import engine
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.ml.model.package import ModelPackage

AXES = ("LR", "AP", "FH")
ORIENTATIONS = ["".join(letters) for axes in permutations(AXES) for letters in product(*axes)]


class Brightness(nn.Module):
    """A network that can be worked out by hand: class 1 where the z-score is above 0.5."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images * 10 - 5
        return torch.cat([-bright, bright, torch.full_like(bright, -100)], dim=1)


@pytest.fixture
def model(tiny: ModelPackage) -> LoadedModel:
    return engine.load(tiny, device="cpu")


@pytest.fixture
def threshold(model: LoadedModel) -> LoadedModel:
    return replace(model, networks=((Brightness(),),))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_orientation_of_an_image_changes_nothing_in_the_patient(
    orientation: str, model: LoadedModel, make_volume: Callable[..., Volume]
) -> None:
    upright = make_volume((8, 9, 10))
    turned = upright.to_patient_orientation(orientation)

    labels = engine.predict(model, turned)

    assert labels.geometry_equal(turned)
    back = labels.match_geometry(upright)
    np.testing.assert_array_equal(back.array, engine.predict(model, upright).array)
    assert len(np.unique(back.array)) > 1


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1, 1), (0.5, 0.7, 1.5), (3, 3, 3)])
def test_labels_lie_on_the_voxels_of_the_input_at_any_spacing(
    spacing: tuple[float, float, float], threshold: LoadedModel, make_volume: Callable[..., Volume]
) -> None:
    image = make_volume((14, 15, 16), spacing)

    labels = engine.predict(threshold, image)

    assert labels.geometry_equal(image)
    assert labels.array.dtype == np.uint8
    bright = image.array > 200
    agreement = (labels.array[2:-2, 3:-3, 2:-2] > 0) == bright[2:-2, 3:-3, 2:-2]
    assert agreement.mean() > 0.95


def test_a_flipped_pass_is_flipped_back_before_averaging(
    threshold: LoadedModel, make_volume: Callable[..., Volume]
) -> None:
    image = make_volume()
    stage = replace(threshold.plan.final, mirror_axes=(0, 1, 2))
    mirrored = replace(threshold, plan=replace(threshold.plan, stages=(stage,)))
    calls: list[tuple[int, int]] = []

    labels = engine.predict(mirrored, image, progress=lambda done, total: calls.append((done, total)))

    np.testing.assert_array_equal(labels.array, engine.predict(threshold, image).array)
    np.testing.assert_array_equal(engine.predict(mirrored, image, mirror=False).array, labels.array)
    passes = 2 * 2 * 3 * 8  # tiles of 8 voxels, half shared, in 9 x 11 x 13 voxels; 8 mirror images
    assert calls[-1] == (passes, passes)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 20, 5), (21, 9, 8)])
def test_images_smaller_and_larger_than_the_patch_are_segmented(
    shape: tuple[int, int, int], model: LoadedModel
) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    labels = engine.predict(model, Volume(array, np.eye(4), coordinate_system="PATIENT"))

    assert labels.shape == shape


def test_intensity_scale_and_offset_change_nothing(
    model: LoadedModel, make_volume: Callable[..., Volume]
) -> None:
    image = make_volume()
    scaled = image.with_array(image.array * np.float32(4) + np.float32(64))

    same = engine.predict(model, scaled).array == engine.predict(model, image).array

    assert same.mean() > 0.999


def test_an_image_without_contrast_is_all_background(
    model: LoadedModel, make_volume: Callable[..., Volume]
) -> None:
    image = make_volume()

    labels = engine.predict(model, image.with_array(np.full(image.shape, 5, np.int16)))

    assert not labels.array.any()
    assert labels.geometry_equal(image)


def test_the_input_is_left_unchanged(model: LoadedModel, make_volume: Callable[..., Volume]) -> None:
    image = make_volume()
    before = image.array.copy()

    engine.predict(model, image)

    np.testing.assert_array_equal(image.array, before)


def test_images_that_no_model_can_take_are_refused(
    model: LoadedModel, make_volume: Callable[..., Volume]
) -> None:
    image = make_volume()

    with pytest.raises(GeometryError):
        engine.predict(model, image[:1])
    with pytest.raises(UnsupportedSeriesError):
        engine.predict(model, image.with_array(np.full(image.shape, np.nan, np.float32)))


def test_an_unknown_device_is_an_error_of_the_configuration(tiny: ModelPackage) -> None:
    with pytest.raises(ConfigError, match="abacus"):
        engine.load(tiny, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            engine.load(tiny, device="cuda")
