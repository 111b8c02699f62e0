"""Other people's DICOM programs as peers of the node: Orthanc, DCMTK, and a receiver to be killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicomnode.domain import Destination

LOOPBACK = "127.0.0.1"
# Without it Debian's DCMTK waits 40 ms for a delayed ACK with each object that it sends.
DCMTK_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
VIRTUAL_ENVIRONMENT = Path(sys.executable).parent


def find_dcmtk(name: str) -> str | None:
    """Find a DCMTK program; pynetdicom installs scripts of the same names into the virtual environment."""
    outside = [
        p for p in os.environ.get("PATH", "").split(os.pathsep) if p and Path(p) != VIRTUAL_ENVIRONMENT
    ]
    return shutil.which(name, path=os.pathsep.join([*outside, "/usr/bin", "/usr/local/bin"]))


def need_dcmtk(name: str) -> str:
    """Find a DCMTK program or skip the test; fail instead where CI promises that it is there."""
    found = find_dcmtk(name)
    if found is None:
        _absent(f"DCMTK's {name} is not installed")
    return str(found)


def need_orthanc() -> str:
    """Find Orthanc or skip the test; fail instead where CI promises that it is there."""
    found = shutil.which(
        "Orthanc", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        _absent("Orthanc is not installed")
    return str(found)


def _absent(reason: str) -> None:
    if os.environ.get("DICOMNODE_REQUIRE_PEERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def wait_until(is_done: Callable[[], bool], *, limit_s: float = 20.0, what: str = "the condition") -> None:
    """Wait for something that happens in another thread or process."""
    end = time.monotonic() + limit_s
    while not is_done():
        assert time.monotonic() < end, f"{what} did not come true within {limit_s} s"
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    """Answer whether something accepts TCP connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((LOOPBACK, port)) == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A running peer."""

    process: subprocess.Popen[bytes]
    destination: Destination
    folder: Path
    log: Path

    def stop(self) -> int:
        """End it as an operator would, and give its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()


def start_program(
    command: Sequence[str], folder: Path, *, ae_title: str, port: int, limit_s: float = 40.0
) -> Program:
    """Start a peer and wait until it listens."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=DCMTK_ENVIRONMENT)
    destination = Destination(name=ae_title.lower(), ae_title=ae_title, host=LOOPBACK, port=port)
    program = Program(process=process, destination=destination, folder=folder, log=log)
    try:
        wait_until(
            lambda: is_listening(port) or process.poll() is not None,
            limit_s=limit_s,
            what=f"{ae_title} listens",
        )
        assert process.poll() is None, log.read_text(errors="replace")
    except BaseException:
        program.kill()
        raise
    return program


def start_storescp(
    folder: Path, *, port: int, ae_title: str = "STORESCP", options: Sequence[str] = ("+xa",)
) -> Program:
    """Start DCMTK's storescp; ``+xa`` takes every transfer syntax that it knows."""
    command = [need_dcmtk("storescp"), "-aet", ae_title, "-od", str(folder), *options, str(port)]
    return start_program(command, folder, ae_title=ae_title, port=port)


def storescu(
    files: Sequence[Path],
    destination: Destination,
    *,
    options: Sequence[str] = (),
    ae_title: str = "STORESCU",
) -> subprocess.CompletedProcess[str]:
    """Send files with DCMTK's storescu over one association; its exit status is that of the sending."""
    command = [
        need_dcmtk("storescu"),
        *("-v", "-aet", ae_title, "-aec", destination.ae_title),
        *options,
        *(destination.host, str(destination.port)),
        *map(str, files),
    ]
    return subprocess.run(
        command,
        env=DCMTK_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        errors="replace",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Orthanc:
    """A running Orthanc and its REST interface."""

    program: Program
    http_port: int

    @property
    def destination(self) -> Destination:
        """Where it takes C-STORE."""
        return self.program.destination

    def get(self, path: str) -> bytes:
        """Fetch from the REST interface, such as ``/instances``."""
        return self._call(urllib.request.Request(f"http://{LOOPBACK}:{self.http_port}{path}"))

    def post(self, path: str, body: bytes) -> bytes:
        """Post to the REST interface, such as a Part 10 file to ``/instances``."""
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self.http_port}{path}", data=body, method="POST"
        )
        return self._call(request)

    def find(self, path: str) -> list[str]:
        """List Orthanc's own identifiers, of ``/instances`` or ``/series``."""
        return list(json.loads(self.get(path)))

    def files(self) -> list[bytes]:
        """Fetch every instance as the Part 10 file that Orthanc keeps."""
        return [self.get(f"/instances/{identifier}/file") for identifier in self.find("/instances")]

    def upload(self, path: Path) -> None:
        """Put a file in over HTTP."""
        self.post("/instances", path.read_bytes())

    def send(self, modality: str, *, path: str = "/instances") -> None:
        """Send all that Orthanc holds to a configured modality over C-STORE, and wait for the end."""
        self.post(f"/modalities/{modality}/store", json.dumps(self.find(path)).encode())

    def stop(self) -> int:
        """End Orthanc."""
        return self.program.stop()

    def _call(self, request: urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())


def start_orthanc(
    tmp_path: Path,
    dicom_port: int,
    http_port: int,
    modalities: Mapping[str, Destination] | None = None,
    *,
    ae_title: str = "ORTHANC",
    options: Mapping[str, object] | None = None,
) -> Orthanc:
    """Start an Orthanc that takes objects from anyone and knows ``modalities`` by name."""
    folder = tmp_path / "orthanc"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "Name": ae_title,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomAet": ae_title,
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": False,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StableAge": 1,
        "DicomScuTimeout": 20,
        "DicomModalities": {name: [d.ae_title, d.host, d.port] for name, d in (modalities or {}).items()},
        **(options or {}),
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration, indent=2))
    program = start_program([need_orthanc(), str(path)], folder, ae_title=ae_title, port=dicom_port)
    orthanc = Orthanc(program=program, http_port=http_port)
    wait_until(lambda: is_listening(http_port), what="Orthanc's HTTP listens")
    return orthanc


RECEIVER = """
import signal, sys, threading
from datetime import UTC, datetime
from pathlib import Path
from dicomnode.scp import server
from dicomnode.settings import ScpSettings
from dicomnode.spool import Spool
from dicomnode.store import Store

root, port = Path(sys.argv[1]), int(sys.argv[2])
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
running = server.start(
    ScpSettings(host="127.0.0.1", port=port),
    spool=Spool(root / "spool", minimum_free_bytes=0),
    store=Store.open(f"sqlite:///{root / 'node.sqlite'}"),
    now=lambda: datetime.now(UTC),
)
stop.wait()
running.stop()
"""


def start_receiver(root: Path, *, port: int) -> Program:
    """Start the node's receiver as a process of its own, with spool and SQLite under ``root``."""
    command = [sys.executable, "-c", RECEIVER, str(root), str(port)]
    return start_program(command, root, ae_title="DICOMNODE", port=port)
