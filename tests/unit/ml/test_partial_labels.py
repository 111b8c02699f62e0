"""What a correction does not say must not teach: partial labels and weights of slices in the losses."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomnode.ml.training import losses

Loss = Callable[..., Tensor]
BOTH = pytest.mark.parametrize("loss", [losses.marginal_cross_entropy, losses.marginal_dice_cross_entropy])
CLASSES = 4
SHAPE = (2, 3, 2, 2)  # (B, S, R, K)

Options = dict[str, Tensor]


@pytest.fixture
def lesson() -> tuple[Tensor, Tensor, Options]:
    """Scores, labels, and what is known of two samples: class 3 nowhere, class 2 only in the first sample."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, CLASSES, *SHAPE[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, SHAPE, generator=generator)
    labels[1][labels[1] == 2] = 0
    known = torch.ones(2, CLASSES, *SHAPE[1:], dtype=torch.bool)
    known[:, 3] = False
    known[1, 2] = False
    weights = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64).view(1, 3, 1, 1).repeat(2, 1, 2, 2)
    return logits, labels, {"weights": weights, "known": known}


def by_hand(logits: Tensor, labels: Tensor, *, weights: Tensor, known: Tensor) -> tuple[float, float]:
    """Work out both losses voxel by voxel, with probabilities instead of logarithms."""
    shares = np.exp(logits.detach().numpy())
    shares /= shares.sum(axis=1, keepdims=True)
    surprise, voxels = 0.0, 0
    overlap, total, trust, seen = np.zeros((4, CLASSES))
    for place in np.ndindex(*SHAPE):
        sample, voxel = place[0], place[1:]
        weight, label = float(weights[place]), int(labels[place])
        if not weight:
            continue
        sure = known[(sample, slice(None), *voxel)].numpy()
        share = shares[(sample, slice(None), *voxel)]
        may_be = [label] if label else [0, *np.flatnonzero(~sure)]
        surprise -= weight * np.log(share[may_be].sum())
        voxels += 1
        for index in np.flatnonzero(sure):
            overlap[index] += weight * share[index] * (label == index)
            total[index] += weight * (share[index] + (label == index))
            trust[index] += weight
            seen[index] += 1
    dice = (1 - (2 * overlap + 1) / (total + 1)) * trust / np.maximum(seen, 1)
    return surprise / voxels, surprise / voxels + float(dice[1:].mean())


def gradient_by_differences(
    loss: Loss, logits: Tensor, labels: Tensor, options: Options
) -> NDArray[np.float64]:
    step, found = 1e-5, np.zeros(logits.numel())
    for index in range(logits.numel()):
        change = torch.zeros(logits.numel(), dtype=torch.float64)
        change[index] = step
        change = change.view_as(logits)
        above, below = (float(loss(logits + sign * change, labels, **options)) for sign in (1, -1))
        found[index] = (above - below) / (2 * step)
    return found.reshape(logits.shape)


def test_both_losses_agree_with_a_computation_voxel_by_voxel(lesson: tuple[Tensor, Tensor, Options]) -> None:
    logits, labels, options = lesson

    cross_entropy, with_dice = by_hand(logits, labels, **options)

    assert losses.marginal_cross_entropy(logits, labels, **options).item() == pytest.approx(cross_entropy)
    assert losses.marginal_dice_cross_entropy(logits, labels, **options).item() == pytest.approx(with_dice)


@BOTH
def test_among_the_classes_that_may_hold_nothing_pulls_one_way(
    loss: Loss, lesson: tuple[Tensor, Tensor, Options]
) -> None:
    logits, labels, options = lesson
    gradient = gradient_by_differences(loss, logits, labels, options)
    shares = torch.softmax(logits, dim=1).numpy()

    for place in zip(*np.nonzero(((labels == 0) & (options["weights"] > 0)).numpy()), strict=True):
        at = (place[0], slice(None), *place[1:])
        open_classes = [0, *np.flatnonzero(~options["known"][at].numpy())]
        pull = gradient[at][open_classes] / shares[at][open_classes]
        # A gradient in proportion to the shares changes their sum; among each other they stay as they were.
        assert pull == pytest.approx(np.full(len(pull), pull[0]), rel=1e-4, abs=1e-8)
        assert pull[0] < 0  # the sum grows, background and unknown classes alike


