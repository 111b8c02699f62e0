"""Weight files: safetensors in and out, digests, exact differences; the only code that opens them.

A weight file may have crossed a network, so nothing in it is believed before it is checked. The
library alone accepts duplicate keys, unknown tensors, absurd shapes and headers that cost
gigabytes, therefore :func:`parse_header` reads the header first, under limits, and the library
sees only bytes that passed. A file on disk is mapped, not copied into memory.
Layout: 8 bytes little-endian header length, a JSON header, the data.
"""

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as decode_safetensors
from safetensors.torch import save as encode_safetensors
from safetensors.torch import save_file as write_safetensors

from dicomnode import durable
from dicomnode.domain import Sha256
from dicomnode.errors import ModelFormatError

Tensors = dict[str, torch.Tensor]

MAXIMUM_HEADER_BYTES = 1024 * 1024
MAXIMUM_METADATA_BYTES = 4096
MAXIMUM_FILE_BYTES = 1024**3  # of what may have crossed a network
MAXIMUM_LOCAL_BYTES = 32 * 1024**3  # of a model that a person put on this machine
_MAXIMUM_RANK = 8
_MAXIMUM_NAME_LENGTH = 256
_LENGTH_BYTES = 8
_CHUNK_BYTES = 1024 * 1024

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
)
"""Data types that a weight file may hold, with the size of one element in bytes."""

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The same data types as torch names them."""
TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor as the header declares it; the range is in bytes after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What a set of weights consists of: ``(name, dtype, shape)``, sorted by name."""

    entries: tuple[tuple[str, str, tuple[int, ...]], ...]

    @property
    def digest(self) -> Sha256:
        """SHA-256 over the sorted lines ``name:dtype:shape``, the shape as ``2x3x3x3``."""
        lines = (f"{name}:{dtype}:{'x'.join(map(str, shape))}" for name, dtype, shape in self.entries)
        return Sha256(hashlib.sha256("\n".join(lines).encode()).hexdigest())


def schema_of(tensors: Mapping[str, torch.Tensor]) -> Schema:
    """Describe weights by name, data type and shape."""
    return Schema(
        entries=tuple(
            (name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in sorted(tensors.items())
        )
    )


def schema_from_header(infos: Iterable[TensorInfo]) -> Schema:
    """Describe a weight file from its header alone."""
    return Schema(entries=tuple(sorted((info.name, info.dtype, info.shape) for info in infos)))


def check_schema(found: Schema, expected: Schema) -> None:
    """Compare two schemas.

    Raises
    ------
    ModelFormatError
        They differ; the message counts the tensors and names the first of them.
    """
    if found == expected:
        return
    have, want = set(found.entries), set(expected.entries)
    surplus = sorted(have - want)[:3]
    lacking = sorted(want - have)[:3]
    raise ModelFormatError(
        f"The weights do not fit the network: {len(have - want)} unexpected tensors {surplus}, "
        f"{len(want - have)} lacking {lacking}."
    )


def parse_header(
    data: bytes | BinaryIO, *, size: int, maximum_bytes: int = MAXIMUM_FILE_BYTES
) -> tuple[TensorInfo, ...]:
    """Read and check the header of a weight file without touching its data.

    Parameters
    ----------
    data
        The whole file, or a binary stream at its first byte (read no further than the header).
    size
        Length of the whole file in bytes.
    maximum_bytes
        What a file may have at most.

    Returns
    -------
        The tensors in the order of their data, which they fill exactly.

    Raises
    ------
    ModelFormatError
        Header above 1 MiB, duplicate keys, metadata above 4 KiB, an unknown data type, a shape
        that disagrees with its range, or ranges with holes, overlaps or a remainder.
    """
    header = _read_header(data, size=size, maximum_bytes=maximum_bytes)
    entries = _load_json_object(header)
    _check_metadata(entries.pop("__metadata__", {}))
    infos = [_parse_entry(name, entry, largest=maximum_bytes) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.stop, info.name))
    _check_contiguous(infos, data_bytes=size - _LENGTH_BYTES - len(header))
    return tuple(infos)


