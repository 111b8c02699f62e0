"""The node's HTTP pages over a real socket: health per dependency, figures, studies; no patient data."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from dicomnode.domain import (
    CorrectionState,
    JobKind,
    ModelOrigin,
    ModelState,
    ModelVersion,
    SeriesInstanceUid,
    Sha256,
    SopInstanceUid,
    StoredInstance,
    StudyInstanceUid,
)
from dicomnode.errors import ConfigError
from dicomnode.settings import NodeSection, NodeSettings, WebSettings
from dicomnode.spool import Spool
from dicomnode.store import ModelRecord, Store
from dicomnode.web import app as web_app
from tests.feedback_builders import BACK, FRONT, Readers

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NOON_BEFORE = NOW - timedelta(days=2)
STUDY = "1.2.826.0.1.3680043.8.498.1"
MODEL = ModelRecord(
    version=ModelVersion("hippocampus@0123456789ab"),
    name="hippocampus",
    origin=ModelOrigin.INSTALLED,
    state=ModelState.CANDIDATE,
    folder="hippocampus",
    weights_sha256=Sha256("0" * 64),
    created_at=NOW,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path / 'node.sqlite'}")
    yield store
    store.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", minimum_free_bytes=0)


@pytest.fixture
def client(store: Store, spool: Spool) -> Iterator[httpx.Client]:
    yield from serving(store, spool)


def serving(store: Store, spool: Spool) -> Iterator[httpx.Client]:
    app = web_app.build(store, spool, models=["hippocampus"], now=lambda: NOW)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
        yield client
    server.should_exit = True
    thread.join()


def use_model(store: Store) -> None:
    store.models.register(MODEL)
    store.models.promote(MODEL.version, now=NOW, by="test")


def receive(store: Store, number: int, *, series: int) -> None:
    instance = StoredInstance(
        sop_instance_uid=SopInstanceUid(f"{STUDY}.{series}.{number}"),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        series_instance_uid=SeriesInstanceUid(f"{STUDY}.{series}"),
        study_instance_uid=StudyInstanceUid(STUDY),
        modality="MR",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=Sha256(f"{series:032x}{number:032x}"),
        size_bytes=1000,
        path=f"{STUDY}.{series}/{number}.dcm",
        sender="SCANNER",
        received_at=NOW,
    )
    store.series.record_instance(instance, now=NOW + timedelta(seconds=series))


def verdicts(answer: httpx.Response) -> dict[str, str]:
    return {one["name"]: one["verdict"] for one in answer.json()["dependencies"]}


def test_a_node_with_everything_it_needs_is_healthy(store: Store, client: httpx.Client) -> None:
    use_model(store)
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json()["verdict"] == "ok"
    assert verdicts(answer) == {"disk": "ok", "database": "ok", "worker": "ok", "models": "ok"}


def test_a_route_without_its_model_makes_the_node_unhealthy(client: httpx.Client) -> None:
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert verdicts(answer)["models"] == "failing"
    assert "hippocampus" in answer.text


def test_jobs_that_nobody_takes_make_the_node_unhealthy(store: Store, client: httpx.Client) -> None:
    use_model(store)
    store.jobs.enqueue(JobKind.SEGMENT_SERIES, "1.2.3", "a", now=NOW - timedelta(minutes=6))
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert verdicts(answer)["worker"] == "failing"


def test_jobs_that_wait_behind_a_running_one_are_no_fault(store: Store, client: httpx.Client) -> None:
    use_model(store)
    for digest in ("a", "b"):
        store.jobs.enqueue(JobKind.SEGMENT_SERIES, "1.2.3", digest, now=NOW - timedelta(minutes=6))
    store.jobs.claim(NOW, kinds=[JobKind.SEGMENT_SERIES], owner="work-1", lease=timedelta(minutes=1))
    assert verdicts(client.get("/healthz"))["worker"] == "ok"


def test_a_full_disk_makes_the_node_unhealthy(store: Store, tmp_path: Path) -> None:
    use_model(store)
    for client in serving(store, Spool(tmp_path / "spool", minimum_free_bytes=10**18)):
        answer = client.get("/healthz")
        assert answer.status_code == 503
        assert verdicts(answer)["disk"] == "failing"


def test_a_database_that_is_gone_is_told_and_not_hidden(
    store: Store, client: httpx.Client, tmp_path: Path
) -> None:
    store.close()
    for file in tmp_path.glob("node.sqlite*"):
        file.unlink()
    (tmp_path / "node.sqlite").mkdir()
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert verdicts(answer)["database"] == "failing"
    assert client.get("/studies").status_code == 503
    assert client.get("/metrics").status_code == 503


def test_metrics_are_readable_by_prometheus(store: Store, client: httpx.Client) -> None:
    use_model(store)
    receive(store, 1, series=1)
    store.jobs.enqueue(JobKind.TRAIN_INCREMENT, "hippocampus", "a", now=NOW)
    answer = client.get("/metrics")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert samples["dicomnode_series", "receiving"] == 1
    assert samples["dicomnode_jobs", "train_increment", "ready"] == 1
    assert samples["dicomnode_model_in_use", "hippocampus", MODEL.version] == 1
    assert samples["dicomnode_spool_free_bytes",] > 0


def test_what_readers_made_of_the_results_is_in_the_metrics(store: Store, client: httpx.Client) -> None:
    readers = Readers(store=store)
    version = readers.use("a", at=NOON_BEFORE)
    for number in range(13):
        dices = {FRONT: 0.9 if number < 10 else 0.6, BACK: 1.0}
        readers.review(version, dices, at=NOON_BEFORE + timedelta(hours=number), ours=1200)
    readers.segment(version, at=NOW)
    readers.correct(readers.segment(version, at=NOW), at=NOW, state=CorrectionState.HELD)
    samples = {
        (one.name, *(one.labels[key] for key in ("label", "figure") if key in one.labels)): one.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for one in family.samples
    }
    assert samples["dicomnode_results_corrected_ratio", FRONT] == pytest.approx(13 / 15)
    assert samples["dicomnode_reviews", FRONT] == 13
    assert samples["dicomnode_correction_dice", FRONT] == pytest.approx(10.8 / 13)
    assert samples["dicomnode_volume_bias", FRONT] == pytest.approx(0.2)
    assert samples["dicomnode_drift_alarm", FRONT] == 1
    assert samples["dicomnode_drift_alarm", BACK] == 0
    assert samples["dicomnode_drift_cusum", FRONT, "dice"] == pytest.approx(7.5)
    assert samples["dicomnode_drift_cusum", BACK, "volume"] == 0
    assert samples["dicomnode_corrections_held",] == 1


def test_series_stand_under_their_study(store: Store, client: httpx.Client) -> None:
    receive(store, 1, series=1)
    receive(store, 1, series=2)
    receive(store, 2, series=2)
    (study,) = client.get("/studies").json()
    assert study["study_instance_uid"] == STUDY
    assert [(one["series_instance_uid"], one["instances"]) for one in study["series"]] == [
        (f"{STUDY}.2", 2),
        (f"{STUDY}.1", 1),
    ]


def test_studies_can_be_asked_for_by_state(store: Store, client: httpx.Client) -> None:
    receive(store, 1, series=1)
    receive(store, 1, series=2)
    store.series.set_aside(f"{STUDY}.1", "no model takes it", now=NOW)
    (study,) = client.get("/studies", params={"state": "set_aside"}).json()
    assert [one["reason"] for one in study["series"]] == ["no model takes it"]


def test_an_unknown_state_is_refused_with_the_known_ones(client: httpx.Client) -> None:
    answer = client.get("/studies", params={"state": "lost"})
    assert answer.status_code == 422
    assert "set_aside" in answer.text


def test_a_busy_port_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = NodeSettings(node=NodeSection(data_dir=tmp_path), web=WebSettings(port=port))
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {port} .*change web.host or web.port"):
            web_app.serve(settings)


def test_the_process_serves_and_ends_on_a_signal(tmp_path: Path, free_port: int) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f"[node]\ndata_dir = '{tmp_path}'\n[web]\nport = {free_port}\n", encoding="utf-8")
    program = (
        "import sys; from pathlib import Path; from dicomnode.settings import load_node_settings as load;"
        "from dicomnode.web.app import serve; serve(load(Path(sys.argv[1])))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(config)]) as process:
        answer = first_answer(f"http://127.0.0.1:{free_port}/studies")
        process.terminate()
        assert process.wait(timeout=15) == 0
    assert answer.json() == []


def first_answer(url: str) -> httpx.Response:
    end = time.monotonic() + 20
    while True:
        try:
            return httpx.get(url)
        except httpx.ConnectError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.1)
