"""Processes of one machine: kept running, stopped together, never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from dicomnode.errors import ConfigError
from dicomnode.supervisor import Supervisor
from tests.peers import wait_until

# A role: notes its start, its process and its end beside the others', and works until it is told to stop.
ROLE = """
import os, sys, time
from pathlib import Path
from dicomnode.process import stop_on_signals
stop = stop_on_signals()
here = Path(sys.argv[1])
(here / "starts").open("a").write(f"{time.monotonic()}\\n")
(here / "pid").write_text(str(os.getpid()))
stop.wait()
(here / "stopped").touch()
"""
DYING = """
import sys, time
from pathlib import Path
(Path(sys.argv[1]) / "starts").open("a").write(f"{time.monotonic()}\\n")
sys.exit(int(sys.argv[2]))
"""
DEAF = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(Path(sys.argv[1]) / "pid").write_text(str(os.getpid()))
time.sleep(600)
"""
SUPERVISING = f"""
import sys
from dicomnode.process import stop_on_signals
from dicomnode.supervisor import Supervisor
roles = {{str(n): [sys.executable, "-c", {ROLE!r}, folder] for n, folder in enumerate(sys.argv[1:])}}
Supervisor(roles).run(stop_on_signals())
"""


def role(folder: Path, *arguments: str, script: str = ROLE) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [sys.executable, "-c", script, str(folder), *arguments]


def starts(folder: Path) -> list[float]:
    path = folder / "starts"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def pid_of(folder: Path) -> int:
    wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text() != "", what="the role runs")
    return int((folder / "pid").read_text())


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def supervising(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor of two roles as a process of its own."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", SUPERVISING, *map(str, folders)]) as process:
        try:
            for folder in folders:
                pid_of(folder)
            yield process
        finally:
            process.kill()  # its roles notice and end


@contextmanager
def running(supervisor: Supervisor) -> Iterator[threading.Event]:
    """Supervise in a thread; the event, or leaving the block, stops it."""
    stop = threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(30)


def test_a_process_that_ends_is_started_again_after_growing_pauses(tmp_path: Path) -> None:
    folder = tmp_path / "dying"

    with running(Supervisor({"dying": role(folder, "1", script=DYING)})):
        wait_until(lambda: len(starts(folder)) == 4, what="the fourth start")

    times = starts(folder)
    pauses = [after - before for before, after in pairwise(times)]
    for pause, least in zip(pauses, (0.5, 1.0, 2.0), strict=True):
        assert pause >= least


def test_one_that_dies_leaves_the_others_alone(tmp_path: Path) -> None:
    with running(Supervisor({name: role(tmp_path / name) for name in ("a", "b")})):
        victim, bystander = pid_of(tmp_path / "a"), pid_of(tmp_path / "b")

        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: pid_of(tmp_path / "a") != victim, what="the new process")
        assert is_alive(bystander)
        assert len(starts(tmp_path / "b")) == 1

    assert (tmp_path / "b" / "stopped").exists()
    assert not is_alive(pid_of(tmp_path / "a"))


def test_a_role_that_cannot_run_as_configured_stops_them_all(tmp_path: Path) -> None:
    commands = {"good": role(tmp_path / "good"), "bad": role(tmp_path / "bad", "2", script=DYING)}

    with pytest.raises(ConfigError, match="'bad' cannot run as configured"):
        Supervisor(commands).run(threading.Event())

    assert len(starts(tmp_path / "bad")) == 1
    assert not (tmp_path / "good" / "pid").exists() or not is_alive(pid_of(tmp_path / "good"))


def test_sigterm_stops_every_role_in_good_order(supervising: subprocess.Popen[bytes], tmp_path: Path) -> None:
    supervising.terminate()

    assert supervising.wait(30) == 0
    for name in ("a", "b"):
        assert (tmp_path / name / "stopped").exists()
        assert not is_alive(pid_of(tmp_path / name))


def test_no_role_outlives_a_supervisor_that_is_killed(
    supervising: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    supervising.kill()
    supervising.wait()

    for name in ("a", "b"):
        pid = pid_of(tmp_path / name)
        wait_until(lambda pid=pid: not is_alive(pid), what=f"role {name} ends")
        assert (tmp_path / name / "stopped").exists()


def test_a_role_that_does_not_listen_is_killed_after_a_while(tmp_path: Path) -> None:
    with running(Supervisor({"deaf": role(tmp_path / "deaf", script=DEAF)}, stop_grace_s=0.5)):
        pid = pid_of(tmp_path / "deaf")
        began = time.monotonic()

    assert not is_alive(pid)
    assert time.monotonic() - began >= 0.5
