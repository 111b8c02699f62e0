"""Low-rank adapters against sums formed one number at a time, and counts worked out by hand."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.errors import ConfigError
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.architecture import DynUNetPlan, MonaiPlan, NetworkPlan, UNetPlan
from dicomnode.ml.training import lora
from dicomnode.ml.training.lora import LoraSettings

BLOCK = (3, 3, 3)
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
DYNUNET = DynUNetPlan(classes=3, filters=(4, 8, 8), kernels=(BLOCK,) * 3, strides=STRIDES)
PLAIN = UNetPlan(
    kind="plain_conv_unet",
    classes=3,
    features=(4, 8, 8),
    kernels=((1, 3, 3), BLOCK, BLOCK),
    strides=STRIDES,
    encoder_depths=(1, 2, 1),
    decoder_depths=(1, 1),
)
RESIDUAL = UNetPlan(
    kind="residual_encoder_unet",
    classes=3,
    features=(4, 8, 8),
    kernels=((1, 3, 3), BLOCK, BLOCK),
    strides=STRIDES,
    encoder_depths=(1, 2, 1),
    decoder_depths=(1, 1),
    norm="batch",
)
FLAT = UNetPlan(
    kind="plain_conv_unet",
    dimensions=2,
    classes=2,
    features=(4, 8),
    kernels=((1, 3, 3),) * 2,
    strides=((1, 1, 1), (1, 2, 2)),
    encoder_depths=(1, 1),
    decoder_depths=(1,),
)
TRANSFORMER = MonaiPlan(
    network="UNETR",
    classes=2,
    divisors=(16, 16, 16),
    arguments={
        "img_size": [16, 16, 16],
        "feature_size": 4,
        "hidden_size": 24,
        "mlp_dim": 24,
        "num_heads": 2,
    },
)
PLANS = pytest.mark.parametrize(
    "plan",
    [DYNUNET, PLAIN, RESIDUAL, FLAT, TRANSFORMER],
    ids=["dynunet", "plain", "residual", "flat", "unetr"],
)

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer, an input that it takes, and the rank of its adapter."""

    words: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    rank: int

    def __repr__(self) -> str:
        return f"{self.words} of {self.input_shape}, rank {self.rank}"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    kind = draw(st.sampled_from((*CONVOLUTIONS, *TRANSPOSED, nn.Linear)))
    if kind is nn.Linear:
        channels, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        return Case(
            words=f"Linear {channels} to {outputs}",
            make=lambda: nn.Linear(channels, outputs),
            input_shape=(2, 3, channels),
            rank=rank,
        )
    dimensions = int(kind.__name__[-2])
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dimensions))  # noqa: E731
    groups = draw(st.integers(1, 3))
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    options: dict[str, object] = {
        "kernel_size": per_axis(1, 3),
        "stride": per_axis(1, 2),
        "padding": per_axis(0, 2),
        "dilation": per_axis(1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if kind in CONVOLUTIONS:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if draw(st.booleans()):
            options |= {"padding": "same", "stride": 1}
    else:
        options["output_padding"] = tuple(
            draw(st.integers(0, max(step, gap) - 1))
            for step, gap in zip(options["stride"], options["dilation"], strict=True)  # type: ignore[call-overload]
        )
    return Case(
        words=f"{kind.__name__} {channels} to {outputs}, {options}",
        make=lambda: kind(channels, outputs, **options),
        input_shape=(2, channels, *per_axis(6, 8)),
        rank=rank,
    )


def single(layer: nn.Module, *, seed: int = 0, **options: object) -> nn.Sequential:
    """A network of one layer, with an adapter whose B is not 0 any more."""
    network = nn.Sequential(layer)
    lora.attach(network, LoraSettings(**options), seed=seed)  # type: ignore[arg-type]
    teach(network)
    return network


def teach(network: nn.Module) -> None:
    """Give each adapter's B some values."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in network.named_parameters():
        if name.endswith("parametrizations.weight.0.b"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def change_by_loops(
    a: Tensor, b: Tensor, *, kernel: tuple[int, ...], scale: float, transposed: bool
) -> NDArray[np.float64]:
    """Sum the formula for dW one number at a time; places of a kernel count with the last axis fastest."""
    places, rows, rank = a.shape
    columns = b.shape[2]
    change = np.zeros((columns, rows, *kernel) if transposed else (rows, columns, *kernel))
    left, right = a.double().numpy(), b.double().numpy()
    for place in range(places):
        where, rest = [], place
        for size in reversed(kernel):
            where.insert(0, rest % size)
            rest //= size
        for o, i in itertools.product(range(rows), range(columns)):
            index = ((i, o) if transposed else (o, i)) + tuple(where)
            for rho in range(rank):
                change[index] += scale * left[place, o, rho] * right[place, rho, i]
    return change


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@given(case=cases(), seed=st.integers(0, 2**31))
def test_merging_changes_no_output_for_any_layer(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    layer, images = case.make(), torch.randn(case.input_shape)
    network = single(layer, seed=seed, rank=case.rank, alpha=6.0)
    adapted = network(images)

    lora.merge(network)

    torch.testing.assert_close(network(images), adapted, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@given(case=cases(), seed=st.integers(0, 2**31))
def test_an_adapter_adds_the_output_of_a_layer_with_the_summed_change_as_its_weight(
    case: Case, seed: int
) -> None:
    torch.manual_seed(seed)
    base, images = case.make(), torch.randn(case.input_shape)
    beside = copy.deepcopy(base).double()
    network = single(copy.deepcopy(base), seed=seed, rank=case.rank, alpha=6.0)
    factors = lora.adapters(network)
    weight = base.get_parameter("weight")
    change = change_by_loops(
        factors["0.a"],
        factors["0.b"],
        kernel=tuple(weight.shape[2:]),
        scale=6.0 / case.rank,
        transposed=isinstance(base, TRANSPOSED),
    )
    beside.get_parameter("weight").data = torch.from_numpy(change)
    if beside.bias is not None:
        nn.init.zeros_(beside.get_parameter("bias"))

    expected = base.double()(images.double()) + beside(images.double())

    torch.testing.assert_close(network(images).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lora.delta(network)["0.weight"].double(), torch.from_numpy(change))


@pytest.mark.parametrize(
    ("layer", "rank", "count"),
    [
        (nn.Linear(5, 3), 2, 1 * 2 * (3 + 5)),
        (nn.Conv1d(4, 6, 5), 3, 5 * 3 * (6 + 4)),
        (nn.Conv2d(8, 12, (3, 1), groups=4), 2, 3 * 2 * (12 + 2)),
        (nn.Conv3d(4, 6, 3), 2, 27 * 2 * (6 + 4)),
        (nn.ConvTranspose1d(3, 5, 4), 1, 4 * 1 * (3 + 5)),
        (nn.ConvTranspose2d(6, 9, 2, groups=3), 4, 4 * 4 * (6 + 3)),
        (nn.ConvTranspose3d(8, 4, (1, 2, 2)), 8, 4 * 8 * (8 + 4)),
    ],
)
def test_as_many_numbers_learn_as_the_shape_says(layer: nn.Module, rank: int, count: int) -> None:
    network = nn.Sequential(layer)

    found = lora.attach(network, LoraSettings(rank=rank), seed=0)

    assert found == count
    assert sum(tensor.numel() for tensor in lora.adapters(network).values()) == count


def test_the_adapters_of_dantes_static_unet_have_1_31_of_19_2_million_parameters() -> None:
    plan = MonaiPlan(
        network="UNet",
        classes=2,
        divisors=(8, 16, 16),
        arguments={
            "channels": [32, 64, 128, 256, 512],
            "strides": [[2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
            "num_res_units": 2,
        },
    )
    network = networks.build(plan)
    total = sum(parameter.numel() for parameter in network.parameters())

    learning = lora.attach(network, LoraSettings(), seed=0)

    assert total / 1e6 == pytest.approx(19.2, abs=0.05)
    assert learning / 1e6 == pytest.approx(1.31, abs=0.005)


def test_two_components_of_a_linear_layer_by_hand() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    lora.attach(network, LoraSettings(rank=2, alpha=3.0), seed=0)
    tensors = dict(network.named_parameters())
    with torch.no_grad():
        tensors["0.parametrizations.weight.original"].copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensors["0.parametrizations.weight.0.a"].copy_(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
        tensors["0.parametrizations.weight.0.b"].copy_(torch.tensor([[[4.0, 0.0], [0.0, 2.0]]]))

    lora.merge(network)

    # A B = [[4, 4], [0, 2]], times 3 / 2
    assert network[0].weight.tolist() == [[7.0, 6.0], [0.0, 4.0]]


@PLANS
def test_networks_begin_with_their_own_output_and_keep_it_through_merging(plan: NetworkPlan) -> None:
    torch.manual_seed(3)
    network = networks.build(plan).eval()
    names = list(network.state_dict())
    before = networks.tensors_of(network)
    images = torch.randn(1, 1, 1 if plan.dimensions == 2 else 16, 16, 16)
    first = network(images)

    lora.attach(network, LoraSettings(rank=2), seed=5)
    begun = network(images)
    teach(network)
    changes = lora.delta(network)
    taught = network(images)
    lora.merge(network)

    after = networks.tensors_of(network)
    assert torch.equal(begun, first)
    assert not torch.allclose(taught, first, atol=1e-3)
    torch.testing.assert_close(network(images), taught, atol=1e-5, rtol=0)
    assert list(network.state_dict()) == names
    assert list(after) == list(before)
    assert {name for name in before if not torch.equal(after[name], before[name])} == set(changes)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor + changes[name] if name in changes else tensor), name


@pytest.mark.parametrize("plan", [PLAIN, RESIDUAL], ids=["plain", "residual"])
def test_a_layer_with_several_names_gets_one_adapter(plan: NetworkPlan) -> None:
    network = networks.build(plan)
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d))]
    count = sum(
        layer.weight[0, 0].numel() * 2 * (layer.weight.shape[0] + layer.weight.shape[1]) for layer in layers
    )

    learning = lora.attach(network, LoraSettings(rank=2, targets=("decoder.*", "encoder.*")), seed=0)

    assert learning == count
    assert len(lora.delta(network)) == len(layers)


def test_training_moves_the_adapters_and_nothing_else() -> None:
    torch.manual_seed(3)
    network = networks.build(DYNUNET).train()
    lora.attach(network, LoraSettings(rank=2, dropout=0.25), seed=0)
    before = networks.tensors_of(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for step in range(6):
        torch.manual_seed(step)
        optimizer.zero_grad()
        scores = network(torch.ones(1, 1, 8, 8, 8))
        loss = functional.cross_entropy(scores, torch.full((1, 8, 8, 8), 2))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    moved = {
        name for name, tensor in networks.tensors_of(network).items() if not torch.equal(tensor, before[name])
    }
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}

    assert losses[-1] < losses[0]
    assert moved == {name for name in before if name.endswith((".weight.0.a", ".weight.0.b"))}
    assert without == set(before) - moved


def test_dropout_leaves_out_whole_components_while_training_only() -> None:
    network = single(nn.Conv1d(3, 4, 2), rank=2, alpha=2.0, dropout=0.5)
    base = network[0].parametrizations.weight.original
    factors = lora.adapters(network)
    one, two = (
        torch.einsum("ko,ki->oik", factors["0.a"][:, :, rho], factors["0.b"][:, rho]) for rho in range(2)
    )
    possible = [torch.zeros_like(one), 2 * one, 2 * two, 2 * (one + two)]  # each survives with 1 / (1 - 0.5)

    torch.manual_seed(0)
    network.train()
    drawn = [network[0].weight - base for _ in range(64)]
    network.eval()
    whole = network[0].weight - base
    network.train()
    lora.merge(network)

    found = [[torch.allclose(change, each, atol=1e-6) for each in possible] for change in drawn]
    assert all(sum(row) == 1 for row in found)
    assert all(any(column) for column in zip(*found, strict=True))
    torch.testing.assert_close(whole, one + two)
    torch.testing.assert_close(network[0].weight - base + whole, one + two)


def test_the_seed_decides_the_first_factors_within_their_bounds() -> None:
    def factors(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed + 100)
        network = nn.Sequential(nn.Conv2d(6, 7, 3), nn.Linear(4, 5))
        lora.attach(network, LoraSettings(rank=4), seed=seed)
        return lora.adapters(network)

    first, again, other = factors(1), factors(1), factors(2)

    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == {
        "0.a": (9, 7, 4),
        "0.b": (9, 4, 6),
        "1.a": (1, 5, 4),
        "1.b": (1, 4, 4),
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.a"], other["0.a"])
    assert not first["0.b"].any()
    assert 0.45 < float(first["0.a"].abs().max()) <= 0.5  # sqrt(6 / ((1 + 5) * 4)) = 1/2


def test_half_precision_convolutions_see_the_weight_that_is_merged() -> None:
    network = single(nn.Conv2d(3, 4, 3), rank=2)
    with torch.autocast("cpu", torch.bfloat16):
        seen = network[0].weight.clone()

    lora.merge(network)

    assert torch.equal(seen, network[0].weight)


def test_a_copy_is_merged_while_the_original_goes_on_learning() -> None:
    network = single(nn.Conv2d(3, 4, 3), rank=2)
    images = torch.randn(1, 3, 5, 5)
    adapted = network(images)
    judged = copy.deepcopy(network)

    lora.merge(judged)

    assert torch.equal(judged(images), adapted)
    assert torch.equal(network(images), adapted)
    assert set(lora.adapters(network)) == {"0.a", "0.b"}
    assert not lora.adapters(judged)
    lora.merge(network)
    assert torch.equal(network[0].weight, judged[0].weight)


def test_a_merged_network_learns_again_and_takes_new_adapters() -> None:
    network = single(nn.Conv2d(3, 4, 3), rank=2)
    kept = network[0].parametrizations.weight.original

    lora.merge(network)

    assert type(network[0]) is nn.Conv2d
    assert network[0].weight is kept
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert lora.attach(network, LoraSettings(rank=1), seed=1) == 9 * (4 + 3)


def test_targets_choose_layers_by_any_of_their_names() -> None:
    network = networks.build(PLAIN)

    lora.attach(
        network, LoraSettings(targets=("decoder.encoder.stages.0.*.all_modules.0", "*transpconvs.1")), seed=0
    )

    assert set(lora.delta(network)) == {
        "encoder.stages.0.0.convs.0.conv.weight",
        "decoder.transpconvs.1.weight",
    }


def test_a_new_output_layer_learns_with_all_its_parameters_beside_the_adapters() -> None:
    network = networks.build(DYNUNET)

    learning = lora.attach(
        network, LoraSettings(rank=1, targets=("bottleneck.*",)), seed=0, also=("output_block",)
    )

    whole = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in whole if "parametrizations" not in name} == {
        "output_block.conv.conv.weight",
        "output_block.conv.conv.bias",
    }
    # bottleneck: two kernels of 27 places, 8 channels to 8; output: 4 channels to 3 classes, and a bias
    assert learning == 2 * 27 * (8 + 8) + 4 * 3 + 3


def test_a_layer_that_learns_whole_gets_no_adapter() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))

    learning = lora.attach(network, LoraSettings(rank=1), seed=0, also=("1",))

    assert set(lora.delta(network)) == {"0.weight"}
    assert learning == (2 + 3) + (3 * 4 + 4)


@pytest.mark.parametrize("options", [{"targets": ("0", "decoder.*")}, {"also": ("head",)}])
def test_a_pattern_that_matches_nothing_is_refused_with_the_names_that_there_are(
    options: dict[str, tuple[str, ...]],
) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    settings = LoraSettings(targets=options.get("targets", ("*",)))

    with pytest.raises(ConfigError, match=r"(decoder\.\*|head).* expected one of .*'0', '2'$"):
        lora.attach(network, settings, seed=0, also=options.get("also", ()))

    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_second_adapter_on_a_layer_is_refused() -> None:
    network = single(nn.Linear(2, 3))

    with pytest.raises(ValueError, match="'0' has an adapter already"):
        lora.attach(network, LoraSettings(), seed=0)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}])
def test_settings_that_make_no_adapter_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="rank of at least 1"):
        LoraSettings(**options)  # type: ignore[arg-type]
