"""Asking a web server that is not ours for a file: addresses, redirects, refusals and certificates."""

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from dicomnode import __version__
from dicomnode.errors import ConfigError, InputError, PeerError

_MOST_REDIRECTS: Final = 5
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_WANTS_LOGIN: Final = frozenset({401, 403, 407})


class PassingError(PeerError):
    """A fault that a repeated request may not meet; ``pause_s`` as the server asked for."""

    def __init__(self, message: str, *, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def client(ca_file: Path | None, *, timeout_s: float) -> httpx.Client:
    """Prepare to ask; nothing is sent yet. The usual authorities are trusted, and those of ``ca_file``.

    Raises
    ------
    ConfigError
        No certificates can be read from the file.
    """
    context = httpx.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"no certificates can be read from {ca_file}: {error}") from error
    return httpx.Client(
        verify=context,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
        headers={"User-Agent": f"dicomnode/{__version__}"},
    )


def checked(text: str) -> httpx.URL:
    """Read the address that a person gave.

    Raises
    ------
    ConfigError
        It is no URL, not https, or holds a user name or password.
    """
    fault = _fault_of(text)
    if fault:
        raise ConfigError(f"{shown(text)} {fault}")
    return httpx.URL(text)


def shown(url: httpx.URL | str) -> str:
    """Write an address for people, without user name and query: they may hold secrets."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        return "the address"
    return f"{address.scheme}://{address.netloc.decode('ascii', 'replace')}{address.path}"


@contextmanager
def answer(http: httpx.Client, url: httpx.URL, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """Ask for a file, also where the server points to, and leave its body to be read inside the block.

    Raises
    ------
    PassingError
        No connection, a cut in the middle, or a status that says "later".
    PeerError
        The server's certificate is not trusted.
    InputError
        A refusal, an endless chain of redirects, or one that leads off https.
    """
    where = url
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            with http.stream("GET", where, headers=headers) as response:
                if not response.has_redirect_location:
                    _check_status(response)
                    yield response
                    return
                where = _redirected(where, response.headers["location"])
    except httpx.TransportError as error:
        raise _transport_fault(error, where) from error
    raise InputError(f"{shown(url)} points on more than {_MOST_REDIRECTS} times")


def validator(response: httpx.Response) -> str:
    """Tell by what the server would know this very file again; empty: by nothing that can be relied on."""
    tag = str(response.headers.get("etag", ""))
    if tag:
        return "" if tag.startswith("W/") else tag
    return str(response.headers.get("last-modified", ""))


def piece(response: httpx.Response) -> tuple[int, int | None]:
    """Tell where the piece of a 206 begins, and how long the whole file is; -1 if it does not say."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    if found is None:
        return -1, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def whole_length(response: httpx.Response) -> int | None:
    """Tell how long a file is, from the answer 200 with it or 416 without it."""
    if response.status_code == 416:
        found = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", ""))
        return int(found[1]) if found else None
    length = response.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _fault_of(text: httpx.URL | str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return "is no address"
    if url.scheme != "https" or not url.host:
        return "does not begin with https://; models are fetched over nothing else"
    return "holds a user name or password, which would end up in logs" if url.userinfo else ""


def _redirected(url: httpx.URL, location: str) -> httpx.URL:
    target = url.join(location)  # httpx has refused by now what is no address
    fault = _fault_of(target)
    if fault:
        raise InputError(f"{shown(url)} points to {shown(target)}, which {fault}")
    return target


def _check_status(response: httpx.Response) -> None:
    status, where = response.status_code, shown(response.url)
    if status in _PASSING:
        after = response.headers.get("retry-after", "")
        raise PassingError(f"{where} answered {status}", pause_s=float(after) if after.isdecimal() else None)
    if status in _WANTS_LOGIN:
        raise InputError(f"{where} answered {status}: it wants a login; fetch the file by other means")
    if status not in {200, 206, 416}:
        raise InputError(f"{where} answered {status}, not with a file; check the address")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise InputError(f"{where} sends the file packed once more, though it was asked not to")


def _transport_fault(error: httpx.TransportError, url: httpx.URL) -> PeerError:
    """A certificate that is not trusted will not be at the next attempt; everything else may pass."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return PeerError(
                f"the certificate of {shown(url)} is not trusted ({cause.verify_message}); if it is one of "
                "your own network, name its authority with --ca-file"
            )
        cause = cause.__cause__ or cause.__context__
    return PassingError(f"{shown(url)}: {type(error).__name__}: {error}")
