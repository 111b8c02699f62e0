"""One C-STORE request: keep its bytes, record it, and only then answer success."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import structlog
from pydicom import Dataset
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from dicomnode.errors import InputError, InstanceMismatchError, ResourceError, UnreadableInstanceError
from dicomnode.scp.status import StoreStatus, failure
from dicomnode.spool import Spool
from dicomnode.store import Store

log = structlog.get_logger()

Answer = int | Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What a C-STORE request brought, nothing of it decoded or trusted."""

    encoded: bytes  # the data set as on the wire, without file meta information
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sender: str  # calling AE title


Take = Callable[[Received], Answer]


def on_c_echo(event: Event) -> int:  # noqa: ARG001  # pynetdicom passes the event to every handler
    """Answer a C-ECHO."""
    return StoreStatus.SUCCESS


def on_c_store(event: Event, spool: Spool, store: Store, now: Callable[[], datetime]) -> Answer:
    """Keep a received object and answer for it.

    Success is answered when the file and its row are on disk, also for a byte-identical duplicate.
    An object that cannot be read is kept in quarantine and refused. Any exception that is not
    in the node's error tree passes to pynetdicom, which logs it and answers 0xC211.

    Returns
    -------
        0x0000, or a data set with Status and ErrorComment (see :mod:`dicomnode.scp.status`).
    """
    return answer(event, lambda received: keep(received, spool, store, now()))


def answer(event: Event, take: Take) -> Answer:
    """Hand a C-STORE request to ``take`` and turn the errors that may come of it into an answer."""
    request = cast(C_STORE, event.request)
    received = Received(
        encoded=event.encoded_dataset(include_meta=False),
        sop_class_uid=str(request.AffectedSOPClassUID),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        sender=event.assoc.requestor.ae_title.strip(),
    )
    if received.sop_class_uid != event.context.abstract_syntax:
        return failure(StoreStatus.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the context")
    try:
        return take(received)
    except ResourceError as error:
        _report("instance refused for now", received, error)
        return failure(StoreStatus.OUT_OF_RESOURCES, "out of resources; send again later")
    except InputError as error:
        _report("instance refused", received, error)
        return failure(StoreStatus.CANNOT_UNDERSTAND, "data set refused")


def keep(received: Received, spool: Spool, store: Store, at: datetime, *, is_fetched: bool = False) -> Answer:
    """Write the object and its row; put bytes that are no readable object into quarantine.

    Parameters
    ----------
    is_fetched
        This node asked for it over an association of its own, so it opens no series.

    Raises
    ------
    ResourceError
        Disk or database; nothing was acknowledged, and a repeat is safe.
    """
    try:
        instance = spool.write(
            received.encoded,
            sop_class_uid=received.sop_class_uid,
            sop_instance_uid=received.sop_instance_uid,
            transfer_syntax_uid=received.transfer_syntax_uid,
            sender=received.sender,
            received_at=at,
        )
    except UnreadableInstanceError as error:
        spool.quarantine(
            received.encoded,
            reason=str(error),
            received_at=at,
            transfer_syntax_uid=received.transfer_syntax_uid,
            sender=received.sender,
        )
        _report("instance put into quarantine", received, error)
        if isinstance(error, InstanceMismatchError):
            return failure(
                StoreStatus.DATA_SET_DOES_NOT_MATCH, "data set names another SOP class or instance"
            )
        return failure(StoreStatus.CANNOT_UNDERSTAND, "data set cannot be read; kept for inspection")
    store.series.record_instance(instance, now=at, is_fetched=is_fetched)
    return StoreStatus.SUCCESS


def _report(what: str, received: Received, error: Exception) -> None:
    log.warning(
        what, sop_instance_uid=received.sop_instance_uid, calling_ae_title=received.sender, reason=str(error)
    )
