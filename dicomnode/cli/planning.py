"""``dicomnode plan``: what network suits a folder of labelled images, and what it will take."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from highdicom import Volume
from numpy.typing import NDArray
from rich.progress import track

from dicomnode.cli.show import JsonOption, console, notes, print_json, table
from dicomnode.cli.training_plans import ORIENTATION
from dicomnode.errors import InputError
from dicomnode.ml.imports import orientation
from dicomnode.ml.model import package
from dicomnode.ml.planning import fingerprint, planned, planner
from dicomnode.ml.planning.fingerprint import Fingerprint
from dicomnode.ml.planning.nnunet_planner import PresetName
from dicomnode.ml.planning.planned import Aim, PlannedTraining, Planning
from dicomnode.ml.planning.planner import PlannerName, Rules
from dicomnode.ml.training.dataset import IGNORED, CaseSource, open_folder
from dicomnode.ml.training.raw_dataset import RawDataset, read_raw

_GIB = 2**30
_MOST_CLASSES = 255


def plan(  # noqa: PLR0913, PLR0917  # typer makes an option of each argument
    dataset: Annotated[
        Path,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Folder with images/ and labels/ as NIfTI, or a raw folder of nnU-Net or the Decathlon.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", dir_okay=False, help="Planning file to write, for `pretrain --plan`.")
    ],
    rules: Annotated[
        PlannerName, typer.Option("--planner", help="Whose rules choose the network.")
    ] = "nnunet",
    residual: Annotated[
        PresetName,
        typer.Option(
            help="Of nnU-Net: residual encoder of size M, L or XL, for 8, 24 or 40 GB, or a plain U-Net."
        ),
    ] = "plain",
    configuration: Annotated[
        str | None,
        typer.Option(help="The one to plan, such as 3d_fullres. Default: all that suit the images."),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0, help="GPU memory to plan for; default: that of the preset, or 8. 0: no GPU (dante only)."
        ),
    ] = None,
    turned: Annotated[
        str,
        typer.Option(
            "--orientation",
            metavar="HPL|acquired|FILE",
            help="How images are turned first: three letters (where slice, row and column grow towards), "
            "acquired (as they were scanned), or a NIfTI image that is stored so.",
        ),
    ] = ORIENTATION,
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="labels.toml of the model. Default: the labels of dataset.json, or of the images.",
        ),
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="Modality of the images; may be repeated. Default: that of dataset.json, else MR."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model; default: the name of the file.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure labelled images and plan a network for them: spacing, patch, levels, batch and memory.

    The rules are those of nnU-Net v2 or of Dante. The planning file can be read, and edited, before a
    training takes it.
    """
    found = _measure(
        dataset,
        labels=labels,
        turned=orientation.read(turned),
        modalities=tuple(modality or ()),
        name=name or out.name.partition(".")[0],
    )
    wanted = Rules(planner=rules, preset=residual, memory_gb=memory_gb)
    planning = planner.plan(found.fingerprint, found.aim, wanted, only=configuration)
    text = planned.render(planning)
    out.write_text(text, encoding="utf-8")
    if as_json:
        print_json(json.loads(text))
        return
    _print(planning, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a folder holds."""

    fingerprint: Fingerprint
    aim: Aim


def _measure(
    folder: Path, *, labels: Path | None, turned: str, modalities: tuple[str, ...], name: str
) -> _Found:
    raw = read_raw(folder / "dataset.json", classes=None)
    classes = len(package.read_labels(labels)) + 1 if labels is not None else None
    if classes is None and raw is not None:
        classes = len(raw.names) + 1
    sources = open_folder(folder, classes=classes or _MOST_CLASSES).cases
    images = _Images(sources)
    measured = fingerprint.measure(
        iter(images),
        count=len(sources),
        orientation=turned,
        modalities=modalities or (raw.modality if raw is not None and raw.modality else "MR",),
    )
    return _Found(fingerprint=measured, aim=_aim(name, classes or images.highest + 1, raw))


class _Images:
    """Reads labelled images one after the other and remembers the highest label that it saw."""

    def __init__(self, sources: tuple[CaseSource, ...]) -> None:
        self._sources = sources
        self.highest = 0

    def __iter__(self) -> Iterator[tuple[Volume, NDArray[np.uint8]]]:
        for source in track(self._sources, description="measuring", console=notes, transient=True):
            case = source.read()
            truth = np.where(case.labels == IGNORED, 0, case.labels).astype(np.uint8)
            self.highest = max(self.highest, int(truth.max()))
            yield case.image, truth


def _aim(name: str, classes: int, raw: RawDataset | None) -> Aim:
    if classes < 2:
        raise InputError("No image has a label above 0: there is nothing to plan for.")
    return Aim(
        name=name,
        classes=classes,
        region_classes=raw.region_classes if raw is not None else (),
        has_unknown=raw is not None and raw.ignored is not None,
    )


def _print(planning: Planning, out: Path) -> None:
    found = planning.fingerprint
    known = found.foreground_intensity_properties_per_channel[0]
    shape = np.median([case.shape for case in found.cases], axis=0)
    spacing = np.median(found.spacings_mm, axis=0)
    console.print(
        f"{len(found.cases)} images ({', '.join(found.modalities)}), turned to {found.orientation}; median "
        f"{_by(shape)} voxels of {_by(spacing)} mm"
    )
    console.print(
        f"foreground {known.mean:.4g} ± {known.std:.4g}, from {known.percentile_00_5:.4g} to "
        f"{known.percentile_99_5:.4g} (0.5 and 99.5 %)"
    )
    target = f"for {planning.memory_gb:g} GB" if planning.memory_gb else "without a GPU"
    whose = (
        planning.planner if planning.preset == "plain" else f"{planning.planner}, residual {planning.preset}"
    )
    columns = ("", "spacing (mm)", "image", "patch", "batch", "levels", "halvings", "training", "inference")
    console.print(table(f"Planned by {whose} {target}", columns, map(_row, planning.configurations)))
    console.print("training and inference: predicted peak memory in GiB, on a GPU / on a CPU")
    console.print(f"written to {out}", soft_wrap=True)


def _row(one: PlannedTraining) -> tuple[object, ...]:
    stage, memory = one.plan.final, one.memory
    return (
        one.configuration,
        _by(stage.spacing_mm),
        _by(one.median_shape),
        _by(stage.patch_shape),
        str(one.batch_size),
        str(_levels(one)),
        _by([step.bit_length() - 1 for step in stage.network.divisors]),
        f"{memory.training_cuda / _GIB:.2f} / {memory.training_cpu / _GIB:.2f}" if memory else None,
        f"{memory.inference_cuda / _GIB:.2f} / {memory.inference_cpu / _GIB:.2f}" if memory else None,
    )


def _levels(one: PlannedTraining) -> int | None:
    network = one.plan.final.network
    return None if network.kind == "monai" else len(network.strides)


def _by(values: object) -> str:
    numbers = np.asarray(values, dtype=object).ravel()
    return " × ".join("–" if value is None else f"{value:.4g}" for value in numbers)
