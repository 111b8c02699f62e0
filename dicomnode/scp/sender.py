"""Send DICOM objects to a peer over C-STORE, as they lie on disk, and believe only the peer's answer."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import cast

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.domain import Destination
from dicomnode.errors import AssociationError, DeliveryError, UnreadableInstanceError
from dicomnode.scp import VERIFICATION
from dicomnode.scp.status import describe, is_delivered

CONNECTION_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 60.0
SOP_INSTANCE_UID_TAG = 0x00080018
MAXIMUM_CONTEXTS = 128  # PS3.8 section 9.3.2.2: odd identifiers 1 to 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One object that the peer has."""

    sop_instance_uid: str
    status: int  # DIMSE: 0x0000, or a warning
    warning: str  # "" for success; else the status in words
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    """An object and what must be negotiated for it."""

    content: Path | Dataset
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID


def send(
    content: Path | Dataset,
    destination: Destination,
    *,
    ae_title: str,
    timeout_s: float = RESPONSE_TIMEOUT_S,
) -> Sent:
    """Send one object over an association of its own.

    Parameters
    ----------
    content
        A Part 10 file, whose data set is sent byte for byte; or a data set with file meta information.
    destination
        The peer.
    ae_title
        The node's own title.
    timeout_s
        Longest wait for each answer of the peer; the TCP connection is given up after 10 s at most.

    Returns
    -------
        The peer's answer: success, or delivered with a warning (Bxxx, or 0111: it had the object).

    Raises
    ------
    AssociationError
        The peer cannot be reached, refused the association, aborted it or did not answer.
    DeliveryError
        The peer does not take this class in this transfer syntax, or answered with a failure status.
    UnreadableInstanceError
        The file is no DICOM object.
    """
    return send_many([content], destination, ae_title=ae_title, timeout_s=timeout_s)[0]


def send_many(
    contents: Sequence[Path | Dataset],
    destination: Destination,
    *,
    ae_title: str,
    timeout_s: float = RESPONSE_TIMEOUT_S,
) -> list[Sent]:
    """Send objects over one association, in order; the first that fails ends it.

    Raises
    ------
    AssociationError, DeliveryError, UnreadableInstanceError
        As :func:`send`; the objects before the failing one are delivered.
    """
    outgoing = [_outgoing(content) for content in contents]
    if not outgoing:
        return []
    contexts = _contexts(outgoing)
    with _association(destination, contexts, ae_title=ae_title, timeout_s=timeout_s) as assoc:
        return [_send_one(assoc, one, destination) for one in outgoing]


def echo(destination: Destination, *, ae_title: str, timeout_s: float = CONNECTION_TIMEOUT_S) -> float:
    """Ask a peer for a C-ECHO and return the seconds from the connection to the answer.

    Raises
    ------
    AssociationError
        The peer cannot be reached, refused the association, aborted it or did not answer.
    DeliveryError
        The peer answered with a failure, or does not take C-ECHO.
    """
    began = perf_counter()
    contexts = [build_context(VERIFICATION)]
    with _association(destination, contexts, ae_title=ae_title, timeout_s=timeout_s) as assoc:
        answer = assoc.send_c_echo()
        if "Status" not in answer:
            raise AssociationError(f"{_name(destination)} accepted the association and did not answer C-ECHO")
        if answer.Status != 0:
            raise DeliveryError(
                f"{_name(destination)} answered C-ECHO with {describe(answer.Status)}", status=answer.Status
            )
    return perf_counter() - began


def _outgoing(content: Path | Dataset) -> _Outgoing:
    """Read what identifies an object.

    A file whose file meta information names another object than its data set, as edited files do, is
    decoded and sent as the data set has it: pynetdicom announces a file by its meta information.
    """
    try:
        head = content if isinstance(content, Dataset) else _head(content)
        meta = head.file_meta
        announced = (meta.get("MediaStorageSOPClassUID"), meta.get("MediaStorageSOPInstanceUID"))
        if isinstance(content, Path) and announced != (head.SOPClassUID, head.SOPInstanceUID):
            content = dcmread(content)
        return _Outgoing(
            content=content,
            sop_class_uid=head.SOPClassUID,
            sop_instance_uid=head.SOPInstanceUID,
            transfer_syntax_uid=meta.TransferSyntaxUID,
        )
    except (AttributeError, InvalidDicomError, OSError, EOFError, ValueError) as error:
        name = "a data set" if isinstance(content, Dataset) else content.name
        raise UnreadableInstanceError(
            f"{name} cannot be sent: it does not name its SOP class, SOP instance and transfer syntax"
        ) from error


