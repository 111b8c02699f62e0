"""What all experiments share: their size, where they lie, a run, and its result on disk."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data import REPOSITORY, Domain

from dicomnode import durable

HERE = Path(__file__).resolve().parent
WORK = REPOSITORY / "output" / "learning"
_DIGITS = 5

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
Result = Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done."""

    base_epochs: int  # of the base model, 25 steps each
    weak_epochs: int  # of the model that the generations begin with
    epochs: int  # of an adaptation
    sizes: tuple[int, ...]  # cases to adapt with
    domains: tuple[Domain, ...]
    epoch_samples: int  # of an adaptation, about: two of them are a batch
    fresh_epochs: int  # of a training on partial labels that starts from random weights
    nights: int
    night_epochs: int
    rates: int  # learning rates that are tried


FULL = Scale(
    base_epochs=50,
    weak_epochs=14,
    epochs=20,
    sizes=(2, 5, 10, 20),
    domains=("B", "C"),
    epoch_samples=16,
    fresh_epochs=30,
    nights=13,
    night_epochs=5,
    rates=4,
)
SMOKE = Scale(
    base_epochs=1,
    weak_epochs=1,
    epochs=2,
    sizes=(2,),
    domains=("C",),
    epoch_samples=4,
    fresh_epochs=1,
    nights=2,
    night_epochs=1,
    rates=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where the experiments lie, and how large they are."""

    work: Path  # base models and unfinished runs
    results: Path
    scale: Scale
    recipe: str  # of ours, in the generations

    def path_of(self, experiment: str, name: str) -> Path:
        """Say where the result of a run lies."""
        return self.results / experiment / f"{name}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training, or one row of nights: what is done or not done."""

    experiment: str
    name: str
    do: Callable[[World], Result]

    def is_done(self, world: World) -> bool:
        """Answer whether its result is on the disk."""
        return world.path_of(self.experiment, self.name).is_file()

    def carry_out(self, world: World) -> None:
        """Do it, and write its result at once as a whole."""
        write(world.path_of(self.experiment, self.name), self.do(world))


def write(path: Path, result: Result) -> None:
    """Write JSON in one go; numbers are rounded to five digits after the point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(dict(result)), indent=1) + "\n"
    durable.keep(path, text.encode(), mode=durable.PUBLIC)


def read(path: Path) -> dict[str, Json]:
    """Read a result."""
    found: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _rounded(value: Json) -> Json:
    if isinstance(value, float):
        return float(f"{value:.3g}") if abs(value) < 1e-3 else round(value, _DIGITS)
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return value
