"""Losses and voxel weights against figures worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.ml.training import losses

ONE_VOXEL = (1, 1, 1, 1)


def marginal(label: int, known: list[bool], logits: list[float] | None = None) -> float:
    """Loss of one voxel of a network with three classes."""
    return float(
        losses.marginal_cross_entropy(
            torch.tensor(logits or [0.0, 0.0, 0.0]).view(1, 3, 1, 1, 1),
            torch.full(ONE_VOXEL, label),
            weights=torch.ones(ONE_VOXEL),
            known=torch.tensor(known).view(1, 3, 1, 1, 1),
        )
    )


def test_cross_entropy_counts_every_class_that_a_voxel_may_be() -> None:
    assert marginal(0, [True, True, True]) == pytest.approx(math.log(3))
    assert marginal(0, [True, True, False]) == pytest.approx(math.log(3 / 2))
    assert marginal(0, [True, False, False]) == pytest.approx(0)
    assert marginal(1, [True, True, False]) == pytest.approx(math.log(3))
    assert marginal(2, [True, True, True], [0, 0, math.log(2)]) == pytest.approx(math.log(2))


def test_weights_multiply_and_voxels_without_weight_do_not_dilute() -> None:
    loss = losses.marginal_cross_entropy(
        torch.zeros(1, 3, 1, 1, 4),
        torch.zeros(1, 1, 1, 4, dtype=torch.long),
        weights=torch.tensor([2.0, 4.0, 0.0, 0.0]).view(1, 1, 1, 4),
        known=torch.ones(1, 3, 1, 1, 4, dtype=torch.bool),
    )

    assert float(loss) == pytest.approx(3 * math.log(3))


@given(logits=st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_an_unknown_label_is_never_pushed_towards_background(logits: list[float]) -> None:
    values = torch.tensor(logits).view(1, 3, 1, 1, 1).requires_grad_()
    known = torch.tensor([True, True, False]).view(1, 3, 1, 1, 1)

    loss = losses.marginal_cross_entropy(
        values, torch.zeros(ONE_VOXEL, dtype=torch.long), weights=torch.ones(ONE_VOXEL), known=known
    )
    loss.backward()

    assert values.grad is not None
    assert float(values.grad[0, 2]) <= 1e-6  # a step against the gradient never lowers it


@pytest.mark.parametrize("loss", [losses.marginal_cross_entropy, losses.marginal_dice_cross_entropy])
def test_what_nobody_reviewed_gives_no_gradient(loss: object) -> None:
    assert callable(loss)
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 4, 4))
    weights = torch.ones(2, 4, 4, 4)
    weights[:, 2:] = 0
    known = torch.ones(2, 3, 4, 4, 4, dtype=torch.bool)
    known[:, 1:, 2:] = False

    loss(logits, labels, weights=weights, known=known).backward()

    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].all()
    assert torch.isfinite(logits.grad).all()


def test_dice_loss_is_near_zero_for_a_perfect_answer_and_near_its_most_for_a_wrong_one() -> None:
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[:, :2] = 1
    options = {"weights": torch.ones(1, 4, 4, 4), "known": torch.ones(1, 2, 4, 4, 4, dtype=torch.bool)}
    right = torch.stack([labels == 0, labels == 1], dim=1).float() * 40

    assert float(losses.marginal_dice_cross_entropy(right, labels, **options)) == pytest.approx(0, abs=1e-4)
    # No overlap: 1 - 1 / 65 by the smoothing of 1, and a cross-entropy of 40.
    wrong = float(losses.marginal_dice_cross_entropy(right.flip(1), labels, **options))
    assert wrong == pytest.approx(1 - 1 / 65 + 40, abs=1e-3)


def test_balance_is_the_mean_frequency_over_the_frequency_in_slices_that_hold_the_class() -> None:
    marked, empty = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    marked[:2, :2] = 1

    # freq_0 = 28 / 32, freq_1 = 4 / 16, mean 0.5625; class 2 occurs nowhere.
    assert losses.balance_weights([marked, empty], classes=3).tolist() == [0.5625 / 0.875, 2.25, 0]
    assert losses.balance_weights([], classes=2).tolist() == [0, 0]


def test_borders_weigh_most_where_two_labels_are_near() -> None:
    labels = np.array([[[1, 0, 2, 2, 2, 2, 0, 0, 0, 0]]], np.uint8)
    image = np.ones(labels.shape, np.float32)
    image[..., -1] = 0

    weight = losses.border_weights(image, labels)[0, 0]

    assert weight[1] == pytest.approx(10 * math.exp(-((1 + 1) ** 2) / 98))  # background between two labels
    assert weight[0] == pytest.approx(10 * math.exp(-((1 + 2) ** 2) / 98))  # background at 1, label 2 at 2
    assert weight[6] == pytest.approx(10 * math.exp(-((1 + 6) ** 2) / 98))  # label 2 at 1, label 1 at 6
    assert weight[9] == 0  # darker than Otsu's threshold


def test_a_second_label_that_is_absent_or_far_counts_as_three_deviations_away() -> None:
    labels = np.zeros((1, 1, 40), np.uint8)
    labels[..., 0] = 1
    image = np.linspace(0, 1, 40, dtype=np.float32)[None, None]

    weight = losses.border_weights(image, labels)[0, 0]

    assert weight[39] == pytest.approx(10 * math.exp(-((21 + 21) ** 2) / 98))
    assert not losses.border_weights(np.ones_like(image), np.zeros_like(labels)).any()


def test_otsu_separates_dark_from_bright() -> None:
    image = np.concatenate([np.linspace(0, 2, 50), np.linspace(8, 10, 20)]).astype(np.float32)

    assert 2 <= losses.otsu_threshold(image) <= 8
