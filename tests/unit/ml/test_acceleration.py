"""A network made ready for inference computes what it computed before."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dicomnode.ml.inference import acceleration
from dicomnode.ml.model import network
from dicomnode.ml.model.architecture import DynUNetPlan, MonaiPlan, NetworkPlan, UNetPlan

CPU = torch.device("cpu")
BLOCK = (3, 3, 3)
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))

PLAIN = UNetPlan(
    kind="plain_conv_unet",
    classes=3,
    features=(8, 16, 16),
    kernels=((1, 3, 3), BLOCK, BLOCK),
    strides=STRIDES,
    encoder_depths=(2, 2, 2),
    decoder_depths=(1, 1),
)
RESIDUAL = UNetPlan(
    kind="residual_encoder_unet",
    classes=3,
    features=(8, 16, 16),
    kernels=((1, 3, 3), BLOCK, BLOCK),
    strides=STRIDES,
    encoder_depths=(1, 2, 1),
    decoder_depths=(1, 1),
    norm_affine=False,
)
FLAT = UNetPlan(
    kind="plain_conv_unet",
    dimensions=2,
    classes=2,
    features=(8, 8),
    kernels=((1, 3, 3),) * 2,
    strides=((1, 1, 1), (1, 2, 2)),
    encoder_depths=(1, 1),
    decoder_depths=(1,),
)
MONAI = MonaiPlan(
    network="SegResNet",
    classes=2,
    divisors=(8, 8, 8),
    arguments={"init_filters": 8, "blocks_down": [1, 1, 1, 1]},
)
DYNUNET = DynUNetPlan(classes=3, filters=(4, 8, 8), kernels=(BLOCK,) * 3, strides=STRIDES)


def shaken(plan: NetworkPlan) -> nn.Module:
    torch.manual_seed(3)
    made = network.build(plan)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


@pytest.mark.parametrize("plan", [PLAIN, RESIDUAL, FLAT, MONAI, DYNUNET], ids=lambda plan: plan.kind)
@pytest.mark.parametrize("batch", [1, 2])
def test_scores_stay_the_same_to_six_digits(plan: NetworkPlan, batch: int) -> None:
    plain = shaken(plan)
    images = torch.randn(batch, 1, 1 if plan.dimensions == 2 else 16, 32, 24)

    quick = acceleration.prepare(copy.deepcopy(plain), CPU)

    with torch.inference_mode():
        torch.testing.assert_close(quick(acceleration.layout(images)), plain(images), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 32, 64, 63), (2, 3, 5, 7, 9), (1, 320, 4, 4, 2)])
def test_moments_are_as_exact_as_single_precision_allows(shape: tuple[int, ...]) -> None:
    plain = nn.InstanceNorm3d(shape[1], affine=True)
    images = torch.randn(shape) * 2 + torch.randn(1, shape[1], 1, 1, 1) * 20

    quick = acceleration.prepare(nn.Sequential(nn.Identity(), copy.deepcopy(plain)), CPU)

    exact = copy.deepcopy(plain).double()(images.double())
    torch.testing.assert_close(quick(acceleration.layout(images)).double(), exact, atol=2e-5, rtol=0)


class Shared(nn.Module):
    """One layer under two names, as the networks of nnU-Net register theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)
        self.all_modules = nn.Sequential(self.conv, nn.Conv3d(2, 2, 3, padding="same"))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.all_modules(images) + self.conv(images)
        return result


def test_a_layer_with_two_names_stays_one_layer_and_odd_padding_is_left_alone() -> None:
    plain = Shared().eval()
    images = torch.randn(1, 1, 6, 7, 8)

    quick = acceleration.prepare(copy.deepcopy(plain), CPU)

    assert quick.conv is quick.all_modules[0]  # type: ignore[index]
    assert isinstance(quick.all_modules[1], nn.Conv3d)  # type: ignore[index]
    torch.testing.assert_close(quick(acceleration.layout(images)), plain(images))


@pytest.mark.parametrize("block", [2, (1, 2, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 6, 8, 4), (1, 3, 7, 8, 4)], ids=["divides", "does not divide"])
def test_blocks_of_voxels_are_averaged_as_pytorch_does(
    block: int | tuple[int, int, int], shape: tuple[int, ...]
) -> None:
    plain = nn.AvgPool3d(block)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(5))

    quick = acceleration.prepare(nn.Sequential(nn.Conv3d(3, 3, 1), nn.Sequential(copy.deepcopy(plain))), CPU)

    pooled = quick[1](acceleration.layout(images))  # type: ignore[index]
    torch.testing.assert_close(pooled, plain(images), atol=1e-6, rtol=1e-6)
    if shape[2] % 2 == 0:
        assert pooled.is_contiguous(memory_format=torch.channels_last_3d)


def test_pooling_that_overlaps_or_pads_is_left_alone() -> None:
    plain = nn.Sequential(nn.AvgPool3d(3, stride=2), nn.AvgPool3d(2, padding=1))

    quick = acceleration.prepare(copy.deepcopy(plain), CPU)

    assert [type(layer) for layer in quick.children()] == [nn.AvgPool3d, nn.AvgPool3d]
