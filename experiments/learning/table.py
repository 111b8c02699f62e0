"""Figures over seeds, and Markdown tables of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from world import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and standard deviation over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Give the mean; NaN where there is nothing."""
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def deviation(self) -> float:
        """Give the standard deviation of the sample; 0 with one value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    @property
    def median(self) -> float:
        """Give the median: for times, which a pause of the machine makes long."""
        return float(np.median(self.values)) if self.values else float("nan")

    def words(self, digits: int = 3) -> str:
        """Write it for a table."""
        if not self.values:
            return "-"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"

    def in_json(self) -> Json:
        """Write it for the summary."""
        if not self.values:
            return None
        return {"mean": self.mean, "sd": self.deviation, "n": len(self.values)}


def spread(values: Iterable[float]) -> Spread:
    """Take values together."""
    return Spread(values=tuple(values))


def at(result: Mapping[str, Json], *keys: str) -> Json:
    """Give what stands under some keys, one inside the other."""
    found: Json = dict(result)
    for key in keys:
        if not isinstance(found, dict):
            raise TypeError(f"nothing stands under {key!r}")
        found = found[key]
    return found


def number(result: Mapping[str, Json], *keys: str) -> float:
    """Give the number under some keys."""
    found = at(result, *keys)
    if not isinstance(found, int | float):
        raise TypeError(f"{keys} is no number")
    return float(found)


def numbers(result: Mapping[str, Json], key: str) -> list[float]:
    """Give the numbers of a list."""
    found = result[key]
    if not isinstance(found, list):
        raise TypeError(f"{key} is no list")
    return [float(one) for one in found if isinstance(one, int | float)]


def rows_of(result: Mapping[str, Json], key: str) -> list[dict[str, Json]]:
    """Give the records of a list."""
    found = result[key]
    if not isinstance(found, list):
        raise TypeError(f"{key} is no list")
    return [one for one in found if isinstance(one, dict)]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
