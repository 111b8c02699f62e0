"""Where log lines go and what they look like; nothing else depends on it."""

import logging
import sys
from typing import Literal

import structlog

_QUIET = ("alembic", "apscheduler", "httpcore", "httpx", "matplotlib", "PIL", "uvicorn.access")
_WITHOUT_DETAIL = ("pynetdicom", "pydicom", "highdicom")  # at DEBUG and INFO they may print data sets


def configure(*, log_format: Literal["console", "json"], log_level: str, process: str) -> None:
    """Send the log lines of this process, ours and those of libraries, to standard error.

    Parameters
    ----------
    log_format
        "console" for people, "json" for one JSON object per line.
    log_level
        "debug", "info", "warning" or "error".
    process
        Role of this process ("receive", "work", ...); stands in every line.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a command and its tests may configure again
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=process)
    _attach_handler(shared, log_format=log_format, log_level=log_level)


def _attach_handler(shared: list[structlog.typing.Processor], *, log_format: str, log_level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _WITHOUT_DETAIL:
        logging.getLogger(name).setLevel(logging.ERROR)


def _renderers(log_format: str) -> list[structlog.typing.Processor]:
    """Choose how a line looks; a traceback never shows local variables, for those hold data sets."""
    if log_format == "json":
        traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(traceback), structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
