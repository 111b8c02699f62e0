"""DIMSE status codes: what the node answers, and what an answer to it means.

=====  ==========================================================================
code   answered when
=====  ==========================================================================
0000   the object and its record would survive a power cut; also for a duplicate
0122   the request names another SOP class than its presentation context
A700   the disk is below its watermark, or the database does not answer; send again later
A900   the data set names another SOP class or instance than the request
C000   the data set cannot be read; its bytes are kept in quarantine
C211   an internal fault (answered by pynetdicom for any other exception, with a traceback
       in the log); the association lives on
=====  ==========================================================================

Sources: PS3.4 table B.2-1 and PS3.7 annex C.
"""

from collections.abc import Mapping
from enum import IntEnum

from pydicom import Dataset
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

DUPLICATE_SOP_INSTANCE = 0x0111
ERROR_COMMENT_LENGTH = 64  # (0000,0902) is LO


class StoreStatus(IntEnum):
    """The node's own answers to a C-STORE request."""

    SUCCESS = 0x0000
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


def failure(status: StoreStatus, comment: str) -> Dataset:
    """Build a failure answer with a reason that the sender's operator can read.

    Parameters
    ----------
    status
        The code.
    comment
        ASCII, free of patient data; cut to 64 characters.
    """
    answer = Dataset()
    answer.Status = int(status)
    answer.ErrorComment = comment[:ERROR_COMMENT_LENGTH]
    return answer


def is_delivered(status: int) -> bool:
    """Tell whether the peer has the object: success, warning, or it had the object before.

    A duplicate counts: the node never gives one UID to two contents, so the peer's object is ours.
    """
    return status == DUPLICATE_SOP_INSTANCE or code_to_category(status) in {"Success", "Warning"}


def describe(status: int, meanings: Mapping[int, tuple[str, str]] = STORAGE_SERVICE_CLASS_STATUS) -> str:
    """Give a status as people look it up, such as ``0xA700 (Refused: Out of Resources)``.

    Parameters
    ----------
    meanings
        Table of the service class, as pynetdicom has it.
    """
    _, meaning = meanings.get(status, ("", "not in the standard's tables"))
    return f"0x{status:04X} ({meaning})" if meaning else f"0x{status:04X}"
