"""The node's way from a received file to its masks, and what became of them."""

import time
import traceback
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import UID

from dicomnode.domain import SeriesInstanceUid, Sha256, SopInstanceUid, StoredInstance, StudyInstanceUid
from dicomnode.errors import InputError, ResourceError
from dicomnode.imaging.corrections import mirror, recognition
from dicomnode.imaging.reading import received
from dicomnode.imaging.reading.decoded import Decoded
from dicomnode.spool import Spool
from tests.fuzz_builders import Base, Mutant
from tests.fuzz_objects import CARD, bases
from tests.imaging_builders import NOW

BASES = bases()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the node makes of one file."""

    kind: str  # refused, equal, missing, held, flagged, silent or crashed
    said: str = ""  # reason of a refusal, or what is wrong with the labels
    seconds: float = 0.0


class Node:
    """Reads files as the node does: from its spool, and everything that the pipeline asks of an object."""

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder, minimum_free_bytes=0)
        self._path = folder / "received.dcm"
        self.known = {name: self._decoded(base, base.tree.encode()) for name, base in BASES.items()}

    def outcome(self, base: Base, broken: Mutant) -> Outcome:
        """Read a file; any error that is not of the tree is a crash."""
        start = time.perf_counter()
        try:
            decoded = self._decoded(base, broken.content, own_uid=("SOPInstanceUID",) not in broken.touched)
        except (InputError, ResourceError) as error:
            kind, said = "refused", str(error)
        except Exception:
            kind, said = "crashed", traceback.format_exc()[-1500:]
        else:
            kind, said = judged(base, decoded, self.known[base.name])
        return Outcome(kind=kind, said=said, seconds=time.perf_counter() - start)

    def reading(self, base: Base, content: bytes) -> str:
        """Read a file that may contradict itself: refused, doubted, exact or wrong."""
        try:
            decoded = self._decoded(base, content)
        except InputError:
            return "refused"
        kind, said = judged(base, decoded, self.known[base.name])
        if decoded.doubts:
            return "doubted"
        return "exact" if kind == "equal" else f"wrong: {kind}, {said}"

    def _decoded(self, base: Base, content: bytes, *, own_uid: bool = True) -> Decoded:
        self._path.write_bytes(content)
        stored = StoredInstance(
            sop_instance_uid=SopInstanceUid(base.sop_instance_uid if own_uid else uid_in(content)),
            sop_class_uid="",
            series_instance_uid=SeriesInstanceUid(""),
            study_instance_uid=StudyInstanceUid(""),
            modality="",
            transfer_syntax_uid="",
            sha256=Sha256(""),
            size_bytes=0,
            path=self._path.name,
            sender="SENDER",
            received_at=NOW,
        )
        (ds,) = self._spool.read([stored])
        received.referenced_series(ds)
        received.referenced_instances(ds)
        stack = received.stack_of(ds, [base.stack])
        decoded = received.decode(ds, stack=stack, card=CARD, aliases={})
        received.content_time(ds)
        received.is_whole_save(ds)
        known = recognition.Known(sent=[], prediction=dict(base.truth), model_name=CARD.name)
        recognition.recognise(ds, decoded=decoded, known=known)
        recognition.author(ds, "SENDER")
        mirror.arbitrate(ds, decoded=decoded, prediction=base.truth, image=None, unflip=False)
        return decoded


def uid_in(content: bytes) -> str:
    """The SOP Instance UID under which the node keeps a file; "" where it would not take it."""
    try:
        uid = str(dcmread(BytesIO(content)).SOPInstanceUID)
    except Exception:  # the node is held to its own errors when it reads the same file
        return ""
    return uid if UID(uid).is_valid else ""


def judged(base: Base, decoded: Decoded, whole: Decoded) -> tuple[str, str]:
    """Compare what an object says of each label with the truth; of some it may say nothing."""
    nothing = np.zeros(decoded.shape, np.bool_)
    claims = dict.fromkeys(decoded.empty_labels, nothing) | dict(decoded.masks)
    wrong = [label for label, mask in claims.items() if not np.array_equal(mask, base.truth[label])]
    more_flags = set(decoded.flags) - set(whole.flags)
    said = f"{wrong} of {sorted(claims)}, flags {sorted(more_flags)}, doubts {decoded.doubts}"
    if wrong:
        return ("held" if decoded.doubts else "flagged" if more_flags else "silent"), said
    if claims.keys() < base.truth.keys():
        is_seen = more_flags or decoded.doubts or decoded.unmapped
        return ("missing" if is_seen else "silent"), said
    return "equal", said
