"""Errors as nodes see them: RFC 9457 problems with a stable ``code`` and whether a repeat may help."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dicomnode.errors import ResourceError, SpoolFullError, UpdateRejectedError

log = structlog.get_logger()

MEDIA_TYPE: Final = "application/problem+json"

_STATUS: Mapping[str, HTTPStatus] = MappingProxyType(
    {
        "no_token": HTTPStatus.UNAUTHORIZED,
        "bad_token": HTTPStatus.UNAUTHORIZED,
        "bad_key": HTTPStatus.UNAUTHORIZED,
        "unknown_key": HTTPStatus.UNAUTHORIZED,
        "token_expired": HTTPStatus.UNAUTHORIZED,
        "token_mismatch": HTTPStatus.UNAUTHORIZED,
        "token_replayed": HTTPStatus.UNAUTHORIZED,
        "wrong_audience": HTTPStatus.UNAUTHORIZED,
        "code_unknown": HTTPStatus.FORBIDDEN,
        "code_used": HTTPStatus.FORBIDDEN,
        "code_expired": HTTPStatus.FORBIDDEN,
        "node_revoked": HTTPStatus.FORBIDDEN,
        "not_found": HTTPStatus.NOT_FOUND,
        "blob_missing": HTTPStatus.CONFLICT,
        "wrong_offset": HTTPStatus.CONFLICT,
        "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "manifest_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too_many_uploads": HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""Every other code of a refusal is 422: understood, and refused for good."""

_RETRYABLE = frozenset({"token_expired", "blob_missing", "wrong_offset", "too_many_uploads"})
_RETRY_AFTER_S = "30"


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""
    app.add_exception_handler(UpdateRejectedError, _on_refusal)
    app.add_exception_handler(ResourceError, _on_shortage)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


def problem(
    status: int, code: str, detail: str, *, retryable: bool, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Make one problem response."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "code": code,
        "detail": detail[:1000],
        "retryable": retryable,
    }
    return JSONResponse(content, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def _on_refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, UpdateRejectedError):
        raise error
    request.app.state.counters.refusals.labels(error.code).inc()
    log.info("request refused", method=request.method, path=request.url.path, code=error.code)
    status = _STATUS.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY)
    retryable = error.code in _RETRYABLE
    return problem(status, error.code, str(error), retryable=retryable)


def _on_shortage(_request: Request, error: Exception) -> Response:
    log.warning("request answered with a shortage", reason=str(error))
    full = isinstance(error, SpoolFullError)
    status = HTTPStatus.INSUFFICIENT_STORAGE if full else HTTPStatus.SERVICE_UNAVAILABLE
    code = "storage_full" if full else "unavailable"
    headers = {"Retry-After": _RETRY_AFTER_S}
    return problem(status, code, "the aggregator cannot take this now", retryable=True, headers=headers)


def _on_http(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = HTTPStatus(error.status_code).name.lower()
    return problem(error.status_code, code, error.detail, retryable=False, headers=error.headers)


def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is there to read it


def _on_bug(_request: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    detail = "the aggregator failed on this request"
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail, retryable=True)
