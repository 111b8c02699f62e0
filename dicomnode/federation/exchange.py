"""HTTP as a node speaks it with an aggregator. Faults become passing or definite errors here.

httpx 0.28 may be its last release; whatever follows it is put in at this place.
"""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import httpx

from dicomnode import __version__
from dicomnode.errors import AggregatorError, ConfigError, SpoolFullError, UpdateRejectedError
from dicomnode.federation import messages

_GOOD = frozenset({200, 201, 202, 204, 304})
_PASSING = frozenset({408, 425, 429})
_LONGEST_WAIT_S: Final = 10.0
_READ_BYTES: Final = 256 * 1024
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response, read to its end and no longer than a message may be."""

    status: int
    headers: Mapping[str, str]  # httpx.Headers: names in any case
    body: bytes


class PassingError(AggregatorError):
    """A fault that a repeated call may not meet; ``retry_after_s`` as the aggregator asked for."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def connect(url: str, context: ssl.SSLContext) -> httpx.Client:
    """Prepare a connection; nothing is sent yet, and redirects are not followed.

    Raises
    ------
    ConfigError
        The URL is not https, or no URL.
    """
    if not url.startswith("https://"):
        raise ConfigError(f"the aggregator's address must begin with https://, not {url!r}")
    try:
        return httpx.Client(
            base_url=url,
            verify=context,
            timeout=httpx.Timeout(30.0, connect=10.0),
            headers={"User-Agent": f"dicomnode/{__version__}"},
        )
    except httpx.InvalidURL as error:
        raise ConfigError(f"the aggregator's address {url!r} is no URL") from error


@contextmanager
def stream(
    http: httpx.Client, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
) -> Iterator[httpx.Response]:
    """Send a request and leave the body of its answer to be read inside the block.

    Raises
    ------
    PassingError
        No connection, a certificate that is not trusted, or a cut in the middle.
    """
    try:
        with http.stream(method, path, content=body, headers=headers) as response:
            yield response
    except httpx.RequestError as error:
        raise PassingError(f"{method} {http.base_url}: {type(error).__name__}: {error}") from error


def send(
    http: httpx.Client, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
) -> Answer:
    """Send a request and read its answer, whatever its status; errors as for :func:`stream`."""
    with stream(http, method, path, body=body, headers=headers) as response:
        return read(response)


def read(response: httpx.Response) -> Answer:
    """Read an answer that must be short.

    Raises
    ------
    PassingError
        It is longer than any message: not our aggregator's.
    """
    body = bytearray()
    for chunk in response.iter_bytes(_READ_BYTES):
        body += chunk
        if len(body) > messages.MAXIMUM_JSON_BYTES:
            raise PassingError("the answer is longer than any message of an aggregator")
    return Answer(status=response.status_code, headers=response.headers, body=bytes(body))


def write(response: httpx.Response, part: Path, *, append: bool, limit: int) -> None:
    """Write a body to disk as it arrives; a cut leaves what has arrived.

    Raises
    ------
    UpdateRejectedError
        ``too_large``: more than ``limit`` bytes.
    SpoolFullError
        The disk took no more.
    """
    written = 0
    try:
        with part.open("ab" if append else "wb") as file:
            for chunk in response.iter_raw(_READ_BYTES):
                written += len(chunk)
                if written > limit:
                    raise UpdateRejectedError("the blob is longer than its manifest says", code="too_large")
                file.write(chunk)
    except OSError as error:
        raise SpoolFullError(f"the release could not be written: {error.strerror}") from error


def accepted(answer: Answer) -> Answer:
    """Pass an answer on, or raise what it means: the outbox repeats on one, gives up on the other.

    A 409 with an offset is an answer too: the upload goes on from there.

    Raises
    ------
    PassingError
        5xx, 3xx, 408, 425, 429, or a problem that calls itself retryable.
    UpdateRejectedError
        Every other refusal, with the aggregator's code and words.
    """
    if answer.status in _GOOD or (answer.status == 409 and "upload-offset" in answer.headers):
        return answer
    words = f"the aggregator answered {answer.status}"
    code, retryable = f"http_{answer.status}", False
    try:
        problem = messages.parse(answer.body, messages.Problem, limit=messages.MAXIMUM_JSON_BYTES)
    except UpdateRejectedError:
        pass  # a proxy's own page: the status alone speaks
    else:
        words, code, retryable = f"{words}: {problem.detail}", problem.code, problem.retryable
    unfit = answer.status >= 500 or answer.status < 400 or answer.status in _PASSING
    if unfit or (retryable and code != "token_expired"):
        raise PassingError(words, retry_after_s=_retry_after(answer))
    raise UpdateRejectedError(words, code=code)


def backoff(error: Exception) -> bool | float:
    """Tell stamina whether, and after how many seconds, to repeat a call."""
    if not isinstance(error, PassingError):
        return False
    if error.retry_after_s is None:
        return True
    # A longer pause is for the caller's outbox, not for a sleeping thread.
    return error.retry_after_s if error.retry_after_s <= _LONGEST_WAIT_S else False


def _retry_after(answer: Answer) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
