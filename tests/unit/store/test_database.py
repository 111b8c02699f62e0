"""Opening a database: migrations, wrong addresses, and databases in trouble."""

import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, make_url, text

from dicomnode.domain import JobKind, ResultForm
from dicomnode.errors import ConfigError, DatabaseError
from dicomnode.store import Store
from dicomnode.store.database import MIGRATIONS, Database
from dicomnode.store.tables import SiteTable

from .conftest import LEASE, NOON, claim, make_instance, make_result, make_written, queue_series

FORM = ResultForm.SEG
"""What every result was before it could be several objects."""


def url_of_driver(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg:")


def test_the_migrations_give_just_the_tables_of_the_code(store: Store, store_url: str) -> None:
    engine = create_engine(url_of_driver(store_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SiteTable.metadata) == []
    engine.dispose()


def test_results_and_deliveries_of_the_first_tables_are_kept_and_not_sent_again(
    store: Store, store_url: str
) -> None:
    job = queue_series(store)
    result = make_result(digest=job.digest)
    sent = replace(make_written(result, "PACS"), object=replace(make_written(result).object, form=FORM))
    store.results.finish_segmentation(job, result, [sent], now=NOON)
    delivery = claim(store, JobKind.DELIVER_RESULT)
    store.results.mark_sent(delivery, int(delivery.subject), now=NOON)
    before = store.results.latest_for_series("1.2.3"), store.results.deliveries_of("2.25.1")
    store.close()

    move_to(store_url, "0001")
    opened = Store.open(store_url)  # as the newer program does at its start

    assert (opened.results.latest_for_series("1.2.3"), opened.results.deliveries_of("2.25.1")) == before
    opened.series.force("1.2.3", now=NOON)
    opened.results.finish_segmentation(claim(opened, JobKind.SEGMENT_SERIES), result, [sent], now=NOON)
    assert opened.jobs.claim(NOON, kinds=set(JobKind), owner="w", lease=LEASE) is None
    opened.close()


def move_to(url: str, revision: str) -> None:
    """Take a database back to how an older program left it."""
    engine = create_engine(url_of_driver(url))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        assert "result_object" not in inspect(connection).get_table_names()
    engine.dispose()


def test_no_column_is_made_for_a_patient_s_name_or_identifier() -> None:
    columns = {column.name for table in SiteTable.metadata.tables.values() for column in table.columns}
    assert not {name for name in columns if "patient" in name} - {"patient_key"}
    assert not {name for name in columns if "birth" in name or "accession" in name}


def test_opening_again_finds_what_was_recorded(store: Store, open_store: Callable[[], Store]) -> None:
    store.series.record_instance(make_instance(1), now=NOON)
    assert len(open_store().series.list_series()) == 1


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/node.sqlite"
    words = [sys.executable, "-c", f"from dicomnode.store import Store; Store.open({url!r}).close()"]
    processes = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


def test_threads_that_start_together_migrate_once(store_url: str) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            Store.open(store_url).close()
        except BaseException as error:  # shown in the main thread
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_sqlite_commits_survive_a_power_cut(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/node.sqlite")
    with store._database.reading() as session:
        pragmas = [
            session.connection().exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    store.close()
    assert pragmas == ["wal", 2, 1]  # 2 is FULL


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no url at all", "no database URL"),
        ("", "no database URL"),
        ("mysql://host/name", "'mysql' database, expected sqlite or postgresql"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("sqlite:////proc/nowhere/node.sqlite", "cannot be made"),
    ],
)
def test_a_wrong_address_is_a_configuration_error(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Store.open(url)


def test_an_unreachable_server_is_a_database_error_without_the_password() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra 'cluster')")
    with pytest.raises(DatabaseError) as caught:
        Store.open("postgresql://someone:hunter2@127.0.0.1:1/site")
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_database_error(tmp_path: Path) -> None:
    (tmp_path / "node.sqlite").write_bytes(b"this is no database" * 1000)
    with pytest.raises(DatabaseError, match="not a database"):
        Store.open(f"sqlite:///{tmp_path}/node.sqlite")


def test_a_database_of_a_newer_version_is_a_configuration_error(store: Store, store_url: str) -> None:
    engine = create_engine(url_of_driver(store_url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer version"):
        Store.open(store_url)
    with engine.begin() as connection:
        connection.execute(
            text("DROP TABLE alembic_version, audit" if "postgres" in store_url else "SELECT 1")
        )
    engine.dispose()


def test_a_lost_table_is_a_database_error(store: Store, store_url: str) -> None:
    engine = create_engine(url_of_driver(store_url))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE audit"))
    engine.dispose()
    with pytest.raises(DatabaseError, match="audit"):
        store.audit.append("event", "subject", "detail", NOON)


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    def delete_and_stumble() -> None:
        with store._database.writing() as session:
            session.connection().execute(text("DELETE FROM alembic_version"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        delete_and_stumble()
    with store._database.reading() as session:
        assert session.connection().execute(text("SELECT count(*) FROM alembic_version")).scalar_one() == 1


def test_a_naive_time_is_refused(store: Store) -> None:
    with pytest.raises((ValueError, DatabaseError), match="without time zone"):
        store.jobs.enqueue(JobKind.PUSH_UPDATE, "m", "d", now=datetime(2026, 1, 1))  # noqa: DTZ001


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    store = Store.open(f"sqlite:///{path}")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert store.series.list_series() == []
    writer.execute("ROLLBACK")
    writer.close()
    store.close()


def test_a_writer_that_never_ends_is_a_database_error(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    store = Store(Database(f"sqlite:///{path}", busy_timeout_s=0.1))
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked"):
        store.series.record_instance(make_instance(1), now=NOON)
    writer.execute("ROLLBACK")
    assert store.series.record_instance(make_instance(1), now=NOON)
    writer.close()
    store.close()


def test_a_full_disk_is_a_database_error_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files is a real refusal of the disk, in a process of its own."""
    script = f"""
        import resource, sys
        from dicomnode.store import Store
        from dicomnode.errors import DatabaseError
        from datetime import UTC, datetime
        store, now = Store.open("sqlite:///{tmp_path}/node.sqlite"), datetime.now(UTC)
        store.audit.append("kept", "subject", "detail", now)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        try:
            store.audit.append("too large", "subject", "x" * 900_000, now)
        except DatabaseError:
            assert [entry.event for entry in store.audit.list()] == ["kept"]
            sys.exit(7)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert run.returncode == 7, run.stderr.decode()
    again = Store.open(f"sqlite:///{tmp_path}/node.sqlite")
    assert [entry.event for entry in again.audit.list()] == ["kept"]
    again.close()


def test_the_aggregator_s_tables_do_not_mix_with_the_site_s(store_url: str, store: Store) -> None:
    names = set(inspect(create_engine(url_of_driver(store_url))).get_table_names())
    assert names == {*SiteTable.metadata.tables, "alembic_version"}
    assert make_url(store_url).get_backend_name() in {"sqlite", "postgresql"}


def test_a_folder_in_the_place_of_the_file_is_a_database_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="unable to open"):
        Store.open(f"sqlite:///{tmp_path}")
