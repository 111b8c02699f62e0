"""Figures of what readers made of the results: by day of the site's time zone, and for a whole month."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from dicomnode.pipeline.figures import LabelFigures, daily, drift, whole
from dicomnode.store import Store
from tests.feedback_builders import BACK, FRONT, MODEL, Readers, score

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[Readers]:
    store = Store.open(f"sqlite:///{tmp_path / 'node.sqlite'}")
    yield Readers(store=store)
    store.close()


def of_day(readers: Readers, day: date, label: str = FRONT) -> LabelFigures:
    (found,) = [
        one for one in daily(readers.store, now=NOON, zone=BERLIN) if (one.since, one.label) == (day, label)
    ]
    return found


def test_share_dice_and_volume_bias_of_a_day(readers: Readers) -> None:
    version = readers.use("a", at=NOON - DAY)
    for dice, ours in ((0.8, 1200), (0.9, 900), (1.0, 1000)):
        readers.review(version, {FRONT: dice}, at=NOON, ours=ours)
    readers.segment(version, at=NOON)
    found = of_day(readers, date(2026, 11, 20))
    assert (found.results, found.corrected, found.corrected_share, found.reviews) == (4, 2, 0.5, 3)
    assert found.dice_mean == pytest.approx(0.9)
    assert found.dice_median == pytest.approx(0.9)
    assert found.volume_bias == pytest.approx(0.05)  # of 0.2 and -0.1
    assert found.volume_bias_sd == pytest.approx(0.3 / 2**0.5)
    back = of_day(readers, date(2026, 11, 20), BACK)
    assert (back.corrected_share, back.reviews, back.dice_mean, back.volume_bias) == (0.0, 0, None, None)


def test_a_label_that_readers_emptied_has_a_dice_but_no_volume_bias(readers: Readers) -> None:
    sent = readers.segment(readers.use("a", at=NOON), at=NOON)
    readers.correct(sent, score(FRONT, 0.0, theirs=0), at=NOON)
    found = of_day(readers, date(2026, 11, 20))
    assert (found.corrected, found.dice_mean, found.volume_bias) == (1, 0.0, None)


def test_a_correction_counts_for_the_day_of_its_result_and_its_dice_for_its_own(readers: Readers) -> None:
    sent = readers.segment(readers.use("a", at=NOON - 3 * DAY), at=NOON - 2 * DAY)
    readers.correct(sent, score(FRONT, 0.5), at=NOON)
    made, came = of_day(readers, date(2026, 11, 18)), of_day(readers, date(2026, 11, 20))
    assert (made.results, made.corrected, made.reviews, made.dice_mean) == (1, 1, 0, None)
    assert (came.results, came.corrected, came.corrected_share, came.dice_mean) == (0, 0, None, 0.5)


def test_days_end_at_midnight_of_the_site_also_when_the_clocks_change(readers: Readers) -> None:
    version = readers.use("a", at=datetime(2026, 10, 24, tzinfo=UTC))
    readers.segment(version, at=datetime(2026, 10, 24, 22, 30, tzinfo=UTC))  # 00:30 of the 25th, summer time
    readers.segment(version, at=datetime(2026, 10, 25, 22, 30, tzinfo=UTC))  # 23:30 of the 25th, winter time
    readers.segment(version, at=datetime(2026, 10, 25, 23, 30, tzinfo=UTC))  # 00:30 of the 26th
    assert of_day(readers, date(2026, 10, 25)).results == 2
    assert of_day(readers, date(2026, 10, 26)).results == 1


def test_a_month_in_one_row_for_each_label(readers: Readers) -> None:
    version = readers.use("a", at=NOON - 40 * DAY)
    for back, dice in ((35, 0.1), (20, 0.6), (1, 0.8)):
        readers.review(version, {FRONT: dice}, at=NOON - back * DAY)
    front, back_label = whole(readers.store, now=NOON, zone=BERLIN)
    assert (front.label, front.results, front.corrected, front.reviews) == (FRONT, 2, 2, 2)
    assert front.dice_mean == pytest.approx(0.7)
    assert (back_label.label, back_label.results, back_label.reviews) == (BACK, 2, 0)


def test_newest_day_first_and_labels_in_the_order_of_the_model(readers: Readers) -> None:
    version = readers.use("a", at=NOON - DAY)
    readers.segment(version, at=NOON - DAY)
    readers.segment(version, at=NOON)
    found = [(one.since.day, one.label) for one in daily(readers.store, now=NOON, zone=BERLIN)]
    assert found == [(20, FRONT), (20, BACK), (19, FRONT), (19, BACK)]


def test_a_worse_version_drifts_from_the_reviews_of_the_one_before(readers: Readers) -> None:
    assert drift(readers.store, MODEL) is None
    old = readers.use("a", at=NOON)
    for number in range(10):
        readers.review(old, {FRONT: 0.9, BACK: 0.9}, at=NOON + number * HOUR)
    new = readers.use("b", at=NOON + DAY)
    for number in range(4):
        readers.review(new, {FRONT: 0.7, BACK: 0.9}, at=NOON + DAY + number * HOUR)
    found = drift(readers.store, MODEL)
    assert found is not None
    assert (found.version, found.in_use_since) == (new, NOON + DAY)
    assert [(one.label, one.figure, one.since) for one in found.alarms] == [
        (FRONT, "dice", NOON + DAY + 2 * HOUR)
    ]
    readers.use("c", at=NOON + 2 * DAY)
    after = drift(readers.store, MODEL)
    assert after is not None
    assert after.alarms == ()
