"""The aggregator's blobs on disk: immutable files named by their SHA-256, and the parts of uploads.

What is here and how far an upload is stands in the ledger; a file that the ledger does not list is
an orphan of a crash and harms nobody.
"""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

from dicomnode import durable, weights
from dicomnode.domain import Sha256
from dicomnode.errors import SpoolFullError, UpdateRejectedError
from dicomnode.federation.manifest import BlobRef

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NODE_ID = re.compile(r"n-[0-9a-f]{16}")
MINIMUM_FREE_BYTES = 1024**3


class BlobFolder:
    """Blobs under one folder of a local disk."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._parts = root / "uploads"
        for folder in (self._blobs, self._parts):
            folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, sha256: str) -> Path:
        """Say where a blob is, or would be.

        Raises
        ------
        UpdateRejectedError
            ``bad_digest``: not 64 lower-case hexadecimal digits.
        """
        if _DIGEST.fullmatch(sha256) is None:
            raise UpdateRejectedError("a blob is named by 64 hexadecimal digits", code="bad_digest")
        return self._blobs / sha256[:2] / sha256

    def check_room(self, size: int) -> None:
        """Make sure that a file of ``size`` bytes leaves a gigabyte free.

        Raises
        ------
        SpoolFullError
            It would not.
        """
        free = shutil.disk_usage(self._parts).free
        if free - size < MINIMUM_FREE_BYTES:
            raise SpoolFullError(f"{free} bytes are free at the aggregator, {size} more were asked for")

    def write_part(self, node_id: str, sha256: Sha256, *, offset: int, data: bytes) -> None:
        """Put bytes of an upload to disk; whatever stood from ``offset`` on is replaced."""
        with self._part(node_id, sha256).open("r+b" if offset else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def part_size(self, node_id: str, sha256: Sha256) -> int:
        """Count the bytes of an upload that are on disk."""
        part = self._part(node_id, sha256)
        return part.stat().st_size if part.exists() else 0

    def finish(self, node_id: str, sha256: Sha256) -> bool:
        """Turn a complete part into a blob; ``False``, and the part is gone, when its digest is another."""
        part, final = self._part(node_id, sha256), self.path_of(sha256)
        if final.exists():  # finished before a crash, or by another node
            part.unlink(missing_ok=True)
            return True
        if not part.exists() or weights.sha256_of(part) != sha256:
            part.unlink(missing_ok=True)
            return False
        durable.publish(part, final)
        return True

    def discard(self, node_id: str, sha256: Sha256) -> None:
        """Remove the part of an abandoned upload."""
        self._part(node_id, sha256).unlink(missing_ok=True)

    def write_weights(self, tensors: Mapping[str, torch.Tensor]) -> BlobRef:
        """Write weights as a blob; equal weights give the same blob."""
        scratch = self._scratch()
        try:
            weights.write(scratch, tensors)
        except OSError as error:
            raise SpoolFullError(f"merged weights could not be written: {error.strerror}") from error
        return self._take(scratch)

    def copy_in(self, source: Path) -> BlobRef:
        """Copy a file of this machine into a blob."""
        scratch = self._scratch()
        shutil.copyfile(source, scratch)
        return self._take(scratch)

    def sweep(self, *, before: datetime) -> None:
        """Remove what a crash left half-written; ``before`` spares what another process writes now."""
        for scratch in (*self._parts.glob("scratch-*"), *self._parts.glob(".scratch-*")):
            if scratch.stat().st_mtime < before.timestamp():
                scratch.unlink(missing_ok=True)

    def _take(self, scratch: Path) -> BlobRef:
        reference = BlobRef(sha256=weights.sha256_of(scratch), size=scratch.stat().st_size)
        durable.publish(scratch, self.path_of(reference.sha256))
        return reference

    def _scratch(self) -> Path:
        return self._parts / f"scratch-{secrets.token_hex(8)}"

    def _part(self, node_id: str, sha256: Sha256) -> Path:
        if _NODE_ID.fullmatch(node_id) is None:
            raise UpdateRejectedError(f"{node_id!r} is no node id", code="bad_node_id")
        return self._parts / f"{node_id}.{self.path_of(sha256).name}"
