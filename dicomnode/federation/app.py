"""The aggregator's HTTP border: every route parses, asks the ledger, answers; the work is in ``intake``."""

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse
from prometheus_client import generate_latest

from dicomnode.domain import Sha256
from dicomnode.errors import UpdateRejectedError
from dicomnode.federation import callers, manifest, merging, messages, problems, signing
from dicomnode.federation.callers import ChunkCaller, JsonCaller, Rooms
from dicomnode.federation.ledger.updates import UpdateRow
from dicomnode.federation.ledger.uploads import UploadRow
from dicomnode.federation.manifest import Record, UpdateManifest
from dicomnode.federation.messages import UpdateStatus
from dicomnode.federation.metrics import Counters
from dicomnode.federation.tools import Tools

log = structlog.get_logger()
router = APIRouter()

_NODE_ID_BYTES: Final = 8
_FOR_EVER = "private, max-age=31536000, immutable"


def create_app(tools: Tools, *, wake: Callable[[], None], ca_file: Path) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    wake
        Called when an update has been announced.
    ca_file
        The certificate authority's certificate, given to nodes that know its fingerprint.
    """
    app = FastAPI(title="dicomnode aggregator", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.tools = tools
    app.state.wake = wake
    app.state.ca_file = ca_file
    app.state.counters = Counters(tools.ledger)
    problems.install(app)
    app.include_router(router)
    return app


@router.get("/healthz")
def healthz(rooms: Rooms) -> PlainTextResponse:
    """Answer while the ledger answers."""
    rooms.ledger.audit.head()
    return PlainTextResponse("ok")


@router.get("/metrics")
def metrics(request: Request) -> PlainTextResponse:
    """Give counts to Prometheus; nothing in them belongs to one site."""
    text = generate_latest(request.app.state.counters.registry).decode()
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@router.get("/ca.pem")
def ca_certificate(request: Request) -> Response:
    """Give the CA certificate; a node trusts it only if its fingerprint is the one it was told."""
    pem: bytes = request.app.state.ca_file.read_bytes()
    return Response(pem, media_type="application/x-pem-file")


@router.post("/v1/enrol")
async def enrol(request: Request, rooms: Rooms) -> Response:
    """Admit a site that holds a one-time code and a key."""
    body = await callers.read_body(request, limit=callers.JSON_LIMIT)
    return await run_in_threadpool(_enrol, body, rooms)


@router.get("/v1/policy")
def policy(_caller: JsonCaller, rooms: Rooms) -> Response:
    """Tell a node what it must know."""
    return _json(_policy(rooms))


@router.get("/v1/channels/{ring}/{family}")
def channel(
    ring: str,
    family: str,
    _caller: JsonCaller,
    rooms: Rooms,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Give the signed manifest of the newest release."""
    head = rooms.ledger.versions.head(family, ring=ring)
    if head is None:
        raise UpdateRejectedError(f"there is no release of {family!r} in ring {ring!r}", code="not_found")
    etag = f'"sha256-{head.manifest_sha256}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if if_none_match == etag:
        return Response(status_code=304, headers=headers)
    return Response(head.envelope, media_type="application/json", headers=headers)


