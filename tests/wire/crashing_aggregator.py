"""An aggregator that kills itself, with SIGKILL, at a chosen step: arguments TOML and STEP.

It prints its port when it listens. Steps: ``judge`` (an update is announced and nothing more), ``write``
(merged weights are on disk, no row knows of them), ``publish`` (the transaction is committed, nothing after
it), ``never``.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import torch

from dicomnode import aggregator
from dicomnode.federation.blobs import BlobFolder
from dicomnode.federation.ledger.updates import UpdateRows
from dicomnode.federation.ledger.versions import NewVersion, VersionRows
from dicomnode.federation.manifest import BlobRef
from dicomnode.settings import load_aggregator_settings


def die() -> None:
    """End as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingUpdates(UpdateRows):
    """Dies when the norms are asked for, the first thing of judging."""

    def recent_norms(self, family: str) -> tuple[float, ...]:
        """Die."""
        die()
        return super().recent_norms(family)


class DyingBlobs(BlobFolder):
    """Dies when merged weights have been written."""

    def write_weights(self, tensors: Mapping[str, torch.Tensor]) -> BlobRef:
        """Write, then die."""
        written = super().write_weights(tensors)
        die()
        return written


class DyingVersions(VersionRows):
    """Dies when a merge has been committed."""

    def publish(self, release: NewVersion, *, now: datetime) -> bool:
        """Publish, then die."""
        done = super().publish(release, now=now)
        die()
        return done


def main(arguments: Sequence[str]) -> None:
    """Serve until the step comes."""
    settings, step = load_aggregator_settings(Path(arguments[0])), arguments[1]
    with aggregator.open_tools(settings) as tools:
        ledger, blobs = tools.ledger, tools.blobs
        match step:
            case "judge":
                ledger.updates = DyingUpdates(ledger._database)  # the seam is for this program
            case "write":
                blobs = DyingBlobs(settings.aggregator.data_dir)
            case "publish":
                ledger.versions = DyingVersions(ledger._database)  # as above
        server = aggregator.Server(settings, dataclasses.replace(tools, blobs=blobs))
        print(server.port, flush=True)
        server.run()


if __name__ == "__main__":
    main(sys.argv[1:])
