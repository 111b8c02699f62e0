"""What was made, and where it went."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dicomnode.domain import Job, JobKind, JobState, ResultForm, SeriesState
from dicomnode.errors import LeaseLostError
from dicomnode.store import DeliveryState, Store

from .conftest import (
    LEASE,
    NOON,
    QUIET,
    claim,
    make_instance,
    make_result,
    make_result_instance,
    make_written,
    queue_series,
)

LATER = NOON + timedelta(hours=1)


def finish(store: Store, job: Job, name: str = "1", destinations: tuple[str, ...] = ("PACS",)) -> None:
    result = make_result(name, series=job.subject, digest=job.digest)
    store.results.finish_segmentation(job, result, [make_written(result, *destinations)], now=NOON)


def run_again(store: Store, *, image: int, now: object = LATER) -> Job:
    """Receive a late image and claim the new revision."""
    store.series.record_instance(make_instance(image), now=LATER)
    store.series.enqueue_quiet(LATER + QUIET, QUIET)
    return claim(store, JobKind.SEGMENT_SERIES, now=LATER + QUIET)


def test_a_result_comes_back_as_it_was(store: Store) -> None:
    job = queue_series(store)
    finish(store, job)
    made = make_result(digest=job.digest)
    result = replace(made, objects=(make_written(made).object,))
    assert store.results.by_sop_uid("2.25.1") == result
    assert store.results.by_result_series("2.26.1") == result
    assert store.results.by_voxels("1.2.3", result.voxels_sha256) == result
    assert store.results.by_voxels("1.2.4", result.voxels_sha256) is None
    assert store.results.by_tracking_uid("2.28.1") == result
    assert store.results.by_tracking_uid("2.28.2") is None
    assert store.results.latest_for_series("1.2.3") == result
    assert store.series.instance("2.25.1") == make_result_instance(result)


def test_one_transaction_ends_the_job_and_starts_the_deliveries(store: Store) -> None:
    finish(store, queue_series(store), destinations=("PACS", "ARCHIVE"))
    series = store.series.get("1.2.3")
    assert series is not None
    assert (series.state, series.model_version) == (SeriesState.SEGMENTED, "hippocampus@0123456789ab")
    assert store.jobs.counts() == {
        (JobKind.SEGMENT_SERIES, JobState.DONE): 1,
        (JobKind.DELIVER_RESULT, JobState.READY): 2,
    }
    job = claim(store, JobKind.DELIVER_RESULT)
    delivery = store.results.delivery(int(job.subject))
    assert delivery is not None
    assert (delivery.destination, delivery.state, delivery.result_sop_uid) == (
        "PACS",
        DeliveryState.PENDING,
        "2.25.1",
    )


def test_a_worker_that_lost_its_lease_records_no_result(store: Store) -> None:
    late = queue_series(store)
    claim(store, JobKind.SEGMENT_SERIES, now=LATER, owner="w2")
    with pytest.raises(LeaseLostError):
        finish(store, late)
    assert store.results.by_sop_uid("2.25.1") is None
    assert store.series.state("1.2.3") is SeriesState.QUEUED
    assert (JobKind.DELIVER_RESULT, JobState.READY) not in store.jobs.counts()


def test_an_empty_result_sends_nothing_and_says_so(store: Store) -> None:
    empty = replace(make_result(), voxels=(("posterior", 0), ("anterior", 0)))
    store.results.finish_segmentation(queue_series(store), empty, [make_written(empty)], now=NOON)
    series = store.series.get("1.2.3")
    assert series is not None
    assert series.state is SeriesState.SEGMENTED
    assert "no voxel" in series.reason
    latest = store.results.latest_for_series("1.2.3")
    assert latest is not None
    assert latest.is_empty
    assert store.results.deliveries_of(latest.sop_instance_uid) == []


def test_each_object_of_a_result_goes_to_its_own_destinations(store: Store) -> None:
    job = queue_series(store)
    result = make_result(digest=job.digest)
    kept, report = make_written(result), make_written(make_result("9"), "PACS", "ARCHIVE")
    report = replace(report, object=replace(report.object, form=ResultForm.SR, voxels_sha256=None))
    store.results.finish_segmentation(job, result, [kept, report], now=NOON)
    deliveries = store.results.deliveries_of(result.sop_instance_uid)
    assert [(d.object_sop_uid, d.destination) for d in deliveries] == [
        ("2.25.9", "PACS"),
        ("2.25.9", "ARCHIVE"),
    ]
    found = store.results.by_sop_uid("2.25.9")
    assert found is not None
    assert found.sop_instance_uid == result.sop_instance_uid
    assert [one.form for one in found.objects] == [ResultForm.LABEL_MAP, ResultForm.SR]
    assert store.results.by_result_series("2.26.9") == found


def test_a_repeat_with_the_same_result_sends_nothing_again(store: Store) -> None:
    finish(store, queue_series(store))
    job = claim(store, JobKind.DELIVER_RESULT)
    store.results.mark_sent(job, int(job.subject), now=NOON)
    store.series.force("1.2.3", now=NOON)
    finish(store, claim(store, JobKind.SEGMENT_SERIES), destinations=("PACS",))
    assert len(store.results.deliveries_of("2.25.1")) == 1
    assert store.jobs.claim(LATER, kinds=set(JobKind), owner="w", lease=LEASE) is None
    assert store.series.state("1.2.3") is SeriesState.DELIVERED


def test_other_destinations_later_do_not_resend_old_results(store: Store) -> None:
    finish(store, queue_series(store), destinations=("PACS",))
    finish(store, queue_series(store, series="7.7"), name="2", destinations=("ARCHIVE",))
    assert [d.destination for d in store.results.deliveries_of("2.25.1")] == ["PACS"]
    assert [d.destination for d in store.results.deliveries_of("2.25.2")] == ["ARCHIVE"]


def test_a_series_is_delivered_when_its_last_destination_has_the_result(store: Store) -> None:
    finish(store, queue_series(store), destinations=("PACS", "ARCHIVE"))
    first, second = (claim(store, JobKind.DELIVER_RESULT) for _ in range(2))
    store.results.mark_sent(first, int(first.subject), now=NOON)
    assert store.series.state("1.2.3") is SeriesState.SEGMENTED
    store.results.mark_sent(second, int(second.subject), now=LATER)
    assert store.series.state("1.2.3") is SeriesState.DELIVERED
    sent = store.results.deliveries_of("2.25.1")
    assert [(d.state, d.sent_at, d.attempts) for d in sent] == [
        (DeliveryState.SENT, NOON, 1),
        (DeliveryState.SENT, LATER, 1),
    ]


def test_a_delivery_shows_why_it_did_not_get_through(store: Store) -> None:
    finish(store, queue_series(store))
    job = claim(store, JobKind.DELIVER_RESULT)
    store.jobs.retry(job, now=NOON, run_after=NOON, reason="connection refused")
    delivery = store.results.delivery(int(job.subject))
    assert delivery is not None
    assert (delivery.attempts, delivery.last_error, delivery.state) == (
        1,
        "connection refused",
        DeliveryState.PENDING,
    )


def test_a_send_by_a_worker_without_lease_is_not_recorded(store: Store) -> None:
    finish(store, queue_series(store))
    late = claim(store, JobKind.DELIVER_RESULT)
    claim(store, JobKind.DELIVER_RESULT, now=LATER, owner="w2")
    with pytest.raises(LeaseLostError):
        store.results.mark_sent(late, int(late.subject), now=LATER)
    assert store.results.deliveries_of("2.25.1")[0].state is DeliveryState.PENDING


def test_a_new_revision_supersedes_the_old_result_and_stops_its_delivery(store: Store) -> None:
    finish(store, queue_series(store))
    job = run_again(store, image=9)
    finish(store, job, name="2")
    assert [(r.sop_instance_uid, r.superseded) for r in store.results.all_for_series("1.2.3")] == [
        ("2.25.1", True),
        ("2.25.2", False),
    ]
    latest = store.results.latest_for_series("1.2.3")
    assert latest is not None
    assert latest.sop_instance_uid == "2.25.2"
    assert store.results.deliveries_of("2.25.1")[0].state is DeliveryState.SUPERSEDED
    delivery = claim(store, JobKind.DELIVER_RESULT)
    assert int(delivery.subject) == store.results.deliveries_of("2.25.2")[0].id
    store.results.mark_sent(delivery, int(delivery.subject), now=NOON)
    assert store.series.state("1.2.3") is SeriesState.DELIVERED


def test_a_delivery_under_way_when_its_result_is_superseded_is_still_recorded(store: Store) -> None:
    finish(store, queue_series(store))
    under_way = claim(store, JobKind.DELIVER_RESULT, now=LATER + QUIET)
    finish(store, run_again(store, image=9), name="2")
    store.results.mark_sent(under_way, int(under_way.subject), now=LATER)
    assert store.results.deliveries_of("2.25.1")[0].state is DeliveryState.SENT
    assert store.series.state("1.2.3") is SeriesState.SEGMENTED


def test_a_failed_delivery_of_a_superseded_result_is_not_tried_again(store: Store) -> None:
    finish(store, queue_series(store))
    under_way = claim(store, JobKind.DELIVER_RESULT, now=LATER + QUIET)
    finish(store, run_again(store, image=9), name="2")
    store.jobs.retry(under_way, now=LATER, run_after=LATER, reason="refused")
    assert store.results.deliveries_of("2.25.1")[0].state is DeliveryState.SUPERSEDED
    job = claim(store, JobKind.DELIVER_RESULT, now=LATER + QUIET)
    assert int(job.subject) == store.results.deliveries_of("2.25.2")[0].id


def test_a_result_that_a_late_image_overtook_is_kept_but_not_sent(store: Store) -> None:
    job = queue_series(store)
    store.series.record_instance(make_instance(9), now=LATER)
    finish(store, job)
    result = store.results.by_sop_uid("2.25.1")
    assert result is not None
    assert result.superseded
    assert store.results.deliveries_of("2.25.1") == []
    assert store.series.state("1.2.3") is SeriesState.RECEIVING
    store.series.enqueue_quiet(LATER + QUIET, QUIET)
    finish(store, claim(store, JobKind.SEGMENT_SERIES, now=LATER + QUIET), name="2")
    assert len(store.results.deliveries_of("2.25.2")) == 1


def test_a_result_made_again_after_being_superseded_stands_again(store: Store) -> None:
    finish(store, queue_series(store))
    finish(store, run_again(store, image=9), name="2")
    store.series.force("1.2.3", now=LATER)
    finish(store, claim(store, JobKind.SEGMENT_SERIES, now=LATER), name="1")
    latest = store.results.latest_for_series("1.2.3")
    assert latest is not None
    assert latest.sop_instance_uid == "2.25.1"
    assert store.results.by_sop_uid("2.25.2").superseded  # type: ignore[union-attr]
    assert store.results.deliveries_of("2.25.1")[0].state is DeliveryState.PENDING


def test_the_overview_counts_and_names_troubles(store: Store) -> None:
    finish(store, queue_series(store), destinations=("PACS", "ARCHIVE"))
    job = claim(store, JobKind.DELIVER_RESULT)
    store.jobs.retry(job, now=NOON, run_after=LATER, reason="connection refused")
    bad = queue_series(store, series="7.7")
    store.jobs.set_aside(bad, now=NOON, reason="slices overlap")
    seen = store.overview()
    assert seen.series == ((SeriesState.SEGMENTED, 1), (SeriesState.SET_ASIDE, 1))
    assert (JobKind.DELIVER_RESULT, JobState.READY, 2) in seen.jobs
    assert [(s.series_instance_uid, s.reason) for s in seen.set_aside] == [("7.7", "slices overlap")]
    assert [(j.subject, j.reason) for j in seen.troubled_jobs] == [("7.7", "slices overlap")]
    assert [(d.destination, d.pending, d.sent, d.last_error) for d in seen.destinations] == [
        ("ARCHIVE", 1, 0, ""),
        ("PACS", 1, 0, "connection refused"),
    ]


def test_a_repeat_that_a_late_image_overtook_leaves_the_result_as_it_stands(store: Store) -> None:
    finish(store, queue_series(store))
    store.series.force("1.2.3", now=NOON)
    again = claim(store, JobKind.SEGMENT_SERIES)
    store.series.record_instance(make_instance(9), now=LATER)
    finish(store, again)
    assert not store.results.by_sop_uid("2.25.1").superseded  # type: ignore[union-attr]
    store.series.enqueue_quiet(LATER + QUIET, QUIET)
    finish(store, claim(store, JobKind.SEGMENT_SERIES, now=LATER + QUIET), name="2")
    # Its delivery, which waited all the time, was withdrawn in the end.
    assert store.results.deliveries_of("2.25.1")[0].state is DeliveryState.SUPERSEDED
    assert store.results.deliveries_of("2.25.2")[0].state is DeliveryState.PENDING