@router.api_route("/v1/blobs/{sha256}", methods=["GET", "HEAD"])
def blob(
    sha256: str, _caller: JsonCaller, rooms: Rooms, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Give the bytes of a release, from any offset; the updates of other sites are not to be had."""
    path = rooms.blobs.path_of(sha256)
    if not rooms.ledger.uploads.is_released(Sha256(sha256)):
        raise UpdateRejectedError(f"no release has the blob {sha256}", code="not_found")
    # Our own ETag: the library's would come from the file's date, and differ on every copy.
    headers = {"ETag": f'"sha256-{sha256}"', "Cache-Control": _FOR_EVER}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


@router.post("/v1/uploads")
def open_upload(caller: JsonCaller, rooms: Rooms) -> Response:
    """Begin an upload, or tell how far it is."""
    wanted = messages.parse(caller.body, messages.UploadRequest, limit=callers.JSON_LIMIT)
    if wanted.size > rooms.rules.maximum_blob_bytes:
        raise UpdateRejectedError(
            f"{wanted.size} bytes are offered, at most {rooms.rules.maximum_blob_bytes} are taken",
            code="too_large",
        )
    rooms.blobs.check_room(wanted.size)
    upload = rooms.ledger.uploads.open(
        caller.node_id, Sha256(wanted.sha256), size=wanted.size, now=rooms.now()
    )
    return _progress(upload, status=200 if upload.is_complete else 201)


@router.head("/v1/uploads/{sha256}")
def find_upload(sha256: str, caller: JsonCaller, rooms: Rooms) -> Response:
    """Tell how far an upload is."""
    return _progress(_upload(sha256, caller.node_id, rooms), status=200)


@router.patch("/v1/uploads/{sha256}")
def continue_upload(
    request: Request,
    sha256: str,
    caller: ChunkCaller,
    rooms: Rooms,
    upload_offset: Annotated[int | None, Header()] = None,
) -> Response:
    """Take the next bytes of an upload; the last ones turn it into a blob."""
    upload = _upload(sha256, caller.node_id, rooms)
    if upload.is_complete:
        return _progress(upload, status=204)
    if upload_offset != upload.received:
        return _wrong_offset(upload)
    stop = upload.received + len(caller.body)
    if stop > upload.size:
        raise UpdateRejectedError(f"{stop} bytes came, {upload.size} were declared", code="too_large")
    request.app.state.counters.uploaded_bytes.inc(len(caller.body))
    return _take_chunk(upload, caller, rooms)


@router.post("/v1/updates")
def announce(
    request: Request,
    caller: JsonCaller,
    rooms: Rooms,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Take the signed manifest of an update whose blob is here; repeating it gives the present state."""
    payload = signing.unseal(caller.body, payload_type=signing.UPDATE_TYPE, public_key=caller.public_key)
    claim = manifest.decode(payload, UpdateManifest)
    if idempotency_key != claim.update_id:
        raise UpdateRejectedError(
            "Idempotency-Key must be the update id of the manifest", code="idempotency_key"
        )
    _check_claim(claim, caller.node_id, rooms)
    row = rooms.ledger.updates.announce(
        claim,
        envelope=caller.body,
        manifest_sha256=Sha256(hashlib.sha256(payload).hexdigest()),
        now=rooms.now(),
    )
    log.info("update announced", update=row.update_id, node=row.node_id, state=row.state)
    request.app.state.wake()
    return _json(_status(row), status=202)


@router.get("/v1/updates/{update_id}")
def update_state(update_id: str, caller: JsonCaller, rooms: Rooms) -> Response:
    """Tell a site how its update stands, and why."""
    row = rooms.ledger.updates.get(update_id)
    if row is None or row.node_id != caller.node_id:
        raise UpdateRejectedError(f"this node announced no update {update_id!r:.50}", code="not_found")
    return _json(_status(row))


@router.post("/v1/heartbeat")
def heartbeat(caller: JsonCaller, rooms: Rooms) -> Response:
    """Note that a site is alive; make it a witness of the audit chain."""
    beat = messages.parse(caller.body, messages.HeartbeatRequest, limit=callers.JSON_LIMIT)
    rooms.ledger.nodes.record_app(caller.node_id, beat.app)
    head = rooms.ledger.audit.head()
    return _json(
        messages.HeartbeatAnswer(time=rooms.now(), audit_sequence=head.sequence, audit_hash=head.hash)
    )


def _enrol(body: bytes, rooms: Tools) -> Response:
    wanted = messages.parse(body, messages.EnrolRequest, limit=callers.JSON_LIMIT)
    public_key = signing.check_public_key(wanted.public_key)
    statement = messages.enrolment_statement(
        code_sha256=Sha256(hashlib.sha256(wanted.code.encode()).hexdigest()),
        node_name=wanted.node_name,
        public_key=public_key,
    )
    signing.check_signature(statement, wanted.proof, public_key)
    node = rooms.ledger.nodes.enrol(
        wanted.code,
        node_name=wanted.node_name,
        public_key=public_key,
        node_id=f"n-{secrets.token_hex(_NODE_ID_BYTES)}",
        now=rooms.now(),
    )
    log.info("node enrolled", node=node.id, name=node.name, key=signing.fingerprint(public_key))
    return _json(
        messages.EnrolAnswer(
            node_id=node.id,
            node_name=node.name,
            aggregator=rooms.name,
            public_key=signing.public_key_of(rooms.key),
            policy=_policy(rooms),
        ),
        status=201,
    )


def _policy(rooms: Tools) -> messages.Policy:
    return messages.Policy(
        aggregator=rooms.name,
        time=rooms.now(),
        strategy=rooms.rules.strategy,
        maximum_blob_bytes=rooms.rules.maximum_blob_bytes,
        chunk_bytes=messages.CHUNK_BYTES,
        maximum_staleness=merging.MAXIMUM_STALENESS,
        encodings=("bf16", "f32"),
    )


def _upload(sha256: str, node_id: str, rooms: Tools) -> UploadRow:
    upload = rooms.ledger.uploads.find(node_id, Sha256(sha256))
    if upload is None:
        raise UpdateRejectedError("this node began no such upload", code="not_found")
    if not upload.is_complete and rooms.blobs.part_size(node_id, upload.sha256) < upload.received:
        rooms.ledger.uploads.abandon(node_id, upload.sha256)  # the part was lost: begin anew
        raise UpdateRejectedError("this upload was lost; begin it again", code="not_found")
    return upload


def _take_chunk(upload: UploadRow, caller: callers.Caller, rooms: Tools) -> Response:
    start, stop = upload.received, upload.received + len(caller.body)
    rooms.blobs.write_part(caller.node_id, upload.sha256, offset=start, data=caller.body)
    if stop < upload.size:
        place = {"start": start, "stop": stop}
        if not rooms.ledger.uploads.advance(caller.node_id, upload.sha256, **place, now=rooms.now()):
            return _wrong_offset(_upload(upload.sha256, caller.node_id, rooms))
    elif not rooms.blobs.finish(caller.node_id, upload.sha256):
        rooms.ledger.uploads.abandon(caller.node_id, upload.sha256)
        raise UpdateRejectedError(
            "the bytes have another SHA-256 than declared; the upload was discarded", code="digest_mismatch"
        )
    else:
        rooms.ledger.uploads.finish(caller.node_id, upload.sha256, size=upload.size, now=rooms.now())
        log.info("blob received", node=caller.node_id, sha256=upload.sha256, bytes=upload.size)
    return Response(status_code=204, headers={"Upload-Offset": str(stop)})


def _check_claim(claim: UpdateManifest, node_id: str, rooms: Tools) -> None:
    if claim.node_id != node_id:
        raise UpdateRejectedError("the manifest names another node than its sender", code="wrong_node")
    if claim.aud != rooms.name:
        raise UpdateRejectedError(
            f"the update is meant for {claim.aud!r}, not {rooms.name!r}", code="wrong_audience"
        )
    _check_validity(claim, rooms)
    if claim.n_cases < 1 or claim.n_steps < 1:
        raise UpdateRejectedError("the update reports no cases or no training steps", code="no_work")
    family = rooms.ledger.versions.family(claim.family)
    base = rooms.ledger.versions.get(claim.family, claim.base.version)
    if family is None or base is None or base.blob.sha256 != claim.base.sha256:
        raise UpdateRejectedError(
            f"{claim.family!r} has no release {claim.base.version} with these weights", code="unknown_base"
        )
    if (claim.arch_id, claim.keys_digest) != (family.arch_id, family.schema.digest):
        raise UpdateRejectedError(
            f"the update is for another network than that of {claim.family!r}", code="wrong_architecture"
        )


def _check_validity(claim: UpdateManifest, rooms: Tools) -> None:
    now, tolerance = rooms.now().timestamp(), signing.CLOCK_TOLERANCE.total_seconds()
    longest = manifest.UPDATE_VALIDITY.total_seconds()
    if not claim.iat - tolerance <= now <= claim.exp + tolerance or claim.exp - claim.iat > longest:
        raise UpdateRejectedError(
            f"the update is valid from {claim.iat} to {claim.exp}, the clock here says {int(now)}",
            code="update_expired",
        )


def _wrong_offset(upload: UploadRow) -> Response:
    detail = f"the upload continues at byte {upload.received}"
    headers = {"Upload-Offset": str(upload.received)}
    return problems.problem(409, "wrong_offset", detail, retryable=True, headers=headers)


def _progress(upload: UploadRow, *, status: int) -> Response:
    headers = {
        "Upload-Offset": str(upload.received),
        "Upload-Length": str(upload.size),
        "Cache-Control": "no-store",
    }
    return Response(status_code=status, headers=headers)


def _status(row: UpdateRow) -> UpdateStatus:
    return UpdateStatus(
        update_id=row.update_id,
        state=row.state,
        code=row.code,
        reason=row.reason,
        merged_version=row.merged_version,
    )


def _json(record: Record, *, status: int = 200) -> Response:
    return Response(record.model_dump_json(), status_code=status, media_type="application/json")
