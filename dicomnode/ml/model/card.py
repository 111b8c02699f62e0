"""The card of a model: what it was trained on, how well it does, and where it must not be used."""

import hashlib
import math
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby

import numpy as np
import torch

from dicomnode.domain import ModelVersion
from dicomnode.ml.evaluation.scores import CaseScore
from dicomnode.ml.model import network
from dicomnode.ml.model.description import network_in_words, normalisation_in_words
from dicomnode.ml.model.package import CARD_FILE, ModelPackage
from dicomnode.ml.model.plan import ImageExtent, Plan
from dicomnode.ml.training.fit import FitReport
from dicomnode.ml.training.splits import CaseSplit

UNFINISHED = "# Unfinished model\n\nTraining has ended; the judgement on the hold-out is still running.\n"

_TEMPLATE = """\
# {name}

Version `{version}`. Written by `dicomnode pretrain` together with the weights; every figure below was
measured by that command.

**Research software. Not a medical device, not for clinical use.**

{about}
## What it takes

- Modality: {modalities}
{extent}- Any orientation and voxel spacing; images are resampled to {spacing} mm.
- Intensities: {normalisation}.

## Network

{network}, {parameters:,} parameters; mirrored passes over the axes {mirror_axes} are averaged at inference.

## Training

- {training} training cases, {epochs} epochs ({steps} steps), {minutes:.0f} minutes, seed {seed}
{earlier}- Dice + cross-entropy; the random changes of nnU-Net (turns, scales, noise, blur, brightness,
  contrast, low resolution, gamma, mirroring); {method}.
  No epoch was chosen by looking at a score.
- Environment: {environment}

## Split

{hold_out} hold-out and {validation} validation cases were never trained on; the validation cases
served to choose the settings of the training, the hold-out cases were only measured. Cases are
split by name, at random within each kind of stored intensities, with NumPy's `default_rng({seed})`
(fractions {fractions}); `dicomnode.ml.training.splits.split_cases` gives the same split again.

Hold-out names, SHA-256 of the sorted names joined by line feeds:
`{digest}`

{names}

## Results

| cases | label | Dice mean | Dice sd | Dice min | HD95 mean (mm) | HD95 max (mm) |
|---|---|---|---|---|---|---|
{results}
HD95 is the 95th percentile of the surface distance, the larger of both directions.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card states besides the plan."""

    version: ModelVersion
    about: str
    seed: int
    method: str  # optimiser, learning rate, and which weights these are
    earlier: str  # line about the run that this one went on from; empty when from scratch
    fractions: tuple[float, float]  # hold-out, validation
    fit: FitReport
    split: CaseSplit
    validation: tuple[CaseScore, ...]
    hold_out: tuple[CaseScore, ...]


def render(plan: Plan, facts: CardFacts) -> str:
    """Write the card as Markdown."""
    stage, split = plan.final, facts.split
    return _TEMPLATE.format(
        name=plan.name,
        version=facts.version,
        about=facts.about.strip() + "\n" if facts.about.strip() else "",
        modalities=", ".join(plan.modalities),
        extent=_extent_in_words(plan.image_extent),
        spacing=_by(stage.spacing_mm),
        normalisation=normalisation_in_words(stage.normalisation),
        network=network_in_words(stage.network),
        parameters=sum(math.prod(shape) for _, _, shape in network.model_schema(plan).entries),
        mirror_axes=", ".join(map(str, stage.mirror_axes)) or "(none)",
        training=len(split.training),
        validation=len(split.validation),
        hold_out=len(split.hold_out),
        epochs=facts.fit.epochs,
        steps=facts.fit.steps,
        minutes=facts.fit.seconds / 60,
        seed=facts.seed,
        method=facts.method,
        earlier=facts.earlier,
        environment=environment(),
        fractions=f"{facts.fractions[0]:g} and {facts.fractions[1]:g}",
        digest=names_sha256(split.hold_out),
        names=", ".join(split.hold_out),
        results=_rows("hold-out", facts.hold_out) + _rows("validation", facts.validation),
    )


def read(model: ModelPackage) -> str:
    """Read the card of a package."""
    return (model.folder / CARD_FILE).read_text(encoding="utf-8")


def earlier_training(start: ModelPackage) -> str:
    """Say in one line of Markdown what run a training went on from, as its card tells."""
    told = re.search(r"^- (\d+ training cases, .*)$", read(start), re.MULTILINE)
    run = told.group(1) if told else "see its card"
    return f"- went on from `{start.card.version}`, with the same hold-out ({run})\n"


def names_sha256(names: tuple[str, ...]) -> str:
    """Digest case names so that a split can be compared: sorted, joined by line feeds."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def environment() -> str:
    """Name the interpreter, the libraries that decide results, and the processor."""
    libraries = ", ".join(f"{library} {version(library)}" for library in ("torch", "monai", "numpy", "scipy"))
    return (
        f"Python {platform.python_version()}, {libraries}, {platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    )


def _rows(cases: str, scores: tuple[CaseScore, ...]) -> str:
    agreements = sorted((item for score in scores for item in score.labels), key=lambda item: item.label)
    rows = []
    for label, items in groupby(agreements, key=lambda item: item.label):
        figures = np.asarray([(item.dice, item.hd95_mm) for item in items])
        dices, distances = figures[:, 0], figures[:, 1]
        rows.append(
            f"| {cases} ({len(figures)}) | {label} | {dices.mean():.4f} | {dices.std():.4f} "
            f"| {dices.min():.4f} | {distances.mean():.2f} | {distances.max():.2f} |\n"
        )
    overall = [item.dice for item in agreements]
    if overall:
        rows.append(f"| {cases} | mean of the labels | {np.mean(overall):.4f} | | | | |\n")
    return "".join(rows)


def _extent_in_words(extent: ImageExtent | None) -> str:
    if extent is None:
        return ""
    return (
        f"- Images of about {_by(extent.median_mm)} mm (slice, row, column); seen in training: "
        f"{_by(extent.minimum_mm)} to {_by(extent.maximum_mm)} mm.\n"
        "  Outside that range, and on other body parts, the result means nothing.\n"
    )


def _by(values: tuple[float | None, ...]) -> str:
    return " x ".join("(as it is)" if value is None else f"{value:g}" for value in values)
