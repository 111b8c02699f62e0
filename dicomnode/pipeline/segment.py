"""From a quiet series to results on disk that are queued for the destinations of its route."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from pydicom import Dataset

from dicomnode.domain import Job, SeriesInstanceUid, StoredInstance
from dicomnode.errors import InputError, UnsupportedSeriesError
from dicomnode.imaging.images.series import SeriesVolume, stack_volume, supported_images
from dicomnode.imaging.images.stacks import read_stacks
from dicomnode.imaging.results import findings as findings_of
from dicomnode.imaging.results import seg_write
from dicomnode.imaging.results.findings import Findings, Run
from dicomnode.ml.inference import engine
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.pipeline import forms
from dicomnode.pipeline.forms import EncodedObject, Unwritten, Wanted
from dicomnode.pipeline.routing import Choice, choose
from dicomnode.pipeline.tools import Stopwatch, Tools
from dicomnode.pipeline.turns import wait_for_turn
from dicomnode.settings import RouteSettings
from dicomnode.store.records import ResultObject, ResultRecord, Shortfall, WrittenObject

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """A series and what the model of its route found in it."""

    series: SeriesVolume
    findings: Findings
    seconds: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """How a model is to be run."""

    mirror: bool = True  # average mirrored passes, where the model's plan says so
    progress: Callable[[int, int], None] | None = None  # passes done, passes


AS_PLANNED = Inference()


def segment_series(job: Job, tools: Tools) -> None:
    """Segment one quiet series and queue the results for every destination of its route."""
    if tools.store.series.revision_digest(job.subject) != job.digest:
        tools.store.jobs.finish(
            job, now=tools.now(), reason="a later image came; its own job segments the series"
        )
        return
    row = tools.store.series.get(job.subject)
    if row is None:
        raise UnsupportedSeriesError(f"no series {job.subject} was received here")
    instances = tools.store.series.instances_of(job.subject)
    choice = route(tools.spool.read(instances), tools.routes, sender=row.sender)
    wait = wait_for_turn(job, row, choice, tools)
    if wait is not None:
        tools.store.jobs.defer(job, wait.until, now=tools.now(), reason=wait.reason, priority=wait.priority)
        return
    watch = Stopwatch()
    # Content is dated when the last image arrived, so that a repeat after a crash makes the same objects.
    run = Run(created_at=max(instance.received_at for instance in instances), revision=job.digest)
    how = Inference(progress=lambda done, total: tools.progress("segmenting", done, total))
    made = segment(choice, model_named=tools.current_model, watch=watch, how=how)
    written = forms.write(
        made.findings, run=run, wanted=_wanted(choice.route, tools), keep=lambda one: _keep(one, tools)
    )
    watch.lap("write results")
    record = _record(job, made.findings, written.label_map, seconds=watch.laps)
    tools.store.results.finish_segmentation(
        job, record, written.objects, now=tools.now(), shortfall=_shortfall(written.unwritten)
    )


def route(datasets: Sequence[Dataset], routes: Sequence[RouteSettings], *, sender: str) -> Choice:
    """Choose the route of a series, and the stack in it that the model is for; pixels are not decoded.

    Raises
    ------
    InputError
        The series is not of a kind that is read, or no route takes it.
    """
    return choose(read_stacks(supported_images(datasets)), routes, sender=sender)


def segment(
    choice: Choice,
    *,
    model_named: Callable[[str], LoadedModel],
    watch: Stopwatch,
    how: Inference = AS_PLANNED,
) -> Segmented:
    """Take the chosen stack of a series to what the model finds in it.

    Raises
    ------
    InputError
        The pixels cannot be decoded, the stack is less regular than the route allows, or its image is of a
        shape that no model takes.
    """
    series = stack_volume(choice.stack, maximum_missing=choice.route.maximum_missing_slices)
    watch.lap("read")
    model = model_named(choice.route.model)
    watch.lap("load model")
    uid = choice.stack.series_instance_uid
    try:
        classes = engine.predict(
            model,
            series.image,
            mirror=how.mirror,
            progress=how.progress,
            note=lambda words: log.warning("segmented in a leaner way", series=uid, reason=words),
        )
    except InputError as error:  # it says what the image lacks, and cannot know whose image it is
        raise UnsupportedSeriesError(f"series {uid}: {error}") from error
    watch.lap("segment")
    labels = seg_write.to_segment_numbers(classes, model.card)
    found = findings_of.measure(labels, series=series, card=model.card)
    watch.lap("measure")
    return Segmented(series=series, findings=found, seconds=watch.laps)


def _wanted(chosen: RouteSettings, tools: Tools) -> Wanted:
    names = chosen.destinations or tuple(tools.destinations)
    return {name: tools.destinations[name].results for name in names}


def _keep(one: EncodedObject, tools: Tools) -> WrittenObject:
    stored = tools.spool.write_result(one.ds, sender=tools.ae_title, created_at=tools.now())
    kept = ResultObject(
        sop_instance_uid=stored.sop_instance_uid,
        series_instance_uid=stored.series_instance_uid,
        form=one.form,
        voxels_sha256=one.voxels_sha256,
    )
    return WrittenObject(object=kept, instance=stored, destinations=one.destinations)


def _shortfall(unwritten: Sequence[Unwritten]) -> Shortfall | None:
    if not unwritten:
        return None
    tracebacks = [one.traceback for one in unwritten if one.traceback]
    kept = ["the traceback is kept with the job"] if tracebacks else []
    return Shortfall(
        reason="; ".join([one.in_words for one in unwritten] + kept), traceback="\n".join(tracebacks)
    )


def _record(
    job: Job, found: Findings, label_map: WrittenObject, *, seconds: tuple[tuple[str, float], ...]
) -> ResultRecord:
    stored: StoredInstance = label_map.instance
    return ResultRecord(
        sop_instance_uid=stored.sop_instance_uid,
        series_instance_uid=stored.series_instance_uid,
        source_series_uid=SeriesInstanceUid(job.subject),
        source_digest=job.digest,
        model_version=found.card.version,
        label_table_sha256=found.label_table_sha256,
        voxels_sha256=found.voxels_sha256,
        label_sha256=tuple((one.segment.label, one.sha256) for one in found.measures),
        voxels=tuple((one.segment.label, one.voxels) for one in found.measures),
        millilitres=tuple((one.segment.label, one.millilitres) for one in found.measures),
        tracking_uids=tuple((one.segment.label, one.tracking_uid) for one in found.found),
        seconds=seconds,
        path=stored.path,
        created_at=stored.received_at,
    )