@BOTH
def test_moving_a_share_from_background_to_an_unknown_class_changes_nothing(
    loss: Loss, lesson: tuple[Tensor, Tensor, Options]
) -> None:
    logits, labels, options = lesson
    shares = torch.softmax(logits, dim=1)
    moved = shares.clone()
    unmarked = labels == 0
    moved[:, 3] += torch.where(unmarked, 0.9 * shares[:, 0], 0.0)
    moved[:, 0] -= torch.where(unmarked, 0.9 * shares[:, 0], 0.0)

    before, after = (loss(one.log(), labels, **options).item() for one in (shares, moved))

    assert after == pytest.approx(before, rel=1e-12)


@BOTH
def test_taking_the_unmarked_for_background_would_drive_an_unknown_class_out(
    loss: Loss, lesson: tuple[Tensor, Tensor, Options]
) -> None:
    logits, labels, options = lesson
    logits.requires_grad_()
    pulls = []
    for known in (options["known"], torch.ones_like(options["known"])):
        (gradient,) = torch.autograd.grad(
            loss(logits, labels, weights=options["weights"], known=known), logits
        )
        pulls.append(gradient[:, 3][(labels == 0) & (options["weights"] > 0)])

    assert (pulls[0] < 0).all()
    assert (pulls[1] > 0).all()


@BOTH
def test_gradients_agree_with_differences(loss: Loss, lesson: tuple[Tensor, Tensor, Options]) -> None:
    logits, labels, options = lesson
    expected = gradient_by_differences(loss, logits, labels, options)

    loss(logits.requires_grad_(), labels, **options).backward()

    assert logits.grad is not None
    assert logits.grad.numpy() == pytest.approx(expected, abs=1e-8)
    assert not logits.grad[:, :, 2].any()  # the slice with weight 0


def test_half_the_trust_gives_half_the_loss(lesson: tuple[Tensor, Tensor, Options]) -> None:
    logits, labels, options = lesson
    half = options | {"weights": options["weights"] / 2}

    whole = losses.marginal_cross_entropy(logits, labels, **options).item()

    assert losses.marginal_cross_entropy(logits, labels, **half).item() == pytest.approx(whole / 2)


def test_half_the_trust_in_a_case_gives_half_the_dice_loss_too() -> None:
    labels = torch.zeros(1, 10, 20, 20, dtype=torch.long)
    labels[:, 5:] = 1
    known = torch.ones(1, 2, 10, 20, 20, dtype=torch.bool)
    logits = torch.zeros(1, 2, 10, 20, 20)

    def dice_part(weight: float) -> float:
        options = {"weights": torch.full(labels.shape, weight), "known": known}
        whole = losses.marginal_dice_cross_entropy(logits, labels, **options)
        return (whole - losses.marginal_cross_entropy(logits, labels, **options)).item()

    # Shares of one half everywhere: overlap 1000, sizes 2000 and 2000; the smoothing is 1.
    assert dice_part(1.0) == pytest.approx(1 - 2001 / 4001)
    assert dice_part(0.5) == pytest.approx(0.5 * (1 - 1001 / 2001), rel=1e-3)


def test_a_slice_of_less_trust_pulls_less_at_the_dice() -> None:
    labels = torch.ones(1, 2, 4, 4, dtype=torch.long)
    known = torch.ones(1, 2, 2, 4, 4, dtype=torch.bool)
    logits = torch.zeros(1, 2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0.25], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    options = {"weights": weights, "known": known}

    whole = losses.marginal_dice_cross_entropy(logits, labels, **options)
    (whole - losses.marginal_cross_entropy(logits, labels, **options)).backward()

    assert logits.grad is not None
    trusted, doubtful = (logits.grad[0, 1, index, 0, 0].item() for index in (0, 1))
    assert trusted < 0
    assert doubtful == pytest.approx(0.25 * trusted)


def test_a_class_that_is_known_nowhere_adds_nothing_to_the_dice() -> None:
    labels = torch.zeros(1, 2, 4, 4, dtype=torch.long)
    labels[:, 0] = 1
    known = torch.ones(1, 3, 2, 4, 4, dtype=torch.bool)
    known[:, 2] = False
    right = torch.stack([labels == 0, labels == 1, labels == 2], dim=1).double() * 60

    found = losses.marginal_dice_cross_entropy(right, labels, weights=torch.ones(1, 2, 4, 4), known=known)

    assert found.item() == pytest.approx(0, abs=1e-9)
