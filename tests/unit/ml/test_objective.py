"""The loss of training from scratch against figures worked out by hand, and how the learning rate falls."""

import math

import pytest
import torch

from dicomnode.ml.training import objective, pace
from dicomnode.ml.training.dataset import IGNORED
from dicomnode.ml.training.fit import Batch
from dicomnode.ml.training.pace import OPTIMISERS, Pace

EVEN = math.log(2)


def scores(*voxels: list[float]) -> torch.Tensor:
    """Scores of voxels in a row, (1, classes, 1, 1, n)."""
    return torch.tensor(voxels).T[None, :, None, None, :].requires_grad_()


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)[None, None, None]


def test_two_undecided_voxels_cost_as_much_as_worked_out() -> None:
    # Shares 1/2 and 1/2 of one voxel of the class: Dice = 2 * 0.5 / (1 + 1) = 1/2.
    loss = objective.class_loss(scores([0.0, 0.0], [0.0, 0.0]), labels(1, 0), batch_dice=True)

    assert float(loss.detach()) == pytest.approx(EVEN - 0.5, abs=1e-4)


def test_a_right_answer_costs_minus_one() -> None:
    loss = objective.class_loss(scores([-20.0, 20.0], [20.0, -20.0]), labels(1, 0), batch_dice=True)

    assert float(loss.detach()) == pytest.approx(-1, abs=1e-5)


def test_dice_of_the_whole_batch_is_not_the_mean_of_its_samples() -> None:
    # Two samples of one voxel, of which the second has none of the class; every share is 1/2.
    even = torch.zeros(2, 2, 1, 1, 1)
    truth = torch.tensor([1, 0], dtype=torch.uint8).view(2, 1, 1, 1)

    whole = objective.class_loss(even, truth, batch_dice=True)
    each = objective.class_loss(even, truth, batch_dice=False)

    assert float(EVEN - whole) == pytest.approx(2 * 0.5 / (1 + 1), abs=1e-4)
    assert float(EVEN - each) == pytest.approx((2 * 0.5 / 1.5 + 0) / 2, abs=1e-4)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("regions", [(), ((1, 2), (2,))])
def test_what_is_not_known_gives_no_gradient_and_does_not_dilute(
    regions: tuple[tuple[int, ...], ...], *, batch_dice: bool
) -> None:
    loss_of = objective.make_objective(regions=regions, batch_dice=batch_dice, shared=False)
    outputs = 2 if regions else 3
    torch.manual_seed(0)
    values = torch.randn(2, outputs, 2, 2, 3)
    truth = torch.randint(0, 3, (2, 2, 2, 3), dtype=torch.uint8)
    wide = torch.cat([values, torch.randn(2, outputs, 2, 2, 3)], dim=4).requires_grad_()
    unknown = torch.cat([truth, torch.full_like(truth, IGNORED)], dim=3)

    loss = loss_of(wide, unknown)
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float(loss_of(values, truth)), abs=1e-6)
    assert wide.grad is not None
    assert bool((wide.grad[..., 3:] == 0).all())
    assert bool((wide.grad[..., :3] != 0).all())


def test_nothing_known_at_all_costs_a_finite_amount() -> None:
    unknown = torch.full((1, 1, 1, 4), IGNORED, dtype=torch.uint8)

    for regions in ((), ((1,), (2,))):
        loss_of = objective.make_objective(regions=regions, batch_dice=True, shared=False)
        assert math.isfinite(float(loss_of(torch.randn(1, 2, 1, 1, 4), unknown)))


def test_regions_lie_in_each_other() -> None:
    # The first output must say yes to classes 1 and 2, the second to class 2 only.
    right = scores([-20.0, -20.0], [20.0, -20.0], [20.0, 20.0])

    loss = objective.region_loss(right, labels(0, 1, 2), regions=((1, 2), (2,)), batch_dice=True)
    wrong = objective.region_loss(right, labels(0, 2, 1), regions=((1, 2), (2,)), batch_dice=True)

    assert float(loss.detach()) == pytest.approx(-1, abs=1e-5)
    # Two of six answers are off by 20, the Dice of the second region is 0: 40 / 6 - (1 + 0) / 2.
    assert float(wrong.detach()) == pytest.approx(40 / 6 - 0.5, abs=1e-3)


def test_coarser_outputs_count_half_and_the_coarsest_nothing() -> None:
    assert objective.resolution_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert objective.resolution_weights(2) == [1, 0]
    assert objective.resolution_weights(1) == [1]


def test_coarse_outputs_are_compared_with_the_nearest_labels() -> None:
    seen: list[torch.Tensor] = []

    def note(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        seen.append(truth)
        return output.mean()

    fine = labels(0, 1, 2, 3, 4, 5, 6, 7)
    outputs = [torch.full((1, 1, 1, 1, size), value) for size, value in ((8, 1.0), (4, 4.0), (2, 9.0))]

    total = objective.at_all_resolutions(note, outputs, fine)

    assert [truth.flatten().tolist() for truth in seen] == [list(range(8)), [1, 3, 5, 7]]
    assert float(total) == pytest.approx(1 * 2 / 3 + 4 * 1 / 3)


def batch_of(truth: torch.Tensor, **more: torch.Tensor) -> Batch:
    return Batch(images=torch.zeros(truth.shape)[:, None], labels=truth, **more)


def test_agreement_counts_only_what_a_reader_has_seen() -> None:
    found = scores([0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    truth = labels(1, 1, 2, 2)
    known = torch.ones(1, 3, *truth.shape[1:], dtype=torch.bool)
    known[:, 2].view(-1)[2] = False
    weights = torch.ones(truth.shape)
    weights.view(-1)[0] = 0

    counts = objective.agreement(found, batch_of(truth, known=known, weights=weights), regions=())

    assert counts.tolist() == [[2, 2], [2, 2]]


def test_agreement_counts_for_the_dice_of_each_label() -> None:
    found = scores([0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])

    counts = objective.agreement(found, batch_of(labels(1, 0, 2, 2, IGNORED)), regions=())

    assert counts.tolist() == [[2, 2], [3, 3]]
    regions = objective.agreement(
        scores([1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]), batch_of(labels(2, 1, 1)), regions=((1, 2), (2,))
    )
    assert regions.tolist() == [[4, 2], [5, 3]]


def test_a_learning_rate_falls_over_epochs_or_over_time() -> None:
    by_steps, by_time = Pace(epochs=4, epoch_steps=5), Pace(epochs=4, epoch_steps=5, budget_s=60)

    assert (by_steps.share(10, 1e9), by_steps.share(20, 0), by_steps.share(25, 0)) == (0.5, 1, 1)
    assert (by_time.share(10**9, 15), by_time.share(0, 90)) == (0.25, 1)
    assert pace.poly(0.5) == pytest.approx(0.5**0.9)
    assert (pace.poly(0), pace.poly(1)) == (1, 0)
    assert pace.cosine(0.02) == pytest.approx(1)
    assert pace.cosine(0.51) == pytest.approx(0.5005)
    assert pace.cosine(1) == pytest.approx(1e-3)


def test_the_optimisers_are_those_of_nnunet_and_dante() -> None:
    weight = [torch.nn.Parameter(torch.zeros(1))]
    sgd, adamw = (
        OPTIMISERS[name].make(weight, OPTIMISERS[name].learning_rate).param_groups[0]
        for name in ("sgd", "adamw")
    )

    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (1e-2, 0.99, True, 3e-5)
    assert (adamw["lr"], adamw["weight_decay"]) == (1e-3, 1e-4)
