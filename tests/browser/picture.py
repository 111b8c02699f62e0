"""Make the picture of docs/viewers.md: the shipped model's segmentation of a hippocampus, in OHIF.

    DICOMNODE_OHIF_VIEWER=.../package/dist .venv/bin/python -m tests.browser.picture FOLDER OUT.png

FOLDER holds the DICOM files of one MR series; all programs that `tests/browser` needs are needed.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from pydicom import dcmread

from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results import seg_write
from dicomnode.imaging.results.findings import Findings, Run, measure
from dicomnode.ml.inference import engine
from dicomnode.ml.model import package
from dicomnode.settings import shipped_models_folder
from tests.browser import ohif, viewer_server
from tests.browser.conftest import DICOM_WEB
from tests.conftest import take_free_port
from tests.imaging_builders import NOW, part_10
from tests.peers import LOOPBACK, start_orthanc


def main() -> None:
    """Segment, archive, open in the viewer, take the picture."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    findings = segmented(folder)
    port = take_free_port()
    with tempfile.TemporaryDirectory() as scratch:
        options = {"Plugins": [str(DICOM_WEB)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
        orthanc = start_orthanc(Path(scratch), take_free_port(), port, options=options)
        try:
            archive = f"http://{LOOPBACK}:{port}"
            viewer = Path(os.environ["DICOMNODE_OHIF_VIEWER"])
            with viewer_server.serve(viewer, archive=archive, port=take_free_port()) as address:
                results = seg_write.encode_binary(findings, run=Run(created_at=NOW, revision="picture"))
                viewer_server.store(address, [part_10(ds) for ds in (*findings.stack.datasets, *results)])
                photograph(address, findings, out)
        finally:
            orthanc.stop()


def segmented(folder: Path) -> Findings:
    """What the shipped model finds in a series."""
    series = to_volume([dcmread(path) for path in sorted(folder.rglob("*.dcm"))])
    model = engine.load(package.read(shipped_models_folder() / "hippocampus"), device="cpu")
    labels = seg_write.to_segment_numbers(engine.predict(model, series.image), model.card)
    return measure(labels, series=series, card=model.card)


def photograph(address: str, findings: Findings, out: Path) -> None:
    """Open the segmentation and its list of segments, and save the window on the fullest slice."""
    labels = findings.labels
    both = np.min(
        [np.count_nonzero(labels == m.segment.segment_number, axis=(1, 2)) for m in findings.found], 0
    )
    frame = findings.stack.frames[int(np.argmax(both))]
    with ohif.browse(shutil.which("chromium") or "chromium", address) as viewer:
        viewer.page.set_viewport_size({"width": 1400, "height": 800})
        viewer.open_study(str(findings.stack.first.StudyInstanceUID))
        viewer.open_result(seg_write.FIRST_SERIES_NUMBER)
        viewer.page.locator('[data-cy="panelSegmentation-btn"]').click()
        viewer.show((frame.sop_instance_uid, frame.frame_number))
        viewer.page.screenshot(path=out)


if __name__ == "__main__":
    main()
