"""Which layers learn: orders and shares written down by hand."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from dicomnode.errors import ConfigError
from dicomnode.ml.model import network as networks
from dicomnode.ml.model.architecture import DynUNetPlan, MonaiPlan, NetworkPlan, UNetPlan
from dicomnode.ml.training import unfreezing
from dicomnode.ml.training.unfreezing import Layers, Unfreezing

BLOCK = (3, 3, 3)
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
DYNUNET = DynUNetPlan(classes=3, filters=(4, 8, 8), kernels=(BLOCK,) * 3, strides=STRIDES, residual=True)
PLAIN = UNetPlan(
    kind="plain_conv_unet",
    classes=3,
    features=(4, 8, 8),
    kernels=((1, 3, 3), BLOCK, BLOCK),
    strides=STRIDES,
    encoder_depths=(2, 1, 1),
    decoder_depths=(1, 1),
)
RESIDUAL = UNetPlan(
    kind="residual_encoder_unet",
    classes=3,
    features=(4, 8, 8),
    kernels=((1, 3, 3), BLOCK, BLOCK),
    strides=STRIDES,
    encoder_depths=(1, 1, 1),
    decoder_depths=(1, 1),
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
SHAPE = (1, 16, 16, 16)
"""Of an input: channels, slices, rows, columns."""


def names_of(network: nn.Module, modules: tuple[nn.Module, ...]) -> list[str]:
    """The first name of each module."""
    names = {module: name for name, module in network.named_modules()}
    return [names[module] for module in modules]


def found(plan: NetworkPlan, *, deep_supervision: bool = False) -> tuple[nn.Module, Layers]:
    network = networks.build(plan, deep_supervision=deep_supervision)
    return network, unfreezing.layers_of(network, SHAPE)


def learning(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def three_linear() -> tuple[nn.Module, Layers]:
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    return network, unfreezing.layers_of(network, (2,))


def test_dantes_schedule_of_fifty_epochs_frees_the_network_in_five_steps() -> None:
    schedule = Unfreezing(degree=0.5, epochs=50)

    shares = [schedule.fraction(epoch / 50) for epoch in range(51)]

    assert shares[0::5][:5] == pytest.approx([0.5, 0.635, 0.770, 0.905, 1.0], abs=5e-4)  # as measured
    assert shares[5] == pytest.approx(0.5 + 5 / 37)
    assert all(shares[epoch] == shares[epoch - epoch % 5] for epoch in range(51))
    assert set(shares[20:]) == {1.0}


def test_the_share_changes_within_no_tenth_of_the_training() -> None:
    schedule = Unfreezing()

    assert schedule.fraction(0.0999) == 0.5
    assert schedule.fraction(0.1) == schedule.fraction(0.15) == schedule.fraction(0.1999)
    assert schedule.fraction(0.2) > schedule.fraction(0.1999)


def test_every_epoch_is_counted_in_spite_of_rounding() -> None:
    for epochs in range(1, 130):
        schedule = Unfreezing(degree=0.75, epochs=epochs)
        every, span = max(1, epochs // 10), max(1, 3 * epochs // 4)
        for epoch in range(epochs):
            step = epoch // every * every
            assert schedule.fraction(epoch / epochs) == pytest.approx(min(1.0, 0.25 + step / span))


@pytest.mark.parametrize("options", [{"degree": 1.0}, {"degree": -0.1}, {"epochs": 0}])
def test_a_schedule_in_which_nothing_learns_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="degree from 0 to below 1"):
        Unfreezing(**options)  # type: ignore[arg-type]


def test_a_dynunet_is_ordered_from_its_input_through_the_bottleneck_to_its_output() -> None:
    network, layers = found(DYNUNET)

    assert names_of(network, layers.blocks) == [
        "input_block.conv1.conv",
        "input_block.conv2.conv",
        "input_block.conv3.conv",
        "downsamples.0.conv1.conv",
        "downsamples.0.conv2.conv",
        "downsamples.0.conv3.conv",
        "bottleneck.conv1.conv",
        "bottleneck.conv2.conv",
        "bottleneck.conv3.conv",
        "upsamples.0.transp_conv.conv",
        "upsamples.0.conv_block.conv1.conv",
        "upsamples.0.conv_block.conv2.conv",
        "upsamples.1.transp_conv.conv",
        "upsamples.1.conv_block.conv1.conv",
        "upsamples.1.conv_block.conv2.conv",
        "output_block.conv.conv",
    ]
    # norms stand where they compute, not where they are registered
    assert names_of(network, layers.modules[:6]) == [
        "input_block.conv1.conv",
        "input_block.norm1",
        "input_block.conv2.conv",
        "input_block.norm2",
        "input_block.conv3.conv",
        "input_block.norm3",
    ]
    assert names_of(network, layers.head) == ["output_block.conv.conv"]


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_a_u_net_of_nnu_net_is_ordered_as_it_computes_with_its_outputs_last(
    *, deep_supervision: bool
) -> None:
    network, layers = found(PLAIN, deep_supervision=deep_supervision)

    assert names_of(network, layers.blocks) == [
        "encoder.stages.0.0.convs.0.conv",
        "encoder.stages.0.0.convs.1.conv",
        "encoder.stages.1.0.convs.0.conv",
        "encoder.stages.2.0.convs.0.conv",
        "decoder.transpconvs.0",
        "decoder.stages.0.convs.0.conv",
        "decoder.transpconvs.1",
        "decoder.stages.1.convs.0.conv",
        "decoder.seg_layers.0",
        "decoder.seg_layers.1",
    ]
    assert names_of(network, layers.head) == ["decoder.seg_layers.0", "decoder.seg_layers.1"]


def test_a_residual_encoder_is_ordered_as_it_computes() -> None:
    network, layers = found(RESIDUAL, deep_supervision=True)

    assert names_of(network, layers.blocks) == [
        "encoder.stem.convs.0.conv",
        "encoder.stages.0.blocks.0.conv1.conv",
        "encoder.stages.0.blocks.0.conv2.conv",
        "encoder.stages.1.blocks.0.skip.1.conv",
        "encoder.stages.1.blocks.0.conv1.conv",
        "encoder.stages.1.blocks.0.conv2.conv",
        "encoder.stages.2.blocks.0.conv1.conv",
        "encoder.stages.2.blocks.0.conv2.conv",
        "decoder.transpconvs.0",
        "decoder.stages.0.convs.0.conv",
        "decoder.transpconvs.1",
        "decoder.stages.1.convs.0.conv",
        "decoder.seg_layers.0",
        "decoder.seg_layers.1",
    ]


def test_a_slicewise_network_is_ordered_like_the_network_in_it() -> None:
    network, layers = found(FLAT)

    assert names_of(network, layers.blocks)[-3:] == [
        "net.decoder.transpconvs.0",
        "net.decoder.stages.0.convs.0.conv",
        "net.decoder.seg_layers.0",
    ]
    assert names_of(network, layers.head) == ["net.decoder.seg_layers.0"]


@pytest.mark.parametrize(
    ("name", "arguments", "first", "head"),
    [
        ("BasicUNet", {"features": [4, 4, 8, 8, 8, 4]}, "conv_0.conv_0.conv", "final_conv"),
        ("SegResNet", {"init_filters": 8, "blocks_down": [1, 1, 1, 1]}, "convInit.conv", "conv_final.2.conv"),
        (
            "UNet",
            {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 2},
            "model.0.residual",
            "model.2.1.conv.unit0.conv",
        ),
        ("VNet", {"act": "relu"}, "in_tr.conv_block.conv", "out_tr.conv2"),
        (
            "UNETR",
            {"img_size": [16, 16, 16], "feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
            "vit.patch_embedding",
            "out.conv.conv",
        ),
        ("SwinUNETR", {"feature_size": 12}, "swinViT.patch_embed.proj", "out.conv.conv"),
    ],
)
def test_networks_of_monai_begin_at_their_input_and_end_at_their_output(
    name: str, arguments: dict[str, object], first: str, head: str
) -> None:
    plan = MonaiPlan(network=name, classes=5, divisors=(16, 16, 16), arguments=arguments)  # type: ignore[arg-type]
    network = networks.build(plan)

    shape = (1, 16, 16, 16) if name == "UNETR" else (1, 64, 64, 64)
    layers = unfreezing.layers_of(network, shape)

    assert names_of(network, layers.blocks[:1]) == [first]
    assert names_of(network, layers.head) == [head]
    assert layers.modules[-1] is layers.head[0]
    own = {id(parameter) for module in layers.modules for parameter in module.parameters(recurse=False)}
    assert own == {id(parameter) for parameter in network.parameters()}


class Backwards(nn.Module):
    """Registers its layers in the order opposite to that of computing, and one that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)
        self.middle = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.first = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(self.middle(self.middle(self.first(images))))
        return result


