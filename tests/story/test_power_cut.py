"""``kill -9`` of receiver and worker at random moments: nothing is lost, nothing is delivered twice."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE

from dicomnode.domain import Destination, JobKind, JobState, ResultForm, SeriesState
from tests.conftest import take_free_port
from tests.peers import Program, wait_until

from .series import Series, write_series
from .site import RESULT_LIMIT_S, RunningNode, Site, objects_of, running, start_pacs, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SENDS = 10
RECEIVE_KILLS = 5
WORK_KILLS = 6  # every second one while a job is in hand
SEED = 20261120
QUIET_PERIOD_S = 15.0  # longer than a restart of the receiver, with its back-off, and the sender's pause
RETRY_PAUSE_S = 1.0
RETRY_LIMIT_S = 120.0


@dataclass(slots=True)
class Tally:
    """What happened, for the report."""

    receive_kills: int = 0
    work_kills: int = 0
    jobs_cut: int = 0  # running at a kill of the worker
    sends_cut: int = 0
    acknowledged: set[str] = field(default_factory=set)  # SOP Instance UIDs answered 0000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """A sender that believes only success, and sends a series again until every image had one."""

    destination: Destination
    tally: Tally
    on_image: Callable[[int], None]  # told before each image how many were acknowledged since the start

    def send(self, series: Series) -> None:
        end = time.monotonic() + RETRY_LIMIT_S
        while not self._try(series):
            self.tally.sends_cut += 1
            assert time.monotonic() < end, "the receiver did not come back"
            time.sleep(RETRY_PAUSE_S)

    def _try(self, series: Series) -> bool:
        ae = AE(ae_title="SCANNER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
        assoc = ae.associate(self.destination.host, self.destination.port)
        if not assoc.is_established:
            return False
        for path in series.files:
            self.on_image(len(self.tally.acknowledged))
            try:
                answer = assoc.send_c_store(path)
            except RuntimeError:  # the association ended
                return False
            if answer.get("Status") != 0:
                assoc.abort()
                return False
            self.tally.acknowledged.add(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID))
        assoc.release()
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverKiller:
    """Kills the receiver a random moment after each of some random counts of acknowledged images."""

    node: RunningNode
    tally: Tally
    chance: random.Random
    at: set[int]

    def __call__(self, acknowledged: int) -> None:
        if acknowledged in self.at:
            self.at.discard(acknowledged)
            threading.Timer(self.chance.uniform(0, 0.03), self._kill).start()

    def _kill(self) -> None:
        self.tally.receive_kills += kill(self.node, "receive")


def kill(node: RunningNode, role: str) -> bool:
    """``kill -9`` of a role; False when it was down just then."""
    pid = node.pid_of(role)
    if pid is None:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def kill_workers(node: RunningNode, tally: Tally, chance: random.Random) -> None:
    """Kill the worker at random moments, every second time in the middle of a job."""
    for number in range(WORK_KILLS):
        time.sleep(chance.uniform(1, 8))
        if number % 2:
            wait_until(lambda: held_jobs(node) > 0, limit_s=RESULT_LIMIT_S, what="a job is in hand")
            time.sleep(chance.uniform(0, 1))
        wait_until(lambda: node.pid_of("work") is not None, limit_s=60, what="the worker runs")
        held = held_jobs(node)
        if kill(node, "work"):
            tally.work_kills += 1
            tally.jobs_cut += held


def held_jobs(node: RunningNode) -> int:
    """Jobs in the hands of the worker that runs now."""
    owner = f"-{node.pid_of('work')}"
    with node.site.store() as store:
        return sum(job.lease_owner.endswith(owner) for job in store.jobs.list(state=JobState.RUNNING))


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Program]:
    running_pacs = start_pacs(tmp_path / "pacs", port=take_free_port())
    yield running_pacs
    running_pacs.stop()


def test_kills_of_receiver_and_worker_lose_nothing_and_deliver_each_result_once(
    pacs: Program, tmp_path: Path
) -> None:
    every = [write_series(tmp_path / "series" / str(number), seed=number) for number in range(SENDS)]
    images = sum(len(series.files) for series in every)
    site = write_config(
        tmp_path / "node",
        port=take_free_port(),
        web_port=take_free_port(),
        destinations=[pacs.destination],
        quiet_period_s=QUIET_PERIOD_S,
    )
    tally, chance = Tally(), random.Random(SEED)
    with running(site) as node:
        began = time.monotonic()
        at = set(chance.sample(range(1, images), RECEIVE_KILLS))
        killer = ReceiverKiller(node=node, tally=tally, chance=chance, at=at)
        scanner = Scanner(destination=site.destination, tally=tally, on_image=killer)
        work_killer = threading.Thread(target=kill_workers, args=(node, tally, random.Random(SEED + 1)))
        work_killer.start()
        for series in every:
            scanner.send(series)
        sent = time.monotonic()
        work_killer.join()
        for series in every:
            site.wait_for(series.series_instance_uid, SeriesState.DELIVERED)
        ended = time.monotonic()
        assert node.process.poll() is None
    print(
        f"\n{tally.receive_kills} kills of receive ({tally.sends_cut} sends cut or refused), "
        f"{tally.work_kills} of work ({tally.jobs_cut} jobs cut); {images} images of {SENDS} series "
        f"acknowledged in {sent - began:.0f} s, all delivered after {ended - began:.0f} s"
    )
    assert (tally.receive_kills, tally.work_kills) == (RECEIVE_KILLS, WORK_KILLS)
    assert tally.sends_cut >= RECEIVE_KILLS
    assert tally.jobs_cut >= 1
    assert len(tally.acknowledged) == images
    assert_every_image_is_kept(site, every)
    assert_each_series_has_one_result(site, every, pacs)


def assert_every_image_is_kept(site: Site, every: list[Series]) -> None:
    """Each image that was acknowledged has a row and a whole file with its pixels."""
    with site.store() as store:
        for series in every:
            rows = {
                str(row.sop_instance_uid): row
                for row in store.series.instances_of(series.series_instance_uid)
            }
            assert len(rows) == len(series.files)
            for path in series.files:
                theirs = dcmread(path)
                ours = dcmread(site.spool.path_of(rows[str(theirs.SOPInstanceUID)]))
                assert ours == theirs


def assert_each_series_has_one_result(site: Site, every: list[Series], pacs: Program) -> None:
    """One SEG for each series at the PACS, of all its images, and no job that waits, hangs or failed."""
    uids = {series.series_instance_uid for series in every}
    delivered = [dcmread(path) for path in objects_of(pacs)]
    sources = Counter(str(ds.ReferencedSeriesSequence[0].SeriesInstanceUID) for ds in delivered)
    assert sources == Counter(uids)
    with site.store() as store:
        assert store.jobs.counts() == {
            (JobKind.SEGMENT_SERIES, JobState.DONE): SENDS,
            (JobKind.DELIVER_RESULT, JobState.DONE): SENDS,
        }
        for uid in uids:
            [result] = store.results.all_for_series(uid)
            assert not result.superseded
            assert result.source_digest == store.series.revision_digest(uid)
            sent = {one.sop_instance_uid for one in result.objects if one.form is ResultForm.SEG}
            assert len(sent & {str(ds.SOPInstanceUID) for ds in delivered}) == 1
