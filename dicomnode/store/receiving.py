"""What happens to the rows when an instance arrives, inside a transaction of the caller."""

import hashlib
import re
from datetime import datetime
from enum import StrEnum

from sqlmodel import Session, col, select, update

from dicomnode.domain import CorrectionSopClasses, JobKind, JobState, SeriesState, StoredInstance
from dicomnode.store.audit import add_entry
from dicomnode.store.database import insert_new
from dicomnode.store.leases import retire_waiting, revive
from dicomnode.store.tables import InstanceTable, JobTable, SeriesTable

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# PS3.6 annex A: families of storage classes whose objects are no pictures of a patient, or derived ones.
_WITHOUT_IMAGES = re.compile(
    r"(4\.2|7|8|9|10|11|30|34|66|67|68|78|79|80|88|90|91|104|129|131|200|201|481\.([3-9]|[12]\d))(\.|$)"
)


class Role(StrEnum):
    """What an instance is to this node."""

    IMAGE = "image"
    SEGMENTATION = "segmentation"  # received, also as contours
    OTHER = "other"
    RESULT = "result"  # made here


def role_of(sop_class_uid: str) -> Role:
    """Tell by the storage class what an instance is to this node."""
    if sop_class_uid in CorrectionSopClasses:
        return Role.SEGMENTATION
    if not sop_class_uid.startswith(_STORAGE):
        return Role.OTHER
    return Role.OTHER if _WITHOUT_IMAGES.match(sop_class_uid.removeprefix(_STORAGE)) else Role.IMAGE


def correction_digest(instance: StoredInstance) -> str:
    """Name the input of the job that reads a received segmentation."""
    return hashlib.sha256(f"{instance.sop_instance_uid}:{instance.sha256}".encode()).hexdigest()


def record_result_instance(session: Session, instance: StoredInstance) -> None:
    """Make a result's file known inside a transaction; a repeat changes nothing."""
    insert_new(session, InstanceTable, instance_values(instance, Role.RESULT))


def instance_values(instance: StoredInstance, role: Role) -> dict[str, object]:
    """Lay out the columns of a stored file."""
    return {
        "role": role,
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "modality": instance.modality,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "sha256": instance.sha256,
        "size_bytes": instance.size_bytes,
        "path": instance.path,
        "sender": instance.sender,
        "received_at": instance.received_at,
        "superseded": False,
    }


def hold_series(session: Session, instance: StoredInstance, role: Role, now: datetime) -> SeriesTable | None:
    """Find or add the row of an instance's series and hold it, so that parallel arrivals take turns."""
    uid = instance.series_instance_uid
    series = session.get(SeriesTable, uid, with_for_update=True)
    if series is not None:
        return series
    reason = f"no images: {instance.modality or 'other'} objects are kept, not segmented"
    values = {
        "series_instance_uid": uid,
        "study_instance_uid": instance.study_instance_uid,
        "modality": instance.modality,
        "state": SeriesState.RECEIVING if role is Role.IMAGE else SeriesState.SET_ASIDE,
        "reason": "" if role is Role.IMAGE else reason,
        "sender": instance.sender,
        "received_at": now,
        "last_received_at": now,
        "updated_at": now,
        "fetched_from": "",
    }
    insert_new(session, SeriesTable, values)
    return session.get(SeriesTable, uid, with_for_update=True)


def is_opened_by_image(series: SeriesTable, *, is_news: bool, is_fetched: bool, now: datetime) -> bool:
    """Answer whether an image that came begins the wait for its series: not when a fetch asked for it.

    What the receiver takes in while a C-MOVE runs counts as asked for: nothing that every archive fills in
    would tell.
    """
    is_expected = series.fetch_open_until is not None and now < series.fetch_open_until
    return not is_fetched and not is_expected and (is_news or bool(series.fetched_from))


def is_ours(session: Session, instance: StoredInstance) -> bool:
    """Answer whether an instance goes by the UID of a result made here, altered on its way or not."""
    statement = select(InstanceTable.id).where(
        col(InstanceTable.sop_instance_uid) == instance.sop_instance_uid,
        col(InstanceTable.role) == Role.RESULT,
    )
    return session.exec(statement.limit(1)).first() is not None


def stands_again(session: Session, instance: StoredInstance) -> bool:
    """Let an earlier variant count again when its bytes are sent once more."""
    result = session.exec(
        update(InstanceTable)
        .where(
            col(InstanceTable.sop_instance_uid) == instance.sop_instance_uid,
            col(InstanceTable.sha256) == instance.sha256,
            col(InstanceTable.superseded),
        )
        .values(superseded=False)
    )
    return bool(result.rowcount)


def supersede_variants(session: Session, instance: StoredInstance, role: Role, now: datetime) -> None:
    """Let only the newest bytes of a SOP instance UID count within its series, and note it."""
    others = session.exec(
        select(InstanceTable).where(
            col(InstanceTable.sop_instance_uid) == instance.sop_instance_uid,
            col(InstanceTable.sha256) != instance.sha256,
            ~col(InstanceTable.superseded),
        )
    ).all()
    for other in others:
        if other.series_instance_uid != instance.series_instance_uid:
            detail = f"also in series {other.series_instance_uid}; now from {instance.sender}"
            add_entry(session, "instance_in_two_series", instance.sop_instance_uid, detail, now)
            continue
        other.superseded = other.role == role
        session.add(other)
        detail = f"sha256 {other.sha256[:12]} -> {instance.sha256[:12]} from {instance.sender}"
        add_entry(session, "instance_variant", instance.sop_instance_uid, detail, now)


def read_again(session: Session, instance: StoredInstance, now: datetime) -> None:
    """Give a segmentation that could not be read another try when it is sent again, as its reason asked."""
    row = session.exec(
        select(JobTable)
        .where(
            col(JobTable.kind) == JobKind.INGEST_CORRECTION,
            col(JobTable.digest) == correction_digest(instance),
            col(JobTable.state).in_((JobState.SET_ASIDE, JobState.FAILED)),
        )
        .with_for_update()
    ).first()
    if row is not None:
        revive(row, now=now)
        session.add(row)


def reopen(session: Session, series: SeriesTable, instance: StoredInstance, now: datetime) -> None:
    """Begin, or begin again, to wait for the series to be complete."""
    uid = series.series_instance_uid
    if series.state != SeriesState.RECEIVING:
        retire_waiting(session, JobKind.SEGMENT_SERIES, uid, now=now, reason="a later image came")
        add_entry(session, "series_reopened", uid, f"was {series.state}; image from {instance.sender}", now)
        series.state = SeriesState.RECEIVING
        series.reason = ""
        series.modality = instance.modality
    series.fetched_from = ""
    series.fetch_open_until = None
    series.sender = instance.sender
    series.last_received_at = now
    series.updated_at = now
    session.add(series)
