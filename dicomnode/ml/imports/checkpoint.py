"""Open a checkpoint of torch without believing it: in a process of its own, under limits, as plain tensors.

A checkpoint is a pickle, and a pickle is a program. It is therefore opened by a child process that has no
secrets in its environment and a bound on memory, time and disk. There torch's restricted reader makes only
tensors, plain values, and harmless stand-ins for what NumPy wrote beside them; anything else ends it. The
child leaves safetensors and a few facts as JSON, and nothing but these is read here.

``python -m dicomnode.ml.imports.checkpoint CHECKPOINT FOLDER`` is that child.
"""

import contextlib
import os
import re
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Annotated, Final

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from dicomnode import weights
from dicomnode.errors import DicomNodeError, ModelFormatError
from dicomnode.weights import Tensors

WEIGHTS_FILE: Final = "weights.safetensors"
FACTS_FILE: Final = "facts.json"
MIB: Final = 1024**2
_MAXIMUM_FACTS_BYTES: Final = 64 * 1024
_REFUSED: Final = 3
_KEPT_VARIABLES: Final = ("LD_LIBRARY_PATH", "SYSTEMROOT")
_HOLDERS: Final = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net")
_WRAPPERS: Final = ("_orig_mod.", "module.")  # of torch.compile and of data-parallel training
_NUMBERS: Final = re.compile("[bfiu][1248]")
_UNKNOWN_GLOBAL: Final = re.compile(r"GLOBAL (\S+)")

_Text = Annotated[str, Field(max_length=200)]
_Number = Annotated[int, Field(ge=0, le=2**31)]


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Facts:
    """What an nnU-Net checkpoint says besides its weights; None where it says nothing."""

    trainer: _Text | None = None
    configuration: _Text | None = None
    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] | None = None
    epoch: _Number | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint."""

    facts: Facts
    tensors: Tensors
    """Each tensor once, under its first name, without the prefixes of wrappers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What opening one checkpoint may take."""

    spare_bytes: int = 1024 * MIB  # of memory, besides twice the size of the file
    seconds: float = 120.0  # and one more for each 20 MiB

    def memory_bytes(self, size: int) -> int:
        """Say how much memory may be added while a file of this size is opened."""
        return self.spare_bytes + 2 * size

    def timeout_s(self, size: int) -> float:
        """Say how long a file of this size may take."""
        return self.seconds + size / (20 * MIB)


_FACTS: TypeAdapter[Facts] = TypeAdapter(Facts)


def read(path: Path, folder: Path, *, limits: Limits | None = None) -> Checkpoint:
    """Open a checkpoint in a child process.

    Parameters
    ----------
    path
        ``.pth`` or ``.pt`` of any source.
    folder
        Empty folder for what the child writes; the tensors lie in a file there.

    Raises
    ------
    ModelFormatError
        No checkpoint, a damaged one, one that asks for code to be run, or one that takes more memory or time
        than its size allows.
    """
    limits = limits or Limits()
    if not path.is_file():
        raise ModelFormatError(f"{path} is not there, or is no file.")
    size = path.stat().st_size
    memory = limits.memory_bytes(size)
    # -I: no module from the working folder, no PYTHON* variable, no site folder of the user.
    command = [sys.executable, "-I", "-m", __name__, str(path.resolve()), str(folder.resolve()), str(memory)]
    try:
        done = subprocess.run(
            command,
            env=environment(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=limits.timeout_s(size),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFormatError(
            f"{path.name} was not read after {limits.timeout_s(size):.0f} seconds; a checkpoint of its size "
            "takes a few."
        ) from error
    if done.returncode:
        raise ModelFormatError(f"{path.name} {_reason(done, memory)}.")
    return _collect(folder, maximum_bytes=size + MIB)


def convert(path: Path, folder: Path) -> None:
    """Write weights and facts of a checkpoint into a folder; the work of the child.

    Raises
    ------
    ModelFormatError
        See :func:`read`; the message is the rest of a sentence that begins with the name of the file.
    """
    loaded = _load(path)
    tensors = _plain(_state_of(loaded), maximum_bytes=path.stat().st_size)
    weights.write(folder / WEIGHTS_FILE, tensors)
    (folder / FACTS_FILE).write_bytes(_FACTS.dump_json(_facts_of(loaded)))


class _Dtype:
    """Stands in for ``numpy.dtype``: keeps the kind and size of a number, and nothing else."""

    def __init__(self, code: object, *_: object) -> None:
        self.format = code if isinstance(code, str) and _NUMBERS.fullmatch(code) else None

    def __setstate__(self, state: object) -> None:
        """Byte order, fields and flags; only numbers of the usual order are read."""


class _Array:
    """Stands in for ``numpy.ndarray``: an array beside the weights is not needed, and dropped."""

    def __setstate__(self, state: object) -> None:
        """Shape and values."""


_STRUCT_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {"b1": "?", "f2": "e", "f4": "f", "f8": "d"}
    | {f"i{size}": code for size, code in zip((1, 2, 4, 8), "bhiq", strict=True)}
    | {f"u{size}": code for size, code in zip((1, 2, 4, 8), "BHIQ", strict=True)}
)


def _scalar(dtype: object, data: object) -> float | int | bool | None:
    """Stands in for NumPy's own function that makes one number."""
    code = _STRUCT_CODES.get(dtype.format or "") if isinstance(dtype, _Dtype) else None
    if code is None or not isinstance(data, bytes) or len(data) != struct.calcsize(f"<{code}"):
        return None
    [value] = struct.unpack(f"<{code}", data)
    number: float | int | bool = value
    return number


