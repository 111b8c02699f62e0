"""Versions of the models at this site: lineage, and which one is in use."""

import json
from datetime import datetime

from sqlmodel import Session, col, select, update

from dicomnode.domain import (
    CorrectionState,
    Job,
    JobState,
    ModelOrigin,
    ModelState,
    ModelVersion,
    Sha256,
    Verdict,
)
from dicomnode.errors import InputError, ResourceError
from dicomnode.store.audit import add_entry
from dicomnode.store.corrections import WITHDRAWN, mark_cases
from dicomnode.store.database import Database, insert_new
from dicomnode.store.federation import note_release
from dicomnode.store.leases import end_job
from dicomnode.store.records import Judged, ModelRecord, ModelSwitch, ReleaseState
from dicomnode.store.tables import AuditTable, CorrectionTable, ModelSwitchTable, ModelTable

_RELEASE_STATE = {
    Verdict.ACCEPTED: ReleaseState.ADOPTED,
    Verdict.REFUSED: ReleaseState.REFUSED,
    Verdict.INCONCLUSIVE: ReleaseState.INCONCLUSIVE,
}


class ModelRows:
    """A version is registered once and never changed but for its state; one version of a name is current."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, record: ModelRecord) -> bool:
        """Add a version; False when it is known already, which changes nothing.

        A version becomes current by `promote` only: the state ``current`` is refused here.
        """
        if record.state is ModelState.CURRENT:
            message = (
                f"version {record.version} cannot be registered as current: register it, then promote it"
            )
            raise InputError(message)
        with self._database.writing() as session:
            return insert_new(session, ModelTable, _values(record)) is not None

    def get(self, version: str) -> ModelRecord | None:
        """Look a version up."""
        with self._database.reading() as session:
            row = session.get(ModelTable, version)
            return None if row is None else model_record(row)

    def current(self, name: str) -> ModelRecord | None:
        """Find the version of a model that is in use."""
        statement = select(ModelTable).where(
            col(ModelTable.name) == name, col(ModelTable.state) == ModelState.CURRENT
        )
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else model_record(row)

    def promote(self, version: str, *, now: datetime, by: str, reason: str = "") -> ModelRecord:
        """Put a version into use and retire the one that was, in one transaction.

        The cases that it was trained on count as learned from.

        Raises
        ------
        InputError
            No such version.
        """
        with self._database.writing() as session:
            _hold_versions(session, _get(session, version).name)
            record = _switch(session, version, now=now, by=by, reason=reason, is_rollback=False)
            mark_cases(session, record.case_ids, version, recorded_before=record.created_at)
            return record

    def conclude(self, job: Job, judged: Judged, *, now: datetime) -> None:
        """End a training or an adoption in one transaction: version, verdict, what it used, end of the job.

        An accepted version is put into use. The cases behind an inconclusive one stay untrained, since
        nothing that is in use has learned from them. A version that is known already keeps its lineage.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was recorded.
        ResourceError
            Another version was put into use, or a correction that the candidate learned from was withdrawn,
            while it was trained and judged; nothing was recorded.
        """
        record = judged.record
        with self._database.writing() as session:
            end_job(session, job, JobState.DONE, now=now, reason=judged.in_words)
            _hold_versions(session, record.name)
            _check_parent_in_use(session, record)
            _check_cases_stand(session, judged)
            if insert_new(session, ModelTable, _values(record)) is None:
                _note_verdict(session, record)
            if judged.verdict is Verdict.ACCEPTED:
                _switch(session, record.version, now=now, by="gate", reason=judged.reason, is_rollback=False)
            if judged.cases_read_at is not None and judged.verdict is not Verdict.INCONCLUSIVE:
                mark_cases(session, record.case_ids, record.version, recorded_before=judged.cases_read_at)
            if record.release_version is not None:
                note_release(
                    session,
                    (record.name, record.release_version),
                    _RELEASE_STATE[judged.verdict],
                    now=now,
                    reason=judged.reason,
                    model_version=record.version,
                )

    def before_current(self, name: str) -> ModelVersion | None:
        """Tell which version `rollback` would put back; None when nothing was in use before."""
        with self._database.reading() as session:
            previous = _before_current(session, name)
            return None if previous is None else ModelVersion(previous)

    def rollback(self, name: str, *, now: datetime, by: str, reason: str = "") -> ModelRecord:
        """Put back the version that was in use before the current one; repeated, go further back.

        Raises
        ------
        InputError
            Nothing was in use before.
        """
        with self._database.writing() as session:
            _hold_versions(session, name)
            previous = _before_current(session, name)
            if previous is None:
                message = f"model {name!r} has no earlier version to return to"
                raise InputError(message)
            return _switch(session, previous, now=now, by=by, reason=reason, is_rollback=True)

    def set_state(self, version: str, state: ModelState, *, gate_report_json: str | None = None) -> None:
        """Note the gate's answer about a version that is not in use.

        Raises
        ------
        InputError
            No such version; or it is, or would become, current: that is what `promote` is for.
        """
        with self._database.writing() as session:
            _hold_versions(session, _get(session, version).name)
            row = _get(session, version)
            if ModelState.CURRENT in (row.state, state):
                message = f"version {version} is {row.state}, asked for {state}: use promote or rollback"
                raise InputError(message)
            row.state = state
            if gate_report_json is not None:
                row.gate_report_json = gate_report_json
            session.add(row)

    def history(self, name: str) -> list[ModelRecord]:
        """Read every version of a model, oldest first."""
        statement = (
            select(ModelTable)
            .where(col(ModelTable.name) == name)
            .order_by(col(ModelTable.created_at), col(ModelTable.version))
        )
        with self._database.reading() as session:
            return [model_record(row) for row in session.exec(statement)]

    def all_current(self) -> list[ModelRecord]:
        """Read the versions in use, by name."""
        statement = select(ModelTable).where(col(ModelTable.state) == ModelState.CURRENT)
        with self._database.reading() as session:
            return [model_record(row) for row in session.exec(statement.order_by(col(ModelTable.name)))]

    def names(self) -> list[str]:
        """Name the models of this site."""
        with self._database.reading() as session:
            return sorted(session.exec(select(ModelTable.name).distinct()))

    def switches(self, name: str) -> list[ModelSwitch]:
        """Read each change of the current version, oldest first."""
        statement = (
            select(ModelSwitchTable)
            .where(col(ModelSwitchTable.name) == name)
            .order_by(col(ModelSwitchTable.id))
        )
        with self._database.reading() as session:
            return [_switch_record(row) for row in session.exec(statement)]


def _check_parent_in_use(session: Session, record: ModelRecord) -> None:
    """Let a verdict count only beside the version that it was passed against."""
    in_use = session.exec(
        select(ModelTable.version).where(
            col(ModelTable.name) == record.name, col(ModelTable.state) == ModelState.CURRENT
        )
    ).first()
    if in_use != record.parent:
        message = f"{in_use} was put into use while {record.version} was judged against {record.parent}"
        raise ResourceError(message)


def _check_cases_stand(session: Session, judged: Judged) -> None:
    """Let no version be kept that learned from what was withdrawn since its cases were read."""
    if judged.cases_read_at is None:
        return
    withdrawn = select(CorrectionTable.sop_instance_uid).where(
        col(CorrectionTable.case_id).in_(judged.record.case_ids),
        col(CorrectionTable.state) == CorrectionState.WITHDRAWN,
    )
    meanwhile = select(AuditTable.id).where(
        col(AuditTable.event) == WITHDRAWN,
        col(AuditTable.at) >= judged.cases_read_at,
        col(AuditTable.subject).in_(withdrawn),
    )
    if session.exec(meanwhile.limit(1)).first() is not None:
        message = f"a correction was withdrawn while {judged.record.version} was trained on it"
        raise ResourceError(message)


def _note_verdict(session: Session, record: ModelRecord) -> None:
    """Note the newest answer of the gate about a version that was made before and never used."""
    never_used = (ModelState.CANDIDATE, ModelState.REFUSED, ModelState.INCONCLUSIVE)
    session.exec(
        update(ModelTable)
        .where(col(ModelTable.version) == record.version, col(ModelTable.state).in_(never_used))
        .values(state=record.state, gate_report_json=record.gate_report_json)
    )


def _switch(
    session: Session, version: str, *, now: datetime, by: str, reason: str, is_rollback: bool
) -> ModelRecord:
    row = _get(session, version)
    current = session.exec(
        select(ModelTable)
        .where(col(ModelTable.name) == row.name, col(ModelTable.state) == ModelState.CURRENT)
        .execution_options(populate_existing=True)
    ).first()
    if current is not None and current.version == version:
        return model_record(current)
    previous = None if current is None else current.version
    session.exec(
        update(ModelTable).where(col(ModelTable.version) == previous).values(state=ModelState.RETIRED)
    )
    session.exec(
        update(ModelTable).where(col(ModelTable.version) == version).values(state=ModelState.CURRENT)
    )
    session.add(
        ModelSwitchTable(
            name=row.name,
            version=version,
            previous=previous,
            is_rollback=is_rollback,
            by=by,
            reason=reason,
            at=now,
        )
    )
    event = "model_rolled_back" if is_rollback else "model_promoted"
    add_entry(session, event, version, f"before: {previous}; by {by}; {reason}", now)
    session.refresh(row)
    return model_record(row)


def _hold_versions(session: Session, name: str) -> None:
    """Let changes of the current version take turns; always locked in the same order, so none deadlocks."""
    statement = select(ModelTable.version).where(col(ModelTable.name) == name)
    session.exec(statement.order_by(col(ModelTable.version)).with_for_update()).all()


def _before_current(session: Session, name: str) -> str | None:
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


def _get(session: Session, version: str) -> ModelTable:
    row = session.get(ModelTable, version, populate_existing=True)
    if row is None:
        message = f"there is no model version {version!r}"
        raise InputError(message)
    return row


def _values(record: ModelRecord) -> dict[str, object]:
    return {
        "version": record.version,
        "name": record.name,
        "parent": record.parent,
        "origin": record.origin,
        "state": record.state,
        "recipe": record.recipe,
        "gate_report_json": record.gate_report_json,
        "case_ids_json": json.dumps(record.case_ids),
        "folder": record.folder,
        "weights_sha256": record.weights_sha256,
        "release_version": record.release_version,
        "steps": record.steps,
        "epochs": record.epochs,
        "created_at": record.created_at,
    }


def model_record(row: ModelTable) -> ModelRecord:
    """Copy a row into a record."""
    return ModelRecord(
        version=ModelVersion(row.version),
        name=row.name,
        parent=None if row.parent is None else ModelVersion(row.parent),
        origin=ModelOrigin(row.origin),
        state=ModelState(row.state),
        recipe=row.recipe,
        gate_report_json=row.gate_report_json,
        case_ids=tuple(json.loads(row.case_ids_json)),
        folder=row.folder,
        weights_sha256=Sha256(row.weights_sha256),
        release_version=row.release_version,
        steps=row.steps,
        epochs=row.epochs,
        created_at=row.created_at,
    )


def _switch_record(row: ModelSwitchTable) -> ModelSwitch:
    return ModelSwitch(
        name=row.name,
        version=ModelVersion(row.version),
        previous=None if row.previous is None else ModelVersion(row.previous),
        is_rollback=row.is_rollback,
        by=row.by,
        reason=row.reason,
        at=row.at,
    )
