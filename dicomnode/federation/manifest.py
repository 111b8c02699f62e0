"""The signed records of the federation: canonical JSON in, frozen values out, nothing guessed.

A manifest is the only object with meaning; a blob is a safetensors file named by its SHA-256.
Canonical means RFC 8785, so that one value has exactly one encoding and one signature.
"""

import json
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal, TypeVar
from uuid import UUID

import rfc8785
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
)

from dicomnode.domain import Sha256
from dicomnode.errors import UpdateRejectedError

MAXIMUM_MANIFEST_BYTES = 64 * 1024
UPDATE_VALIDITY = timedelta(days=30)
"""How long a node may keep an update in its outbox before it must be trained again."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), AfterValidator(Sha256)]
Family = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""The name of a model whose releases follow one another; safe in a path and in a URL."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
UpdateId = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
]
Count = Annotated[int, Field(ge=0, le=2**40)]
Encoding = Literal["bf16", "f32"]


class UpdateState(StrEnum):
    """How an update stands at the aggregator, in the order of its way."""

    ANNOUNCED = "announced"  # signed manifest and complete blob are there
    ACCEPTED = "accepted"  # passed admission; waits for a merge
    QUARANTINED = "quarantined"  # kept for a person to look at
    REJECTED = "rejected"
    MERGED = "merged"


class Record(BaseModel):
    """A part of a manifest: frozen, and every unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BlobRef(Record):
    """A blob by digest and exact size."""

    sha256: Digest
    size: Annotated[int, Field(gt=0, le=2**40)]


class BaseRelease(Record):
    """The release that a delta is counted from."""

    version: Annotated[int, Field(ge=1, le=2**40)]
    sha256: Digest


class ClassCases(Record):
    """How many cases a site annotated for one class."""

    code: Name
    cases: Count


class Metrics(Record):
    """The site's own validation, per class code, before and after its training."""

    before: dict[Name, float] = Field(default_factory=dict, max_length=512)
    after: dict[Name, float] = Field(default_factory=dict, max_length=512)


class UpdateManifest(Record):
    """What a site says of the weight update that it offers (``fed.update/1``)."""

    type: Literal["fed.update/1"] = "fed.update/1"
    update_id: UpdateId
    node_id: Name
    family: Family
    base: BaseRelease
    kind: Literal["delta"] = "delta"
    encoding: Encoding
    blob: BlobRef
    keys_digest: Digest  # of the base release, over sorted name:dtype:shape
    arch_id: Digest
    classes: Annotated[tuple[ClassCases, ...], Field(max_length=512)] = ()
    n_cases: Count
    n_steps: Count
    local_epochs: Count
    metrics: Metrics = Metrics()
    dp: None = None
    app: Name
    aud: Name
    iat: Count  # seconds since 1970, UTC
    exp: Count
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class ReleaseManifest(Record):
    """What the aggregator says of a release (``fed.release/1``)."""

    type: Literal["fed.release/1"] = "fed.release/1"
    family: Family
    version: Annotated[int, Field(ge=1, le=2**40)]
    parent_version: Annotated[int, Field(ge=1, le=2**40)] | None
    ring: Name
    blob: BlobRef
    keys_digest: Digest
    arch_id: Digest
    strategy: Name  # "published", "rollback" or a name in merging.STRATEGIES
    members: Count  # updates merged into this release
    rollback_to: Annotated[int, Field(ge=1, le=2**40)] | None = None
    created: Count  # seconds since 1970, UTC
    aggregator: Name


Manifest = TypeVar("Manifest", UpdateManifest, ReleaseManifest)


def canonical(value: JsonValue) -> bytes:
    """Encode a JSON value so that equal values give equal bytes (RFC 8785).

    Raises
    ------
    UpdateRejectedError
        ``not_canonical``: the value has no RFC 8785 form (NaN, an integer beyond 2^53).
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise UpdateRejectedError(
            f"value has no canonical JSON form: {error}", code="not_canonical"
        ) from error


def encode(manifest: UpdateManifest | ReleaseManifest) -> bytes:
    """Encode a manifest as the bytes that are signed."""
    return canonical(manifest.model_dump(mode="json"))


def decode(payload: bytes, kind: type[Manifest]) -> Manifest:
    """Read a manifest strictly: one encoding, known keys, bounded size.

    Raises
    ------
    UpdateRejectedError
        ``manifest_too_large`` above 64 KiB; ``manifest_malformed`` for anything that is not the record;
        ``not_canonical`` when the bytes are not the RFC 8785 form of their own value.
    """
    value = parse_json(payload, limit=MAXIMUM_MANIFEST_BYTES)
    try:
        manifest = kind.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UpdateRejectedError(
            f"{kind.__name__}: {where}: {first['msg']}", code="manifest_malformed"
        ) from error
    if canonical(value) != payload:
        raise UpdateRejectedError(
            f"{kind.__name__} is not in canonical form (RFC 8785)", code="not_canonical"
        )
    return manifest


def parse_json(data: bytes, *, limit: int) -> JsonValue:
    """Parse JSON with a size limit, refusing repeated keys and NaN.

    Raises
    ------
    UpdateRejectedError
        ``manifest_too_large`` above ``limit`` bytes, ``manifest_malformed`` for what is not strict JSON.
    """
    if len(data) > limit:
        raise UpdateRejectedError(
            f"JSON of {len(data)} bytes, at most {limit} are read", code="manifest_too_large"
        )
    try:
        value: JsonValue = json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UpdateRejectedError(f"not strict JSON: {error}", code="manifest_malformed") from error
    return value


def new_update_id(now: datetime, *, randomness: bytes) -> str:
    """Make a UUID version 7 (RFC 9562 section 5.7): ids sort by the time of their making.

    Parameters
    ----------
    now
        Aware; kept to the millisecond.
    randomness
        At least 10 bytes from a cryptographic source.
    """
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds << 80) | int.from_bytes(randomness[:10], "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return str(UUID(int=value))


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
