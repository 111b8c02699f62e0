"""Received instances and the series that they form."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from dicomnode.domain import JobKind, JobPriority, JobState, SeriesState
from dicomnode.errors import InputError
from dicomnode.store import Store
from dicomnode.store.receiving import Role, role_of

from .conftest import (
    LEASE,
    NOON,
    QUIET,
    SEG,
    claim,
    make_instance,
    make_result,
    make_result_instance,
    make_written,
    queue_series,
)

SECOND = timedelta(seconds=1)
SR = "1.2.840.10008.5.1.4.1.1.88.34"


def queued(store: Store, *, now: object = None) -> list[tuple[str, JobState]]:
    """Digests and states of the segmentations, oldest first."""
    return [(row.digest, row.state) for row in reversed(store.jobs.list(kind=JobKind.SEGMENT_SERIES))]


def test_the_first_image_opens_a_series(store: Store) -> None:
    assert store.series.record_instance(make_instance(1), now=NOON)
    series = store.series.get("1.2.3")
    assert series is not None
    assert (series.state, series.instances, series.modality) == (SeriesState.RECEIVING, 1, "MR")
    assert (series.received_at, series.last_received_at, series.sender) == (NOON, NOON, "SCANNER")
    assert series.received_at.utcoffset() == timedelta(0)


def test_what_was_recorded_comes_back_as_it_was(store: Store) -> None:
    instance = make_instance(1)
    store.series.record_instance(instance, now=NOON)
    assert store.series.instances_of("1.2.3") == [instance]
    assert store.series.instance("1.2.3.1") == instance
    assert store.series.instance(1) == instance
    assert store.series.instance("1") == instance  # as the subject of a job has it
    assert store.series.instance("1.2.3.999") is None
    assert store.series.state("9.9") is None


def test_a_byte_identical_duplicate_changes_nothing(store: Store) -> None:
    store.series.record_instance(make_instance(1), now=NOON)
    assert not store.series.record_instance(make_instance(1), now=NOON + SECOND)
    series = store.series.get("1.2.3")
    assert series is not None
    assert (series.instances, series.last_received_at) == (1, NOON)


def test_a_duplicate_after_segmentation_does_not_reopen_the_series(store: Store) -> None:
    job = queue_series(store)
    store.results.finish_segmentation(job, make_result(), [], now=NOON)
    assert not store.series.record_instance(make_instance(1), now=NOON + QUIET)
    assert store.series.state("1.2.3") is SeriesState.SEGMENTED


def test_other_bytes_under_a_known_uid_count_from_now_on_and_are_noted(store: Store) -> None:
    first, second = make_instance(1, content="a"), make_instance(1, content="b")
    store.series.record_instance(first, now=NOON)
    assert store.series.record_instance(second, now=NOON)
    assert store.series.instances_of("1.2.3") == [second]
    assert store.series.instance(first.sop_instance_uid) == second
    assert store.series.known_paths([first.path, second.path, "x"]) == {first.path, second.path}
    assert [(entry.event, entry.subject) for entry in store.audit.list()] == [("instance_variant", "1.2.3.1")]


def test_an_earlier_variant_sent_again_counts_again(store: Store) -> None:
    first, second = make_instance(1, content="a"), make_instance(1, content="b")
    for instance in (first, second):
        store.series.record_instance(instance, now=NOON)
    assert store.series.record_instance(first, now=NOON)
    assert store.series.instances_of("1.2.3") == [first]


def test_one_uid_in_two_series_counts_in_both_and_is_noted(store: Store) -> None:
    here = make_instance(1)
    there = make_instance(1, series="7.7", content="b")
    moved = type(there)(**{**_fields(there), "sop_instance_uid": here.sop_instance_uid})
    store.series.record_instance(here, now=NOON)
    store.series.record_instance(moved, now=NOON)
    assert store.series.instances_of("1.2.3") == [here]
    assert store.series.instances_of("7.7") == [moved]
    assert store.audit.list()[0].event == "instance_in_two_series"


def _fields(instance: object) -> dict[str, object]:
    return {name: getattr(instance, name) for name in instance.__slots__}  # type: ignore[attr-defined]


def test_a_series_is_queued_after_quiet_and_only_once(store: Store) -> None:
    store.series.record_instance(make_instance(1), now=NOON)
    store.series.record_instance(make_instance(2), now=NOON + SECOND)
    assert store.series.enqueue_quiet(NOON + QUIET, QUIET) == 0
    assert store.series.enqueue_quiet(NOON + QUIET + SECOND, QUIET) == 1
    assert store.series.enqueue_quiet(NOON + QUIET + SECOND, QUIET) == 0
    assert store.series.state("1.2.3") is SeriesState.QUEUED
    job = claim(store, JobKind.SEGMENT_SERIES, now=NOON + QUIET + SECOND)
    assert (job.subject, job.digest) == ("1.2.3", store.series.revision_digest("1.2.3"))


def test_the_silence_of_a_receiver_that_was_down_is_no_quiet(store: Store) -> None:
    store.series.record_instance(make_instance(1), now=NOON)
    assert store.series.restart_quiet(NOON + QUIET) == 1
    assert store.series.enqueue_quiet(NOON + QUIET, QUIET) == 0
    assert store.series.enqueue_quiet(NOON + 2 * QUIET, QUIET) == 1


def test_the_digest_does_not_depend_on_the_order_of_arrival(store: Store) -> None:
    for number in (2, 1):
        store.series.record_instance(make_instance(number), now=NOON)
    first = store.series.revision_digest("1.2.3")
    store.series.record_instance(make_instance(3), now=NOON)
    assert store.series.revision_digest("1.2.3") != first
    store.series.record_instance(make_instance(1, series="4.4"), now=NOON)
    store.series.record_instance(make_instance(2, series="4.4"), now=NOON)
    assert store.series.revision_digest("4.4") != first


def test_late_slice_reopens_the_series(store: Store) -> None:
    job = queue_series(store)
    store.results.finish_segmentation(job, make_result(), [], now=NOON)
    late = NOON + 2 * QUIET
    store.series.record_instance(make_instance(9), now=late)
    assert store.series.state("1.2.3") is SeriesState.RECEIVING
    assert store.series.enqueue_quiet(late + QUIET, QUIET) == 1
    (old, old_state), (new, new_state) = queued(store)
    assert old != new
    assert (old_state, new_state) == (JobState.DONE, JobState.READY)
    assert store.audit.list()[0].event == "series_reopened"


def test_a_late_slice_before_the_claim_retires_the_waiting_job(store: Store) -> None:
    store.series.record_instance(make_instance(1), now=NOON)
    store.series.enqueue_quiet(NOON + QUIET, QUIET)
    store.series.record_instance(make_instance(2), now=NOON + QUIET)
    kinds = {JobKind.SEGMENT_SERIES}
    assert store.jobs.claim(NOON + QUIET, kinds=kinds, owner="w", lease=LEASE) is None
    store.series.enqueue_quiet(NOON + 2 * QUIET, QUIET)
    assert [state for _, state in queued(store)] == [JobState.DONE, JobState.READY]


def test_a_revision_that_comes_back_is_run_again(store: Store) -> None:
    store.series.record_instance(make_instance(1, content="a"), now=NOON)
    store.series.enqueue_quiet(NOON + QUIET, QUIET)
    store.series.record_instance(make_instance(1, content="b"), now=NOON + QUIET)
    store.series.record_instance(make_instance(1, content="a"), now=NOON + QUIET)
    assert store.series.enqueue_quiet(NOON + 2 * QUIET, QUIET) == 1
    assert [state for _, state in queued(store)] == [JobState.READY]


def test_a_late_slice_gives_a_series_that_was_set_aside_another_chance(store: Store) -> None:
    job = queue_series(store)
    store.jobs.set_aside(job, now=NOON, reason="a slice is missing")
    assert store.series.list_series(state=SeriesState.SET_ASIDE)[0].reason == "a slice is missing"
    store.series.record_instance(make_instance(9), now=NOON + QUIET)
    series = store.series.get("1.2.3")
    assert series is not None
    assert (series.state, series.reason) == (SeriesState.RECEIVING, "")


def test_setting_an_old_revision_aside_leaves_the_reopened_series_alone(store: Store) -> None:
    job = queue_series(store)
    store.series.record_instance(make_instance(9), now=NOON + QUIET)
    store.jobs.set_aside(job, now=NOON, reason="a slice is missing")
    assert store.series.state("1.2.3") is SeriesState.RECEIVING


def test_a_person_can_have_a_series_segmented_at_once(store: Store) -> None:
    store.series.record_instance(make_instance(1), now=NOON)
    digest = store.series.force("1.2.3", now=NOON)
    job = claim(store, JobKind.SEGMENT_SERIES)
    assert job.digest == digest
    store.results.finish_segmentation(job, make_result(), [], now=NOON)
    assert store.series.force("1.2.3", now=NOON) == digest  # once more, for example with another model
    assert claim(store, JobKind.SEGMENT_SERIES).attempt == 1


def test_only_a_series_of_images_can_be_forced(store: Store) -> None:
    store.series.record_instance(make_instance(1, sop_class=SR, modality="SR"), now=NOON)
    with pytest.raises(InputError, match="no images"):
        store.series.force("1.2.3", now=NOON)
    with pytest.raises(InputError, match=r"no series 9\.9"):
        store.series.force("9.9", now=NOON)


def test_a_segmentation_that_was_set_aside_is_read_again_when_it_is_sent_again(store: Store) -> None:
    segmentation = make_instance(1, series="5.5", sop_class=SEG, modality="SEG")
    store.series.record_instance(segmentation, now=NOON)
    job = claim(store, JobKind.INGEST_CORRECTION)

    assert not store.series.record_instance(segmentation, now=NOON)
    assert store.jobs.list()[0].state is JobState.RUNNING  # a job in hand is left alone
    store.jobs.set_aside(job, now=NOON, reason="the images are not here")
    assert not store.series.record_instance(segmentation, now=NOON)
    again = claim(store, JobKind.INGEST_CORRECTION)
    assert (again.id, again.attempt) == (job.id, 1)
    store.jobs.finish(again, now=NOON)
    assert not store.series.record_instance(segmentation, now=NOON)
    assert store.jobs.counts() == {(JobKind.INGEST_CORRECTION, JobState.DONE): 1}


def test_a_segmentation_is_read_at_once_and_is_no_series(store: Store) -> None:
    segmentation = make_instance(1, series="5.5", sop_class=SEG, modality="SEG")
    assert store.series.record_instance(segmentation, now=NOON)
    assert not store.series.record_instance(segmentation, now=NOON)
    assert store.series.list_series() == []
    job = claim(store, JobKind.INGEST_CORRECTION)
    assert store.series.instance(int(job.subject)) == segmentation
    assert store.series.instances_of("5.5") == [segmentation]


def test_two_versions_of_a_received_segmentation_are_both_read(store: Store) -> None:
    for content in "ab":
        version = make_instance(1, series="5.5", sop_class=SEG, content=content)
        store.series.record_instance(version, now=NOON)
    assert store.jobs.counts() == {(JobKind.INGEST_CORRECTION, JobState.READY): 2}


def test_our_own_result_looped_back_unchanged_is_dropped(store: Store) -> None:
    job = queue_series(store)
    result = make_result()
    ours = make_result_instance(result)
    store.results.finish_segmentation(job, result, [make_written(result)], now=NOON)
    assert not store.series.record_instance(ours, now=NOON)
    assert (JobKind.INGEST_CORRECTION, JobState.READY) not in store.jobs.counts()


def test_our_own_result_looped_back_with_other_bytes_is_read(store: Store) -> None:
    job = queue_series(store)
    result = make_result()
    ours = make_result_instance(result)
    store.results.finish_segmentation(job, result, [make_written(result)], now=NOON)
    changed = type(ours)(**{**_fields(ours), "sha256": "f" * 64, "path": "else.dcm"})
    assert store.series.record_instance(changed, now=NOON)
    assert claim(store, JobKind.INGEST_CORRECTION)
    assert store.audit.list()[0].event == "instance_variant"
    assert store.series.instance(ours.sop_instance_uid) == ours  # what is sent again is ours, not theirs


def test_a_series_without_images_is_kept_and_says_why_it_is_not_segmented(store: Store) -> None:
    store.series.record_instance(make_instance(1, sop_class=SR, modality="SR"), now=NOON)
    assert store.series.enqueue_quiet(NOON + QUIET, QUIET) == 0
    series = store.series.list_series()[0]
    assert (series.state, series.instances) == (SeriesState.SET_ASIDE, 0)
    assert series.reason == "no images: SR objects are kept, not segmented"
    assert len(store.series.instances_of("1.2.3")) == 1


@pytest.mark.parametrize(
    ("sop_class_uid", "role"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", Role.IMAGE),  # CT
        ("1.2.840.10008.5.1.4.1.1.4", Role.IMAGE),  # MR
        ("1.2.840.10008.5.1.4.1.1.4.1", Role.IMAGE),  # Enhanced MR
        ("1.2.840.10008.5.1.4.1.1.128", Role.IMAGE),  # PET
        ("1.2.840.10008.5.1.4.1.1.77.1.4", Role.IMAGE),  # photography: not the family "7"
        ("1.2.840.10008.5.1.4.1.1.66.4", Role.SEGMENTATION),
        ("1.2.840.10008.5.1.4.1.1.66.7", Role.SEGMENTATION),  # label map
        ("1.2.840.10008.5.1.4.1.1.66", Role.OTHER),  # raw data
        ("1.2.840.10008.5.1.4.1.1.66.5", Role.OTHER),  # surface segmentation
        ("1.2.840.10008.5.1.4.1.1.7", Role.OTHER),  # secondary capture
        ("1.2.840.10008.5.1.4.1.1.88.59", Role.SEGMENTATION),  # key object selection: it may reject a result
        ("1.2.840.10008.5.1.4.1.1.11.1", Role.OTHER),  # presentation state
        ("1.2.840.10008.5.1.4.1.1.481.3", Role.SEGMENTATION),  # RT structure set
        ("1.2.840.10008.5.1.4.1.1.104.1", Role.OTHER),  # encapsulated PDF
        ("1.2.840.113619.4.26", Role.OTHER),  # private
    ],
)
def test_the_storage_class_tells_the_role(sop_class_uid: str, role: Role) -> None:
    assert role_of(sop_class_uid) is role


def test_images_that_arrive_in_parallel_form_one_series(
    store: Store, open_store: Callable[[], Store]
) -> None:
    new: list[bool] = []

    def receive(own: Store) -> None:
        for number in range(1, 16):
            new.append(own.series.record_instance(make_instance(number), now=NOON))

    threads = [threading.Thread(target=receive, args=(own,)) for own in (store, store, open_store())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == 15
    assert len(new) == 45
    assert [series.instances for series in store.series.list_series()] == [15]


def test_variants_that_arrive_in_parallel_leave_one_that_counts(
    store: Store, open_store: Callable[[], Store]
) -> None:
    variants = [make_instance(1, content=content) for content in "abcdef"]
    stores = [store, open_store()]
    threads = [
        threading.Thread(target=stores[n % 2].series.record_instance, args=(variant,), kwargs={"now": NOON})
        for n, variant in enumerate(variants)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.series.instances_of("1.2.3")) == 1


def test_a_forced_series_overtakes_all_and_is_routed_anew_when_its_images_come_again(store: Store) -> None:
    first, other = make_instance(1), make_instance(1, content="b")
    store.series.record_instance(first, now=NOON)
    digest = store.series.force("1.2.3", now=NOON)
    job = store.jobs.find(JobKind.SEGMENT_SERIES, digest)
    assert job is not None
    assert job.priority == JobPriority.FORCED
    for one in (other, first):
        store.series.record_instance(one, now=NOON)
    assert store.series.enqueue_quiet(NOON + QUIET, QUIET) == 1
    assert store.series.revision_digest("1.2.3") == digest
    again = store.jobs.find(JobKind.SEGMENT_SERIES, digest)
    assert again is not None
    assert (again.state, again.priority) == (JobState.READY, JobPriority.UNROUTED)
