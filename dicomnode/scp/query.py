"""Ask an archive by C-FIND what it has of a series (PS3.4 annex C, study root)."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.status import QR_FIND_SERVICE_CLASS_STATUS, STATUS_PENDING, STATUS_SUCCESS, code_to_category

from dicomnode.domain import Destination, SeriesInstanceUid, SopInstanceUid, StudyInstanceUid
from dicomnode.errors import DeliveryError, InputError
from dicomnode.scp import association
from dicomnode.scp.status import describe
from dicomnode.store.receiving import Role, role_of

# Study root query/retrieve information models, PS3.4 section C.6.2
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
WAY_NAMES = {GET: "C-GET", MOVE: "C-MOVE"}  # the better one first

MAXIMUM_IMAGES = 20_000
MAXIMUM_STUDIES = 100

IMAGE_CLASSES = frozenset(
    str(context.abstract_syntax)
    for context in AllStoragePresentationContexts
    if role_of(str(context.abstract_syntax)) is Role.IMAGE
)
_UID = re.compile(r"[0-9][0-9.]{0,63}")  # no wildcard, no list: those would ask for more than one series


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A peer that is asked for images, and how long it may take."""

    destination: Destination
    ae_title: str  # the node's own, which C-MOVE names as the receiver
    answer_timeout_s: float = association.RESPONSE_TIMEOUT_S
    get_timeout_s: float = 120.0  # between two messages while images come over our association
    maximum_images: int = MAXIMUM_IMAGES  # of one series
    move_timeout_s: float = 600.0  # between two messages while they come elsewhere: some send one at the end

    @property
    def name(self) -> str:
        """Name it as messages do."""
        return association.name_of(self.destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The series that is asked for, as an object of somebody else names it."""

    series_instance_uid: str
    study_instance_uid: str | None = None  # many archives look into no study that is not named


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What an archive says that it has of a series, and by what ways it gives it."""

    study_instance_uid: StudyInstanceUid
    series_instance_uid: SeriesInstanceUid
    modality: str
    images: Mapping[SopInstanceUid, str]  # SOP class UID of each; "" where the archive does not tell
    ways: tuple[str, ...]  # UIDs of the retrieve models that it accepts, the better one first

    @property
    def sop_classes(self) -> tuple[str, ...]:
        """The classes to negotiate: every image class when the archive does not tell."""
        found = set(self.images.values())
        return tuple(sorted(IMAGE_CLASSES if "" in found else found))

    def identifier(self) -> Dataset:
        """What a C-GET or C-MOVE of the whole series names (PS3.4 section C.4.2.1.4)."""
        ds = Dataset()
        ds.QueryRetrieveLevel = "SERIES"
        ds.StudyInstanceUID = self.study_instance_uid
        ds.SeriesInstanceUID = self.series_instance_uid
        return ds


def list_series(archive: Archive, wanted: Wanted) -> Listing | None:
    """Ask which images of a series an archive has.

    Returns
    -------
        None when the archive answers and has no such series, or none of its images.

    Raises
    ------
    AssociationError
        The archive cannot be reached, refused the association, ended it or did not answer.
    DeliveryError
        It does not take C-FIND, or answered with a failure.
    InputError
        A UID is malformed; or the series is in several studies, too large, or holds no images.
    """
    _check_uids(wanted)
    with _opened(archive) as assoc:
        series = _find_series(assoc, archive, wanted)
        if series is None:
            return None
        study_uid, modality = series
        images = _find_images(assoc, archive, study_uid, wanted.series_instance_uid)
        if not images:
            return None
        return Listing(
            study_instance_uid=StudyInstanceUid(study_uid),
            series_instance_uid=SeriesInstanceUid(wanted.series_instance_uid),
            modality=modality,
            images=images,
            ways=_ways(assoc, archive),
        )


def check(archive: Archive) -> str:
    """Ask an archive for a series that nobody has, and say by what ways it gives images.

    Raises
    ------
    AssociationError, DeliveryError
        As :func:`list_series`; also when it gives images neither by C-GET nor by C-MOVE.
    """
    with _opened(archive) as assoc:
        _find(assoc, archive, _series_query(generate_uid(), generate_uid()), limit=1)
        ways = _ways(assoc, archive)
    names = ", else ".join(WAY_NAMES[way] for way in ways)
    moved = f"; for C-MOVE it must know where {archive.ae_title!r} is" if MOVE in ways else ""
    return f"{archive.name} answers C-FIND and gives images by {names}{moved}"


@contextmanager
def _opened(archive: Archive) -> Iterator[Association]:
    contexts = [build_context(model) for model in (FIND, GET, MOVE)]
    with association.opened(
        archive.destination, contexts, ae_title=archive.ae_title, timeout_s=archive.answer_timeout_s
    ) as assoc:
        if not is_accepted(assoc, FIND):
            raise DeliveryError(
                f"{archive.name} takes no C-FIND (study root) from {archive.ae_title!r}: allow it there, or"
                " empty corrections.fetch_from"
            )
        yield assoc


def _ways(assoc: Association, archive: Archive) -> tuple[str, ...]:
    ways = tuple(model for model in WAY_NAMES if is_accepted(assoc, model))
    if not ways:
        raise DeliveryError(
            f"{archive.name} takes neither C-GET nor C-MOVE (study root) from {archive.ae_title!r}: allow one"
            " of them there, or empty corrections.fetch_from"
        )
    return ways


def is_accepted(assoc: Association, model: str) -> bool:
    """Answer whether a peer took a service class over this association."""
    return any(context.abstract_syntax == model for context in assoc.accepted_contexts)


def _find_series(assoc: Association, archive: Archive, wanted: Wanted) -> tuple[str, str] | None:
    """Find the study and the modality of a series: in the study that is named, else in any."""
    if wanted.study_instance_uid:
        found = _studies_of(assoc, archive, wanted.series_instance_uid, wanted.study_instance_uid)
        if found:
            return wanted.study_instance_uid, found[wanted.study_instance_uid]
    try:
        found = _studies_of(assoc, archive, wanted.series_instance_uid, "")
    except DeliveryError:
        if wanted.study_instance_uid:  # it answered; it only looks into no study that is not named
            return None
        raise
    if len(found) > 1:
        raise InputError(
            f"{archive.name} has series {wanted.series_instance_uid} in {len(found)} studies: which is meant"
            " cannot be told; name the study in the object, or mend the archive"
        )
    return next(iter(found.items()), None)


def _studies_of(assoc: Association, archive: Archive, series_uid: str, study_uid: str) -> dict[str, str]:
    """Map the studies in which an archive has a series to its modality there; "": in any study."""
    found: dict[str, str] = {}
    for match in _find(assoc, archive, _series_query(series_uid, study_uid), limit=MAXIMUM_STUDIES):
        study = _uid(match, "StudyInstanceUID") or study_uid
        if study and study_uid in ("", study) and _uid(match, "SeriesInstanceUID") == series_uid:
            found[study] = str(match.get("Modality") or "")[:16]
    return found


def _find_images(
    assoc: Association, archive: Archive, study_uid: str, series_uid: str
) -> dict[SopInstanceUid, str]:
    """List the images of a series with their SOP classes; other objects in it are left out."""
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, series_uid
    query.SOPInstanceUID = query.SOPClassUID = ""
    listed = {
        SopInstanceUid(_uid(match, "SOPInstanceUID")): _uid(match, "SOPClassUID")
        for match in _find(assoc, archive, query, limit=archive.maximum_images)
        if _uid(match, "SeriesInstanceUID") in ("", series_uid) and _uid(match, "SOPInstanceUID")
    }
    images = {uid: sop_class for uid, sop_class in listed.items() if sop_class in IMAGE_CLASSES | {""}}
    if listed and not images:
        raise InputError(
            f"series {series_uid} at {archive.name} holds no images, so nothing can be drawn on it"
        )
    return images


def _find(assoc: Association, archive: Archive, query: Dataset, *, limit: int) -> list[Dataset]:
    matches: list[Dataset] = []
    for status, match in association.answers(
        lambda: assoc.send_c_find(query, FIND), archive.destination, "C-FIND"
    ):
        category = code_to_category(status)
        if category not in (STATUS_PENDING, STATUS_SUCCESS):
            meaning = describe(status, QR_FIND_SERVICE_CLASS_STATUS)
            raise DeliveryError(
                f"{archive.name} answered C-FIND with {meaning}; its log says why", status=status
            )
        matches += [match] if match is not None else []
        if len(matches) > limit:
            level, uid = query.QueryRetrieveLevel, query.SeriesInstanceUID
            raise InputError(
                f"{archive.name} lists more than {limit} matches at level {level} for series {uid}: too many"
                " to be fetched"
            )
    return matches


def _series_query(series_uid: str, study_uid: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, series_uid
    query.Modality = ""
    return query


def _check_uids(wanted: Wanted) -> None:
    named = {"series": wanted.series_instance_uid, "study": wanted.study_instance_uid}
    for level, uid in named.items():
        if uid is not None and _UID.fullmatch(uid) is None:
            raise InputError(f"{uid[:80]!r} is no UID of a {level}, so no archive is asked for it")


def _uid(ds: Dataset, keyword: str) -> str:
    """Read a UID out of an answer; "" for what is none."""
    uid = str(ds.get(keyword) or "")
    return uid if _UID.fullmatch(uid) else ""
