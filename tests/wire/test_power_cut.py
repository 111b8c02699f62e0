"""What was acknowledged survives the death of the receiver at any moment."""

import re
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread

from dicomnode.store import Store
from tests.peers import DCMTK_ENVIRONMENT, Program, need_dcmtk, start_receiver, storescu
from tests.wire.objects import write_series


@pytest.mark.parametrize("after", [3, 40])
def test_every_object_acknowledged_before_a_kill_is_on_disk_and_in_the_database(tmp_path, free_port, after):
    need_dcmtk("storescu")
    files = write_series(tmp_path / "series", count=60, size=128)
    receiver = start_receiver(tmp_path / "node", port=free_port)

    acknowledged = _send_until_killed(files, receiver, after=after)

    assert after <= len(acknowledged) < 60
    with_rows = _rows(tmp_path / "node", series_uid=str(dcmread(files[0]).SeriesInstanceUID))
    stored = list((tmp_path / "node" / "spool").glob("[0-9]*/*.dcm"))
    for path in acknowledged:
        sop_uid = path.stem
        [kept] = [p for p in stored if p.name.startswith(f"{sop_uid}.")]
        assert dcmread(kept).PixelData == dcmread(path).PixelData
        assert sop_uid in with_rows
    for kept in stored:  # a file with a final name is whole, acknowledged or not
        assert len(dcmread(kept).PixelData) == 128 * 128 * 2

    again = start_receiver(tmp_path / "node", port=free_port)
    assert storescu(files, again.destination).returncode == 0
    assert again.stop() == 0
    assert len(_rows(tmp_path / "node", series_uid=str(dcmread(files[0]).SeriesInstanceUID))) == 60
    assert len(list((tmp_path / "node" / "spool").glob("[0-9]*/*.dcm"))) == 60


def _send_until_killed(files: list[Path], receiver: Program, *, after: int) -> list[Path]:
    """Send with DCMTK, kill the receiver after some answers, and list what DCMTK was told is stored."""
    host, port = receiver.destination.host, str(receiver.destination.port)
    command = ["stdbuf", "-oL", need_dcmtk("storescu"), "-v", host, port, *map(str, files)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=DCMTK_ENVIRONMENT
    )
    assert process.stdout is not None
    current, acknowledged = None, []
    for line in process.stdout:
        if found := re.search(r"Sending file: (\S+)", line):
            current = Path(found[1])
        if "Received Store Response (Success)" in line and current is not None:
            acknowledged.append(current)
            if len(acknowledged) == after:
                receiver.kill()
    assert process.wait() != 0
    return acknowledged


def _rows(root: Path, *, series_uid: str) -> set[str]:
    store = Store.open(f"sqlite:///{root / 'node.sqlite'}")
    try:
        return {row.sop_instance_uid for row in store.series.instances_of(series_uid)}
    finally:
        store.close()
