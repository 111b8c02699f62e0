"""The centre of a federation: settings, keys, certificate and ledger put together and served over HTTPS."""

import base64
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

import structlog
import uvicorn

from dicomnode.errors import ConfigError
from dicomnode.federation import certificates, releases, signing
from dicomnode.federation.app import create_app
from dicomnode.federation.blobs import BlobFolder
from dicomnode.federation.certificates import ServerCertificate
from dicomnode.federation.intake import Intake
from dicomnode.federation.ledger import Ledger
from dicomnode.federation.ledger.audit import AuditReport
from dicomnode.federation.ledger.nodes import NodeRow
from dicomnode.federation.ledger.versions import VersionRow
from dicomnode.federation.tools import Rules, Tools
from dicomnode.settings import AggregatorSettings

log = structlog.get_logger()

_KEY_FILE: Final = Path("keys") / "aggregator.key"
_CODE_BYTES: Final = 15  # 120 bits, 24 characters
_CODE_GROUP: Final = 6
_STALE_UPLOAD: Final = timedelta(days=7)
_BACKLOG: Final = 128
_SHUTDOWN_S: Final = 3  # what is cut then is resumed


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorStatus:
    """What an operator wants to see at a glance."""

    name: str
    key_fingerprint: str  # of the key that signs releases
    ca_file: Path
    ca_fingerprint: str  # SHA-256, to be read out to a site that fetches the certificate
    nodes: tuple[NodeRow, ...]
    releases: tuple[VersionRow, ...]  # the newest of every family
    updates: tuple[tuple[str, int], ...]  # state, count


def serve(settings: AggregatorSettings) -> None:
    """Run the aggregator until the process is told to end.

    Raises
    ------
    ConfigError
        The port is taken, or the data folder, a key, the certificate or the database URL cannot be used.
    DatabaseError
        The database does not answer.
    """
    # The server ends on SIGTERM and then raises it once more; without this the intake would be cut off.
    signal.signal(signal.SIGTERM, _leave)
    with suppress(KeyboardInterrupt), open_tools(settings) as tools:
        Server(settings, tools).run()


def create_enrolment_code(settings: AggregatorSettings, node_name: str) -> str:
    """Make a one-time code for a site; it is shown once, and only its digest is kept.

    Raises
    ------
    ConfigError
        An active site of that name exists.
    """
    digits = base64.b32encode(secrets.token_bytes(_CODE_BYTES)).decode()
    code = "-".join(digits[start : start + _CODE_GROUP] for start in range(0, len(digits), _CODE_GROUP))
    with open_tools(settings) as tools:
        now = tools.now()
        expires_at = now + timedelta(hours=settings.enrolment.code_valid_h)
        tools.ledger.nodes.invite(code, node_name=node_name, expires_at=expires_at, now=now)
    return code


def publish(settings: AggregatorSettings, model_dir: Path) -> VersionRow:
    """Publish a model package's weights as the first, or the next, release of its family.

    Raises
    ------
    ConfigError
        The folder is no model package, or the family has another network.
    """
    with open_tools(settings) as tools:
        return releases.publish_package(model_dir, tools)


def roll_back(settings: AggregatorSettings, family: str, version: int) -> VersionRow:
    """Publish an older release's weights as a new release.

    Raises
    ------
    ConfigError
        There is no such release, or it is the newest already.
    """
    with _existing_tools(settings) as tools:
        return releases.roll_back(family, version, tools)


def status(settings: AggregatorSettings) -> AggregatorStatus:
    """Say who takes part, what waits and what is released.

    Raises
    ------
    ConfigError
        There is no aggregator in the data folder.
    """
    with _existing_tools(settings) as tools:
        certificate = ensure_certificate(settings, now=tools.now())
        return AggregatorStatus(
            name=tools.name,
            key_fingerprint=signing.fingerprint(signing.public_key_of(tools.key)),
            ca_file=certificate.ca_file,
            ca_fingerprint=certificates.fingerprint(certificate.ca_file.read_bytes()),
            nodes=tuple(tools.ledger.nodes.list()),
            releases=tuple(tools.ledger.versions.heads()),
            updates=tuple(tools.ledger.updates.counts().items()),
        )


def revoke(settings: AggregatorSettings, node_id: str) -> int:
    """Shut a site out at once and quarantine its waiting updates; returns how many.

    Raises
    ------
    ConfigError
        There is no such site.
    """
    with _existing_tools(settings) as tools:
        return tools.ledger.nodes.revoke(node_id, now=tools.now())


