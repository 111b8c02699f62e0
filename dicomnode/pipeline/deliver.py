"""Send one object of a result to one destination; the bytes on disk are sent, however often it takes."""

from dicomnode.domain import Job
from dicomnode.errors import DeliveryError, InputError
from dicomnode.pipeline.tools import Tools
from dicomnode.scp import sender
from dicomnode.store.records import DeliveryState


def deliver_result(job: Job, tools: Tools) -> None:
    """Send the object that a delivery names, and mark it sent."""
    delivery = tools.store.results.delivery(int(job.subject))
    if delivery is None:
        raise InputError(f"no delivery {job.subject} is known")
    if delivery.state is not DeliveryState.PENDING:  # superseded while an earlier attempt was under way
        tools.store.jobs.finish(job, now=tools.now(), reason=f"delivery is {delivery.state}")
        return
    destination = tools.destinations.get(delivery.destination)
    if destination is None:
        raise DeliveryError(
            f"destination {delivery.destination!r} is not configured any more; add it to [[destinations]]"
        )
    stored = tools.store.series.instance(delivery.object_sop_uid)
    if stored is None:
        raise InputError(f"result {delivery.object_sop_uid} is no longer in the spool")
    sender.send(tools.spool.path_of(stored), destination, ae_title=tools.ae_title)
    tools.store.results.mark_sent(job, delivery.id, now=tools.now())
