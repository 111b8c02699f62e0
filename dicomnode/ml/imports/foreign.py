"""What is asked of an import, what a foreign model is once read, and how its weights are fitted to ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from dicomnode import weights
from dicomnode.errors import ModelFormatError
from dicomnode.ml.model import network
from dicomnode.ml.model.architecture import NetworkPlan, UNetPlan
from dicomnode.ml.model.plan import Plan
from dicomnode.weights import Tensors

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps) while a model is imported."""

_Read = TypeVar("_Read")
_SLICEWISE = "net."
_MODALITIES: Mapping[str, str] = MappingProxyType(
    {"ct": "CT", "cbct": "CT", "mr": "MR", "mri": "MR", "t1": "MR", "t1w": "MR", "t2": "MR", "t2w": "MR"}
    | {"flair": "MR", "adc": "MR", "dwi": "MR", "pet": "PT", "pt": "PT", "us": "US"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What a person decides about an import; None or empty where the model itself, or a rule, decides."""

    name: str | None = None
    configuration: str | None = None  # of nnU-Net
    folds: tuple[str, ...] = ()  # of nnU-Net: numbers, or "all" for the one trained on all cases
    checkpoint: str | None = None  # of nnU-Net: "final", "best", "latest", or the name of a file
    orientation: str | None = None  # as in a plan, of the images of the training
    modalities: tuple[str, ...] = ()
    labels: Path | None = None  # a finished labels.toml


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """A model of another program in our terms, before it is written as a package."""

    plan: Plan
    tensors: Tensors  # they lie in files of the scratch folder
    class_names: Mapping[int, str]  # 1, 2, ... as the model names them
    data_set: str
    facts: tuple[tuple[str, str], ...]  # for the card: what, and its value
    notes: tuple[str, ...]  # whole sentences: what a person should know


def checked(adapter: TypeAdapter[_Read], data: bytes | object, *, what: str) -> _Read:
    """Read JSON, or values that came from it, into a type of ours.

    Raises
    ------
    ModelFormatError
        The message names the first place that is wrong.
    """
    try:
        return adapter.validate_json(data) if isinstance(data, bytes) else adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        raise ModelFormatError(f"{what} is wrong at {where}: {first['msg']}") from error


def family_name(text: str) -> str:
    """Make the name of a model out of that of a data set: lower-case letters, digits, ``_`` and ``-``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", re.sub(r"^Dataset\d+_", "", text))
    return re.sub(r"[^a-z0-9]+", "-", words.casefold())[:64].strip("-") or "model"


def modality_of(channel: str) -> tuple[str, ...]:
    """Tell the DICOM Modality that the name of an input channel stands for; empty where it does not say."""
    found = _MODALITIES.get(channel.casefold())
    return (found,) if found else ()


def read_file(path: Path, *, maximum_bytes: int = 16 * 1024**2) -> bytes:
    """Read a small file of a foreign model.

    Raises
    ------
    ModelFormatError
        It is missing, cannot be read, or is larger than a description needs to be.
    """
    try:
        if path.stat().st_size > maximum_bytes:
            raise ModelFormatError(f"{path.name} has more than {maximum_bytes // 1024**2} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}") from error


def fitted(tensors: Tensors, plan: NetworkPlan, *, what: str) -> Tensors:
    """Pick from foreign weights those that our network takes, each once and in its type.

    Tensors beside them are left out where they only repeat one of these, as nnU-Net and MONAI write every
    layer under several names.

    Raises
    ------
    ModelFormatError
        A tensor lacks, has another shape, is one too many, or is not finite.
    """
    prefix = _SLICEWISE if isinstance(plan, UNetPlan) and plan.dimensions == 2 else ""
    schema = network.schema(plan)
    dtypes = {name: weights.TORCH_DTYPES[dtype] for name, dtype, _ in schema.entries}
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    kept = {name: _as(named[name], dtypes[name]) for name in dtypes if name in named}
    spare = {name: t for name, t in named.items() if name not in dtypes and not _repeats(t, kept)}
    try:
        weights.check_schema(weights.schema_of(kept | spare), schema)
    except ModelFormatError as error:
        raise ModelFormatError(f"{what}: {error}") from error
    if not weights.is_finite(kept):
        raise ModelFormatError(f"{what}: the weights hold NaN or infinite values")
    return kept


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Half precision becomes single, which is exact; nothing else is changed.
    is_shorter = tensor.is_floating_point() and tensor.element_size() < dtype.itemsize
    return tensor.to(dtype) if is_shorter and dtype.is_floating_point else tensor


def _repeats(tensor: torch.Tensor, kept: Tensors) -> bool:
    return any(
        one.shape == tensor.shape and torch.equal(one, _as(tensor, one.dtype)) for one in kept.values()
    )
