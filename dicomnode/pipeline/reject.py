"""A reader rejected a whole result: the note is kept on record, and nothing is learned from it."""

from pydicom import Dataset

from dicomnode.domain import Job, Recognition, SopInstanceUid, StoredInstance
from dicomnode.imaging.corrections.rejection import read_rejection
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import CorrectionRecord, Note


def note_rejection(job: Job, instance: StoredInstance, ds: Dataset, tools: Tools) -> None:
    """Record a note that rejects results of ours; any other selection of key objects is none of our business.

    What a rejected result should have shown is unknown, so that no training case comes of it.
    """
    rejection = read_rejection(ds)
    uids = rejection.sop_instance_uids if rejection else ()
    found = {
        result.sop_instance_uid: result for uid in uids if (result := tools.store.results.by_sop_uid(uid))
    }
    if rejection is None or not found:
        tools.store.jobs.finish(job, now=tools.now(), reason="rejects no result of ours")
        return
    results = list(found.values())
    latest = results[-1]
    detail = f"{rejection.reason}, by {instance.sender}: {', '.join(found)}"
    tools.store.corrections.record(
        job,
        CorrectionRecord(
            sop_instance_uid=instance.sop_instance_uid,
            instance_id=int(job.subject),
            recognition=Recognition.REJECTED,
            source_series_uid=latest.source_series_uid,
            result_sop_uid=SopInstanceUid(latest.sop_instance_uid),
            model_name=latest.model_version.rpartition("@")[0],
            model_version=latest.model_version,
            sender=instance.sender,
            author=instance.sender,
            reasons=(f"{rejection.reason}: {len(results)} of our results",),
        ),
        now=tools.now(),
        notes=[Note(event="result_rejected", subject=latest.sop_instance_uid, detail=detail)],
    )
