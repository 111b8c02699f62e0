"""The card of an imported model: where it comes from, what it takes, and that nobody has measured it here."""

from collections.abc import Iterable, Sequence
from math import prod

from dicomnode.domain import Segment
from dicomnode.ml.imports import orientation
from dicomnode.ml.imports.foreign import ForeignModel
from dicomnode.ml.model import network
from dicomnode.ml.model.description import network_in_words, normalisation_in_words
from dicomnode.ml.model.plan import Plan, Stage

_TEMPLATE = """\
# {name}

Imported by `dicomnode models import`. dicomnode did not train this model, and has not measured it.

**Research software. Not a medical device, not for clinical use.**

## Origin

{facts}

## What it takes

- Modality: {modalities}
- Orientation: {orientation}

## Passes

{stages}

{parameters:,} parameters in {networks} network(s).

## Labels

{labels}

## Remarks

{notes}

## Results

None measured here. Before use, compare it with cases whose labels are known, and write the figures, the
training data and their licence into this card.
"""


def render(model: ForeignModel, segments: Sequence[Segment]) -> str:
    """Write the card as Markdown."""
    plan = model.plan
    return _TEMPLATE.format(
        name=plan.name,
        facts=_list(f"{what}: {_line(value)}" for what, value in model.facts),
        modalities=", ".join(plan.modalities) or "not known: to be completed",
        orientation=in_words(plan),
        stages=_list(_stage(stage) for stage in plan.stages),
        parameters=sum(prod(shape) for _, _, shape in network.model_schema(plan).entries),
        networks=plan.networks,
        labels=_list(
            f"{one.class_index}: {one.label} (in the model: {_line(model.class_names[one.class_index])})"
            for one in segments
        ),
        notes=_list(map(_line, model.notes)) if model.notes else "None.",
    )


def in_words(plan: Plan) -> str:
    """Say how images reach the model: turned, and with which axis first."""
    words = orientation.in_words(plan.orientation)
    if plan.axis_order == (0, 1, 2):
        return words
    names = ("slices", "rows", "columns")
    return f"{words}; then the axes are put in the order {', '.join(names[axis] for axis in plan.axis_order)}"


def _stage(stage: Stage) -> str:
    spacing = " x ".join("(as it is)" if value is None else f"{value:g}" for value in stage.spacing_mm)
    patch = " x ".join(map(str, stage.patch_shape))
    mirrored = ", ".join(map(str, stage.mirror_axes)) or "none"
    return (
        f"{stage.name}: images at {spacing} mm, patches of {patch}; intensities: "
        f"{normalisation_in_words(stage.normalisation)}; {network_in_words(stage.network)}; "
        f"{stage.members} network(s) averaged, mirrored axes: {mirrored}"
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _line(text: str) -> str:
    """Keep a foreign text from being more than a line of words."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500]
