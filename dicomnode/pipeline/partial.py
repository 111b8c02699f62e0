"""A file that arrives in pieces, and what of it is surely on the disk: it survives a cut and a crash."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from dicomnode import durable


class PartialFile:
    """``<key>.part`` holds the bytes; ``<key>.json`` tells how many of them a power cut would not take.

    It also keeps the server's validator (RFC 9110 section 8.8) of the file that they are part of, because
    only the same file can be continued.
    """

    def __init__(self, folder: Path, url: str) -> None:
        key = hashlib.sha256(url.encode()).hexdigest()[:24]
        self.path = folder / f"{key}{durable.PART_SUFFIX}"
        self._record = folder / f"{key}.json"
        self.validator = ""
        self.size_bytes = 0
        self._recall()

    @property
    def can_be_continued(self) -> bool:
        """Whether there is a beginning, of a file that the server can recognise."""
        return self.size_bytes > 0 and self.validator != ""

    def begin(self, validator: str) -> None:
        """Start anew with a file that the server knows by this validator."""
        self.discard()
        self.validator = validator

    def append(self, chunks: Iterator[bytes], *, sync_bytes: int, on_growth: Callable[[int], None]) -> None:
        """Write as it comes and tell the size after each piece; a cut leaves what has arrived."""
        with self.path.open("ab") as file:
            file.truncate(self.size_bytes)
            synced = self.size_bytes
            try:
                for chunk in chunks:
                    file.write(chunk)
                    self.size_bytes += len(chunk)
                    on_growth(self.size_bytes)
                    if self.size_bytes - synced >= sync_bytes:
                        file.flush()
                        self._sync()
                        synced = self.size_bytes
            finally:
                file.flush()
                self._sync()

    def publish(self, path: Path) -> None:
        """Give the complete file its final name."""
        durable.publish(self.path, path)
        self._record.unlink(missing_ok=True)

    def discard(self) -> None:
        """Drop what has arrived."""
        self._record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.validator, self.size_bytes = "", 0

    def _sync(self) -> None:
        """Bring the bytes to the disk, and only then the record that says so."""
        durable.sync_file(self.path)
        record = json.dumps({"validator": self.validator, "synced_bytes": self.size_bytes})
        durable.keep(self._record, record.encode(), mode=durable.PUBLIC)

    def _recall(self) -> None:
        try:
            record = json.loads(self._record.read_bytes())
            validator, synced = str(record["validator"]), int(record["synced_bytes"])
            size = self.path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return  # nothing is there, or nothing that can be built upon
        if validator and 0 < synced <= size:
            self.validator, self.size_bytes = validator, synced
