"""Samples are drawn from their number alone; image and labels stay together through cuts and changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.errors import ConfigError
from dicomnode.ml.model.plan import ZScore
from dicomnode.ml.training import augmentation, dataset, loader, sampling
from dicomnode.ml.training.augmentation import Geometry
from dicomnode.ml.training.dataset import IGNORED
from dicomnode.ml.training.loader import Share
from dicomnode.ml.training.prepared import PreparedCase, prepare
from dicomnode.ml.training.sampling import OUTSIDE, Sampler
from tests.pretrain_builders import make_blobs, small_plan, small_stage

CUBE = (6, 6, 6)
SOLID = Geometry(dimensions=3, patch_shape=(16, 16, 16), mirror_axes=(0, 1, 2), masks_outside=False)


def on_disk(folder: Path, labels: np.ndarray, *, name: str = "case") -> PreparedCase:
    """Put a case on disk whose image says where each voxel was: its index in the flat array, plus 1."""
    (folder / name).mkdir(parents=True)
    image = 1 + np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
    counts, places = {}, []
    for index in np.unique(labels[labels > 0]).tolist():
        found = np.argwhere((labels != IGNORED) if index == IGNORED else (labels == index))
        counts[index] = len(found)
        places.append(found.astype(np.int32))
    np.save(folder / name / "image.npy", image)
    np.save(folder / name / "labels.npy", labels)
    np.save(folder / name / "places.npy", np.concatenate(places))
    return PreparedCase(name=name, folder=folder / name, shape=labels.shape, counts=tuple(counts.items()))


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    labels = np.zeros((12, 10, 9), np.uint8)
    labels[10, 1, 1] = 1
    labels[2, 8, 7] = 2
    return on_disk(tmp_path, labels)


def sampler(*cases: PreparedCase, **changes: object) -> Sampler:
    plain = Sampler(
        cases=cases, patch_shape=CUBE, cut_shape=CUBE, batch_size=3, foreground_share=1 / 3, seed=0
    )
    return replace(plain, **changes)


def drawn(one: Sampler, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return sampling.draw(one, number, one.generator(number))


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    size=st.tuples(*[st.integers(1, 6)] * 3),
    starts=st.tuples(*[st.integers(-8, 8)] * 3),
)
def test_a_box_holds_what_is_inside_the_image_and_filling_elsewhere(
    shape: tuple[int, int, int], size: tuple[int, int, int], starts: tuple[int, int, int]
) -> None:
    array = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    wide = np.pad(array, 20)

    box = sampling.cut(array, starts, size, fill=0)

    window = tuple(slice(20 + start, 20 + start + length) for start, length in zip(starts, size, strict=True))
    np.testing.assert_array_equal(box, wide[window])


def test_the_last_third_of_a_batch_is_centred_on_each_class_in_turn(case: PreparedCase) -> None:
    one = sampler(case)

    found = [drawn(one, number)[1] for number in range(60)]

    centred = [labels for number, labels in enumerate(found) if number % 3 == 2]
    seen = [int(labels[labels > 0].unique().item()) for labels in centred]
    assert set(seen) == {1, 2}
    elsewhere = [int((labels > 0).sum()) for number, labels in enumerate(found) if number % 3 != 2]
    assert elsewhere.count(0) > 10


def test_every_voxel_is_reached_and_image_and_labels_stay_together(case: PreparedCase) -> None:
    one = sampler(case, foreground_share=0.0)
    seen: set[int] = set()

    for number in range(400):
        image, labels = drawn(one, number)
        seen |= set(image.flatten().int().tolist())
        assert labels[image == 1 + (10 * 10 + 1) * 9 + 1].eq(1).all()

    assert seen == set(range(1, 12 * 10 * 9 + 1))


def test_an_image_smaller_than_the_patch_is_surrounded_by_voxels_that_are_known_to_be_outside(
    tmp_path: Path,
) -> None:
    labels = np.ones((4, 6, 2), np.uint8)
    one = sampler(on_disk(tmp_path, labels))

    image, found = drawn(one, 0)

    assert int((found == OUTSIDE).sum()) == 6**3 - labels.size
    assert torch.equal(found == OUTSIDE, image == 0)


def test_where_truth_is_partly_unknown_patches_hold_something_known(tmp_path: Path) -> None:
    labels = np.full((30, 30, 30), IGNORED, np.uint8)
    labels[4, 5, 6] = 0
    one = sampler(on_disk(tmp_path, labels))

    assert all(bool((drawn(one, number)[1] == 0).any()) for number in range(6))


def test_a_sample_depends_on_its_number_and_the_seed_only(case: PreparedCase) -> None:
    one = sampler(case, batch_size=4)

    again = [drawn(sampler(case, batch_size=4), number)[0] for number in (6, 2)]

    assert torch.equal(again[0], drawn(one, 6)[0])
    assert torch.equal(again[1], drawn(one, 2)[0])
    assert not torch.equal(again[0], again[1])
    assert not torch.equal(drawn(sampler(case, seed=1), 6)[0], drawn(one, 6)[0])


def test_a_transform_is_the_same_whoever_drew_before_and_leaves_the_generators_alone(
    case: PreparedCase,
) -> None:
    geometry = augmentation.geometry_of(small_stage())
    transform = augmentation.nnunet_transform(geometry)
    one = sampler(case, patch_shape=(8, 8, 8), cut_shape=augmentation.cut_shape(geometry))
    batches = loader.training_batches(one, transform, share=Share(), first_step=2, workers=0)
    first = next(batches)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)

    torch.manual_seed(5)
    np.random.seed(5)
    again = next(loader.training_batches(one, transform, share=Share(), first_step=2, workers=0))

    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


def test_processes_of_their_own_make_the_same_batches(case: PreparedCase) -> None:
    geometry = augmentation.geometry_of(small_stage())
    transform = augmentation.nnunet_transform(geometry)
    one = sampler(case, patch_shape=(8, 8, 8), cut_shape=augmentation.cut_shape(geometry), batch_size=2)

    made = []
    for workers in (0, 1):
        batches = loader.training_batches(one, transform, share=Share(), first_step=0, workers=workers)
        made.append([next(batches).images for _ in range(3)])
        batches.close()

    assert all(torch.equal(here, there) for here, there in zip(*made, strict=True))


def test_several_trainings_share_the_samples_of_each_batch(case: PreparedCase) -> None:
    one = sampler(case, batch_size=4)

    whole = next(loader.validation_batches(one, share=Share(), steps=1)).images
    parts = [
        next(loader.validation_batches(one, share=Share(rank=rank, count=2), steps=1)).images
        for rank in range(2)
    ]

    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])
    with pytest.raises(ConfigError, match="--batch-size 10"):
        loader.check_share(9, 2)


def ball(*, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright ball off the centre, marked with class 2."""
    index = torch.stack(torch.meshgrid(*[torch.arange(float(size)) for size in shape], indexing="ij"))
    middle = torch.tensor([size / 2 - 1 for size in shape]).view(3, 1, 1, 1)
    inside = ((index - middle) ** 2).sum(0) < (min(shape) / 4) ** 2
    return 4 * inside.float(), (2 * inside).to(torch.int16)


