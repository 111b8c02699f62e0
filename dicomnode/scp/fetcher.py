"""Fetch a series that a correction was drawn on from an archive: C-GET, else C-MOVE to ourselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from time import monotonic

import structlog
from pydicom import Dataset
from pynetdicom import ALL_TRANSFER_SYNTAXES, build_role
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.status import (
    QR_GET_SERVICE_CLASS_STATUS,
    QR_MOVE_SERVICE_CLASS_STATUS,
    STATUS_FAILURE,
    STATUS_PENDING,
    code_to_category,
)

from dicomnode.domain import SeriesInstanceUid, SopInstanceUid, StudyInstanceUid
from dicomnode.errors import AssociationError, DeliveryError, ResourceError, UnreadableInstanceError
from dicomnode.scp import association, handlers, query
from dicomnode.scp.association import MAXIMUM_CONTEXTS
from dicomnode.scp.handlers import Answer, Received
from dicomnode.scp.query import GET, MOVE, WAY_NAMES, Archive, Listing, Wanted
from dicomnode.scp.status import StoreStatus, describe, failure
from dicomnode.spool import Spool, series_of
from dicomnode.store import Store

log = structlog.get_logger()

FETCH_LIMIT_S = 3600.0
NO_ANSWER = 0xC000  # stands for an end without a word
LATE_IMAGES = timedelta(minutes=10)  # an archive that was cut off may go on sending for so long

_FIRST_SYNTAXES = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.5",  # RLE lossless
)
_BY_REFERENCE = frozenset(  # JPIP: the object would come without its pixels
    f"1.2.840.10008.1.2.4.{last}" for last in ("94", "95", "204", "205")
)
SYNTAXES = tuple(
    syntax
    for syntax in dict.fromkeys((*_FIRST_SYNTAXES, *map(str, ALL_TRANSFER_SYNTAXES)))
    if syntax not in _BY_REFERENCE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A series whose every image is here now."""

    series_instance_uid: SeriesInstanceUid
    study_instance_uid: StudyInstanceUid
    images: int
    way: str  # C-GET or C-MOVE


class _Intake:
    """What comes over the association of one C-GET: images of the series are kept, all else is refused."""

    def __init__(self, listing: Listing, keep: Callable[[Received], Answer], *, archive: Archive) -> None:
        self._listing = listing
        self._keep = keep
        self._archive = archive
        self.strangers = 0
        self.unreadable = 0
        self.shortage: ResourceError | None = None

    def take(self, received: Received) -> Answer:
        """Answer one object that the archive sends."""
        if self.shortage is not None:
            return failure(StoreStatus.OUT_OF_RESOURCES, "out of resources; the fetch ends")
        try:
            if not self._is_wanted(received):
                self.strangers += 1
                return failure(StoreStatus.DATA_SET_DOES_NOT_MATCH, "not of the series that was asked for")
            # The requestor of this association is the node itself.
            answer = self._keep(replace(received, sender=self._archive.destination.ae_title))
        except ResourceError as error:
            self.shortage = error
            raise
        self.unreadable += answer != StoreStatus.SUCCESS
        return answer

    def check(self) -> None:
        """Raise what went wrong on our side, or with the objects themselves.

        Raises
        ------
        ResourceError
            Disk or database.
        UnreadableInstanceError
            The archive's objects cannot be read; asking again would bring them again.
        """
        if self.shortage is not None:
            raise self.shortage
        if self.unreadable:
            raise UnreadableInstanceError(
                f"{self.unreadable} of {len(self._listing.images)} images of series"
                f" {self._listing.series_instance_uid} came from {self._archive.name} and cannot be read;"
                " they are in quarantine: mend them in the archive"
            )

    def remark(self) -> str:
        """Say what else came than was asked for."""
        return f"; {self.strangers} objects that were not asked for were refused" if self.strangers else ""

    def _is_wanted(self, received: Received) -> bool:
        if received.sop_instance_uid not in self._listing.images:
            return False
        try:
            return (
                series_of(received.encoded, received.transfer_syntax_uid) == self._listing.series_instance_uid
            )
        except UnreadableInstanceError:
            return True  # it is kept in quarantine, with the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetch:
    """One fetch and what it needs."""

    archive: Archive
    listing: Listing
    spool: Spool
    store: Store
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]
    ends: float  # monotonic seconds

    def missing(self) -> set[SopInstanceUid]:
        """List the images that the archive has and this node has not, as a row with its file."""
        held = self.store.series.instances_of(self.listing.series_instance_uid)
        there = {one.sop_instance_uid for one in held if self.spool.path_of(one).is_file()}
        return set(self.listing.images) - there

    def keep(self, received: Received) -> Answer:
        """Keep an image as the receiver does."""
        return handlers.keep(received, self.spool, self.store, self.now(), is_fetched=True)

    def check_pace(self) -> None:
        """Raise when the process is to end, or the archive takes too long."""
        if self.should_stop():
            raise AssociationError(
                f"the fetch of series {self.listing.series_instance_uid} was stopped, as this process ends;"
                " it is fetched again"
            )
        if monotonic() > self.ends:
            raise AssociationError(
                f"{self.archive.name} took longer than {FETCH_LIMIT_S:.0f} s for series"
                f" {self.listing.series_instance_uid}; send the images from there"
            )


