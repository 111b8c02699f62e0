"""What model is wanted, from what, and with what it is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.domain import Segment
from dicomnode.ml.training.course import Watch
from dicomnode.ml.training.dataset import CaseSource
from dicomnode.ml.training.fit import ShouldStop
from dicomnode.ml.training.ground import Blueprint
from dicomnode.ml.training.objective import Regions
from dicomnode.ml.training.pace import OptimiserName
from dicomnode.ml.training.processes import Processes

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how many cases of it are done, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRecipe:
    """How a model is trained from scratch; the defaults are those of nnU-Net v2."""

    optimiser: OptimiserName = "sgd"
    learning_rate: float | None = None  # highest; None: that of the optimiser
    epochs: int = 1000
    epoch_steps: int = 250
    minutes: float | None = None  # train so long instead of so many epochs
    batch_size: int | None = None  # None: as planned
    foreground_share: float = 1 / 3  # of the samples of a batch, centred on a label
    average_decay: float | None = None  # of the running mean of the weights, per step; None: the last weights
    bfloat16: bool = False  # convolutions in bfloat16
    validation_steps: int | None = None  # batches judged after each epoch; None: a fifth of its steps
    seed: int = 0  # of split, first weights, samples and augmentation
    hold_out_fraction: float = 0.2
    validation_fraction: float = 0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What model is wanted, and what it is to learn from."""

    name: str  # lower-case letters, digits, "_" and "-"
    segments: tuple[Segment, ...]
    sources: tuple[CaseSource, ...]
    planner: Callable[[Sequence[CaseSource]], Blueprint]  # from the training cases
    planner_words: str  # all that decides the plan beside the cases
    recipe: PretrainRecipe
    regions: Regions = ()  # label values of each output, where the plan has regions
    about: str = ""  # Markdown for the card: what the data are, their licence, the limits
    start_from: Path | None = None  # package of an earlier run on the same split, whose weights come first


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """With what a model is trained: decides how quick it is, not what comes out."""

    processes: Processes
    workers: int = 1  # processes that make samples; 0: none beside the training
    threads: int = 2  # cases that are read and prepared at once
    checkpoint_s: float = 300.0
    cache: Path | None = None  # folder of prepared cases that stays; None: one that is gone at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Observer:
    """Who watches a training, and may end it."""

    tell: Tell
    watch: Watch
    should_stop: ShouldStop