def decode(data: bytes, *, schema: Schema | None = None) -> Tensors:
    """Turn the bytes of a weight file into tensors, after every check of :func:`parse_header`.

    Parameters
    ----------
    data
        The whole file.
    schema
        Names, types and shapes that the weights must have exactly; not checked when None.

    Raises
    ------
    ModelFormatError
        The bytes are no acceptable weight file, or their schema is another.
    """
    infos = parse_header(data, size=len(data))
    if schema is not None:
        check_schema(schema_from_header(infos), schema)
    try:
        return decode_safetensors(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ModelFormatError(f"The weights cannot be read: {error}.") from error


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Turn tensors into the bytes of a weight file; equal tensors and metadata give equal bytes."""
    plain = encode_safetensors(_contiguous(tensors))
    if not metadata:
        return plain
    # The library writes metadata in the random order of a hash map, so the header is put together here.
    length = int.from_bytes(plain[:_LENGTH_BYTES], "little")
    entries = json.loads(plain[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header = json.dumps(
        {"__metadata__": dict(sorted(metadata.items()))} | entries, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + plain[_LENGTH_BYTES + length :]


def read_header(path: Path, *, maximum_bytes: int = MAXIMUM_FILE_BYTES) -> tuple[TensorInfo, ...]:
    """Read and check the header of a weight file on disk; see :func:`parse_header`."""
    try:
        with path.open("rb") as stream:
            return parse_header(stream, size=path.stat().st_size, maximum_bytes=maximum_bytes)
    except OSError as error:
        raise ModelFormatError(f"The weight file {path.name} cannot be read: {error.strerror}.") from error


def read(path: Path, *, schema: Schema | None = None, maximum_bytes: int = MAXIMUM_FILE_BYTES) -> Tensors:
    """Read a weight file from disk; see :func:`decode` for the checks.

    The tensors lie in the file, which the system reads where they are used: replace the file, never write
    into it. A change of a tensor stays in memory.
    """
    infos = read_header(path, maximum_bytes=maximum_bytes)
    if schema is not None:
        check_schema(schema_from_header(infos), schema)
    try:
        with safe_open(path, framework="pt") as file:
            return {info.name: file.get_tensor(info.name) for info in infos}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelFormatError(f"The weights of {path.name} cannot be read: {error}.") from error


def write(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] = MappingProxyType({})
) -> Sha256:
    """Write a weight file so that it is either complete and on disk, or absent.

    Tensors are written from where they lie, without a second copy in memory; the bytes are those of
    :func:`encode`.

    Returns
    -------
        SHA-256 of the file.
    """
    if metadata:
        durable.keep(path, encode(tensors, metadata), mode=durable.PUBLIC)
        return sha256_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{uuid.uuid4().hex}{durable.PART_SUFFIX}")
    try:
        _write_library(part, _contiguous(tensors))
        part.chmod(durable.PUBLIC)
        digest = sha256_of(part)
        durable.publish(part, path)
    finally:
        part.unlink(missing_ok=True)
    return digest


def sha256_of(path: Path) -> Sha256:
    """Digest a file of any size."""
    with path.open("rb") as stream:
        return Sha256(hashlib.file_digest(stream, "sha256").hexdigest())


def delta(tuned: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> Tensors:
    """Subtract base from tuned weights in single precision; integer buffers are left out.

    Raises
    ------
    ModelFormatError
        The two do not have the same names, types and shapes.
    """
    check_schema(schema_of(tuned), schema_of(base))
    return {
        name: tensor.detach().float() - base[name].detach().float()
        for name, tensor in tuned.items()
        if tensor.is_floating_point()
    }


def apply(
    base: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], *, scale: float = 1.0
) -> Tensors:
    """Add ``scale * delta`` to base weights; tensors without a difference are copied.

    Returns
    -------
        New tensors of the types of ``base``; the sum is made in single precision.

    Raises
    ------
    ModelFormatError
        The difference names a tensor, or has a shape, that the base does not have.
    """
    for name, tensor in delta.items():
        if name not in base or base[name].shape != tensor.shape:
            raise ModelFormatError(f"The difference for tensor {name!r} does not fit the base weights.")
    return {
        name: (tensor.detach().float() + scale * delta[name].detach().float()).to(tensor.dtype)
        if name in delta
        else tensor.detach().clone()
        for name, tensor in base.items()
    }


def to_bf16(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Round floating-point tensors to bfloat16 for sending; the others are kept."""
    return {
        name: tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach().clone()
        for name, tensor in tensors.items()
    }


def is_finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether no element is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def is_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether two sets of weights are the same in every bit of every tensor."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def norm(tensors: Mapping[str, torch.Tensor]) -> float:
    """Give the L2 norm over all floating-point tensors together, summed in double precision."""
    squares = (
        float(torch.sum(tensor.detach().double() ** 2))
        for tensor in tensors.values()
        if tensor.is_floating_point()
    )
    return math.sqrt(math.fsum(squares))


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_library(path: Path, tensors: Tensors) -> None:
    try:
        write_safetensors(tensors, path)
    except SafetensorError as error:
        # The library turns a full disk into words; whoever writes must see the operating system's error.
        told = re.search(r"os error (\d+)", str(error))
        if told is None:
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def _read_header(data: bytes | BinaryIO, *, size: int, maximum_bytes: int) -> bytes:
    if not _LENGTH_BYTES < size <= maximum_bytes:
        raise ModelFormatError(
            f"A weight file of {size} bytes; more than 8 and at most {maximum_bytes} are allowed."
        )
    first = data[:_LENGTH_BYTES] if isinstance(data, bytes) else data.read(_LENGTH_BYTES)
    length = int.from_bytes(first, "little")
    if not 2 <= length <= min(MAXIMUM_HEADER_BYTES, size - _LENGTH_BYTES):
        raise ModelFormatError(
            f"The weight file declares a header of {length} bytes; at most 1 MiB, "
            f"and no more than the {size} bytes of the file, is allowed."
        )
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + length] if isinstance(data, bytes) else data.read(length)
    if len(header) != length:
        raise ModelFormatError("The weight file ends inside its header.")
    return header


