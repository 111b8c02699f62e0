"""Fixtures that every level of tests shares: real data, optional programs, free ports, calm threads."""

import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import settings as hypothesis_settings

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DICOMNODE_DATA", REPOSITORY.parent / "shared" / "data"))
PEERS_REQUIRED = os.environ.get("DICOMNODE_REQUIRE_PEERS") == "1"
DATA_REQUIRED = os.environ.get("DICOMNODE_REQUIRE_DATA") == "1"
MACHINE_DEPENDENT = ("gpu",)  # folders whose tests may be skipped everywhere
NO_DATA = "no real images"
VIRTUAL_ENVIRONMENT = Path(sys.executable).parent

ROOT_LEVEL = logging.getLogger().level

torch.set_num_threads(int(os.environ.get("DICOMNODE_TEST_THREADS", "1")))
hypothesis_settings.register_profile("developer", deadline=None)
hypothesis_settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "developer")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a skipped test fail where the variables promise that everything is there."""
    report = yield
    if PEERS_REQUIRED and report.skipped and not hasattr(report, "wasxfail") and not _may_skip(item, report):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (not allowed: DICOMNODE_REQUIRE_PEERS=1)"
    return report


def _may_skip(item: pytest.Item, report: pytest.TestReport) -> bool:
    machine_dependent = any(part in MACHINE_DEPENDENT for part in item.path.relative_to(REPOSITORY).parts)
    return machine_dependent or (NO_DATA in str(report.longrepr) and not DATA_REQUIRED)


def need_program(name: str) -> str:
    """Find an optional program, or skip the test.

    The virtual environment comes last: it has programs of DCMTK's names that are pynetdicom's.
    """
    outside = [p for p in os.environ.get("PATH", "").split(os.pathsep) if Path(p) != VIRTUAL_ENVIRONMENT]
    places = os.pathsep.join([*outside, "/usr/sbin", "/usr/local/sbin", str(VIRTUAL_ENVIRONMENT)])
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"the program {name} is not installed")
    return found


@pytest.fixture(name="need_program", scope="session")
def need_program_fixture() -> Callable[[str], str]:
    """The function :func:`need_program`, for tests that take it as an argument."""
    return need_program


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real images: DICOMNODE_DATA, or ../shared/data beside the checkout."""
    if not DATA.is_dir():
        pytest.skip(f"{NO_DATA} in {DATA}; set DICOMNODE_DATA")
    return DATA


@pytest.fixture(autouse=True)
def logging_as_imported() -> Generator[None, None, None]:
    """Put logging back around each test: commands that run in this process configure it for themselves.

    Before a test as well: fixtures of a whole module run before this one and may have run a command.
    """
    _put_logging_back()
    yield
    _put_logging_back()


def _put_logging_back() -> None:
    structlog.reset_defaults()
    root = logging.getLogger()
    ours = structlog.stdlib.ProcessorFormatter
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler.formatter, ours)]
    root.setLevel(ROOT_LEVEL)


def take_free_port() -> int:
    """Find a TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def free_port() -> int:
    """One free TCP port of the loopback interface."""
    return take_free_port()


@pytest.fixture
def free_ports() -> Callable[[], int]:
    """A function that gives another free TCP port at each call."""
    return take_free_port
