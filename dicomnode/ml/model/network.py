"""Build the networks that a plan describes, and move weights in and out of them."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vnet import VNet
from pydantic import TypeAdapter
from torch import Tensor, nn

from dicomnode import weights
from dicomnode.errors import ConfigError, ModelFormatError
from dicomnode.ml.model.architecture import DynUNetPlan, MonaiPlan, NetworkPlan, UNetPlan
from dicomnode.ml.model.plan import Plan

MONAI_NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "BasicUNet": BasicUNet,
        "DynUNet": DynUNet,
        "SegResNet": SegResNet,
        "SwinUNETR": SwinUNETR,
        "UNet": UNet,
        "UNETR": UNETR,
        "VNet": VNet,
    }
)
"""The networks of MONAI that a plan may name; all map a volume to scores of the same shape."""


class Slicewise(nn.Module):
    """A two-dimensional network that takes volumes of any number of slices: each slice for itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Map ``(B, C, S, R, K)`` to ``(B, classes, S, R, K)``, or a list of such with deep supervision."""
        batch, _, slices = images.shape[:3]
        planes = images.transpose(1, 2).flatten(0, 1)  # (B * S, C, R, K)
        outputs: Tensor | list[Tensor] = self.net(planes)
        volumes = [
            scores.view(batch, slices, *scores.shape[1:]).transpose(1, 2)
            for scores in (outputs if isinstance(outputs, list) else [outputs])
        ]
        return volumes if isinstance(outputs, list) else volumes[0]


def build(plan: NetworkPlan, *, deep_supervision: bool = False) -> nn.Module:
    """Make the network with fresh weights, drawn from torch's global generator.

    Parameters
    ----------
    deep_supervision
        For training: the network gives a list of scores, one for each level but the coarsest, the finest
        first. Only of networks that nnU-Net plans; the weights are the same either way.

    Returns
    -------
        Maps ``(B, C, S, R, K)`` float32 to scores ``(B, classes, S, R, K)``.

    Raises
    ------
    ConfigError
        The network needs an extra that is not installed.
    ModelFormatError
        The plan names no network that is known here, or arguments that it does not take.
    """
    match plan:
        case DynUNetPlan():
            return _dynunet(plan)
        case UNetPlan():
            net = _unet(plan, deep_supervision=deep_supervision)
            return Slicewise(net) if plan.dimensions == 2 else net
        case MonaiPlan():
            return _monai(plan)


def tensors_of(network: nn.Module) -> weights.Tensors:
    """Copy the weights out of a network, each tensor once under its first name, on the CPU."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _own(network).items()}


def schema(plan: NetworkPlan) -> weights.Schema:
    """Say which tensors the weights of this network consist of, without drawing any."""
    return _schema(_NETWORK.dump_json(plan))


def model_schema(plan: Plan) -> weights.Schema:
    """Say which tensors the weights of a model consist of: all its networks, see :func:`prefixes`."""
    entries = [
        (prefix + name, dtype, shape)
        for prefix, network_plan in prefixes(plan)
        for name, dtype, shape in schema(network_plan).entries
    ]
    return weights.Schema(entries=tuple(sorted(entries)))


def prefixes(plan: Plan) -> tuple[tuple[str, NetworkPlan], ...]:
    """Name each network of a model by what its tensors' names begin with, stage by stage.

    ``stage0.member1.`` and so on; a model of one network has no prefix.
    """
    if plan.networks == 1:
        return (("", plan.final.network),)
    return tuple(
        (f"stage{index}.member{member}.", stage.network)
        for index, stage in enumerate(plan.stages)
        for member in range(stage.members)
    )


