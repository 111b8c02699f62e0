"""Learn from new corrections: train the version in use, judge the outcome, keep or refuse it."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic

from pydantic import BaseModel, ConfigDict, ValidationError

from dicomnode import durable
from dicomnode.casebook import CaseInfo
from dicomnode.domain import (
    Job,
    JobKind,
    JobPriority,
    ModelCard,
    ModelOrigin,
    ModelState,
    ModelVersion,
    Sha256,
    Split,
    Verdict,
)
from dicomnode.errors import InputError
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.ml.evaluation.suspicion import Suspicion
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.training import increment
from dicomnode.ml.training.course import Moment
from dicomnode.ml.training.fit import FitReport, TrainingDivergedError
from dicomnode.ml.training.increment import Lesson, Place
from dicomnode.ml.training.lessons import CaseSource
from dicomnode.ml.training.recipes import RECIPES
from dicomnode.pipeline import curves, judging, trust
from dicomnode.pipeline.provenance import with_provenance
from dicomnode.pipeline.tools import Interrupted, Tools
from dicomnode.store.records import Judged, ModelRecord
from dicomnode.weights import Tensors

STATE_AFTER = {
    Verdict.ACCEPTED: ModelState.CANDIDATE,  # until it is promoted
    Verdict.REFUSED: ModelState.REFUSED,
    Verdict.INCONCLUSIVE: ModelState.INCONCLUSIVE,
}
CURVES_FILE = "curves.png"
TRUST_FILE = "trust.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a training of one model would use now, and whether it is due."""

    model: str
    is_due: bool
    in_words: str
    case_ids: tuple[str, ...]
    digest: str  # of the version in use, the recipe and the cases: the same inputs are trained on once


