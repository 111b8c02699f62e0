"""Which model takes a series, and why: the first route whose conditions all hold."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword
from pydicom.tag import Tag

from dicomnode.conditions import Conditions, Range, in_figures, is_like
from dicomnode.errors import ConfigError, UnsupportedSeriesError
from dicomnode.imaging import attributes
from dicomnode.imaging.images.facts import Facts, facts_of, holder
from dicomnode.imaging.images.stacks import Stack
from dicomnode.pipeline.preferences import compare, rank
from dicomnode.settings import RouteSettings

_NUMBERS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_NO_TEXT = frozenset({"AT", "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN"})
# Whatever may name a patient is compared but not repeated: groups of patients, visits and requests.
_CONFIDENTIAL_GROUPS = frozenset({0x0010, 0x0012, 0x0032, 0x0038, 0x0040})
_CONFIDENTIAL_KINDS = frozenset({"DA", "DT", "LT", "PN", "ST", "TM", "UC", "UI", "UT"})  # free text, too
_CONFIDENTIAL = frozenset({"AccessionNumber", "StudyID", "ImageComments", "DeviceSerialNumber"})
_STACKS_NAMED = 3
_LONGEST = 80  # characters of a value in a message: malformed ones go on for pages

Uid = TypeVar("Uid", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What one route says to one stack of a series."""

    route: RouteSettings
    stack: Stack
    facts: Facts
    objection: str | None  # None: the route takes the stack


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The route that takes a series, and the stack that its model is for."""

    route: RouteSettings
    stack: Stack
    facts: Facts
    considered: tuple[Verdict, ...]  # up to the one that takes it; later routes were not asked


def choose(stacks: Sequence[Stack], routes: Sequence[RouteSettings], *, sender: str) -> Choice:
    """Find the route of a series, and its stack.

    Parameters
    ----------
    stacks
        Of one series.
    sender
        AE title that sent the series; "" where nobody knows.

    Raises
    ------
    UnsupportedSeriesError
        No route takes the series; the message gives the reason of each.
    """
    considered = consider(stacks, routes, sender=sender)
    choice = to_choice(considered)
    if choice is not None:
        return choice
    uid = stacks[0].series_instance_uid
    raise UnsupportedSeriesError(f"series {uid}: no model takes it ({_refusals(considered)})")


def consider(stacks: Sequence[Stack], routes: Sequence[RouteSettings], *, sender: str) -> tuple[Verdict, ...]:
    """Ask the routes in order about every stack of a series, up to the first that takes one."""
    facts = [facts_of(stack, stacks=len(stacks)) for stack in stacks]
    verdicts: list[Verdict] = []
    for route in routes:
        objections = [
            objection(stack, its, route, sender=sender) for stack, its in zip(stacks, facts, strict=True)
        ]
        objections = _one_stack(objections, facts, route)
        verdicts += (
            Verdict(route=route, stack=stack, facts=its, objection=words)
            for stack, its, words in zip(stacks, facts, objections, strict=True)
        )
        if None in objections:
            break
    return tuple(verdicts)


def to_choice(considered: tuple[Verdict, ...]) -> Choice | None:
    """Find the verdict that takes a stack; None when every route objects."""
    for one in considered:
        if one.objection is None:
            return Choice(route=one.route, stack=one.stack, facts=one.facts, considered=considered)
    return None


def best_of(choices: Mapping[Uid, Choice]) -> tuple[Uid, Mapping[Uid, str]]:
    """Find the best of the series of a study that one route takes.

    Parameters
    ----------
    choices
        By Series Instance UID, at least one; all of the same route, whose `prefer` decides. Where it leaves a
        tie the UID that sorts first wins, so that the same series always give the same answer.

    Returns
    -------
        The best, and for each of the others why it is not.
    """
    prefer = next(iter(choices.values())).route.prefer
    best = min(choices, key=lambda uid: (rank(choices[uid].facts, prefer), uid))
    others = {
        uid: compare(choice.facts, choices[best].facts, prefer)
        or "they do not differ; the smaller UID counts"
        for uid, choice in choices.items()
        if uid != best
    }
    return best, others


def check_routes(routes: Sequence[RouteSettings]) -> None:
    """Check what settings cannot: that the attributes which routes ask for are there in DICOM.

    Raises
    ------
    ConfigError
        An unknown keyword, or a condition that its value representation cannot meet; one line for each.
    """
    faults = [
        f"routes[{index}].where.attributes.{keyword} (route {route.name!r}): {fault}"
        for index, route in enumerate(routes)
        for keyword, wanted in route.where.attributes.items()
        if (fault := _attribute_fault(keyword, wanted))
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def objection(stack: Stack, facts: Facts, route: RouteSettings, *, sender: str) -> str | None:
    """Say why a route does not take a stack: the first condition that does not hold; None when all do."""
    where = route.where
    objections = (
        *_objections_to_kind(facts, where),
        *_objections_to_size(facts, where),
        _to_text("sender", sender, where.sender, absent="unknown"),
        *(_to_attribute(stack, keyword, wanted) for keyword, wanted in where.attributes.items()),
        stack.refusal or _to_gaps(facts, route.maximum_missing_slices),
    )
    return next((words for words in objections if words), None)


def _objections_to_kind(facts: Facts, where: Conditions) -> Iterator[str | None]:
    yield _to_text("modality", facts.modality, where.modality)
    if where.kind and facts.kind not in where.kind:
        why = f" ({facts.kind_because})" if facts.kind_because else ""
        yield f"kind is {facts.kind}{why}, wanted {_or(where.kind)}"
    if where.plane and facts.plane not in where.plane:
        yield f"plane is {facts.plane} ({facts.obliquity_deg:.0f}° off), wanted {_or(where.plane)}"
    yield _to_text("body part", facts.body_part, where.body_part)
    yield _to_text("vendor", facts.vendor, where.vendor)
    if where.contrast is not None and facts.has_contrast is not where.contrast:
        words = ("no contrast agent is named", "a contrast agent is named")
        yield f"{words[facts.has_contrast]}, {'one' if where.contrast else 'none'} wanted"


def _objections_to_size(facts: Facts, where: Conditions) -> Iterator[str | None]:
    if where.slices is not None and not where.slices.holds(facts.slices):
        yield f"{facts.slices} slices, {where.slices.in_words()} wanted"
    yield _to_number("longest edge", facts.extent_mm, where.extent_mm, " mm")
    yield _to_number("slice spacing", facts.slice_spacing_mm, where.slice_spacing_mm, " mm")
    for spacing_mm in facts.pixel_spacing_mm:
        yield _to_number("pixel spacing", spacing_mm, where.pixel_spacing_mm, " mm")
    yield _to_number("echo time", facts.echo_time_ms, where.echo_time_ms, " ms")
    yield _to_number("b-value", facts.b_value, where.b_value, " s/mm²")


def _to_gaps(facts: Facts, most: int) -> str | None:
    if facts.missing_slices <= most:
        return None
    details = f" ({'; '.join(facts.remarks)})" if facts.remarks else ""
    return f"{facts.missing_slices} slices are missing in one gap{details}, at most {most} may be"


def _to_number(what: str, value: float | None, wanted: Range | None, unit: str) -> str | None:
    if wanted is None or (value is not None and wanted.holds(value)):
        return None
    found = "absent" if value is None else in_figures(value) + unit
    return f"{what} is {found}, {wanted.in_words(unit)} wanted"


def _to_text(what: str, value: str, patterns: Sequence[str], *, absent: str = "absent") -> str | None:
    return _to_texts(what, [value] if value else [], patterns, absent=absent)


def _to_texts(
    what: str,
    values: Sequence[str],
    patterns: Sequence[str],
    *,
    absent: str = "absent",
    is_shown: bool = True,
) -> str | None:
    """Hold texts against patterns: none may fit one with "!", and one must fit one of the others, if any."""
    found = (_short("\\".join(values)) if is_shown else "not shown here") if values else absent
    candidates = [*values, "\\".join(values)] if len(values) > 1 else values or [""]
    excluded = [pattern for pattern in patterns if pattern.startswith("!")]
    included = [pattern for pattern in patterns if not pattern.startswith("!")]
    for pattern in excluded:
        if any(is_like(value, pattern[1:]) for value in candidates):
            return f"{what} is {found}, not wanted ({pattern})"
    if included and not any(is_like(value, pattern) for value in candidates for pattern in included):
        return f"{what} is {found}, wanted {_or(pattern or 'absent' for pattern in included)}"
    return None


def _to_attribute(stack: Stack, keyword: str, wanted: Sequence[str] | Range) -> str | None:
    """Hold an attribute of the first slice against its condition; every value must lie in a range."""
    ds = holder(stack.frames[0], keyword)
    is_shown = not _is_confidential(keyword)
    if not isinstance(wanted, Range):
        return _to_texts(keyword, attributes.texts(ds, keyword), wanted, is_shown=is_shown)
    values = attributes.numbers(ds, keyword)
    if values is not None and all(wanted.holds(float(value)) for value in values):
        return None
    figures = None if values is None else "\\".join(in_figures(float(value)) for value in values)
    shown = "absent" if figures is None else _short(figures)
    return f"{keyword} is {shown if is_shown else 'not shown here'}, {wanted.in_words()} wanted"


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"


def _is_confidential(keyword: str) -> bool:
    """Answer whether the value of an attribute may tell who a patient is."""
    tag = tag_for_keyword(keyword)
    if tag is None or keyword in _CONFIDENTIAL:
        return True
    return Tag(tag).group in _CONFIDENTIAL_GROUPS or dictionary_VR(tag) in _CONFIDENTIAL_KINDS


def _attribute_fault(keyword: str, wanted: Sequence[str] | Range) -> str | None:
    tag = tag_for_keyword(keyword)
    if tag is None:
        near = difflib.get_close_matches(keyword, keyword_dict, n=1)
        return "no DICOM attribute has this keyword" + (f'; did you mean "{near[0]}"?' if near else "")
    kinds = set(dictionary_VR(tag).split(" or "))
    if isinstance(wanted, Range) and not kinds & _NUMBERS:
        return "holds no number, so it cannot lie in a range; write a list of patterns"
    if not isinstance(wanted, Range) and kinds <= _NO_TEXT:
        return "is no text; attributes inside sequences cannot be asked for"
    return None


def _one_stack(
    objections: Sequence[str | None], facts: Sequence[Facts], route: RouteSettings
) -> list[str | None]:
    """Where several stacks fit, object to all of them, or to all but the best."""
    fitting = [index for index, words in enumerate(objections) if words is None]
    if len(fitting) < 2:
        return list(objections)
    best = min(fitting, key=lambda index: (rank(facts[index], route.prefer), index))
    decided = list(objections)
    for index in fitting:
        if route.several_stacks == "refuse":
            decided[index] = f'one of {len(fitting)} stacks that fit, and several_stacks is "refuse"'
        elif index != best:
            reason = compare(facts[index], facts[best], route.prefer) or "it comes first"
            decided[index] = f"stack {facts[best].stack} is better: {reason}"
    return decided


def _refusals(considered: Sequence[Verdict]) -> str:
    """Put the objections of all routes into one line; stacks with the same objection are named together."""
    by_route: dict[str, dict[str, list[str]]] = {}
    for one in considered:
        its = by_route.setdefault(one.route.name, {}).setdefault(str(one.objection), [])
        its.append(one.facts.stack)
    lines = (
        f"route {name!r}: " + ", ".join(f"{name_stacks(stacks)}{words}" for words, stacks in reasons.items())
        for name, reasons in by_route.items()
    )
    return "; ".join(lines) or "no route is configured"


def name_stacks(names: Sequence[str]) -> str:
    """Put the names of stacks before what is said of them; "" where a series has the one."""
    named = [name for name in names if name]
    if not named:
        return ""
    more = f" and {len(named) - _STACKS_NAMED} more" if len(named) > _STACKS_NAMED else ""
    return f"{', '.join(named[:_STACKS_NAMED])}{more}: "


def _or(choices: Iterator[str] | Sequence[str]) -> str:
    return " or ".join(sorted(choices))
