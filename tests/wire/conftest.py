"""A node's receiver on a loopback port, with a real spool and a real database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from dicomnode.domain import Destination
from dicomnode.scp import server
from dicomnode.scp.server import Server
from dicomnode.settings import ScpSettings
from dicomnode.spool import Spool
from dicomnode.store import Store
from tests.peers import Orthanc, Program, start_orthanc, start_storescp
from tests.wire.objects import data_set_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A running receiver and what it writes to."""

    server: Server
    spool: Spool
    store: Store
    root: Path
    destination: Destination

    def paths(self) -> list[Path]:
        """Files with a final name, in order of name."""
        return sorted(self.root.glob("[0-9]*/*.dcm"))

    def quarantined(self) -> list[Path]:
        """Bytes set aside."""
        return sorted((self.root / "quarantine").glob("*.bin"))

    def unfinished(self) -> list[Path]:
        """Temporary files."""
        return list((self.root / "incoming").iterdir())

    def stored_bytes(self, ds: Dataset) -> bytes:
        """The data set of the latest variant of an instance, by way of its row."""
        instances = self.store.series.instances_of(ds.SeriesInstanceUID)
        [instance] = [i for i in instances if i.sop_instance_uid == ds.SOPInstanceUID]
        return data_set_bytes(self.spool.path_of(instance))


StartReceiver = Callable[..., Receiver]


def now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


@pytest.fixture
def start_receiver(tmp_path: Path, free_ports: Callable[[], int]) -> Iterator[StartReceiver]:
    """Start receivers with other settings; they are stopped at the end of the test."""
    with ExitStack() as stack:

        def start(*, minimum_free_bytes: int = 0, name: str = "node", **settings: Any) -> Receiver:
            root = tmp_path / name / "spool"
            root.parent.mkdir()
            spool = Spool(root, minimum_free_bytes=minimum_free_bytes)
            store = Store.open(f"sqlite:///{tmp_path / name / 'node.sqlite'}")
            stack.callback(store.close)
            scp = ScpSettings(**{"host": "127.0.0.1", "port": free_ports(), **settings})
            running = server.start(scp, spool=spool, store=store, now=now)
            stack.callback(running.stop, limit_s=2.0)
            where = Destination(name=name, ae_title=scp.ae_title, host="127.0.0.1", port=running.port)
            return Receiver(server=running, spool=spool, store=store, root=root, destination=where)

        yield start


@pytest.fixture
def orthanc_beside_node(
    receiver: Receiver, tmp_path: Path, free_ports: Callable[[], int]
) -> Iterator[Orthanc]:
    """An Orthanc that takes anything from anyone and knows the receiver as the modality ``node``."""
    running = start_orthanc(tmp_path, free_ports(), free_ports(), {"node": receiver.destination})
    yield running
    running.stop()


@pytest.fixture
def storescp(tmp_path: Path, free_port: int) -> Iterator[Program]:
    """DCMTK's storescp, taking every transfer syntax that it knows and keeping data sets as received."""
    running = start_storescp(tmp_path / "received", port=free_port, options=("+xa", "+B"))
    yield running
    running.stop()


@pytest.fixture
def receiver(start_receiver: StartReceiver) -> Receiver:
    """A receiver as it comes: any sender, any class, no watermark."""
    return start_receiver()
