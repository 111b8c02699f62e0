"""Corrections as a person looks at them and decides: figures, a picture, and what is done then."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicomnode.domain import Decision, LabelScore
from dicomnode.errors import CorrectionError
from dicomnode.imaging.corrections import comparison
from dicomnode.pipeline import cases, picture
from dicomnode.pipeline.reading import Judged, Reading
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import CorrectionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReview:
    """One label of a correction beside our prediction."""

    label: str
    dice: float
    confidence: float
    prediction_ml: float
    correction_ml: float
    edited_slices: tuple[int, ...]  # indices along the stack, from 0 in the direction of its normal
    accepted_slices: tuple[int, ...]  # seen and left as they were
    unknown_slices: int

    @property
    def change(self) -> float | None:
        """Change of volume in parts of the prediction; None where nothing was predicted."""
        return self.correction_ml / self.prediction_ml - 1 if self.prediction_ml else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A correction, its labels and where its picture is."""

    record: CorrectionRecord
    labels: tuple[LabelReview, ...]
    not_learned: tuple[str, ...]  # segments that are no label of the model
    picture: Path


def look(correction_id: int, tools: Tools, *, picture_path: Path | None = None) -> Review:
    """Read a correction again, compare it and draw it.

    Raises
    ------
    CorrectionError
        There is no such correction.
    InputError
        Its file or its images are gone.
    """
    record = get(correction_id, tools)
    reading, judged = cases.read_again(record, tools)
    path = picture_path or picture.path_of(record.instance_id or 0, tools.pictures)
    picture.keep(reading, judged, path)
    return Review(
        record=record,
        labels=_labels(reading, judged, tools),
        not_learned=judged.decoded.unmapped_labels,
        picture=path,
    )


def accept(correction_id: int, tools: Tools, *, by: str, mirrored: bool = False) -> str:
    """Let a correction in quarantine count; gives the digest of the job that reads it.

    Parameters
    ----------
    mirrored
        Its slices are in reverse order: they are turned.
    """
    decision = Decision.MIRRORED if mirrored else Decision.AS_READ
    with tools.casebook.turn():
        return tools.store.corrections.decide(correction_id, decision, by=by, now=tools.now())


def refuse(correction_id: int, tools: Tools, *, by: str) -> None:
    """Let a correction in quarantine never count; not while it is being read."""
    with tools.casebook.turn():
        tools.store.corrections.refuse(correction_id, by=by, now=tools.now())


def withdraw(correction_id: int, tools: Tools, *, by: str) -> str:
    """Take a correction back that was kept; gives the digest of the job that makes its case anew."""
    with tools.casebook.turn():
        return tools.store.corrections.withdraw(correction_id, by=by, now=tools.now())


def get(correction_id: int, tools: Tools) -> CorrectionRecord:
    """Look a correction up.

    Raises
    ------
    CorrectionError
        There is none of this number.
    """
    record = tools.store.corrections.get(correction_id)
    if record is None:
        raise CorrectionError(f"there is no correction {correction_id}; see `dicomnode corrections list`")
    return record


def _labels(reading: Reading, judged: Judged, tools: Tools) -> tuple[LabelReview, ...]:
    said = cases.spoken_of(reading, judged, tools)
    scores = comparison.compare(judged.prediction, said, reading.card)
    spoken = {one.label: one.weights for one in comparison.spoken(judged.prediction, said, reading.card)}
    voxel_ml = float(np.prod(reading.stack.grid.spacing_mm)) / 1000.0
    return tuple(_label(score, spoken[score.label] > 0, voxel_ml) for score in scores)


def _label(score: LabelScore, reviewed: np.ndarray, voxel_ml: float) -> LabelReview:
    edited = set(score.edited_slices)
    accepted = tuple(index for index in np.flatnonzero(reviewed).tolist() if index not in edited)
    return LabelReview(
        label=score.label,
        dice=score.dice,
        confidence=score.confidence,
        prediction_ml=score.prediction_voxels * voxel_ml,
        correction_ml=score.correction_voxels * voxel_ml,
        edited_slices=score.edited_slices,
        accepted_slices=accepted,
        unknown_slices=len(reviewed) - len(accepted) - len(edited),
    )