class _Order(BaseModel):
    """``order.json``: what a training began with, so that it goes on with the same after a break."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    began: datetime
    case_ids: tuple[str, ...]


def plan_training(model: str, tools: Tools) -> TrainingPlan:
    """Look at what is new since the last training of a model."""
    case_ids = tools.store.corrections.untrained_cases(model)
    slices = tools.store.corrections.untrained_slices(model)
    patients = tools.store.corrections.patients(model)
    found = f"{slices} corrected slices in {len(case_ids)} training cases are new"
    lacking = _lacking(slices, len(case_ids), patients, tools)
    return TrainingPlan(
        model=model,
        is_due=not lacking,
        in_words=f"{found}; {lacking}" if lacking else found,
        case_ids=case_ids,
        digest=_inputs_digest(model, case_ids, tools),
    )


def enqueue_if_due(model: str, tools: Tools, *, is_wish: bool = False) -> TrainingPlan:
    """Queue a training when enough is new; the same inputs are queued once.

    Parameters
    ----------
    is_wish
        Of a person: it waits for no window and has no time limit.
    """
    plan = plan_training(model, tools)
    if plan.is_due:
        priority = JobPriority.FORCED if is_wish else JobPriority.ROUTINE
        tools.store.jobs.enqueue(
            JobKind.TRAIN_INCREMENT, model, plan.digest, now=tools.now(), priority=priority
        )
    return plan


def train_increment(job: Job, tools: Tools) -> None:
    """Train the version in use on its new cases, and put the outcome before the gate.

    Raises
    ------
    Interrupted
        The window is closed, the time is used up, a study waits or the process ends. What was done is kept.
    """
    _wait_for_window(job, tools)
    current = tools.current_package(job.subject)
    order = _order(job, tools)
    if not order.case_ids:
        tools.store.jobs.finish(job, now=tools.now(), reason="nothing new to learn from")
        return
    doubts = trust.suspicions(job.subject, tools)
    looked_at = [doubts[case_id] for case_id in order.case_ids]
    _note_trust(looked_at, job, tools)
    if all(one.weight <= 0 for one in looked_at):
        reason = (
            f"nothing to learn from: {trust.in_words(looked_at)}; {TRUST_FILE} in the run folder says why"
        )
        tools.store.jobs.finish(job, now=tools.now(), reason=reason)
        return
    lesson = _lesson(current, order, doubts, job, tools)
    tensors, fit = _fit(lesson, job, tools)
    candidate = tools.shelf.add(current, tensors, card_text=_card_text(current, fit, looked_at, order.began))
    _conclude(job, order, candidate, (lesson, fit, looked_at), tools)


def run_folder(job_digest: str, model: str, tools: Tools) -> Path:
    """Where a training is kept while it goes on, and its curves afterwards."""
    return tools.runs / model / job_digest[:16]


def in_words(version: ModelVersion, report: GateReport) -> str:
    """Say what became of a candidate."""
    return f"{version} {report.verdict}: {report.reason}"


def _conclude(
    job: Job,
    order: _Order,
    candidate: ModelPackage,
    training: tuple[Lesson, FitReport, Sequence[Suspicion]],
    tools: Tools,
) -> None:
    """Put a candidate before the gate, record all of it, and throw away what only the training needed."""
    lesson, fit, looked_at = training
    current, folder = lesson.package, run_folder(job.digest, job.subject, tools)
    report = judging.judge(candidate, current, tools)
    shown = (*lesson.new, *(lesson.earlier if lesson.recipe.repeats else ()))
    record = with_provenance(
        _record(candidate, lesson, report, fit, order),
        tools,
        recipe=lesson.recipe.in_json() | {"trust": {d.case_id: d.weight for d in looked_at if d.reasons}},
        cases={one.name: Sha256(one.version) for one in shown if one.trust > 0},
        run_folder=folder,
    )
    parts = (in_words(candidate.card.version, report), _of_training(fit), trust.in_words(looked_at))
    judged = Judged(
        record=record,
        verdict=report.verdict,
        reason=report.reason,
        in_words="; ".join(part for part in parts if part),
        cases_read_at=order.began,
    )
    tools.store.models.conclude(job, judged, now=tools.now())
    shutil.rmtree(folder / increment.CASES_FOLDER, ignore_errors=True)
    increment.forget(folder)


def _lacking(slices: int, cases: int, patients: int, tools: Tools) -> str:
    """Say what a training still waits for; empty: nothing."""
    needed = tools.training
    if not cases:
        return "nothing to learn from"
    if slices < needed.minimum_corrected_slices and cases < needed.minimum_new_cases:
        return f"{needed.minimum_corrected_slices} slices or {needed.minimum_new_cases} cases are needed"
    if patients < needed.minimum_patients:
        return f"they and those before are of {patients} patients; {needed.minimum_patients} are needed"
    return ""


def _wait_for_window(job: Job, tools: Tools) -> None:
    """Put a training off until its window opens, unless a person asked for it."""
    if job.priority < JobPriority.FORCED and not tools.training.is_open(tools.now().astimezone()):
        raise _until_next_window("the training window is closed", tools)


def _until_next_window(why: str, tools: Tools) -> Interrupted:
    opening = tools.training.next_opening(tools.now().astimezone())
    return Interrupted(
        f"{why}; it goes on at {opening:%A %H:%M}", until=opening.astimezone(tools.now().tzinfo)
    )


def _order(job: Job, tools: Tools) -> _Order:
    """Give what the training began with, but for cases that were withdrawn since; begin it if it has not."""
    path = run_folder(job.digest, job.subject, tools) / "order.json"
    new = tools.store.corrections.untrained_cases(job.subject)
    try:
        begun = _Order.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        begun = _Order(began=tools.now(), case_ids=new)
        with durable.translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        durable.keep(path, begun.model_dump_json().encode(), mode=durable.PRIVATE)
    return _Order(began=begun.began, case_ids=tuple(name for name in begun.case_ids if name in set(new)))


def _note_trust(looked_at: Sequence[Suspicion], job: Job, tools: Tools) -> None:
    """Say which corrections are doubted, in the log and in the run folder."""
    trust.tell(looked_at)
    found = {one.case_id: {"weight": one.weight, "reasons": one.reasons} for one in looked_at}
    path = run_folder(job.digest, job.subject, tools) / TRUST_FILE
    durable.keep(path, json.dumps(found, indent=1).encode(), mode=durable.PRIVATE)


def _fit(lesson: Lesson, job: Job, tools: Tools) -> tuple[Tensors, FitReport]:
    """Train, and step back when a study waits, the process ends, the window closes or the time is used up."""
    folder = run_folder(job.digest, job.subject, tools)
    why_pause = _pauses(job, tools)
    try:
        tensors, fit = increment.train_increment(
            lesson,
            Place(folder=folder, device=tools.shelf.device),
            should_stop=lambda: bool(why_pause()) or tools.must_yield(),
            watch=partial(_watch, lesson.package.card.name, folder, tools),
        )
    except TrainingDivergedError as error:
        raise InputError(
            f"training of {lesson.package.card.version} on {len(lesson.new)} cases came to nothing: {error} "
            f"The version in use stays; look at the newest corrections, or choose another training.recipe"
        ) from error
    if fit.stopped and (why := why_pause()):
        raise _until_next_window(f"{fit.steps} steps are done and {why}", tools)
    if fit.stopped:
        raise Interrupted(f"a study waits, or the process ends; {fit.steps} steps are done and kept")
    return tensors, fit


def _pauses(job: Job, tools: Tools) -> Callable[[], str]:
    """Make the question why a training has to pause until the next window; empty: it has not."""
    began, settings = monotonic(), tools.training
    if job.priority >= JobPriority.FORCED:
        return lambda: ""

    def why() -> str:
        if monotonic() - began > settings.time_budget_s:
            return f"training.time_budget_s = {settings.time_budget_s:g} is used up"
        return "" if settings.is_open(tools.now().astimezone()) else "the training window is closed"

    return why


def _lesson(
    current: ModelPackage, order: _Order, doubts: Mapping[str, Suspicion], job: Job, tools: Tools
) -> Lesson:
    """Put together what is to be learned; all other training cases of this site count as learned before."""
    infos = tools.casebook.cases(model_name=current.card.name, split=Split.TRAINING)
    wanted, waiting = set(order.case_ids), set(tools.store.corrections.untrained_cases(job.subject))
    sources = {
        info.case_id: _source(info, current.card, tools, weight=doubts[info.case_id].weight)
        for info in infos
        if info.case_id in doubts
    }
    return Lesson(
        package=current,
        new=tuple(source for name, source in sources.items() if name in wanted),
        earlier=tuple(source for name, source in sources.items() if name not in wanted | waiting),
        recipe=RECIPES[tools.training.recipe],
        seed=int(job.digest[:8], 16),
    )


def _source(info: CaseInfo, card: ModelCard, tools: Tools, *, weight: float) -> CaseSource:
    return CaseSource(
        name=info.case_id,
        version=info.arrays_sha256,
        read=lambda: trust.training_case(tools.casebook.read(info.case_id), card),
        trust=weight,
    )


def _watch(name: str, folder: Path, tools: Tools, moment: Moment) -> None:
    """Say how far the training is, and draw its curves after each epoch."""
    tools.progress("training", round(1000 * moment.share), 1000)
    if moment.is_epoch_end:
        picture = curves.draw(name, moment.history, dice_title=curves.OF_TRAINING)
        durable.keep(folder / CURVES_FILE, curves.as_png(picture), mode=durable.PRIVATE)


def _inputs_digest(model: str, case_ids: Sequence[str], tools: Tools) -> str:
    """Digest of everything that decides the outcome of a training."""
    wanted = set(case_ids)
    infos = tools.casebook.cases(model_name=model, split=Split.TRAINING)
    parts: list[str] = [tools.current_record(model).version, tools.training.recipe]
    parts += sorted(info.arrays_sha256 for info in infos if info.case_id in wanted)
    return sha256("\n".join(parts).encode()).hexdigest()


def _record(
    candidate: ModelPackage, lesson: Lesson, report: GateReport, fit: FitReport, order: _Order
) -> ModelRecord:
    return ModelRecord(
        version=candidate.card.version,
        name=candidate.card.name,
        origin=ModelOrigin.TRAINED,
        state=STATE_AFTER[report.verdict],
        folder=str(candidate.folder),
        weights_sha256=candidate.card.weights_sha256,
        # A later promotion counts as learned what stood when the cases were read, not when this ended.
        created_at=order.began,
        parent=lesson.package.card.version,
        recipe=lesson.recipe.name,
        gate_report_json=report.to_json(),
        case_ids=order.case_ids,
        steps=fit.steps,
        epochs=fit.epochs,
    )


def _of_training(fit: FitReport) -> str:
    return (
        f"learned from {fit.n_slices} slices of {fit.n_patients} patients "
        f"in {fit.epochs} epochs, {fit.steps} steps, {fit.seconds:.0f} s"
    )


def _card_text(parent: ModelPackage, fit: FitReport, looked_at: Sequence[Suspicion], began: datetime) -> str:
    """Card of a version trained here: the figures of the training, then the card that it descends from."""
    words = trust.in_words(looked_at)
    doubts = f" {words.capitalize()}." if words else ""
    made = (
        f"# {parent.card.name}, trained further at this site\n\n"
        f"Parent: {parent.card.version}. Made {began:%Y-%m-%d} UTC from {fit.n_slices} reviewed slices of "
        f"{fit.n_patients} patients, in {fit.epochs} epochs and {fit.steps} steps "
        f"(loss {fit.losses[0]:.4f} to {fit.losses[-1]:.4f}).{doubts}\n\n"
        f"The card of the parent follows; its figures are the parent's.\n\n---\n\n"
    )
    ancestors = (parent.folder / "card.md").read_text(encoding="utf-8")
    return made + ancestors.rpartition("\n---\n\n")[2]
