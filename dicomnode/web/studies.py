"""The studies of a node as JSON: UIDs, states and reasons; no name, patient identifier or date of birth."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dicomnode.domain import ModelVersion, SeriesInstanceUid, SeriesState, StudyInstanceUid
from dicomnode.store.records import SeriesRow


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """One series and where it stands."""

    series_instance_uid: SeriesInstanceUid
    modality: str
    instances: int
    state: SeriesState
    reason: str  # why it was set aside
    sender: str  # AE title
    received_at: datetime
    updated_at: datetime
    model_version: ModelVersion | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """One study with those of its series that were asked for."""

    study_instance_uid: StudyInstanceUid
    series: tuple[SeriesView, ...]


def group(rows: Sequence[SeriesRow]) -> list[StudyView]:
    """Gather series under their studies, both in the order of the rows."""
    studies: dict[StudyInstanceUid, list[SeriesView]] = {}
    for row in rows:
        studies.setdefault(row.study_instance_uid, []).append(_view(row))
    return [StudyView(study_instance_uid=uid, series=tuple(series)) for uid, series in studies.items()]


def _view(row: SeriesRow) -> SeriesView:
    return SeriesView(
        series_instance_uid=row.series_instance_uid,
        modality=row.modality,
        instances=row.instances,
        state=row.state,
        reason=row.reason,
        sender=row.sender,
        received_at=row.received_at,
        updated_at=row.updated_at,
        model_version=row.model_version,
    )
