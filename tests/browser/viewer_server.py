"""One origin for a browser: the files of a built OHIF, a configuration for it, and an archive's DICOMweb."""

import json
import threading
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.peers import LOOPBACK, is_listening, wait_until

ROUTES_OF_THE_VIEWER = ("/", "/viewer", "/segmentation")
NOT_PASSED_ON = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
CONFIGURATION: dict[str, Any] = {
    "name": "loopback",
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "customizationService": {},
    "showStudyList": True,
    "investigationalUseDialog": {"option": "never"},
    "maxNumberOfWebWorkers": 2,
    "showCPUFallbackMessage": True,
    "showErrorDetails": "always",
    "strictZSpacingForVolumeViewport": True,
    "defaultDataSourceName": "archive",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "archive",
            "configuration": {
                "friendlyName": "archive",
                "name": "archive",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "wadoUriRoot": "/dicom-web",
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsWildcard": True,
                "qidoSupportsIncludeField": False,
                "omitQuotationForMultipartRequest": True,
                "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
            },
        }
    ],
}


# How OHIF is told to save classic segmentations; without it 3.13.2 saves label maps.
SAVES_BITMAPS = {"store": {"defaultMode": "bitmap", "transferSyntaxUID": "1.2.840.10008.1.2.1"}}


@contextmanager
def serve(
    viewer: Path, *, archive: str, port: int, saving: Mapping[str, object] | None = None
) -> Generator[str]:
    """Serve the viewer in a folder with index.html before the DICOMweb of `archive`; gives the address.

    One origin for both, so that the browser asks nobody for leave. Loopback only. `saving` is the data
    source's option `segmentation`, such as `SAVES_BITMAPS`.
    """
    application = _application(viewer, archive, configuration_for(saving))
    server = uvicorn.Server(uvicorn.Config(application, host=LOOPBACK, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: is_listening(port), what="the viewer's server listens")
        yield f"http://{LOOPBACK}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def configuration_for(saving: Mapping[str, object] | None) -> dict[str, Any]:
    """Give OHIF's configuration with one archive, and how segmentations are saved where that is told."""
    chosen = deepcopy(CONFIGURATION)
    if saving is not None:
        chosen["dataSources"][0]["configuration"]["segmentation"] = saving
    return chosen


def _application(viewer: Path, archive: str, chosen: Mapping[str, Any]) -> Starlette:
    # A connection for each request: the archive may close one that waits, just when it is taken again.
    client = httpx.AsyncClient(
        base_url=archive, timeout=120, limits=httpx.Limits(max_keepalive_connections=0)
    )

    async def configuration(request: Request) -> Response:
        text = f"window.config = {json.dumps(chosen)};"
        return Response(text, media_type="text/javascript")

    async def page(request: Request) -> Response:
        return FileResponse(viewer / "index.html")

    async def dicom_web(request: Request) -> Response:
        # The archive builds the addresses in its answers from the host that it was asked for.
        wanted = {k: v for k, v in request.headers.items() if k not in NOT_PASSED_ON}
        answer = await client.request(
            request.method,
            httpx.URL(path=request.url.path, query=request.url.query.encode()),
            headers={**wanted, "accept-encoding": "identity"},
            content=await request.body(),
        )
        headers = {k: v for k, v in answer.headers.items() if k not in NOT_PASSED_ON}
        return Response(answer.content, status_code=answer.status_code, headers=headers)

    return Starlette(
        routes=[
            Route("/app-config.js", configuration),
            Route("/dicom-web/{rest:path}", dicom_web, methods=["GET", "POST"]),
            *(Route(path, page) for path in ROUTES_OF_THE_VIEWER),
            Mount("/", StaticFiles(directory=viewer)),
        ]
    )


def store(address: str, files: Sequence[bytes]) -> None:
    """Give Part 10 files to an archive by STOW-RS (PS3.18 10.5); raises where it does not take all."""
    boundary = uuid.uuid4().hex
    parts = [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file for file in files]
    answer = httpx.post(
        f"{address}/dicom-web/studies",
        content=b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()]),
        headers={
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        },
        timeout=120,
    )
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:500]}"
