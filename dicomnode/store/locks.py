"""Locks of models: while one stands, only a person changes which version is in use."""

from datetime import datetime

from sqlmodel import col, select

from dicomnode.errors import InputError
from dicomnode.store.audit import add_entry
from dicomnode.store.database import Database
from dicomnode.store.records import ModelLock
from dicomnode.store.switching import find_in_use, find_lock, hold_versions, lock_record
from dicomnode.store.tables import ModelLockTable


class LockRows:
    """A row stands as long as its lock; who locked and unlocked, when and why, stays in the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lock(self, name: str, *, by: str, reason: str, now: datetime) -> ModelLock:
        """Lock a model: from here on nothing but `promote` and `rollback` changes its version in use.

        Raises
        ------
        InputError
            No version of such a model is in use, or it is locked already.
        """
        with self._database.writing() as session:
            hold_versions(session, name)
            found = find_lock(session, name)
            if found is not None:
                message = f"{found.in_words}; unlock it first to lock it anew"
                raise InputError(message)
            if find_in_use(session, name) is None:
                message = f"no version of model {name!r} is in use; see `dicomnode models list`"
                raise InputError(message)
            session.add(ModelLockTable(name=name, by=by, reason=reason, at=now))
            add_entry(session, "model_locked", name, f"by {by}; {reason}", now)
            return ModelLock(name=name, by=by, reason=reason, at=now)

    def unlock(self, name: str, *, by: str, reason: str, now: datetime) -> ModelLock:
        """End a lock; what was held back meanwhile stays so, since it was judged then. Gives the lock.

        Raises
        ------
        InputError
            The model is not locked.
        """
        with self._database.writing() as session:
            hold_versions(session, name)
            row = session.get(ModelLockTable, name, populate_existing=True)
            if row is None:
                message = f"model {name!r} is not locked"
                raise InputError(message)
            found = lock_record(row)
            session.delete(row)
            add_entry(session, "model_unlocked", name, f"by {by}; {reason}; {found.in_words}", now)
            return found

    def get(self, name: str) -> ModelLock | None:
        """Read the lock of a model; None while it is open."""
        with self._database.reading() as session:
            return find_lock(session, name)

    def all(self) -> tuple[ModelLock, ...]:
        """Read every lock that stands, by name of the model."""
        with self._database.reading() as session:
            rows = session.exec(select(ModelLockTable).order_by(col(ModelLockTable.name)))
            return tuple(lock_record(row) for row in rows)
