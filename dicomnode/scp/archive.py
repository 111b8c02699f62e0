"""A small archive that takes objects into a folder: the stand-in for a PACS in the demo and in tests.

It is the node's own server with another sink. It has no database, no query and no retention::

    <folder>/<series instance uid>/<sop instance uid>.dcm
"""

from functools import partial
from io import BytesIO
from pathlib import Path
from uuid import uuid4

from pydicom import dcmread
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.events import Event

from dicomnode.errors import UnreadableInstanceError
from dicomnode.process import stop_on_signals, wait_for
from dicomnode.scp import handlers, server
from dicomnode.scp.handlers import Answer, Received
from dicomnode.scp.server import Server
from dicomnode.scp.status import StoreStatus
from dicomnode.settings import ScpSettings


def serve(folder: Path, *, ae_title: str, host: str, port: int) -> None:
    """Take objects until SIGTERM or SIGINT; for the main thread of a process of its own.

    Raises
    ------
    ConfigError
        The port is taken, or the host is not of this machine.
    """
    stop = stop_on_signals()
    running = start(folder, ae_title=ae_title, host=host, port=port)
    wait_for(stop)
    running.stop()


def start(folder: Path, *, ae_title: str, host: str, port: int) -> Server:
    """Take objects into a folder, in threads; the caller stops the server.

    Raises
    ------
    ConfigError
        The port is taken, or the host is not of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = ScpSettings(ae_title=ae_title, host=host, port=port)
    return server.listen(settings, on_c_store=partial(_on_c_store, folder=folder))


def _on_c_store(event: Event, folder: Path) -> Answer:
    return handlers.answer(event, partial(_keep, folder=folder))


def _keep(received: Received, folder: Path) -> Answer:
    """Write the object under its series; a file with a final name is always whole."""
    meta = create_file_meta(
        sop_class_uid=received.sop_class_uid,  # type: ignore[arg-type]  # a plain string is taken too
        sop_instance_uid=received.sop_instance_uid,  # type: ignore[arg-type]
        transfer_syntax=received.transfer_syntax_uid,  # type: ignore[arg-type]
    )
    content = b"\x00" * 128 + b"DICM" + encode_file_meta(meta) + received.encoded
    ds = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    series = folder / _folder_name(str(ds.get("SeriesInstanceUID", "")))
    series.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid4().hex}.part"
    temporary.write_bytes(content)
    temporary.replace(series / f"{_folder_name(received.sop_instance_uid)}.dcm")
    return StoreStatus.SUCCESS


def _folder_name(uid: str) -> str:
    """Let only digits and dots, beginning with a digit, become a name on disk."""
    if not uid[:1].isdigit() or set(uid) - set("0123456789."):
        raise UnreadableInstanceError(f"{uid[:80]!r} is no UID")
    return uid
