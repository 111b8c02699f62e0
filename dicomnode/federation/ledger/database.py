"""The aggregator's database: one engine, migrated on opening, with short transactions.

SQLite runs in WAL mode with full synchronisation, and writers begin IMMEDIATE, so that two of them
queue instead of failing half-way. It must not lie on a network file system.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import Session

from dicomnode.errors import ConfigError, DatabaseError
from dicomnode.federation.ledger import tables

_BUSY_TIMEOUT_MS = 30_000
_MIGRATIONS = Path(__file__).parents[2] / "migrations" / "aggregator"
_MIGRATION_LOCK = 7_041_776  # any number; the same for every process of the aggregator


class Database:
    """An open ledger database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> "Database":
        """Connect and bring the tables to the newest revision.

        Raises
        ------
        ConfigError
            The URL is no database URL, or its driver is not installed.
        DatabaseError
            The database does not answer.
        """
        try:
            engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise ConfigError(
                f"[database] url is not usable: {type(error).__name__}; expected sqlite:///path or "
                "postgresql+psycopg://user@host/name (extra 'cluster')"
            ) from error
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        database = cls(engine)
        with (
            _translated(),
            engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            _migrate(connection)
        return database

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that sees one state of the ledger.

        Raises
        ------
        DatabaseError
            The database refused or did not answer.
        """
        with _translated(), self._engine.connect() as connection, Session(connection) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that is committed at the end of the block, or rolled back by an exception.

        Raises
        ------
        IntegrityError
            A key or unique value was taken: the caller says what that means.
        DatabaseError
            The database refused or did not answer.
        """
        with (
            _translated(),
            self._engine.connect().execution_options(writes=True) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise DatabaseError(f"the ledger's database failed: {type(error.orig).__name__}") from error


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["metadata"] = tables.metadata
    command.upgrade(config, "head")


def _prepare_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # The driver's own BEGIN would come late and deferred; _begin_sqlite sends ours.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
