"""Build the network that a plan describes, and move weights in and out of it."""

from functools import lru_cache

import torch
from monai.networks.nets.dynunet import DynUNet
from torch import nn

from dicomnode import weights
from dicomnode.errors import ModelFormatError
from dicomnode.ml.model.plan import NetworkPlan


def build(plan: NetworkPlan) -> nn.Module:
    """Make the network with fresh weights, drawn from torch's global generator.

    Returns
    -------
        Maps ``(B, 1, S, R, K)`` float32 to logits ``(B, classes, S, R, K)``.
    """
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=plan.classes,
        kernel_size=[list(kernel) for kernel in plan.kernels],
        strides=[list(stride) for stride in plan.strides],
        upsample_kernel_size=[list(stride) for stride in plan.strides[1:]],
        filters=list(plan.filters),
        norm_name=("INSTANCE", {"affine": True}),
        res_block=plan.residual,
        deep_supervision=False,
    )
    return network


def tensors_of(network: nn.Module) -> weights.Tensors:
    """Copy the weights out of a network, each tensor once under its first name, on the CPU."""
    # DynUNet registers every block a second time inside its skip layers: state_dict() doubles all.
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in named}


@lru_cache(maxsize=16)
def schema(plan: NetworkPlan) -> weights.Schema:
    """Say which tensors the weights of this network consist of, without drawing any."""
    with torch.device("meta"):
        network = build(plan)
    return weights.schema_of({**dict(network.named_parameters()), **dict(network.named_buffers())})


def load(network: nn.Module, tensors: weights.Tensors) -> None:
    """Put weights into a network in place.

    Raises
    ------
    ModelFormatError
        Names, types or shapes are not those of the network, or a value is not finite.
    """
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights.check_schema(weights.schema_of(tensors), weights.schema_of(own))
    if not weights.is_finite(tensors):
        raise ModelFormatError("The weights of the model hold NaN or infinite values.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