def _load_json_object(header: bytes) -> dict[str, object]:
    try:
        entries = json.loads(
            header.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"The header of the weight file is no valid JSON: {error}.") from error
    if not isinstance(entries, dict):
        raise ModelFormatError("The header of the weight file is no JSON object.")
    return entries


def _refuse_constant(word: str) -> object:
    raise ModelFormatError(f"The header of the weight file holds {word}, which is no JSON.")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ModelFormatError("The header of the weight file names a key twice.")
    return entries


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFormatError("The metadata of the weight file is no table of strings.")
    size = len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    if size > MAXIMUM_METADATA_BYTES:
        raise ModelFormatError(
            f"The metadata of the weight file takes {size} bytes; at most 4 KiB is allowed."
        )


def _parse_entry(name: str, entry: object, *, largest: int) -> TensorInfo:
    if not name or len(name) > _MAXIMUM_NAME_LENGTH or not name.isprintable():
        raise ModelFormatError("The weight file holds a tensor without a usable name.")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFormatError(f"Tensor {name!r}: dtype, shape and data_offsets are expected, nothing else.")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ModelFormatError(
            f"Tensor {name!r} has the data type {dtype!r}; known are {', '.join(ITEM_BYTES)}."
        )
    shape = _whole_numbers(name, entry["shape"], maximum_length=_MAXIMUM_RANK, largest=largest)
    offsets = _whole_numbers(name, entry["data_offsets"], maximum_length=2, largest=largest)
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ModelFormatError(f"Tensor {name!r}: shape {shape} does not fill the byte range {offsets}.")
    return TensorInfo(name=name, dtype=dtype, shape=shape, start=offsets[0], stop=offsets[1])


def _whole_numbers(name: str, values: object, *, maximum_length: int, largest: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > maximum_length:
        raise ModelFormatError(f"Tensor {name!r}: a list of at most {maximum_length} numbers is expected.")
    # A zero hides a huge factor beside it, so each extent is bounded, not only the product.
    if not all(type(value) is int and 0 <= value <= largest for value in values):
        raise ModelFormatError(f"Tensor {name!r}: shape and offsets are whole numbers from 0 to {largest}.")
    return tuple(values)


def _check_contiguous(infos: list[TensorInfo], *, data_bytes: int) -> None:
    position = 0
    for info in infos:
        if info.start != position:
            raise ModelFormatError(
                f"Tensor {info.name!r} begins at byte {info.start}; {position} is expected."
            )
        position = info.stop
    if position != data_bytes:
        raise ModelFormatError(f"The tensors fill {position} bytes of {data_bytes} in the weight file.")
