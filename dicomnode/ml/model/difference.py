"""How two versions of a model differ: plan, labels, and weights tensor by tensor."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dicomnode.domain import Code, Segment
from dicomnode.ml.model.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueChange:
    """A value that differs, as text; None where one side has no such value."""

    what: str
    first: str | None
    second: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """A tensor whose values differ."""

    name: str
    shape: tuple[int, ...]
    relative: float | None  # L2 norm of the difference over that of the first; None: the first is all zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsDifference:
    """How two sets of weights differ."""

    relative: float | None  # of all tensors that both have in the same shape, together; None as above
    changed: tuple[TensorChange, ...]  # the one that changed most first
    unchanged: int  # tensors that are the same in every value
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    reshaped: tuple[str, ...]


def plan_changes(first: Plan, second: Plan) -> tuple[ValueChange, ...]:
    """List the values of two plans that differ, by their place in ``plan.json``."""
    return _changes(dict(_leaves(asdict(first), "")), dict(_leaves(asdict(second), "")))


def label_changes(first: Sequence[Segment], second: Sequence[Segment]) -> tuple[ValueChange, ...]:
    """List the labels that one table lacks, or that mean something else there; colours do not count."""
    return _changes(*({one.label: _meaning(one) for one in table} for table in (first, second)))


def weights_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> WeightsDifference:
    """Compare two sets of weights.

    Of each set one tensor at a time is touched, in double precision; tensors that lie in a mapped file are
    not kept in memory.
    """
    shared = [name for name in first if name in second]
    reshaped = [name for name in shared if first[name].shape != second[name].shape]
    changed: list[TensorChange] = []
    squares_of_difference = squares_of_first = 0.0
    for name in shared:
        if name in reshaped:
            continue
        size, apart = _norm(first[name]), 0.0
        if not torch.equal(first[name], second[name]):
            apart = _norm(second[name].double() - first[name].double())
            shape = tuple(first[name].shape)
            changed.append(TensorChange(name=name, shape=shape, relative=_ratio(apart, size)))
        squares_of_first, squares_of_difference = squares_of_first + size**2, squares_of_difference + apart**2
    return WeightsDifference(
        relative=_ratio(squares_of_difference**0.5, squares_of_first**0.5),
        changed=tuple(sorted(changed, key=_most_changed_first)),
        unchanged=len(shared) - len(reshaped) - len(changed),
        only_first=tuple(sorted(first.keys() - second.keys())),
        only_second=tuple(sorted(second.keys() - first.keys())),
        reshaped=tuple(sorted(reshaped)),
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


def _ratio(difference: float, size: float) -> float | None:
    if size > 0:
        return difference / size
    return 0.0 if difference == 0 else None


def _most_changed_first(change: TensorChange) -> tuple[bool, float, str]:
    """Order by change; what was all zeros stands before everything."""
    return change.relative is not None, -(change.relative or 0.0), change.name


def _changes(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[ValueChange, ...]:
    places = [*first, *(place for place in second if place not in first)]
    return tuple(
        ValueChange(what=place, first=first.get(place), second=second.get(place))
        for place in places
        if first.get(place) != second.get(place)
    )


def _leaves(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Name every value by its place: tables and lists of tables are opened, lists of figures are not."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{index}]")
    else:
        yield place, json.dumps(value)


def _meaning(segment: Segment) -> str:
    words = [f"class {segment.class_index}", f"segment {segment.segment_number}"]
    coded = (segment.category, segment.type, segment.type_modifier, segment.region)
    return ", ".join([*words, *(_code(code) for code in coded if code is not None)])


def _code(code: Code) -> str:
    return f"{code.scheme} {code.value} {code.meaning}"
