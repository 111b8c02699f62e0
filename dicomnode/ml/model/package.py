"""A model on disk: ``plan.json``, ``labels.toml``, ``weights.safetensors`` and ``card.md`` in one folder.

``plan.json`` also carries the SHA-256 of the weights, so that a folder with mixed-up files is
noticed. Nothing in a package is executed.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from dicomnode import weights
from dicomnode.domain import Code, ModelCard, ModelVersion, Segment, Sha256
from dicomnode.errors import ModelFormatError
from dicomnode.ml.model import network
from dicomnode.ml.model.plan import Plan, PlanFile
from dicomnode.ml.model.plan import parse as parse_plan
from dicomnode.ml.model.plan import render as render_plan

PLAN_FILE = "plan.json"
LABELS_FILE = "labels.toml"
WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "card.md"
FILES = (PLAN_FILE, LABELS_FILE, WEIGHTS_FILE, CARD_FILE)

_STRICT = ConfigDict(extra="forbid")
_Colour = Annotated[int, Field(ge=0, le=255)]

LABELS_HEADER = """\
# The labels of this model. One [[segments]] table for each class of the network except background:
#   class_index     value in the label maps of the model, 1, 2, ... without gaps (0 is background)
#   segment_number  number of the segment in DICOM SEG, 1, 2, ... without gaps
#   label           SegmentLabel: ASCII, at most 64 characters, unique; corrections are recognised by it,
#                   so it never changes once the model is in use
#   rgb             colour recommended to viewers, 0 to 255 each
#   category, type  coded concepts { value, scheme, meaning } (DICOM PS3.16 CID 7150 and 7151 onwards)
#   type_modifier, region   coded concepts, optional
format = 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPackage:
    """A checked model on disk; the weights are read when the model is loaded."""

    folder: Path
    plan: Plan
    card: ModelCard
    weights_path: Path


def read(folder: Path) -> ModelPackage:
    """Read and check a model package.

    Raises
    ------
    ModelFormatError
        A file is missing or malformed, the weights have another digest or schema than the plan
        says, or plan and labels disagree on the classes.
    """
    file = parse_plan(_read_file(folder / PLAN_FILE))
    segments = parse_labels(_read_file(folder / LABELS_FILE))
    if len(segments) != file.plan.classes - 1:
        raise ModelFormatError(
            f"{LABELS_FILE} names {len(segments)} segments; the model of {PLAN_FILE} has "
            f"{file.plan.classes} classes with background."
        )
    _read_file(folder / CARD_FILE)
    digest = Sha256(file.weights_sha256)
    weights_path = folder / WEIGHTS_FILE
    _check_weights(weights_path, digest=digest, plan=file.plan)
    card = ModelCard(
        name=file.plan.name,
        version=version_of(file.plan.name, digest),
        weights_sha256=digest,
        segments=segments,
    )
    return ModelPackage(folder=folder, plan=file.plan, card=card, weights_path=weights_path)


def read_weights(package: ModelPackage) -> weights.Tensors:
    """Read the weights of a checked package; they lie in its file, see :func:`dicomnode.weights.read`."""
    schema = network.model_schema(package.plan)
    return weights.read(package.weights_path, schema=schema, maximum_bytes=weights.MAXIMUM_LOCAL_BYTES)


