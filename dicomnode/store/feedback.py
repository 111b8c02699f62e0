"""What the readers made of our results, label by label.

Corrections count that are kept, or were until their case gave its place to others; those that a person has to
look at first, refused or withdrew do not.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Integer, and_, case, func, literal_column
from sqlalchemy import select as select_columns
from sqlalchemy.engine import Row
from sqlalchemy.orm import Mapped
from sqlmodel import Session, col, select

from dicomnode.domain import CorrectionState, ModelVersion, Recognition, SopInstanceUid
from dicomnode.store.audit import add_entry
from dicomnode.store.database import Database
from dicomnode.store.records import ResultCount, Review, VersionInUse
from dicomnode.store.tables import (
    AuditTable,
    CorrectionScoreTable,
    CorrectionTable,
    ModelSwitchTable,
    ModelTable,
    ResultLabelTable,
    ResultObjectTable,
    ResultTable,
)

DRIFT_ALARM = "drift_alarm"
NEWEST = 100
"""Corrections of each label that are read of a version that is no longer in use."""
_COUNT = (CorrectionState.KEPT, CorrectionState.RETIRED)
_NO_SLICES = "[]"  # as the score of a label without edited slices has it
_REVIEW_COLUMNS: tuple[Any, ...] = (
    col(CorrectionTable.id).label("correction_id"),
    func.row_number()
    .over(partition_by=col(CorrectionScoreTable.label), order_by=col(CorrectionTable.id).desc())
    .label("age"),
    col(ResultTable.sop_instance_uid),
    col(ResultTable.model_version),
    col(ResultTable.created_at).label("result_at"),
    col(ResultTable.superseded),
    col(ModelTable.name),
    col(ResultLabelTable.position),
    col(CorrectionTable.recognition),
    col(CorrectionTable.created_at).label("at"),
    col(CorrectionScoreTable.label),
    col(CorrectionScoreTable.dice),
    col(CorrectionScoreTable.edited_slices_json),
    col(CorrectionScoreTable.prediction_voxels),
    col(CorrectionScoreTable.correction_voxels),
)


class FeedbackRows:
    """Results beside the last kept correction of each; nothing here changes either.

    A correction goes back to a result by any of its objects. One that goes back to none (a drawing of a
    reader's own) says nothing of a result and is left out.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def results(self, starts: Sequence[datetime], *, model_name: str | None = None) -> list[ResultCount]:
        """Count the results that stand by model, label and period, a period without any left out.

        Parameters
        ----------
        starts
            Of the periods, ascending; the last one is open.
        """
        period = _period(col(ResultTable.created_at), starts)
        statement = (
            select_columns(
                col(ModelTable.name),
                col(ResultLabelTable.label),
                func.min(col(ResultLabelTable.position)),
                period.label("period"),
                func.count(),
            )
            .join(ResultTable, col(ResultTable.sop_instance_uid) == col(ResultLabelTable.result_sop_uid))
            .join(ModelTable, col(ModelTable.version) == col(ResultTable.model_version))
            .where(col(ResultTable.created_at) >= starts[0], ~col(ResultTable.superseded))
            .where(*_of_model(model_name))
            .group_by(col(ModelTable.name), col(ResultLabelTable.label), literal_column("period"))
        )
        with self._database.reading() as session:
            return [
                ResultCount(model_name=name, label=label, position=position, period=number, results=count)
                for name, label, position, number, count in session.connection().execute(statement)
            ]

    def reviews(self, *, since: datetime, model_name: str | None = None) -> list[Review]:
        """Read the reviews that came in since then, oldest first; a result has one for each label."""
        with self._database.reading() as session:
            return _reviews(session, col(CorrectionTable.created_at) >= since, *_of_model(model_name))

    def version_in_use(self, model_name: str) -> VersionInUse | None:
        """Read what the readers made of the version in use since it was put into use; None without one."""
        with self._database.reading() as session:
            switch = session.exec(
                select(ModelSwitchTable)
                .where(col(ModelSwitchTable.name) == model_name)
                .order_by(col(ModelSwitchTable.id).desc())
                .limit(1)
            ).first()
            if switch is None:
                return None
            of_result = col(ResultTable.model_version)
            reviews = _reviews(session, of_result == switch.version, col(ResultTable.created_at) >= switch.at)
            came_before = col(CorrectionTable.created_at) < switch.at
            before = _reviews(session, of_result == switch.previous, came_before, newest=NEWEST)
            return VersionInUse(
                version=ModelVersion(switch.version),
                since=switch.at,
                previous=None if switch.previous is None else ModelVersion(switch.previous),
                labels=_labels(session, switch.version),
                reviews=tuple(reviews),
                before=tuple(before),
            )

    def note_alarm(
        self, version: ModelVersion, label: str, detail: str, *, in_use_since: datetime, now: datetime
    ) -> bool:
        """Put an alarm into the audit log unless it stands there since the version was put into use.

        Returns
        -------
            True for the one caller that made the entry, however many try at once.
        """
        subject = f"{version} {label}"
        noted = select(AuditTable.id).where(
            col(AuditTable.event) == DRIFT_ALARM,
            col(AuditTable.subject) == subject,
            col(AuditTable.at) >= in_use_since,
        )
        turn = select(ModelTable.version).where(col(ModelTable.version) == version).with_for_update()
        with self._database.writing() as session:
            session.exec(turn).all()
            if session.exec(noted).first() is not None:
                return False
            add_entry(session, DRIFT_ALARM, subject, detail, now)
            return True


def _period(moment: Mapped[datetime], starts: Sequence[datetime]) -> ColumnElement[int]:
    """The index of the period that a moment lies in; both kinds of database agree on no other way."""
    whens = [(moment < later, number) for number, later in enumerate(starts[1:])]
    last = literal_column(str(len(starts) - 1), Integer)
    return case(*whens, else_=last) if whens else last


def _of_model(model_name: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if model_name is None else (col(ModelTable.name) == model_name,)


def _reviews(session: Session, *conditions: ColumnElement[bool], newest: int | None = None) -> list[Review]:
    """The last review of each label of each result that fits, in the order in which they came.

    With `newest`, only so many corrections are read for each label.
    """
    object_of_result = col(ResultObjectTable.sop_instance_uid) == col(CorrectionTable.result_sop_uid)
    label_of_result = and_(
        col(ResultLabelTable.result_sop_uid) == col(ResultTable.sop_instance_uid),
        col(ResultLabelTable.label) == col(CorrectionScoreTable.label),
    )
    found = (
        select_columns(*_REVIEW_COLUMNS)
        .select_from(CorrectionTable)
        .join(CorrectionScoreTable, col(CorrectionScoreTable.correction_id) == col(CorrectionTable.id))
        .join(ResultObjectTable, object_of_result)
        .join(ResultTable, col(ResultTable.sop_instance_uid) == col(ResultObjectTable.result_sop_uid))
        .join(ResultLabelTable, label_of_result)
        .join(ModelTable, col(ModelTable.version) == col(ResultTable.model_version))
        .where(col(CorrectionTable.state).in_(_COUNT), *conditions)
        .subquery()
    )
    statement = select_columns(found).order_by(found.c.correction_id, found.c.position)
    if newest is not None:
        statement = statement.where(found.c.age <= newest)
    last: dict[tuple[str, str], Review] = {}
    for row in session.connection().execute(statement):
        review = _review(row)
        key = (review.result_sop_uid, review.label)
        last.pop(key, None)  # the review stands where its last word came in
        last[key] = review
    return list(last.values())


def _review(row: Row[Any]) -> Review:
    is_unchanged = row.recognition == Recognition.ACCEPTED_UNCHANGED
    return Review(
        result_sop_uid=SopInstanceUid(row.sop_instance_uid),
        model_name=row.name,
        model_version=ModelVersion(row.model_version),
        label=row.label,
        position=row.position,
        result_at=row.result_at,
        result_stands=not row.superseded,
        at=row.at,
        dice=1.0 if is_unchanged else row.dice,
        is_corrected=not is_unchanged and row.edited_slices_json != _NO_SLICES,
        prediction_voxels=row.prediction_voxels,
        correction_voxels=row.correction_voxels,
    )


def _labels(session: Session, version: str) -> tuple[str, ...]:
    """The labels that the version looks for, as its latest result lists them."""
    latest = (
        select(ResultTable.sop_instance_uid)
        .where(col(ResultTable.model_version) == version)
        .order_by(col(ResultTable.id).desc())
        .limit(1)
        .scalar_subquery()
    )
    statement = (
        select(ResultLabelTable.label)
        .where(col(ResultLabelTable.result_sop_uid) == latest)
        .order_by(col(ResultLabelTable.position))
    )
    return tuple(session.exec(statement))
