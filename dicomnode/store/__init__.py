"""All SQL of a site. Rows stay inside; what comes out are the frozen values of `dicomnode.store.records`.

Every method is one transaction: when it returns, what it did survives a power cut (SQLite in WAL mode with
``synchronous=FULL``, or PostgreSQL with its defaults); when it raises, it did nothing.
"""

from dicomnode.store.audit import AuditRows
from dicomnode.store.corrections import CorrectionRows
from dicomnode.store.database import Database
from dicomnode.store.federation import FederationRows
from dicomnode.store.feedback import FeedbackRows
from dicomnode.store.fetches import FetchRows
from dicomnode.store.jobs import JobQueue
from dicomnode.store.locks import LockRows
from dicomnode.store.models import ModelRows
from dicomnode.store.overview import read_overview
from dicomnode.store.records import (
    AuditEntry,
    CorrectionRecord,
    Delivery,
    DeliveryState,
    DestinationStatus,
    EnrolmentRecord,
    JobRow,
    KnownRelease,
    ModelLock,
    ModelRecord,
    ModelSwitch,
    OutboxState,
    OutboxUpdate,
    Overview,
    ReleaseState,
    ResultObject,
    ResultRecord,
    SeriesRow,
    WrittenObject,
)
from dicomnode.store.results import ResultRows
from dicomnode.store.series import SeriesRows

__all__ = [
    "AuditEntry",
    "CorrectionRecord",
    "Delivery",
    "DeliveryState",
    "DestinationStatus",
    "EnrolmentRecord",
    "JobRow",
    "KnownRelease",
    "ModelLock",
    "ModelRecord",
    "ModelSwitch",
    "OutboxState",
    "OutboxUpdate",
    "Overview",
    "ReleaseState",
    "ResultObject",
    "ResultRecord",
    "SeriesRow",
    "Store",
    "WrittenObject",
]


class Store:
    """The database of one site, by subject; safe to share between threads, one per process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.series = SeriesRows(database)
        self.fetches = FetchRows(database)
        self.jobs = JobQueue(database)
        self.results = ResultRows(database)
        self.corrections = CorrectionRows(database)
        self.models = ModelRows(database)
        self.locks = LockRows(database)
        self.federation = FederationRows(database)
        self.feedback = FeedbackRows(database)
        self.audit = AuditRows(database)

    @classmethod
    def open(cls, url: str) -> "Store":
        """Connect, and bring the tables up to date.

        Parameters
        ----------
        url
            ``sqlite:///<file>`` or ``postgresql://<user>@<host>/<name>``.

        Raises
        ------
        ConfigError
            The URL or its driver is at fault, or the tables come from a newer version of this program.
        DatabaseError
            The database does not answer or cannot be written.
        """
        return cls(Database(url))

    def overview(self, *, limit: int = 20) -> Overview:
        """Read counts and troubles for a status page."""
        with self._database.reading() as session:
            return read_overview(session, limit=limit)

    def close(self) -> None:
        """Give back every connection."""
        self._database.close()
