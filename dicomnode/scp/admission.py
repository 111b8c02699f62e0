"""One association: whether it may begin, what may be sent over it, and the line logged at its end."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import cast
from weakref import WeakKeyDictionary

import structlog
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.scp import VERIFICATION
from dicomnode.scp.handlers import Answer

log = structlog.get_logger()

REJECTED_TRANSIENT, BY_PRESENTATION_PROVIDER, TEMPORARY_CONGESTION = 2, 3, 1  # PS3.8 table 9-21

ACCEPTED_CLASSES = frozenset(
    {VERIFICATION, *(str(context.abstract_syntax) for context in AllStoragePresentationContexts)}
)
ACCEPTED_SYNTAXES = frozenset(str(syntax) for syntax in ALL_TRANSFER_SYNTAXES)

ReasonToRefuse = Callable[[], str | None]


def on_requested(event: Event, reason_to_refuse: ReasonToRefuse) -> None:
    """Refuse the association while the node cannot keep what it would bring; else set its contexts.

    The contexts are set per association, in the order of the requestor's transfer syntaxes:
    pynetdicom takes the acceptor's first match, which would make a sender that proposes several
    syntaxes in one context convert to the one that stands first in our list.
    """
    assoc = event.assoc
    reason = reason_to_refuse()
    if reason is None:
        assoc.acceptor.supported_contexts = supported(assoc.requestor.requested_contexts)
        return
    log.warning("association refused", reason=reason, **_peer(assoc))
    assoc.acse.send_reject(REJECTED_TRANSIENT, BY_PRESENTATION_PROVIDER, TEMPORARY_CONGESTION)
    assoc.kill()


def supported(requested: list[PresentationContext]) -> list[PresentationContext]:
    """Choose what to accept of the requested contexts: every storage class, every transfer syntax.

    Returns
    -------
        One context for each class that is accepted, its syntaxes in the requestor's order of preference.
        A class that is known and wanted in unknown syntaxes only keeps the default syntax, so that the
        answer names the syntax as the reason and not the class.
    """
    syntaxes: dict[str, list[str]] = {}
    for context in requested:
        if str(context.abstract_syntax) in ACCEPTED_CLASSES:
            wanted = syntaxes.setdefault(str(context.abstract_syntax), [])
            wanted += [str(s) for s in context.transfer_syntax if s in ACCEPTED_SYNTAXES]
    return [
        build_context(abstract, list(dict.fromkeys(wanted)) or [ImplicitVRLittleEndian])
        for abstract, wanted in syntaxes.items()
    ]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came over one association and how it was answered."""

    began: float  # seconds, monotonic
    instances: int = 0
    answers: Counter[str] = field(default_factory=Counter)  # by status in hexadecimal


class Tallies:
    """The associations of one server, counted until they end."""

    def __init__(self) -> None:
        self._tallies: WeakKeyDictionary[Association, Tally] = WeakKeyDictionary()
        self._lock = Lock()

    def on_established(self, event: Event) -> None:
        """Begin to count."""
        with self._lock:
            self._tallies[event.assoc] = Tally(began=monotonic())

    def count(self, event: Event, answer: Callable[[Event], Answer]) -> Answer:
        """Answer a request and count it; one that ends in an exception is counted without answer."""
        with self._lock:
            tally = self._tallies[event.assoc]
        tally.instances += 1
        given = answer(event)
        status = given.Status if isinstance(given, Dataset) else given
        tally.answers[f"{status:04X}"] += 1
        return given

    def on_ended(self, event: Event, how: str) -> None:
        """Log one line for the whole association."""
        with self._lock:
            tally = self._tallies.pop(event.assoc, None)
        if tally is None:
            return
        unanswered = tally.instances - tally.answers.total()
        log.info(
            "association ended",
            how=how,
            instances=tally.instances,
            answers=dict(tally.answers),
            faults=unanswered,
            seconds=round(monotonic() - tally.began, 2),
            **_peer(event.assoc),
        )


def on_closed(event: Event) -> None:
    """Free the place of a connection that ends without a request, such as a probe of the port.

    pynetdicom would hold it, and count it as an association, until the ACSE timeout.
    """
    if event.assoc.requestor.primitive is None:
        # What waiting for the request gives at its timeout.
        event.assoc.dul.to_user_queue.put(None)


def on_rejected(event: Event) -> None:
    """Log who was turned away, and why."""
    answer = cast(A_ASSOCIATE, event.assoc.acceptor.primitive)
    log.warning("association refused", reason=answer.reason_str, **_peer(event.assoc))


def _peer(assoc: Association) -> dict[str, str]:
    """Name the requestor for the log: its titles are in the request before they are checked."""
    request = cast(A_ASSOCIATE, assoc.requestor.primitive)
    return {
        "calling_ae_title": request.calling_ae_title.strip(),
        "called_ae_title": request.called_ae_title.strip(),
        "address": assoc.requestor.address,
    }
