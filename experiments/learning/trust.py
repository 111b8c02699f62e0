"""How much the corrections of a site are trusted, by the doubts of the product."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from data import CLASSES, Example, Labels
from world import Json

from dicomnode.ml.evaluation import suspicion
from dicomnode.ml.evaluation.disagreement import CaseFigures, SuspectCase, measure

TRUSTED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Weight and reasons of the cases that are doubted; all others are trusted."""

    doubts: Mapping[str, tuple[float, tuple[str, ...]]] = field(default_factory=dict)

    def of(self, name: str) -> float:
        """Give the weight of a case, 0 to 1."""
        return self.doubts.get(name, (1.0, ()))[0]

    def doubted(self) -> Iterator[tuple[str, float, tuple[str, ...]]]:
        """Go through the doubted cases."""
        for name, (weight, reasons) in sorted(self.doubts.items()):
            yield name, weight, reasons

    @classmethod
    def from_json(cls, found: Mapping[str, Json]) -> "Trust":
        """Read what was written: for each case its weight, then its reasons."""
        doubts = {}
        for name, parts in found.items():
            if isinstance(parts, list):
                doubts[name] = (float(str(parts[0])), tuple(map(str, parts[1:])))
        return cls(doubts=doubts)


def trust_in(cases: Sequence[tuple[Example, Labels]], *, known: Set[str], before: Trust) -> Trust:
    """Judge corrections beside the results of the version in use.

    Parameters
    ----------
    cases
        Each correction with the result of the model.
    known
        Names of cases that were there before; those not doubted then say what is usual.
    before
        What was thought of them.
    """
    figures: dict[str, CaseFigures] = {}
    for case, prediction in cases:
        weights = np.ones((CLASSES - 1, case.labels.shape[0]), np.float32)
        figures[case.name] = measure(
            SuspectCase(
                case_id=case.name,
                image=np.asarray(case.image.array, np.float32),
                correction=case.labels,
                prediction=prediction,
                slice_weights=weights,
                spacing_mm=case.spacing_mm,
            )
        )
    usual = [one for name, one in figures.items() if name in known and before.of(name) >= TRUSTED]
    references = suspicion.references_of(usual)
    judged = [suspicion.judge(name, one, references=references) for name, one in figures.items()]
    return Trust(doubts={one.case_id: (one.weight, one.reasons) for one in judged if one.weight < 1})