def fetch_series(
    archive: Archive,
    wanted: Wanted,
    *,
    spool: Spool,
    store: Store,
    now: Callable[[], datetime],
    should_stop: Callable[[], bool] = lambda: False,
) -> Fetched | None:
    """Take every image of a series from an archive, as the receiver would, and open no series by it.

    A series that this node never had is set aside as fetched; one that it had stays where it stands. The
    archive is only ever the configured one: no address comes from an object.

    Parameters
    ----------
    archive
        Who is asked.
    wanted
        The series, and the study if it is known.
    should_stop
        True when the process is to end.

    Returns
    -------
        None when the archive has no such series: asking again at once is no use.

    Raises
    ------
    AssociationError
        The archive cannot be reached, ended the association or fell silent. What came is kept; until a
        fetch ends well, `store.fetches.is_unfinished` says that the series may lack images.
    DeliveryError
        It refused to give the series, or gave a part of it.
    InputError
        A UID is malformed; the series is too large or holds no images; or its images cannot be read.
    ResourceError
        Disk or database of this node.
    """
    listing = query.list_series(archive, wanted)
    if listing is None:
        return None
    store.fetches.begin(
        listing.series_instance_uid,
        study_uid=listing.study_instance_uid,
        modality=listing.modality,
        archive=archive.destination.name,
        now=now(),
    )
    fetch = _Fetch(
        archive=archive,
        listing=listing,
        spool=spool,
        store=store,
        now=now,
        should_stop=should_stop,
        ends=monotonic() + FETCH_LIMIT_S,
    )
    return _try_ways(fetch)


def _try_ways(fetch: _Fetch) -> Fetched:
    """Try each way that the archive offers until every image is here; some abort at what they cannot do."""
    listing, shortfalls = fetch.listing, []
    for model in listing.ways:
        fetch.check_pace()
        try:
            answer = _WAYS[model](fetch)
        except AssociationError as error:
            if model == listing.ways[-1]:
                raise
            answer = str(error)
        missing = len(fetch.missing())
        if not missing:
            return _whole(fetch, WAY_NAMES[model])
        shortfalls.append(
            f"by {WAY_NAMES[model]} {missing} of {len(listing.images)} images did not come: {answer}"
        )
    raise DeliveryError(
        f"{fetch.archive.name} did not give series {listing.series_instance_uid}: {'; '.join(shortfalls)};"
        " its log says why"
    )


