"""Whatever goes wrong is said, set aside with its reason, and in nobody else's way."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE

from dicomnode.domain import Destination, JobKind, JobState, SeriesState
from dicomnode.errors import AssociationError
from dicomnode.imaging.images.series import to_volume
from tests.conftest import take_free_port
from tests.imaging_builders import foreign_seg
from tests.peers import LOOPBACK, Program, start_program, wait_until
from tests.wire.objects import store_raw

from .series import Series, write_series
from .site import (
    RESULT_LIMIT_S,
    START_LIMIT_S,
    RunningNode,
    Site,
    call,
    command,
    dicomnode,
    objects_of,
    running,
    start_pacs,
    write_config,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORTER = 30  # slices; the route of such series leads to a PACS that is down
ROUTES = f"""
[[routes]]
name = "whole"
model = "hippocampus"
where = {{ slices = {{ min = 36 }}, extent_mm = {{ max = 90.0 }} }}
destinations = ["pacs"]
[[routes]]
name = "shorter"
model = "hippocampus"
where = {{ slices = {{ min = {SHORTER} }}, extent_mm = {{ max = 90.0 }} }}
destinations = ["absent"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """A node, a PACS beside it, and one that is not there."""

    node: RunningNode
    pacs: Program
    absent: Destination

    @property
    def site(self) -> Site:
        return self.node.site

    def status(self) -> Any:
        return self.site.ask("status", "--limit", "1000")

    def job_of(self, sop_instance_uid: str) -> Any:
        """The job in trouble that reads a received segmentation, as the status shows it."""
        with self.site.store() as store:
            jobs = {str(job.id): job.subject for job in store.jobs.list(kind=JobKind.INGEST_CORRECTION)}
            named = {store.series.instance(subject): number for number, subject in jobs.items()}
        numbers = {int(n) for one, n in named.items() if one and one.sop_instance_uid == sop_instance_uid}
        return next((job for job in self.status()["troubled_jobs"] if job["id"] in numbers), None)

    def wait_of(self, sop_instance_uid: str) -> str:
        """Why the job that reads a received segmentation waits; "" where it does not."""
        with self.site.store() as store:
            waiting = [
                (store.series.instance(job.subject), job.reason)
                for job in store.jobs.list(kind=JobKind.INGEST_CORRECTION, state=JobState.READY)
            ]
        reasons = (reason for one, reason in waiting if one and one.sop_instance_uid == sop_instance_uid)
        return next(reasons, "")

    def correction(self, sop_instance_uid: str) -> Any:
        found = [
            one for one in self.site.ask("corrections", "list") if one["sop_instance_uid"] == sop_instance_uid
        ]
        return found[0] if found else None


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    folder = tmp_path_factory.mktemp("ward")
    absent = Destination(name="absent", ae_title="ABSENT", host=LOOPBACK, port=take_free_port())
    pacs = start_pacs(folder / "pacs", port=take_free_port())
    try:
        site = write_config(
            folder / "node",
            port=take_free_port(),
            web_port=take_free_port(),
            destinations=[pacs.destination, absent],
            routes=ROUTES,
        )
        with running(site) as node:
            yield Ward(node=node, pacs=pacs, absent=absent)
    finally:
        pacs.stop()


@pytest.fixture
def good(ward: Ward, tmp_path: Path) -> Iterator[Series]:
    """A series that is sent and segmented; after the test another must be, by the same processes."""
    yield deliver(ward, tmp_path / "before")
    deliver(ward, tmp_path / "after")
    assert ward.node.is_alive


def deliver(ward: Ward, folder: Path) -> Series:
    series = write_series(folder, seed=int(generate_uid()[-6:]))
    series.send(ward.site.destination)
    ward.site.wait_for(series.series_instance_uid, SeriesState.DELIVERED)
    assert sum(is_result_of(path, series) for path in objects_of(ward.pacs)) == 1
    return series


def is_result_of(path: Path, series: Series) -> bool:
    ds = dcmread(path, stop_before_pixels=True)
    return bool(ds.ReferencedSeriesSequence[0].SeriesInstanceUID == series.series_instance_uid)


def sources_of(series: Series) -> list[Dataset]:
    return list(to_volume([dcmread(path) for path in series.files]).sources)


def write_seg(path: Path, series: Series, *, label: str) -> Dataset:
    """A segmentation from elsewhere, of two slices."""
    sources = sources_of(series)
    mask = np.zeros((sources[0].Rows, sources[0].Columns), bool)
    mask[10:20, 10:20] = True
    ds = foreign_seg(sources, [(1, 15, mask), (1, 16, mask)], labels=[label], manufacturer="Elsewhere")
    ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return ds


def send(path: Path, site: Site) -> None:
    Series(series_instance_uid="", files=(path,)).send(site.destination)


def test_bytes_that_are_no_dicom_are_refused_kept_and_explained(ward: Ward, good: Series) -> None:
    garbage = b"this is no DICOM at all" * 50
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    assoc = ae.associate(LOOPBACK, ward.site.destination.port)
    assert assoc.is_established

    answer = store_raw(assoc, garbage, sop_class_uid=MRImageStorage, sop_instance_uid="1.2.3")
    after = assoc.send_c_store(dcmread(good.files[0]))
    assoc.release()

    assert answer is not None
    assert (answer.Status, answer.ErrorComment) == (0xC000, "data set cannot be read; kept for inspection")
    assert after.Status == 0
    assert [path.read_bytes() for path in ward.site.quarantine] == [garbage]
    note = json.loads(ward.site.quarantine[0].with_suffix(".json").read_text())
    assert note["reason"].startswith("SOP Class UID: found none, expected")
    assert note["sender"] == "SCANNER"
    assert ward.status()["quarantined"] == 1


def become_ct(ds: Dataset) -> None:
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"


def become_large(ds: Dataset) -> None:
    ds.PixelSpacing = [3, 3]


def lose_its_position(ds: Dataset) -> None:
    del ds.ImagePositionPatient


def lose_its_pixels(ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[:100]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (become_ct, ("no model takes it", "modality is CT, wanted MR")),
        (become_large, ("no model takes it", "longest edge is 156 mm, at most 90 mm wanted")),
        (lose_its_position, ("ImagePositionPatient",)),
        (lose_its_pixels, ("cannot be decoded",)),
    ],
)
def test_a_series_that_cannot_be_segmented_is_set_aside_with_its_reason(
    ward: Ward, good: Series, tmp_path: Path, change: Any, reasons: tuple[str, ...]
) -> None:
    bad = write_series(tmp_path / "bad", seed=1, change=change)

    bad.send(ward.site.destination)
    ward.site.wait_for(bad.series_instance_uid, SeriesState.SET_ASIDE)

    status = ward.status()
    [shown] = [s for s in status["set_aside"] if s["series_instance_uid"] == bad.series_instance_uid]
    [job] = [j for j in status["troubled_jobs"] if j["subject"] == bad.series_instance_uid]
    for reason in reasons:
        assert reason in shown["reason"]
    named = {bad.series_instance_uid, *(str(dcmread(path).SOPInstanceUID) for path in bad.files)}
    assert any(uid in shown["reason"] for uid in named)
    assert "Story" not in shown["reason"]  # the patient's name and number
    assert "STORY" not in shown["reason"]
    assert job["reason"] == shown["reason"]
    assert (job["state"], job["attempts"], job["traceback"]) == (JobState.SET_ASIDE, 1, "")
    with ward.site.store() as store:
        kept = store.series.instances_of(bad.series_instance_uid)
    assert len(kept) == len(bad.files)
    assert all(ward.site.spool.path_of(instance).is_file() for instance in kept)


