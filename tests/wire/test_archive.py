"""The stand-in archive of the demo: a process that keeps objects in a folder."""

import subprocess
import sys

import pytest
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage

from dicomnode.scp import sender
from tests.peers import Program, is_listening, start_program, wait_until
from tests.wire.objects import data_set_bytes, make_image, write_series

SERVE = """
import sys
from pathlib import Path
from dicomnode.scp import archive
archive.serve(Path(sys.argv[1]), ae_title="ARCHIVE", host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def archive(tmp_path, free_port):
    """The archive as a process."""
    folder = tmp_path / "archive"
    command = [sys.executable, "-c", SERVE, str(folder), str(free_port)]
    running = start_program(command, folder, ae_title="ARCHIVE", port=free_port)
    yield running
    running.kill()


def test_objects_lie_under_their_series_as_they_were_sent(archive: Program, tmp_path):
    files = write_series(tmp_path / "series", count=4)

    sender.send_many(files, archive.destination, ae_title="DICOMNODE")

    series_uid = dcmread(files[0]).SeriesInstanceUID
    for path in files:
        assert data_set_bytes(archive.folder / series_uid / path.name) == data_set_bytes(path)
    assert not list(archive.folder.glob(".*"))


def test_it_ends_cleanly_on_a_signal(archive: Program):
    assert archive.stop() == 0
    wait_until(lambda: not is_listening(archive.destination.port))


def test_a_uid_that_is_a_path_is_refused(archive: Program, tmp_path):
    ds = make_image()
    ds.SeriesInstanceUID = "../outside"
    ae = AE()
    ae.add_requested_context(MRImageStorage, "1.2.840.10008.1.2.1")
    assoc = ae.associate("127.0.0.1", archive.destination.port)

    answer = assoc.send_c_store(ds)
    assoc.release()

    assert answer.Status == 0xC000
    assert not (tmp_path / "outside").exists()


def test_a_taken_port_ends_it_with_the_reason(archive: Program):
    command = [sys.executable, "-c", SERVE, str(archive.folder), str(archive.destination.port)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "is in use" in result.stderr
