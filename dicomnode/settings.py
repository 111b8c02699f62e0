"""The configuration of a node and of an aggregator: one TOML file per process, read once, frozen.

Paths: ``data_dir`` is taken from the folder in which the command is started; every other relative path
from the folder of the TOML file. Secrets never stand in the file; it names files that hold them.
"""

import sysconfig
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dicomnode.conditions import Conditions, Preference, Range
from dicomnode.configfile import Allowed, Section, read
from dicomnode.configtraining import TrainingSettings
from dicomnode.configtypes import (
    AeTitle,
    ClockTime,
    DatabaseUrl,
    FileBeside,
    Host,
    ListeningPort,
    Name,
    Port,
    Seconds,
    Window,
    WorkingFolder,
    each_once,
    is_within,
    times,
)
from dicomnode.domain import Destination, ResultForm
from dicomnode.errors import ConfigError


class ProcessSection(Section):
    """What every process of a machine shares."""

    log_format: Literal["console", "json"] = Field(
        "console", description="lines for people, or JSON for a collector"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is written"
    )


class NodeSection(ProcessSection):
    """[node]"""

    data_dir: WorkingFolder = Field(
        Path("node-data"),
        description="everything that the node keeps: database, images, cases, model versions",
    )
    site_name: Name = Field(
        "site", description="how this site calls itself in logs and towards the aggregator"
    )
    threads: int = Field(0, ge=0, description="CPU threads for the model; 0 uses every core")


class DatabaseSettings(Section):
    """[database]"""

    url: DatabaseUrl = Field(
        "", description="empty: SQLite in data_dir; else postgresql+psycopg://user@host/name"
    )


class ScpSettings(Section):
    """[scp]: the DICOM receiver."""

    ae_title: AeTitle = Field("DICOMNODE", description="the node's own AE title, as receiver and as sender")
    host: Host = Field("0.0.0.0", description="address to listen on")  # noqa: S104  # a PACS connects from outside
    port: ListeningPort = Field(11112, description="TCP port to listen on")
    maximum_associations: int = Field(50, ge=1, description="associations served at once; more are rejected")
    network_timeout_s: Seconds = Field(180, description="an association silent for so long is aborted")
    acse_timeout_s: Seconds = Field(30, description="wait for an association message")
    dimse_timeout_s: Seconds = Field(30, description="wait for the next part of a DIMSE message")
    connection_timeout_s: Seconds = Field(10, description="wait for a peer to accept a connection")
    calling_ae_titles: tuple[AeTitle, ...] = Field((), description="only these may connect; empty: anyone")
    require_called_ae_title: bool = Field(
        False, description="reject peers that call another AE title than ours"
    )
    minimum_free_gb: float = Field(
        2.0, ge=0, description="below this free disk space nothing more is accepted"
    )


class WorkSettings(Section):
    """[work]: the process that owns the model."""

    quiet_period_s: Seconds = Field(60, description="a series without a new image for so long is complete")
    tick_s: Seconds = Field(2, description="how often quiet series are looked for")
    poll_s: Seconds = Field(0.5, description="pause between two looks into an empty queue")
    lease_s: float = Field(60, ge=5, description="a job of a dead worker is free again after so long")
    maximum_attempts: int = Field(
        10, ge=1, description="attempts before a job is marked failed whose process dies each time"
    )
    patience_attempts: int = Field(
        300,
        ge=1,
        description="attempts before a job that waits for a peer or for room is marked failed; some 3 days",
    )
    backoff_s: Seconds = Field(5, description="pause before the second attempt; doubles each time")
    backoff_cap_s: Seconds = Field(900, description="longest pause between two attempts")
    device: Annotated[str, Allowed('"auto", "cpu", "cuda" or "cuda:1"')] = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the model runs; auto takes a GPU if there is one",
    )
    off_peak: Window = Field(
        "20:00-06:00", description="local time in which off-peak routes are worked on; equal times: always"
    )
    study_quiet_period_s: Seconds = Field(
        900, description='a study without a new image for so long is complete; for per_study = "best"'
    )

    def next_off_peak(self, now: datetime) -> datetime:
        """Tell from when on off-peak work may run: `now`, or the next opening of the window; aware UTC."""
        local = now.astimezone()
        if is_within(self.off_peak, local.time()):
            return now
        opens, _ = times(self.off_peak)
        day = local.date() if local.time() < opens else local.date() + timedelta(days=1)
        return datetime.combine(day, opens).astimezone(UTC)