def _whole(fetch: _Fetch, way: str) -> Fetched:
    listing = fetch.listing
    said = f"{len(listing.images)} images from {fetch.archive.destination.name} by {way}"
    fetch.store.fetches.finish(listing.series_instance_uid, detail=said, now=fetch.now())
    log.info("series fetched", series_instance_uid=listing.series_instance_uid, what=said)
    return Fetched(
        series_instance_uid=listing.series_instance_uid,
        study_instance_uid=listing.study_instance_uid,
        images=len(listing.images),
        way=way,
    )


def _get(fetch: _Fetch) -> str:
    """Let the images come over our own association (PS3.4 section C.4.3); say what the archive answered."""
    intake = _Intake(fetch.listing, fetch.keep, archive=fetch.archive)
    classes = fetch.listing.sop_classes
    try:
        with association.opened(
            fetch.archive.destination,
            [build_context(GET), *_storage_contexts(classes)],
            ae_title=fetch.archive.ae_title,
            timeout_s=fetch.archive.answer_timeout_s,
            roles=[build_role(sop_class, scp_role=True) for sop_class in classes],
            on_c_store=partial(handlers.answer, take=intake.take),
        ) as assoc:
            if not query.is_accepted(assoc, GET):
                return "it refuses C-GET together with these SOP classes"
            assoc.dimse_timeout = fetch.archive.get_timeout_s
            identifier = fetch.listing.identifier()
            status = _last_status(
                lambda: assoc.send_c_get(identifier, GET), fetch, "C-GET", check=intake.check
            )
    except DeliveryError:  # the only one here: every context was refused
        return "it refuses to send objects over our association"
    return f"{describe(status, QR_GET_SERVICE_CLASS_STATUS)}{intake.remark()}"


def _move(fetch: _Fetch) -> str:
    """Let the archive send the images to our receiver (PS3.4 section C.4.2); say what it answered.

    What the receiver takes in of the series meanwhile, and for some time after an end without an answer,
    belongs to the fetch.
    """
    archive, series_uid = fetch.archive, fetch.listing.series_instance_uid
    fetch.store.fetches.expect(series_uid, fetch.now() + timedelta(seconds=FETCH_LIMIT_S))
    until = LATE_IMAGES
    try:
        with association.opened(
            archive.destination,
            [build_context(MOVE)],
            ae_title=archive.ae_title,
            timeout_s=archive.answer_timeout_s,
        ) as assoc:
            assoc.dimse_timeout = archive.move_timeout_s
            identifier = fetch.listing.identifier()
            status = _last_status(
                lambda: assoc.send_c_move(identifier, archive.ae_title, MOVE), fetch, "C-MOVE"
            )
        if code_to_category(status) == STATUS_FAILURE:
            until = timedelta(0)
    finally:
        fetch.store.fetches.expect(series_uid, fetch.now() + until)
    meaning = describe(status, QR_MOVE_SERVICE_CLASS_STATUS)
    return f"{meaning}; check the address that it has for {archive.ae_title!r}"


def _last_status(
    ask: Callable[[], Iterator[tuple[Dataset, Dataset | None]]],
    fetch: _Fetch,
    service: str,
    *,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Follow a retrieval to its end, which must come in time; ``check`` may raise at each answer."""
    last = NO_ANSWER
    for status, _ in association.answers(ask, fetch.archive.destination, service):
        check()
        if code_to_category(status) == STATUS_PENDING:
            fetch.check_pace()
        last = status
    return last


def _storage_contexts(classes: Sequence[str]) -> list[PresentationContext]:
    """Offer each class in every transfer syntax, one in each context as far as there is room.

    So the archive sends each image as it keeps it; of several syntaxes in one context it would choose one,
    and convert.
    """
    room = (MAXIMUM_CONTEXTS - 1) // len(classes)
    alone, together = SYNTAXES[: room - 1], SYNTAXES[room - 1 :]
    if room >= len(SYNTAXES):
        alone, together = SYNTAXES, ()
    offers = [[syntax] for syntax in alone] + ([list(together)] if together else [])
    return [build_context(sop_class, offer) for sop_class in classes for offer in offers]


_WAYS: Mapping[str, Callable[[_Fetch], str]] = {GET: _get, MOVE: _move}
