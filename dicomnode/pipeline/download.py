"""Fetch one large file over HTTPS so that no byte is fetched twice: not after a cut, not after a crash.

A request goes on where the last one stopped with ``Range`` and ``If-Range`` (RFC 9110 sections 13.1.5 and
14.2), so that a file that was changed meanwhile is sent whole again. In the end the digest decides.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import stamina

from dicomnode import durable, weights
from dicomnode.domain import Sha256
from dicomnode.errors import InputError, SpoolFullError
from dicomnode.pipeline import https
from dicomnode.pipeline.https import PassingError, shown
from dicomnode.pipeline.partial import PartialFile

GIB: Final = 1024**3
_CHUNK: Final = 256 * 1024
_LONGEST_PAUSE_S: Final = 30.0
_ZIP: Final = b"PK"
Progress = Callable[[int, int | None], None]
"""Bytes that are here, bytes in all if the server told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a file is, and how to know that it is the right one."""

    url: str
    sha256: Sha256 | None = None  # of the file, from whoever published it
    ca_file: Path | None = None  # certificate authorities to trust beside the usual ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may come, and how patiently it is waited for."""

    file_bytes: int = 32 * GIB
    free_bytes: int = GIB  # left over on the disk
    sync_bytes: int = 64 * 1024**2  # the most that is fetched anew after a power cut
    attempts: int = 6  # in a row that bring nothing
    wait_s: float = 0.5  # before the second attempt; doubles
    timeout_s: float = 30.0  # without a byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """A file that has arrived whole, or was there."""

    path: Path  # <sha256>.zip
    sha256: Sha256
    fetched_bytes: int  # this time


def download(source: Source, folder: Path, *, limits: Limits, progress: Progress) -> Downloaded:
    """Fetch a zip into a folder under the name of its digest, going on where an earlier call stopped.

    Parameters
    ----------
    folder
        Made if needed. One process at a time works in it; others wait.

    Raises
    ------
    ConfigError
        An address that is not plain https, or a file of certificates that cannot be read.
    InputError
        The server refuses, or sends something else than asked for: no zip, another digest, too many bytes.
    PeerError
        The server is out of reach or not trusted, or the line was cut too often.
    SpoolFullError, ResourceError
        The disk has no room, or cannot be written; what has arrived is kept.
    """
    url = https.checked(source.url)
    with durable.translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with durable.locked(folder / "lock"), durable.translated(folder):
        kept = folder / f"{source.sha256}.zip"
        if source.sha256 and kept.is_file() and weights.sha256_of(kept) == source.sha256:
            return Downloaded(path=kept, sha256=source.sha256, fetched_bytes=0)
        part = PartialFile(folder, source.url)
        with https.client(source.ca_file, timeout_s=limits.timeout_s) as http:
            fetch = _Fetch(http, url, part, limits, progress)
            digest = fetch.whole_file(wanted=source.sha256)
        final = folder / f"{digest}.zip"
        part.publish(final)
        return Downloaded(path=final, sha256=digest, fetched_bytes=fetch.fetched_bytes)


