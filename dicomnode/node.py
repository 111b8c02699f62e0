"""Composition root of a hospital node: settings in, running processes out."""

import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import sleep

import structlog
import torch

from dicomnode import durable
from dicomnode.casebook import Casebook
from dicomnode.clock import start_clock
from dicomnode.domain import JobKind, JobState, ModelOrigin, ModelState
from dicomnode.errors import ConfigError, InputError, ModelFormatError
from dicomnode.ml.inference import engine, heap
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.ml.model import package
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.shelf import ModelShelf
from dicomnode.ml.warm import WarmModels
from dicomnode.pipeline.routing import check_routes
from dicomnode.pipeline.tools import Progress, Tools
from dicomnode.process import config_argument, join, run_to_the_end, stop_on_signals
from dicomnode.settings import NodeSettings, load_node_settings
from dicomnode.site import configure_logging, make_folders, open_spool, opened_store, utc_now
from dicomnode.store import Store
from dicomnode.store.records import JobRow, ModelRecord
from dicomnode.supervisor import Supervisor
from dicomnode.worker import LANES, RetryPolicy, Worker

log = structlog.get_logger()

MODULES = {"receive": "dicomnode.receive", "work": "dicomnode.node", "web": "dicomnode.web"}
"""The processes of a node; each is started as the lightest module that can do its work."""


def run(settings: NodeSettings, config: Path | None) -> None:
    """Keep receive, work and web running on this machine until a signal ends them."""
    stop = stop_on_signals()
    configure_logging(settings, process="run")
    prepare(settings)
    option = [] if config is None else ["--config", str(config)]
    commands = {role: [sys.executable, "-m", module, *option] for role, module in MODULES.items()}
    log.info(
        "node starts",
        ae_title=settings.scp.ae_title,
        port=settings.scp.port,
        data=str(settings.node.data_dir),
    )
    Supervisor(commands).run(stop)
    log.info("node stopped")


def work(settings: NodeSettings) -> None:
    """Run jobs and the clock until a signal ends the process."""
    stop = stop_on_signals()
    configure_logging(settings, process="work")
    heap.use_one_heap()
    use_threads(settings.node.threads)
    with opened_tools(settings, should_stop=stop.is_set) as tools, durable.present(_presence(settings)):
        clock = start_clock(settings, tools)
        lanes = [
            threading.Thread(
                target=worker(settings, tools, lane).run_forever,
                kwargs={"should_stop": stop.is_set, "wait": stop.wait},
                name=lane,
            )
            for lane in LANES
        ]
        for lane in lanes:
            lane.start()
        join(lanes)
        clock.shutdown(wait=False)


def use_threads(count: int) -> None:
    """Let models use so many CPU threads in this process; 0: one for every core."""
    if count:
        torch.set_num_threads(count)


def worker(settings: NodeSettings, tools: Tools, lane: str) -> Worker:
    """The claimant of one lane of jobs, named after this process."""
    return Worker(
        owner=f"{lane}-{os.getpid()}",
        kinds=LANES[lane],
        tools=tools,
        lease=timedelta(seconds=settings.work.lease_s),
        poll_s=settings.work.poll_s,
        retry=RetryPolicy(
            maximum_attempts=settings.work.maximum_attempts,
            patience_attempts=settings.work.patience_attempts,
            backoff=timedelta(seconds=settings.work.backoff_s),
            backoff_cap=timedelta(seconds=settings.work.backoff_cap_s),
        ),
    )


def prepare(settings: NodeSettings) -> None:
    """Make folders, bring the database up to date and put the shipped models into use; safe to repeat.

    Raises
    ------
    ConfigError
        The data folder cannot be written, or a route names a model or a DICOM attribute that does not exist.
    """
    check_routes(settings.routes)
    make_folders(settings)
    with opened_store(settings) as store:
        shelf = open_shelf(settings)
        for name in sorted({route.model for route in settings.routes}):
            if store.models.current(name) is None:
                _install(settings, name, store, shelf)


@contextmanager
def opened_tools(
    settings: NodeSettings,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda *_: None,
) -> Iterator[Tools]:
    """Open every room of the site for the stories, and close the database afterwards."""
    prepare(settings)
    with opened_store(settings) as store:
        yield Tools(
            store=store,
            spool=open_spool(settings),
            casebook=open_casebook(settings),
            shelf=open_shelf(settings),
            ae_title=settings.scp.ae_title,
            routes=settings.routes,
            destinations={d.name: settings.destination(d.name) for d in settings.destinations},
            work=settings.work,
            corrections=settings.corrections,
            training=settings.training,
            federation=settings.federation,
            federation_key=federation_key(settings),
            exchange=settings.exchange_dir,
            pictures=settings.pictures_dir,
            runs=settings.runs_dir,
            now=utc_now,
            should_stop=should_stop,
            progress=progress,
        )


