"""Which cases are trained on, which choose between settings, and which are only measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dicomnode.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSplit:
    """Names of cases by use; the three do not overlap."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    hold_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCase:
    """What decides the side of a case."""

    name: str
    stratum: str  # every kind of intensities is on every side
    patient: str = ""  # cases of one patient stay together; empty: a patient of its own
    is_hold_out: bool | None = None  # fixed before; None: drawn


def split_cases(
    cases: Sequence[SplitCase],
    *,
    hold_out_fraction: float,
    validation_fraction: float,
    generator: np.random.Generator,
) -> CaseSplit:
    """Split cases by patient within each stratum.

    Patients are drawn by name: the same names, strata, fractions and seed give the same split. Where a case
    of a patient was fixed to a side before, all of them go there; where one was held out, that is the side.

    Raises
    ------
    InputError
        Nothing would be left to train on, or nothing to judge by.
    """
    patients: dict[str, list[SplitCase]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.name):
        patients[case.patient or case.name].append(case)
    strata: dict[str, list[str]] = defaultdict(list)
    for patient, own in patients.items():
        strata[own[0].stratum].append(patient)
    training: list[str] = []
    validation: list[str] = []
    hold_out: list[str] = []
    for stratum in sorted(strata):
        names = [str(name) for name in generator.permutation(strata[stratum])]
        held, rest = _hold_out(names, patients, fraction=hold_out_fraction)
        count = round(len(names) * validation_fraction)
        hold_out += held
        validation += rest[:count]
        training += rest[count:]
    split = CaseSplit(
        training=_cases_of(training, patients),
        validation=_cases_of(validation, patients),
        hold_out=_cases_of(hold_out, patients),
    )
    if not split.training or not split.hold_out:
        raise InputError(f"{len(cases)} labelled cases are too few to train on some and judge on others.")
    return split


def _hold_out(
    names: Sequence[str], patients: Mapping[str, Sequence[SplitCase]], *, fraction: float
) -> tuple[list[str], list[str]]:
    """Say which patients of a stratum are held out, and which are left: the drawn ones first."""
    fixed = {name: {case.is_hold_out for case in patients[name]} - {None} for name in names}
    drawn = [name for name in names if not fixed[name]]
    held = [name for name in names if True in fixed[name]]
    others = [name for name in names if fixed[name] == {False}]
    count = round(len(drawn) * fraction)
    return drawn[:count] + held, drawn[count:] + others


def _cases_of(names: Sequence[str], patients: Mapping[str, Sequence[SplitCase]]) -> tuple[str, ...]:
    return tuple(sorted(case.name for name in names for case in patients[name]))
