"""What nodes and the aggregator say to each other besides manifests; strict on both sides."""

from datetime import datetime
from typing import Annotated, Final, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from dicomnode.domain import Sha256
from dicomnode.errors import UpdateRejectedError
from dicomnode.federation import manifest
from dicomnode.federation.manifest import Digest, Family, Name, Record, UpdateId, UpdateState

MAXIMUM_JSON_BYTES: Final = 256 * 1024
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""Bytes of an upload that travel in one request; a cut connection costs at most so many."""

NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Text = Annotated[str, StringConstraints(max_length=128)]


class EnrolRequest(Record):
    """A site asks for admission with a one-time code."""

    code: _Text
    node_name: NodeName
    public_key: _Text
    proof: _Text  # signature over enrolment_statement()


class Policy(Record):
    """What a node must know of this aggregator."""

    aggregator: Name
    time: datetime
    strategy: Name
    maximum_blob_bytes: int
    chunk_bytes: int
    maximum_staleness: int
    encodings: tuple[manifest.Encoding, ...]


class EnrolAnswer(Record):
    """A site was admitted; it pins the aggregator's key from now on."""

    node_id: Name
    node_name: NodeName
    aggregator: Name
    public_key: _Text
    policy: Policy


class UploadRequest(Record):
    """A site is about to send a blob."""

    sha256: Digest
    size: Annotated[int, Field(gt=0, le=2**40)]


class UpdateStatus(Record):
    """How an update stands, in words for the site's administrator."""

    update_id: UpdateId
    state: UpdateState
    code: str  # empty, or the stable reason of a refusal
    reason: str
    merged_version: int | None


class HeartbeatRequest(Record):
    """A site is alive, and which releases it runs."""

    app: Name
    releases: Annotated[dict[Family, int], Field(max_length=256)]


class HeartbeatAnswer(Record):
    """The aggregator's clock and the head of its audit chain, which the site keeps as a witness."""

    time: datetime
    audit_sequence: int
    audit_hash: Digest


class Problem(Record):
    """An error as the aggregator tells it (RFC 9457), with a stable code."""

    type: str
    title: str
    status: int
    code: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")]
    detail: Annotated[str, StringConstraints(max_length=2000)]
    retryable: bool


Message = TypeVar("Message", bound=Record)


def parse(body: bytes, kind: type[Message], *, limit: int) -> Message:
    """Read a message strictly.

    Raises
    ------
    UpdateRejectedError
        ``message_malformed``; the message names the field, never its value.
    """
    manifest.parse_json(body, limit=limit)  # refuses repeated keys
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        raise UpdateRejectedError(f"{where}: {first['msg']}", code="message_malformed") from error


def enrolment_statement(*, code_sha256: Sha256, node_name: str, public_key: str) -> bytes:
    """Make the bytes that a site signs to show that it holds the private key."""
    return manifest.canonical(
        {
            "type": "fed.enrol/1",
            "code_sha256": code_sha256,
            "node_name": node_name,
            "public_key": public_key,
        }
    )