def _reconstruct(*_: object) -> _Array:
    """Stands in for NumPy's own function that makes an empty array."""
    return _Array()


_STAND_INS: Final[Sequence[tuple[Callable[..., object], str]]] = (
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
    (_scalar, "numpy._core.multiarray.scalar"),  # NumPy 2
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
)
"""What may be named in a checkpoint besides torch's own tensors; never NumPy's code itself."""

_BROKEN = (
    UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
)


def _load(path: Path) -> object:
    is_zip = zipfile.is_zipfile(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals([*_STAND_INS]):
        warnings.simplefilter("ignore")
        try:
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except _BROKEN as error:
            raise ModelFormatError(_refusal(error)) from error
    return loaded


def _refusal(error: Exception) -> str:
    named = _UNKNOWN_GLOBAL.search(str(error))
    if named:
        return (
            f"names {named.group(1)!r}, which no weights need: it could run code, so it is not opened. If "
            "you trust its source, save the bare weights there again, and import those"
        )
    if "TorchScript" in str(error):
        return "is a TorchScript program, not weights; export the state dict"
    if "not enough memory" in str(error) or "Cannot allocate" in str(error):
        raise MemoryError from error
    return f"is no checkpoint of torch, or a damaged one ({type(error).__name__})"


def _state_of(loaded: object) -> Mapping[str, torch.Tensor]:
    """Find the weights: at the top, or under one of the usual names."""
    if isinstance(loaded, Mapping):
        for candidate in (loaded, *(loaded[key] for key in _HOLDERS if key in loaded)):
            if _is_state(candidate):
                state: Mapping[str, torch.Tensor] = candidate
                return state
    raise ModelFormatError(f"holds no table of weights; looked at the top and under {', '.join(_HOLDERS)}")


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items())
    )


def _plain(state: Mapping[str, torch.Tensor], *, maximum_bytes: int) -> Tensors:
    """Keep each tensor once, under its first name, after a look at what it is."""
    kept: Tensors = {}
    seen: set[tuple[object, ...]] = set()
    total = 0
    for name, tensor in state.items():
        _check_tensor(name, tensor)
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        total += tensor.numel() * tensor.element_size()
        if total > maximum_bytes:
            raise ModelFormatError("claims tensors that are larger than the file")
        kept[_unwrapped(name)] = tensor.detach()
    return {name: _alone(tensor) for name, tensor in kept.items()}


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not is_plain or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ModelFormatError(f"holds {name!r}, which is no plain tensor")
    if tensor.dtype not in weights.DTYPE_NAMES:
        raise ModelFormatError(
            f"holds {name!r} of the type {tensor.dtype}; weights are floating-point numbers"
        )


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    # A view of something larger would take its neighbours into the file, or be refused for sharing.
    is_whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format)


def _facts_of(loaded: object) -> Facts:
    top = loaded if isinstance(loaded, Mapping) else {}
    inner = top.get("init_args")
    arguments: Mapping[object, object] = inner if isinstance(inner, Mapping) else {}
    axes = top.get("inference_allowed_mirroring_axes")
    try:
        return Facts(
            trainer=_text(top.get("trainer_name")),
            configuration=_text(arguments.get("configuration")),
            mirror_axes=tuple(axes) if isinstance(axes, tuple | list) else None,
            epoch=epoch if isinstance(epoch := top.get("current_epoch"), int) else None,
        )
    except ValidationError as error:
        raise ModelFormatError("says nonsense of how it was trained") from error


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def environment() -> dict[str, str]:
    """Give the variables that the child sees: where libraries lie, and no secret of this process."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _reason(done: subprocess.CompletedProcess[bytes], memory: int) -> str:
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    words = "".join(filter(str.isprintable, lines[-1]))[:600] if lines else ""
    if done.returncode == _REFUSED and words:
        return words
    if done.returncode < 0 or "MemoryError" in words:
        return (
            f"takes more than {memory // MIB} MiB of memory to read, far more than a checkpoint of its size"
        )
    return f"cannot be read: {words or f'the reader ended with {done.returncode}'}"


def _collect(folder: Path, *, maximum_bytes: int) -> Checkpoint:
    facts_path = folder / FACTS_FILE
    try:
        if facts_path.stat().st_size > _MAXIMUM_FACTS_BYTES:
            raise ModelFormatError("The reader of checkpoints wrote more facts than there are.")
        facts = _FACTS.validate_json(facts_path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ModelFormatError("The reader of checkpoints left no usable facts.") from error
    return Checkpoint(facts=facts, tensors=weights.read(folder / WEIGHTS_FILE, maximum_bytes=maximum_bytes))


def _limit_this_process(memory: int, largest_file: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    for limit, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory),
        (resource.RLIMIT_FSIZE, largest_file),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def main(arguments: Sequence[str]) -> int:
    """Run the child: the checkpoint, the folder to write to, and the bytes of memory that may be added."""
    path, folder = Path(arguments[0]), Path(arguments[1])
    _limit_this_process(int(arguments[2]), largest_file=path.stat().st_size + MIB)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            convert(path, folder)
        except DicomNodeError as error:
            print(error, file=sys.stderr)
            return _REFUSED
        except MemoryError:
            print("MemoryError", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
