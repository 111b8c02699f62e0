"""Log lines: one JSON object per line for machines, readable for people, and never a data set."""

import json
import subprocess
import sys

import pytest
import structlog

from dicomnode import logs

SCRIPT = """
import logging
import structlog
from dicomnode import logs
logs.configure(log_format="{log_format}", log_level="{log_level}", process="work")
log = structlog.get_logger()
log.debug("seen")
log.info("series segmented", series_instance_uid="1.2.3", seconds=1.5)
logging.getLogger("somebody.else").warning("disk is %s", "slow")
logging.getLogger("pynetdicom.dimse").info("(0010,0010) PN [Doe^Jane]")
patient_name = "Doe^Jane"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("fault")
"""


def lines_of(*, log_format: str, log_level: str = "info") -> list[str]:
    """Run a small program in a process of its own, for logging is configured once per process."""
    script = SCRIPT.format(log_format=log_format, log_level=log_level)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_gives_one_object_per_line_with_process_time_and_level() -> None:
    first, second, fault = (json.loads(line) for line in lines_of(log_format="json"))
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "series segmented",
        "level": "info",
        "process": "work",
        "series_instance_uid": "1.2.3",
        "seconds": 1.5,
    }
    assert (second["event"], second["level"], second["process"]) == ("disk is slow", "warning", "work")
    assert fault["exception"][0]["exc_type"] == "ZeroDivisionError"


def test_console_lines_are_readable_and_carry_the_traceback() -> None:
    text = "\n".join(lines_of(log_format="console"))
    assert "series segmented" in text
    assert "ZeroDivisionError: division by zero" in text


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("log_level", ["info", "debug"])
def test_neither_libraries_nor_tracebacks_put_a_patient_into_the_log(log_format: str, log_level: str) -> None:
    assert "Doe" not in "\n".join(lines_of(log_format=log_format, log_level=log_level)).replace(
        'patient_name = "Doe^Jane"', ""
    )


def test_the_level_decides_what_is_written() -> None:
    assert "seen" not in "\n".join(lines_of(log_format="console"))
    assert "seen" in "\n".join(lines_of(log_format="console", log_level="debug"))
    assert len(lines_of(log_format="json", log_level="error")) == 1


@pytest.fixture(scope="module")
def command_before() -> None:
    logs.configure(log_format="json", log_level="error", process="work")


@pytest.mark.usefixtures("command_before")
def test_logging_of_a_command_before_does_not_reach_into_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.get_logger().info("heard")
    assert "heard" in capsys.readouterr().out