def verify_audit(settings: AggregatorSettings) -> AuditReport:
    """Recompute the audit chain from its first event.

    Raises
    ------
    ConfigError
        There is no aggregator in the data folder.
    """
    with _existing_tools(settings) as tools:
        return tools.ledger.audit.verify()


@contextmanager
def open_tools(
    settings: AggregatorSettings, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[Tools]:
    """Open the aggregator's rooms, made on first use, and close them again.

    Raises
    ------
    ConfigError
        The data folder, the signing key or the database URL cannot be used.
    DatabaseError
        The database does not answer.
    """
    folder = settings.aggregator.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        blobs = BlobFolder(folder)
    except OSError as error:
        raise ConfigError(
            f"aggregator.data_dir: {folder} cannot be made or written ({error.strerror}); choose a folder "
            "that this user may write"
        ) from error
    key = signing.load_or_create_key(folder / _KEY_FILE)
    ledger = Ledger.open(settings.database_url)
    try:
        yield Tools(
            name=settings.aggregator.name,
            ledger=ledger,
            blobs=blobs,
            key=key,
            rules=Rules(
                strategy=settings.merging.strategy,
                eta=settings.merging.eta,
                clip_factor=settings.merging.clip_factor,
                maximum_norm_factor=settings.admission.maximum_norm_factor,
                maximum_blob_bytes=settings.admission.maximum_blob_mb * 1024 * 1024,
            ),
            now=now,
        )
    finally:
        ledger.close()


@contextmanager
def _existing_tools(settings: AggregatorSettings) -> Iterator[Tools]:
    # In a wrong folder an empty ledger would be made and then reported as intact.
    folder = settings.aggregator.data_dir
    if not (folder / _KEY_FILE).exists():
        raise ConfigError(
            f"aggregator.data_dir: there is no aggregator in {folder}; start the command in the right "
            "folder, or publish a model first"
        )
    with open_tools(settings) as tools:
        yield tools


def ensure_certificate(settings: AggregatorSettings, *, now: datetime) -> ServerCertificate:
    """Find or make the CA and server certificate; nodes get ``<data_dir>/ca.pem``."""
    return certificates.ensure(
        settings.aggregator.data_dir,
        hostnames=settings.aggregator.hostnames,
        organisation=f"dicomnode {settings.aggregator.name}",
        now=now,
    )


class Server:
    """The HTTPS server and the intake beside it; the port is taken on construction."""

    def __init__(self, settings: AggregatorSettings, tools: Tools) -> None:
        """Take the port and prepare; nothing is answered yet.

        Raises
        ------
        ConfigError
            The port is taken, or the certificate cannot be made.
        """
        self._tools = tools
        self._intake = Intake(tools)
        certificate = ensure_certificate(settings, now=tools.now())
        self._socket = _listen(settings.aggregator.host, settings.aggregator.port)
        self.port: int = self._socket.getsockname()[1]
        app = create_app(tools, wake=self._intake.wake, ca_file=certificate.ca_file)
        context = certificates.server_context(certificate.certificate_file, certificate.key_file)
        config = uvicorn.Config(
            app,
            ssl_context_factory=lambda *_: context,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=512,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.run, name="aggregator", daemon=True)

    def run(self) -> None:
        """Serve until told to end (SIGTERM or Ctrl-C in the main thread, :meth:`stop` elsewhere)."""
        stale = self._tools.now() - _STALE_UPLOAD
        for node_id, sha256 in self._tools.ledger.uploads.abandon_older(stale):
            self._tools.blobs.discard(node_id, sha256)
        self._tools.blobs.sweep(before=stale)
        self._intake.start()
        key = signing.fingerprint(signing.public_key_of(self._tools.key))
        log.info("aggregator started", port=self.port, name=self._tools.name, key=key)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._intake.stop()
            self._socket.close()
            log.info("aggregator stopped", port=self.port)

    def start(self) -> None:
        """Serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the requests in hand."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        """Serve in a thread for the length of a block."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self.stop()


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"aggregator.host: {host!r} is no address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"aggregator: cannot listen on {host}:{port} ({error.strerror}); stop the program that uses "
            "the port, or set another [aggregator] port"
        ) from error
    return listener
