"""Killed at any step, the aggregator merges every update exactly once after its restart."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import httpx

from dicomnode import aggregator
from dicomnode.errors import AggregatorError
from dicomnode.federation import certificates, client
from dicomnode.federation.manifest import UpdateState
from dicomnode.settings import AggregatorSettings, load_aggregator_settings
from tests.federation_builders import FAMILY, Site, connect, toy_delta, write_package

PROGRAM = Path(__file__).with_name("crashing_aggregator.py")
REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@contextmanager
def process(config: Path, step: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the program until the block ends or it kills itself."""
    running = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(config), step],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    assert running.stdout is not None
    try:
        # structlog of a process without set-up writes to stdout too; the port stands alone on its line.
        port = next(int(line) for line in running.stdout if line.strip().isdecimal())
        yield running, port
    finally:
        running.kill()
        running.wait(10)
        running.stdout.close()


def site_at(port: int, folder: Path, settings: AggregatorSettings, *, known: Site | None) -> Site:
    """Enrol at first, and reconnect to the new port later."""
    url, key_file = f"https://localhost:{port}", folder / "node.key"
    ca_file = settings.aggregator.data_dir / "ca.pem"
    if known is None:
        code = aggregator.create_enrolment_code(settings, "north")
        enrolment = client.enrol(url, code, node_name="north", key_file=key_file, ca_file=ca_file)
    else:
        enrolment = replace(known.enrolment, url=url)
    connection = connect(enrolment, key_file=key_file, ca_file=ca_file, attempts=1)
    return Site(enrolment=enrolment, folder=folder, client=connection)


def test_one_update_survives_a_kill_at_every_step_and_is_merged_once(tmp_path: Path) -> None:
    config = tmp_path / "aggregator.toml"
    config.write_text(
        f'[aggregator]\ndata_dir = "{tmp_path / "centre"}"\nhost = "127.0.0.1"\nport = 0\nname = "centre"\n'
    )
    settings = load_aggregator_settings(config)
    aggregator.publish(settings, write_package(tmp_path / "toy"))
    with process(config, "judge") as (dying, port):
        site = site_at(port, tmp_path, settings, known=None)
        path, update = site.offer(toy_delta())
        with suppress(AggregatorError):  # the answer may be lost with the process
            site.client.push(path, update)
        assert dying.wait(20) == -signal.SIGKILL
    for step in ("write", "publish"):  # the restarted process goes on by itself, and dies later
        with process(config, step) as (dying, _):
            assert dying.wait(20) == -signal.SIGKILL
    with process(config, "never") as (_, port):
        site = site_at(port, tmp_path, settings, known=site)
        assert site.client.push(path, update).merged_version == 2  # the outbox repeats, and learns
        assert site.release().manifest.version == 2
    found = aggregator.status(settings)
    assert dict(found.updates)[UpdateState.MERGED] == 1
    assert [(row.family, row.version) for row in found.releases] == [(FAMILY, 2)]
    assert aggregator.verify_audit(settings).fault is None


def test_told_to_end_it_ends_in_order(tmp_path: Path, free_port: int) -> None:
    config = tmp_path / "aggregator.toml"
    config.write_text(
        f'[aggregator]\ndata_dir = "{tmp_path / "centre"}"\nhost = "127.0.0.1"\nport = {free_port}\n'
    )
    program = (
        "import sys, pathlib; from dicomnode import aggregator, settings; "
        "aggregator.serve(settings.load_aggregator_settings(pathlib.Path(sys.argv[1])))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(config)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as running:
        assert running.stdout is not None
        next(line for line in running.stdout if "aggregator started" in line)
        _wait_for(free_port, tmp_path / "centre" / "ca.pem")
        running.send_signal(signal.SIGTERM)
        assert "aggregator stopped" in running.stdout.read()
    assert running.returncode == 0


def _wait_for(port: int, ca_file: Path) -> None:
    end = monotonic() + 20
    while monotonic() < end:
        with suppress(httpx.TransportError):
            context = certificates.client_context(ca_file)
            if httpx.get(f"https://localhost:{port}/healthz", verify=context).status_code == 200:
                return
        sleep(0.05)
    raise TimeoutError(f"no aggregator answers on {port}")
