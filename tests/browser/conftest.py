"""An archive with DICOMweb, OHIF before it and a browser: all real, started once for a module of tests."""

import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser import viewer_server
from tests.conftest import take_free_port
from tests.peers import LOOPBACK, need_orthanc, start_orthanc

DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The optional programs that these tests need."""

    chromium: str
    viewer: Path  # the folder with OHIF's index.html
    dicom_web: Path  # Orthanc's plugin


@pytest.fixture(scope="module")
def programs() -> Programs:
    """Find the programs, or skip with what is absent."""
    pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    need_orthanc()
    if not DICOM_WEB.is_file():
        pytest.skip(f"Orthanc's DICOMweb plugin is not installed: no {DICOM_WEB}")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the program chromium is not installed")
    folder = Path(os.environ.get("DICOMNODE_OHIF_VIEWER", "nowhere"))
    if not (folder / "index.html").is_file():
        pytest.skip("no built OHIF: set DICOMNODE_OHIF_VIEWER to package/dist of the npm package @ohif/app")
    return Programs(chromium=chromium, viewer=folder, dicom_web=DICOM_WEB)


@pytest.fixture(scope="module")
def address(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Address of OHIF, and below /dicom-web of the DICOMweb of an empty Orthanc."""
    port = take_free_port()
    orthanc = start_orthanc(
        tmp_path_factory.mktemp("archive"),
        take_free_port(),
        port,
        options={"Plugins": [str(programs.dicom_web)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}},
    )
    try:
        with viewer_server.serve(
            programs.viewer, archive=f"http://{LOOPBACK}:{port}", port=take_free_port()
        ) as at:
            yield at
    finally:
        orthanc.stop()


@pytest.fixture(scope="module")
def viewer(programs: Programs, address: str) -> Generator[Any]:
    """OHIF in a headless browser: an `ohif.Viewer` without a study."""
    from tests.browser import ohif  # noqa: PLC0415  playwright may be absent

    with ohif.browse(programs.chromium, address) as opened:
        yield opened