def federation_key(settings: NodeSettings) -> Path:
    """The private key with which this site signs what it says to the aggregator."""
    return settings.keys_dir / "federation.pem"


def package_models(settings: NodeSettings, *, chosen: Path | None = None) -> Callable[[str], LoadedModel]:
    """Load models straight from their packages, for work without a database, and keep them warm.

    Parameters
    ----------
    chosen
        A package that takes the place of every model, whatever its name.
    """
    warm = WarmModels(budget_bytes=settings.models.memory_bytes)

    def load(name: str) -> LoadedModel:
        found = _read_package(settings, name) if chosen is None else package.read(chosen)
        return engine.load(found, device=settings.work.device)

    return lambda name: warm.get(name, lambda: load(name))


def run_job(settings: NodeSettings, tools: Tools, kind: JobKind, digest: str) -> JobRow:
    """Wait until a queued job has ended or this process is to; run it here where no node is running.

    A running node does it itself, so that it can step back for its studies.
    """
    lane = replace(
        worker(settings, replace(tools, steps_back=False), "compute"),
        owner=f"command-{os.getpid()}",
        kinds=(kind,),
    )
    tools.store.jobs.hasten(kind, digest, now=tools.now())
    while True:
        row = tools.store.jobs.find(kind, digest)
        if row is None:
            raise InputError(f"no {kind} job of digest {digest} is queued")
        waits_for_next_attempt = row.state is JobState.READY and row.run_after > tools.now()
        has_ended = row.state not in (JobState.READY, JobState.RUNNING)
        if waits_for_next_attempt or has_ended or tools.should_stop():
            return row
        is_done_here = not durable.is_anyone_present(_presence(settings)) and lane.run_once()
        if not is_done_here and not tools.should_stop():
            sleep(settings.work.poll_s)


def _presence(settings: NodeSettings) -> Path:
    """What a `work` process holds as long as it lives."""
    return settings.node.data_dir / "work.lock"


def open_casebook(settings: NodeSettings) -> Casebook:
    """The training cases of the site."""
    return Casebook(
        settings.cases_dir,
        secret=pseudonym_secret(settings.keys_dir),
        hold_out_fraction=settings.training.hold_out_fraction,
    )


def open_shelf(settings: NodeSettings) -> ModelShelf:
    """The model versions of the site."""
    return ModelShelf(
        settings.versions_dir, device=settings.work.device, budget_bytes=settings.models.memory_bytes
    )


def pseudonym_secret(keys_dir: Path) -> bytes:
    """The key of this site's patient hashes, made once; whoever holds it can test a guess at a patient."""
    write_secret(keys_dir, secrets.token_bytes(32))
    return (keys_dir / "pseudonym.key").read_bytes()


def write_secret(keys_dir: Path, secret: bytes) -> None:
    """Keep the key of the patient hashes, unless there is one: a second would move patients between sides."""
    durable.keep_once(keys_dir / "pseudonym.key", secret, mode=durable.PRIVATE)


def _read_package(settings: NodeSettings, name: str) -> ModelPackage:
    folder = settings.packages_dir / name
    if not folder.is_dir():
        raise ConfigError(
            f"a route names the model {name!r}, but {folder} does not exist; correct routes[].model, "
            f"or set models.folder to the folder that holds the package"
        )
    try:
        return package.read(folder)
    except ModelFormatError as error:
        raise ConfigError(f"model package {folder}: {error}") from error


def _install(settings: NodeSettings, name: str, store: Store, shelf: ModelShelf) -> None:
    """Put a model package of the site's folder onto the shelf and into use."""
    found = shelf.install(_read_package(settings, name).folder)
    store.models.register(
        ModelRecord(
            version=found.card.version,
            name=found.card.name,
            origin=ModelOrigin.INSTALLED,
            state=ModelState.CANDIDATE,
            folder=str(found.folder),
            weights_sha256=found.card.weights_sha256,
            created_at=utc_now(),
        )
    )
    store.models.promote(found.card.version, now=utc_now(), by="dicomnode", reason="installed with the site")
    log.info("model installed", version=found.card.version)


if __name__ == "__main__":
    run_to_the_end(lambda: work(load_node_settings(config_argument())))
