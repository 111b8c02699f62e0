"""What happened in each epoch of a training, for people and for the picture."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dicomnode import durable


class EpochRecord(BaseModel):
    """One epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int  # from 1
    steps: int  # since the beginning
    loss: float  # mean over the training samples
    validation_loss: float | None
    dice: dict[str, float | None]  # of each label in the validation patches together; None: not in them
    learning_rate: float  # at its end
    seconds: float  # since the beginning

    @property
    def mean_dice(self) -> float | None:
        """Mean of the labels that occur in the validation patches."""
        found = [value for value in self.dice.values() if value is not None]
        return sum(found) / len(found) if found else None


def write_csv(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one line for each epoch, the file as a whole."""
    labels = list(history[-1].dice) if history else []
    columns = ["epoch", "steps", "loss", "validation_loss", *(f"dice {label}" for label in labels)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "learning_rate", "seconds"])
    for record in history:
        dice = [_words(record.dice.get(label), ".4f") for label in labels]
        losses = [_words(record.loss, ".5f"), _words(record.validation_loss, ".5f")]
        last = [f"{record.learning_rate:.3e}", f"{record.seconds:.1f}"]
        writer.writerow([record.epoch, record.steps, *losses, *dice, *last])
    with durable.translated(path):
        durable.keep(path, text.getvalue().encode(), mode=durable.PUBLIC)


def _words(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
