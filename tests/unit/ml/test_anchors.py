"""Penalties that hold weights, and distillation, against figures worked out by hand."""

import math

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dicomnode.errors import ModelFormatError
from dicomnode.ml.training import anchors
from dicomnode.ml.training.fit import Batch, TrainingDivergedError


def line(weight: float) -> nn.Sequential:
    """``y = weight * x``."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.constant_(network[0].weight, weight)
    return network


def batch(x: float, y: float = 0.0) -> Batch:
    return Batch(images=torch.tensor([[float(x)]]), labels=torch.tensor([[float(y)]]))


def squared_error(network: nn.Module, given: Batch) -> Tensor:
    return ((network(given.images) - given.labels) ** 2).mean()


class Doubled(nn.Module):
    """A parametrisation with a weight of its own, as an adapter has."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * weight


def test_importance_is_the_mean_of_the_squared_gradients_of_the_batches() -> None:
    # d/dw (w x)^2 = 2 w x^2: 36 for x = 3, 4 for x = 1, with w = 2.
    both = anchors.fisher(line(2), [batch(3), batch(1)], squared_error, limit=8)
    first = anchors.fisher(line(2), (one for one in [batch(3), batch(1)]), squared_error, limit=1)

    assert both["0.weight"].tolist() == [[(36**2 + 4**2) / 2]]
    assert first["0.weight"].tolist() == [[36**2]]


def test_estimating_importance_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1))
    network.train()
    network[1].eval()  # somebody has frozen its statistics
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    found = anchors.fisher(network, [batch(3), batch(1)], squared_error, limit=2)

    assert [module.training for module in network] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert set(found) == {name for name, _ in network.named_parameters()}
    again = anchors.fisher(network, [batch(3), batch(1)], squared_error, limit=2)
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items())  # no dropout in it
    assert all(torch.equal(load(save(found))[name], tensor) for name, tensor in found.items())


def test_a_weight_that_the_loss_does_not_see_has_no_importance() -> None:
    network = nn.ModuleList([line(2), line(5)])

    found = anchors.fisher(network, [batch(1)], lambda net, one: squared_error(net[0], one), limit=1)

    assert found["0.0.weight"].item() == 16
    assert found["1.0.weight"].item() == 0


def test_importance_needs_a_batch_and_finite_gradients() -> None:
    with pytest.raises(ValueError, match="at least one is needed"):
        anchors.fisher(line(2), [], squared_error, limit=8)
    with pytest.raises(TrainingDivergedError, match=r"0\.weight is not finite"):
        anchors.fisher(line(2), [batch(math.inf)], squared_error, limit=8)


def test_consolidation_is_the_weighted_square_of_the_way_gone() -> None:
    network = line(3)
    anchor, importance = {"0.weight": torch.tensor([[1.0]])}, {"0.weight": torch.tensor([[5.0]])}

    penalty = anchors.ewc_penalty(network, importance, anchor, 0.5)
    penalty.backward()

    assert penalty.item() == 0.5 * 5 * 2**2
    assert network[0].weight.grad.item() == 2 * 0.5 * 5 * 2
    assert anchors.EWC_WEIGHT == 0.5


def test_the_proximal_term_is_half_mu_times_the_squared_distance_over_all_weights() -> None:
    network = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, 1.0]]))
        network[0].bias.fill_(-1)
    anchor = {"0.weight": torch.tensor([[1.0, 1.0]]), "0.bias": torch.tensor([2.0])}

    penalty = anchors.proximal_penalty(network, anchor, 0.1)
    penalty.backward()

    assert penalty.item() == pytest.approx(0.05 * (4 + 0 + 9))
    assert network[0].weight.grad.tolist() == [[pytest.approx(0.2), 0]]
    assert network[0].bias.grad.tolist() == [pytest.approx(-0.3)]


def test_at_the_anchor_both_penalties_and_their_gradients_are_zero() -> None:
    network = nn.Linear(3, 2)
    anchor = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    importance = {name: torch.ones_like(tensor) for name, tensor in anchor.items()}

    total = anchors.proximal_penalty(network, anchor, 1.0) + anchors.ewc_penalty(network, importance, anchor)
    total.backward()

    assert total.item() == 0
    assert not any(parameter.grad.any() for parameter in network.parameters())


