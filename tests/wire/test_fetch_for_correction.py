"""A correction comes for images that are not here: the archive is asked, and the correction is read."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicomnode.domain import CorrectionState, JobKind, JobState, SeriesState
from dicomnode.errors import AssociationError
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.pipeline.images import fetch_images
from dicomnode.settings import CorrectionSettings
from tests.pipeline_builders import FRONT, SHAPE, Scene, mr_series, opened_scene, viewer_seg
from tests.wire.archives import Pacs


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with opened_scene(tmp_path / "site") as opened:
        yield opened


def asking(scene: Scene, port: int) -> Scene:
    """The site, with an archive to ask and a reader whom it trusts."""
    return scene.with_changes(
        destinations={"archive": replace(Pacs.destination(port), name="archive")},
        corrections=CorrectionSettings(fetch_from="archive", trusted_ae_titles=("CHIEF",)),
    )


def drawn(series):
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 3:6, 4:9] = True
    return mask, viewer_seg(series, {FRONT: mask})


def test_the_images_are_fetched_and_the_correction_becomes_a_case(
    scene: Scene, free_ports: Callable[[], int]
) -> None:
    port, series = free_ports(), mr_series()
    server = Pacs(images=series).start(port)
    site = asking(scene, port)
    mask, seg = drawn(series)
    site.receive([seg], sender="CHIEF")
    try:
        waiting = site.claim(JobKind.INGEST_CORRECTION)
        ingest_correction(waiting, site.tools)
        assert "archive is asked for them" in site.tools.store.jobs.get(waiting.id).reason
        fetch_images(site.claim(JobKind.FETCH_IMAGES), site.tools)
    finally:
        server.shutdown()

    ingest_correction(site.claim(JobKind.INGEST_CORRECTION), site.tools)  # at once, not after the pause

    (record,) = site.tools.store.corrections.list()
    assert record.state is CorrectionState.KEPT
    np.testing.assert_array_equal(site.tools.casebook.read(record.case_id).labels == 1, mask)
    row = site.tools.store.series.get(series[0].SeriesInstanceUID)
    assert (row.state, row.reason) == (
        SeriesState.SET_ASIDE,
        "fetched from archive for a correction; not segmented",
    )
    site.quiet()
    assert site.tools.store.jobs.counts().get((JobKind.SEGMENT_SERIES, JobState.READY)) is None


def test_an_archive_without_the_images_is_asked_once_a_day_while_the_correction_is_parked(
    scene: Scene, free_ports: Callable[[], int]
) -> None:
    port = free_ports()
    server = Pacs(images=mr_series(1)).start(port)
    site = asking(scene, port)
    _, seg = drawn(mr_series(2))
    site.receive([seg], sender="CHIEF")
    asked = 0
    try:
        for _ in range(6):
            ingest_correction(site.claim(JobKind.INGEST_CORRECTION), site.tools)
            if site.tools.store.jobs.is_due({JobKind.FETCH_IMAGES}, site.clock()):
                fetch_images(site.claim(JobKind.FETCH_IMAGES), site.tools)
                asked += 1
            site.later(8 * 3600)
    finally:
        server.shutdown()

    assert asked == 2
    assert site.tools.store.corrections.list() == ()


def test_an_archive_that_is_down_is_asked_again_and_nothing_is_lost(
    scene: Scene, free_ports: Callable[[], int]
) -> None:
    site = asking(scene, free_ports())
    _, seg = drawn(mr_series())
    site.receive([seg], sender="CHIEF")
    ingest_correction(site.claim(JobKind.INGEST_CORRECTION), site.tools)

    with pytest.raises(AssociationError):
        fetch_images(site.claim(JobKind.FETCH_IMAGES), site.tools)

    assert site.tools.store.jobs.counts()[JobKind.INGEST_CORRECTION, JobState.READY] == 1
