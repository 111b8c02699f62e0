"""The aggregator's memory: who may speak, what arrived, what was decided and released.

All SQL of the aggregator is in this package; its tables are private to it. Every decision and its audit
event are one transaction.
"""

from dicomnode.federation.ledger.audit import AuditRows
from dicomnode.federation.ledger.database import Database
from dicomnode.federation.ledger.nodes import NodeRows
from dicomnode.federation.ledger.updates import UpdateRows
from dicomnode.federation.ledger.uploads import UploadRows
from dicomnode.federation.ledger.versions import VersionRows


class Ledger:
    """An open ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.nodes = NodeRows(database)
        self.uploads = UploadRows(database)
        self.updates = UpdateRows(database)
        self.versions = VersionRows(database)
        self.audit = AuditRows(database)

    @classmethod
    def open(cls, url: str) -> "Ledger":
        """Connect to the database and bring its tables up to date.

        Raises
        ------
        ConfigError
            The URL is not usable.
        DatabaseError
            The database does not answer.
        """
        return cls(Database.open(url))

    def close(self) -> None:
        """Close every connection."""
        self._database.close()
