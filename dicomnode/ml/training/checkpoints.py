"""A training that was cut off goes on from here: its state on disk, without anything that could be executed.

Tensors are safetensors files, one for each kind (weights, what the optimiser remembers of each of them,
their running mean); everything else stands in ``checkpoint.json``, which names the files and is written
last. Killed at any moment, a folder holds either the state before or the one after.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicomnode import durable, weights
from dicomnode.errors import InputError, ModelFormatError
from dicomnode.ml.training.history import EpochRecord
from dicomnode.weights import Tensors

CHECKPOINT_FILE = "checkpoint.json"
_FOLDER = "state"


class Progress(BaseModel):
    """How far a training is."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0  # that it has trained
    losses: tuple[float, ...] = ()  # of the steps of the epoch that has begun
    agreement: tuple[tuple[float, ...], ...] = ()  # (2, labels) voxels for the Dice of its batches
    history: tuple[EpochRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The whole state of a training between two steps."""

    digest: str  # of everything that decides the outcome
    progress: Progress
    tensors: Mapping[str, Tensors]  # by kind


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dicomnode checkpoint 1"] = "dicomnode checkpoint 1"
    digest: str
    progress: Progress
    sha256: dict[
        str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ]  # kind of tensors to digest of its file


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Put a checkpoint in the place of the one before.

    Raises
    ------
    SpoolFullError, ResourceError
        The disk has no room, or cannot be written; the checkpoint before is still there.
    """
    state = folder / _FOLDER
    with durable.translated(folder):
        state.mkdir(parents=True, exist_ok=True)
        named = {}
        for kind, tensors in checkpoint.tensors.items():
            part = state / f"{kind}{durable.PART_SUFFIX}"
            named[kind] = weights.write(part, tensors)
            part.replace(_path(state, kind, named[kind]))
        durable.sync_folder(state)
        file = _File(digest=checkpoint.digest, progress=checkpoint.progress, sha256=named)
        durable.keep(folder / CHECKPOINT_FILE, file.model_dump_json().encode(), mode=durable.PUBLIC)
        stay = {_path(state, kind, digest) for kind, digest in named.items()}
        for path in state.iterdir():
            if path not in stay:
                path.unlink(missing_ok=True)


def read(folder: Path, *, digest: str) -> Checkpoint | None:
    """Read a checkpoint; None where there is none.

    Raises
    ------
    InputError
        It belongs to another training, or is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        file = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"{path} is damaged; train with --no-resume to begin anew: {error.error_count()} faults."
        ) from error
    if file.digest != digest:
        raise InputError(
            f"{folder} holds an unfinished training with other data, another plan, seed or recipe. "
            "Use the same options to go on with it, or --no-resume to begin anew."
        )
    return Checkpoint(
        digest=file.digest,
        progress=file.progress,
        tensors={kind: _tensors(folder / _FOLDER, kind, sha256) for kind, sha256 in file.sha256.items()},
    )


def remove(folder: Path) -> None:
    """Take the checkpoint of a folder away, if there is one."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _tensors(state: Path, kind: str, sha256: str) -> Tensors:
    path = _path(state, kind, sha256)
    try:
        if weights.sha256_of(path) != sha256:
            raise InputError(f"{path} is damaged; train with --no-resume to begin anew.")
        return weights.read(path)
    except (OSError, ModelFormatError) as error:
        raise InputError(f"{path} cannot be read; train with --no-resume to begin anew: {error}") from error


def _path(state: Path, kind: str, sha256: str) -> Path:
    return state / f"{kind}-{sha256[:16]}.safetensors"
