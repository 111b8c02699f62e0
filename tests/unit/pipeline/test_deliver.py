"""One result to one destination, over a real association."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from dicomnode.domain import Destination, JobKind, JobState, ResultForm, SeriesState
from dicomnode.errors import AssociationError, DeliveryError, LeaseLostError, UnreadableInstanceError
from dicomnode.pipeline.deliver import deliver_result
from dicomnode.scp import archive
from dicomnode.store.records import DeliveryState
from tests.conftest import take_free_port
from tests.pipeline_builders import Scene, mr_series


@pytest.fixture
def pacs(tmp_path: Path, scene: Scene) -> Iterator[Scene]:
    """The site beside a PACS that takes whatever is sent."""
    running = archive.start(tmp_path / "pacs", ae_title="PACS", host="127.0.0.1", port=take_free_port())
    peer = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=running.port)
    yield scene.with_changes(destinations={"pacs": peer})
    running.stop(limit_s=2.0)


def archived(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "pacs").glob("[0-9]*/*.dcm"))


def test_a_result_reaches_the_pacs_and_the_series_is_delivered(pacs, tmp_path):
    series = mr_series()
    result = pacs.segment(series)

    deliver_result(pacs.claim(JobKind.DELIVER_RESULT), pacs.tools)

    store = pacs.tools.store
    (delivery,) = store.results.deliveries_of(result.sop_instance_uid)
    assert (delivery.state, delivery.sent_at) == (DeliveryState.SENT, pacs.clock())
    assert store.series.state(series[0].SeriesInstanceUID) is SeriesState.DELIVERED
    (path,) = archived(tmp_path)
    (sent,) = [one for one in result.objects if one.form is ResultForm.SEG]
    ours = dcmread(pacs.tools.spool.path_of(store.series.instance(sent.sop_instance_uid)))
    assert dcmread(path) == ours


def test_a_second_delivery_after_a_crash_sends_the_same_object(pacs, tmp_path):
    pacs.segment(mr_series())
    dies = pacs.claim(JobKind.DELIVER_RESULT, owner="dies")
    pacs.later()
    deliver_result(pacs.claim(JobKind.DELIVER_RESULT, owner="lives"), pacs.tools)
    before = archived(tmp_path)[0].read_bytes()

    with pytest.raises(LeaseLostError):  # it had sent, and comes back from the dead
        deliver_result(dies, pacs.tools)

    (path,) = archived(tmp_path)
    assert path.read_bytes() == before
    assert pacs.tools.store.jobs.get(dies.id).state is JobState.DONE


def test_a_dead_pacs_is_named_and_nothing_is_marked(scene):
    result = scene.segment(mr_series())

    with pytest.raises(AssociationError, match=r"127\.0\.0\.1"):
        deliver_result(scene.claim(JobKind.DELIVER_RESULT), scene.tools)

    (delivery,) = scene.tools.store.results.deliveries_of(result.sop_instance_uid)
    assert delivery.state is DeliveryState.PENDING


def test_a_destination_that_was_taken_out_of_the_settings_says_what_to_do(scene):
    scene.segment(mr_series())
    without = scene.with_changes(destinations={})

    with pytest.raises(DeliveryError, match=r"'pacs' is not configured any more; add it to \[\[dest"):
        deliver_result(without.claim(JobKind.DELIVER_RESULT), without.tools)


def test_a_result_that_was_replaced_meanwhile_is_not_sent(pacs, tmp_path):
    series = mr_series()
    pacs.segment(series[:-1])
    job = pacs.claim(JobKind.DELIVER_RESULT)
    pacs.segment(series[-1:])

    deliver_result(job, pacs.tools)

    row = pacs.tools.store.jobs.get(job.id)
    assert (row.state, row.reason) == (JobState.DONE, "delivery is superseded")
    assert archived(tmp_path) == []


def test_a_result_whose_file_was_lost_is_named(pacs):
    result = pacs.segment(mr_series())
    (sent,) = [one for one in result.objects if one.form is ResultForm.SEG]
    pacs.tools.spool.path_of(pacs.tools.store.series.instance(sent.sop_instance_uid)).unlink()

    with pytest.raises(UnreadableInstanceError, match=sent.sop_instance_uid):
        deliver_result(pacs.claim(JobKind.DELIVER_RESULT), pacs.tools)