def load(network: nn.Module, tensors: weights.Tensors) -> None:
    """Put weights into a network in place.

    Raises
    ------
    ModelFormatError
        Names, types or shapes are not those of the network, or a value is not finite.
    """
    own = _own(network)
    weights.check_schema(weights.schema_of(tensors), weights.schema_of(own))
    if not weights.is_finite(tensors):
        raise ModelFormatError("The weights of the model hold NaN or infinite values.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def build_all(plan: Plan, tensors: weights.Tensors) -> tuple[tuple[nn.Module, ...], ...]:
    """Build all networks of a model with its weights: for each stage its members; errors as :func:`load`."""
    weights.check_schema(weights.schema_of(tensors), model_schema(plan))
    built: list[nn.Module] = []
    for prefix, network_plan in prefixes(plan):
        network = build(network_plan)
        load(
            network, {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )
        built.append(network)
    stages: list[tuple[nn.Module, ...]] = []
    for stage in plan.stages:
        stages.append(tuple(built[: stage.members]))
        built = built[stage.members :]
    return tuple(stages)


_NETWORK: TypeAdapter[NetworkPlan] = TypeAdapter(NetworkPlan)


@lru_cache(maxsize=64)
def _schema(plan_json: bytes) -> weights.Schema:
    plan = _NETWORK.validate_json(plan_json)
    try:
        with torch.device("meta"):
            network = build(plan)
    except RuntimeError:  # SwinUNETR of MONAI computes with numbers of its own while it is built
        network = build(plan)
    return weights.schema_of(_own(network))


def _own(network: nn.Module) -> dict[str, Tensor]:
    # DynUNet registers every block a second time inside its skip layers, the U-Nets of nnU-Net every layer
    # three times: state_dict() would repeat them all.
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _dynunet(plan: DynUNetPlan) -> nn.Module:
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=plan.input_channels,
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


def _unet(plan: UNetPlan, *, deep_supervision: bool) -> nn.Module:
    try:
        from dynamic_network_architectures.architectures.unet import (  # noqa: PLC0415  # optional extra
            PlainConvUNet,
            ResidualEncoderUNet,
        )
    except ImportError as error:
        raise ConfigError(
            "this model needs the extra nnunet: pip install 'dicomnode-federated[nnunet]'"
        ) from error
    first = 3 - plan.dimensions
    common = {
        "input_channels": plan.input_channels,
        "n_stages": len(plan.features),
        "features_per_stage": list(plan.features),
        "conv_op": nn.Conv3d if plan.dimensions == 3 else nn.Conv2d,
        "kernel_sizes": [list(kernel[first:]) for kernel in plan.kernels],
        "strides": [list(stride[first:]) for stride in plan.strides],
        "num_classes": plan.classes,
        "n_conv_per_stage_decoder": list(plan.decoder_depths),
        "conv_bias": plan.bias,
        "norm_op": _NORMS[plan.norm, plan.dimensions],
        "norm_op_kwargs": {"eps": plan.norm_eps, "affine": plan.norm_affine},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"negative_slope": plan.negative_slope, "inplace": True},
        "deep_supervision": deep_supervision,
    }
    network: nn.Module = (
        PlainConvUNet(n_conv_per_stage=list(plan.encoder_depths), **common)
        if plan.kind == "plain_conv_unet"
        else ResidualEncoderUNet(n_blocks_per_stage=list(plan.encoder_depths), **common)
    )
    return network


_NORMS: Mapping[tuple[str, int], type[nn.Module]] = MappingProxyType(
    {
        ("instance", 2): nn.InstanceNorm2d,
        ("instance", 3): nn.InstanceNorm3d,
        ("batch", 2): nn.BatchNorm2d,
        ("batch", 3): nn.BatchNorm3d,
    }
)


def _monai(plan: MonaiPlan) -> nn.Module:
    if plan.network not in MONAI_NETWORKS:
        raise ModelFormatError(
            f"No network is called {plan.network!r} here; known are {', '.join(sorted(MONAI_NETWORKS))}."
        )
    channels = {"in_channels": plan.input_channels, "out_channels": plan.classes, "spatial_dims": 3}
    try:
        return MONAI_NETWORKS[plan.network](**(channels | plan.arguments))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelFormatError(
            f"The arguments of {plan.network} in the plan do not fit it: {error}."
        ) from error
