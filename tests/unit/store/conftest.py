"""A store on each database that it is made for, and small parts to fill it with."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode.domain import (
    Job,
    JobKind,
    ModelVersion,
    ResultForm,
    SeriesInstanceUid,
    Sha256,
    SopInstanceUid,
    StoredInstance,
    StudyInstanceUid,
)
from dicomnode.store import ResultObject, ResultRecord, Store, WrittenObject
from dicomnode.store.tables import SiteTable

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
QUIET = timedelta(seconds=60)
LEASE = timedelta(seconds=60)
MR = "1.2.840.10008.5.1.4.1.1.4"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def make_instance(
    number: int = 1, *, series: str = "1.2.3", sop_class: str = MR, content: str = "a", modality: str = "MR"
) -> StoredInstance:
    """A stored file that was never written: the store looks at no file."""
    sha256 = f"{number:08x}{content.encode().hex():0<56}"
    return StoredInstance(
        sop_instance_uid=SopInstanceUid(f"{series}.{number}"),
        sop_class_uid=sop_class,
        series_instance_uid=SeriesInstanceUid(series),
        study_instance_uid=StudyInstanceUid("1.2"),
        modality=modality,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=Sha256(sha256),
        size_bytes=5_000_000_000,
        path=f"{series}/{series}.{number}.{sha256[:12]}.dcm",
        sender="SCANNER",
        received_at=NOON,
    )


def make_result(name: str = "1", *, series: str = "1.2.3", digest: str = "d") -> ResultRecord:
    """A result with two labels."""
    return ResultRecord(
        sop_instance_uid=SopInstanceUid(f"2.25.{name}"),
        series_instance_uid=SeriesInstanceUid(f"2.26.{name}"),
        source_series_uid=SeriesInstanceUid(series),
        source_digest=digest,
        model_version=ModelVersion("hippocampus@0123456789ab"),
        label_table_sha256=Sha256("1" * 64),
        voxels_sha256=Sha256(f"{name:0<64}"),
        label_sha256=(("posterior", Sha256("3" * 64)), ("anterior", Sha256("4" * 64))),
        voxels=(("posterior", 1200), ("anterior", 1300)),
        millilitres=(("posterior", 1.2), ("anterior", 1.3)),
        tracking_uids=(("posterior", f"2.27.{name}"), ("anterior", f"2.28.{name}")),
        path=f"2.26.{name}/2.25.{name}.dcm",
        created_at=NOON,
        seconds=(("read", 0.5), ("predict", 2.0)),
    )


def make_result_instance(result: ResultRecord) -> StoredInstance:
    """The file of a result."""
    return replace(
        make_instance(series=result.series_instance_uid, sop_class=SEG, content=result.sop_instance_uid),
        sop_instance_uid=result.sop_instance_uid,
        path=result.path,
        sender="DICOMNODE",
    )


def make_written(result: ResultRecord, *destinations: str) -> WrittenObject:
    """The label map of a result in the spool, on its way to some destinations."""
    return WrittenObject(
        object=ResultObject(
            sop_instance_uid=result.sop_instance_uid,
            series_instance_uid=result.series_instance_uid,
            form=ResultForm.LABEL_MAP,
            voxels_sha256=result.voxels_sha256,
        ),
        instance=make_result_instance(result),
        destinations=destinations,
    )


def claim(store: Store, kind: JobKind, *, now: datetime = NOON, owner: str = "w1") -> Job:
    """Claim a job that must be there."""
    job = store.jobs.claim(now, kinds={kind}, owner=owner, lease=LEASE)
    assert job is not None
    return job


def queue_series(store: Store, *, series: str = "1.2.3", images: int = 3, now: datetime = NOON) -> Job:
    """Receive a series, wait for quiet, and claim its segmentation."""
    for number in range(1, images + 1):
        store.series.record_instance(make_instance(number, series=series), now=now)
    assert store.series.enqueue_quiet(now + QUIET, QUIET) == 1
    return claim(store, JobKind.SEGMENT_SERIES, now=now + QUIET)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A throw-away PostgreSQL that listens on a socket in its own folder only."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra 'cluster')")
    initdb = _find_binary("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (initdb)")
    as_user = _as_unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="dicomnode-pg-", dir="/tmp"))
    if as_user:
        shutil.chown(folder, user="postgres")
    commands = Path(initdb).resolve().parent

    def run(*arguments: str) -> None:
        subprocess.run([*as_user, *arguments], check=True, capture_output=True, timeout=60, cwd=folder)

    run(
        str(commands / "initdb"),
        "-D",
        f"{folder}/data",
        "--no-sync",
        "-A",
        "trust",
        "-U",
        "postgres",
        "-E",
        "UTF8",
    )
    options = (
        f"-c listen_addresses='' -c unix_socket_directories={folder} -c max_connections=100 -c fsync=off"
    )
    control = str(commands / "pg_ctl")
    run(control, "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start")
    try:
        yield f"postgresql://postgres@/{{name}}?host={folder}"
    finally:
        run(control, "-D", f"{folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database to copy: quicker than migrating one for each test."""
    path = tmp_path_factory.mktemp("template") / "node.sqlite"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "node.sqlite")
        return f"sqlite:///{tmp_path}/node.sqlite"
    server: str = request.getfixturevalue("postgres_server")
    _empty_database(server)
    return server.format(name="site")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store on an empty database of each kind."""
    opened = Store.open(store_url)
    yield opened
    opened.close()


@pytest.fixture
def open_store(store_url: str) -> Iterator[Callable[[], Store]]:
    """A function that opens the same database once more, as another process would."""
    opened: list[Store] = []

    def again() -> Store:
        opened.append(Store.open(store_url))
        return opened[-1]

    yield again
    for store in opened:
        store.close()


def _find_binary(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))


def _as_unprivileged_user() -> list[str]:
    """PostgreSQL refuses to run as root: find another user's feet."""
    if os.geteuid() != 0:
        return []
    runuser = shutil.which("runuser", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root and there is no user 'postgres'")
    if runuser is None:
        pytest.skip("PostgreSQL does not run as root and there is no runuser")
    return [runuser, "-u", "postgres", "--"]


def _empty_database(server: str) -> None:
    """Empty the tables, which is quick; where a test has spoilt them, begin with a new database."""
    psycopg = sys.modules["psycopg"]
    tables = [table.name for table in reversed(SiteTable.metadata.sorted_tables)]
    numbered = [
        table.name for table in SiteTable.metadata.tables.values() if table.autoincrement_column is not None
    ]
    statements = [f"DELETE FROM {name}" for name in tables]
    statements += [f"SELECT setval('{name}_id_seq', 1, false)" for name in numbered]
    try:
        with psycopg.connect(server.format(name="site"), autocommit=True) as connection:
            connection.execute("; ".join(statements))
    except psycopg.Error:
        with psycopg.connect(server.format(name="postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS site WITH (FORCE)")
            connection.execute("CREATE DATABASE site TEMPLATE template1")
