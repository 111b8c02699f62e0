"""Who is calling: every request but enrolment carries a token for exactly that request."""

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from dicomnode.errors import UpdateRejectedError
from dicomnode.federation import messages, signing
from dicomnode.federation.ledger.nodes import NodeStatus
from dicomnode.federation.signing import RequestLine, TokenClaims
from dicomnode.federation.tools import Tools

JSON_LIMIT: Final = messages.MAXIMUM_JSON_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A site whose request was checked, and the body it signed."""

    node_id: str
    public_key: signing.PublicKey
    body: bytes


async def read_body(request: Request, *, limit: int) -> bytes:
    """Read a body up to a limit, whatever its Content-Length says.

    Raises
    ------
    UpdateRejectedError
        ``too_large``.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise UpdateRejectedError(
                f"the body is larger than the {limit} bytes taken here", code="too_large"
            )
    return bytes(body)


def tools_of(request: Request) -> Tools:
    """Find the aggregator's rooms."""
    tools: Tools = request.app.state.tools
    return tools


async def _identify(request: Request, *, limit: int) -> Caller:
    tools = tools_of(request)
    # In this order a stranger makes the server neither buffer a body nor write a row.
    node_id, public_key, claims = await run_in_threadpool(_check_token, request, tools)
    body = await read_body(request, limit=limit)
    signing.check_body(claims, body)
    fresh = await run_in_threadpool(
        tools.ledger.nodes.use_token,
        node_id,
        claims.token_id,
        keep_until=claims.expires_at + 2 * signing.CLOCK_TOLERANCE,
        now=tools.now(),
    )
    if not fresh:
        raise UpdateRejectedError("this token was used before", code="token_replayed")
    return Caller(node_id=node_id, public_key=public_key, body=body)


def _check_token(request: Request, tools: Tools) -> tuple[str, signing.PublicKey, TokenClaims]:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UpdateRejectedError("the request carries no bearer token", code="no_token")
    node = tools.ledger.nodes.by_key(signing.token_key_id(token))
    if node is None:
        raise UpdateRejectedError("no node has the key that the token names", code="unknown_key")
    line = RequestLine(audience=tools.name, method=request.method, path=request.url.path)
    claims = signing.check_token(token, public_key=node.public_key, line=line, now=tools.now())
    if claims.issuer != node.id:
        raise UpdateRejectedError("the token's key belongs to another node", code="bad_token")
    if node.status != NodeStatus.ACTIVE:
        raise UpdateRejectedError(f"node {node.id} was revoked; it has to enrol anew", code="node_revoked")
    return node.id, node.public_key, claims


async def _json_caller(request: Request) -> Caller:
    return await _identify(request, limit=JSON_LIMIT)


async def _chunk_caller(request: Request) -> Caller:
    return await _identify(request, limit=messages.CHUNK_BYTES)


JsonCaller = Annotated[Caller, Depends(_json_caller)]
ChunkCaller = Annotated[Caller, Depends(_chunk_caller)]
Rooms = Annotated[Tools, Depends(tools_of)]
