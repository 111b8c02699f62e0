"""``plans.json`` of nnU-Net v2: what is read of it, and its configurations with what they inherit."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.foreign import checked, read_file
from dicomnode.ml.imports.nnunet_network import Architecture, OldArchitecture, network_of
from dicomnode.ml.model.architecture import UNetPlan

PLANS_FILE = "plans.json"
DEFAULT_RESAMPLING = "resample_data_or_seg_to_shape"
_READERS: Mapping[str, str | None] = MappingProxyType(
    {"SimpleITKIO": None, "NibabelIO": None, "NibabelIOWithReorient": "HAR", "SimpleITKIOWithReorient": "HAR"}
)
"""How a model's images were read, and the orientation that this gave them, if always the same."""


class Intensities(BaseModel):
    """Intensities of the foreground over all training images."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Configuration(BaseModel):
    """One configuration, with what it inherits."""

    model_config = ConfigDict(extra="allow", frozen=True)
    spacing: list[float]
    patch_size: list[int]
    normalization_schemes: list[str] = Field(min_length=1)
    use_mask_for_norm: list[bool] = Field(min_length=1)
    preprocessor_name: str = "DefaultPreprocessor"
    resampling_fn_data: str = DEFAULT_RESAMPLING
    resampling_fn_data_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    resampling_fn_seg: str = DEFAULT_RESAMPLING
    resampling_fn_seg_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    resampling_fn_probabilities: str = DEFAULT_RESAMPLING
    resampling_fn_probabilities_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    architecture: Architecture | None = None
    previous_stage: str | None = None


class Plans(BaseModel):
    """What is read of ``plans.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    dataset_name: str
    plans_name: str
    image_reader_writer: str = "SimpleITKIO"
    transpose_forward: tuple[int, int, int]
    configurations: dict[str, dict[str, JsonValue]]
    experiment_planner_used: str = ""
    label_manager: str = "LabelManager"
    foreground_intensity_properties_per_channel: dict[str, Intensities] = Field(default_factory=dict)


_PLANS = TypeAdapter(Plans)
_CONFIGURATION = TypeAdapter(Configuration)
_OLD = TypeAdapter(OldArchitecture)


def read_plans(folder: Path) -> Plans:
    """Read ``plans.json`` of a trained model.

    Raises
    ------
    ModelFormatError
        It is missing or malformed, or images or labels were read in a way that is not known here.
    """
    plans = checked(_PLANS, read_file(folder / PLANS_FILE), what=PLANS_FILE)
    if plans.label_manager != "LabelManager":
        raise ModelFormatError(
            f"the labels of this model are read by {plans.label_manager}; known is nnU-Net's LabelManager"
        )
    if plans.image_reader_writer not in _READERS:
        raise ModelFormatError(
            f"the images of this model were read by {plans.image_reader_writer}; imported are models of "
            f"images in patient space, read by {', '.join(_READERS)}"
        )
    return plans


def fixed_orientation(plans: Plans) -> str | None:
    """Say where slice, row and column of every image grew towards, where the reader saw to that."""
    return _READERS[plans.image_reader_writer]


def configuration(plans: Plans, name: str) -> Configuration:
    """Read one configuration with all that it inherits.

    Raises
    ------
    ModelFormatError
        There is none of that name, it inherits in a circle, or it is prepared in an unknown way.
    """
    merged: dict[str, JsonValue] = {}
    visited: list[str] = []
    current: JsonValue = name
    while current is not None:
        if not isinstance(current, str) or current not in plans.configurations or current in visited:
            raise ModelFormatError(
                f"{PLANS_FILE} has no usable configuration {current!r}; there is "
                f"{', '.join(plans.configurations)}"
            )
        visited.append(current)
        merged = plans.configurations[current] | merged
        current = plans.configurations[current].get("inherits_from")
    read = checked(_CONFIGURATION, merged, what=f"the configuration {name} in {PLANS_FILE}")
    if read.preprocessor_name != "DefaultPreprocessor":
        raise ModelFormatError(
            f"the images of this model are prepared by {read.preprocessor_name}; known is DefaultPreprocessor"
        )
    return read


def network(found: Configuration, *, input_channels: int, outputs: int, trainer: str) -> UNetPlan:
    """Describe the network of a configuration, be it in the style of nnU-Net 2.0 or of today."""
    architecture: Architecture | OldArchitecture | None = found.architecture
    if architecture is None:
        architecture = checked(_OLD, found.model_extra or {}, what=f"the network in {PLANS_FILE}")
    return network_of(architecture, input_channels=input_channels, outputs=outputs, trainer=trainer)
