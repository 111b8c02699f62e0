"""The engine behind the store: connections, transactions, migrations, and the translation of their errors."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlmodel import Session

from dicomnode import durable
from dicomnode.errors import ConfigError, DatabaseError
from dicomnode.store.tables import SiteTable

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations" / "site"
_MIGRATION_LOCK = 0x6469636F6D  # any constant that all processes of a site share
_INSERT: Mapping[str, Callable[[Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Database:
    """Connections to the database of one site; safe to share between threads.

    Parameters
    ----------
    url
        ``sqlite:///<absolute or relative file>`` or ``postgresql://user@host/name``.
    busy_timeout_s
        How long an SQLite transaction waits for the writer of another process.

    Raises
    ------
    ConfigError
        The URL is malformed, of another kind of database, or its driver is not installed; or the tables
        come from a newer version of this program.
    DatabaseError
        The database does not answer or cannot be written.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = 30) -> None:
        self._url = _checked_url(url)
        self._engine = _create_engine(self._url, busy_timeout_s)
        self._writing = self._engine.execution_options(dicomnode_writes=True)
        # SQLite has one writer at a time; waiting here is fair, its own waiting is a sleep.
        self._write_turn = threading.Lock() if self._url.get_backend_name() == "sqlite" else None
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that is durable when the block ends and undone when it raises.

        Raises
        ------
        DatabaseError
            The database did not answer, was locked for too long, or refused a statement.
        """
        turn = self._write_turn or contextlib.nullcontext()
        with self._translated(), turn, Session(self._writing) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that sees one state of the database and changes nothing.

        Raises
        ------
        DatabaseError
            The database did not answer.
        """
        with self._translated(), Session(self._engine) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give back every connection."""
        self._engine.dispose()

    def _migrate(self) -> None:
        """Bring the tables up to date; of several processes that start together, one does it."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._translated():
            with self._engine.connect() as connection:
                if _is_current(connection, config):
                    return
            with self._writing.connect() as connection, _without_foreign_keys(connection), connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                config.attributes["connection"] = connection
                _upgrade(config)
        if self._url.get_backend_name() == "sqlite":
            # SQLite makes the entries of its journals durable, not that of a new database.
            durable.sync_folder(Path(self._url.database or "").parent)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            message = f"the database {self._url.render_as_string(hide_password=True)} failed: {cause}"
            raise DatabaseError(message) from error


def insert_new(session: Session, table: type[SiteTable], values: Mapping[str, object]) -> Row[Any] | None:
    """Insert a row unless a unique constraint already holds one like it.

    Returns
    -------
        The primary key of the new row, or None when there was one already.
    """
    target = SiteTable.metadata.tables[str(table.__tablename__)]
    insert = _INSERT[session.get_bind().dialect.name](target)
    statement = insert.values(**values).on_conflict_do_nothing().returning(*target.primary_key.columns)
    row: Row[Any] | None = session.connection().execute(statement).first()
    return row


def _checked_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        message = "[database] url is no database URL; expected sqlite:///<file> or postgresql://<user>@<host>/<name>"
        raise ConfigError(message) from error
    match parsed.get_backend_name():
        case "sqlite":
            return _checked_file(parsed)
        case "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
        case other:
            message = f"[database] url: found a {other!r} database, expected sqlite or postgresql"
            raise ConfigError(message)


def _checked_file(url: URL) -> URL:
    """Refuse a database that a restart would lose, and make the folder of one that stays."""
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        message = "[database] url: an SQLite database must be a file: sqlite:///<file>"
        raise ConfigError(message)
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"[database] url: the folder {folder} cannot be made: {error.strerror}"
        raise ConfigError(message) from error
    return url.set(drivername="sqlite+pysqlite")


def _create_engine(url: URL, busy_timeout_s: float) -> Engine:
    try:
        if url.get_backend_name() == "postgresql":
            return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=40)
        engine = create_engine(url, connect_args={"timeout": busy_timeout_s}, pool_size=10, max_overflow=40)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        message = (
            f"[database] url needs a driver that is not installed ({error}): install the extra 'cluster'"
        )
        raise ConfigError(message) from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Make a commit survive a power cut (synchronous=FULL) and leave BEGIN to us."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: a transaction that read first could not become a writer later."""
    writes = connection.get_execution_options().get("dicomnode_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """Let SQLite copy a table that others refer to: it alters most tables so, and drops the old one.

    Outside of a transaction, since inside of one SQLite ignores the pragma.
    """
    raw = connection.connection.dbapi_connection
    if connection.dialect.name != "sqlite" or raw is None:
        yield
        return
    raw.cursor().execute("PRAGMA foreign_keys=OFF").close()
    try:
        yield
    finally:
        raw.cursor().execute("PRAGMA foreign_keys=ON").close()


def _is_current(connection: Connection, config: Config) -> bool:
    head = ScriptDirectory.from_config(config).get_current_head()
    return MigrationContext.configure(connection).get_current_revision() == head


def _upgrade(config: Config) -> None:
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        message = f"the database was made by a newer version of this program: {error}; install that version"
        raise ConfigError(message) from error
