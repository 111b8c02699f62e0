"""A whole node as its processes, and what can be seen of it from outside."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from dicomnode.__main__ import app
from dicomnode.domain import Destination, SeriesState
from dicomnode.settings import NodeSettings, load_node_settings
from dicomnode.site import opened_store
from dicomnode.spool import Spool
from dicomnode.store import SeriesRow, Store
from tests.peers import LOOPBACK, Program, is_listening, start_program, wait_until

START_LIMIT_S = 120.0
RESULT_LIMIT_S = 240.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
ROUTE = """
[[routes]]
name = "hippocampus"
model = "hippocampus"
where = { slices = { min = 16 }, extent_mm = { max = 90.0 } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A configuration file, and the way to the node that runs by it."""

    config: Path
    settings: NodeSettings
    log: Path

    @property
    def destination(self) -> Destination:
        """Where the node takes C-STORE."""
        scp = self.settings.scp
        return Destination(name="node", ae_title=scp.ae_title, host=LOOPBACK, port=scp.port)

    @property
    def spool(self) -> Spool:
        """Its spool."""
        return Spool(self.settings.spool_dir, minimum_free_bytes=0)

    @property
    def quarantine(self) -> list[Path]:
        """Bytes that it could not read."""
        return sorted((self.settings.spool_dir / "quarantine").glob("*.bin"))

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Its database."""
        with opened_store(self.settings) as store:
            yield store

    def series(self, series_uid: str) -> SeriesRow | None:
        """Where a series stands."""
        with self.store() as store:
            return store.series.get(series_uid)

    def wait_for(self, series_uid: str, state: SeriesState, *, limit_s: float = RESULT_LIMIT_S) -> SeriesRow:
        """Wait until a series has come to a state."""

        def row() -> SeriesRow | None:
            found = self.series(series_uid)
            return found if found is not None and found.state is state else None

        wait_until(lambda: row() is not None, limit_s=limit_s, what=f"series {series_uid} is {state}")
        found = row()
        assert found is not None
        return found

    def ask(self, *words: str) -> Any:
        """Run a command with ``--json`` and read its answer; its exit status is 0."""
        done = command(*words, "--config", str(self.config), "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


def command(*words: str) -> Any:
    """Run a command in this process, standard output and standard error apart."""
    return CliRunner().invoke(app, list(words))


def dicomnode(*words: str | Path) -> list[str]:
    """The words of a command for a process of its own."""
    return [sys.executable, "-m", "dicomnode", *map(str, words)]


def call(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a process, to its end."""
    return subprocess.run(
        dicomnode(*words),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )


def write_config(
    folder: Path,
    *,
    port: int,
    web_port: int,
    destinations: Sequence[Destination] = (),
    routes: str = ROUTE,
    quiet_period_s: float = 2.0,
    minimum_free_gb: float = 0.1,
) -> Site:
    """Write the configuration of a site that is quick and local."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "node.toml"
    peers = "".join(
        f'[[destinations]]\nname = "{d.name}"\nae_title = "{d.ae_title}"\n'
        f'host = "{d.host}"\nport = {d.port}\nresults = {json.dumps(list(d.results))}\n'
        for d in destinations
    )
    config.write_text(
        f"""
[node]
data_dir = {json.dumps(str(folder / "data"))}
threads = 1
[scp]
host = "{LOOPBACK}"
port = {port}
minimum_free_gb = {minimum_free_gb}
[work]
quiet_period_s = {quiet_period_s}
tick_s = 0.5
poll_s = 0.2
lease_s = 5
backoff_s = 1
device = "cpu"
[web]
port = {web_port}
[training]
enabled = false
{routes}
{peers}
"""
    )
    return Site(config=config, settings=load_node_settings(config), log=folder / "node.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningNode:
    """``dicomnode run`` and its processes."""

    site: Site
    process: subprocess.Popen[bytes]

    def pid_of(self, role: str) -> int | None:
        """The process of a role now; None while it is down."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except FileNotFoundError:
                continue
            if MODULES[role] in words:
                return int(child)
        return None

    def wait_until_up(self) -> None:
        """Wait until it receives, works and answers on the web."""
        settings = self.site.settings

        def up() -> bool:
            assert self.process.poll() is None, self.site.log.read_text(errors="replace")
            ports = (settings.scp.port, settings.web.port)
            return all(map(is_listening, ports)) and self.pid_of("work") is not None

        wait_until(up, limit_s=START_LIMIT_S, what="the node runs")

    @property
    def is_alive(self) -> bool:
        """Whether the supervisor runs, and no role was started a second time."""
        return self.process.poll() is None and "starting it again" not in self.site.log.read_text()


MODULES = {"receive": b"dicomnode.receive", "work": b"dicomnode.node", "web": b"dicomnode.web"}


@contextmanager
def running(site: Site) -> Iterator[RunningNode]:
    """Run a node for the length of a block, and stop it as an operator would."""
    words = dicomnode("run", "--config", site.config)
    with (
        site.log.open("wb") as log,
        subprocess.Popen(
            words, cwd=site.config.parent, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        node = RunningNode(site=site, process=process)
        try:
            node.wait_until_up()
            yield node
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def start_pacs(folder: Path, *, port: int, ae_title: str = "PACS") -> Program:
    """Start the stand-in PACS as a process."""
    words = dicomnode("pacs", folder, "--ae-title", ae_title, "--port", str(port))
    return start_program(words, folder, ae_title=ae_title, port=port, limit_s=START_LIMIT_S)


def objects_of(pacs: Program) -> list[Path]:
    """Every object that the stand-in PACS holds."""
    return sorted(pacs.folder.glob("[0-9]*/*.dcm"))