def _head(path: Path) -> Dataset:
    """Read a file up to its SOP instance UID."""
    with path.open("rb") as file:
        return read_partial(file, stop_when=_is_past_sop_instance_uid)


def _is_past_sop_instance_uid(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) > SOP_INSTANCE_UID_TAG


def _contexts(outgoing: Sequence[_Outgoing]) -> list[PresentationContext]:
    """Propose what the objects are and nothing else, one transfer syntax in each context."""
    kinds = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in outgoing)
    if len(kinds) > MAXIMUM_CONTEXTS:
        raise DeliveryError(
            f"{len(kinds)} kinds of object do not fit into one association: send at most {MAXIMUM_CONTEXTS}"
        )
    return [build_context(sop_class, syntax) for sop_class, syntax in kinds]


@contextmanager
def _association(
    destination: Destination, contexts: list[PresentationContext], *, ae_title: str, timeout_s: float
) -> Iterator[Association]:
    """Open an association and release it, or abort it when the sending fails."""
    ae = AE(ae_title=ae_title)
    ae.connection_timeout = min(timeout_s, CONNECTION_TIMEOUT_S)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout_s
    connected: list[evt.Event] = []
    handlers: list[EventHandlerType] = [
        (evt.EVT_CONN_OPEN, connected.append),
        (evt.EVT_CONN_OPEN, _send_small_messages_at_once),
    ]
    try:
        assoc = ae.associate(
            destination.host,
            destination.port,
            contexts,
            ae_title=destination.ae_title,
            evt_handlers=handlers,
        )
    except (socket.gaierror, OSError) as error:
        raise AssociationError(
            f"{_name(destination)} cannot be reached: the host name does not resolve ({error}); check host"
        ) from error
    if not assoc.is_established:
        raise _no_association(assoc, destination, ae_title=ae_title, is_connected=bool(connected))
    try:
        yield assoc
    except BaseException:
        assoc.abort()
        raise
    assoc.release()


def _send_small_messages_at_once(event: evt.Event) -> None:
    """Turn Nagle's algorithm off: with it each object waits up to 40 ms for the peer's delayed ACK."""
    connection = event.assoc.dul.socket and event.assoc.dul.socket.socket
    if connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _no_association(
    assoc: Association, destination: Destination, *, ae_title: str, is_connected: bool
) -> AssociationError | DeliveryError:
    """Say why there is no association, and what to check."""
    peer = _name(destination)
    if not is_connected:
        return AssociationError(
            f"{peer} cannot be reached: no TCP connection; check that it runs, host, port and firewall"
        )
    if assoc.is_rejected:
        answer = cast(A_ASSOCIATE, assoc.acceptor.primitive)
        return AssociationError(
            f"{peer} refused the association from {ae_title!r}: {answer.result_str}, {answer.source_str},"
            f" {answer.reason_str}; check both AE titles and that the peer knows this node"
        )
    if assoc.rejected_contexts:
        refused = ", ".join(_describe_context(context) for context in assoc.requestor.requested_contexts)
        return DeliveryError(f"{peer} does not take {refused}; check what it is configured to accept")
    return AssociationError(
        f"{peer} aborted the association or did not answer the request of {ae_title!r} in time;"
        " check that a DICOM service listens there, and its log"
    )


def _send_one(assoc: Association, one: _Outgoing, destination: Destination) -> Sent:
    began = perf_counter()
    what = f"{one.sop_class_uid.name} {one.sop_instance_uid}"
    try:
        answer = assoc.send_c_store(one.content)
    except ValueError as error:
        raise DeliveryError(
            f"{_name(destination)} does not take {what} in {one.transfer_syntax_uid.name}"
        ) from error
    except RuntimeError as error:
        raise AssociationError(f"{_name(destination)} ended the association before {what}") from error
    if "Status" not in answer:
        raise AssociationError(
            f"{_name(destination)} aborted or did not answer in time while it was sent {what};"
            " whether it kept the object is unknown"
        )
    if not is_delivered(answer.Status):
        raise DeliveryError(  # the peer's ErrorComment is left out: it may name the patient
            f"{_name(destination)} refused {what}: {describe(answer.Status)}; its log says why",
            status=answer.Status,
        )
    return Sent(
        sop_instance_uid=str(one.sop_instance_uid),
        status=answer.Status,
        warning=describe(answer.Status) if answer.Status else "",
        seconds=perf_counter() - began,
    )


def _describe_context(context: PresentationContext) -> str:
    syntaxes = " or ".join(syntax.name for syntax in context.transfer_syntax)
    return f"{UID(str(context.abstract_syntax)).name} in {syntaxes}"


def _name(destination: Destination) -> str:
    return f"{destination.name} ({destination.ae_title} at {destination.host} port {destination.port})"