class WebSettings(Section):
    """[web]: health, metrics and the list of studies."""

    host: Host = Field("127.0.0.1", description="address to listen on; there is no login, so keep it local")
    port: ListeningPort = Field(8080, description="TCP port to listen on")


class ModelsSettings(Section):
    """[models]"""

    folder: FileBeside = Field(
        None, description="folder of model packages; empty: those shipped with dicomnode"
    )
    memory_gb: float = Field(
        4, gt=0, description="memory for loaded models; beyond it the least recently used is unloaded"
    )

    @property
    def memory_bytes(self) -> int:
        """Memory for loaded models."""
        return int(self.memory_gb * 1024**3)


class RouteSettings(Section):
    """[[routes]]: which series go to which model, and where the result goes."""

    name: Name = Field(description="unique name of the route")
    model: Name = Field(description="name of a model package")
    priority: Literal["urgent", "routine", "off-peak"] = Field(
        "routine", description="urgent series overtake the others; off-peak ones wait for work.off_peak"
    )
    destinations: tuple[Name, ...] = Field((), description="names of destinations; empty: all of them")
    per_study: Literal["every", "best"] = Field(
        "every", description="best: only the best of those series of a study that fit"
    )
    prefer: Annotated[tuple[Preference, ...], AfterValidator(each_once)] = Field(
        ("fewest_missing_slices", "most_slices", "thinnest_slices", "finest_pixels"),
        description="what is best; a later item decides where earlier ones tie",
    )
    several_stacks: Literal["refuse", "best"] = Field(
        "refuse", description="what to do with a series in which several stacks of slices fit"
    )
    maximum_missing_slices: int = Field(
        0, ge=0, description="so many slices missing in one gap are interpolated, and the result says so"
    )
    where: Conditions = Field(default_factory=Conditions, description="all must hold")


class DestinationSettings(Section):
    """[[destinations]]: a DICOM peer that receives results."""

    name: Name = Field(description="unique name of the destination")
    ae_title: AeTitle = Field(description="AE title of the peer")
    host: Host = Field(description="host name or IP address of the peer")
    port: Port = Field(description="TCP port of the peer")
    results: Annotated[
        tuple[ResultForm, ...],
        AfterValidator(each_once),
        Allowed('a list, not empty; each item: "seg", "labelmap", "sr", "rtstruct" or "sc"'),
    ] = Field(
        (ResultForm.SEG,),
        min_length=1,
        description="forms of a result that it is given: segmentation, label map, report, contours, pictures",
    )


class CorrectionSettings(Section):
    """[corrections]"""

    trusted_ae_titles: tuple[AeTitle, ...] = Field(
        (),
        description="senders whose segmentation of a series is learned from even if it resembles no result",
    )
    absence_means_empty: bool = Field(
        False, description="a label missing from a corrected object counts as erased by the reader"
    )
    aliases: dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="names that readers give to segments -> labels of a model; case does not count",
    )
    whole_study_readers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="AE titles or names of those who read every slice: what they left is accepted fully",
    )
    unflip: bool = Field(
        False,
        description="turn a correction whose slices came in reverse order, where our result proves it; "
        "false: a person decides",
    )
    minimum_confidence: float = Field(
        0.5, ge=0, le=1, description="a label read less surely than this waits for a person"
    )
    fetch_from: Annotated[str, Allowed("the name of a destination, or empty")] = Field(
        "",
        description="archive that is asked by C-GET, else C-MOVE, for images that a correction needs and "
        "that are not here; empty: none",
    )
    parking_days: float = Field(
        7, gt=0, description="a correction waits so long for its images before it is set aside"
    )


