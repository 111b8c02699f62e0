"""The configuration of a MONAI Bundle, read without running it.

In a bundle ``"@name"`` stands for another value and ``"$…"`` for a line of Python. References are followed;
a line of Python stays what it is, a text, and whoever needs its value is told that it is not there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.foreign import read_file

_TARGET = "_target_"
_DISABLED = "_disabled_"
_SUFFIXES = (".json", ".yaml", ".yml")
_MOST_VALUES = 50_000
_DEEPEST = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A line of Python in a configuration, which is never run."""

    text: str


Value = None | bool | int | float | str | Expression | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Something that the bundle builds: a class by name, and its arguments."""

    name: str
    """Of a class of MONAI without its module; with the module where it is anybody else's."""
    arguments: Mapping[str, Value]

    def literal(self, key: str, otherwise: Value = None) -> Value:
        """Give an argument that must be a plain value."""
        value = self.arguments.get(key, otherwise)
        return plain(value, what=f"{key} of {self.name}")


class Config:
    """One configuration file of a bundle."""

    def __init__(self, root: Mapping[str, Value]) -> None:
        self._root = root
        self._left = _MOST_VALUES

    def get(self, *names: str) -> Value:
        """Give the first of some entries that is there, its references followed; None where none is."""
        for name in names:
            if name in self._root:
                return self._resolved(self._root[name], depth=0)
        return None

    def component(self, *names: str) -> Component | None:
        """Give the first of some entries that is a component."""
        values = (self.get(name) for name in names)
        return next((made for value in values if (made := component(value)) is not None), None)

    def _resolved(self, value: Value, *, depth: int) -> Value:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise ModelFormatError("the configuration of the bundle refers to itself, or is far too large")
        if isinstance(value, list):
            return [self._resolved(item, depth=depth + 1) for item in value]
        if isinstance(value, dict):
            return {key: self._resolved(item, depth=depth + 1) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        reference = value.removeprefix("$")
        if reference.startswith("@") and reference[1:].replace("::", "#").replace("#", "").isidentifier():
            return self._resolved(self._at(reference[1:]), depth=depth + 1)
        return Expression(text=value) if value.startswith(("$", "%")) else value

    def _at(self, reference: str) -> Value:
        value: Value = dict(self._root)
        for part in reference.replace("::", "#").split("#"):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                raise ModelFormatError(f"the configuration of the bundle refers to {reference!r}, not there")
        return value


def read_config(folder: Path, name: str) -> Config | None:
    """Read ``configs/NAME.json`` or ``.yaml`` of a bundle; None where there is none.

    Raises
    ------
    ModelFormatError
        The file is malformed.
    """
    paths = [path for suffix in _SUFFIXES if (path := folder / "configs" / f"{name}{suffix}").is_file()]
    if not paths:
        return None
    data = read_file(paths[0])
    try:
        root = json.loads(data) if paths[0].suffix == ".json" else yaml.safe_load(data)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelFormatError(f"{paths[0].name} of the bundle cannot be read: {error}") from error
    if not isinstance(root, dict) or not all(isinstance(key, str) for key in root):
        raise ModelFormatError(f"{paths[0].name} of the bundle is no table")
    return Config(root)


def component(value: Value) -> Component | None:
    """Understand a value as a component."""
    if not isinstance(value, dict):
        return None
    target = value.get(_TARGET)
    if not isinstance(target, str):
        return None
    module, _, last = target.rpartition(".")
    is_monai = module in {"", "monai"} or module.startswith("monai.")
    arguments = {key: item for key, item in value.items() if not key.startswith("_")}
    return Component(name=last if is_monai else target, arguments=arguments)


def components(value: Value, *, what: str) -> Iterator[Component]:
    """Understand a value as a ``Compose`` of components, or a list of them; without those switched off."""
    whole = component(value)
    if whole is not None and whole.name == "Compose":
        value = whole.arguments.get("transforms")
    if isinstance(value, Expression) or not isinstance(value, list):
        shown = value.text if isinstance(value, Expression) else type(value).__name__
        raise ModelFormatError(
            f"{what} of the bundle is {shown!r}; a list of transforms is expected, and a line of Python is "
            "not run. Write the list itself into the configuration"
        )
    for item in value:
        made = component(item)
        if made is None:
            raise ModelFormatError(f"{what} of the bundle holds something that is no transform")
        if not (isinstance(item, dict) and item.get(_DISABLED) is True):
            yield made


def plain(value: Value, *, what: str) -> Value:
    """Make sure that no line of Python is in a value.

    Raises
    ------
    ModelFormatError
        One is; the message tells which.
    """
    if isinstance(value, Expression):
        raise ModelFormatError(
            f"{what} is computed by the bundle ({value.text!r}), and its code is not run. Write the value "
            "itself into the configuration"
        )
    items: Sequence[Value] = ()
    if isinstance(value, list):
        items = value
    elif isinstance(value, dict):
        items = list(value.values())
    for item in items:
        plain(item, what=what)
    return value
