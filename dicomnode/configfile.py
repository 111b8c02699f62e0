"""Strict reading of one TOML file into a frozen model, with errors that say what to change.

Nothing here knows which keys exist: the models in ``settings`` say that. The same description of a key
serves the error messages and ``docs/configuration.md``.
"""

import difflib
import json
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dicomnode.errors import ConfigError

_PLAIN_WORDS: Mapping[object, str] = {
    str: "text in quotes",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path in quotes",
}


class Section(BaseModel):
    """A table of the file: frozen, and strict about names and types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a key may hold, in words, where its type alone does not say it."""

    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a file as a person sees it."""

    name: str  # dotted; a list of tables carries "[]": routes[].model
    allowed: str
    default: object
    required: bool
    meaning: str


def read(model: type[S], path: Path | None) -> S:
    """Read one TOML file into its model.

    Parameters
    ----------
    model
        The model of the whole file.
    path
        The file; None stands for the embedded defaults. Relative paths in the file are resolved by the
        model, which receives the file's folder as its validation context.

    Raises
    ------
    ConfigError
        The file cannot be read, is not TOML, has an unknown key, or a value that is not allowed. All
        faults of a file are reported together, one per line.
    """
    content = {} if path is None else _parse(path)
    folder = Path.cwd() if path is None else path.resolve().parent
    try:
        return model.model_validate_json(json.dumps(content, default=str), context=folder)
    except ValidationError as error:
        known = {key.name: key for key in keys(model)}
        source = "configuration" if path is None else str(path)
        faults = [f"{source}: {_explain(fault, known)}" for fault in error.errors()]
        raise ConfigError("\n".join(faults)) from error


def keys(model: type[Section], prefix: str = "") -> Iterator[Key]:
    """Describe every key of a model, in the order in which the file lists them."""
    for name, field in model.model_fields.items():
        inner, is_list = _inner_section(field.annotation)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}[]." if is_list else f"{prefix}{name}.")
        else:
            yield Key(
                name=prefix + name,
                allowed=_allowed(field.annotation, tuple(field.metadata)),
                default=field.get_default(call_default_factory=True, validated_data={}),
                required=field.is_required(),
                meaning=field.description or "",
            )


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: not valid TOML: a byte that is not UTF-8 (at line {line})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check --config") from error


def _explain(fault: ErrorDetails, known: Mapping[str, Key]) -> str:
    shown = _dotted(fault["loc"])
    general = re.sub(r"\[\d+\]", "[]", shown)
    key = known.get(general) or known.get(general.removesuffix("[]"))
    match fault["type"]:
        case "extra_forbidden":
            return f'unknown key "{shown}"{_suggestion(shown, known)}'
        case "missing":
            return f'"{shown}" is missing; allowed: {key.allowed if key else "a section"}'
        case "value_error":  # raised by a validator of ours, which chose its words
            reason = str(fault["ctx"]["error"])
            return f"{shown}: {reason}" if shown else reason
        case _ if key is None:
            return f'"{shown}" is a section: write it as [{general.removesuffix("[]")}] with keys below it'
        case _:
            return f"{shown} is {json.dumps(fault['input'])}; allowed: {key.allowed}"


def _dotted(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def _suggestion(name: str, known: Mapping[str, Key]) -> str:
    sections = {key.rpartition(".")[0].removesuffix("[]") for key in known}
    index = next(iter(re.findall(r"\[\d+\]", name)), "[]")
    candidates = [key.replace("[]", index) for key in sorted({*known, *sections})]
    last = name.rpartition(".")[2]
    elsewhere = [key for key in candidates if key.rpartition(".")[2] == last]
    nearest = elsewhere or difflib.get_close_matches(name, candidates, n=1)
    return (
        f'; did you mean "{nearest[0]}"?' if nearest else f"; known sections: {', '.join(sorted(sections))}"
    )


def _inner_section(annotation: object) -> tuple[type[Section] | None, bool]:
    arguments = get_args(annotation)
    is_list = get_origin(annotation) is tuple
    candidate = arguments[0] if is_list else annotation
    if isinstance(candidate, type) and issubclass(candidate, Section):
        return candidate, is_list
    return None, is_list


def _allowed(annotation: object, metadata: tuple[object, ...]) -> str:
    """Put a field's type and limits into words."""
    spoken = next((item.words for item in metadata if isinstance(item, Allowed)), None)
    if spoken is not None:
        return spoken
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _allowed(arguments[0], tuple(_flat(arguments[1:])))
    if origin is Literal:
        return " or ".join(json.dumps(choice) for choice in arguments)
    if origin is tuple:
        return f"a list{_limits(metadata)}; each item: {_allowed(arguments[0], ())}"
    if origin in (types.UnionType, Union):
        kept = next(argument for argument in arguments if argument is not types.NoneType)
        return _allowed(kept, metadata)
    return _PLAIN_WORDS.get(annotation, "a value") + _limits(metadata)


def _flat(metadata: tuple[object, ...]) -> Iterator[object]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _limits(metadata: tuple[object, ...]) -> str:
    words = []
    for item in metadata:
        match item:
            case Ge(ge=low):
                words.append(f"at least {low}")
            case Gt(gt=low):
                words.append(f"above {low}")
            case Le(le=high):
                words.append(f"at most {high}")
            case Lt(lt=high):
                words.append(f"below {high}")
            case MinLen(min_length=1):
                words.append("not empty")
    return f", {' and '.join(words)}" if words else ""
