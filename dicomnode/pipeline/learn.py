"""Learn from new corrections: train the version in use, judge the outcome, keep or refuse it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from time import monotonic

import highdicom as hd
import numpy as np

from dicomnode.casebook import Case
from dicomnode.domain import (
    Job,
    JobKind,
    ModelCard,
    ModelOrigin,
    ModelState,
    ModelVersion,
    Split,
    Verdict,
)
from dicomnode.errors import InputError
from dicomnode.ml.evaluation import gate, scores
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.ml.evaluation.scores import CaseScore
from dicomnode.ml.inference import engine
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.training import increment
from dicomnode.ml.training.fit import FitReport, TrainingDivergedError
from dicomnode.ml.training.increment import RECIPES
from dicomnode.ml.training.reviewed import TrainingCase
from dicomnode.pipeline.tools import Interrupted, Tools
from dicomnode.store.records import Judged, ModelRecord
from dicomnode.weights import Tensors

STATE_AFTER = {
    Verdict.ACCEPTED: ModelState.CANDIDATE,  # until it is promoted
    Verdict.REFUSED: ModelState.REFUSED,
    Verdict.INCONCLUSIVE: ModelState.INCONCLUSIVE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a training of one model would use now, and whether it is due."""

    model: str
    is_due: bool
    in_words: str
    case_ids: tuple[str, ...]
    digest: str  # of the version in use, the recipe and the cases: the same inputs are trained on once


def plan_training(model: str, tools: Tools) -> TrainingPlan:
    """Look at what is new since the last training of a model."""
    case_ids = tools.store.corrections.untrained_cases(model)
    slices = tools.store.corrections.untrained_slices(model)
    needed = tools.training.minimum_corrected_slices
    found = f"{slices} corrected slices in {len(case_ids)} training cases are new"
    return TrainingPlan(
        model=model,
        is_due=slices >= needed,
        in_words=f"{found}; {needed} are needed" if slices < needed else found,
        case_ids=case_ids,
        digest=_inputs_digest(model, case_ids, tools),
    )


def enqueue_if_due(model: str, tools: Tools) -> TrainingPlan:
    """Queue a training when enough is new; the same inputs are queued once."""
    plan = plan_training(model, tools)
    if plan.is_due:
        tools.store.jobs.enqueue(JobKind.TRAIN_INCREMENT, model, plan.digest, now=tools.now())
    return plan


def train_increment(job: Job, tools: Tools) -> None:
    """Train the version in use on its new cases, and put the outcome before the gate."""
    began = tools.now()
    current = tools.current_package(job.subject)
    case_ids = tools.store.corrections.untrained_cases(job.subject)
    if not case_ids:
        tools.store.jobs.finish(job, now=tools.now(), reason="nothing new to learn from")
        return
    tensors, fit = _fit(current, case_ids, job, tools)
    candidate = tools.shelf.add(current, tensors, card_text=_card_text(current, fit, began))
    report = judge(candidate, current, tools)
    judged = Judged(
        # A later promotion counts as learned what stood when the cases were read, not when this ended.
        record=replace(_record(candidate, current, report, fit, case_ids, tools), created_at=began),
        verdict=report.verdict,
        reason=report.reason,
        in_words=in_words(candidate.card.version, report),
        cases_read_at=began,
    )
    tools.store.models.conclude(job, judged, now=tools.now())


def judge(candidate: ModelPackage, current: ModelPackage, tools: Tools) -> GateReport:
    """Compare a candidate with the version in use on this site's hold-out cases."""
    held_out = [
        tools.casebook.read(info.case_id)
        for info in tools.casebook.cases(model_name=current.card.name, split=Split.HOLD_OUT)
    ]
    return gate.gate(
        _scores(current, held_out, tools),
        _scores(candidate, held_out, tools),
        epsilon_dice=tools.training.epsilon_dice,
        minimum_cases=tools.training.minimum_hold_out_cases,
        unchanged=candidate.card.weights_sha256 == current.card.weights_sha256,
        generator=np.random.default_rng(int(candidate.card.weights_sha256[:8], 16)),
    )


def in_words(version: ModelVersion, report: GateReport) -> str:
    """Say what became of a candidate."""
    return f"{version} {report.verdict}: {report.reason}"


