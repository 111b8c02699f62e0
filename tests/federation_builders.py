"""A small federation for tests: a two-layer model, an aggregator on the loopback, an enrolled site."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

import torch

from dicomnode import aggregator, weights
from dicomnode.domain import Sha256
from dicomnode.federation import client
from dicomnode.federation.client import AggregatorClient, Enrolment, Offer, Release
from dicomnode.federation.manifest import BlobRef, Encoding, UpdateManifest, UpdateState
from dicomnode.federation.messages import UpdateStatus
from dicomnode.federation.tools import Tools
from dicomnode.settings import AggregatorSettings

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
FAMILY = "toy"


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    moment: datetime = NOW

    def __call__(self) -> datetime:
        """Read the clock."""
        return self.moment


def toy_weights() -> weights.Tensors:
    """Weights of a model with two layers and one integer buffer; L2 norm of the float part: 6."""
    return {
        "conv.weight": torch.full((4, 4), 1.0),
        "conv.bias": torch.full((4,), 2.0),
        "norm.running_var": torch.full((4,), 1.0),
        "norm.count": torch.tensor([7], dtype=torch.int64),
    }


def toy_delta(value: float = 0.25) -> weights.Tensors:
    """An update of the convolution alone: L2 norm ``value * sqrt(20)``."""
    return {"conv.weight": torch.full((4, 4), value), "conv.bias": torch.full((4,), value)}


def write_package(folder: Path, *, tensors: weights.Tensors | None = None, name: str = FAMILY) -> Path:
    """Write what the aggregator reads of a model package."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = weights.write(folder / "weights.safetensors", toy_weights() if tensors is None else tensors)
    plan = {
        "format_version": 2,
        "name": name,
        "orientation": "HPL",
        "axis_order": [0, 1, 2],
        "region_classes": [],
        "stages": [
            {
                "network": {"kind": "toy", "classes": 2},
                "spacing_mm": [1.0, 1.0, 1.0],
                "normalisation": {"method": "percentile_z_score"},
                "members": 1,
            }
        ],
    }
    (folder / "plan.json").write_text(json.dumps({"weights_sha256": digest, "plan": plan}))
    return folder


def write_blob(path: Path, delta: weights.Tensors, *, encoding: Encoding = "f32") -> BlobRef:
    """Write an update as a site would."""
    tensors = weights.to_bf16(delta) if encoding == "bf16" else delta
    digest = weights.write(path, tensors)
    return BlobRef(sha256=digest, size=path.stat().st_size)


def aggregator_settings(folder: Path, **sections: dict[str, object]) -> AggregatorSettings:
    """Settings of an aggregator on a free port of the loopback interface."""
    place = {"data_dir": str(folder), "host": "127.0.0.1", "port": 0, "name": "centre"}
    return AggregatorSettings.model_validate({"aggregator": place, **sections})


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A running aggregator with one release of the toy model."""

    folder: Path
    settings: AggregatorSettings
    tools: Tools
    port: int
    connections: ExitStack

    @property
    def url(self) -> str:
        """Where nodes find it."""
        return f"https://localhost:{self.port}"

    @property
    def ca_file(self) -> Path:
        """What nodes trust."""
        return self.settings.aggregator.data_dir / "ca.pem"

    def enrol(self, name: str) -> Enrolment:
        """Enrol a site with a fresh code and key."""
        code = aggregator.create_enrolment_code(self.settings, name)
        return client.enrol(
            self.url, code, node_name=name, key_file=self.key_file(name), ca_file=self.ca_file
        )

    def key_file(self, name: str) -> Path:
        """Where a site keeps its key."""
        return self.folder / name / "node.key"

    def site(self, name: str) -> "Site":
        """Enrol a site and connect it."""
        enrolment = self.enrol(name)
        return Site(
            enrolment=enrolment,
            folder=self.folder / name,
            client=self.connections.enter_context(
                connect(enrolment, key_file=self.key_file(name), ca_file=self.ca_file)
            ),
        )


def connect(enrolment: Enrolment, *, key_file: Path, ca_file: Path, attempts: int = 3) -> AggregatorClient:
    """Connect an enrolled site."""
    return AggregatorClient(
        url=enrolment.url,
        node_id=enrolment.node_id,
        aggregator_name=enrolment.aggregator_name,
        aggregator_key=enrolment.aggregator_key,
        key_file=key_file,
        ca_file=ca_file,
        attempts=attempts,
    )


@dataclass(frozen=True, kw_only=True)
class Site:
    """An enrolled site with its connection."""

    enrolment: Enrolment
    folder: Path
    client: AggregatorClient

    def release(self, family: str = FAMILY) -> Release:
        """The newest release, which must exist."""
        found = self.client.latest_release(family)
        assert found is not None
        return found

    def offer(
        self,
        delta: weights.Tensors,
        *,
        name: str = "update",
        encoding: Encoding = "f32",
        family: str = FAMILY,
    ) -> tuple[Path, UpdateManifest]:
        """Write an update of the newest release and describe it."""
        path = self.folder / f"{name}.safetensors"
        blob = write_blob(path, delta, encoding=encoding)
        return path, self.client.describe(work_of(self.release(family), blob, encoding=encoding))

    def settled(self, update_id: str, *, timeout_s: float = 10.0) -> UpdateStatus:
        """Wait until an update is merged or refused."""
        end = monotonic() + timeout_s
        while monotonic() < end:
            found = self.client.update_state(update_id)
            if found.state not in (UpdateState.ANNOUNCED, UpdateState.ACCEPTED):
                return found
            sleep(0.05)
        raise TimeoutError(f"update {update_id} is still {found.state}")


def work_of(release: Release, blob: BlobRef, *, encoding: Encoding = "f32") -> Offer:
    """Say that ten cases and a hundred steps went into an update."""
    return Offer(base=release.manifest, blob=blob, encoding=encoding, n_cases=10, n_steps=100, local_epochs=5)


@contextmanager
def running(folder: Path, **sections: dict[str, object]) -> Iterator[Federation]:
    """Run an aggregator with the toy model published."""
    settings = aggregator_settings(folder / "centre", **sections)
    aggregator.publish(settings, write_package(folder / "toy"))
    with (
        aggregator.open_tools(settings) as tools,
        aggregator.Server(settings, tools) as server,
        ExitStack() as connections,
    ):
        yield Federation(
            folder=folder, settings=settings, tools=tools, port=server.port, connections=connections
        )


def read_release(site: Site, path: Path) -> weights.Tensors:
    """Fetch and read the newest release."""
    blob = site.release().manifest.blob
    site.client.fetch_blob(Sha256(blob.sha256), path, size_bytes=blob.size)
    return weights.read(path)