def test_weights_that_do_not_learn_and_adapters_are_not_held() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    anchor = {name: tensor.detach() - 1 for name, tensor in network.named_parameters()}
    network[0].requires_grad_(False)
    network[1].requires_grad_(False)
    parametrize.register_parametrization(network[1], "weight", Doubled())
    importance = anchors.fisher(network, [batch(1)], squared_error, limit=1)

    # Of seven parameters one is left, one away from its anchor.
    assert set(importance) == {"2.weight"}
    assert anchors.proximal_penalty(network, anchor, 2.0).item() == pytest.approx(1)
    network[2].requires_grad_(False)
    assert anchors.proximal_penalty(network, anchor, 2.0).item() == 0
    assert anchors.ewc_penalty(network, importance, anchor).item() == 0


@pytest.mark.parametrize("anchor", [{}, {"0.weight": torch.zeros(2, 1)}])
def test_an_anchor_of_another_network_is_refused(anchor: dict[str, Tensor]) -> None:
    with pytest.raises(ModelFormatError, match=r"anchor has .* for 0\.weight, which learns with the shape"):
        anchors.proximal_penalty(line(1), anchor, 1.0)
    with pytest.raises(ModelFormatError, match="estimate of importance has nothing"):
        anchors.ewc_penalty(line(1), {}, {"0.weight": torch.zeros(1, 1)})


def held(
    scores: list[float],
    teacher: list[float],
    known: list[bool],
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
) -> tuple[float, list[float]]:
    """Distillation of one voxel with three classes, and its gradient."""
    student = torch.tensor(scores, dtype=torch.float64).view(1, 3, 1, 1, 1).requires_grad_()
    loss = anchors.distillation_loss(
        student,
        torch.tensor(teacher, dtype=torch.float64).view(1, 3, 1, 1, 1),
        known=torch.tensor(known).view(1, 3, 1, 1, 1),
        weights=torch.full((1, 1, 1, 1), weight),
        temperature=temperature,
    )
    loss.backward()
    assert student.grad is not None
    return loss.item(), student.grad.flatten().tolist()


def test_distillation_compares_the_shares_among_the_classes_that_are_not_known() -> None:
    # Of background and class 2 the teacher gives 1/4 and 3/4, the student 1/2 and 1/2; class 1 is known.
    loss, gradient = held([0, 9, 0], [0, -4, math.log(3)], [True, True, False])

    assert loss == pytest.approx(0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert gradient == [pytest.approx(0.5 - 0.25), 0, pytest.approx(0.5 - 0.75)]


def test_the_temperature_softens_both_and_the_gradient_keeps_its_size() -> None:
    # Divided by 2 the teacher has exp(ln 9 / 2) = 3: again 1/4 and 3/4; times 2^2.
    loss, _ = held([0, 9, 0], [0, -4, math.log(9)], [True, True, False], temperature=2)

    assert loss == pytest.approx(4 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)))


def test_where_all_is_known_nothing_is_held() -> None:
    assert held([1, 2, 3], [9, -9, 0], [True, True, True]) == (0, [0, 0, 0])


@pytest.mark.parametrize("known", [[True, True, True], [True, False, False]])
def test_where_nobody_has_looked_all_classes_are_held(known: list[bool]) -> None:
    loss, gradient = held([0, 0, 0], [0, math.log(2), 0], known, weight=0)

    assert loss == pytest.approx(0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2))
    assert gradient == [pytest.approx(1 / 12), pytest.approx(-1 / 6), pytest.approx(1 / 12)]


def test_the_same_answer_costs_nothing_and_wild_scores_stay_finite() -> None:
    assert held([1, 2, 3], [6, 7, 8], [True, False, False])[0] == pytest.approx(0, abs=1e-12)
    loss, gradient = held([1e4, -1e4, 0], [-1e4, 1e4, 0], [True, False, True])
    assert loss == pytest.approx(2e4)
    assert all(map(math.isfinite, gradient))


def test_distillation_is_a_mean_over_the_voxels_where_something_is_open() -> None:
    scores = torch.zeros(1, 3, 1, 1, 4)
    teacher = torch.zeros(1, 3, 1, 1, 4, requires_grad=True)
    with torch.no_grad():
        teacher[0, 2, 0, 0, 0] = math.log(3)
    known = torch.tensor([True, True, False]).view(1, 3, 1, 1, 1).repeat(1, 1, 1, 1, 4)
    known[..., 2:] = True

    options = {"known": known, "weights": torch.ones(1, 1, 1, 4), "temperature": 1.0}
    loss = anchors.distillation_loss(scores.requires_grad_(), teacher, **options)
    loss.backward()

    one = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert loss.item() == pytest.approx(one / 2)  # one voxel differs of two that are open
    assert teacher.grad is None
