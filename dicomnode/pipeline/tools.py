"""What every story is handed: the site's rooms, and the few settings that stories need."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TypeVar

from dicomnode.casebook import Casebook
from dicomnode.configtraining import TrainingSettings
from dicomnode.domain import Destination, JobKind, JobState, ModelCard, ModelVersion
from dicomnode.errors import ConfigError, ModelFormatError, ResourceError
from dicomnode.federation.client import AggregatorClient
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.shelf import ModelShelf
from dicomnode.settings import (
    CorrectionSettings,
    FederationSettings,
    RouteSettings,
    WorkSettings,
)
from dicomnode.spool import Spool
from dicomnode.store import Store
from dicomnode.store.records import ModelRecord

Readable = TypeVar("Readable", ModelCard, ModelPackage, LoadedModel)

URGENT = frozenset({JobKind.SEGMENT_SERIES, JobKind.INGEST_CORRECTION})
"""What a training steps back for."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class Interrupted(Exception):  # noqa: N818  # not an error: the story goes back into the queue
    """A story stopped at a safe point because something more urgent waits, or the process ends.

    Parameters
    ----------
    until
        When the story may go on; None: as soon as nothing more urgent waits.
    """

    def __init__(self, reason: str, *, until: datetime | None = None) -> None:
        super().__init__(reason)
        self.until = until


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """What came of a wish to queue a job."""

    in_words: str
    digest: str | None = None  # of the job, new or from before; None: nothing was queued, the words say why


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The rooms of one site, opened once per process."""

    store: Store
    spool: Spool
    casebook: Casebook
    shelf: ModelShelf
    ae_title: str
    routes: tuple[RouteSettings, ...]
    destinations: Mapping[str, Destination]
    work: WorkSettings
    corrections: CorrectionSettings
    training: TrainingSettings
    federation: FederationSettings
    federation_key: Path  # with which this site signs what it says to the aggregator
    exchange: Path  # weights on their way to the aggregator and from it
    pictures: Path  # of corrections that wait for a person
    runs: Path  # of trainings: what goes on, and the curves of what has ended
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]  # asked between batches: True when the process is to end
    progress: Progress
    steps_back: bool = True  # for studies; not what a person waits for at the command line

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models that the routes name."""
        return tuple(sorted({route.model for route in self.routes}))

    def current_record(self, name: str) -> ModelRecord:
        """The version in use."""
        record = self.store.models.current(name)
        if record is None:
            raise ModelFormatError(f"no version of model {name!r} is in use at this site")
        return record

    def current_package(self, name: str) -> ModelPackage:
        """The version in use, read from the shelf."""
        return self._in_use(name, self.shelf.package)

    def current_card(self, name: str) -> ModelCard:
        """The labels of the version in use."""
        return self._in_use(name, self.shelf.card)

    def current_model(self, name: str) -> LoadedModel:
        """The version in use, loaded."""
        return self._in_use(name, self.shelf.loaded)

    def reason_apart(self) -> str | None:
        """Why this site takes no part in a federation, or None; asked each time, since it may join at any."""
        if not self.federation.enabled:
            return "this site takes no part in a federation (federation.enabled = false)"
        if self.store.federation.enrolment(self.federation.url) is None:
            return "not enrolled at an aggregator; see `dicomnode federation enrol --help`"
        return None

    def enqueue(self, kind: JobKind, subject: str, digest: str) -> None:
        """Queue a job once; one that gave up on a fault that may have passed gets a fresh start."""
        if self.store.jobs.enqueue(kind, subject, digest, now=self.now()):
            return
        row = self.store.jobs.find(kind, digest)
        if row is not None and row.state is JobState.FAILED and not row.traceback:
            self.store.jobs.requeue(row.id, now=self.now())

    def connect(self) -> AggregatorClient:
        """Open a connection to the aggregator; the caller closes it.

        Raises
        ------
        ConfigError
            This site is not enrolled.
        """
        enrolment = self.store.federation.enrolment(self.federation.url)
        if enrolment is None:
            raise ConfigError(
                "this site is not enrolled at an aggregator; see `dicomnode federation enrol --help`"
            )
        return AggregatorClient(
            url=enrolment.url,
            node_id=enrolment.node_id,
            aggregator_name=enrolment.aggregator_name,
            aggregator_key=enrolment.aggregator_key,
            key_file=self.federation_key,
            ca_file=self.federation.ca_file,
        )

    def must_yield(self) -> bool:
        """Answer whether a long story should step back: a study waits, or the process ends."""
        return self.should_stop() or (self.steps_back and self.store.jobs.is_due(URGENT, self.now()))

    def _in_use(self, name: str, read: Callable[[ModelVersion], Readable]) -> Readable:
        """Read the version in use; that it cannot be read is the site's fault, never a study's."""
        version = self.current_record(name).version
        try:
            return read(version)
        except ModelFormatError as error:
            raise ResourceError(
                f"{version} is in use and cannot be read: {error}; restore its folder from a backup, or put "
                f"another version into use with `dicomnode models promote`"
            ) from error


class Stopwatch:
    """Seconds of each step of a story, in order."""

    def __init__(self) -> None:
        self._last = monotonic()
        self._laps: list[tuple[str, float]] = []

    def lap(self, step: str) -> None:
        """Note the seconds since the last lap under the name of the step that just ended."""
        now = monotonic()
        self._laps.append((step, round(now - self._last, 3)))
        self._last = now

    @property
    def laps(self) -> tuple[tuple[str, float], ...]:
        """The steps so far."""
        return tuple(self._laps)
