"""Which labels go together into one BINARY segmentation where there are too many for one."""

from collections.abc import Sequence
from itertools import pairwise

from dicomnode.domain import Code, Segment
from dicomnode.imaging.results.findings import Measure

MOST_SEGMENTS = 30
"""Of one BINARY object: viewers grow slow or run out of memory above (spec: OHIF #5407, Weasis #680)."""

_SAME_TYPE, _SAME_ORGAN_GROUP = (
    50,
    20,
)  # what it costs to cut there; leaving one segment's room costs 1, two 4


def split(found: Sequence[Measure]) -> tuple[tuple[Measure, ...], ...]:
    """Split found labels by organ group into as few parts as hold them, about equally filled.

    Labels are brought together by coded region and category, then by coded type, so that the left and the
    right of a pair stay together; cuts are made where they separate least. Within a part the order is
    that of `found`.
    """
    if len(found) <= MOST_SEGMENTS:
        return (tuple(found),) if found else ()
    grouped = _grouped(found)
    places = {id(measure): index for index, measure in enumerate(found)}
    cuts = [0, *_cuts(grouped), len(grouped)]
    parts = [grouped[first:last] for first, last in pairwise(cuts)]
    return tuple(tuple(sorted(part, key=lambda measure: places[id(measure)])) for part in parts)


def _grouped(found: Sequence[Measure]) -> list[Measure]:
    groups = list(dict.fromkeys(_organ_group(measure.segment) for measure in found))
    types = list(dict.fromkeys(_type(measure.segment) for measure in found))
    return sorted(found, key=lambda m: (groups.index(_organ_group(m.segment)), types.index(_type(m.segment))))


def _cuts(grouped: Sequence[Measure]) -> list[int]:
    """Find the cheapest places to cut, by dynamic programming over the number of parts."""
    count = -(-len(grouped) // MOST_SEGMENTS)
    share = len(grouped) / count
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for _ in range(count):
        reached: dict[int, tuple[float, list[int]]] = {}
        for first, (cost, cuts) in best.items():
            for last in range(first + 1, min(first + MOST_SEGMENTS, len(grouped)) + 1):
                total = cost + (last - first - share) ** 2 + _cost(grouped, last)
                if last not in reached or total < reached[last][0]:
                    reached[last] = (total, [*cuts, last])
        best = reached
    return best[len(grouped)][1][:-1]


def _cost(grouped: Sequence[Measure], at: int) -> int:
    if at == len(grouped):
        return 0
    before, after = grouped[at - 1].segment, grouped[at].segment
    if _organ_group(before) != _organ_group(after):
        return 0
    return _SAME_TYPE if _type(before) == _type(after) else _SAME_ORGAN_GROUP


def _organ_group(segment: Segment) -> tuple[str, ...]:
    return (*_key(segment.region), *_key(segment.category))


def _type(segment: Segment) -> tuple[str, ...]:
    return _key(segment.type)


def _key(code: Code | None) -> tuple[str, ...]:
    return (code.scheme, code.value) if code else ("", "")