def test_the_order_of_registration_does_not_matter() -> None:
    network = Backwards().eval()

    layers = unfreezing.layers_of(network, (2,))

    assert names_of(network, layers.modules) == ["unused", "first", "middle.0", "middle.1", "last"]
    assert names_of(network, layers.blocks) == ["unused", "first", "middle.0", "last"]


def test_looking_for_the_order_leaves_the_network_as_it_is() -> None:
    network = networks.build(dataclasses.replace(PLAIN, norm="batch")).train()
    before = copy.deepcopy(network.state_dict())

    unfreezing.layers_of(network, SHAPE)

    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in network.state_dict().values())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_half_of_the_blocks_and_all_norms_learn_at_the_output_end() -> None:
    network, layers = found(DYNUNET)
    norms = {name for name in learning(network) if ".norm" in name}

    unfreezing.apply(layers, 0.5)

    # 16 blocks: the first 8 are frozen
    assert learning(network) - norms == {
        "bottleneck.conv3.conv.weight",
        "upsamples.0.transp_conv.conv.weight",
        "upsamples.0.conv_block.conv1.conv.weight",
        "upsamples.0.conv_block.conv2.conv.weight",
        "upsamples.1.transp_conv.conv.weight",
        "upsamples.1.conv_block.conv1.conv.weight",
        "upsamples.1.conv_block.conv2.conv.weight",
        "output_block.conv.conv.weight",
        "output_block.conv.conv.bias",
    }
    assert len(norms) == 2 * (3 * 3 + 2 * 2)
    assert norms <= learning(network)