@pytest.mark.parametrize("seed", range(8))
def test_changes_move_image_and_labels_alike(seed: int) -> None:
    transform = augmentation.nnunet_transform(SOLID)

    with augmentation.seeded(np.random.default_rng(seed)):
        image, labels = transform(*ball(shape=augmentation.cut_shape(SOLID)))

    assert tuple(image.shape) == tuple(labels.shape) == SOLID.patch_shape
    assert set(labels.unique().tolist()) == {0, 2}
    assert image[labels == 2].mean() > image[labels == 0].mean() + 1.5


def test_turning_needs_a_margin_within_the_slices_of_thick_ones_only() -> None:
    # cos 30 deg + sin 30 deg = 1.366; 16 * 1.366 / 0.85 = 25.7
    assert augmentation.cut_shape(SOLID) == (25, 25, 25)
    # Up to 90 degrees: the longest side; 4 slices against 20 columns are turned in their plane.
    assert augmentation.cut_shape(replace(SOLID, patch_shape=(4, 16, 20))) == (4, 23, 23)
    flat = Geometry(dimensions=2, patch_shape=(1, 20, 20), mirror_axes=(1, 2), masks_outside=False)
    assert augmentation.cut_shape(flat) == (1, 23, 23)


def test_flat_patches_stay_flat_and_are_mirrored_along_their_own_axes() -> None:
    flat = Geometry(dimensions=2, patch_shape=(1, 16, 16), mirror_axes=(2,), masks_outside=False)
    transform = augmentation.nnunet_transform(flat)
    ramp = torch.arange(23.0).expand(1, 23, 23).clone()

    rises = []
    for seed in range(30):
        with augmentation.seeded(np.random.default_rng(seed)):
            image, labels = transform(ramp.clone(), torch.zeros(1, 23, 23, dtype=torch.int16))
        assert tuple(image.shape) == tuple(labels.shape) == (1, 16, 16)
        rises.append(bool(image[0, 8, 8:].mean() > image[0, 8, :8].mean()))

    assert 5 < sum(rises) < 25


def test_what_the_normalisation_left_out_stays_zero_through_all_changes() -> None:
    geometry = replace(SOLID, masks_outside=True)
    transform = augmentation.nnunet_transform(geometry)
    image, labels = ball(shape=augmentation.cut_shape(geometry))
    image[:] = 3.0
    image[:, :, :10] = 0

    for seed in range(10):
        with augmentation.seeded(np.random.default_rng(seed)):
            changed, _ = transform(image.clone(), torch.zeros_like(labels))
        assert bool((changed == 0).any())

    stage = replace(small_stage(), normalisation=ZScore(over="nonzero"))
    assert augmentation.geometry_of(stage).masks_outside
    assert not augmentation.geometry_of(small_stage()).masks_outside


def test_cases_are_prepared_once_and_anew_when_image_or_plan_change(tmp_path: Path) -> None:
    make_blobs(tmp_path, cases=3)
    plan = small_plan()
    done: list[int] = []

    def run(plan_now: object = plan) -> tuple[PreparedCase, ...]:
        sources = dataset.open_folder(tmp_path, classes=3).cases
        return prepare(
            sources,
            plan_now,
            plan_now.final,
            tmp_path / "cache",
            threads=2,
            progress=lambda *_: done.append(1),
        )

    first = run()
    stamps = [(one.folder / "case.json").stat().st_ino for one in first]
    assert [(one.folder / "case.json").stat().st_ino for one in run()] == stamps

    assert len(done) == 6
    assert first[0].shape == (12, 11, 10)
    assert first[0].classes == (1, 2)
    assert not first[0].has_unknown
    assert first[0].image().dtype == np.float32
    assert (first[0].labels()[tuple(first[0].places(2).T)] == 2).all()
    coarse = replace(plan, stages=(replace(plan.final, spacing_mm=(2.0, 2.0, 2.0)),))
    assert run(coarse)[0].shape == (6, 6, 5)
    make_blobs(tmp_path, cases=1)
    other = [(one.folder / "case.json").stat().st_ino for one in run(coarse)]
    assert len(other) == 3