def test_a_pacs_that_is_down_gets_its_result_when_it_is_back_without_a_second_segmentation(
    ward: Ward, tmp_path: Path
) -> None:
    series = write_series(tmp_path / "series", seed=2, slices=SHORTER)

    series.send(ward.site.destination)
    ward.site.wait_for(series.series_instance_uid, SeriesState.SEGMENTED)

    def absent() -> Any:
        return next(one for one in ward.status()["destinations"] if one["destination"] == "absent")

    def attempts() -> tuple[int, ...]:
        with ward.site.store() as store:
            jobs = [j for j in store.jobs.list() if j.subject == series.series_instance_uid]
            [result] = store.results.all_for_series(series.series_instance_uid)
            [delivery] = store.results.deliveries_of(result.sop_instance_uid)
        return (*(job.attempts for job in jobs), delivery.attempts)

    wait_until(lambda: attempts()[-1] >= 3, limit_s=60, what="delivery is tried three times")
    assert absent()["pending"] == 1
    assert f"absent (ABSENT at {LOOPBACK} port {ward.absent.port})" in absent()["last_error"]
    assert "check that it runs" in absent()["last_error"]
    deliver(ward, tmp_path / "meanwhile")  # the other PACS does not wait

    back = start_pacs(tmp_path / "absent", port=ward.absent.port, ae_title="ABSENT")
    try:
        ward.site.wait_for(series.series_instance_uid, SeriesState.DELIVERED)
        [result] = objects_of(back)
    finally:
        back.stop()
    assert is_result_of(result, series)
    assert attempts()[0] == 1  # segmented once
    assert (absent()["pending"], absent()["last_error"]) == (0, "")
    assert ward.node.is_alive


