"""DICOM Part 10 files, received and our own: written so that a power cut loses nothing acknowledged.

Layout below the root, which must lie on one file system::

    <series instance uid>/<sop instance uid>.<first 12 of sha256>.dcm
    incoming/      temporary files of writes in progress; what a crash left is swept
    quarantine/    bytes that could not be read, each with its reason in a .json beside it

A name says what the file holds, so the same bytes always have the same path (a repeated delivery changes
nothing) and other bytes under the same SOP instance UID stand beside the first.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID

from dicomnode import durable
from dicomnode.domain import SeriesInstanceUid, Sha256, SopInstanceUid, StoredInstance, StudyInstanceUid
from dicomnode.errors import InstanceMismatchError, SpoolFullError, UnreadableInstanceError

IMPLEMENTATION_CLASS_UID = UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_DNS, 'dicomnode-federated').int}")
IMPLEMENTATION_VERSION_NAME = "DICOMNODE"

HEADER_LIMIT_BYTES = 16 * 1024 * 1024
INFLATED_HEADER_LIMIT_BYTES = 1024 * 1024
DEFERRED_VALUE_BYTES = 64 * 1024
INFLATED_LIMIT_BYTES = 2 * 1024**3
"""Of a deflated data set, which is taken into memory as a whole when it is read."""

_FILE_META_BYTES = 4096  # in which the transfer syntax stands
_PIECE_BYTES = 1024 * 1024
_IMPLICIT_VR = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

# A leading digit keeps "." and ".." out of paths; leading zeros and a last dot occur in real archives.
_UID = re.compile(r"[0-9][0-9.]{0,63}")
_SERIES_INSTANCE_UID_TAG = 0x0020000E
_WANTED_TAGS = (0x00080016, 0x00080018, 0x00080060, 0x0020000D, _SERIES_INSTANCE_UID_TAG)

# What pydicom is known to raise on bytes that are not what they claim to be.
_PARSE_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolUsage:
    """What a status page says of the disk."""

    free_bytes: int
    minimum_free_bytes: int
    quarantined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """The identifying attributes found in a data set."""

    sop_class_uid: str
    sop_instance_uid: SopInstanceUid
    study_instance_uid: StudyInstanceUid
    series_instance_uid: SeriesInstanceUid
    modality: str


class Spool:
    """One folder of DICOM files; several processes may write to it at once.

    Parameters
    ----------
    root
        Made when absent; every path in a `StoredInstance` is relative to it.
    minimum_free_bytes
        Watermark: a write that would leave less than this free is refused before it begins.

    Raises
    ------
    ResourceError
        The folder can neither be found nor made.
    """

    def __init__(self, root: Path, *, minimum_free_bytes: int) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._quarantine = root / "quarantine"
        self._minimum_free_bytes = minimum_free_bytes
        self._durable_folders: set[Path] = set()
        with durable.translated(root):
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._quarantine.mkdir(exist_ok=True)
            durable.sync_folder(root)

    def write(
        self,
        encoded: bytes,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        sender: str,
        received_at: datetime,
    ) -> StoredInstance:
        """Keep one data set as received; when this returns, the file survives a power cut.

        Parameters
        ----------
        encoded
            The data set as on the wire, without preamble and file meta information. Pixels stay as they are.
        sop_class_uid, sop_instance_uid, transfer_syntax_uid
            As announced by the sender; the data set must agree.
        sender
            Calling AE title.

        Raises
        ------
        UnreadableInstanceError
            No readable header; or an identifying UID is absent, malformed or not the announced one.
        SpoolFullError
            Below the watermark, or the disk had no room; nothing is left under the final name.
        """
        for name, uid in (("SOP Class UID", sop_class_uid), ("Transfer Syntax UID", transfer_syntax_uid)):
            _check_uid(uid, name=name)
        identity = _identify(encoded, transfer_syntax_uid)
        _check_announced(identity, sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid)
        sha256 = Sha256(hashlib.sha256(encoded).hexdigest())
        instance = StoredInstance(
            sop_instance_uid=identity.sop_instance_uid,
            sop_class_uid=identity.sop_class_uid,
            series_instance_uid=identity.series_instance_uid,
            study_instance_uid=identity.study_instance_uid,
            modality=identity.modality,
            transfer_syntax_uid=transfer_syntax_uid,
            sha256=sha256,
            size_bytes=len(encoded),
            path=f"{identity.series_instance_uid}/{identity.sop_instance_uid}.{sha256[:12]}.dcm",
            sender=_printable(sender, limit=64),
            received_at=received_at,
        )
        self._keep(instance, encoded)
        return instance

    def write_result(self, ds: Dataset, *, sender: str, created_at: datetime) -> StoredInstance:
        """Keep an object of our own under the same guarantees as a received one.

        Raises
        ------
        SpoolFullError
            Below the watermark, or the disk had no room.
        UnreadableInstanceError
            The data set lacks an identifying UID, or cannot be encoded.
        """
        buffer = BytesIO()
        try:
            ds.save_as(buffer, enforce_file_format=True)
        except _PARSE_ERRORS as error:
            # The library's own words may repeat a value of the patient's.
            kind = type(error).__name__
            message = f"the data set {ds.get('SOPInstanceUID')} cannot be encoded as a DICOM file ({kind})"
            raise UnreadableInstanceError(message) from error
        part10 = buffer.getvalue()
        # PS3.10 section 7.1: preamble, "DICM", (0002,0000) with the length of the rest of its group.
        meta_length = struct.unpack_from("<L", part10, 140)[0]
        return self.write(
            part10[144 + meta_length :],
            sop_class_uid=str(ds.SOPClassUID),
            sop_instance_uid=str(ds.SOPInstanceUID),
            transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
            sender=sender,
            received_at=created_at,
        )

    def path_of(self, instance: StoredInstance) -> Path:
        """Where the Part 10 file of an instance lies."""
        return self._root / instance.path

    def read(self, instances: Sequence[StoredInstance]) -> list[Dataset]:
        """Read the headers of instances, in the order given.

        Values above 64 KiB (pixels, as a rule) are fetched from the file when first used.

        Raises
        ------
        UnreadableInstanceError
            A file is absent or no DICOM; the message names the SOP instance UID.
        """
        return [self._read_one(instance) for instance in instances]

    def quarantine(
        self,
        encoded: bytes,
        *,
        reason: str,
        received_at: datetime,
        transfer_syntax_uid: str = "",
        sender: str = "",
    ) -> Path:
        """Keep bytes that could not be read, with the reason beside them, for a person to look at.

        Returns
        -------
            The file with the bytes; its ``.json`` neighbour says why it is there.

        Raises
        ------
        SpoolFullError
            Below the watermark, or the disk had no room.
        """
        self._check_room(len(encoded))
        sha256 = hashlib.sha256(encoded).hexdigest()
        path = self._quarantine / f"{received_at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{sha256[:12]}.bin"
        note = {
            "reason": reason,
            "received_at": received_at.astimezone(UTC).isoformat(),
            "sha256": sha256,
            "size_bytes": len(encoded),
            "transfer_syntax_uid": transfer_syntax_uid,
            "sender": _printable(sender, limit=64),
        }
        with durable.translated(path):
            durable.write(path, (encoded,), through=self._incoming)
            durable.write(
                path.with_suffix(".json"), (json.dumps(note, indent=2).encode(),), through=self._incoming
            )
            durable.sync_folder(self._quarantine)
        return path

    def has_room(self) -> bool:
        """Answer whether the free space is above the watermark."""
        return self.free_bytes() >= self._minimum_free_bytes

    def free_bytes(self) -> int:
        """Count the bytes that this process may still write on the file system of the spool."""
        with durable.translated(self._root):
            figures = os.statvfs(self._root)
        return figures.f_bavail * figures.f_frsize

    def usage(self) -> SpoolUsage:
        """Gather what a status page says of the disk."""
        return SpoolUsage(
            free_bytes=self.free_bytes(),
            minimum_free_bytes=self._minimum_free_bytes,
            quarantined=sum(1 for _ in self._quarantine.glob("*.bin")),
        )

    def sweep(self, *, older_than: timedelta, now: datetime | None = None) -> int:
        """Remove temporary files that an interrupted write left behind.

        Returns
        -------
            How many were removed.
        """
        limit = ((now or datetime.now(UTC)) - older_than).timestamp()
        removed = 0
        for path in self._incoming.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                if path.stat().st_mtime < limit:
                    path.unlink()
                    removed += 1
        return removed

    def stored_paths(self, *, older_than: timedelta, now: datetime) -> Iterator[str]:
        """Walk the stored files, relative to the root, that were written before ``now - older_than``.

        One without a row in the database was never acknowledged: its sender sends it again.
        """
        limit = (now - older_than).timestamp()
        for path in self._root.glob("[0-9]*/*.dcm"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    yield path.relative_to(self._root).as_posix()

    def _keep(self, instance: StoredInstance, encoded: bytes) -> None:
        path = self.path_of(instance)
        with durable.translated(path):
            if _holds(path, encoded):  # delivered before; readers may have the file open
                durable.sync_file(path)
            else:
                self._check_room(len(encoded))
                self._make_folder(path.parent)
                durable.write(path, (_file_meta(instance), encoded), through=self._incoming)
            durable.sync_folder(path.parent)

    def _make_folder(self, folder: Path) -> None:
        """Make a series folder whose own entry is durable too, even when another process has just made it."""
        try:
            folder.mkdir()
        except FileExistsError:
            if folder in self._durable_folders:
                return
        durable.sync_folder(self._root)
        self._durable_folders.add(folder)

    def _check_room(self, size_bytes: int) -> None:
        free_bytes = self.free_bytes()
        if free_bytes - size_bytes < self._minimum_free_bytes:
            message = (
                f"the disk of {self._root} has {free_bytes / 1e9:.2f} GB free and must keep "
                f"{self._minimum_free_bytes / 1e9:.2f} GB: free some space or lower the watermark"
            )
            raise SpoolFullError(message)

    def _read_one(self, instance: StoredInstance) -> Dataset:
        path = self.path_of(instance)
        try:
            ds = read_part_10(path)
            found = ds.get("SOPInstanceUID")
        except FileNotFoundError as error:
            message = f"the file of instance {instance.sop_instance_uid} is not in the spool: {instance.path}"
            raise UnreadableInstanceError(message) from error
        except _PARSE_ERRORS as error:
            message = (
                f"the file of instance {instance.sop_instance_uid} cannot be read ({type(error).__name__})"
            )
            raise UnreadableInstanceError(message) from error
        if found != instance.sop_instance_uid:
            message = (
                f"the file of instance {instance.sop_instance_uid} is damaged: it names another instance"
            )
            raise UnreadableInstanceError(message)
        return ds


def series_of(encoded: bytes, transfer_syntax_uid: str) -> SeriesInstanceUid:
    """Read which series a data set, as on the wire, says that it is of; its pixels are not touched.

    Raises
    ------
    UnreadableInstanceError
        No readable header, or an identifying UID is absent or malformed.
    """
    return _identify(encoded, transfer_syntax_uid).series_instance_uid


def read_part_10(path: Path, *, inflated_limit_bytes: int = INFLATED_LIMIT_BYTES) -> Dataset:
    """Read the header of a DICOM file; values above 64 KiB are fetched from the file when first used.

    One file after the other: parsing is Python's work, which threads only slow down, and of a native image
    the pixels are not touched. What pydicom raises is passed on.

    Raises
    ------
    ValueError
        A deflated data set that holds more than `inflated_limit_bytes`.
    """
    if _may_be_deflated(path):
        _check_inflated(path, inflated_limit_bytes)
        # A deferred value is found again by its offset in the file, which deflated files do not have.
        return dcmread(path)
    return dcmread(path, defer_size=DEFERRED_VALUE_BYTES)


def _may_be_deflated(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_FILE_META_BYTES)
    return any(uid.encode() in head for uid in _DEFLATED)


def _check_inflated(path: Path, limit_bytes: int) -> None:
    """Inflate a data set piece by piece, keeping nothing, to learn whether it fits into memory."""
    with path.open("rb") as file:
        head = file.read(144)
        if head[132:140] != b"\2\0\0\0UL\4\0":  # (0002,0000), PS3.10 table 7.1-1
            raise ValueError("a deflated file without File Meta Information Group Length is not read")
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while piece := stream.unconsumed_tail or file.read(_PIECE_BYTES):
            size += len(stream.decompress(piece, _PIECE_BYTES))
            if size > limit_bytes:
                raise ValueError(f"the deflated data set holds more than {limit_bytes} bytes")
            if stream.eof:
                return


def _identify(encoded: bytes, transfer_syntax_uid: str) -> _Identity:
    """Read the identifying attributes; parsing stops after (0020,000E), long before the pixels."""
    try:
        ds = read_dataset(
            BytesIO(_header(encoded, transfer_syntax_uid)),
            is_implicit_VR=transfer_syntax_uid == _IMPLICIT_VR,
            is_little_endian=transfer_syntax_uid != _BIG_ENDIAN,
            stop_when=_is_past_series,
            specific_tags=list(_WANTED_TAGS),
        )
        values = [_raw_text(ds, tag) for tag in _WANTED_TAGS]
    except _PARSE_ERRORS as error:
        message = (
            f"no DICOM data set in transfer syntax {transfer_syntax_uid}: {type(error).__name__}: {error}"
        )
        raise UnreadableInstanceError(message) from error
    sop_class_uid, sop_instance_uid, modality, study_instance_uid, series_instance_uid = values
    return _Identity(
        sop_class_uid=_check_uid(sop_class_uid, name="SOP Class UID"),
        sop_instance_uid=SopInstanceUid(_check_uid(sop_instance_uid, name="SOP Instance UID")),
        study_instance_uid=StudyInstanceUid(_check_uid(study_instance_uid, name="Study Instance UID")),
        series_instance_uid=SeriesInstanceUid(_check_uid(series_instance_uid, name="Series Instance UID")),
        modality=_printable(modality, limit=16),
    )


def _raw_text(ds: Dataset, tag: int) -> str:
    """Decode one value without pydicom's conversion, whose warnings would put the value into the log."""
    value = ds.get_item(tag).value if tag in ds else None
    return value.rstrip(b"\0 ").decode("ascii", "replace") if isinstance(value, bytes) else ""


