"""The architecture in an nnU-Net plan as a network of ours: plain and residual-encoder U-Nets.

Only sizes are taken. A class is named in the plan by where it lies in Python, and is compared with the few
names known here, never looked up.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.foreign import checked
from dicomnode.ml.model.architecture import Triple, UNetPlan
from dicomnode.ml.model.plan import plan_error

Kind = Literal["plain_conv_unet", "residual_encoder_unet"]

_ARCHITECTURES = "dynamic_network_architectures.architectures."
_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "unet.PlainConvUNet": "plain_conv_unet",
        "unet.ResidualEncoderUNet": "residual_encoder_unet",
        "residual_unet.ResidualEncoderUNet": "residual_encoder_unet",  # before version 0.3 of that library
    }
)
_OLD_KINDS: Mapping[str, Kind] = MappingProxyType(
    {"PlainConvUNet": "plain_conv_unet", "ResidualEncoderUNet": "residual_encoder_unet"}
)
_NORMS: Mapping[str, Literal["instance", "batch"]] = MappingProxyType(
    {
        "InstanceNorm2d": "instance",
        "InstanceNorm3d": "instance",
        "BatchNorm2d": "batch",
        "BatchNorm3d": "batch",
    }
)
_SLOPES: Mapping[str, float] = MappingProxyType({"LeakyReLU": 0.01, "ReLU": 0.0})  # by default
_WITHOUT_EFFECT = frozenset({"deep_supervision", "inplace", "momentum"})  # on a trained network's result
_NEUTRAL: Mapping[str, tuple[JsonValue, ...]] = MappingProxyType(
    {
        "nonlin_first": (None, False),
        "bottleneck_channels": (None,),
        "stem_channels": (None,),
        "squeeze_excitation": (None, False),
        "track_running_stats": (None, False),
        "disable_default_stem": (None, False),
        "pool_type": (None, "conv"),
        "block": (None, "dynamic_network_architectures.building_blocks.residual.BasicBlockD"),
    }
)
"""Options that a plan may name only where they change nothing."""
_BATCH_NORM_TRAINER = "nnUNetTrainerBN"
_MOST_LEVELS = 12

_Sizes = int | list[int] | list[list[int]]


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    n_stages: int = Field(ge=2, le=_MOST_LEVELS)
    features_per_stage: int | list[int]
    conv_op: str
    kernel_sizes: _Sizes
    strides: _Sizes
    n_conv_per_stage: int | list[int] | None = None
    n_blocks_per_stage: int | list[int] | None = None
    n_conv_per_stage_decoder: int | list[int]
    conv_bias: bool = False
    norm_op: str | None = None
    norm_op_kwargs: dict[str, JsonValue] | None = None
    dropout_op: str | None = None  # nothing is dropped once a network is trained
    dropout_op_kwargs: dict[str, JsonValue] | None = None
    nonlin: str | None = None
    nonlin_kwargs: dict[str, JsonValue] | None = None


class Architecture(BaseModel):
    """``architecture`` of a configuration, as nnU-Net writes it since version 2.3."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    network_class_name: str
    arch_kwargs: dict[str, JsonValue]