def test_a_segmentation_of_images_that_are_not_here_waits_for_them(
    ward: Ward, good: Series, tmp_path: Path
) -> None:
    elsewhere = write_series(tmp_path / "elsewhere", seed=3)
    seg = write_seg(tmp_path / "seg.dcm", elsewhere, label="Hippocampus anterior")

    send(tmp_path / "seg.dcm", ward.site)
    wait_until(lambda: "parked" in ward.wait_of(seg.SOPInstanceUID), limit_s=RESULT_LIMIT_S, what="it waits")
    reason = ward.wait_of(seg.SOPInstanceUID)
    assert "are not held here" in reason
    assert elsewhere.series_instance_uid in reason
    assert ward.job_of(seg.SOPInstanceUID) is None

    elsewhere.send(ward.site.destination)
    wait_until(lambda: ward.correction(seg.SOPInstanceUID), limit_s=RESULT_LIMIT_S, what="it is read")
    found = ward.correction(seg.SOPInstanceUID)
    assert (found["recognition"], found["state"]) == ("new_annotation", "held")
    assert "trusted_ae_titles" in found["doubts"][0]


def test_a_segmentation_of_something_else_is_foreign_and_taught_to_nobody(
    ward: Ward, good: Series, tmp_path: Path
) -> None:
    seg = write_seg(tmp_path / "seg.dcm", good, label="Liver")

    send(tmp_path / "seg.dcm", ward.site)
    wait_until(lambda: ward.correction(seg.SOPInstanceUID), limit_s=RESULT_LIMIT_S, what="it is read")

    found = ward.correction(seg.SOPInstanceUID)
    assert (found["recognition"], found["case_id"]) == ("foreign", None)
    assert found["reasons"] == ["none of its segments is a label of the model"]
    assert "foreign" in dict(ward.status()["corrections"])


@pytest.mark.parametrize("altered", [False, True])
def test_our_own_result_that_comes_back_is_dropped(
    ward: Ward, good: Series, tmp_path: Path, *, altered: bool
) -> None:
    [path] = [path for path in objects_of(ward.pacs) if is_result_of(path, good)]
    ours = dcmread(path)
    if altered:  # as a PACS that puts its own values into what it keeps
        ours.AccessionNumber, ours.InstitutionName = "4711", "General"
        path = tmp_path / "altered.dcm"
        ours.save_as(path, enforce_file_format=True)
    before = len(ward.site.ask("corrections", "list"))

    send(path, ward.site)
    if altered:
        wait_until(lambda: ward.correction(ours.SOPInstanceUID), limit_s=RESULT_LIMIT_S, what="it is read")
        assert ward.correction(ours.SOPInstanceUID)["recognition"] == "loop_back"
        assert ward.correction(ours.SOPInstanceUID)["case_id"] is None
    else:
        assert len(ward.site.ask("corrections", "list")) == before
    assert list(ward.site.settings.cases_dir.rglob("*.npz")) == []


def test_a_port_that_is_taken_ends_the_start_with_status_2(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        site = write_config(tmp_path / "node", port=port, web_port=take_free_port())
        done = call("run", "--config", site.config, cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    assert f"error: port {port} of {LOOPBACK} is in use" in done.stderr
    assert "set another [scp] port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_nobody_knows_ends_the_start_with_status_2(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[scp]\nae_titel = "NODE"\n')

    done = call("run", "--config", config, cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    for part in (str(config), "scp.ae_titel", "ae_title"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_refuses_associations_and_check_says_why(tmp_path: Path) -> None:
    site = write_config(
        tmp_path / "node", port=take_free_port(), web_port=take_free_port(), minimum_free_gb=1e6
    )
    series = write_series(tmp_path / "series")
    receiver = start_program(
        dicomnode("receive", "--config", site.config),
        tmp_path / "receiver",
        ae_title="DICOMNODE",
        port=site.destination.port,
        limit_s=START_LIMIT_S,
    )
    try:
        with pytest.raises(AssociationError, match="congestion"):
            series.send(site.destination)
        checked = command("check", "--config", str(site.config), "--json")
    finally:
        receiver.stop()

    assert checked.exit_code == 1
    [fault] = [one for one in json.loads(checked.stdout) if one["what"] == "data folder"]
    assert fault["is_sound"] is False
    assert "below scp.minimum_free_gb = 1000000.0" in fault["finding"]
    assert "below its watermark" in receiver.log.read_text()

    roomy = write_config(
        tmp_path / "node", port=take_free_port(), web_port=take_free_port(), minimum_free_gb=0.1
    )
    receiver = start_program(
        dicomnode("receive", "--config", roomy.config),
        tmp_path / "receiver",
        ae_title="DICOMNODE",
        port=roomy.destination.port,
        limit_s=START_LIMIT_S,
    )
    try:
        series.send(roomy.destination)
    finally:
        receiver.stop()
