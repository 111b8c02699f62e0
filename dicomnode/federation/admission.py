"""May an update's weights enter a merge? Cheap checks first; every refusal has a stable code.

Nothing here opens files or sockets: bytes and the facts to hold them against go in, tensors come out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import Final

import torch

from dicomnode import weights
from dicomnode.errors import ModelFormatError, UpdateRejectedError
from dicomnode.federation.manifest import BlobRef, Encoding
from dicomnode.weights import Schema, TensorInfo, Tensors

QUARANTINE_CODES: Final = frozenset({"norm_outlier"})
"""Refusals that a person should look at: the update is kept, and not merged."""

MINIMUM_HISTORY: Final = 3
"""Accepted updates below which their median says nothing yet."""

_DTYPES: Mapping[Encoding, str] = MappingProxyType({"bf16": "BF16", "f32": "F32"})
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What an update is held against."""

    blob: BlobRef  # as the signed manifest declares it
    encoding: Encoding
    schema: Schema  # of the family's releases
    maximum_bytes: int
    norm_bound: float  # see norm_bound()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An update that passed every check."""

    delta: Tensors  # float tensors of the family only, shapes as in its schema
    norm: float  # L2 over all of it


def norm_bound(history: Sequence[float], *, head_norm: float, factor: float) -> float:
    """Say how large an update may be.

    Parameters
    ----------
    history
        L2 norms of the updates accepted last; the order does not matter.
    head_norm
        L2 norm of the newest release: with fewer than three accepted updates, no single one may be larger
        than the model itself.
    factor
        How many times the median is still believed (federation design, poisoning pipeline, step 2).
    """
    if len(history) < MINIMUM_HISTORY:
        return head_norm
    return factor * median(history)


def check(data: bytes, expected: Expectation) -> Admitted:
    """Check the blob of an update, cheapest question first.

    Parameters
    ----------
    data
        The whole file; its SHA-256 was compared when it arrived.

    Raises
    ------
    UpdateRejectedError
        ``too_large``, ``wrong_size``, ``malformed_file``, ``empty_update``, ``unexpected_tensor``,
        ``integer_tensor``, ``wrong_dtype``, ``wrong_shape``, ``not_finite``, ``zero_update`` or
        ``norm_outlier`` (see :data:`QUARANTINE_CODES`).
    """
    _check_size(len(data), expected)
    try:
        infos = weights.parse_header(data, size=len(data))
        _check_tensors(infos, expected)
        delta = weights.decode(data)
    except ModelFormatError as error:
        raise UpdateRejectedError(
            f"the update is no acceptable file: {error}", code="malformed_file"
        ) from error
    return Admitted(delta=delta, norm=_check_values(delta, bound=expected.norm_bound))


def check_merged(merged: Mapping[str, torch.Tensor]) -> None:
    """Check weights that are about to be released, whatever they were made from.

    Raises
    ------
    UpdateRejectedError
        ``merged_not_finite``, or ``merged_variance`` for a running variance that is not positive.
    """
    if not weights.is_finite(merged):
        raise UpdateRejectedError("the merged weights are not finite", code="merged_not_finite")
    for name, tensor in merged.items():
        if name.endswith("running_var") and not bool((tensor > 0).all()):
            raise UpdateRejectedError(
                f"the merge would make the running variance {name} zero or negative", code="merged_variance"
            )


def _check_size(size: int, expected: Expectation) -> None:
    if size > expected.maximum_bytes:
        raise UpdateRejectedError(
            f"the update has {size} bytes, at most {expected.maximum_bytes} are taken", code="too_large"
        )
    if size != expected.blob.size:
        raise UpdateRejectedError(
            f"the update has {size} bytes, its manifest says {expected.blob.size}", code="wrong_size"
        )


def _check_tensors(infos: Sequence[TensorInfo], expected: Expectation) -> None:
    # A subset is enough: a site that froze layers sends nothing for them.
    if not infos:
        raise UpdateRejectedError("the update holds no tensor", code="empty_update")
    known = {name: (dtype, shape) for name, dtype, shape in expected.schema.entries}
    wanted = _DTYPES[expected.encoding]
    for info in infos:
        if info.name not in known:
            raise UpdateRejectedError(f"the model has no tensor {info.name!r}", code="unexpected_tensor")
        dtype, shape = known[info.name]
        if dtype not in _FLOATS:
            raise UpdateRejectedError(
                f"tensor {info.name!r} is a {dtype} buffer, which no update may change", code="integer_tensor"
            )
        if info.dtype != wanted:
            raise UpdateRejectedError(
                f"tensor {info.name!r} is {info.dtype}, the manifest says {wanted}", code="wrong_dtype"
            )
        if info.shape != shape:
            raise UpdateRejectedError(
                f"tensor {info.name!r} has shape {info.shape}, expected {shape}", code="wrong_shape"
            )


def _check_values(delta: Tensors, *, bound: float) -> float:
    if not weights.is_finite(delta):
        raise UpdateRejectedError("the update holds NaN or infinity", code="not_finite")
    norm = weights.norm(delta)
    if norm == 0.0:
        raise UpdateRejectedError("the update changes nothing", code="zero_update")
    if norm > bound:
        raise UpdateRejectedError(
            f"the update's norm is {norm:.4g}, at most {bound:.4g} is believed; a person will look at it",
            code="norm_outlier",
        )
    return norm
