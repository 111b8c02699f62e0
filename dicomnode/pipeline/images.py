"""The images that a correction was drawn on: held here, or fetched from the archive."""

import hashlib
from datetime import timedelta

from pydicom import Dataset

from dicomnode.domain import Job, JobKind, SeriesInstanceUid, StoredInstance
from dicomnode.errors import CorrectionError
from dicomnode.imaging import attributes
from dicomnode.pipeline.reading import source_series
from dicomnode.pipeline.tools import Tools
from dicomnode.scp import fetcher
from dicomnode.scp.query import Archive, Wanted


def are_here(series_uid: SeriesInstanceUid, tools: Tools) -> bool:
    """Answer whether every image of a series that this site knows of can be read."""
    if tools.store.series.get(series_uid) is None or tools.store.fetches.is_unfinished(series_uid):
        return False
    held = tools.store.series.instances_of(series_uid)
    return bool(held) and all(tools.spool.path_of(one).is_file() for one in held)


def ask_for(job: Job, instance: StoredInstance, tools: Tools) -> bool:
    """Queue a question to the archive for the images of a correction, once a day; False: there is none."""
    if not tools.corrections.fetch_from:
        return False
    days = (tools.now() - instance.received_at) // timedelta(days=1)
    digest = hashlib.sha256(f"{job.digest}:{days}".encode()).hexdigest()
    tools.store.jobs.enqueue(JobKind.FETCH_IMAGES, job.subject, digest, now=tools.now())
    return True


def fetch_images(job: Job, tools: Tools) -> None:
    """Fetch the series that a received object was drawn on, and let the object be read at once."""
    instance = tools.store.series.instance(job.subject)
    if instance is None:
        raise CorrectionError(f"no instance {job.subject} is known")
    (ds,) = tools.spool.read([instance])
    series_uid = source_series(ds, tools)
    if series_uid is None:
        raise CorrectionError(f"SEG {instance.sop_instance_uid} names no series that could be asked for")
    in_words = "the images are here" if are_here(series_uid, tools) else _fetch(series_uid, ds, tools)
    tools.store.jobs.finish(job, now=tools.now(), reason=in_words)
    for row in tools.store.jobs.waiting(JobKind.INGEST_CORRECTION, job.subject):
        tools.store.jobs.hasten(JobKind.INGEST_CORRECTION, row.digest, now=tools.now())


def _fetch(series_uid: SeriesInstanceUid, ds: Dataset, tools: Tools) -> str:
    name = tools.corrections.fetch_from
    found = fetcher.fetch_series(
        Archive(destination=tools.destinations[name], ae_title=tools.ae_title),
        Wanted(
            series_instance_uid=series_uid,
            study_instance_uid=attributes.text(ds, "StudyInstanceUID") or None,
        ),
        spool=tools.spool,
        store=tools.store,
        now=tools.now,
        should_stop=tools.should_stop,
    )
    return f"{name} has no series {series_uid}" if found is None else f"fetched from {name}"
