"""How far each case is believed: what is probably a mistake teaches less, or nothing, and is named.

What a correction looks like beside the result of the version in use is measured once for each state of a
case, and kept at ``runs/<model>/figures``: an old case is judged by the model that it corrected, not by one
that has learned from it since.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from dicomnode import durable
from dicomnode.casebook import Case, CaseInfo
from dicomnode.domain import ModelCard, ModelVersion, Sha256
from dicomnode.ml.evaluation import disagreement, suspicion
from dicomnode.ml.evaluation.disagreement import CaseFigures, SuspectCase
from dicomnode.ml.evaluation.suspicion import Suspicion
from dicomnode.ml.inference import engine
from dicomnode.ml.training.reviewed import TrainingCase
from dicomnode.pipeline.tools import Interrupted, Tools

BELIEVED = 0.5
"""A hold-out case with less weight judges no candidate."""

log = structlog.get_logger()


class _Kept(BaseModel):
    """``figures/<case id>.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arrays_sha256: Sha256
    version: ModelVersion  # whose result the correction was compared with
    figures: CaseFigures


def suspicions(model: str, tools: Tools) -> dict[str, Suspicion]:
    """Judge every case of a model, of training and of hold-out, against what is usual among all of them.

    Raises
    ------
    Interrupted
        A study waits, or the process ends; what was measured so far is kept.
    """
    infos = tools.casebook.cases(model_name=model)
    figures = {info.case_id: _figures(info, tools) for info in infos}
    usual = suspicion.references_of(figures.values())
    return {name: suspicion.judge(name, found, references=usual) for name, found in figures.items()}


def tell(found: Iterable[Suspicion]) -> None:
    """Log each case that is not fully believed, with the reasons."""
    for one in found:
        if one.reasons:
            log.warning("correction doubted", case=one.case_id, weight=round(one.weight, 2), why=one.reasons)


def in_words(found: Sequence[Suspicion]) -> str:
    """Say how many of these cases are doubted; empty where all are believed."""
    doubted = [one for one in found if one.reasons]
    if not doubted:
        return ""
    left_out = sum(one.weight <= 0 for one in doubted)
    verb = "is" if len(doubted) == 1 else "are"
    return f"{len(doubted)} of {len(found)} cases {verb} doubted, {left_out} of them left out"


def training_case(case: Case, card: ModelCard) -> TrainingCase:
    """Make a case of the casebook one that training takes: a weight for every label of the model."""
    weights = np.zeros((len(card.segments), case.image.shape[0]), np.float32)
    rows = {segment.label: segment.class_index - 1 for segment in card.segments}
    for label, reviewed in zip(case.labels_known, case.reviewed, strict=True):
        if label in rows:
            weights[rows[label]] = reviewed
    return TrainingCase(
        image=case.image,
        affine=case.affine,
        labels=case.labels,
        slice_weights=weights,
        patient_key=case.patient_key,
    )


def volume_of(case: Case) -> hd.Volume:
    """Give the image of a case in the patient's frame."""
    return hd.Volume(array=case.image, affine=case.affine, coordinate_system="PATIENT")


def _figures(info: CaseInfo, tools: Tools) -> CaseFigures:
    path = tools.runs / info.model_name / "figures" / f"{info.case_id}.json"
    kept = _read(path)
    if kept is not None and kept.arrays_sha256 == info.arrays_sha256:
        return kept.figures
    if tools.must_yield():
        raise Interrupted("a study waits, or the process ends, while corrections are looked at")
    model = tools.current_model(info.model_name)
    case = tools.casebook.read(info.case_id)
    found = _measure(case, model)
    kept = _Kept(arrays_sha256=info.arrays_sha256, version=model.card.version, figures=found)
    with durable.translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    durable.keep(path, kept.model_dump_json().encode(), mode=durable.PRIVATE)
    return found


def _read(path: Path) -> _Kept | None:
    """Read what was measured; None where nothing was, or where it was written by another program."""
    try:
        return _Kept.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _measure(case: Case, model: engine.LoadedModel) -> CaseFigures:
    image = volume_of(case)
    spacing = image.spacing
    return disagreement.measure(
        SuspectCase(
            case_id=case.case_id,
            image=case.image,
            correction=case.labels,
            prediction=engine.predict(model, image).array,
            slice_weights=training_case(case, model.card).slice_weights,
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
        )
    )
