"""The sizes of a network, as a plan holds them: one record for each kind of network that can be built."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator
from pydantic.dataclasses import dataclass

Size = Annotated[int, Field(ge=1, le=4096)]
Triple = tuple[Size, Size, Size]
Axis = Annotated[int, Field(ge=0, le=2)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Classes = Annotated[int, Field(ge=1, le=256)]
Depth = Annotated[int, Field(ge=1, le=64)]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class DynUNetPlan:
    """MONAI's DynUNet with one entry per resolution level, the finest first."""

    kind: Literal["dynunet"] = "dynunet"
    classes: Classes  # with background
    input_channels: Channels = 1
    filters: tuple[Channels, ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]  # the first is (1, 1, 1) by rule
    norm: Literal["instance"] = "instance"  # affine; no running statistics
    residual: bool = False

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if not 3 <= len(self.filters) <= 8 or not len(self.filters) == len(self.kernels) == len(self.strides):
            raise ValueError("filters, kernels and strides need one entry for each of 3 to 8 levels")
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the first stride must be (1, 1, 1): results are wanted at full resolution")
        return self

    @property
    def dimensions(self) -> int:
        """Three: the network sees volumes."""
        return 3

    @property
    def divisors(self) -> Triple:
        """What each axis of a patch must be divisible by: the product of its strides."""
        return _products(self.strides)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class UNetPlan:
    """A U-Net of ``dynamic-network-architectures``, as nnU-Net v2 plans it; finest level first.

    A two-dimensional network has kernels and strides of 1 along the slices.
    """

    kind: Literal["plain_conv_unet", "residual_encoder_unet"]
    dimensions: Literal[2, 3] = 3
    classes: Classes  # outputs: classes with background, or regions
    input_channels: Channels = 1
    features: tuple[Channels, ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    encoder_depths: tuple[Depth, ...]  # convolutions, or residual blocks, of each level
    decoder_depths: tuple[Depth, ...]  # convolutions of each level but the coarsest
    bias: bool = True
    norm: Literal["instance", "batch"] = "instance"
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    norm_affine: bool = True
    negative_slope: Annotated[float, Field(ge=0, le=1)] = 0.01  # of LeakyReLU; 0 is ReLU

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = len(self.features)
        found = {len(self.kernels), len(self.strides), len(self.encoder_depths), len(self.decoder_depths) + 1}
        if not 2 <= levels <= 12 or found != {levels}:
            raise ValueError(
                "features, kernels, strides and encoder_depths need one entry for each of 2 to 12 levels, "
                "decoder_depths one less"
            )
        if self.dimensions == 2 and any(triple[0] != 1 for triple in (*self.kernels, *self.strides)):
            raise ValueError("a two-dimensional network has kernels and strides of 1 along the slices")
        return self

    @property
    def divisors(self) -> Triple:
        """What each axis of a patch must be divisible by: the product of its strides."""
        return _products(self.strides)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class MonaiPlan:
    """A network of MONAI, by name and arguments; the names stand in a literal table of ``model.network``."""

    kind: Literal["monai"] = "monai"
    network: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,40}$")]
    classes: Classes
    input_channels: Channels = 1
    arguments: dict[
        str, JsonValue
    ]  # plain values for the constructor, channel counts and dimensions excepted
    divisors: Triple

    @property
    def dimensions(self) -> int:
        """Three: the network sees volumes."""
        return 3


NetworkPlan = Annotated[DynUNetPlan | UNetPlan | MonaiPlan, Field(discriminator="kind")]
"""The sizes of a network."""


def _products(strides: Sequence[Triple]) -> Triple:
    products = [1, 1, 1]
    for stride in strides:
        products = [product * step for product, step in zip(products, stride, strict=True)]
    return products[0], products[1], products[2]
