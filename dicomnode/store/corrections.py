"""Received segmentations: what each turned out to be, and which of them were trained on."""

import json
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, func
from sqlmodel import Session, col, select, update

from dicomnode.domain import (
    CorrectionState,
    Decision,
    Job,
    JobState,
    LabelScore,
    ModelVersion,
    Recognition,
    SeriesInstanceUid,
    SopInstanceUid,
    Split,
)
from dicomnode.store.database import Database, insert_new
from dicomnode.store.leases import end_job
from dicomnode.store.records import CorrectionRecord
from dicomnode.store.tables import CaseTable, CorrectionScoreTable, CorrectionTable


class CorrectionRows:
    """One row for each received segmentation that was read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, job: Job, correction: CorrectionRecord, *, now: datetime) -> None:
        """Keep what was found, in one transaction with the end of the job that found it.

        A training case that an earlier correction of the same series made is replaced. A repeat adds nothing.

        Raises
        ------
        LeaseLostError
            Another worker holds the job by now; nothing was recorded.
        """
        with self._database.writing() as session:
            end_job(session, job, JobState.DONE, now=now)
            if correction.case_id is not None:
                _replace_earlier(session, correction, now)
            row = insert_new(session, CorrectionTable, _values(job, correction, now))
            if row is not None:
                _add_scores(session, int(row[0]), correction.scores)

    def list(self, *, limit: int = 100) -> tuple[CorrectionRecord, ...]:
        """Read the newest corrections, newest first."""
        statement = select(CorrectionTable).order_by(col(CorrectionTable.id).desc()).limit(limit)
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
            return tuple(case_id for case_id in session.exec(statement) if case_id is not None)

    def patients(self, model_name: str) -> int:
        """Count the different training patients among the cases of a model."""
        statement = select(func.count(func.distinct(col(CorrectionTable.patient_key)))).where(
            col(CorrectionTable.model_name) == model_name,
            col(CorrectionTable.case_id).is_not(None),
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
            When the cases were read; a correction that came later stays untrained.

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
        ~col(CorrectionTable.replaced),
    )
    if recorded_before is not None:
        statement = statement.where(col(CorrectionTable.created_at) <= recorded_before)
    return int(session.exec(statement.values(trained_in=model_version)).rowcount)


def _untrained(model_name: str) -> tuple[ColumnElement[bool], ...]:
    return (
        col(CorrectionTable.model_name) == model_name,
        col(CorrectionTable.case_id).is_not(None),
        col(CorrectionTable.split) == Split.TRAINING,
        col(CorrectionTable.trained_in).is_(None),
        ~col(CorrectionTable.replaced),
    )


def _replace_earlier(session: Session, correction: CorrectionRecord, now: datetime) -> None:
    """Let the newest correction stand for its training case, and link the case to its series."""
    session.exec(
        update(CorrectionTable)
        .where(col(CorrectionTable.case_id) == correction.case_id)
        .values(replaced=True)
    )
    values = {
        "case_id": correction.case_id,
        "series_instance_uid": correction.source_series_uid or "",
        "created_at": now,
    }
    insert_new(session, CaseTable, values)


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
        "replaced": False,
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
