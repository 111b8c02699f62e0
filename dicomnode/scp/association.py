"""Opening an association with a peer, and saying in words why there is none."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from dicomnode.domain import Destination
from dicomnode.errors import AssociationError, DeliveryError

CONNECTION_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 60.0
MAXIMUM_CONTEXTS = 128  # PS3.8 section 9.3.2.2: odd identifiers 1 to 255


@contextmanager
def opened(
    destination: Destination,
    contexts: list[PresentationContext],
    *,
    ae_title: str,
    timeout_s: float,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    on_c_store: Callable[[evt.Event], int | Dataset] | None = None,
) -> Iterator[Association]:
    """Open an association and release it, or abort it when what is done over it fails.

    Parameters
    ----------
    destination
        The peer.
    contexts
        What is proposed.
    ae_title
        The node's own title.
    timeout_s
        Longest wait for each answer of the peer; the TCP connection is given up after 10 s at most.
    roles, on_c_store
        For C-GET: the classes that the peer may send over this association, and who answers when it does.

    Raises
    ------
    AssociationError
        The peer cannot be reached, refused the association, aborted it or did not answer.
    DeliveryError
        The peer takes none of the contexts.
    """
    ae = AE(ae_title=ae_title)
    ae.connection_timeout = min(timeout_s, CONNECTION_TIMEOUT_S)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout_s
    connected: list[evt.Event] = []
    handlers: list[EventHandlerType] = [
        (evt.EVT_CONN_OPEN, connected.append),
        (evt.EVT_CONN_OPEN, _send_small_messages_at_once),
    ]
    if on_c_store is not None:
        handlers.append((evt.EVT_C_STORE, on_c_store))
    try:
        assoc = ae.associate(
            destination.host,
            destination.port,
            contexts,
            ae_title=destination.ae_title,
            ext_neg=list(roles),
            evt_handlers=handlers,
        )
    except (socket.gaierror, OSError) as error:
        raise AssociationError(
            f"{name_of(destination)} cannot be reached: the host name does not resolve ({error}); check host"
        ) from error
    if not assoc.is_established:
        raise _no_association(assoc, destination, ae_title=ae_title, is_connected=bool(connected))
    try:
        yield assoc
    except BaseException:
        assoc.abort()
        raise
    assoc.release()


def answers(
    ask: Callable[[], Iterator[tuple[Dataset, Dataset | None]]], destination: Destination, service: str
) -> Iterator[tuple[int, Dataset | None]]:
    """Give each answer to a request that has several, as status and data set.

    Raises
    ------
    AssociationError
        The peer ended the association, or did not answer in time.
    """
    silent = AssociationError(
        f"{name_of(destination)} ended {service} without an answer, or did not answer in time;"
        " check that it allows it to this node; its log says why"
    )
    try:
        for answer, ds in ask():
            if "Status" not in answer:
                raise silent
            yield int(answer.Status), ds
    except RuntimeError as error:  # the association ended before the request
        raise silent from error


def _send_small_messages_at_once(event: evt.Event) -> None:
    """Turn Nagle's algorithm off: with it each object waits up to 40 ms for the peer's delayed ACK."""
    connection = event.assoc.dul.socket and event.assoc.dul.socket.socket
    if connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _no_association(
    assoc: Association, destination: Destination, *, ae_title: str, is_connected: bool
) -> AssociationError | DeliveryError:
    """Say why there is no association, and what to check."""
    peer = name_of(destination)
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


def _describe_context(context: PresentationContext) -> str:
    syntaxes = " or ".join(syntax.name for syntax in context.transfer_syntax)
    return f"{UID(str(context.abstract_syntax)).name} in {syntaxes}"


def name_of(destination: Destination) -> str:
    """Name a peer as messages do."""
    return f"{destination.name} ({destination.ae_title} at {destination.host} port {destination.port})"
