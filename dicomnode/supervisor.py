"""Keep the processes of one machine running: start, watch, restart with back-off, stop together."""

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

import structlog

from dicomnode.errors import ConfigError
from dicomnode.process import CONFIGURATION_FAULT, PARENT_VARIABLE

log = structlog.get_logger()

_STEADY_S = 30.0  # a process that ran this long starts again at once
_LONGEST_WAIT_S = 30.0


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    next_start: float = 0.0
    quick_ends: int = 0


@dataclass(slots=True)
class Supervisor:
    """Runs one process per role until told to stop."""

    commands: Mapping[str, Sequence[str]]
    stop_grace_s: float = 20.0  # a role that outlasts it after SIGTERM is killed
    _children: list[_Child] = field(init=False)

    def __post_init__(self) -> None:
        """Prepare a slot for each role; nothing is started yet."""
        self._children = [_Child(name, command) for name, command in self.commands.items()]

    def run(self, should_stop: threading.Event) -> None:
        """Start every role and keep it running until the event is set.

        Raises
        ------
        ConfigError
            A role ended because its configuration cannot work (its own message is on its log).
        """
        try:
            while not should_stop.is_set():
                for child in self._children:
                    self._tend(child)
                should_stop.wait(0.2)
        finally:
            self._stop_all()

    def _tend(self, child: _Child) -> None:
        if child.process is None:
            if monotonic() >= child.next_start:
                self._start(child)
            return
        status = child.process.poll()
        if status is None:
            return
        child.process = None
        if status == CONFIGURATION_FAULT:
            raise ConfigError(
                f"the process {child.name!r} cannot run as configured; its message stands above"
            )
        steady = monotonic() - child.started >= _STEADY_S
        child.quick_ends = 0 if steady else child.quick_ends + 1
        wait_s = min(0.5 * 2 ** (child.quick_ends - 1), _LONGEST_WAIT_S) if child.quick_ends else 0.0
        child.next_start = monotonic() + wait_s
        log.warning("process ended, starting it again", process=child.name, status=status, wait_s=wait_s)

    def _start(self, child: _Child) -> None:
        environment = os.environ | {PARENT_VARIABLE: str(os.getpid())}
        child.process = subprocess.Popen(child.command, env=environment)
        child.started = monotonic()
        log.info("process started", process=child.name, pid=child.process.pid)

    def _stop_all(self) -> None:
        running = [(c, c.process) for c in self._children if c.process is not None]
        for _, process in running:
            process.terminate()
        deadline = monotonic() + self.stop_grace_s
        for child, process in running:
            try:
                process.wait(max(0.1, deadline - monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("process did not stop in time and is killed", process=child.name)
                process.kill()
                process.wait()