class OldArchitecture(BaseModel):
    """The same in a configuration of nnU-Net 2.0 to 2.2."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    UNet_class_name: str
    UNet_base_num_features: int
    unet_max_num_features: int
    conv_kernel_sizes: list[list[int]] = Field(min_length=1)
    pool_op_kernel_sizes: list[list[int]]
    n_conv_per_stage_encoder: list[int] = Field(max_length=_MOST_LEVELS)
    n_conv_per_stage_decoder: list[int]


_ARGUMENTS = TypeAdapter(_Arguments)


def network_of(
    architecture: Architecture | OldArchitecture, *, input_channels: int, outputs: int, trainer: str
) -> UNetPlan:
    """Describe the network that a configuration stands for.

    Parameters
    ----------
    trainer
        Some trainers build another network than the plan says.

    Raises
    ------
    ModelFormatError
        Another network than the two U-Nets of nnU-Net, or one with an option that is not known here.
    """
    if isinstance(architecture, OldArchitecture):
        kind, arguments = _OLD_KINDS.get(architecture.UNet_class_name), _arguments_of_old(architecture)
        named = architecture.UNet_class_name
    else:
        named = architecture.network_class_name
        kind = _KINDS.get(named.removeprefix(_ARCHITECTURES))
        arguments = architecture.arch_kwargs
    if kind is None or "primus" in trainer.casefold():
        shown = named if kind is None else f"the Primus of {trainer}"
        raise ModelFormatError(
            f"the network of this model is {shown}; imported are the U-Nets that nnU-Net plans itself "
            "(PlainConvUNet, ResidualEncoderUNet). Train one of these, or bring the model as a MONAI bundle"
        )
    read = checked(_ARGUMENTS, arguments, what="the architecture in plans.json")
    _check_options(read)
    try:
        return _plan(kind, read, input_channels=input_channels, outputs=outputs, trainer=trainer)
    except ValidationError as error:
        raise plan_error(error) from error


def _arguments_of_old(old: OldArchitecture) -> dict[str, JsonValue]:
    levels, dimensions = len(old.n_conv_per_stage_encoder), len(old.conv_kernel_sizes[0])
    depths = "n_conv_per_stage" if old.UNet_class_name == "PlainConvUNet" else "n_blocks_per_stage"
    widths = [min(old.UNet_base_num_features * 2**i, old.unet_max_num_features) for i in range(levels)]
    return {
        "n_stages": levels,
        "features_per_stage": [*widths],
        "conv_op": f"torch.nn.Conv{dimensions}d",
        "kernel_sizes": [[*kernel] for kernel in old.conv_kernel_sizes],
        "strides": [[*stride] for stride in old.pool_op_kernel_sizes],
        depths: [*old.n_conv_per_stage_encoder],
        "n_conv_per_stage_decoder": [*old.n_conv_per_stage_decoder],
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
    }


def _check_options(read: _Arguments) -> None:
    options = {
        **(read.model_extra or {}),
        **{
            key: value
            for key, value in {**(read.norm_op_kwargs or {}), **(read.nonlin_kwargs or {})}.items()
            if key not in {"eps", "affine", "negative_slope"}
        },
    }
    for key, value in options.items():
        if key not in _WITHOUT_EFFECT and value not in _NEUTRAL.get(key, ()):
            raise ModelFormatError(
                f"the architecture in plans.json has {key} = {value!r}, which is not known here; imported "
                "are networks as nnU-Net plans them"
            )


def _plan(kind: Kind, read: _Arguments, *, input_channels: int, outputs: int, trainer: str) -> UNetPlan:
    levels = read.n_stages
    dimensions: Literal[2, 3] = 2 if _last(read.conv_op) == "Conv2d" else 3
    norms = read.norm_op_kwargs or {}
    norm, slope = _NORMS.get(_last(read.norm_op)), _SLOPES.get(_last(read.nonlin))
    if norm is None or slope is None or _last(read.conv_op) not in {"Conv2d", "Conv3d"}:
        raise ModelFormatError(
            f"the network is made of {read.conv_op}, {read.norm_op} and {read.nonlin}; known are 2-D and 3-D "
            "convolutions, instance or batch normalisation, and LeakyReLU or ReLU"
        )
    if trainer == _BATCH_NORM_TRAINER:
        norm, norms = "batch", {}
    depths = read.n_conv_per_stage if kind == "plain_conv_unet" else read.n_blocks_per_stage
    return UNetPlan(
        kind=kind,
        dimensions=dimensions,
        classes=outputs,
        input_channels=input_channels,
        features=_repeated(read.features_per_stage, levels),
        kernels=_triples(read.kernel_sizes, levels, dimensions),
        strides=_triples(read.strides, levels, dimensions),
        encoder_depths=_repeated(depths or [], levels),
        decoder_depths=_repeated(read.n_conv_per_stage_decoder, levels - 1),
        bias=read.conv_bias,
        norm=norm,
        norm_eps=_number(norms.get("eps"), 1e-5),
        # Without a word, torch makes instance norms without and batch norms with own factors.
        norm_affine=bool(norms.get("affine", norm == "batch")),
        negative_slope=_number((read.nonlin_kwargs or {}).get("negative_slope"), slope),
    )


def _last(name: str | None) -> str:
    return (name or "").rpartition(".")[2]


def _number(value: JsonValue, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def _repeated(values: int | Sequence[int], count: int) -> tuple[int, ...]:
    return (values,) * count if isinstance(values, int) else tuple(values)


def _triples(values: _Sizes, levels: int, dimensions: int) -> tuple[Triple, ...]:
    """Write the sizes of each level as (slice, row, column); a 2-D network has 1 along the slices."""
    rows = [values] * levels if isinstance(values, int) else values
    triples: list[Triple] = []
    for row in rows:
        sizes = [row] * dimensions if isinstance(row, int) else row
        if len(sizes) != dimensions:
            raise ModelFormatError(f"kernel or stride {sizes} of a {dimensions}-D network in plans.json")
        first, second, third = [1] * (3 - dimensions) + sizes
        triples.append((first, second, third))
    return tuple(triples)
