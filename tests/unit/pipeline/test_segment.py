"""From a quiet series to one result that is queued once for each destination."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import SegmentationStorage

from dicomnode.domain import (
    Destination,
    JobKind,
    JobState,
    Recognition,
    ResultForm,
    SeriesState,
    StoredInstance,
)
from dicomnode.errors import (
    LeaseLostError,
    ResourceError,
    SpoolFullError,
    UnreadableInstanceError,
    UnsupportedSeriesError,
)
from dicomnode.imaging.results.findings import Run
from dicomnode.pipeline import forms
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.pipeline.segment import route, segment, segment_series
from dicomnode.pipeline.tools import Stopwatch
from dicomnode.spool import Spool
from dicomnode.store.records import DeliveryState, ResultRecord
from tests.pipeline_builders import BACK, FRONT, LEASE, MODEL, Scene, mr_series, tiny_weights

PEER = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=1)


def seg_files(scene: Scene) -> list[str]:
    return sorted(
        str(path)
        for path in (scene.folder / "spool").glob("[0-9]*/*.dcm")
        if dcmread(path, stop_before_pixels=True).SOPClassUID == SegmentationStorage
    )


def deliveries(scene: Scene) -> int:
    return sum(
        n for (kind, _), n in scene.tools.store.jobs.counts().items() if kind is JobKind.DELIVER_RESULT
    )


def test_a_series_becomes_one_result_and_one_delivery_for_each_destination(scene):
    archive = replace(PEER, name="archive")
    both = scene.with_changes(destinations={"pacs": PEER, "archive": archive})
    series = mr_series()

    result = both.segment(series)

    uid = series[0].SeriesInstanceUID
    store = scene.tools.store
    assert result.source_series_uid == uid
    assert result.model_version == store.models.current(MODEL).version
    assert [d.destination for d in store.results.deliveries_of(result.sop_instance_uid)] == [
        "pacs",
        "archive",
    ]
    assert store.series.get(uid).state is SeriesState.SEGMENTED
    found = both.found(series)
    assert dict(result.voxels) == {FRONT: int(found[FRONT].sum()), BACK: int(found[BACK].sum())}
    # 1 mm voxels: a thousand of them are a millilitre.
    assert dict(result.millilitres)[FRONT] == pytest.approx(found[FRONT].sum() / 1000)
    assert [step for step, _ in result.seconds] == [
        "read",
        "load model",
        "segment",
        "measure",
        "write results",
    ]


def test_a_route_that_names_its_destinations_sends_nowhere_else(scene):
    (route,) = scene.tools.routes
    only = scene.with_changes(
        destinations={"pacs": PEER, "archive": replace(PEER, name="archive")},
        routes=(route.model_copy(update={"destinations": ("archive",)}),),
    )

    result = only.segment(mr_series())

    sent = scene.tools.store.results.deliveries_of(result.sop_instance_uid)
    assert [d.destination for d in sent] == ["archive"]


def test_a_repeat_after_a_crash_before_the_last_transaction_ends_alike(scene):
    series = mr_series()
    scene.receive(series)
    scene.quiet()
    job = scene.claim(JobKind.SEGMENT_SERIES, owner="dies")
    # What the story had done when it was killed: everything but its transaction.
    tools = scene.tools
    instances = tools.store.series.instances_of(job.subject)
    choice = route(tools.spool.read(instances), tools.routes, sender="SCANNER")
    made = segment(choice, model_named=tools.current_model, watch=Stopwatch())
    run = Run(created_at=max(instance.received_at for instance in instances), revision=job.digest)
    left = forms.write(
        made.findings,
        run=run,
        wanted={"pacs": (ResultForm.SEG,)},
        keep=lambda one: tools.spool.write_result(one.ds, sender=tools.ae_title, created_at=tools.now()),
    ).objects
    scene.later()

    again = scene.claim(JobKind.SEGMENT_SERIES, owner="lives")
    segment_series(again, tools)

    result = tools.store.results.latest_for_series(job.subject)
    assert again.attempt == 2
    assert [one.sop_instance_uid for one in result.objects] == [one.sop_instance_uid for one in left]
    assert result.path == left[0].path
    assert len(seg_files(scene)) == 1
    assert deliveries(scene) == 1


def test_a_worker_that_lost_its_lease_records_nothing(scene):
    scene.receive(mr_series())
    scene.quiet()
    slow = scene.claim(JobKind.SEGMENT_SERIES, owner="slow")
    scene.later()
    quick = scene.claim(JobKind.SEGMENT_SERIES, owner="quick")

    with pytest.raises(LeaseLostError):
        segment_series(slow, scene.tools)

    assert scene.tools.store.results.latest_for_series(slow.subject) is None
    segment_series(quick, scene.tools)
    assert len(seg_files(scene)) == 1
    assert deliveries(scene) == 1


def test_a_series_that_is_sent_and_segmented_again_is_not_delivered_again(scene):
    series = mr_series()
    first = scene.segment(series)
    store = scene.tools.store

    store.series.force(series[0].SeriesInstanceUID, now=scene.clock())
    segment_series(scene.claim(JobKind.SEGMENT_SERIES), scene.tools)

    second = store.results.latest_for_series(series[0].SeriesInstanceUID)
    assert second.sop_instance_uid == first.sop_instance_uid
    assert deliveries(scene) == 1


def test_a_late_image_makes_a_new_result_that_replaces_the_first(scene):
    series = mr_series()
    first = scene.segment(series[:-1])

    second = scene.segment(series[-1:])

    store = scene.tools.store
    assert second.sop_instance_uid != first.sop_instance_uid
    assert second.series_instance_uid != first.series_instance_uid
    assert store.results.by_sop_uid(first.sop_instance_uid).superseded
    (old,) = store.results.deliveries_of(first.sop_instance_uid)
    assert old.state is DeliveryState.SUPERSEDED


def test_a_job_of_an_older_revision_leaves_the_series_to_the_newer_one(scene):
    series = mr_series()
    scene.receive(series[:-1])
    scene.quiet()
    job = scene.claim(JobKind.SEGMENT_SERIES)
    scene.receive(series[-1:])

    segment_series(job, scene.tools)

    row = scene.tools.store.jobs.get(job.id)
    assert (row.state, row.reason) == (
        JobState.DONE,
        "a later image came; its own job segments the series",
    )
    assert scene.tools.store.series.state(job.subject) is SeriesState.RECEIVING
    assert seg_files(scene) == []


def test_nothing_found_is_said_and_nothing_is_sent(scene):
    scene.use(tiny_weights(background=1000.0))
    series = mr_series()

    assert scene.segment(series).is_empty

    row = scene.tools.store.series.get(series[0].SeriesInstanceUID)
    assert row.state is SeriesState.SEGMENTED
    assert "no voxel" in row.reason
    assert (seg_files(scene), deliveries(scene)) == ([], 0)


def test_a_full_disk_in_the_middle_leaves_the_job_to_be_tried_again(scene):
    series = mr_series()
    scene.receive(series)
    scene.quiet()
    job = scene.claim(JobKind.SEGMENT_SERIES)
    full = replace(scene.tools, spool=Spool(scene.folder / "spool", minimum_free_bytes=2**60))

    with pytest.raises(SpoolFullError, match="free some space"):
        segment_series(job, full)

    assert scene.tools.store.series.state(job.subject) is SeriesState.QUEUED
    segment_series(job, scene.tools)  # when there is room again
    assert len(seg_files(scene)) == 1


def test_a_version_in_use_that_is_missing_on_the_shelf_is_no_fault_of_the_series(scene):
    scene.receive(mr_series())
    scene.quiet()
    job = scene.claim(JobKind.SEGMENT_SERIES)
    version = scene.tools.current_record(MODEL).version
    folder = scene.tools.shelf.folder(version)
    folder.rename(scene.folder / "elsewhere")

    with pytest.raises(ResourceError, match=r"restore its folder.*models promote"):
        segment_series(job, scene.tools)

    (scene.folder / "elsewhere").rename(folder)
    segment_series(job, scene.tools)
    assert scene.tools.store.results.latest_for_series(job.subject).model_version == version


def test_a_series_that_no_model_takes_says_why_without_naming_the_patient(scene):
    scene.receive(mr_series(shape=(5, 12, 14), patient_id="SECRET-7"))
    scene.quiet()

    with pytest.raises(UnsupportedSeriesError, match="5 slices, at least 6 wanted") as caught:
        segment_series(scene.claim(JobKind.SEGMENT_SERIES), scene.tools)

    assert "SECRET" not in str(caught.value)
    assert "Nobody" not in str(caught.value)


def test_an_image_that_no_network_takes_is_refused_with_the_series(scene):
    series = mr_series(shape=(8, 1, 14))
    scene.receive(series)
    scene.quiet()

    with pytest.raises(UnsupportedSeriesError, match="needs at least 2 along each") as caught:
        segment_series(scene.claim(JobKind.SEGMENT_SERIES), scene.tools)

    assert str(caught.value).startswith(f"series {series[0].SeriesInstanceUID}: ")


class ChokingSpool(Spool):
    """A spool that cannot keep objects of one modality."""

    def __init__(self, root: Path, *, modality: str, error: Exception) -> None:
        super().__init__(root, minimum_free_bytes=0)
        self._modality, self._error = modality, error

    def write_result(self, ds: Dataset, *, sender: str, created_at: datetime) -> StoredInstance:
        if ds.Modality == self._modality:
            raise self._error
        return super().write_result(ds, sender=sender, created_at=created_at)


def choking(scene: Scene, *, modality: str, error: Exception) -> Scene:
    """A site whose peer gets every form, and that cannot write one of them."""
    return scene.with_changes(
        destinations={"pacs": replace(PEER, results=tuple(ResultForm))},
        spool=ChokingSpool(scene.folder / "spool", modality=modality, error=error),
    )


def forms_queued(scene: Scene, result: ResultRecord) -> set[ResultForm]:
    form_of = {one.sop_instance_uid: one.form for one in result.objects}
    sent = scene.tools.store.results.deliveries_of(result.sop_instance_uid)
    return {form_of[one.object_sop_uid] for one in sent}


@pytest.mark.parametrize(
    ("modality", "missing"),
    [("SR", ResultForm.SR), ("RTSTRUCT", ResultForm.RTSTRUCT), ("OT", ResultForm.SC)],
)
def test_a_form_that_cannot_be_written_costs_no_other_and_is_said(scene, modality, missing):
    series = mr_series()
    bad = choking(scene, modality=modality, error=UnreadableInstanceError("a tag cannot be encoded"))

    result = bad.segment(series)

    store = scene.tools.store
    assert forms_queued(scene, result) == set(ResultForm) - {missing}
    row = store.series.get(series[0].SeriesInstanceUID)
    assert row.state is SeriesState.SEGMENTED
    assert row.reason == f"no {missing} was written: a tag cannot be encoded"
    (trouble,) = store.overview().troubled_jobs
    assert (trouble.state, trouble.reason) == (JobState.SET_ASIDE, row.reason)


def test_a_fault_of_the_program_in_one_form_keeps_its_traceback_and_not_its_words_for_all(scene):
    series = mr_series()

    choking(scene, modality="SR", error=RuntimeError("Nobody^Known")).segment(series)

    (trouble,) = scene.tools.store.overview().troubled_jobs
    assert trouble.state is JobState.FAILED
    assert "internal fault: RuntimeError" in trouble.reason
    assert "Nobody" not in trouble.reason
    assert "write_result" in trouble.traceback


def test_a_report_on_a_segmentation_that_could_not_be_written_names_the_one_that_is_there(scene):
    bad = scene.with_changes(
        destinations={"pacs": replace(PEER, results=tuple(ResultForm))},
        spool=ChokingOnBinary(scene.folder / "spool", minimum_free_bytes=0),
    )

    result = bad.segment(mr_series())

    assert forms_queued(scene, result) == set(ResultForm) - {ResultForm.SEG}
    (report,) = (one for one in result.objects if one.form is ResultForm.SR)
    (ds,) = scene.tools.spool.read([scene.tools.store.series.instance(report.sop_instance_uid)])
    named = {str(one.value) for one in ds.iterall() if one.keyword == "ReferencedSOPInstanceUID"}
    assert result.sop_instance_uid in named


class ChokingOnBinary(Spool):
    """A spool that cannot keep BINARY segmentations."""

    def write_result(self, ds: Dataset, *, sender: str, created_at: datetime) -> StoredInstance:
        if ds.SOPClassUID == SegmentationStorage:
            raise UnreadableInstanceError("too large")
        return super().write_result(ds, sender=sender, created_at=created_at)


def test_a_series_that_lacks_a_form_is_not_delivered_until_a_fresh_start_adds_it(scene):
    series = mr_series()
    uid = series[0].SeriesInstanceUID
    bad = choking(scene, modality="SR", error=UnreadableInstanceError("a tag cannot be encoded"))
    first = bad.segment(series)
    send_all(scene)
    store = scene.tools.store
    assert store.series.state(uid) is SeriesState.SEGMENTED

    (trouble,) = store.overview().troubled_jobs
    store.jobs.requeue(trouble.id, now=scene.clock())
    mended = bad.with_changes(spool=scene.tools.spool)
    segment_series(mended.claim(JobKind.SEGMENT_SERIES), mended.tools)

    second = store.results.latest_for_series(uid)
    assert second.sop_instance_uid == first.sop_instance_uid
    assert forms_queued(scene, second) == set(ResultForm)
    assert send_all(scene) == 1
    assert store.series.state(uid) is SeriesState.DELIVERED
    assert store.series.get(uid).reason == ""


def send_all(scene: Scene) -> int:
    """Mark sent what waits to be sent; gives how many objects."""
    store = scene.tools.store
    sent = 0
    while job := store.jobs.claim(scene.clock(), kinds={JobKind.DELIVER_RESULT}, owner="s", lease=LEASE):
        store.results.mark_sent(job, int(job.subject), now=scene.clock())
        sent += 1
    return sent


def test_a_disk_that_fills_up_between_two_objects_loses_and_doubles_nothing(scene):
    series = mr_series()
    full = choking(scene, modality="RTSTRUCT", error=SpoolFullError("no room; free some space"))
    full.receive(series)
    full.quiet()
    job = full.claim(JobKind.SEGMENT_SERIES)
    with pytest.raises(SpoolFullError):
        segment_series(job, full.tools)
    assert deliveries(scene) == 0

    roomy = full.with_changes(spool=scene.tools.spool)
    segment_series(job, roomy.tools)

    result = scene.tools.store.results.latest_for_series(job.subject)
    assert forms_queued(scene, result) == set(ResultForm)
    assert deliveries(scene) == len(scene.tools.store.results.deliveries_of(result.sop_instance_uid))
    assert len(seg_files(scene)) == 1


def test_a_report_and_a_picture_that_say_that_nothing_was_found_are_sent(scene):
    scene.use(tiny_weights(background=1000.0))
    every_form = scene.with_changes(destinations={"pacs": replace(PEER, results=tuple(ResultForm))})
    series = mr_series()

    result = every_form.segment(series)

    assert forms_queued(scene, result) == {ResultForm.SR, ResultForm.SC}
    send_all(scene)
    row = scene.tools.store.series.get(series[0].SeriesInstanceUID)
    assert row.state is SeriesState.DELIVERED
    assert "no voxel" in row.reason


def test_our_own_results_that_a_pacs_sends_back_open_no_series(scene):
    every_form = scene.with_changes(destinations={"pacs": replace(PEER, results=tuple(ResultForm))})
    series = mr_series()
    result = every_form.segment(series)
    store = scene.tools.store
    for one in result.objects:
        (ds,) = scene.tools.spool.read([store.series.instance(one.sop_instance_uid)])
        ds.InstitutionalDepartmentName = "changed by the archive"
        scene.receive([ds], sender="PACS")

    assert [row.series_instance_uid for row in store.series.list_series()] == [series[0].SeriesInstanceUID]
    assert store.jobs.counts()[JobKind.INGEST_CORRECTION, JobState.READY] == 3
    for _ in range(3):
        ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), every_form.tools)
    drawn = (ResultForm.SEG, ResultForm.LABEL_MAP, ResultForm.RTSTRUCT)
    for one in (one for one in result.objects if one.form in drawn):
        found = store.corrections.by_sop_uid(one.sop_instance_uid)
        assert found.recognition is Recognition.LOOP_BACK
