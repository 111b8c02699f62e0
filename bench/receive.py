"""Receive rate of the node beside DCMTK's storescp: the same files, the same senders, the same disk.

    python bench/receive.py [--files 200] [--size 512] [--folder DIR] [--repeats 3]

DCMTK's storescu sends in both cases. The node acknowledges an object when its file and its row would
survive a power cut (fsync of file, folder and database); storescp acknowledges when it has written to the
page cache. The last line of the table is the disk alone: write, fsync, rename and fsync of the folder.
Both DCMTK programs run with TCP_NODELAY=1: without it their small messages wait 40 ms for each object.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SENDERS = (1, 4)
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
Listening = tuple[int, Callable[[], Iterator[Path]]]  # port, and what has been received
NODE = """
import sys, threading
from datetime import UTC, datetime
from pathlib import Path
from dicomnode.scp import server
from dicomnode.settings import ScpSettings
from dicomnode.spool import Spool
from dicomnode.store import Store

root = Path(sys.argv[1])
server.start(
    ScpSettings(host="127.0.0.1", port=int(sys.argv[2])),
    spool=Spool(root / "spool", minimum_free_bytes=0),
    store=Store.open(f"sqlite:///{root / 'node.sqlite'}"),
    now=lambda: datetime.now(UTC),
)
threading.Event().wait()
"""


def main() -> None:
    """Measure, print the table and one JSON line."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        files = make_files(folder / "sent", count=arguments.files, size=arguments.size)
        size_mb = files[0].stat().st_size / 1e6
        rates: dict[str, float] = {}
        for senders in SENDERS:
            for receiver, start in (("node", node), ("storescp", storescp)):
                runs = [
                    rate(files, start(folder / f"{receiver}-{senders}-{k}"), senders)
                    for k in range(arguments.repeats)
                ]
                rates[f"{receiver}_{senders}"] = median(runs)
        rates["disk"] = median(disk_rate(files, folder / f"disk-{k}") for k in range(arguments.repeats))
    print_table(rates, size_mb=size_mb)
    result = {
        "bench": "receive",
        "files": arguments.files,
        "file_mb": round(size_mb, 3),
        "repeats": arguments.repeats,
        "files_per_s": {key: round(value, 1) for key, value in rates.items()},
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    print(json.dumps(result))


def rate(files: Sequence[Path], receiver: AbstractContextManager[Listening], senders: int) -> float:
    """Give files per second from the first connection to the last answer, all senders together."""
    with receiver as (port, kept):
        parts = [files[k::senders] for k in range(senders)]
        with ThreadPoolExecutor(senders) as pool:
            began = time.perf_counter()
            list(pool.map(lambda part: send(part, port), parts))
            seconds = time.perf_counter() - began
        found = sum(1 for _ in kept())
        if found != len(files):
            raise SystemExit(f"{found} files received, {len(files)} sent")
    return len(files) / seconds


def send(files: Sequence[Path], port: int) -> None:
    """Send files over one association."""
    command = [dcmtk("storescu"), "127.0.0.1", str(port), *map(str, files)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)


@contextmanager
def node(folder: Path) -> Iterator[Listening]:
    """Run the node's receiver as a process with spool and SQLite in ``folder``."""
    folder.mkdir()
    port = free_port()
    with running([sys.executable, "-c", NODE, str(folder), str(port)], port):
        yield port, lambda: (folder / "spool").glob("[0-9]*/*.dcm")


@contextmanager
def storescp(folder: Path) -> Iterator[Listening]:
    """Run DCMTK's storescp, one process for each association, writing data sets as received."""
    folder.mkdir()
    port = free_port()
    with running([dcmtk("storescp"), "--fork", "+B", "-od", str(folder), str(port)], port):
        yield port, lambda: folder.glob("*")


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[None]:
    """Run a receiver while the block lasts, from the moment that it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def disk_rate(files: Sequence[Path], folder: Path) -> float:
    """Give files per second that one thread can make durable."""
    folder.mkdir()
    contents = [path.read_bytes() for path in files]
    began = time.perf_counter()
    for number, content in enumerate(contents):
        temporary = folder / f"{number}.part"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / f"{number}.dcm")
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return len(files) / (time.perf_counter() - began)


def make_files(folder: Path, *, count: int, size: int) -> list[Path]:
    """Write the images of one series with random pixels, ``size`` by ``size`` of 16 bits."""
    folder.mkdir()
    series_uid, study_uid = generate_uid(), generate_uid()
    pixels = np.random.default_rng(1).integers(0, 4096, (count, size, size), dtype=np.uint16)
    paths = []
    for number in range(count):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        ds.Modality, ds.PatientName, ds.PatientID = "MR", "Bench^Receive", "bench"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.InstanceNumber = study_uid, series_uid, number + 1
        ds.Rows = ds.Columns = size
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        ds.PixelData = pixels[number].tobytes()
        path = folder / f"{number:05d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def print_table(rates: dict[str, float], *, size_mb: float) -> None:
    """Print files and megabytes per second."""
    print(f"{'receiver':<34}{'senders':>8}{'files/s':>10}{'MB/s':>8}")
    for senders in SENDERS:
        for key, label in (("node", "node (durable, with row)"), ("storescp", "DCMTK storescp (page cache)")):
            value = rates[f"{key}_{senders}"]
            print(f"{label:<34}{senders:>8}{value:>10.1f}{value * size_mb:>8.1f}")
    disk = rates["disk"]
    print(f"{'disk alone (write, fsync, rename)':<34}{'-':>8}{disk:>10.1f}{disk * size_mb:>8.1f}")


def dcmtk(name: str) -> str:
    """Find a DCMTK program; pynetdicom has scripts of the same names in the virtual environment."""
    own = Path(sys.executable).parent
    places = [p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != own]
    found = shutil.which(name, path=os.pathsep.join([*places, "/usr/bin"]))
    if found is None:
        raise SystemExit(f"DCMTK's {name} is not installed")
    return found


def free_port() -> int:
    """Find a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Receive rate of the node beside DCMTK's storescp.")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--size", type=int, default=512, help="rows and columns; 512 gives 0.5 MB")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (the disk to be measured)")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
