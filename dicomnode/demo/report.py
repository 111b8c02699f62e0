"""What the demonstration leaves behind: a summary in plain words, the same as JSON, and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from rich.console import Console

from dicomnode.cli.show import table
from dicomnode.demo.inputs import InputSeries
from dicomnode.demo.stage import MODEL
from dicomnode.imaging.images.regrid import mask_to_image
from dicomnode.imaging.images.series import stack_volume
from dicomnode.imaging.images.stacks import read_stacks
from dicomnode.imaging.pictures import preview
from dicomnode.imaging.reading import seg_read
from dicomnode.ml.model import package
from dicomnode.settings import shipped_models_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSummary:
    """One series that was sent, what was found in it and what the reader changed."""

    title: str
    slices: int
    label: str
    voxels: int
    millilitres: float
    dice_with_reader: float | None  # None: the reader left it alone
    edited_slices: int
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """The model of the site before and after, and the release of the federation."""

    before: str
    trained: str
    after: str
    release_before: int
    release_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything that the demonstration did."""

    folder: str
    series: tuple[SeriesSummary, ...]
    versions: Versions
    gate: str  # verdict on the trained version, in words
    adoption: str  # verdict on the release, in words
    seconds: tuple[tuple[str, float], ...]
    total_seconds: float
    pictures: tuple[str, ...]


def write(summary: Summary, folder: Path) -> None:
    """Leave the summary as JSON."""
    (folder / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")


def show(summary: Summary, console: Console) -> None:
    """Print the summary: what was sent and found, how long each step took, what the model became."""
    console.print()
    console.print(table("What was sent, found and corrected", _COLUMNS, map(_row, summary.series)))
    console.print(table("Where the time went", ("step", "seconds"), _times(summary)))
    console.print(
        table(
            "The model",
            ("", "version at the site", "release of the federation"),
            (
                ("before", summary.versions.before, summary.versions.release_before),
                ("trained here", summary.versions.trained, "–"),
                ("after", summary.versions.after, summary.versions.release_after),
            ),
        )
    )
    console.print(f"Gate on the trained version: {summary.gate}", soft_wrap=True)
    console.print(f"Gate on the release: {summary.adoption}", soft_wrap=True)
    for picture in summary.pictures:
        console.print(f"Picture: {picture}", soft_wrap=True)
    console.print(f"Everything is in {summary.folder}", soft_wrap=True)


_COLUMNS = ("series", "slices", "label", "voxels", "ml", "Dice to reader", "edited", "used for")


def _row(one: SeriesSummary) -> Sequence[object]:
    return (
        one.title,
        one.slices,
        one.label,
        one.voxels,
        f"{one.millilitres:.2f}",
        one.dice_with_reader,
        one.edited_slices,
        one.split.replace("_", "-"),
    )


def _times(summary: Summary) -> list[tuple[str, str]]:
    rows = [(step, f"{seconds:.1f}") for step, seconds in summary.seconds]
    return [*rows, ("total", f"{summary.total_seconds:.1f}")]


def draw(one: InputSeries, ours: Dataset, theirs: Dataset, folder: Path, *, number: int) -> list[Path]:
    """Draw our segmentation and the reader's over the image, as two pictures."""
    stack = seg_read.stack_of(ours, read_stacks([dcmread(path) for path in one.files]))
    series = stack_volume(stack, maximum_missing=stack.missing_slices)
    card = package.read(shipped_models_folder() / MODEL).card
    made = []
    for who, seg in (("segmentation", ours), ("correction", theirs)):
        masks = seg_read.decode(seg, stack=stack, card=card).masks
        labels = np.zeros(series.image.spatial_shape, np.uint8)
        for segment in card.segments:
            if segment.label in masks:
                labels[mask_to_image(masks[segment.label], stack)] = segment.segment_number
        path = folder / f"{who}-{number}.png"
        preview.montage(series.image, labels, card, title=f"{who.capitalize()}: {one.title}").save(path)
        made.append(path)
    return made