def training_case(case: Case, card: ModelCard) -> TrainingCase:
    """A case of the casebook as the training takes it: a weight for every label of the model."""
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


def _fit(current: ModelPackage, case_ids: Sequence[str], job: Job, tools: Tools) -> tuple[Tensors, FitReport]:
    """Train, and step back when a study waits, when the process ends or when the time is used up."""
    budget_s, began = tools.training.time_budget_s, monotonic()
    try:
        tensors, fit = increment.train_increment(
            current,
            [training_case(tools.casebook.read(case_id), current.card) for case_id in case_ids],
            RECIPES[tools.training.recipe],
            seed=int(job.digest[:8], 16),
            should_stop=lambda: monotonic() - began > budget_s or tools.must_yield(),
            progress=lambda epoch, epochs, _loss, _s: tools.progress("training", epoch, epochs),
            device=tools.shelf.device,
        )
    except TrainingDivergedError as error:
        raise InputError(
            f"training of {current.card.version} on {len(case_ids)} cases came to nothing: {error} "
            f"The version in use stays; look at the newest corrections, or choose another training.recipe"
        ) from error
    if fit.stopped and monotonic() - began > budget_s:
        raise InputError(
            f"training of {current.card.version} on {len(case_ids)} cases took longer than "
            f"training.time_budget_s = {budget_s:g}; nothing of it was kept: allow more, then retry the job"
        )
    if fit.stopped:
        raise Interrupted("a study waits, or the process ends")
    return tensors, fit


def _scores(package: ModelPackage, cases: Sequence[Case], tools: Tools) -> list[CaseScore]:
    model = tools.shelf.loaded(package.card.version)
    return [_score(model, case) for case in cases]


def _score(model: engine.LoadedModel, case: Case) -> CaseScore:
    image = hd.Volume(array=case.image, affine=case.affine, coordinate_system="PATIENT")
    return scores.score_case(
        case.case_id,
        engine.predict(model, image).array,
        case.labels,
        segments=[segment for segment in model.card.segments if segment.label in case.labels_known],
        spacing_mm=image.spacing,
    )


def _inputs_digest(model: str, case_ids: Sequence[str], tools: Tools) -> str:
    """Digest of everything that decides the outcome of a training."""
    wanted = set(case_ids)
    infos = tools.casebook.cases(model_name=model, split=Split.TRAINING)
    parts: list[str] = [tools.current_record(model).version, tools.training.recipe]
    parts += sorted(info.arrays_sha256 for info in infos if info.case_id in wanted)
    return sha256("\n".join(parts).encode()).hexdigest()


def _record(
    candidate: ModelPackage,
    current: ModelPackage,
    report: GateReport,
    fit: FitReport,
    case_ids: Sequence[str],
    tools: Tools,
) -> ModelRecord:
    return ModelRecord(
        version=candidate.card.version,
        name=candidate.card.name,
        origin=ModelOrigin.TRAINED,
        state=STATE_AFTER[report.verdict],
        folder=str(candidate.folder),
        weights_sha256=candidate.card.weights_sha256,
        created_at=tools.now(),
        parent=current.card.version,
        recipe=tools.training.recipe,
        gate_report_json=report.to_json(),
        case_ids=tuple(case_ids),
        steps=fit.steps,
        epochs=fit.epochs,
    )


def _card_text(parent: ModelPackage, fit: FitReport, began: datetime) -> str:
    """Card of a version trained here: the figures of the training, then the card that it descends from."""
    made = (
        f"# {parent.card.name}, trained further at this site\n\n"
        f"Parent: {parent.card.version}. Made {began:%Y-%m-%d} UTC from {fit.n_slices} reviewed slices of "
        f"{fit.n_patients} patients, in {fit.epochs} epochs and {fit.steps} steps "
        f"(loss {fit.losses[0]:.4f} to {fit.losses[-1]:.4f}).\n\n"
        f"The card of the parent follows; its figures are the parent's.\n\n---\n\n"
    )
    ancestors = (parent.folder / "card.md").read_text(encoding="utf-8")
    return made + ancestors.rpartition("\n---\n\n")[2]
