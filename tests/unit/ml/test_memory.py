"""The memory of a network is added up from the blocks that are alive at once."""

import pytest
import torch

from dicomnode.ml.model.architecture import DynUNetPlan, Triple, UNetPlan
from dicomnode.ml.planning import memory
from dicomnode.ml.training import objective

BLOCK = (3, 3, 3)
HALF = (2, 2, 2)
KIB = 1024


def small(*, classes: int = 2, features: tuple[int, int] = (4, 8)) -> UNetPlan:
    return UNetPlan(
        kind="plain_conv_unet",
        classes=classes,
        features=features,
        kernels=(BLOCK, BLOCK),
        strides=((1, 1, 1), HALF),
        encoder_depths=(2, 2),
        decoder_depths=(2,),
    )


def live(network: UNetPlan | DynUNetPlan, patch: Triple, **options: object) -> int:
    peak = memory.walk(network, patch, **options)  # type: ignore[arg-type]
    return peak.live_bytes - peak.weight_bytes


def test_a_pass_holds_what_is_still_needed() -> None:
    found = memory.walk(small(), (8, 8, 8), batch_size=1, use="inference")

    # At the last normalisation, in units of one feature of 512 voxels in float32, 2 KiB: the image 1, the
    # skip 4, the coarse level 8 / 8 = 1, both halves of the input of this level 8, the first convolution 4,
    # the second and its normalised form 4 + 4.
    assert found.live_bytes - found.weight_bytes == 26 * 2 * KIB
    # The widest convolution reads 8 features and writes 4.
    assert found.workspace_bytes == 12 * 2 * KIB
    assert found.heap_bytes == found.live_bytes


def test_weights_are_counted_once() -> None:
    found = memory.walk(small(), (8, 8, 8), batch_size=1, use="inference")

    features = 4 + 4 + 8 + 8 + 4 + 4
    convolutions = 27 * (1 * 4 + 4 * 4 + 4 * 8 + 8 * 8 + 8 * 4 + 4 * 4) + features
    others = (8 * 8 * 4 + 4) + (4 * 2 + 2)  # the transposed convolution; the scores
    assert found.weight_bytes == 4 * (convolutions + 2 * features + others)


def test_a_pass_in_half_precision_takes_half() -> None:
    sizes = {"batch_size": 2, "use": "inference"}

    assert live(small(), (16, 8, 8), **sizes) == 2 * live(small(), (8, 8, 8), **sizes)
    scores = 2 * 2 * 512 * 4  # in float32 at the end, when all else is gone
    assert live(small(), (8, 8, 8), half=True, **sizes) == live(small(), (8, 8, 8), **sizes) // 2
    assert scores < live(small(), (8, 8, 8), half=True, **sizes)


def test_training_keeps_every_intermediate_result() -> None:
    peak = memory.walk(small(), (16, 16, 16), batch_size=2, use="training")

    # Of each of the six blocks the convolution's and the normalisation's result stay for the backward pass;
    # the activation works in place. 4096 voxels, two samples, four bytes each:
    unit = 2 * 4096 * 4
    kept = 2 * (2 * 4 + 2 * 4) * unit + 2 * 2 * 8 * unit // 8 + (4 + 8) * unit  # levels, then what goes up
    assert kept < peak.live_bytes - 2 * peak.weight_bytes < 1.6 * kept  # and the loss


def test_the_loss_that_is_counted_is_that_of_training() -> None:
    scores, labels = torch.zeros(2, 5, 8, 8, 8), torch.zeros(2, 8, 8, 8, dtype=torch.uint8)

    def peak(loss: object) -> int:
        blocks = memory._Blocks()
        with blocks:
            given = scores.clone().requires_grad_()
            loss(given).backward()  # type: ignore[operator]
        return blocks.peak

    ours = peak(memory._loss)
    theirs = peak(lambda given: objective.class_loss(given, labels, batch_dice=False))
    assert ours == pytest.approx(theirs, rel=0.1)


def test_more_samples_and_voxels_take_more() -> None:
    net = DynUNetPlan(classes=3, filters=(4, 8, 8), kernels=(BLOCK,) * 3, strides=((1, 1, 1), HALF, HALF))

    for device in ("cpu", "cuda"):
        one = memory.training_bytes(net, (16, 16, 16), device=device, batch_size=1)
        assert one < memory.training_bytes(net, (16, 16, 16), device=device, batch_size=2)
        assert one < memory.training_bytes(net, (16, 16, 32), device=device, batch_size=1)
        assert memory.inference_bytes(net, (16, 16, 16), device=device) < one


def test_a_flat_network_is_followed_too() -> None:
    flat = UNetPlan(
        kind="residual_encoder_unet",
        dimensions=2,
        classes=2,
        features=(4, 8),
        kernels=((1, 3, 3), (1, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2)),
        encoder_depths=(1, 2),
        decoder_depths=(1,),
    )

    assert live(flat, (1, 16, 16), batch_size=4, use="training") > 4 * 256 * 4 * 4