def _header(encoded: bytes, transfer_syntax_uid: str) -> bytes:
    """Cut out, inflated where needed (PS3.5 section A.5), as much as a header can take."""
    if transfer_syntax_uid not in _DEFLATED:
        return encoded if len(encoded) <= HEADER_LIMIT_BYTES else encoded[:HEADER_LIMIT_BYTES]
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(encoded, INFLATED_HEADER_LIMIT_BYTES)


def _is_past_series(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) > _SERIES_INSTANCE_UID_TAG


def _check_uid(uid: str, *, name: str) -> str:
    if _UID.fullmatch(uid) is None:
        found = "none" if not uid else f"{uid[:80]!r}"
        message = f"{name}: found {found}, expected up to 64 digits and dots beginning with a digit"
        raise UnreadableInstanceError(message)
    return uid


def _check_announced(identity: _Identity, *, sop_class_uid: str, sop_instance_uid: str) -> None:
    announced = (sop_class_uid, sop_instance_uid)
    found = (identity.sop_class_uid, identity.sop_instance_uid)
    for name, said, held in zip(("SOP Class UID", "SOP Instance UID"), announced, found, strict=True):
        if said != held:
            message = f"{name}: the sender announced {said[:80]!r}, the data set holds {held!r}"
            raise InstanceMismatchError(message)


def _printable(text: str, *, limit: int) -> str:
    return "".join(character for character in text if character.isprintable()).strip()[:limit]


def _file_meta(instance: StoredInstance) -> bytes:
    """Encode preamble, prefix and file meta information (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(instance.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(instance.sop_instance_uid)
    meta.TransferSyntaxUID = UID(instance.transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    if instance.sender.isascii() and 0 < len(instance.sender) <= 16:
        meta.SourceApplicationEntityTitle = instance.sender
    buffer = DicomBytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()


def _holds(path: Path, encoded: bytes) -> bool:
    """Answer whether a file is there with exactly this data set after its meta information."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    if content[128:132] != b"DICM" or len(content) < 144:
        return False
    return content[144 + struct.unpack_from("<L", content, 140)[0] :] == encoded
