"""What ``dicomnode evaluate`` measures: names, values and tolerances of labels, from options and files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from dicomnode.errors import ConfigError, InputError
from dicomnode.ml.evaluation.measures import MeasuredLabel
from dicomnode.ml.model import package

_IGNORE = "ignore"
"""Name that nnU-Net gives to voxels whose label is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dataset:
    """What is read of nnU-Net's dataset.json."""

    labels: dict[str, int | Annotated[tuple[int, ...], Field(min_length=1)] | str]


_DATASET = TypeAdapter(_Dataset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The labels that are measured, and the value of the truth that is none of them."""

    named: tuple[MeasuredLabel, ...]  # empty: every value that occurs
    ignored: int | None
    tolerance_mm: float
    tolerance_for_mm: Mapping[str, float]  # by label, where it differs

    def labels(self, values: Iterable[int]) -> tuple[MeasuredLabel, ...]:
        """Give the labels with their tolerances; without names, the values that occur by their number."""
        labels = self.named or tuple(
            MeasuredLabel(name=str(value), values=(value,))
            for value in sorted(values)
            if value != self.ignored
        )
        return tuple(
            replace(label, tolerance_mm=self.tolerance_for_mm.get(label.name, self.tolerance_mm))
            for label in labels
        )


def choose(
    *, labels_file: Path | None, names: Sequence[str], tolerance_mm: float, tolerance_for: Sequence[str]
) -> Choice:
    """Read the labels from a file or from options such as ``1=liver``; without either, all values count.

    Raises
    ------
    ConfigError
        Labels come from a file and from options, an option cannot be read, or a tolerance is for no label.
    InputError
        The file is neither labels.toml nor nnU-Net's dataset.json.
    """
    if labels_file is not None and names:
        raise ConfigError("--labels and --names were both given; give one of them")
    ignored = None
    if labels_file is not None:
        named, ignored = _from_file(labels_file)
    else:
        named = tuple(_named(part) for words in names for part in words.split(",") if part.strip())
    known = [label.name for label in named]
    twice = [name for name in known if known.count(name) > 1]
    if twice:
        raise ConfigError(f"--names: {twice[0]!r} is given twice")
    tolerances = dict(_tolerance(words) for words in tolerance_for)
    unknown = [name for name in tolerances if known and name not in known]
    if unknown:
        raise ConfigError(f"--tolerance-for: no label is called {unknown[0]!r}; there is: {', '.join(known)}")
    return Choice(named=named, ignored=ignored, tolerance_mm=tolerance_mm, tolerance_for_mm=tolerances)


def _tolerance(words: str) -> tuple[str, float]:
    """Read ``liver=2``."""
    name, _, number = words.rpartition("=")
    try:
        tolerance_mm = float(number)
    except ValueError:
        tolerance_mm = -1.0
    if not name.strip() or not 0 <= tolerance_mm < float("inf"):
        raise ConfigError(f"--tolerance-for: {words!r} is not LABEL=MM, such as liver=2")
    return name.strip(), tolerance_mm


def _named(words: str) -> MeasuredLabel:
    """Read ``1=liver``, or ``1+2=whole tumour`` for a region."""
    values, _, name = words.partition("=")
    try:
        numbers = tuple(int(value) for value in values.split("+"))
    except ValueError:
        numbers = ()
    if not name.strip() or not numbers or min(numbers) < 1:
        raise ConfigError(f"--names: {words!r} is not VALUE=NAME, such as 1=liver or 1+2=tumour")
    return MeasuredLabel(name=name.strip(), values=numbers)


def _from_file(path: Path) -> tuple[tuple[MeasuredLabel, ...], int | None]:
    if path.suffix != ".json":
        segments = package.read_labels(path)
        return tuple(MeasuredLabel(name=s.label, values=(s.class_index,)) for s in segments), None
    try:
        entries = _DATASET.validate_json(path.read_bytes()).labels
        values = dict(_entry(key, value) for key, value in entries.items())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no dataset.json of nnU-Net: an object `labels` with names and values is expected."
        ) from error
    ignored = values.pop(_IGNORE, (None,))[0]
    return tuple(MeasuredLabel(name=n, values=v) for n, v in values.items() if min(v) > 0), ignored


def _entry(key: str, value: int | tuple[int, ...] | str) -> tuple[str, tuple[int, ...]]:
    """One label of nnU-Net: a name with a value or several; in its first version, a value with a name."""
    if isinstance(value, str):
        return value, (int(key),)
    return key, value if isinstance(value, tuple) else (value,)
