"""Received segmentations: what each turned out to be, and which of them were trained on."""

import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func
from sqlmodel import Session, col, select, update

from dicomnode.domain import (
    CorrectionState,
    Decision,
    Job,
    JobKind,
    JobState,
    LabelScore,
    ModelVersion,
    Recognition,
    SeriesInstanceUid,
    SopInstanceUid,
    Split,
)
from dicomnode.errors import InputError, ResourceError
from dicomnode.store.audit import add_entry
from dicomnode.store.database import Database, insert_new
from dicomnode.store.leases import end_job, insert_job, revive_ended
from dicomnode.store.records import CorrectionRecord, Note
from dicomnode.store.tables import CaseTable, CorrectionScoreTable, CorrectionTable

WITHDRAWN = "correction_withdrawn"
"""In the audit log."""


class CorrectionRows:
    """One row for each received segmentation that was read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self,
        job: Job,
        correction: CorrectionRecord,
        *,
        now: datetime,
        seen: Collection[int] = frozenset(),
        replaced: Collection[int | None] = frozenset(),
        notes: Collection[Note] = (),
    ) -> None:
        """Keep what was found, in one transaction with the end of the job that found it.

        There is one row for each received file; reading it again changes that row. Its number, and what a
        person decided, stay.

        Parameters
        ----------
        seen, replaced
            Numbers of the other corrections that its case was made from; those with nothing left to say.
        notes
            For the audit log.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was recorded.
        ResourceError
            The corrections of the case changed while it was made; nothing was recorded.
        """
        with self._database.writing() as session:
            end_job(session, job, JobState.DONE, now=now)
            if correction.case_id is not None:
                for row in _kept_rows(session, correction.case_id, seen=seen):
                    row.replaced = row.id in replaced
                    session.add(row)
                _link_case(session, correction.case_id, correction.source_series_uid or "", now)
            if _upsert(session, job, correction, now):
                for note in notes:
                    add_entry(session, note.event, note.subject, note.detail, now)

    def get(self, correction_id: int) -> CorrectionRecord | None:
        """Look a correction up by its number."""
        with self._database.reading() as session:
            row = session.get(CorrectionTable, correction_id)
            return None if row is None else _record(session, row)

    def of_instance(self, instance_id: int) -> CorrectionRecord | None:
        """Find what is on record of a received file."""
        statement = select(CorrectionTable).where(col(CorrectionTable.instance_id) == instance_id)
        with self._database.reading() as session:
            row = session.exec(statement.order_by(col(CorrectionTable.id).desc())).first()
            return None if row is None else _record(session, row)

    def kept_of(self, series_uid: str, *, model_name: str) -> tuple[CorrectionRecord, ...]:
        """Read the corrections of a series that a model learns from, oldest first."""
        statement = (
            select(CorrectionTable)
            .where(
                col(CorrectionTable.source_series_uid) == series_uid,
                col(CorrectionTable.model_name) == model_name,
                col(CorrectionTable.state) == CorrectionState.KEPT,
            )
            .order_by(col(CorrectionTable.id))
        )
        with self._database.reading() as session:
            return tuple(_record(session, row) for row in session.exec(statement).all())

    def decide(self, correction_id: int, decision: Decision, *, by: str, now: datetime) -> str:
        """Let a correction in quarantine count, as a person said; it is read again.

        Returns
        -------
            The digest of the job that reads it.

        Raises
        ------
        InputError
            No such correction, or one that is not held.
        """
        with self._database.writing() as session:
            row = _in_state(session, correction_id, CorrectionState.HELD)
            row.decision, row.decided_by = decision, by
            session.add(row)
            digest = hashlib.sha256(f"{row.digest}:{decision}".encode()).hexdigest()
            job = insert_job(session, JobKind.INGEST_CORRECTION, str(row.instance_id), digest, now=now)
            if not job:
                revive_ended(session, JobKind.INGEST_CORRECTION, str(row.instance_id), now=now, digest=digest)
            add_entry(session, "correction_accepted", row.sop_instance_uid, f"{decision} by {by}", now)
            return digest

    def refuse(self, correction_id: int, *, by: str, now: datetime) -> None:
        """Let a correction in quarantine never count, as a person said; it stays on record.

        Raises
        ------
        InputError
            No such correction, or one that is not held.
        """
        with self._database.writing() as session:
            row = _in_state(session, correction_id, CorrectionState.HELD)
            row.state, row.decided_by = CorrectionState.REFUSED, by
            session.add(row)
            add_entry(session, "correction_refused", row.sop_instance_uid, f"by {by}", now)

    def withdraw(self, correction_id: int, *, by: str, now: datetime) -> str:
        """Take a correction back that was kept, with what it replaced under its UID: nothing learns from it.

        Returns
        -------
            The digest of the job that makes its case anew from the corrections that are left.

        Raises
        ------
        InputError
            No such correction, or one that is not kept.
        """
        with self._database.writing() as session:
            row = _in_state(session, correction_id, CorrectionState.KEPT)
            for one in (row, *_replaced_variants(session, row)):
                one.state, one.decided_by = CorrectionState.WITHDRAWN, by
                session.add(one)
                add_entry(session, WITHDRAWN, one.sop_instance_uid, f"by {by}", now)
            return _read_anew(session, row, f"withdrawn {now.isoformat()}", now=now)

    def settle(
        self,
        job: Job,
        case_id: str,
        *,
        now: datetime,
        seen: Collection[int] = frozenset(),
        replaced: Collection[int | None] = frozenset(),
    ) -> None:
        """End the job that made a case anew; what is left of the case is new to the model.

        Parameters
        ----------
        seen, replaced
            Numbers of the corrections that are left, and those of them that have nothing left to say.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was recorded.
        ResourceError
            The corrections of the case changed meanwhile; nothing was recorded.
        """
        with self._database.writing() as session:
            end_job(session, job, JobState.DONE, now=now)
            for row in _kept_rows(session, case_id, seen=seen):
                row.replaced, row.trained_in = row.id in replaced, None
                session.add(row)
            _link_case(session, case_id, "", now)

    def retire_cases(self, case_ids: Collection[str], *, now: datetime) -> None:
        """Let cases leave that give their place to others; their corrections stay on record."""
        with self._database.writing() as session:
            _retire(session, case_ids)
            for case_id in case_ids:
                add_entry(session, "case_retired", case_id, "above training.maximum_cases", now)

    def abandon_case(self, job: Job, case_id: str, *, now: datetime) -> None:
        """End the job of a case that could not be made anew and has left; nothing behind it is learned from.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was recorded.
        """
        with self._database.writing() as session:
            end_job(session, job, JobState.DONE, now=now, reason="nothing is left of its case")
            if _retire(session, (case_id,)):
                detail = "its other corrections could not be read again after a withdrawal"
                add_entry(session, "case_retired", case_id, detail, now)

    def list(self, *, limit: int = 100, state: CorrectionState | None = None) -> tuple[CorrectionRecord, ...]:
        """Read the newest corrections, in one state or in any, newest first."""
        statement = select(CorrectionTable).order_by(col(CorrectionTable.id).desc()).limit(limit)
        if state is not None:
            statement = statement.where(col(CorrectionTable.state) == state)
        with self._database.reading() as session:
            return tuple(_record(session, row) for row in session.exec(statement).all())

    def by_sop_uid(self, sop_instance_uid: str) -> CorrectionRecord | None:
        """Find the newest record about a received segmentation."""
        statement = (
            select(CorrectionTable)
            .where(col(CorrectionTable.sop_instance_uid) == sop_instance_uid)
            .order_by(col(CorrectionTable.id).desc())
        )
        with self._database.reading() as session:
            row = session.exec(statement).first()
            return None if row is None else _record(session, row)

    def untrained_slices(self, model_name: str) -> int:
        """Count the corrected slices of training patients that no increment has used yet."""
        return self._sum_untrained(model_name, func.sum(col(CorrectionTable.corrected_slices)))

    def untrained_cases(self, model_name: str) -> tuple[str, ...]:
        """Name the training cases that no increment has used yet, oldest first."""
        statement = (
            select(CorrectionTable.case_id).where(*_untrained(model_name)).order_by(col(CorrectionTable.id))
        )
        with self._database.reading() as session:
            return tuple(dict.fromkeys(case_id for case_id in session.exec(statement) if case_id is not None))

    def patients(self, model_name: str) -> int:
        """Count the different training patients among the cases of a model."""
        statement = select(func.count(func.distinct(col(CorrectionTable.patient_key)))).where(
            col(CorrectionTable.model_name) == model_name,
            col(CorrectionTable.state) == CorrectionState.KEPT,
            col(CorrectionTable.split) == Split.TRAINING,
            ~col(CorrectionTable.replaced),
        )
        with self._database.reading() as session:
            return session.exec(statement).one()

    def mark_trained(
        self,
        case_ids: Collection[str],
        model_version: ModelVersion,
        *,
        recorded_before: datetime | None = None,
    ) -> int:
        """Note that an increment used these cases.

        Parameters
        ----------
        recorded_before
            When the cases were read; corrections of a case that was made anew later stay untrained.

        Returns
        -------
            How many corrections were marked.
        """
        with self._database.writing() as session:
            return mark_cases(session, case_ids, model_version, recorded_before=recorded_before)

    def case_of(self, series_uid: str) -> str | None:
        """Tell which training case was made from a series."""
        statement = select(CaseTable.case_id).where(col(CaseTable.series_instance_uid) == series_uid)
        with self._database.reading() as session:
            return session.exec(statement).first()

    def series_of(self, case_id: str) -> SeriesInstanceUid | None:
        """Tell which series a training case was made from."""
        with self._database.reading() as session:
            row = session.get(CaseTable, case_id)
            return None if row is None else SeriesInstanceUid(row.series_instance_uid)

    def _sum_untrained(self, model_name: str, total: ColumnElement[int]) -> int:
        with self._database.reading() as session:
            return int(session.exec(select(total).where(*_untrained(model_name))).one() or 0)


def mark_cases(
    session: Session,
    case_ids: Collection[str],
    model_version: str,
    *,
    recorded_before: datetime | None = None,
) -> int:
    """Note inside a transaction that a version learned from these cases; gives how many were new to it."""
    statement = update(CorrectionTable).where(
        col(CorrectionTable.case_id).in_(case_ids),
        col(CorrectionTable.trained_in).is_(None),
        col(CorrectionTable.state) == CorrectionState.KEPT,
        ~col(CorrectionTable.replaced),
    )
    if recorded_before is not None:
        made_later = select(CaseTable.case_id).where(col(CaseTable.created_at) > recorded_before)
        statement = statement.where(
            col(CorrectionTable.created_at) <= recorded_before,
            col(CorrectionTable.case_id).not_in(made_later),
        )
    return int(session.exec(statement.values(trained_in=model_version)).rowcount)


def _retire(session: Session, case_ids: Collection[str]) -> int:
    statement = update(CorrectionTable).where(
        col(CorrectionTable.case_id).in_(case_ids), col(CorrectionTable.state) == CorrectionState.KEPT
    )
    return int(session.exec(statement.values(state=CorrectionState.RETIRED)).rowcount)


def _untrained(model_name: str) -> tuple[ColumnElement[bool], ...]:
    return (
        col(CorrectionTable.model_name) == model_name,
        col(CorrectionTable.state) == CorrectionState.KEPT,
        col(CorrectionTable.split) == Split.TRAINING,
        col(CorrectionTable.trained_in).is_(None),
        ~col(CorrectionTable.replaced),
    )


def _in_state(session: Session, correction_id: int, state: CorrectionState) -> CorrectionTable:
    row = session.get(CorrectionTable, correction_id, with_for_update=True)
    if row is None:
        message = f"there is no correction {correction_id}; see `dicomnode corrections list`"
        raise InputError(message)
    if row.state != state:
        message = f"correction {correction_id} is {row.state}; this is for one that is {state}"
        raise InputError(message)
    return row


def _replaced_variants(session: Session, row: CorrectionTable) -> Sequence[CorrectionTable]:
    """The same object in other bytes, which would have the word when `row` has it no more."""
    statement = select(CorrectionTable).where(
        col(CorrectionTable.sop_instance_uid) == row.sop_instance_uid,
        col(CorrectionTable.case_id) == row.case_id,
        col(CorrectionTable.state) == CorrectionState.KEPT,
        col(CorrectionTable.replaced),
        col(CorrectionTable.id) != row.id,
    )
    return session.exec(statement.with_for_update()).all()


def _read_anew(session: Session, row: CorrectionTable, why: str, *, now: datetime) -> str:
    """Queue that a received file is read once more; gives the digest of the job."""
    digest = hashlib.sha256(f"{row.digest}:{why}".encode()).hexdigest()
    subject = str(row.instance_id)
    if not insert_job(session, JobKind.INGEST_CORRECTION, subject, digest, now=now):
        revive_ended(session, JobKind.INGEST_CORRECTION, subject, now=now, digest=digest)
    return digest


def _kept_rows(session: Session, case_id: str, *, seen: Collection[int]) -> list[CorrectionTable]:
    """Hold the corrections of a case that count, and make sure that the case was made from just them."""
    statement = select(CorrectionTable).where(
        col(CorrectionTable.case_id) == case_id, col(CorrectionTable.state) == CorrectionState.KEPT
    )
    rows = list(session.exec(statement.with_for_update()).all())
    if {row.id for row in rows} != set(seen):
        message = f"the corrections of case {case_id} changed while it was made"
        raise ResourceError(message)
    return rows


def _upsert(session: Session, job: Job, correction: CorrectionRecord, now: datetime) -> bool:
    """Write the row of a received file for the first time, or anew; answers whether it is new."""
    values = _values(job, correction, now)
    known = _row_of(session, correction.instance_id)
    if known is None:
        row = insert_new(session, CorrectionTable, values)
        if row is not None:  # else the same job again
            _add_scores(session, int(row[0]), correction.scores)
        return row is not None
    for name in values.keys() - _STAYS:
        setattr(known, name, values[name])
    session.add(known)
    session.exec(delete(CorrectionScoreTable).where(col(CorrectionScoreTable.correction_id) == known.id))
    _add_scores(session, int(known.id or 0), correction.scores)
    return False


_STAYS = frozenset({"digest", "decision", "decided_by", "created_at"})


def _row_of(session: Session, instance_id: int | None) -> CorrectionTable | None:
    if instance_id is None:
        return None
    statement = select(CorrectionTable).where(col(CorrectionTable.instance_id) == instance_id)
    return session.exec(statement.with_for_update()).first()


def _link_case(session: Session, case_id: str, series_uid: str, now: datetime) -> None:
    """Keep the one way from a case back to its series, and when the case was made last."""
    values = {"case_id": case_id, "series_instance_uid": series_uid, "created_at": now}
    if insert_new(session, CaseTable, values) is None:
        session.exec(update(CaseTable).where(col(CaseTable.case_id) == case_id).values(created_at=now))


def _values(job: Job, correction: CorrectionRecord, now: datetime) -> dict[str, object]:
    return {
        "digest": job.digest,
        "sop_instance_uid": correction.sop_instance_uid,
        "recognition": correction.recognition,
        "source_series_uid": correction.source_series_uid,
        "result_sop_uid": correction.result_sop_uid,
        "model_name": correction.model_name,
        "model_version": correction.model_version,
        "instance_id": correction.instance_id,
        "state": correction.state,
        "stack": correction.stack,
        "author": correction.author,
        "sender": correction.sender,
        "reasons_json": json.dumps(correction.reasons),
        "doubts_json": json.dumps(correction.doubts),
        "decision": correction.decision,
        "decided_by": correction.decided_by,
        "case_id": correction.case_id,
        "patient_key": correction.patient_key,
        "split": correction.split,
        "corrected_slices": correction.corrected_slices,
        "replaced": correction.replaced,
        "trained_in": correction.trained_in,
        "created_at": now,
    }


def _add_scores(session: Session, correction_id: int, scores: tuple[LabelScore, ...]) -> None:
    for position, score in enumerate(scores):
        session.add(
            CorrectionScoreTable(
                correction_id=correction_id,
                label=score.label,
                position=position,
                dice=score.dice,
                edited_slices_json=json.dumps(score.edited_slices),
                prediction_voxels=score.prediction_voxels,
                correction_voxels=score.correction_voxels,
                confidence=score.confidence,
            )
        )


def _record(session: Session, row: CorrectionTable) -> CorrectionRecord:
    scores = session.exec(
        select(CorrectionScoreTable)
        .where(col(CorrectionScoreTable.correction_id) == row.id)
        .order_by(col(CorrectionScoreTable.position))
    ).all()
    return CorrectionRecord(
        sop_instance_uid=SopInstanceUid(row.sop_instance_uid),
        recognition=Recognition(row.recognition),
        source_series_uid=None if row.source_series_uid is None else SeriesInstanceUid(row.source_series_uid),
        result_sop_uid=None if row.result_sop_uid is None else SopInstanceUid(row.result_sop_uid),
        model_name=row.model_name,
        model_version=None if row.model_version is None else ModelVersion(row.model_version),
        id=row.id,
        instance_id=row.instance_id,
        state=CorrectionState(row.state),
        stack=row.stack,
        scores=tuple(_score(score) for score in scores),
        doubts=tuple(json.loads(row.doubts_json)),
        decision=Decision(row.decision),
        decided_by=row.decided_by,
        author=row.author,
        sender=row.sender,
        reasons=tuple(json.loads(row.reasons_json)),
        case_id=row.case_id,
        patient_key=row.patient_key,
        split=None if row.split is None else Split(row.split),
        corrected_slices=row.corrected_slices,
        trained_in=None if row.trained_in is None else ModelVersion(row.trained_in),
        replaced=row.replaced,
        created_at=row.created_at,
    )


def _score(row: CorrectionScoreTable) -> LabelScore:
    return LabelScore(
        label=row.label,
        dice=row.dice,
        edited_slices=tuple(json.loads(row.edited_slices_json)),
        prediction_voxels=row.prediction_voxels,
        correction_voxels=row.correction_voxels,
        confidence=row.confidence,
    )
