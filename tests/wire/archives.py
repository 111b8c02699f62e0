"""Archives made with pynetdicom, good and bad, for the fetching of series."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.events import Event

from dicomnode.domain import Destination
from dicomnode.scp.query import FIND, GET, MOVE

Answers = Iterator[Any]


@dataclass(kw_only=True)
class Pacs:
    """An archive that holds some images; each flaw of real ones can be switched on."""

    images: Sequence[Dataset]
    models: Sequence[str] = (FIND, GET, MOVE)
    move_to: tuple[str, int] | None = None  # where it believes that the mover is
    gives: Sequence[Dataset] | None = None  # what it sends instead of what was asked for
    dies_after: int | None = None  # images, then it aborts
    aborts_get: bool = False
    pause_s: float = 0.0  # before the first image
    needs_study: bool = False
    tells_classes: bool = True
    takes_roles: bool = True
    find_status: int = 0x0000
    asked: list[str] = field(default_factory=list)

    def start(self, port: int) -> Any:
        """Listen until ``shutdown``."""
        ae = AE(ae_title="PACS")
        ae.dimse_timeout = ae.network_timeout = 10
        for model in self.models:
            ae.add_supported_context(model)
        for context in AllStoragePresentationContexts[:119]:
            roles = {"scu_role": True, "scp_role": True} if self.takes_roles else {}
            ae.add_supported_context(context.abstract_syntax or "", ALL_TRANSFER_SYNTAXES, **roles)
        if MOVE in self.models:
            for context in AllStoragePresentationContexts[:119]:
                ae.add_requested_context(context.abstract_syntax or "")
        handlers = [
            (evt.EVT_C_FIND, self.find),
            (evt.EVT_C_GET, self.get),
            (evt.EVT_C_MOVE, self.move),
        ]
        return ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]

    @staticmethod
    def destination(port: int) -> Destination:
        """Where it listens."""
        return Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port)

    def find(self, event: Event) -> Answers:
        """Answer at level SERIES and IMAGE."""
        query = event.identifier
        self.asked.append(f"FIND {query.QueryRetrieveLevel}")
        if self.find_status:
            yield self.find_status, None
            return
        if self.needs_study and not query.StudyInstanceUID:
            yield 0xA900, None
            return
        held = [ds for ds in self.images if self._fits(ds, query)]
        if query.QueryRetrieveLevel == "SERIES":
            held = list({(ds.StudyInstanceUID, ds.SeriesInstanceUID): ds for ds in held}.values())
        for ds in held:
            yield 0xFF00, self._match(ds, query)

    def get(self, event: Event) -> Answers:
        """Send over the same association."""
        self.asked.append("GET")
        if self.aborts_get:
            event.assoc.abort()
            return
        yield from self._send(event)

    def move(self, event: Event) -> Answers:
        """Send over an association of its own to where it believes that the mover is."""
        self.asked.append(f"MOVE {event.move_destination}")
        if self.move_to is None:
            yield None, None
            return
        yield (*self.move_to, {"contexts": self._contexts()})
        yield from self._send(event)

    def _send(self, event: Event) -> Answers:
        held = [ds for ds in self.images if self._fits(ds, event.identifier)]
        sent = held if self.gives is None else self.gives
        yield len(sent)
        time.sleep(self.pause_s)
        for number, ds in enumerate(sent):
            if number == self.dies_after:
                event.assoc.abort()
                return
            yield 0xFF00, _as_read(ds)

    def _contexts(self) -> list[Any]:
        ae = AE()
        for ds in self.gives or self.images:
            ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
        return list(ae.requested_contexts)

    def _fits(self, ds: Dataset, query: Dataset) -> bool:
        keys = ("StudyInstanceUID", "SeriesInstanceUID")
        return all(ds.get(key) == query.get(key) or not query.get(key) for key in keys)

    def _match(self, ds: Dataset, query: Dataset) -> Dataset:
        match = Dataset()
        match.QueryRetrieveLevel = query.QueryRetrieveLevel
        for keyword in query.dir():
            if keyword in ds and (keyword != "SOPClassUID" or self.tells_classes):
                setattr(match, keyword, ds.get(keyword))
        return match


def _as_read(ds: Dataset) -> Dataset:
    """The object as if it came from a file: only then pynetdicom keeps to its transfer syntax."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)
