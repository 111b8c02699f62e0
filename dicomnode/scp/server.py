"""The node's DICOM server: C-ECHO and C-STORE, every storage class in every transfer syntax."""

import errno
import socket
import socketserver
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from threading import Thread
from time import monotonic, sleep

import structlog
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import build_context
from pynetdicom.transport import ThreadedAssociationServer

from dicomnode.errors import ConfigError, ResourceError
from dicomnode.scp import VERIFICATION, admission, handlers
from dicomnode.scp.admission import ReasonToRefuse, Tallies
from dicomnode.scp.handlers import Answer
from dicomnode.settings import ScpSettings
from dicomnode.spool import Spool
from dicomnode.store import Store

log = structlog.get_logger()

ACCEPT_POLL_S = 0.2
JOIN_LIMIT_S = 2.0


class _Listener(ThreadedAssociationServer):
    """The accepting socket, with room for many senders that connect at once."""

    request_queue_size = 128

    def shutdown(self) -> None:
        """Stop accepting and close; pynetdicom's own version fails for a server that it did not start."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()


class Server:
    """A running server; its associations run in threads of their own."""

    def __init__(self, listener: ThreadedAssociationServer) -> None:
        self._listener = listener
        self._thread = Thread(
            target=listener.serve_forever, args=(ACCEPT_POLL_S,), name="dicom-accept", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port that the server listens on."""
        return int(self._listener.server_address[1])

    def associations(self) -> list[Association]:
        """List the associations that are established now."""
        return [assoc for assoc in self._listener.active_associations if assoc.is_established]

    def connections(self) -> list[Association]:
        """List every open connection: associations, and those that have not asked for one yet."""
        return self._listener.active_associations

    def stop(self, *, limit_s: float = 10.0) -> None:
        """Accept nothing more, let running associations end, and abort those that outlast the limit.

        Whatever was acknowledged is on disk at every moment, so an abort loses nothing.
        """
        self._listener.shutdown()
        self._thread.join()
        end = monotonic() + limit_s
        while self.associations() and monotonic() < end:
            sleep(0.02)
        for assoc in self.associations():
            assoc.abort()
        for assoc in self.connections():
            _hang_up(assoc)
        for assoc in self.connections():
            assoc.join(timeout=JOIN_LIMIT_S)


def _hang_up(assoc: Association) -> None:
    """End a connection below pynetdicom, which then sees that it ended; one that has ended is left alone."""
    connection = assoc.dul.socket and assoc.dul.socket.socket
    if connection:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def start(settings: ScpSettings, *, spool: Spool, store: Store, now: Callable[[], datetime]) -> Server:
    """Take DICOM objects in: into the spool and the store, then the answer.

    Raises
    ------
    ConfigError
        The port is taken or not allowed, the host is not of this machine, or the AE title is no such.
    """
    take = partial(handlers.on_c_store, spool=spool, store=store, now=now)

    def reason_to_refuse() -> str | None:
        try:
            store.audit.list(limit=1)  # does the database answer?
            return None if spool.has_room() else "the disk of the spool is below its watermark"
        except ResourceError as error:
            return str(error)

    return listen(settings, on_c_store=take, reason_to_refuse=reason_to_refuse)


def listen(
    settings: ScpSettings,
    *,
    on_c_store: Callable[[evt.Event], Answer],
    reason_to_refuse: ReasonToRefuse = lambda: None,
) -> Server:
    """Start a server whose objects go wherever ``on_c_store`` puts them.

    Parameters
    ----------
    settings
        Address, titles, limits and timeouts. Port 0 takes any free port.
    on_c_store
        Called in the association's thread for each C-STORE request.
    reason_to_refuse
        Asked for each association; a reason refuses it as temporary congestion (2, 3, 1).

    Raises
    ------
    ConfigError
        The address or the AE title cannot be used.
    """
    bound = _handlers(on_c_store, reason_to_refuse)
    address = (settings.host, settings.port)
    try:
        listener = _application_entity(settings).make_server(
            address,
            contexts=[build_context(VERIFICATION)],  # replaced for each association at its request
            evt_handlers=bound,
            server_class=_Listener,
        )
    except ValueError as error:
        raise ConfigError(f"the AE title {settings.ae_title!r} cannot be used: {error}") from error
    except OSError as error:
        raise ConfigError(_why_not_listening(error, settings)) from error
    server = Server(listener)
    log.info("DICOM server listens", ae_title=settings.ae_title, host=settings.host, port=server.port)
    return server


def _application_entity(settings: ScpSettings) -> AE:
    ae = AE(ae_title=settings.ae_title)
    ae.maximum_associations = settings.maximum_associations
    ae.network_timeout = settings.network_timeout_s
    ae.acse_timeout = settings.acse_timeout_s
    ae.dimse_timeout = settings.dimse_timeout_s
    ae.connection_timeout = settings.connection_timeout_s
    ae.require_calling_aet = list(settings.calling_ae_titles)
    ae.require_called_aet = settings.require_called_ae_title
    return ae


def _handlers(
    on_c_store: Callable[[evt.Event], Answer], reason_to_refuse: ReasonToRefuse
) -> list[EventHandlerType]:
    tallies = Tallies()
    return [
        (evt.EVT_REQUESTED, admission.on_requested, [reason_to_refuse]),
        (evt.EVT_REJECTED, admission.on_rejected),
        (evt.EVT_CONN_CLOSE, admission.on_closed),
        (evt.EVT_ESTABLISHED, tallies.on_established),
        (evt.EVT_RELEASED, tallies.on_ended, ["released"]),
        (evt.EVT_ABORTED, tallies.on_ended, ["aborted"]),
        (evt.EVT_C_ECHO, handlers.on_c_echo),
        (evt.EVT_C_STORE, tallies.count, [on_c_store]),
    ]


def _why_not_listening(error: OSError, settings: ScpSettings) -> str:
    """Say what is wrong with the address and what to change."""
    where = f"port {settings.port} of {settings.host or 'every address'}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where} is in use: stop the other program (or node) or set another [scp] port"
        case errno.EACCES:
            return f"{where} needs privileges (below 1024): set [scp] port = 11112 and map it outside"
        case _:
            return f"{where} cannot be listened on ({error}): check [scp] host"
