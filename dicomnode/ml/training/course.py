"""The course of a training from scratch: steps, epochs, what is written down, how it goes on after."""

import math
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from dicomnode.ml.training import checkpoints
from dicomnode.ml.training.checkpoints import Checkpoint, Progress
from dicomnode.ml.training.fit import Batch, FitReport, ShouldStop, TrainingDivergedError
from dicomnode.ml.training.history import EpochRecord, write_csv
from dicomnode.ml.training.pace import Pace
from dicomnode.ml.training.processes import Processes
from dicomnode.ml.training.run import Run, dice_of

HISTORY_FILE = "training.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How far a training is, for whoever watches it."""

    share: float  # of the training that is done
    loss: float  # mean of the epoch that goes on, or has just ended
    seconds: float  # that it has trained
    history: tuple[EpochRecord, ...]  # of the epochs that have ended
    is_epoch_end: bool


Watch = Callable[[Moment], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a network learns from, and what it is judged by meanwhile."""

    training: Callable[[int], Generator[Batch]]  # batches from a step on, without end
    # The same batches after each epoch; None: there are none, and the Dice is that of the training batches.
    validation: Callable[[], Iterable[Batch]] | None
    labels: tuple[str, ...]  # of the outputs, without background


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where a training is written down, and who watches it."""

    folder: Path  # of the checkpoint
    history_path: Path
    digest: str  # of everything that decides the outcome
    checkpoint_s: float  # between two checkpoints
    should_stop: ShouldStop
    watch: Watch


class Course:
    """A training that may be cut off at any moment and goes on with the same steps."""

    def __init__(self, run: Run, material: Material, pace: Pace, desk: Desk, processes: Processes) -> None:
        self._run = run
        self._material = material
        self._pace = pace
        self._desk = desk
        self._processes = processes
        self._progress = Progress()
        self._is_stopped = False
        self._saved = self._looked = time.monotonic()

    def go_on(self) -> None:
        """Start where the checkpoint left off; at the beginning where there is none.

        Raises
        ------
        InputError
            The checkpoint is of another training, or damaged.
        """
        found = checkpoints.read(self._desk.folder, digest=self._desk.digest)
        if found is not None:
            self._run.restore(dict(found.tensors), steps=found.progress.steps)
            self._progress = found.progress

    def train(self) -> FitReport:
        """Train to the end, or until asked to stop; either way the state is on the disk afterwards.

        Raises
        ------
        TrainingDivergedError
            The loss is not finite; the checkpoint on the disk is from before.
        """
        self._saved = self._looked = time.monotonic()
        if self._is_running:
            with closing(self._material.training(self._progress.steps)) as batches:
                while self._is_running:
                    self._take(next(batches))
        self._processes.wait()
        progress = self._progress
        return FitReport(
            epochs=len(progress.history),
            steps=progress.steps,
            losses=tuple(record.loss for record in progress.history),
            seconds=progress.seconds,
            stopped=self._done < 1,
        )

    @property
    def _done(self) -> float:
        return self._pace.share(self._progress.steps, self._progress.seconds)

    @property
    def _is_running(self) -> bool:
        return self._done < 1 and not self._is_stopped

    def _take(self, batch: Batch) -> None:
        """Take a step, and do what is due after it."""
        is_due = self._step(batch)
        is_epoch_end = self._progress.steps % self._pace.epoch_steps == 0 or self._done >= 1
        if is_epoch_end:
            self._end_epoch()
        if self._processes.is_first and (is_due or not self._is_running):
            self._save()
        losses, history = self._progress.losses, self._progress.history
        moment = Moment(
            share=self._done,
            loss=history[-1].loss if is_epoch_end else math.fsum(losses) / len(losses),
            seconds=self._progress.seconds,
            history=history,
            is_epoch_end=is_epoch_end,
        )
        self._desk.watch(moment)

    def _step(self, batch: Batch) -> bool:
        """Take a step; all processes agree on its loss and time, on stopping, and on whether to save."""
        learned = self._run.step(batch, number=self._progress.steps, done=self._done)
        now = time.monotonic()
        own = [
            learned.loss,
            now - self._looked,
            self._desk.should_stop(),
            now - self._saved > self._desk.checkpoint_s,
        ]
        self._looked = now
        shared = self._processes.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        loss, seconds = shared[0] / self._processes.count, shared[1] / self._processes.count
        if not math.isfinite(loss):
            raise TrainingDivergedError(f"The loss became {loss}; the weights of this training are unusable.")
        self._is_stopped = shared[2] > 0
        self._progress = self._progress.model_copy(
            update={
                "steps": self._progress.steps + 1,
                "seconds": self._progress.seconds + seconds,
                "losses": (*self._progress.losses, loss),
                "agreement": self._agreement(learned.agreement),
            }
        )
        return bool(shared[3] > 0)

    def _agreement(self, counts: torch.Tensor) -> tuple[tuple[float, ...], ...]:
        """Add up what the batches of an epoch say of the Dice; not needed where there is validation."""
        if self._material.validation is not None:
            return ()
        total = self._processes.sum(counts)
        if self._progress.agreement:
            total = total + torch.tensor(self._progress.agreement, dtype=total.dtype)
        return tuple(tuple(row) for row in total.tolist())

    def _end_epoch(self) -> None:
        progress, validation = self._progress, self._material.validation
        if validation is not None:
            loss, dice = self._run.judge(validation())
        else:
            loss, dice = None, dice_of(torch.tensor(progress.agreement))
        record = EpochRecord(
            epoch=len(progress.history) + 1,
            steps=progress.steps,
            loss=math.fsum(progress.losses) / len(progress.losses),
            validation_loss=loss,
            dice=dict(zip(self._material.labels, dice, strict=True)) if dice else {},
            learning_rate=self._run.learning_rate,
            seconds=progress.seconds,
        )
        history = (*progress.history, record)
        self._progress = progress.model_copy(update={"losses": (), "agreement": (), "history": history})
        if self._processes.is_first:
            write_csv(self._desk.history_path, history)

    def _save(self) -> None:
        checkpoint = Checkpoint(digest=self._desk.digest, progress=self._progress, tensors=self._run.state())
        checkpoints.write(self._desk.folder, checkpoint)
        self._saved = time.monotonic()
