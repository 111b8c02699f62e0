"""Samples keep image and labels together, through crops, flips and warps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.ml.training import sampling
from dicomnode.ml.training.sampling import Augmentation

STILL = Augmentation(flip_axes=(), warp_probability=0, intensity_probability=0)


def pair(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright ball off the centre, marked with class 2."""
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in (16, 18, 20)], indexing="ij"))
    ball = ((index - torch.tensor([6.0, 8, 12]).view(3, 1, 1, 1)) ** 2).sum(0) < 16
    images = ball.float()[None, None].repeat(batch, 1, 1, 1, 1)
    return images, (ball * 2).long()[None].repeat(batch, 1, 1, 1)


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    patch=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 99),
)
def test_a_crop_has_the_size_of_the_patch_and_keeps_image_and_labels_together(
    shape: tuple[int, int, int], patch: tuple[int, int, int], seed: int
) -> None:
    labels = torch.arange(1, 1 + torch.Size(shape).numel()).view(shape)

    image, cut = sampling.crop(
        labels.float(), labels, patch_shape=patch, generator=torch.Generator().manual_seed(seed)
    )

    assert tuple(image.shape) == tuple(cut.shape) == patch
    assert torch.equal(image, cut.float())
    kept = torch.Size([min(pair) for pair in zip(shape, patch, strict=True)]).numel()
    assert int((cut > 0).sum()) == kept


def test_the_same_generator_gives_the_same_samples() -> None:
    images, labels = pair()

    one = sampling.augment(images, labels, Augmentation(), generator=torch.Generator().manual_seed(7))
    two = sampling.augment(images, labels, Augmentation(), generator=torch.Generator().manual_seed(7))
    three = sampling.augment(images, labels, Augmentation(), generator=torch.Generator().manual_seed(8))

    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], three[0])


def test_without_changes_a_batch_stays_as_it_is() -> None:
    images, labels = pair()

    same = sampling.augment(images, labels, STILL, generator=torch.Generator().manual_seed(0))

    assert torch.equal(same[0], images)
    assert torch.equal(same[1], labels)


@pytest.mark.parametrize("seed", range(5))
def test_geometry_moves_image_and_labels_alike_and_keeps_volume_within_the_scale(seed: int) -> None:
    images, labels = pair()
    moving = Augmentation(warp_probability=1, intensity_probability=0)

    moved, marked = sampling.augment(images, labels, moving, generator=torch.Generator().manual_seed(seed))

    assert ((moved[:, 0] > 0.5) == (marked == 2)).float().mean() > 0.99
    assert set(marked.unique().tolist()) == {0, 2}
    ratios = (marked > 0).sum((1, 2, 3)) / (labels > 0).sum((1, 2, 3))
    assert ((ratios > 0.5) & (ratios < 1.75)).all()


def test_a_flip_is_exact() -> None:
    images, labels = pair(batch=16)
    flips = Augmentation(flip_axes=(1,), warp_probability=0, intensity_probability=0)

    moved, marked = sampling.augment(images, labels, flips, generator=torch.Generator().manual_seed(0))

    mirrored = [torch.equal(image, images[0].flip(2)) for image in moved]
    assert 0 < sum(mirrored) < 16
    for index, is_mirrored in enumerate(mirrored):
        assert torch.equal(marked[index], labels[0].flip(1) if is_mirrored else labels[0])


def test_intensity_changes_leave_labels_alone_and_stay_finite() -> None:
    images, labels = pair()
    bright = Augmentation(flip_axes=(), warp_probability=0, intensity_probability=1)

    changed, marked = sampling.augment(images, labels, bright, generator=torch.Generator().manual_seed(0))

    assert torch.equal(marked, labels)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, images)
