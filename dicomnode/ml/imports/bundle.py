"""A MONAI Bundle, as a folder or a zip holds it, in our terms.

``configs/metadata.json``, ``configs/inference.json`` (or YAML) and ``models/model.pt`` or ``.safetensors``.
The configuration is read as text: its lines of Python are not run, so what they compute must be written out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from dicomnode import weights
from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports import checkpoint
from dicomnode.ml.imports.bundle_config import Component, Config, components, read_config
from dicomnode.ml.imports.bundle_transforms import Preparation, are_regions, or_as_it_is, preparation
from dicomnode.ml.imports.foreign import (
    ForeignModel,
    ImportOptions,
    Progress,
    checked,
    family_name,
    fitted,
    modality_of,
    read_file,
)
from dicomnode.ml.imports.orientation import ACQUIRED, ASSUMED
from dicomnode.ml.model.architecture import MonaiPlan, Triple
from dicomnode.ml.model.network import MONAI_NETWORKS
from dicomnode.ml.model.plan import Interpolation, Plan, Stage, plan_error
from dicomnode.weights import Tensors

METADATA_FILE = "configs/metadata.json"
_DEEPEST = 2
_CHANNELS = frozenset({"spatial_dims", "dimensions", "in_channels", "out_channels"})
_WITHOUT_EFFECT: Mapping[str, frozenset[str]] = MappingProxyType({"SwinUNETR": frozenset({"img_size"})})
"""Arguments of earlier versions of MONAI that never changed the network."""
_WEIGHT_FILES = ("model.safetensors", "model.pt", "model.pth")
_DIVISORS = MappingProxyType({"BasicUNet": 16, "SwinUNETR": 32, "UNETR": 16, "VNet": 16})


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    modality: str = ""
    num_channels: int | None = None
    channel_def: dict[str, str] = Field(default_factory=dict)


class _Format(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    inputs: dict[str, _Tensor] = Field(default_factory=dict)
    outputs: dict[str, _Tensor] = Field(default_factory=dict)


class _Metadata(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str = ""
    version: str = ""
    monai_version: str = ""
    task: str = ""
    authors: JsonValue = None
    copyright: JsonValue = None
    intended_use: JsonValue = None
    data_source: JsonValue = None
    network_data_format: _Format = Field(default_factory=_Format)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    roi: Triple
    overlap: float
    is_gaussian: bool


_METADATA = TypeAdapter(_Metadata)
_TRIPLE: TypeAdapter[Triple] = TypeAdapter(Triple)
_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])
_SHARE: TypeAdapter[float] = TypeAdapter(float)
_COUNT: TypeAdapter[int] = TypeAdapter(int)


def find(folder: Path) -> tuple[Path, ...]:
    """Find the bundles in a folder or up to two levels below it."""
    patterns = ["*/" * depth + METADATA_FILE for depth in range(_DEEPEST + 1)]
    return tuple(path.parent.parent for pattern in patterns for path in sorted(folder.glob(pattern)))


def read(folder: Path, scratch: Path, *, options: ImportOptions, progress: Progress) -> ForeignModel:
    """Read a bundle.

    Parameters
    ----------
    folder
        As :func:`find` gives it.
    scratch
        Empty folder; the weights may lie in a file there until they are written elsewhere.

    Raises
    ------
    ModelFormatError
        Something is missing or damaged, or the bundle needs what is not known here: a network, a transform, a
        line of Python. The message names it.
    """
    metadata = checked(_METADATA, read_file(folder / METADATA_FILE), what="metadata.json of the bundle")
    config = read_config(folder, "inference") or read_config(folder, "train")
    if config is None:
        raise ModelFormatError(f"{folder.name} has neither configs/inference.json nor .yaml")
    net = _network(config)
    prepared = preparation(components(config.get("preprocessing"), what="preprocessing"))
    after = config.get("postprocessing")
    regions = net.classes == 1
    if after is not None:
        regions = are_regions(components(after, what="postprocessing"), outputs=net.classes)
    windows = _windows(config)
    progress(f"reading {folder.name}", 0, 1)
    tensors = fitted(_tensors(folder, scratch), net, what=f"the weights of {folder.name}")
    progress(f"reading {folder.name}", 1, 1)
    return ForeignModel(
        plan=_plan(metadata, net, prepared, windows, regions=regions, options=options),
        tensors=tensors,
        class_names=_class_names(metadata, outputs=net.classes, regions=regions),
        data_set=metadata.name,
        facts=tuple(_facts(metadata, folder)),
        notes=tuple(_notes(prepared, windows, regions=regions, outputs=net.classes, options=options)),
    )


def _network(config: Config) -> MonaiPlan:
    made = config.component("network_def", "network", "net", "model")
    if made is None:
        raise ModelFormatError("the configuration of the bundle describes no network under network_def")
    if made.name not in MONAI_NETWORKS:
        raise ModelFormatError(
            f"the network of the bundle is {made.name}; known are MONAI's {', '.join(sorted(MONAI_NETWORKS))}"
        )
    dimensions = made.literal("spatial_dims", made.arguments.get("dimensions", 3))
    inputs, outputs = made.literal("in_channels", 1), made.literal("out_channels")
    if dimensions != 3 or inputs != 1:
        raise ModelFormatError(
            f"the network of the bundle sees {inputs} channels in {dimensions} dimensions; the node gives a "
            "model one three-dimensional series"
        )
    left_out = _CHANNELS | _WITHOUT_EFFECT.get(made.name, frozenset())
    arguments = {key: made.literal(key) for key in made.arguments if key not in left_out}
    try:
        return MonaiPlan(
            network=made.name,
            classes=checked(_COUNT, outputs, what=f"out_channels of {made.name}"),
            arguments=checked(_JSON, arguments, what=f"the arguments of {made.name}"),
            divisors=_divisors(made),
        )
    except ValidationError as error:
        raise plan_error(error) from error


def _divisors(made: Component) -> Triple:
    """Say what each axis of a patch must be divisible by, for the network to halve it so often."""
    if made.name == "SegResNet":
        blocks = made.literal("blocks_down", [1, 2, 2, 4])
        size = 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 1
        return size, size, size
    if made.name in _DIVISORS:
        size = _DIVISORS[made.name]
        return size, size, size
    strides = made.literal("strides")
    rows = [
        [step] * 3 if isinstance(step, int) else step
        for step in (strides if isinstance(strides, list) else [])
    ]
    steps = [checked(_TRIPLE, row, what=f"strides of {made.name}") for row in rows]
    first, second, third = (prod(step[axis] for step in steps) for axis in range(3))
    return first, second, third


def _windows(config: Config) -> _Windows:
    made = config.component("inferer")
    if made is None or made.name != "SlidingWindowInferer":
        raise ModelFormatError(
            f"the bundle looks at an image with {made.name if made else 'nothing named'}; known is the "
            "SlidingWindowInferer"
        )
    size = made.literal("roi_size")
    overlap = made.literal("overlap", 0.25)
    return _Windows(
        roi=checked(_TRIPLE, [size] * 3 if isinstance(size, int) else size, what="roi_size of the inferer"),
        overlap=max(
            checked(_SHARE, share, what="overlap of the inferer")
            for share in (overlap if isinstance(overlap, list) else [overlap])
        ),
        is_gaussian=made.literal("mode", "constant") == "gaussian",
    )


def _tensors(folder: Path, scratch: Path) -> Tensors:
    paths = [path for name in _WEIGHT_FILES if (path := folder / "models" / name).is_file()]
    if not paths:
        raise ModelFormatError(
            f"{folder.name} has no models/{_WEIGHT_FILES[1]} and no models/{_WEIGHT_FILES[0]}; if its "
            "large_files.yml names them, fetch them first (python -m monai.bundle download_large_files)"
        )
    if paths[0].suffix == ".safetensors":
        return weights.read(paths[0], maximum_bytes=weights.MAXIMUM_LOCAL_BYTES)
    return checkpoint.read(paths[0], scratch).tensors


def _plan(
    metadata: _Metadata,
    net: MonaiPlan,
    prepared: Preparation,
    windows: _Windows,
    *,
    regions: bool,
    options: ImportOptions,
) -> Plan:
    told = options.orientation or ASSUMED
    # MONAI counts the axes of a stored image the other way round: column, row, slice.
    turned = told if told == ACQUIRED else told[::-1]
    orientation = prepared.orientation or turned
    image = metadata.network_data_format.inputs.get("image", _Tensor())
    try:
        return Plan(
            name=options.name or family_name(metadata.name),
            modalities=options.modalities or modality_of(image.modality),
            orientation=orientation,
            axis_order=(2, 1, 0) if orientation == ACQUIRED else (0, 1, 2),
            crop_to_nonzero=prepared.crop_to_nonzero,
            region_classes=tuple(range(1, net.classes + 1)) if regions else (),
            stages=(
                Stage(
                    spacing_mm=prepared.spacing_mm,
                    patch_shape=windows.roi,
                    normalisation=or_as_it_is(prepared.normalisation),
                    image_interpolation=prepared.interpolation,
                    score_interpolation=Interpolation(),
                    network=net,
                    mirror_axes=(),
                    overlap=windows.overlap,
                ),
            ),
        )
    except ValidationError as error:
        raise plan_error(error) from error


def _class_names(metadata: _Metadata, *, outputs: int, regions: bool) -> Mapping[int, str]:
    told = metadata.network_data_format.outputs.get("pred", _Tensor()).channel_def
    first = 0 if regions else 1
    return {
        channel + 1 - first: told.get(str(channel), "") or f"class {channel + 1 - first}"
        for channel in range(first, outputs)
    }


def _facts(metadata: _Metadata, folder: Path) -> Iterator[tuple[str, str]]:
    yield "Program", f"MONAI Bundle for MONAI {metadata.monai_version}".removesuffix(" for MONAI ")
    yield "Bundle", f"{metadata.name or folder.name} {metadata.version}".strip()
    for what, value in (
        ("Task", metadata.task),
        ("Authors", metadata.authors),
        ("Copyright", metadata.copyright),
        ("Data", metadata.data_source),
        ("Intended use, as the bundle says", metadata.intended_use),
    ):
        if value:
            yield what, str(value)
    licence = folder / "LICENSE"
    if licence.is_file():
        lines = read_file(licence).decode("utf-8", "replace").splitlines()
        yield (
            "Licence of the bundle",
            next((line.strip() for line in lines if line.strip()), "see its LICENSE"),
        )
    yield "Licence of the data", "not known: to be completed before the model is passed on"


def _notes(
    prepared: Preparation, windows: _Windows, *, regions: bool, outputs: int, options: ImportOptions
) -> Iterator[str]:
    yield from prepared.notes
    if not (prepared.orientation or options.orientation):
        yield (
            f"The bundle does not turn its images: it was assumed that they were stored as {ASSUMED} (NIfTI "
            '"RAS"). If they were not, import again with --orientation and one of these images.'
        )
    if not windows.is_gaussian:
        yield (
            "The bundle weighs all of a window alike, dicomnode its middle more: results may differ where "
            "windows meet."
        )
    if regions and outputs > 1:
        yield "The labels of the bundle may overlap; here each later one paints over those before."
