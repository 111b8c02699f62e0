"""``dicomnode models diff``: in what two versions differ."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from dicomnode import node, weights
from dicomnode.cli.show import ConfigOption, JsonOption, console, print_json, table
from dicomnode.cli.versions import VersionArgument, find_version
from dicomnode.domain import Sha256
from dicomnode.ml.evaluation.gate import GateReport
from dicomnode.ml.model import difference
from dicomnode.ml.model.difference import ValueChange, WeightsDifference
from dicomnode.ml.model.package import ModelPackage
from dicomnode.pipeline.provenance import learned_from
from dicomnode.settings import load_node_settings
from dicomnode.site import opened_store
from dicomnode.store.records import ModelRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is said of each of the two by itself."""

    version: str
    state: str
    origin: str
    parent: str | None
    recipe: str
    gate: GateReport | None  # None: it was never judged, or its report cannot be read any more


@dataclass(frozen=True, slots=True, kw_only=True)
class CasesDifference:
    """What only one of the two has learned from, with all versions that it was made from."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    both: int
    changed: tuple[str, ...]  # both learned from them, but not from the same arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionsDifference:
    """In what two versions differ."""

    first: Side
    second: Side
    plan: tuple[ValueChange, ...]
    labels: tuple[ValueChange, ...]
    cases: CasesDifference
    weights: WeightsDifference


def diff(
    first: VersionArgument,
    second: VersionArgument,
    top: Annotated[
        int, typer.Option(min=0, help="So many tensors are listed, those that changed most first.")
    ] = 15,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: plan, labels, weights tensor by tensor, the gate's figures, cases, parents."""
    settings = load_node_settings(config)
    shelf = node.open_shelf(settings)
    with opened_store(settings) as store:
        records = find_version(store, first), find_version(store, second)
        learned = [learned_from(record, store) for record in records]
    packages = shelf.package(records[0].version), shelf.package(records[1].version)
    found = VersionsDifference(
        first=_side(records[0]),
        second=_side(records[1]),
        plan=difference.plan_changes(packages[0].plan, packages[1].plan),
        labels=difference.label_changes(packages[0].card.segments, packages[1].card.segments),
        cases=_cases_difference(learned[0], learned[1]),
        weights=difference.weights_difference(_weights(packages[0]), _weights(packages[1])),
    )
    if as_json:
        print_json(found)
        return
    _print(found, top)


def _side(record: ModelRecord) -> Side:
    return Side(
        version=record.version,
        state=record.state,
        origin=record.origin,
        parent=record.parent,
        recipe=record.recipe,
        gate=_gate(record),
    )


def _gate(record: ModelRecord) -> GateReport | None:
    try:
        return GateReport.from_json(record.gate_report_json)
    except ValidationError:  # never judged, or judged by a program whose reports had other figures
        return None


def _weights(package: ModelPackage) -> weights.Tensors:
    return weights.read(package.weights_path, maximum_bytes=weights.MAXIMUM_LOCAL_BYTES)


def _cases_difference(
    first: Mapping[str, Sha256 | None], second: Mapping[str, Sha256 | None]
) -> CasesDifference:
    both = sorted(first.keys() & second.keys())
    return CasesDifference(
        only_first=tuple(sorted(first.keys() - second.keys())),
        only_second=tuple(sorted(second.keys() - first.keys())),
        both=len(both),
        changed=tuple(case for case in both if first[case] and second[case] and first[case] != second[case]),
    )


def _print(found: VersionsDifference, top: int) -> None:
    columns = ("", found.first.version, found.second.version)
    console.print(table("Versions", columns, _side_rows(found.first, found.second)))
    for title, changes in (("Plan", found.plan), ("Labels", found.labels)):
        if changes:
            rows = ((one.what, one.first, one.second) for one in changes)
            console.print(table(title, columns, rows))
        else:
            console.print(f"[bold]{title}[/]: the same")
    _print_weights(found.weights, top)
    if found.first.gate or found.second.gate:
        console.print(table("Gate, each on the hold-out of its day", columns, _gate_rows(found)))
    _print_cases(found.cases, columns)


def _side_rows(first: Side, second: Side) -> Iterable[tuple[str, object, object]]:
    yield "state", first.state, second.state
    yield "origin", first.origin, second.origin
    yield "parent", first.parent, second.parent
    yield "recipe", first.recipe, second.recipe


def _print_weights(found: WeightsDifference, top: int) -> None:
    rows = ((one.name, "×".join(map(str, one.shape)), _share(one.relative)) for one in found.changed[:top])
    if found.changed and top:
        console.print(table("Weights", ("tensor", "shape", "change, relative to the first"), rows))
    console.print(
        f"[bold]Weights[/]: {len(found.changed)} tensors changed, {found.unchanged} are the same; "
        f"all together by {_share(found.relative)}",
        highlight=False,
    )
    for words, names in (
        ("only in the first", found.only_first),
        ("only in the second", found.only_second),
        ("of another shape", found.reshaped),
    ):
        if names:
            console.print(f"{words}: {escape(_some(names, top))}", highlight=False)


def _share(relative: float | None) -> str:
    return "from zeros" if relative is None else f"{relative:.2e}"


def _gate_rows(found: VersionsDifference) -> Iterable[tuple[object, ...]]:
    reports = (found.first.gate, found.second.gate)
    yield "verdict", *(one and f"{one.verdict}, {one.cases} cases" for one in reports)
    figures = [{one.label: one for one in report.labels} if report else {} for report in reports]
    for label in dict.fromkeys(name for side in figures for name in side):
        sides = [side.get(label) for side in figures]
        yield f"{label}: Dice", *(one and one.candidate_dice for one in sides)
        yield f"{label}: Dice of its parent", *(one and one.current_dice for one in sides)
        yield f"{label}: HD95 in mm", *(one and one.candidate_hd95_mm for one in sides)


def _print_cases(found: CasesDifference, columns: tuple[str, str, str]) -> None:
    rows = (
        ("learned from by this one only", len(found.only_first), len(found.only_second)),
        ("which", _some(found.only_first, 20), _some(found.only_second, 20)),
        ("by both", found.both, found.both),
        ("of these, changed in between", len(found.changed), len(found.changed)),
    )
    console.print(table("Training cases, with those of all versions before", columns, rows))


def _some(names: tuple[str, ...], most: int) -> str:
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")
