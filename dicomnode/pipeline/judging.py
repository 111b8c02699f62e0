"""A candidate beside the version in use, on the hold-out cases of this site.

Scores are kept at ``runs/<model>/scores`` as soon as a case is done, so that a judgment which steps back for
a study goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from dicomnode import durable
from dicomnode.casebook import Case, CaseInfo
from dicomnode.domain import Split
from dicomnode.ml.evaluation import gate, scores
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.ml.evaluation.scores import CaseScore
from dicomnode.ml.inference import engine
from dicomnode.ml.model.package import ModelPackage
from dicomnode.pipeline import trust
from dicomnode.pipeline.tools import Interrupted, Tools


class _Kept(BaseModel):
    """``scores/<case id>-<digest of its arrays>-<digest of the weights>.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    score: CaseScore


def judge(candidate: ModelPackage, current: ModelPackage, tools: Tools) -> GateReport:
    """Compare a candidate with the version in use; no more than one case is in memory.

    A hold-out case that is probably a mistake judges nobody, and the report says so.

    Raises
    ------
    Interrupted
        A study waits, or the process ends.
    """
    name = current.card.name
    doubted = trust.suspicions(name, tools)
    held_out = tools.casebook.cases(model_name=name, split=Split.HOLD_OUT)
    believed = [info for info in held_out if doubted[info.case_id].weight >= trust.BELIEVED]
    pairs = [
        _pair(current, candidate, info, tools, place=(n, len(believed))) for n, info in enumerate(believed)
    ]
    _sweep(tools.runs / name / "scores", keep=(current, candidate))
    report = gate.gate(
        [before for before, _ in pairs],
        [after for _, after in pairs],
        epsilon_dice=tools.training.epsilon_dice,
        minimum_cases=tools.training.minimum_hold_out_cases,
        unchanged=candidate.card.weights_sha256 == current.card.weights_sha256,
        generator=np.random.default_rng(int(candidate.card.weights_sha256[:8], 16)),
    )
    left_out = len(held_out) - len(believed)
    return replace(report, reason=report.reason + _of_left_out(left_out)) if left_out else report


def _of_left_out(count: int) -> str:
    return f"; {count} doubtful hold-out {'case was' if count == 1 else 'cases were'} left out"


def _pair(
    current: ModelPackage, candidate: ModelPackage, info: CaseInfo, tools: Tools, *, place: tuple[int, int]
) -> tuple[CaseScore, CaseScore]:
    """Score both models on a case."""
    before, after = (_kept(package, info, tools) for package in (current, candidate))
    if before is None or after is None:
        if tools.must_yield():
            raise Interrupted(f"a study waits, or the process ends; {place[0]} hold-out cases are judged")
        case = tools.casebook.read(info.case_id)
        before = before or _score(current, case, info, tools)
        after = after or _score(candidate, case, info, tools)
    tools.progress("judging", place[0] + 1, place[1])
    return before, after


def _score(package: ModelPackage, case: Case, info: CaseInfo, tools: Tools) -> CaseScore:
    """Score a model on the labels of a case, on the slices where they were reviewed."""
    model = tools.shelf.loaded(package.card.version)
    image = trust.volume_of(case)
    known = dict(zip(case.labels_known, case.reviewed > 0, strict=True))
    found = scores.score_case(
        case.case_id,
        engine.predict(model, image).array,
        case.labels,
        segments=[segment for segment in model.card.segments if segment.label in known],
        spacing_mm=image.spacing,
        reviewed=known,
    )
    path = _path(package, info, tools)
    with durable.translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    durable.keep(path, _Kept(score=found).model_dump_json().encode(), mode=durable.PRIVATE)
    return found


def _kept(package: ModelPackage, info: CaseInfo, tools: Tools) -> CaseScore | None:
    try:
        return _Kept.model_validate_json(_path(package, info, tools).read_bytes()).score
    except (FileNotFoundError, ValidationError):
        return None


def _path(package: ModelPackage, info: CaseInfo, tools: Tools) -> Path:
    parts = (info.case_id, info.arrays_sha256[:16], _tag(package))
    return tools.runs / package.card.name / "scores" / f"{'-'.join(parts)}.json"


def _tag(package: ModelPackage) -> str:
    return package.card.weights_sha256[:16]


def _sweep(folder: Path, *, keep: Sequence[ModelPackage]) -> None:
    """Remove the scores of versions that are no longer judged."""
    tags = tuple(f"-{_tag(package)}.json" for package in keep)
    for path in folder.glob("*.json"):
        if not path.name.endswith(tags):
            path.unlink(missing_ok=True)
