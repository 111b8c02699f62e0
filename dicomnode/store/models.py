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
from dicomnode.store.corrections import WITHDRAWN, mark_cases
from dicomnode.store.database import Database, insert_new
from dicomnode.store.federation import note_release
from dicomnode.store.leases import end_job
from dicomnode.store.records import Judged, ModelRecord, ModelSwitch, ReleaseState, Retreat, VersionInUse
from dicomnode.store.switching import (
    CONFIRMED,
    PROMOTION_ADVISED,
    ROLLBACK_ADVISED,
    Change,
    advise,
    before_current,
    find_in_use,
    find_version,
    hold_versions,
    last_switch,
    said_since,
    switch,
    why_not_automatic,
)
from dicomnode.store.tables import AuditTable, CorrectionTable, ModelSwitchTable, ModelTable, ReleaseTable

GATE = "gate"
DRIFT = "drift alarm"
"""Who changes the version in use where no person does."""
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
        with self._database.reading() as session:
            row = find_in_use(session, name)
            return None if row is None else model_record(row)

    def promote(self, version: str, *, now: datetime, by: str, reason: str = "") -> ModelRecord:
        """Put a version into use and retire the one that was, in one transaction; a person's word.

        The cases that it was trained on count as learned from. A lock is no hindrance. Of the version that
        is in use already it is noted that a person stands by it: it is not rolled back automatically. A
        release that the version came from counts as adopted.

        Raises
        ------
        InputError
            No such version.
        """
        with self._database.writing() as session:
            hold_versions(session, find_version(session, version).name)
            record = model_record(switch(session, version, Change(now=now, by=by, reason=reason)))
            mark_cases(session, record.case_ids, version, recorded_before=record.created_at)
            _note_adoption(session, record, reason=f"put into use by {by}; {reason}", now=now)
            return record

    def conclude(self, job: Job, judged: Judged, *, now: datetime) -> None:
        """End a training or an adoption in one transaction: version, verdict, what it used, end of the job.

        An accepted version is put into use, unless the model is locked or the version was rolled back from:
        then it stays a candidate and a person is advised to promote it, which job and audit log say. The
        cases behind a version that waits for a person stay untrained, since nothing that is in use has
        learned from them. A version that is known already keeps its lineage.

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
            hold_versions(session, record.name)
            held_back = _held_back(session, judged)
            end_job(session, job, JobState.DONE, now=now, reason=judged.in_words + held_back)
            _check_parent_in_use(session, record)
            _check_cases_stand(session, judged)
            if insert_new(session, ModelTable, _values(record)) is None:
                _note_verdict(session, record)
            if judged.verdict is Verdict.ACCEPTED:
                _use_or_advise(session, judged, held_back, now=now)
            is_settled = judged.verdict is not Verdict.INCONCLUSIVE and not held_back
            if judged.cases_read_at is not None and is_settled:
                mark_cases(session, record.case_ids, record.version, recorded_before=judged.cases_read_at)
            _note_release(session, judged, held_back, now=now)

    def before_current(self, name: str) -> ModelVersion | None:
        """Tell which version `rollback` would put back; None when nothing was in use before."""
        with self._database.reading() as session:
            previous = before_current(session, name)
            return None if previous is None else ModelVersion(previous)

    def rollback(self, name: str, *, now: datetime, by: str, reason: str = "") -> ModelRecord:
        """Put back the version that was in use before the current one; repeated, go further back.

        A person's word: a lock is no hindrance.

        Raises
        ------
        InputError
            Nothing was in use before.
        """
        with self._database.writing() as session:
            hold_versions(session, name)
            previous = before_current(session, name)
            if previous is None:
                message = f"model {name!r} has no earlier version to return to"
                raise InputError(message)
            change = Change(now=now, by=by, reason=reason, is_rollback=True)
            return model_record(switch(session, previous, change))

    def retreat(self, in_use: VersionInUse, *, reason: str, hindrance: str = "", now: datetime) -> Retreat:
        """Put back the version before one that does worse in use, or advise a person to do it.

        It is put back only from a version that was put into use automatically, only once, and not while the
        model is locked. A person is advised once for each time that a version is put into use, and never
        about one that a person has confirmed. Nothing happens where another version, or the same one anew,
        was put into use since the reviews were read.

        Parameters
        ----------
        in_use
            The version and what it is compared with, as the reviews were read.
        reason
            The alarm in words.
        hindrance
            What else keeps it from being put back; empty: nothing does.

        Raises
        ------
        InputError
            No such version.
        """
        version = in_use.version
        with self._database.writing() as session:
            name = find_version(session, version).name
            hold_versions(session, name)
            last = last_switch(session, name)
            if last is None or last.is_rollback or not last.previous or not _is_same_use(last, in_use):
                return Retreat.NONE
            said = said_since(session, version)
            if CONFIRMED in said:
                return Retreat.NONE
            why_not = hindrance or _why_no_retreat(session, last)
            if not why_not:
                change = Change(now=now, by=DRIFT, reason=reason, is_rollback=True, is_automatic=True)
                switch(session, last.previous, change)
                return Retreat.ROLLED_BACK
            if ROLLBACK_ADVISED in said:
                return Retreat.NONE
            words = f"roll back to {last.previous}: {reason}; not done automatically: {why_not}"
            advise(session, ROLLBACK_ADVISED, version, words, now=now)
            return Retreat.ADVISED

    def set_state(self, version: str, state: ModelState, *, gate_report_json: str | None = None) -> None:
        """Note the gate's answer about a version that is not in use.

        Raises
        ------
        InputError
            No such version; or it is, or would become, current: that is what `promote` is for.
        """
        with self._database.writing() as session:
            hold_versions(session, find_version(session, version).name)
            row = find_version(session, version)
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


def _held_back(session: Session, judged: Judged) -> str:
    """Say, to go on with a sentence, why an accepted version is left to a person; empty: it is not."""
    if judged.verdict is not Verdict.ACCEPTED:
        return ""
    why_not = why_not_automatic(session, judged.record.name, judged.record.version)
    return f"; not put into use automatically: {why_not}" if why_not else ""


def _use_or_advise(session: Session, judged: Judged, held_back: str, *, now: datetime) -> None:
    """Put an accepted version into use, or advise it in the place of those that were advised before."""
    record = judged.record
    if not held_back:
        switch(session, record.version, Change(now=now, by=GATE, reason=judged.reason, is_automatic=True))
        return
    session.exec(
        update(ModelTable)
        .where(col(ModelTable.name) == record.name, col(ModelTable.state) != ModelState.CURRENT)
        .values(advice="")
    )
    advise(session, PROMOTION_ADVISED, record.version, f"promote it: {judged.reason}{held_back}", now=now)


def _note_adoption(session: Session, record: ModelRecord, *, reason: str, now: datetime) -> None:
    """Note of a release that was left to a person that it is in use now."""
    if record.release_version is None:
        return
    release = (record.name, record.release_version)
    row = session.get(ReleaseTable, release)
    if row is not None and row.state != ReleaseState.ADOPTED:
        note_release(
            session, release, ReleaseState.ADOPTED, now=now, reason=reason, model_version=record.version
        )


def _note_release(session: Session, judged: Judged, held_back: str, *, now: datetime) -> None:
    record = judged.record
    if record.release_version is not None:
        note_release(
            session,
            (record.name, record.release_version),
            ReleaseState.CANDIDATE if held_back else _RELEASE_STATE[judged.verdict],
            now=now,
            reason=judged.reason + held_back,
            model_version=record.version,
        )


def _is_same_use(last: ModelSwitchTable, in_use: VersionInUse) -> bool:
    """Answer whether a version came into use by this switch, and not by a later one."""
    return (last.version, last.previous, last.at) == (in_use.version, in_use.previous, in_use.since)


def _why_no_retreat(session: Session, last: ModelSwitchTable) -> str:
    """Say what keeps the version in use from being rolled back without a person; empty: nothing does."""
    if not last.is_automatic:
        return f"a person put {last.version} into use"
    return why_not_automatic(session, last.name, last.previous or "")


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
        "case_digests_json": json.dumps(record.case_digests),
        "recipe_json": record.recipe_json,
        "environment_json": record.environment_json,
        "folder": record.folder,
        "weights_sha256": record.weights_sha256,
        "release_version": record.release_version,
        "steps": record.steps,
        "epochs": record.epochs,
        "run_folder": record.run_folder,
        "advice": record.advice,
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
        case_digests=tuple((case, Sha256(digest)) for case, digest in json.loads(row.case_digests_json)),
        recipe_json=row.recipe_json,
        environment_json=row.environment_json,
        folder=row.folder,
        weights_sha256=Sha256(row.weights_sha256),
        release_version=row.release_version,
        steps=row.steps,
        epochs=row.epochs,
        run_folder=row.run_folder,
        advice=row.advice,
        created_at=row.created_at,
    )


def _switch_record(row: ModelSwitchTable) -> ModelSwitch:
    return ModelSwitch(
        name=row.name,
        version=ModelVersion(row.version),
        previous=None if row.previous is None else ModelVersion(row.previous),
        is_rollback=row.is_rollback,
        is_automatic=row.is_automatic,
        by=row.by,
        reason=row.reason,
        at=row.at,
    )