class _Fetch:
    """One file on its way here."""

    def __init__(
        self, http: httpx.Client, url: httpx.URL, part: PartialFile, limits: Limits, progress: Progress
    ) -> None:
        self._http, self._url, self._part = http, url, part
        self._limits, self._progress = limits, progress
        self._is_pieced = False  # put together from several answers
        self.fetched_bytes = 0

    def whole_file(self, *, wanted: Sha256 | None) -> Sha256:
        """Fetch to the end, and once more from the beginning if what was pieced together is not right."""
        digest = self._to_the_end()
        if wanted and digest != wanted and self._is_pieced:
            self._part.discard()
            digest = self._to_the_end()
        if wanted and digest != wanted:
            self._part.discard()
            raise InputError(
                f"{shown(self._url)} has the SHA-256 {digest}, not {wanted}: it is another file, or was "
                "changed. Nothing of it was kept."
            )
        return digest

    def _to_the_end(self) -> Sha256:
        """Try again after a pause, for as long as the attempts bring something."""
        while True:
            before = self._part.size_bytes
            try:
                self._attempts()
            except PassingError:
                if self._part.size_bytes <= before:
                    raise
            else:
                return weights.sha256_of(self._part.path)

    def _attempts(self) -> None:
        for attempt in stamina.retry_context(
            on=_pause_after,
            attempts=self._limits.attempts,
            timeout=None,
            wait_initial=self._limits.wait_s,
            wait_max=_LONGEST_PAUSE_S,
            wait_jitter=self._limits.wait_s,
        ):
            with attempt:
                self._once()

    def _once(self) -> None:
        part = self._part
        headers = {"Accept-Encoding": "identity"}
        if part.can_be_continued:
            headers |= {"Range": f"bytes={part.size_bytes}-", "If-Range": part.validator}
        with https.answer(self._http, self._url, headers) as response:
            if response.status_code == 416:
                if https.whole_length(response) != part.size_bytes:
                    self._start_anew(response)
            else:
                end = self._continued(response) if response.status_code == 206 else self._begun(response)
                self._write(response, end)

    def _begun(self, response: httpx.Response) -> int | None:
        """Take the answer as the whole file; gives its length, if the server told."""
        self._is_pieced = False
        self._part.begin(https.validator(response))
        return https.whole_length(response)

    def _continued(self, response: httpx.Response) -> int | None:
        """Take the answer as the rest of what is here."""
        start, end = https.piece(response)
        if start != self._part.size_bytes or https.validator(response) not in {"", self._part.validator}:
            self._start_anew(response)
        self._is_pieced = True
        return end

    def _start_anew(self, response: httpx.Response) -> None:
        self._part.discard()
        raise PassingError(f"{shown(response.url)} does not go on with the file that was begun")

    def _write(self, response: httpx.Response, end: int | None) -> None:
        part, limits = self._part, self._limits
        before = checked = part.size_bytes
        most = limits.file_bytes if end is None else end

        def grown(size: int) -> None:
            nonlocal checked
            self._progress(size, end)
            if size > most:
                raise InputError(f"{shown(response.url)} sends more than {most} bytes, which it said or may")
            if size - checked >= limits.sync_bytes:
                checked = size
                self._check_room(size, end)

        try:
            self._check_room(before, end)
            chunks = response.iter_raw(_CHUNK) if before else _starting_as_zip(response)
            part.append(chunks, sync_bytes=limits.sync_bytes, on_growth=grown)
        except InputError:
            part.discard()
            raise
        finally:
            self.fetched_bytes += max(0, part.size_bytes - before)
        if end is not None and part.size_bytes < end:
            raise PassingError(f"{shown(response.url)} stopped after {part.size_bytes} of {end} bytes")

    def _check_room(self, size: int, end: int | None) -> None:
        limits = self._limits
        if end is not None and end > limits.file_bytes:
            raise InputError(
                f"{shown(self._url)} has {end / GIB:.3g} GiB; at most {limits.file_bytes / GIB:.3g} are taken"
            )
        missing = (end or size) - size
        free = shutil.disk_usage(self._part.path.parent).free - limits.free_bytes
        if free < missing or free < 0:
            raise SpoolFullError(
                f"{missing / GIB:.3g} GiB are still to come, and {max(free, 0) / GIB:.3g} GiB may be used on "
                f"the disk of {self._part.path.parent}; free some space and try again. What is here is kept."
            )


def _pause_after(error: Exception) -> bool | float:
    """Tell stamina whether, and after how many seconds, to try again."""
    if not isinstance(error, PassingError):
        return False
    return True if error.pause_s is None else min(error.pause_s, _LONGEST_PAUSE_S)


def _starting_as_zip(response: httpx.Response) -> Iterator[bytes]:
    """Pass a body on that begins like a zip; a page that only speaks of the file is refused at once."""
    chunks = response.iter_raw(_CHUNK)
    first = next(chunks, b"")
    if not first.startswith(_ZIP):
        raise InputError(
            f"{shown(response.url)} is no zip: it begins with {first[:16]!r}; the address may be of a page "
            "about the file, not of the file"
        )
    yield first
    yield from chunks
