"""What ``dicomnode evaluate`` leaves: the figures of every case and label, for tables and scripts."""

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.cli.evaluation_plot import draw
from dicomnode.errors import ConfigError
from dicomnode.ml.evaluation.measures import CaseMeasures
from dicomnode.ml.evaluation.summary import LEVEL, Estimate, LabelSummary

CASES_FILE = "cases.csv"
LABELS_FILE = "labels.csv"
SUMMARY_FILE = "summary.json"
PLOT_FILE = "evaluation.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All that is known after an evaluation."""

    predictions: Path
    truth: Path
    labels: tuple[LabelSummary, ...]
    cases: tuple[CaseMeasures, ...]
    without_prediction: tuple[str, ...]  # files of the truth; they count nowhere
    without_truth: tuple[str, ...]
    values_not_measured: tuple[int, ...]  # that occur and that no label names
    resamples: int
    seed: int
    level: float = LEVEL


def plain(evaluation: Evaluation) -> object:
    """Turn an evaluation into plain values; JSON knows no infinity, so that it becomes null."""
    return _plain(dataclasses.asdict(evaluation))


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write the figures into a folder, which is made when needed.

    Raises
    ------
    ConfigError
        The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(
            folder / CASES_FILE, (_case_row(case, at) for case in evaluation.cases for at in case.labels)
        )
        _write_csv(folder / LABELS_FILE, map(_label_row, evaluation.labels))
        text = json.dumps(plain(evaluation), indent=2, allow_nan=False)
        (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
        draw(evaluation.cases, evaluation.labels).save(folder / PLOT_FILE)
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written ({error.strerror}); choose another") from error


def _case_row(case: CaseMeasures, measures: object) -> dict[str, object]:
    return {"case": case.case_id, **_fields(measures)}


def _label_row(label: LabelSummary) -> dict[str, object]:
    row: dict[str, object] = {}
    for key, value in _fields(label).items():
        if isinstance(value, Estimate):
            row |= {f"{key}_{part}": number for part, number in _fields(value).items()}
        else:
            row[key] = value
    return row


def _fields(record: object) -> dict[str, object]:
    if not dataclasses.is_dataclass(record):
        raise TypeError(f"{record!r} is no record")
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    known = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(known[0]) if known else [])
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in known)


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