class FederationSettings(Section):
    """[federation]: exchange of weight updates with an aggregator."""

    enabled: bool = Field(False, description="take part; needs `dicomnode federation enrol` once")
    url: Annotated[str, Allowed("an https:// URL, or empty")] = Field(
        "", pattern=r"^(https://\S+)?$", description="address of the aggregator"
    )
    ca_file: FileBeside = Field(
        None, description="certificates to trust for it, PEM; empty: those of the system"
    )
    minimum_patients: int = Field(10, ge=1, description="fewer patients behind an update: it is not sent")
    minimum_steps: int = Field(
        100, ge=1, description="fewer optimiser steps behind an update: it is not sent"
    )
    schedule: ClockTime = Field("03:30", description="local time of the nightly exchange")
    poll_minutes: int = Field(15, ge=1, description="how often a new release is asked for")

    @property
    def schedule_time(self) -> time:
        """Local time of the nightly exchange."""
        return time.fromisoformat(self.schedule)


class NodeSettings(Section):
    """Everything that a node reads from its TOML file."""

    node: NodeSection = Field(default_factory=NodeSection)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    scp: ScpSettings = Field(default_factory=ScpSettings)
    work: WorkSettings = Field(default_factory=WorkSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    models: ModelsSettings = Field(default_factory=ModelsSettings)
    routes: tuple[RouteSettings, ...] = (
        RouteSettings(
            name="hippocampus",
            model="hippocampus",
            where=Conditions(slices=Range(min=16), extent_mm=Range(max=90.0)),
        ),
    )
    destinations: tuple[DestinationSettings, ...] = ()
    corrections: CorrectionSettings = Field(default_factory=CorrectionSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    federation: FederationSettings = Field(default_factory=FederationSettings)

    @model_validator(mode="after")
    def _check_names(self) -> "NodeSettings":
        _check_unique("routes", [route.name for route in self.routes])
        known = [destination.name for destination in self.destinations]
        _check_unique("destinations", known)
        for index, route in enumerate(self.routes):
            for name in route.destinations:
                if name not in known:
                    listed = ", ".join(f'"{one}"' for one in known) or "none"
                    raise ValueError(
                        f'routes[{index}].destinations: no destination "{name}"; there is: {listed}'
                    )
        return self

    @model_validator(mode="after")
    def _check_archive(self) -> "NodeSettings":
        known = [destination.name for destination in self.destinations]
        if self.corrections.fetch_from and self.corrections.fetch_from not in known:
            listed = ", ".join(f'"{one}"' for one in known) or "none"
            raise ValueError(
                f'corrections.fetch_from: no destination "{self.corrections.fetch_from}"; there is: {listed}'
            )
        return self

    @model_validator(mode="after")
    def _check_federation(self) -> "NodeSettings":
        if self.federation.enabled and not self.federation.url:
            raise ValueError(
                "federation.url is empty; with federation.enabled = true it must name the aggregator"
            )
        return self

    @property
    def database_url(self) -> str:
        """URL of the site's database, with the SQLite default filled in."""
        return self.database.url or f"sqlite:///{self.node.data_dir / 'node.sqlite'}"

    @property
    def spool_dir(self) -> Path:
        """Folder of received and own DICOM files."""
        return self.node.data_dir / "spool"

    @property
    def cases_dir(self) -> Path:
        """Folder of pseudonymous training cases."""
        return self.node.data_dir / "cases"

    @property
    def versions_dir(self) -> Path:
        """Folder of the model versions trained or fetched by this site."""
        return self.node.data_dir / "models"

    @property
    def exchange_dir(self) -> Path:
        """Folder of the weights on their way to the aggregator and from it."""
        return self.node.data_dir / "exchange"

    @property
    def pictures_dir(self) -> Path:
        """Folder of the pictures of corrections that wait for a person."""
        return self.node.data_dir / "pictures"

    @property
    def runs_dir(self) -> Path:
        """Trainings on corrections: what goes on, and the curves of what has ended."""
        return self.node.data_dir / "runs"

    @property
    def downloads_dir(self) -> Path:
        """Folder of model archives on their way from the web; it may be emptied at any time."""
        return self.node.data_dir / "downloads"

    @property
    def keys_dir(self) -> Path:
        """Folder of this site's secrets: signing key and pseudonymisation key."""
        return self.node.data_dir / "keys"

    @property
    def packages_dir(self) -> Path:
        """Folder of the model packages that the routes name."""
        return self.models.folder or shipped_models_folder()

    def destinations_of(self, route: RouteSettings) -> tuple[Destination, ...]:
        """List the peers that get the results of a route."""
        wanted = route.destinations or tuple(one.name for one in self.destinations)
        return tuple(self.destination(name) for name in wanted)

    def destination(self, name: str) -> Destination:
        """Find a peer by its name.

        Raises
        ------
        ConfigError
            The file has no destination of that name (any more).
        """
        for one in self.destinations:
            if one.name == name:
                return Destination(**one.model_dump())
        raise ConfigError(
            f'no destination "{name}" in the configuration; add a [[destinations]] table of that name'
        )


class AggregatorSection(ProcessSection):
    """[aggregator]"""

    data_dir: WorkingFolder = Field(
        Path("aggregator-data"),
        description="everything that the aggregator keeps: database, blobs, keys, certificate",
    )
    host: Host = Field("0.0.0.0", description="address to listen on")  # noqa: S104  # sites connect from outside
    port: ListeningPort = Field(8443, description="TCP port of HTTPS")
    name: Name = Field("aggregator", description="audience that signed requests must name")
    hostnames: tuple[Host, ...] = Field(
        ("localhost", "127.0.0.1"),
        min_length=1,
        description="names that the certificate made at the first start is for",
    )


class MergingSettings(Section):
    """[merging]: how accepted updates become a release."""

    strategy: Literal["dafne_delta"] = Field("dafne_delta", description="rule of the merge")
    eta: float = Field(0.5, gt=0, le=1, description="share of an update that enters the release")
    clip_factor: float = Field(
        1.5, ge=0, description="updates are shortened to so many median norms; 0: never"
    )


class AdmissionSettings(Section):
    """[admission]: what an update must satisfy."""

    maximum_norm_factor: float = Field(5.0, gt=0, description="a norm above so many medians is refused")
    maximum_blob_mb: int = Field(1024, ge=1, description="largest upload")


class EnrolmentSettings(Section):
    """[enrolment]"""

    code_valid_h: float = Field(72, gt=0, description="life of a one-time enrolment code")


class AggregatorSettings(Section):
    """Everything that an aggregator reads from its TOML file."""

    aggregator: AggregatorSection = Field(default_factory=AggregatorSection)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    merging: MergingSettings = Field(default_factory=MergingSettings)
    admission: AdmissionSettings = Field(default_factory=AdmissionSettings)
    enrolment: EnrolmentSettings = Field(default_factory=EnrolmentSettings)

    @property
    def database_url(self) -> str:
        """URL of the aggregator's database, with the SQLite default filled in."""
        return self.database.url or f"sqlite:///{self.aggregator.data_dir / 'aggregator.sqlite'}"


def load_node_settings(path: Path | None) -> NodeSettings:
    """Read a node's TOML file; None stands for the embedded defaults.

    Raises
    ------
    ConfigError
        See :func:`dicomnode.configfile.read`.
    """
    return read(NodeSettings, path)


def load_aggregator_settings(path: Path | None) -> AggregatorSettings:
    """Read an aggregator's TOML file; None stands for the embedded defaults.

    Raises
    ------
    ConfigError
        See :func:`dicomnode.configfile.read`.
    """
    return read(AggregatorSettings, path)


def shipped_models_folder() -> Path:
    """Find the model packages that came with dicomnode: beside the package, or where the wheel put them."""
    checkout = Path(__file__).resolve().parent.parent / "models"
    return (
        checkout if checkout.is_dir() else Path(sysconfig.get_path("data")) / "share" / "dicomnode" / "models"
    )


def _check_unique(section: str, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f'{section}: the name "{min(twice)}" is used twice; names must differ')
