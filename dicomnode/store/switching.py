"""Changes of the version in use inside a transaction of the caller: what does them, and what holds them back.

A change is a person's or automatic. An automatic one never happens to a model that is locked, and never puts
a version back that was rolled back from; a person is advised to do it instead.
"""

from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from sqlmodel import Session, and_, col, or_, select, update

from dicomnode.domain import ModelState
from dicomnode.errors import InputError
from dicomnode.store.audit import add_entry
from dicomnode.store.records import ModelLock
from dicomnode.store.tables import AuditTable, ModelLockTable, ModelSwitchTable, ModelTable

PROMOTED = "model_promoted"
ROLLED_BACK = "model_rolled_back"
CONFIRMED = "model_confirmed"
"""A person promoted the version that was in use already, and so answers for it."""
PROMOTION_ADVISED = "promotion_advised"
ROLLBACK_ADVISED = "rollback_advised"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Why, when and by whom another version is put into use."""

    now: datetime
    by: str
    reason: str
    is_rollback: bool = False
    is_automatic: bool = False  # by a rule of the node; False: a person answers for it


def hold_versions(session: Session, name: str) -> None:
    """Let changes of a model take turns; always locked in the same order, so none deadlocks."""
    statement = select(ModelTable.version).where(col(ModelTable.name) == name)
    session.exec(statement.order_by(col(ModelTable.version)).with_for_update()).all()


def find_version(session: Session, version: str) -> ModelTable:
    """Read a version as it stands now.

    Raises
    ------
    InputError
        No such version.
    """
    row = session.get(ModelTable, version, populate_existing=True)
    if row is None:
        message = f"there is no model version {version!r}"
        raise InputError(message)
    return row


def find_in_use(session: Session, name: str) -> ModelTable | None:
    """Read the version of a model that is in use now."""
    statement = select(ModelTable).where(
        col(ModelTable.name) == name, col(ModelTable.state) == ModelState.CURRENT
    )
    return session.exec(statement.execution_options(populate_existing=True)).first()


def switch(session: Session, version: str, change: Change) -> ModelTable:
    """Put a version into use, retire the one that was, and forget what was advised for the model.

    Of the version that is in use already, only a person's word is noted.
    """
    row = find_version(session, version)
    current = find_in_use(session, row.name)
    if current is not None and current.version == version:
        if not change.is_automatic:
            _note_confirmation(session, version, change)
            session.refresh(current)
        return current
    previous = None if current is None else current.version
    for changed, state in ((previous, ModelState.RETIRED), (version, ModelState.CURRENT)):
        session.exec(update(ModelTable).where(col(ModelTable.version) == changed).values(state=state))
    session.exec(update(ModelTable).where(col(ModelTable.name) == row.name).values(advice=""))
    session.add(
        ModelSwitchTable(
            name=row.name,
            version=version,
            previous=previous,
            is_rollback=change.is_rollback,
            is_automatic=change.is_automatic,
            by=change.by,
            reason=change.reason,
            at=change.now,
        )
    )
    lock = find_lock(session, row.name)
    words = f"before: {previous}; by {change.by}; {change.reason}" + (f"; {lock.in_words}" if lock else "")
    add_entry(session, ROLLED_BACK if change.is_rollback else PROMOTED, version, words, change.now)
    session.refresh(row)
    return row


def last_switch(session: Session, name: str) -> ModelSwitchTable | None:
    """Read how the version in use came into use."""
    statement = (
        select(ModelSwitchTable)
        .where(col(ModelSwitchTable.name) == name)
        .order_by(col(ModelSwitchTable.id).desc())
    )
    return session.exec(statement.limit(1)).first()


def before_current(session: Session, name: str) -> str | None:
    """Find what the last promotion of the current version replaced; steps back do not count."""
    current = (
        select(ModelTable.version)
        .where(col(ModelTable.name) == name, col(ModelTable.state) == ModelState.CURRENT)
        .scalar_subquery()
    )
    statement = (
        select(ModelSwitchTable.previous)
        .where(col(ModelSwitchTable.version) == current, ~col(ModelSwitchTable.is_rollback))
        .order_by(col(ModelSwitchTable.id).desc())
    )
    return session.exec(statement).first()


def why_not_automatic(session: Session, name: str, version: str) -> str:
    """Say what keeps a version from being put into use without a person; empty: nothing does."""
    lock = find_lock(session, name)
    if lock is not None:
        return lock.in_words
    if _was_rolled_back(session, version):
        return f"{version} was in use before and was rolled back from"
    return ""


def find_lock(session: Session, name: str) -> ModelLock | None:
    """Read the lock of a model; None while it is open."""
    row = session.get(ModelLockTable, name, populate_existing=True)
    return None if row is None else lock_record(row)


def lock_record(row: ModelLockTable) -> ModelLock:
    """Copy a row into a record."""
    return ModelLock(name=row.name, by=row.by, reason=row.reason, at=row.at)


def advise(session: Session, event: str, version: str, words: str, *, now: datetime) -> None:
    """Tell people what is left to them: in the list of versions and in the audit log."""
    session.exec(update(ModelTable).where(col(ModelTable.version) == version).values(advice=words))
    add_entry(session, event, version, words, now)


def said_since(session: Session, version: str) -> set[str]:
    """Tell what people were told of the version in use, or said of it themselves, since it came into use.

    In the order of the audit log: a clock that was set back would hide what was said before.
    """
    came_into_use = (PROMOTED, ROLLED_BACK)
    statement = (
        select(AuditTable.event)
        .where(
            col(AuditTable.event).in_((*came_into_use, CONFIRMED, ROLLBACK_ADVISED)),
            col(AuditTable.subject) == version,
        )
        .order_by(col(AuditTable.id).desc())
    )
    return set(takewhile(lambda event: event not in came_into_use, session.exec(statement)))


def _note_confirmation(session: Session, version: str, change: Change) -> None:
    session.exec(update(ModelTable).where(col(ModelTable.version) == version).values(advice=""))
    add_entry(session, CONFIRMED, version, f"by {change.by}; {change.reason}", change.now)


def _was_rolled_back(session: Session, version: str) -> bool:
    """Answer whether a version was rolled back from, and no person has put it into use since."""
    left = and_(col(ModelSwitchTable.previous) == version, col(ModelSwitchTable.is_rollback))
    approved = and_(
        col(ModelSwitchTable.version) == version,
        ~col(ModelSwitchTable.is_rollback),
        ~col(ModelSwitchTable.is_automatic),
    )
    statement = (
        select(ModelSwitchTable.is_rollback)
        .where(or_(left, approved))
        .order_by(col(ModelSwitchTable.id).desc())
    )
    return bool(session.exec(statement.limit(1)).first())
