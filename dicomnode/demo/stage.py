"""The machine room of the demonstration: its folder, its configuration files and its processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

from dicomnode.domain import Destination
from dicomnode.errors import DicomNodeError

HOST = "127.0.0.1"
MODEL = "hippocampus"


class DemoError(DicomNodeError):
    """A step of the demonstration did not happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where everything stands and listens."""

    folder: Path
    node: Destination
    pacs: Destination
    web_port: int
    aggregator_port: int

    @property
    def node_config(self) -> Path:
        """TOML of the node."""
        return self.folder / "node.toml"

    @property
    def aggregator_config(self) -> Path:
        """TOML of the aggregator."""
        return self.folder / "aggregator.toml"

    @property
    def pacs_folder(self) -> Path:
        """Files that the stand-in PACS received."""
        return self.folder / "pacs"

    @property
    def aggregator_url(self) -> str:
        """Where the node finds the aggregator."""
        return f"https://{HOST}:{self.aggregator_port}"


def build(folder: Path) -> Stage:
    """Make the folder, choose free ports and write both configuration files."""
    folder.mkdir(parents=True)
    scp, pacs, web, https = _free_ports(4)
    stage = Stage(
        folder=folder,
        node=Destination(name="node", ae_title="DICOMNODE", host=HOST, port=scp),
        pacs=Destination(name="pacs", ae_title="DEMOPACS", host=HOST, port=pacs),
        web_port=web,
        aggregator_port=https,
    )
    stage.node_config.write_text(_node_toml(stage), encoding="utf-8")
    stage.aggregator_config.write_text(_aggregator_toml(stage), encoding="utf-8")
    return stage


def _node_toml(stage: Stage) -> str:
    """Embedded defaults, but for ports, a short quiet period and the policies about small numbers."""
    return f"""\
[node]
data_dir = {json.dumps(str(stage.folder / "node"))}
site_name = "demo-hospital"

[scp]
host = "{HOST}"
port = {stage.node.port}
minimum_free_gb = 0.2

[web]
port = {stage.web_port}

[work]
quiet_period_s = 2
tick_s = 0.5
poll_s = 0.2

[[destinations]]
name = "{stage.pacs.name}"
ae_title = "{stage.pacs.ae_title}"
host = "{HOST}"
port = {stage.pacs.port}
results = ["seg", "sr", "sc"]

[training]
window = "00:00-00:01"          # the demonstration trains on demand
minimum_hold_out_cases = 1      # default: 5
minimum_patients = 1            # default: 3
epsilon_dice = 0.02             # default: 0.01

[federation]
enabled = true
url = "{stage.aggregator_url}"
ca_file = {json.dumps(str(stage.folder / "aggregator" / "ca.pem"))}
minimum_patients = 1            # default: 10
minimum_steps = 1               # default: 100
"""


def _aggregator_toml(stage: Stage) -> str:
    return f"""\
[aggregator]
data_dir = {json.dumps(str(stage.folder / "aggregator"))}
host = "{HOST}"
port = {stage.aggregator_port}
"""


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def command(*words: str | Path) -> list[str]:
    """A dicomnode command, run by the Python that runs this."""
    return [sys.executable, "-m", "dicomnode", *map(str, words)]


def call(*words: str | Path) -> str:
    """Run a dicomnode command to its end and give what it printed.

    Raises
    ------
    DemoError
        It failed; the message carries what it said.
    """
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise DemoError(f"`dicomnode {' '.join(map(str, words))}` failed: {' / '.join(said)}")
    return done.stdout


def call_json(*words: str | Path) -> Any:  # JSON of a command, read at once by the caller
    """Run a dicomnode command with ``--json`` and read its answer."""
    return json.loads(call(*words, "--json"))


@dataclass(slots=True)
class Cast:
    """The processes on stage, each with its own log file; leaving the block ends them all."""

    logs: Path
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _files: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        """Make the folder of the logs."""
        self.logs.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        """End every process, the last started first."""
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in reversed(self._processes.values()):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._files.close()

    def start(self, name: str, *words: str | Path) -> None:
        """Start a dicomnode process."""
        log = self._files.enter_context((self.logs / f"{name}.log").open("wb"))
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self._processes[name] = subprocess.Popen(
            command(*words), stdout=log, stderr=subprocess.STDOUT, env=environment
        )

    def wait_for(self, what: str, is_there: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until something is there.

        Raises
        ------
        DemoError
            A process ended meanwhile, or the time ran out.
        """
        deadline = monotonic() + timeout_s
        while not is_there():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise DemoError(
                        f"the process {name!r} ended while waiting for {what}; see {self.logs}/{name}.log"
                    )
            if monotonic() > deadline:
                raise DemoError(f"waited {timeout_s:.0f} s for {what}; the logs are in {self.logs}")
            sleep(0.1)


def is_listening(port: int) -> bool:
    """Answer whether something accepts connections on a port of this machine."""
    with closing(socket.socket()) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0
