"""What would be done with each series of some studies, and why; nothing is decoded, kept or sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import Destination, ResultForm
from dicomnode.errors import InputError
from dicomnode.imaging import attributes
from dicomnode.imaging.images.facts import Facts, facts_of
from dicomnode.imaging.images.series import supported_images
from dicomnode.imaging.images.stacks import Stack, read_stacks
from dicomnode.pipeline.routing import Choice, Verdict, best_of, consider, to_choice
from dicomnode.settings import RouteSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one route says to the stacks of a series to which it says the same."""

    route: str
    stacks: tuple[str, ...]  # their names; "" is the only stack of its series
    objection: str | None  # None: takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What would be done with a series."""

    route: str
    model: str
    stack: str
    priority: str
    per_study: str
    destinations: tuple[tuple[str, tuple[ResultForm, ...]], ...]  # none: results stay at the site


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPlan:
    """One series: what it is, what every route says to it, and what would be done."""

    study_instance_uid: str
    series_instance_uid: str
    series_number: int | None
    series_description: str
    instances: int
    stacks: tuple[Facts, ...]  # none: the series is not one that can be read, and `reason` says why
    answers: tuple[Answer, ...]  # routes after the one that takes the series are not asked
    taken: Taken | None
    reason: str  # why nothing is done, or why this series of the study; else ""


@dataclass(frozen=True, slots=True)
class _Reading:
    """A series as far as it can be understood."""

    stacks: tuple[Stack, ...] = ()
    considered: tuple[Verdict, ...] = ()
    choice: Choice | None = None
    fault: str = ""


def rehearse(
    series: Mapping[str, Sequence[Dataset]],
    *,
    routes: Sequence[RouteSettings],
    destinations: Mapping[str, Destination],
    sender: str,
) -> list[SeriesPlan]:
    """Say what would be done if these series, by Series Instance UID, came from a sender and were complete.

    Returns
    -------
        In the order of study and Series Number.
    """
    readings = {uid: _read(datasets, routes, sender) for uid, datasets in series.items()}
    studies = {uid: attributes.text(datasets[0], "StudyInstanceUID") for uid, datasets in series.items()}
    reasons = _best_of_studies(readings, studies)
    plans = [
        _plan(uid, series[uid], reading, destinations, beaten=reasons.get(uid, (True, "")))
        for uid, reading in readings.items()
    ]
    return sorted(plans, key=lambda plan: (plan.study_instance_uid, plan.series_number or 0))


def _read(datasets: Sequence[Dataset], routes: Sequence[RouteSettings], sender: str) -> _Reading:
    try:
        stacks = read_stacks(supported_images(datasets))
    except InputError as error:
        return _Reading(fault=str(error))
    considered = consider(stacks, routes, sender=sender)
    return _Reading(stacks, considered, to_choice(considered))


def _best_of_studies(
    readings: Mapping[str, _Reading], studies: Mapping[str, str]
) -> dict[str, tuple[bool, str]]:
    """Where a route takes one series of a study: of each that fits whether it is that one, and why."""
    rivals: dict[tuple[str, str], dict[str, Choice]] = {}
    for uid, reading in readings.items():
        if reading.choice is not None and reading.choice.route.per_study == "best":
            rivals.setdefault((studies[uid], reading.choice.route.name), {})[uid] = reading.choice
    decided: dict[str, tuple[bool, str]] = {}
    for (_, route), choices in rivals.items():
        best, behind = best_of(choices)
        others = f"the best of {len(choices)} series that fit" if behind else "the only series that fits"
        decided[best] = (True, f"{others}, in this study")
        for uid, words in behind.items():
            decided[uid] = (False, f"route {route} takes only the best of a study, which is {best}: {words}")
    return decided


def _plan(
    uid: str,
    datasets: Sequence[Dataset],
    reading: _Reading,
    destinations: Mapping[str, Destination],
    *,
    beaten: tuple[bool, str],
) -> SeriesPlan:
    is_best, why = beaten
    first = datasets[0]
    choice = reading.choice
    return SeriesPlan(
        study_instance_uid=attributes.text(first, "StudyInstanceUID"),
        series_instance_uid=uid,
        series_number=attributes.integer(first, "SeriesNumber"),
        series_description=attributes.text(first, "SeriesDescription"),
        instances=len(datasets),
        stacks=tuple(facts_of(stack, stacks=len(reading.stacks)) for stack in reading.stacks),
        answers=_answers(reading.considered),
        taken=_taken(choice, destinations) if choice is not None and is_best else None,
        reason=reading.fault or why or ("" if choice else "no route takes it"),
    )


def _answers(considered: Sequence[Verdict]) -> tuple[Answer, ...]:
    stacks: dict[tuple[str, str | None], list[str]] = {}
    for one in considered:
        stacks.setdefault((one.route.name, one.objection), []).append(one.facts.stack)
    return tuple(
        Answer(route=route, stacks=tuple(names), objection=objection)
        for (route, objection), names in stacks.items()
    )


def _taken(choice: Choice, destinations: Mapping[str, Destination]) -> Taken:
    route = choice.route
    names = route.destinations or tuple(destinations)
    return Taken(
        route=route.name,
        model=route.model,
        stack=choice.facts.stack,
        priority=route.priority,
        per_study=route.per_study,
        destinations=tuple((name, destinations[name].results) for name in names),
    )
