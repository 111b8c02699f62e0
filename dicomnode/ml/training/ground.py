"""What is decided before the first step of a training: the sides of the cases, and the plan.

Kept as ``ground.json``, so that a training that was cut off neither reads all images again nor decides anew,
and so that all processes of a training have the same.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicomnode import durable
from dicomnode.ml.model.plan import Plan
from dicomnode.ml.training.dataset import IGNORED, CaseSource
from dicomnode.ml.training.prepared import Counted
from dicomnode.ml.training.splits import CaseSplit, SplitCase, split_cases

GROUND_FILE = "ground.json"


class Blueprint(BaseModel):
    """A plan, and what it says of the batches that the network learns from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Plan
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    batch_dice: bool = (
        False  # one Dice over the whole batch, for patches that are much smaller than the images
    )


class Ground(BaseModel):
    """The decisions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dicomnode ground 1"] = "dicomnode ground 1"
    inputs: str  # digest of what they were made from
    blueprint: Blueprint
    training: tuple[str, ...]
    validation: tuple[str, ...]
    hold_out: tuple[str, ...]

    @property
    def split(self) -> CaseSplit:
        """The sides of the cases."""
        return CaseSplit(training=self.training, validation=self.validation, hold_out=self.hold_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the decisions are made from."""

    sources: tuple[CaseSource, ...]
    planner: Callable[[Sequence[CaseSource]], Blueprint]  # from the training cases
    planner_words: str  # everything else that decides the plan
    fractions: tuple[float, float]  # hold-out, validation
    seed: int

    @property
    def digest(self) -> str:
        """Identify the question."""
        cases = [f"{one.name} {one.version} {one.patient} {one.is_hold_out}" for one in self.sources]
        parts = [self.planner_words, repr(self.fractions), str(self.seed), *sorted(cases)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def decide(question: Question, folder: Path, *, threads: int, progress: Counted) -> Ground:
    """Find the decisions in a folder, or make and keep them.

    Raises
    ------
    InputError
        A case cannot be read, there are too few, or no plan can be made for them.
    """
    found = read(folder)
    if found is not None and found.inputs == question.digest:
        return found
    split = split_cases(
        list(_look(question.sources, threads=threads, progress=progress)),
        hold_out_fraction=question.fractions[0],
        validation_fraction=question.fractions[1],
        generator=np.random.default_rng(question.seed),
    )
    named = {source.name: source for source in question.sources}
    ground = Ground(
        inputs=question.digest,
        blueprint=question.planner([named[name] for name in split.training]),
        training=split.training,
        validation=split.validation,
        hold_out=split.hold_out,
    )
    with durable.translated(folder):
        durable.keep(folder / GROUND_FILE, ground.model_dump_json(indent=1).encode(), mode=durable.PUBLIC)
    return ground


def read(folder: Path) -> Ground | None:
    """Read the decisions of a folder; None where there are none that can be used."""
    try:
        return Ground.model_validate_json((folder / GROUND_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _look(sources: Sequence[CaseSource], *, threads: int, progress: Counted) -> Iterator[SplitCase]:
    """Look at every case once; those of whose truth nothing is known are left out."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for done, case in enumerate(pool.map(_look_at, sources), start=1):
            progress(done, len(sources))
            if case is not None:
                yield case


def _look_at(source: CaseSource) -> SplitCase | None:
    case = source.read()
    if (case.labels == IGNORED).all():
        return None
    return SplitCase(
        name=source.name, stratum=case.stratum, patient=source.patient, is_hold_out=source.is_hold_out
    )
