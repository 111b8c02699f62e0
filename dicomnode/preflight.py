"""Is this site fit to run? Each dependency is tried and the finding said in words."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter

import torch

from dicomnode.domain import Destination
from dicomnode.errors import ConfigError, DicomNodeError, SpoolFullError
from dicomnode.ml.inference import engine
from dicomnode.ml.model import package
from dicomnode.node import open_shelf, opened_tools, prepare
from dicomnode.pipeline.routing import check_routes
from dicomnode.scp import query, sender
from dicomnode.scp.association import CONNECTION_TIMEOUT_S
from dicomnode.scp.query import Archive
from dicomnode.settings import NodeSettings
from dicomnode.site import open_spool, opened_store

_LOOPBACK = "127.0.0.1"
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # compared with, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was tried and what came of it."""

    what: str
    is_sound: bool | None  # None: worth knowing, no fault
    finding: str


def check(settings: NodeSettings) -> list[Finding]:
    """Try every dependency of a site, one after the other; a fault of one hides no other."""
    steps: list[tuple[str, Callable[[], str]]] = [
        ("first start", lambda: _first_start(settings)),
        ("data folder", lambda: _data_folder(settings)),
        ("database", lambda: _database(settings)),
        *((f"model {name}", lambda name=name: _model(settings, name)) for name in _model_names(settings)),
        ("routes", lambda: _routes(settings)),
        ("DICOM port", lambda: _dicom_port(settings)),
        *(
            (f"destination {d.name}", lambda name=d.name: _destination(settings, name))
            for d in settings.destinations
        ),
    ]
    if settings.corrections.fetch_from:
        steps.append(("archive of corrected images", lambda: _archive(settings)))
    return [*(_try(what, step) for what, step in steps), *_notes(settings)]


def _try(what: str, step: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, is_sound=True, finding=step())
    except DicomNodeError as error:
        return Finding(what=what, is_sound=False, finding=str(error))


def _notes(settings: NodeSettings) -> Iterator[Finding]:
    if not settings.destinations:
        yield Finding(
            what="destinations", is_sound=None, finding="none configured: results stay in the spool"
        )
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    yield Finding(what="compute", is_sound=None, finding=device)
    if not settings.federation.enabled:
        yield Finding(
            what="federation", is_sound=None, finding="not taking part (federation.enabled = false)"
        )
    else:
        yield _try("aggregator", lambda: _aggregator(settings))


def _first_start(settings: NodeSettings) -> str:
    prepare(settings)
    return "folders are there and a version of each model is in use"


def _data_folder(settings: NodeSettings) -> str:
    spool = open_spool(settings)
    free_gb = spool.free_bytes() / 1e9
    if not spool.has_room():
        raise SpoolFullError(
            f"{settings.node.data_dir}: {free_gb:.1f} GB free, below scp.minimum_free_gb = "
            f"{settings.scp.minimum_free_gb}; nothing would be accepted"
        )
    return f"{settings.node.data_dir}, {free_gb:.1f} GB free"


def _database(settings: NodeSettings) -> str:
    with opened_store(settings) as store:
        overview = store.overview(limit=1)
    return f"answers; {sum(count for _, count in overview.series)} series known"


def _model_names(settings: NodeSettings) -> list[str]:
    return sorted({route.model for route in settings.routes})


def _model(settings: NodeSettings, name: str) -> str:
    with opened_store(settings) as store:
        current = store.models.current(name)
    found = (
        open_shelf(settings).package(current.version)
        if current
        else package.read(settings.packages_dir / name)
    )
    started = perf_counter()
    model = engine.load(found, device=settings.work.device)
    return f"{found.card.version} loads on {model.device} in {perf_counter() - started:.1f} s"


def _routes(settings: NodeSettings) -> str:
    check_routes(settings.routes)
    return ", ".join(f"{route.name} → {route.model}" for route in settings.routes) or "none: nothing is taken"


def _dicom_port(settings: NodeSettings) -> str:
    host = _LOOPBACK if settings.scp.host in _ANY_ADDRESS else settings.scp.host
    ours = Destination(name="this node", ae_title=settings.scp.ae_title, host=host, port=settings.scp.port)
    with closing(socket.socket()) as probe:
        probe.settimeout(2)
        try:
            is_free = probe.connect_ex((host, settings.scp.port)) != 0
        except OSError as error:
            raise ConfigError(
                f"scp.host: {settings.scp.host!r} is no address of this machine; correct it"
            ) from error
        if is_free:
            return f"{settings.scp.host}:{settings.scp.port} is free"
    seconds = sender.echo(ours, ae_title=settings.scp.ae_title)
    return f"a node answers C-ECHO on port {settings.scp.port} in {seconds * 1000:.0f} ms"


def _destination(settings: NodeSettings, name: str) -> str:
    peer = settings.destination(name)
    seconds = sender.echo(peer, ae_title=settings.scp.ae_title)
    return f"{peer.ae_title} at {peer.host}:{peer.port} answers C-ECHO in {seconds * 1000:.0f} ms"


def _archive(settings: NodeSettings) -> str:
    peer = settings.destination(settings.corrections.fetch_from)
    archive = Archive(destination=peer, ae_title=settings.scp.ae_title, answer_timeout_s=CONNECTION_TIMEOUT_S)
    return query.check(archive)


def _aggregator(settings: NodeSettings) -> str:
    with opened_tools(settings) as tools, tools.connect() as client:
        policy = client.policy()
    return f"{policy.aggregator} answers and knows this site; it merges by {policy.strategy}"
