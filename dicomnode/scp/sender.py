"""Send DICOM objects to a peer over C-STORE, as they lie on disk, and believe only the peer's answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.domain import Destination
from dicomnode.errors import AssociationError, DeliveryError, UnreadableInstanceError
from dicomnode.scp import VERIFICATION, association
from dicomnode.scp.association import CONNECTION_TIMEOUT_S, MAXIMUM_CONTEXTS, RESPONSE_TIMEOUT_S
from dicomnode.scp.status import describe, is_delivered

SOP_INSTANCE_UID_TAG = 0x00080018


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One object that the peer has."""

    sop_instance_uid: str
    status: int  # DIMSE: 0x0000, or a warning
    warning: str  # "" for success; else the status in words
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    """An object and what must be negotiated for it."""

    content: Path | Dataset
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID


def send(
    content: Path | Dataset,
    destination: Destination,
    *,
    ae_title: str,
    timeout_s: float = RESPONSE_TIMEOUT_S,
) -> Sent:
    """Send one object over an association of its own.

    Parameters
    ----------
    content
        A Part 10 file, whose data set is sent byte for byte; or a data set with file meta information.
    destination
        The peer.
    ae_title
        The node's own title.
    timeout_s
        Longest wait for each answer of the peer; the TCP connection is given up after 10 s at most.

    Returns
    -------
        The peer's answer: success, or delivered with a warning (Bxxx, or 0111: it had the object).

    Raises
    ------
    AssociationError
        The peer cannot be reached, refused the association, aborted it or did not answer.
    DeliveryError
        The peer does not take this class in this transfer syntax, or answered with a failure status.
    UnreadableInstanceError
        The file is no DICOM object.
    """
    return send_many([content], destination, ae_title=ae_title, timeout_s=timeout_s)[0]


def send_many(
    contents: Sequence[Path | Dataset],
    destination: Destination,
    *,
    ae_title: str,
    timeout_s: float = RESPONSE_TIMEOUT_S,
) -> list[Sent]:
    """Send objects over one association, in order; the first that fails ends it.

    Raises
    ------
    AssociationError, DeliveryError, UnreadableInstanceError
        As :func:`send`; the objects before the failing one are delivered.
    """
    outgoing = [_outgoing(content) for content in contents]
    if not outgoing:
        return []
    contexts = _contexts(outgoing)
    with association.opened(destination, contexts, ae_title=ae_title, timeout_s=timeout_s) as assoc:
        return [_send_one(assoc, one, destination) for one in outgoing]


def echo(destination: Destination, *, ae_title: str, timeout_s: float = CONNECTION_TIMEOUT_S) -> float:
    """Ask a peer for a C-ECHO and return the seconds from the connection to the answer.

    Raises
    ------
    AssociationError
        The peer cannot be reached, refused the association, aborted it or did not answer.
    DeliveryError
        The peer answered with a failure, or does not take C-ECHO.
    """
    began = perf_counter()
    contexts = [build_context(VERIFICATION)]
    with association.opened(destination, contexts, ae_title=ae_title, timeout_s=timeout_s) as assoc:
        answer = assoc.send_c_echo()
        if "Status" not in answer:
            raise AssociationError(
                f"{association.name_of(destination)} accepted the association and did not answer C-ECHO"
            )
        if answer.Status != 0:
            raise DeliveryError(
                f"{association.name_of(destination)} answered C-ECHO with {describe(answer.Status)}",
                status=answer.Status,
            )
    return perf_counter() - began


def _outgoing(content: Path | Dataset) -> _Outgoing:
    """Read what identifies an object.

    A file whose file meta information names another object than its data set, as edited files do, is
    decoded and sent as the data set has it: pynetdicom announces a file by its meta information.
    """
    try:
        head = content if isinstance(content, Dataset) else _head(content)
        meta = head.file_meta
        announced = (meta.get("MediaStorageSOPClassUID"), meta.get("MediaStorageSOPInstanceUID"))
        if isinstance(content, Path) and announced != (head.SOPClassUID, head.SOPInstanceUID):
            content = dcmread(content)
        return _Outgoing(
            content=content,
            sop_class_uid=head.SOPClassUID,
            sop_instance_uid=head.SOPInstanceUID,
            transfer_syntax_uid=meta.TransferSyntaxUID,
        )
    except (AttributeError, InvalidDicomError, OSError, EOFError, ValueError) as error:
        name = "a data set" if isinstance(content, Dataset) else content.name
        raise UnreadableInstanceError(
            f"{name} cannot be sent: it does not name its SOP class, SOP instance and transfer syntax"
        ) from error


def _head(path: Path) -> Dataset:
    """Read a file up to its SOP instance UID."""
    with path.open("rb") as file:
        return read_partial(file, stop_when=_is_past_sop_instance_uid)


def _is_past_sop_instance_uid(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) > SOP_INSTANCE_UID_TAG


def _contexts(outgoing: Sequence[_Outgoing]) -> list[PresentationContext]:
    """Propose what the objects are and nothing else, one transfer syntax in each context."""
    kinds = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in outgoing)
    if len(kinds) > MAXIMUM_CONTEXTS:
        raise DeliveryError(
            f"{len(kinds)} kinds of object do not fit into one association: send at most {MAXIMUM_CONTEXTS}"
        )
    return [build_context(sop_class, syntax) for sop_class, syntax in kinds]


def _send_one(assoc: Association, one: _Outgoing, destination: Destination) -> Sent:
    began = perf_counter()
    what = f"{one.sop_class_uid.name} {one.sop_instance_uid}"
    try:
        answer = assoc.send_c_store(one.content)
    except ValueError as error:
        raise DeliveryError(
            f"{association.name_of(destination)} does not take {what} in {one.transfer_syntax_uid.name}"
        ) from error
    except RuntimeError as error:
        raise AssociationError(
            f"{association.name_of(destination)} ended the association before {what}"
        ) from error
    if "Status" not in answer:
        raise AssociationError(
            f"{association.name_of(destination)} aborted or did not answer in time while it was sent {what};"
            " whether it kept the object is unknown"
        )
    if not is_delivered(answer.Status):
        raise DeliveryError(  # the peer's ErrorComment is left out: it may name the patient
            f"{association.name_of(destination)} refused {what}: {describe(answer.Status)}; its log says why",
            status=answer.Status,
        )
    return Sent(
        sop_instance_uid=str(one.sop_instance_uid),
        status=answer.Status,
        warning=describe(answer.Status) if answer.Status else "",
        seconds=perf_counter() - began,
    )
