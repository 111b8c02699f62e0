"""Series that are here only because a correction needed their images."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from dicomnode.domain import JobKind, SeriesInstanceUid, SeriesState, StudyInstanceUid
from dicomnode.store import Store
from dicomnode.store.database import MIGRATIONS

from .conftest import LEASE, NOON, QUIET, SEG, claim, make_instance, make_result, queue_series

SECOND = timedelta(seconds=1)
SERIES = SeriesInstanceUid("1.2.3")


def begin(store: Store) -> None:
    store.fetches.begin(SERIES, study_uid=StudyInstanceUid("1.2"), modality="MR", archive="pacs", now=NOON)


def finish(store: Store) -> None:
    store.fetches.finish(SERIES, detail="3 images from pacs by C-GET", now=NOON + SECOND)


def fetch(store: Store) -> None:
    """Take three images as a C-GET does."""
    begin(store)
    for number in (1, 2, 3):
        assert store.series.record_instance(make_instance(number), now=NOON, is_fetched=True)
    finish(store)


def state(store: Store) -> SeriesState | None:
    return store.series.state(SERIES)


def test_a_fetched_series_is_set_aside_with_its_reason_and_never_queued(store: Store) -> None:
    fetch(store)
    row = store.series.get(SERIES)
    assert row is not None
    assert (row.state, row.instances, row.modality, row.study_instance_uid) == (
        SeriesState.SET_ASIDE,
        3,
        "MR",
        "1.2",
    )
    assert row.reason == "fetched from pacs for a correction; not segmented"
    assert len(store.series.instances_of(SERIES)) == 3
    assert store.series.enqueue_quiet(NOON + timedelta(days=9), QUIET) == 0
    [entry] = store.audit.list()
    assert (entry.event, entry.subject, entry.detail) == (
        "series_fetched",
        SERIES,
        "3 images from pacs by C-GET",
    )


def test_a_fetch_is_unfinished_from_its_beginning_to_its_end(
    store: Store, open_store: Callable[[], Store]
) -> None:
    assert not store.fetches.is_unfinished(SERIES)
    begin(store)
    store.series.record_instance(make_instance(1), now=NOON, is_fetched=True)
    assert open_store().fetches.is_unfinished(SERIES)  # also for the process that comes after a crash
    row = store.series.get(SERIES)
    assert row is not None
    assert row.reason == "being fetched from pacs for a correction"
    finish(store)
    assert not store.fetches.is_unfinished(SERIES)


@pytest.mark.parametrize("number", [1, 9], ids=["an image that was fetched", "a new image"])
def test_an_image_that_is_sent_here_afterwards_opens_a_fetched_series(store: Store, number: int) -> None:
    fetch(store)
    later = NOON + timedelta(hours=1)

    assert store.series.record_instance(make_instance(number), now=later)

    assert state(store) is SeriesState.RECEIVING
    assert not store.series.record_instance(make_instance(2), now=later + SECOND)  # it is open already
    assert store.series.enqueue_quiet(later + QUIET, QUIET) == 1
    assert not store.series.record_instance(make_instance(3), now=later + 2 * QUIET)
    assert state(store) is SeriesState.QUEUED


def test_an_image_that_is_sent_here_during_a_c_get_opens_the_series(store: Store) -> None:
    begin(store)
    store.series.record_instance(make_instance(1), now=NOON, is_fetched=True)
    store.series.record_instance(make_instance(1), now=NOON + SECOND)
    assert state(store) is SeriesState.RECEIVING
    store.series.record_instance(make_instance(2), now=NOON + SECOND, is_fetched=True)
    finish(store)
    row = store.series.get(SERIES)
    assert row is not None
    assert (row.state, row.reason) == (SeriesState.RECEIVING, "")


def test_what_comes_while_a_c_move_runs_opens_no_series(store: Store) -> None:
    begin(store)
    store.fetches.expect(SERIES, NOON + timedelta(minutes=10))

    for number in (1, 2, 1):
        store.series.record_instance(make_instance(number), now=NOON + number * SECOND)

    assert state(store) is SeriesState.SET_ASIDE
    assert len(store.series.instances_of(SERIES)) == 2


def test_a_c_move_that_never_ended_keeps_no_series_closed_for_ever(store: Store) -> None:
    begin(store)
    store.fetches.expect(SERIES, NOON + timedelta(minutes=10))
    store.series.record_instance(make_instance(1), now=NOON)

    store.series.record_instance(make_instance(2), now=NOON + timedelta(minutes=10))

    assert state(store) is SeriesState.RECEIVING
    assert not store.fetches.is_unfinished(SERIES)  # from now on it is like any other


@pytest.mark.parametrize("content", ["a", "b"], ids=["same bytes", "other bytes"])
@pytest.mark.parametrize("is_fetched", [True, False], ids=["C-GET", "C-MOVE"])
def test_a_segmented_series_that_is_fetched_again_keeps_its_state_and_results(
    store: Store, content: str, *, is_fetched: bool
) -> None:
    job = queue_series(store)
    result = make_result(digest=job.digest)
    store.results.finish_segmentation(job, result, [], now=NOON)

    begin(store)
    store.fetches.expect(SERIES, NOON + timedelta(minutes=10))
    for number in (1, 2, 3):
        is_news = store.series.record_instance(
            make_instance(number, content=content), now=NOON, is_fetched=is_fetched
        )
        assert is_news == (content == "b")
    finish(store)

    assert state(store) is SeriesState.SEGMENTED
    assert store.results.latest_for_series(SERIES) == result
    row = store.series.get(SERIES)
    assert row is not None
    assert row.reason == ""
    assert len(store.series.instances_of(SERIES)) == 3


def test_a_delivered_series_that_was_fetched_again_opens_only_by_other_bytes(store: Store) -> None:
    store.results.finish_segmentation(queue_series(store), make_result(), [], now=NOON)
    begin(store)
    finish(store)
    store.series.record_instance(make_instance(1), now=NOON)
    assert state(store) is SeriesState.SEGMENTED
    store.series.record_instance(make_instance(1, content="b"), now=NOON)
    assert state(store) is SeriesState.RECEIVING


def test_a_person_can_have_a_fetched_series_segmented(store: Store) -> None:
    fetch(store)
    store.series.force(SERIES, now=NOON)
    assert claim(store, JobKind.SEGMENT_SERIES).subject == SERIES
    assert not store.series.record_instance(make_instance(1), now=NOON)
    assert state(store) is SeriesState.QUEUED


def test_a_segmentation_in_a_series_that_is_fetched_is_read_as_ever(store: Store) -> None:
    begin(store)
    store.fetches.expect(SERIES, NOON + timedelta(minutes=10))
    seg = replace(make_instance(7, sop_class=SEG), series_instance_uid=SeriesInstanceUid("1.2.9"))
    store.series.record_instance(seg, now=NOON)
    assert claim(store, JobKind.INGEST_CORRECTION).attempt == 1


def test_a_second_fetch_of_a_fetched_series_ends_like_the_first(store: Store) -> None:
    fetch(store)
    begin(store)
    assert store.fetches.is_unfinished(SERIES)
    finish(store)
    row = store.series.get(SERIES)
    assert row is not None
    assert row.reason == "fetched from pacs for a correction; not segmented"


def test_to_finish_a_fetch_that_never_began_changes_nothing(store: Store) -> None:
    finish(store)
    assert state(store) is None
    assert store.audit.list() == ()


def test_series_of_older_tables_came_by_themselves(store: Store, store_url: str) -> None:
    store.results.finish_segmentation(queue_series(store), make_result(), [], now=NOON)
    before = store.series.get(SERIES)
    store.close()
    engine = create_engine(store_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
        assert connection.execute(text("SELECT count(*) FROM series")).scalar_one() == 1
    engine.dispose()

    opened = Store.open(store_url)

    assert opened.series.get(SERIES) == before
    assert not opened.fetches.is_unfinished(SERIES)
    assert not opened.series.record_instance(make_instance(1), now=NOON)
    assert opened.series.state(SERIES) is SeriesState.SEGMENTED
    assert opened.jobs.claim(NOON, kinds={JobKind.SEGMENT_SERIES}, owner="w", lease=LEASE) is None
    opened.close()
