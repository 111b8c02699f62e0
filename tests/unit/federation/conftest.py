"""A ledger on each database that it is made for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from dicomnode.federation.ledger import Ledger
from tests.unit.store.conftest import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'aggregator.sqlite'}"
    server: str = request.getfixturevalue("postgres_server").replace("postgresql:", "postgresql+psycopg:")
    name = f"ledger_{abs(hash(str(tmp_path)))}"
    admin = sqlalchemy.create_engine(server.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return server.format(name=name)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An open ledger."""
    opened = Ledger.open(ledger_url)
    yield opened
    opened.close()
