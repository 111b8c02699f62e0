"""Files that survive a power cut: written whole under their final name, or not at all."""

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from dicomnode.errors import ResourceError, SpoolFullError

PART_SUFFIX = ".part"
PRIVATE = 0o600
PUBLIC = 0o644
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write(path: Path, parts: Iterable[bytes], *, mode: int = PUBLIC, through: Path | None = None) -> None:
    """Put a file under its name, or replace the one there, in one step.

    Durable once the folder is synchronised too: `sync_folder`, which the caller does once for all it wrote.

    Parameters
    ----------
    through
        Folder for the temporary file, on the same file system; beside the final one by default.
    """
    with _temporary(through or path.parent, parts, mode) as temporary:
        temporary.replace(path)


def write_once(path: Path, content: bytes, *, mode: int = PUBLIC) -> bool:
    """Put a file under its name unless there is one; of several processes the first wins.

    Returns
    -------
        False when there was a file already, which is left alone.
    """
    with _temporary(path.parent, (content,), mode) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
    return True


def keep(path: Path, content: bytes, *, mode: int) -> None:
    """Write one file into a folder that is made when needed; when this returns, both are on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, (content,), mode=mode)
    sync_folder(path.parent)


def keep_once(path: Path, content: bytes, *, mode: int) -> bool:
    """Do as `keep` unless there is such a file; False when there was, and it is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = write_once(path, content, mode=mode)
    sync_folder(path.parent)
    return is_new


def publish(part: Path, path: Path) -> None:
    """Give a file that was filled step by step its final name, after its bytes have reached the disk."""
    sync_file(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that one thread of all processes has at a time; a process that dies lets go of it.

    Raises
    ------
    ResourceError
        The file cannot be made or locked.
    """
    with _flocked(path, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def present(path: Path) -> Iterator[None]:
    """Show that this process is there; any number may at once, and one that dies is gone.

    Raises
    ------
    ResourceError
        The file cannot be made or locked.
    """
    with _flocked(path, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def _flocked(path: Path, way: int) -> Iterator[None]:
    with contextlib.ExitStack() as opened:
        with translated(path):
            file = opened.enter_context(path.open("ab"))
            fcntl.flock(file, way)
        yield


def is_anyone_present(path: Path) -> bool:
    """Answer whether a process of this machine shows that it is there, see :func:`present`."""
    with translated(path), path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sync_file(path: Path) -> None:
    """Bring the content of a file to the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into ours.

    Raises
    ------
    SpoolFullError
        No room on the disk, or in the quota or size limit of this process.
    ResourceError
        Anything else: no permission, read-only, input/output error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            message = f"no room to write {path}: {error.strerror}; free some space on that disk"
            raise SpoolFullError(message) from error
        message = f"cannot use {path}: {error.strerror or error}"
        raise ResourceError(message) from error


@contextlib.contextmanager
def _temporary(folder: Path, parts: Iterable[bytes], mode: int) -> Iterator[Path]:
    """Hold a complete file that is on the disk under a name of its own; afterwards the name is gone."""
    path = folder / f"{uuid.uuid4().hex}{PART_SUFFIX}"
    try:
        # With its final mode from the start: a secret is at no moment readable by others.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
