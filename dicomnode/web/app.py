"""The node's HTTP server: /healthz for monitors, /metrics for Prometheus, /studies for scripts.

There is no login; it listens on the loopback interface unless the configuration says otherwise.
"""

import socket
import threading
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Annotated

import structlog
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from dicomnode import __version__
from dicomnode.domain import SeriesState
from dicomnode.errors import ConfigError, ResourceError
from dicomnode.process import join, stop_on_signals
from dicomnode.settings import NodeSettings, WebSettings
from dicomnode.site import configure_logging, make_folders, open_spool, opened_store, utc_now
from dicomnode.spool import Spool
from dicomnode.store import Store
from dicomnode.web import metrics
from dicomnode.web.health import Health, Verdict, examine
from dicomnode.web.studies import StudyView, group

log = structlog.get_logger()


def serve(settings: NodeSettings) -> None:
    """Serve until a signal ends the process; for its main thread.

    Raises
    ------
    ConfigError
        The port is taken or not allowed, or the host is not of this machine.
    """
    stop = stop_on_signals()
    configure_logging(settings, process="web")
    listening = _listen(settings.web)
    make_folders(settings)
    with opened_store(settings) as store:
        models = {route.model for route in settings.routes}
        app = build(store, open_spool(settings), models=models, now=utc_now)
        _serve_until(stop, app, listening)


def _serve_until(stop: threading.Event, app: FastAPI, listening: socket.socket) -> None:
    """Run uvicorn in a thread of its own: in the main thread it would take the signals for itself."""
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="http")
    thread.start()
    log.info("web listens", host=listening.getsockname()[0], port=listening.getsockname()[1])
    while thread.is_alive() and not stop.wait(0.5):
        pass
    server.should_exit = True
    join([thread])


def build(store: Store, spool: Spool, *, models: Collection[str], now: Callable[[], datetime]) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    models
        Names of the models that the routes need; a missing one makes the node unhealthy.
    """
    app = FastAPI(title="dicomnode", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/healthz", responses={503: {"model": Health}})
    def healthz(response: Response) -> Health:
        """Tell whether the node can do its work, with one verdict per dependency."""
        health = examine(store, spool, models=models, now=now())
        response.status_code = 503 if health.verdict is Verdict.FAILING else 200
        return health

    @app.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """Give figures in Prometheus' text format."""
        return Response(metrics.render(store, spool, now=now()), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get("/studies")
    def studies(
        state: SeriesState | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
    ) -> list[StudyView]:
        """List the series that changed last under their studies, newest first."""
        return group(store.series.list_series(limit, state))

    @app.exception_handler(ResourceError)
    def unavailable(_: Request, error: ResourceError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=503)

    return app


def _listen(settings: WebSettings) -> socket.socket:
    """Take the port before anything else is opened, so that a taken one is told in words."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"web: cannot listen on {settings.host} port {settings.port} ({error.strerror}); "
            f"stop the program that uses it, or change web.host or web.port"
        ) from error
