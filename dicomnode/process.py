"""How a process of ours begins and ends: signals, the death of its supervisor, and foreseen errors."""

import os
import signal
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from pathlib import Path

from dicomnode.errors import ConfigError, DicomNodeError

CONFIGURATION_FAULT = 2  # exit status of a process that cannot run as configured: a restart would not help
PAUSE_S = 0.5  # the longest that a signal can stay unheard
PARENT_VARIABLE = "DICOMNODE_SUPERVISOR_PID"


def run_to_the_end(command: Callable[[], object]) -> None:
    """Run a command; an error that was foreseen is told in one line, with the exit status 2 or 1."""
    try:
        command()
    except DicomNodeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(CONFIGURATION_FAULT if isinstance(error, ConfigError) else 1)


def config_argument() -> Path | None:
    """The ``--config FILE`` of a process that its supervisor starts as a module of its own."""
    parser = ArgumentParser()
    parser.add_argument("--config", type=Path, default=os.environ.get("DICOMNODE_CONFIG"))
    path: Path | None = parser.parse_args().config
    return path


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM, SIGINT or the death of the supervisor sets; call from the main thread.

    A handler runs inside whatever the main thread does. It sets the event from a thread of its own, because
    the main thread may just hold the event's lock, about to wait for it, and would wait for itself.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=stop.set, name="stop").start())
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        threading.Thread(
            target=_watch_parent, args=(int(parent), stop.set), name="parent-watch", daemon=True
        ).start()
    return stop


def wait_for(stop: threading.Event) -> None:
    """Wait in the main thread until the event is set, however closely a signal comes before the wait.

    Python notes a signal and runs its handler between two instructions of the main thread. One that is
    noted on the way into a wait without limit would stay unheard until the next; here it is heard at once or
    half a second later.
    """
    while not stop.wait(PAUSE_S):
        pass


def join(threads: Iterable[threading.Thread]) -> None:
    """Wait in the main thread until all threads have ended, and hear signals meanwhile; see `wait_for`."""
    for thread in threads:
        while thread.is_alive():
            thread.join(PAUSE_S)


def _watch_parent(pid: int, orphaned: Callable[[], None]) -> None:
    """A role must not outlive its supervisor: a second one would find the port and the files taken."""
    pause = threading.Event()
    while os.getppid() == pid:
        pause.wait(1.0)
    orphaned()