@pytest.mark.parametrize(
    ("fraction", "frozen"), [(1.0, 0), (0.9, 0), (0.7, 0), (2 / 3, 1), (0.5, 1), (1 / 3, 2), (0.01, 2)]
)
def test_the_number_of_frozen_blocks_is_rounded_down(fraction: float, frozen: int) -> None:
    network, layers = three_linear()

    unfreezing.apply(layers, fraction)

    blocks = [network[0], network[3], network[4]]  # type: ignore[index]
    assert [block.weight.requires_grad for block in blocks] == [index >= frozen for index in range(3)]
    assert [block.bias.requires_grad for block in blocks] == [index >= frozen for index in range(3)]


def test_frozen_weights_get_no_gradient_and_no_decay_until_they_join_in() -> None:
    torch.manual_seed(1)
    network, layers = three_linear()
    first = network[0].weight  # type: ignore[index]
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    network(torch.ones(4, 2)).pow(2).sum().backward()  # a gradient from before
    begun = first.detach().clone()

    unfreezing.apply(layers, 0.5)
    for _ in range(2):
        optimizer.step()
        network(torch.ones(4, 2)).pow(2).sum().backward()
    assert torch.equal(first, begun)
    assert first.grad is None

    unfreezing.apply(layers, 1.0)
    network(torch.ones(4, 2)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(first, begun)


def test_only_the_output_layers_learn_and_no_norm() -> None:
    network, layers = found(PLAIN, deep_supervision=True)

    unfreezing.only_head(layers)

    assert learning(network) == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.bias",
        "decoder.seg_layers.1.weight",
        "decoder.seg_layers.1.bias",
    }


def test_rates_rise_evenly_from_a_tenth_at_the_input_to_the_whole_at_the_output() -> None:
    network, layers = three_linear()

    rates = unfreezing.discriminative_rates(layers)

    assert [factor for _, factor in rates] == pytest.approx([0.1, 0.4, 0.7, 1.0])  # a norm is one of four
    assert [[id(parameter) for parameter in own] for own, _ in rates] == [
        [id(parameter) for parameter in network[index].parameters()]  # type: ignore[index]
        for index in (0, 1, 3, 4)
    ]


def test_a_single_layer_learns_at_the_whole_rate() -> None:
    network = nn.Linear(2, 2)

    assert [factor for _, factor in unfreezing.discriminative_rates(unfreezing.layers_of(network, (2,)))] == [
        1.0
    ]


@pytest.mark.parametrize("plan", [DYNUNET, PLAIN, RESIDUAL], ids=["dynunet", "plain", "residual"])
def test_every_parameter_has_one_rate(plan: NetworkPlan) -> None:
    network, layers = found(plan)

    rates = unfreezing.discriminative_rates(layers)

    ids = [id(parameter) for own, _ in rates for parameter in own]
    assert sorted(ids) == sorted(id(parameter) for parameter in network.parameters())
    assert [factor for _, factor in rates] == sorted(factor for _, factor in rates)
    assert rates[-1][1] == 1.0
    assert [id(parameter) for parameter in rates[-1][0]] == [
        id(parameter) for parameter in layers.head[-1].parameters()
    ]


def test_a_weight_that_two_layers_share_is_listed_with_the_first() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight

    rates = unfreezing.discriminative_rates(unfreezing.layers_of(network, (2,)))

    assert [len(own) for own, _ in rates] == [2, 1]
