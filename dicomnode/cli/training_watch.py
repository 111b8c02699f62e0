"""Watch a training from scratch: a bar with the time left, a picture, TensorBoard; and end it by Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dicomnode.cli.show import notes
from dicomnode.durable import translated
from dicomnode.errors import ConfigError
from dicomnode.ml.training.course import Moment
from dicomnode.ml.training.order import Observer
from dicomnode.pipeline.curves import draw
from dicomnode.process import stop_on_signals

PICTURE_FILE = "training.png"

_UNKNOWN = "–"


class ScalarWriter(Protocol):
    """The one thing wanted of TensorBoard."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Note a figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """Where a training shows itself."""

    name: str  # of the model
    out: Path
    epochs: int | None  # None: as many as the time allows
    tensorboard: Path | None
    is_shown: bool  # by this process


@contextmanager
def watching(wall: Wall) -> Iterator[Observer]:
    """Give the observer of a training; SIGINT and SIGTERM end the training after the step that runs.

    Raises
    ------
    ConfigError
        TensorBoard is wanted and not installed.
    """
    writer = _tensorboard(wall.tensorboard) if wall.tensorboard and wall.is_shown else None
    console = notes if wall.is_shown else Console(quiet=True)
    with stopping() as stop, _bar(console) as bar:
        yield Observer(
            tell=_Teller(bar, stop),
            watch=_Watcher(bar, wall, writer),
            should_stop=stop.is_set,
        )


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event for a block."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield stop_on_signals()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


class _Teller:
    """A bar for each thing that is done case by case; here a signal ends the command at once."""

    def __init__(self, bar: Progress, stop: threading.Event) -> None:
        self._bar = bar
        self._stop = stop
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise typer.Abort
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, note="")
        self._bar.update(self._tasks[what], completed=done, total=total, note=f"{done}/{total} cases")


class _Watcher:
    """The bar of the training itself, and what is written after each epoch."""

    def __init__(self, bar: Progress, wall: Wall, writer: ScalarWriter | None) -> None:
        self._bar = bar
        self._wall = wall
        self._writer = writer
        self._task: TaskID | None = None

    def __call__(self, moment: Moment) -> None:
        if self._task is None:
            self._task = self._bar.add_task("training", total=1.0, note="")
        self._bar.update(self._task, completed=moment.share, note=self._note(moment))
        if moment.is_epoch_end and self._wall.is_shown:
            path = self._wall.out / PICTURE_FILE
            with translated(path):
                draw(self._wall.name, moment.history).save(path, format="PNG")
            if self._writer is not None:
                _write_scalars(self._writer, moment)

    def _note(self, moment: Moment) -> str:
        epoch = len(moment.history) + (not moment.is_epoch_end)
        of = "" if self._wall.epochs is None else f"/{self._wall.epochs}"
        dice = moment.history[-1].mean_dice if moment.history else None
        return (
            f"epoch {epoch}{of}, loss {moment.loss:.3f}, Dice {_UNKNOWN if dice is None else f'{dice:.3f}'}"
        )


def _write_scalars(writer: ScalarWriter, moment: Moment) -> None:
    record = moment.history[-1]
    figures = {"loss/training": record.loss, "loss/validation": record.validation_loss}
    figures |= {f"dice/{label}": value for label, value in record.dice.items()}
    figures |= {"learning rate": record.learning_rate}
    for tag, value in figures.items():
        if value is not None:
            writer.add_scalar(tag, value, record.steps)


def _tensorboard(folder: Path) -> ScalarWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # optional program
    except ImportError as error:
        raise ConfigError("--tensorboard needs TensorBoard: pip install tensorboard") from error
    make: Callable[[str], ScalarWriter] = SummaryWriter
    return make(str(folder))
