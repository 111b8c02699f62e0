"""Files as odd as people have collected them, sent to a running node: each ends with a result or a reason."""

from pathlib import Path

import pytest
from pydicom.data import get_testdata_files
from pydicom.uid import generate_uid

from dicomnode.domain import JobState, SeriesState
from dicomnode.errors import PeerError, UnreadableInstanceError
from dicomnode.scp import sender
from tests.conftest import take_free_port
from tests.peers import wait_until

from .series import SENDER, write_series
from .site import RESULT_LIMIT_S, Site, running, write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # pydicom's, about the files
]

ROUTE = """
[[routes]]
name = "small"
model = "hippocampus"
several_stacks = "best"
maximum_missing_slices = 2
[routes.where]
modality = []
kind = []
slices = { min = 1 }
attributes = { Rows = { max = 128 }, Columns = { max = 128 } }
"""
UNSETTLED = (SeriesState.RECEIVING, SeriesState.QUEUED)


def test_odd_files_end_with_a_result_or_a_reason_and_the_node_lives(tmp_path: Path, data_dir: Path) -> None:
    files = odd_files(data_dir)
    site = write_config(
        tmp_path / "node", port=take_free_port(), web_port=take_free_port(), routes=ROUTE, quiet_period_s=1.0
    )
    with running(site) as node:
        answers = [send(path, site) for path in files]
        wait_until(lambda: not unsettled(site), limit_s=RESULT_LIMIT_S, what="every series is settled")

        after = write_series(tmp_path / "after", seed=int(generate_uid()[-6:]))
        after.send(site.destination)
        site.wait_for(after.series_instance_uid, SeriesState.SEGMENTED)
        assert node.is_alive

    assert answers.count("taken") > len(files) / 2
    with site.store() as store:
        rows = store.series.list_series(limit=1000)
        jobs = store.jobs.list()
    segmented = [row for row in rows if row.state is SeriesState.SEGMENTED]
    assert len(rows) > 30
    assert len(segmented) >= 2
    assert [row.series_instance_uid for row in rows if row not in segmented and not row.reason] == []
    assert [(job.subject, job.reason) for job in jobs if job.state is JobState.FAILED or job.traceback] == []
    named = {row.series_instance_uid: instance_uids(site, row.series_instance_uid) for row in rows}
    refused = [row for row in rows if row.state is SeriesState.SET_ASIDE and not is_kept_only(row.reason)]
    for row in refused:
        assert any(uid in row.reason for uid in named[row.series_instance_uid])


def odd_files(data_dir: Path) -> list[Path]:
    """pydicom's own test files, the failures of the vendors, and slices at repeated positions."""
    folders = [data_dir / "vendors" / "failing", data_dir / "duplicate_positions"]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted({*map(Path, get_testdata_files()), *found})


def send(path: Path, site: Site) -> str:
    """Send a file, or say why it cannot be sent or is not taken."""
    try:
        sender.send(path, site.destination, ae_title=SENDER)
    except (PeerError, UnreadableInstanceError) as error:
        return str(error)
    return "taken"


def is_kept_only(reason: str) -> bool:
    """Whether a series holds no images at all, so that nothing is refused."""
    return reason.startswith("no images: ")


def instance_uids(site: Site, series_uid: str) -> list[str]:
    """The UIDs by which a reason may name a series: its own, and those of its instances."""
    with site.store() as store:
        return [series_uid, *(one.sop_instance_uid for one in store.series.instances_of(series_uid))]


def unsettled(site: Site) -> list[str]:
    with site.store() as store:
        rows = [row for state in UNSETTLED for row in store.series.list_series(limit=1000, state=state)]
    return [row.series_instance_uid for row in rows]
