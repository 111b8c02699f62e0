"""From a quiet series to a result on disk that is queued for every destination."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import highdicom as hd
from pydicom import Dataset

from dicomnode.domain import Job, ModelCard, SeriesInstanceUid, StoredInstance
from dicomnode.imaging import seg_write
from dicomnode.imaging.seg_write import EncodedSeg
from dicomnode.imaging.series import SeriesVolume, to_volume
from dicomnode.ml import inference
from dicomnode.ml.inference import LoadedModel
from dicomnode.pipeline.routing import choose_route
from dicomnode.pipeline.tools import Stopwatch, Tools
from dicomnode.settings import RouteSettings
from dicomnode.store.records import ResultRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """A series, what the model found in it, and the object that says so."""

    series: SeriesVolume
    route: RouteSettings
    card: ModelCard
    labels: hd.Volume  # segment numbers, uint8, on the image grid
    seg: EncodedSeg | None  # None: nothing was found, and an empty SEG is never sent
    seconds: tuple[tuple[str, float], ...]


def segment_series(job: Job, tools: Tools) -> None:
    """Segment one quiet series and queue the result for every destination of its route."""
    if tools.store.series.revision_digest(job.subject) != job.digest:
        tools.store.jobs.finish(
            job, now=tools.now(), reason="a later image came; its own job segments the series"
        )
        return
    instances = tools.store.series.instances_of(job.subject)
    made = segment(
        tools.spool.read(instances),
        routes=tools.routes,
        model_named=tools.current_model,
        made_at=max(instance.received_at for instance in instances),
        revision=job.digest,
    )
    if made.seg is None:
        tools.store.results.finish_segmentation(job, None, None, (), now=tools.now())
        return
    stored = tools.spool.write_result(made.seg.ds, sender=tools.ae_title, created_at=tools.now())
    tools.store.results.finish_segmentation(
        job,
        _record(job, made, made.seg, stored),
        stored,
        made.route.destinations or tuple(tools.destinations),
        now=tools.now(),
    )


def segment(
    datasets: Sequence[Dataset],
    *,
    routes: Sequence[RouteSettings],
    model_named: Callable[[str], LoadedModel],
    made_at: datetime,
    revision: str = "",
) -> Segmented:
    """Take the images of one series to a SEG; the same images, model and time give the same bytes.

    Parameters
    ----------
    made_at
        Content date and time of the SEG: when the last image arrived, not when this was called,
        so that a repeat after a crash makes the same object.
    revision
        Digest of the received bytes; another revision of the series gives another result series.

    Raises
    ------
    InputError
        The series is not one volume, or no route takes it.
    """
    watch = Stopwatch()
    series = to_volume(datasets)
    route = choose_route(series, routes)
    watch.lap("read")
    model = model_named(route.model)
    card = model.card
    watch.lap("load model")
    classes = inference.predict(model, series.image)
    watch.lap("segment")
    labels = seg_write.to_segment_numbers(classes, card)
    seg = seg_write.encode(labels, sources=series.sources, card=card, created_at=made_at, run_id=revision)
    watch.lap("write SEG")
    return Segmented(series=series, route=route, card=card, labels=labels, seg=seg, seconds=watch.laps)


def _record(job: Job, made: Segmented, seg: EncodedSeg, stored: StoredInstance) -> ResultRecord:
    return ResultRecord(
        sop_instance_uid=stored.sop_instance_uid,
        series_instance_uid=stored.series_instance_uid,
        source_series_uid=SeriesInstanceUid(job.subject),
        source_digest=job.digest,
        model_version=made.card.version,
        label_table_sha256=seg.label_table_sha256,
        voxels_sha256=seg.voxels_sha256,
        label_sha256=seg.label_sha256,
        voxels=seg.voxels,
        millilitres=seg.millilitres,
        tracking_uids=seg.tracking_uids,
        seconds=made.seconds,
        path=stored.path,
        created_at=stored.received_at,
    )
