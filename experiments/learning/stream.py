"""The corrections that come in night after night, a fifth of them wrong, and what judges them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import data
import numpy as np
from data import MISTAKES, Example, Mistake

NIGHTLY = 6
WRONG_SHARE = 0.2
HOLD_OUT_EVERY = 5
FIRST_NIGHT_WITH_B = 6
B_NIGHTLY = 3
COMMISSIONING = 6
A_TEST, B_TEST = 18, 7
BASE_CASES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """One corrected case as it comes in."""

    name: str
    mistake: Mistake | None  # what is wrong with it, which nobody is told
    is_hold_out: bool

    def example(self, seed: int) -> Example:
        """Give the image with the labels of the correction, right or wrong."""
        right = data.example(self.name)
        return right if self.mistake is None else data.spoilt(right, self.mistake, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """All that comes in, and who is on which side; no case is there twice."""

    seed: int
    base: tuple[str, ...]  # what the first model has seen
    commissioning: tuple[Correction, ...]  # right, in the hold-out from the beginning
    nights: tuple[tuple[Correction, ...], ...]
    test: tuple[str, ...]  # right, known to no contender

    @property
    def wrong(self) -> tuple[Correction, ...]:
        """Give the corrections that are wrong."""
        return tuple(one for night in self.nights for one in night if one.mistake is not None)


@cache
def stream_of(seed: int, nights: int) -> Stream:
    """Draw what comes in: A in the first six nights, then A and B half by half.

    A site has a few cases that were checked with care when it began; without them the gate would have nothing
    to say for the first nights, and nothing could be accepted in them.
    """
    generator = np.random.default_rng([seed, 2])
    a, b = ([str(name) for name in generator.permutation(list(data.names_of(kind)))] for kind in ("A", "B"))
    test = (*_taken(a, A_TEST), *_taken(b, B_TEST))
    first, checked = _taken(a, BASE_CASES), _taken(a, COMMISSIONING)
    names = [
        name
        for night in range(nights)
        for name in (
            _taken(a, NIGHTLY)
            if night < FIRST_NIGHT_WITH_B
            else [*_taken(a, NIGHTLY - B_NIGHTLY), *_taken(b, B_NIGHTLY)]
        )
    ]
    mistakes = _mistakes(len(names), generator)
    coming = [
        Correction(name=name, mistake=mistake, is_hold_out=index % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1)
        for index, (name, mistake) in enumerate(zip(names, mistakes, strict=True))
    ]
    return Stream(
        seed=seed,
        base=tuple(first),
        commissioning=tuple(Correction(name=name, mistake=None, is_hold_out=True) for name in checked),
        nights=tuple(tuple(coming[start : start + NIGHTLY]) for start in range(0, len(coming), NIGHTLY)),
        test=test,
    )


def _mistakes(count: int, generator: np.random.Generator) -> Sequence[Mistake | None]:
    """Say what is wrong with each correction: a fifth is, each way as often as the others."""
    wrong = round(WRONG_SHARE * count)
    kinds: list[Mistake | None] = [MISTAKES[index % len(MISTAKES)] for index in range(wrong)]
    kinds += [None] * (count - wrong)
    return [kinds[index] for index in generator.permutation(count)]


def _taken(names: list[str], count: int) -> list[str]:
    taken = names[:count]
    del names[:count]
    return taken
