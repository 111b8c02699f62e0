"""Processes that are killed at random moments: what was acknowledged is there, and every job ends once."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

from pydicom import Dataset
from pydicom.filewriter import dcmwrite

from dicomnode.domain import JobKind, JobState, SeriesState
from dicomnode.spool import Spool
from dicomnode.store import DeliveryState, Store

from .conftest import MR, NOON, QUIET, make_instance, make_result, make_written

KINDS = {JobKind.SEGMENT_SERIES, JobKind.DELIVER_RESULT}
ENOUGH = 100_000


def receive(say: Callable[[str], None], root: Path, url: str, first: int) -> None:
    """Keep images and acknowledge each, until killed."""
    spool, store = Spool(root, minimum_free_bytes=0), Store.open(url)
    for number in range(first, first + ENOUGH):
        uid, now = f"1.2.{number % 7}.{number}", datetime.now(UTC)
        instance = spool.write(
            encode_image(uid, series=f"1.2.{number % 7}"),
            sop_class_uid=MR,
            sop_instance_uid=uid,
            transfer_syntax_uid="1.2.840.10008.1.2",
            sender="TEST",
            received_at=now,
        )
        store.series.record_instance(instance, now=now)
        say(uid)


def encode_image(uid: str, *, series: str) -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = MR, uid, "MR"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", series
    ds.BitsAllocated, ds.PixelData = 8, bytes(200_000)
    buffer = BytesIO()
    dcmwrite(buffer, ds, implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def work(say: Callable[[str], None], url: str, owner: str) -> None:
    """Claim segmentations and deliveries and end them, until killed."""
    store, lease = Store.open(url), timedelta(milliseconds=200)
    for _ in range(ENOUGH):
        now = datetime.now(UTC)
        job = store.jobs.claim(now, kinds=KINDS, owner=owner, lease=lease)
        if job is None:
            time.sleep(0.01)
            continue
        say(job.kind)
        if job.kind is JobKind.DELIVER_RESULT:
            store.results.mark_sent(job, int(job.subject), now=now)
            continue
        result = make_result(job.subject, series=job.subject, digest=job.digest)
        written = make_written(result, "PACS", "ARCHIVE")
        store.results.finish_segmentation(job, result, [written], now=now)


def run_and_kill(target: Callable[..., None], *arguments: object, lines: int, seconds: float) -> list[str]:
    """Run in a process until it has said some lines and a moment more, kill it, and give what it said."""
    reading, writing = os.pipe()

    def say(line: str) -> None:
        os.write(writing, f"{line}\n".encode())

    # The process opens connections of its own and uses none of its parent's, so a fork is safe and quick.
    process = multiprocessing.get_context("fork").Process(target=target, args=(say, *arguments))
    process.start()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        heard = [pipe.readline() for _ in range(lines)]
        time.sleep(seconds)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        heard += pipe.readlines()
    assert process.exitcode == -signal.SIGKILL
    return [line.strip() for line in heard if line.endswith("\n")]


def test_every_acknowledged_image_is_there_after_kill_9(store: Store, store_url: str, tmp_path: Path) -> None:
    moments = random.Random(20261120)
    root = tmp_path / "spool"
    acknowledged: list[str] = []
    for turn in range(6):
        acknowledged += run_and_kill(
            receive, root, store_url, turn * ENOUGH, lines=4, seconds=moments.uniform(0, 0.05)
        )
    assert len(acknowledged) >= 24
    spool = Spool(root, minimum_free_bytes=0)
    for uid in acknowledged:
        instance = store.series.instance(uid)
        assert instance is not None, uid
        [ds] = spool.read([instance])
        assert len(ds.PixelData) == 200_000
    later = datetime.now(UTC) + timedelta(minutes=1)
    on_disk = set(spool.stored_paths(older_than=timedelta(0), now=later))
    orphans = on_disk - store.series.known_paths(on_disk)
    assert len(orphans) <= 6  # at most the one image that each kill left unacknowledged
    spool.sweep(older_than=timedelta(0), now=later)
    assert list((root / "incoming").iterdir()) == []


def test_every_series_ends_in_one_result_and_one_delivery_each_after_kill_9(
    store: Store, store_url: str
) -> None:
    series = [f"1.2.{number}" for number in range(40)]
    for uid in series:
        store.series.record_instance(make_instance(1, series=uid), now=NOON)
    assert store.series.enqueue_quiet(NOON + QUIET, QUIET) == len(series)
    moments = random.Random(20261120)
    for turn in range(6):
        run_and_kill(work, store_url, f"w{turn}", lines=3, seconds=moments.uniform(0, 0.03))
    left = 3 * len(series) - sum(n for (_, state), n in store.jobs.counts().items() if state is JobState.DONE)
    run_and_kill(work, store_url, "last", lines=left, seconds=1.0)
    assert {row.state for row in store.series.list_series()} == {SeriesState.DELIVERED}
    assert store.jobs.counts() == {
        (JobKind.SEGMENT_SERIES, JobState.DONE): len(series),
        (JobKind.DELIVER_RESULT, JobState.DONE): 2 * len(series),
    }
    for uid in series:
        [result] = store.results.all_for_series(uid)
        states = [delivery.state for delivery in store.results.deliveries_of(result.sop_instance_uid)]
        assert states == [DeliveryState.SENT, DeliveryState.SENT]
