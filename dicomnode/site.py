"""What every process of a site opens: its folders, its database, its spool and its clock; no model."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from dicomnode import logs
from dicomnode.errors import ConfigError
from dicomnode.settings import NodeSettings
from dicomnode.spool import Spool
from dicomnode.store import Store


def utc_now() -> datetime:
    """The clock of every process of a site."""
    return datetime.now(UTC)


def configure_logging(settings: NodeSettings, *, process: str) -> None:
    """Send the log of a process of this site where its settings say."""
    logs.configure(log_format=settings.node.log_format, log_level=settings.node.log_level, process=process)


def make_folders(settings: NodeSettings) -> None:
    """Make the folders of a site; safe to repeat.

    Raises
    ------
    ConfigError
        The data folder cannot be written.
    """
    try:
        for folder in (settings.node.data_dir, settings.keys_dir, settings.exchange_dir):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"node.data_dir: {settings.node.data_dir} cannot be made or written ({error.strerror}); "
            f"choose a folder that this user may write"
        ) from error


@contextmanager
def opened_store(settings: NodeSettings) -> Iterator[Store]:
    """The site's database, closed after the block."""
    store = Store.open(settings.database_url)
    try:
        yield store
    finally:
        store.close()


def open_spool(settings: NodeSettings) -> Spool:
    """The spool of the site, with its watermark."""
    return Spool(settings.spool_dir, minimum_free_bytes=int(settings.scp.minimum_free_gb * 1e9))
