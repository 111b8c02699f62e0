"""A zip of somebody else is unpacked whole into a new folder, or refused before anything of it is written.

What the list of a zip says is checked first, and then held against what really comes out. Refused are names
that lead out of the folder, links, two members of one name, too many or too large members, and small archives
that would fill a disk.
"""

import contextlib
import errno
import os
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from dicomnode import durable
from dicomnode.errors import ModelFormatError, SpoolFullError

GIB: Final = 1024**3
_UNFINISHED: Final = ".unpacking-"
_CHUNK: Final = 1024 * 1024
_LONGEST_NAME: Final = 255  # of one part of a path, on the usual file systems
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_ENCRYPTED: Final = 0x1
_END_BYTES: Final = 66_000  # the end records and the longest comment (APPNOTE.TXT 4.3.14 and 4.3.16)
_END_RECORDS: Final = ((b"PK\x05\x06", "<4s4H1L"), (b"PK\x06\x06", "<4sQ2H2L3Q"))  # up to the list's size
_LISTED_LATER: Final = 0xFFFFFFFF  # the first record leaves it to the second
_LIST_BYTES: Final = 1024  # of the list for one member, and more than it takes
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may hold; ten times the largest public models."""

    members: int = 20_000
    unpacked_bytes: int = 64 * GIB
    ratio: int = 100  # unpacked to packed, over the whole archive; weights shrink by a tenth
    small_bytes: int = 64 * 1024**2  # up to here any ratio is harmless
    free_bytes: int = GIB  # left over on the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    info: zipfile.ZipInfo
    path: PurePosixPath  # inside the folder


def unpack(archive: Path, folder: Path, *, limits: Limits | None = None) -> Path:
    """Unpack a zip into a folder that is not there yet; it appears complete or not at all.

    Parameters
    ----------
    archive
        Stored or deflated members without a password. What macOS adds (``__MACOSX``) is left out.
    folder
        Made, with its parents. Files get no executable bit, whatever the archive says.

    Returns
    -------
        ``folder``.

    Raises
    ------
    ModelFormatError
        No zip, a damaged one, or one that holds what no model needs.
    SpoolFullError, ResourceError
        The disk has no room for it, or could not be written.
    """
    limits = limits or Limits()
    with contextlib.ExitStack() as stack:
        with durable.translated(archive), _broken_is_told(archive):
            _check_list_is_short(archive, limits)
            opened = stack.enter_context(zipfile.ZipFile(archive))
            members = _checked(opened, archive, limits)
        stack.enter_context(durable.translated(folder))
        stack.enter_context(_broken_is_told(archive))
        if folder.exists():
            raise FileExistsError(errno.EEXIST, "there is something already", folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_UNFINISHED))
        stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
        _unpack_members(opened, members, unfinished, limits)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
        durable.sync_folder(folder.parent)
    return folder


@contextlib.contextmanager
def _broken_is_told(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise ModelFormatError(f"{archive.name} is no zip, or a damaged one: {error}") from error


def _check_list_is_short(archive: Path, limits: Limits) -> None:
    """Refuse a list of members that would not even be read well, by the size that its end records give."""
    with archive.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES))
        tail = file.read()
    for mark, layout in _END_RECORDS:
        at = tail.rfind(mark)
        if 0 <= at <= len(tail) - struct.calcsize(layout):
            listed = struct.unpack_from(layout, tail, at)[-1]
            if _LISTED_LATER != listed > limits.members * _LIST_BYTES:
                raise ModelFormatError(f"{archive.name} lists far more members than a model has")


def _checked(opened: zipfile.ZipFile, archive: Path, limits: Limits) -> list[_Member]:
    """Read the list of a zip and refuse it whole for any member that is not as it should be."""
    infos = [info for info in opened.infolist() if not _is_added_by_macos(info.filename)]
    if not infos or len(infos) > limits.members:
        raise ModelFormatError(
            f"{archive.name} has {len(infos)} members; a model has 1 to {limits.members} files and folders"
        )
    members = [_Member(info=info, path=_checked_path(info)) for info in infos]
    _check_names_differ(members)
    _check_size(infos, packed=archive.stat().st_size, limits=limits)
    return members


def _checked_path(info: zipfile.ZipInfo) -> PurePosixPath:
    # The name as it stands in the archive: zipfile cuts ``filename`` at a NUL.
    name = info.orig_filename
    path = PurePosixPath(name)
    parts = name.removesuffix("/").split("/")
    mode = stat.S_IFMT(info.external_attr >> 16)
    if any(part in {"", ".", ".."} or len(part.encode()) > _LONGEST_NAME for part in parts):
        _refuse(name, "its name leads out of the folder, or is none")
    if "\\" in name or parts[0].endswith(":") or not name.isprintable():
        _refuse(name, "its name is not portable")
    if mode not in {0, stat.S_IFREG, stat.S_IFDIR}:
        _refuse(name, "it is a link or a device, not a file")
    if info.flag_bits & _ENCRYPTED:
        _refuse(name, "it is encrypted")
    if info.compress_type not in _METHODS:
        _refuse(name, "it is neither stored nor deflated; pack the archive anew with a usual zip program")
    return path


def _check_names_differ(members: Sequence[_Member]) -> None:
    """Refuse two members of one name, also where case or accents are not told apart, or a file as folder."""
    kinds: dict[str, bool] = {}
    for member in members:
        is_folder = member.info.is_dir()
        key = _as_one_file(member.path)
        if key in kinds and not (is_folder and kinds[key]):
            _refuse(str(member.path), "there are two members of that name")
        kinds[key] = is_folder
        for parent in member.path.parents[:-1]:
            if not kinds.setdefault(_as_one_file(parent), True):
                _refuse(str(member.path), "it lies in something that is a file")


def _as_one_file(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _check_size(infos: Sequence[zipfile.ZipInfo], *, packed: int, limits: Limits) -> None:
    unpacked = sum(info.file_size for info in infos)
    if unpacked > limits.unpacked_bytes:
        raise ModelFormatError(
            f"the archive would unpack to {unpacked / GIB:.1f} GiB; at most "
            f"{limits.unpacked_bytes / GIB:.0f} GiB are unpacked"
        )
    if not all(0 <= info.header_offset < packed for info in infos):
        raise zipfile.BadZipFile("a member begins outside of it")
    if sum(info.compress_size for info in infos) > packed:
        raise ModelFormatError("the members of the archive overlap: it is made to fill a disk")
    if unpacked > max(limits.small_bytes, limits.ratio * packed):
        raise ModelFormatError(
            f"the archive would unpack to {unpacked / packed:.0f} times its size, more than any model does "
            f"({limits.ratio}): it is made to fill a disk"
        )


def _unpack_members(
    opened: zipfile.ZipFile, members: Sequence[_Member], folder: Path, limits: Limits
) -> None:
    needed = sum(member.info.file_size for member in members)
    free = shutil.disk_usage(folder).free - limits.free_bytes
    if needed > free:
        raise SpoolFullError(
            f"{needed / GIB:.1f} GiB would be unpacked to {folder.parent}, where "
            f"{max(free, 0) / GIB:.1f} GiB may be used; free some space on that disk"
        )
    for member in members:
        target = folder.joinpath(*member.path.parts)
        if member.info.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _unpack_file(opened, member.info, target)


def _unpack_file(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Write one member; the library checks its CRC at the end and hands out no more than it declares."""
    left = info.file_size
    with opened.open(info) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                _refuse(info.filename, "it is longer than the archive says")
            sink.write(chunk)
        sink.flush()
        os.fsync(sink.fileno())
    if left:
        _refuse(info.filename, "it is shorter than the archive says")


def _is_added_by_macos(name: str) -> bool:
    path = PurePosixPath(name)
    return path.parts[:1] == ("__MACOSX",) or path.name == ".DS_Store"


def _refuse(name: str, reason: str) -> None:
    raise ModelFormatError(f"the member {name!a:.120} of the archive is refused: {reason}")