def write(
    folder: Path,
    plan: Plan,
    segments: Sequence[Segment],
    tensors: weights.Tensors,
    card_text: str,
    *,
    labels_text: str | None = None,
) -> ModelPackage:
    """Write a model package into a folder, made if needed, and read it back with every check.

    Parameters
    ----------
    folder
        Earlier files of a package in it are replaced.
    plan
        Decides the schema that ``tensors`` must have.
    segments
        One for each class of the network but background.
    tensors
        Weights in single precision.
    card_text
        ``card.md``: what the model was trained on and how well it does.
    labels_text
        ``labels.toml`` for these segments where it says more than :func:`render_labels` does.

    Raises
    ------
    ModelFormatError
        The parts do not fit together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = weights.write(folder / WEIGHTS_FILE, tensors)
    plan_text = render_plan(PlanFile(weights_sha256=digest, plan=plan))
    (folder / PLAN_FILE).write_text(plan_text, encoding="utf-8")
    (folder / LABELS_FILE).write_text(labels_text or render_labels(segments), encoding="utf-8")
    (folder / CARD_FILE).write_text(card_text, encoding="utf-8")
    return read(folder)


def version_of(name: str, weights_sha256: Sha256) -> ModelVersion:
    """Name a model version by its family and weights: ``<name>@<12 hexadecimal digits>``."""
    return ModelVersion(f"{name}@{weights_sha256[:12]}")


def read_labels(path: Path) -> tuple[Segment, ...]:
    """Read a label table from disk; see :func:`parse_labels`."""
    return parse_labels(_read_file(path))


def parse_labels(data: bytes) -> tuple[Segment, ...]:
    """Read a label table, sorted by class.

    Raises
    ------
    ModelFormatError
        No TOML, unknown or lacking keys, a label that is not unique ASCII of at most 64
        characters, or class indices or segment numbers with gaps.
    """
    try:
        table = _LABEL_TABLE.validate_python(tomllib.loads(data.decode("utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFormatError(f"{LABELS_FILE} is wrong at {where}: {first['msg']}.") from error
    except ValueError as error:
        raise ModelFormatError(f"{LABELS_FILE} is no TOML: {error}.") from error
    segments = tuple(
        sorted((entry.segment() for entry in table.segments), key=lambda segment: segment.class_index)
    )
    _check_segments(segments)
    return segments


def render_labels(segments: Sequence[Segment]) -> str:
    """Write a label table with its explanation."""
    return LABELS_HEADER + "".join(_render_segment(segment) for segment in segments)


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class _CodeEntry:
    value: Annotated[str, Field(min_length=1, max_length=16)]
    scheme: Annotated[str, Field(min_length=1, max_length=16)]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]

    def code(self) -> Code:
        return Code(value=self.value, scheme=self.scheme, meaning=self.meaning)


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class _SegmentEntry:
    class_index: int
    segment_number: int
    label: Annotated[str, Field(pattern=r"^[ -~]{1,64}$")]
    rgb: tuple[_Colour, _Colour, _Colour]
    category: _CodeEntry
    type: _CodeEntry
    type_modifier: _CodeEntry | None = None
    region: _CodeEntry | None = None

    def segment(self) -> Segment:
        return Segment(
            class_index=self.class_index,
            segment_number=self.segment_number,
            label=self.label,
            rgb=self.rgb,
            category=self.category.code(),
            type=self.type.code(),
            type_modifier=self.type_modifier.code() if self.type_modifier else None,
            region=self.region.code() if self.region else None,
        )


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class _LabelTable:
    format: Literal[1]
    segments: Annotated[tuple[_SegmentEntry, ...], Field(min_length=1, max_length=255)]


_LABEL_TABLE = TypeAdapter(_LabelTable)


def _check_segments(segments: tuple[Segment, ...]) -> None:
    expected = list(range(1, len(segments) + 1))
    if [segment.class_index for segment in segments] != expected:
        raise ModelFormatError(f"{LABELS_FILE}: the class indices must be {expected}, each once.")
    if sorted(segment.segment_number for segment in segments) != expected:
        raise ModelFormatError(f"{LABELS_FILE}: the segment numbers must be {expected}, each once.")
    if len({segment.label.strip().casefold() for segment in segments}) != len(segments):
        raise ModelFormatError(f"{LABELS_FILE}: two segments have the same label.")
    if not all(segment.label.strip() == segment.label for segment in segments):
        raise ModelFormatError(f"{LABELS_FILE}: a label begins or ends with a blank.")


def _render_segment(segment: Segment) -> str:
    lines = [
        "\n[[segments]]",
        f"class_index = {segment.class_index}",
        f"segment_number = {segment.segment_number}",
        f"label = {json.dumps(segment.label)}",
        f"rgb = {list(segment.rgb)}",
        f"category = {_render_code(segment.category)}",
        f"type = {_render_code(segment.type)}",
    ]
    if segment.type_modifier:
        lines.append(f"type_modifier = {_render_code(segment.type_modifier)}")
    if segment.region:
        lines.append(f"region = {_render_code(segment.region)}")
    return "\n".join(lines) + "\n"


def _render_code(code: Code) -> str:
    # A JSON string is also a TOML basic string.
    value, scheme, meaning = map(json.dumps, (code.value, code.scheme, code.meaning))
    return f"{{ value = {value}, scheme = {scheme}, meaning = {meaning} }}"


def _check_weights(path: Path, *, digest: Sha256, plan: Plan) -> None:
    infos = weights.read_header(path, maximum_bytes=weights.MAXIMUM_LOCAL_BYTES)
    try:
        found = weights.sha256_of(path)
    except OSError as error:
        raise ModelFormatError(f"{WEIGHTS_FILE} of the model cannot be read: {error.strerror}.") from error
    if found != digest:
        raise ModelFormatError(
            f"{WEIGHTS_FILE} has the SHA-256 {found[:12]}...; {PLAN_FILE} expects {digest[:12]}.... "
            "The files of the package do not belong together, or one is damaged."
        )
    weights.check_schema(weights.schema_from_header(infos), network.model_schema(plan))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFormatError(f"{path.name} of the model cannot be read: {error.strerror}.") from error
