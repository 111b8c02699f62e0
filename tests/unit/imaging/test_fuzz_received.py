"""Broken objects of every writer: decoded right or refused with the reason, within bounds, never misplaced.

What may follow from a change depends on whether anything else in the object contradicts it. A frame's
position and its source reference say the same twice, so that a change of one must never move a mask without
a doubt for a person; pixels, segment numbers and contour coordinates stand for themselves. `may_change`
holds what is known of that. `DICOMNODE_FUZZ_EXAMPLES` multiplies the examples.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz_builders import (
    EDITS,
    Base,
    Mutant,
    changes_of,
    edited,
    elements_of,
    every_single,
    mutant,
    words,
)
from tests.fuzz_node import BASES, Node, Outcome, judged
from tests.fuzz_objects import CANARIES

EXAMPLES = int(os.environ.get("DICOMNODE_FUZZ_EXAMPLES", "1"))
LONGEST_S = 20.0  # of the clock on the wall: other tests run beside these
LONGEST_MESSAGE = 2000
SEEN: Counter[str] = Counter()

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(3600)]

POSITION = frozenset(
    {
        "FrameOfReferenceUID",
        "SharedFunctionalGroupsSequence",
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
    }
)
REFERENCE = frozenset({"DerivationImageSequence"})
NUMBER = frozenset({"SegmentIdentificationSequence"})
RANK = frozenset({"FrameContentSequence", "DimensionIndexSequence"})
FORM = frozenset({"Rows", "Columns", "BitsAllocated", "SegmentationType", "SOPClassUID", "TransferSyntaxUID"})
MEANING = frozenset(
    {
        "SegmentLabel",
        "TrackingUID",
        "SegmentedPropertyTypeCodeSequence",
        "AnatomicRegionSequence",
        "ROIName",
        "ROIObservationLabel",
        "RTROIIdentificationCodeSequence",
    }
)
SAID_TWICE = ((POSITION, REFERENCE), (REFERENCE, POSITION), (NUMBER, RANK), (RANK, NUMBER))
TOGETHER = (FORM, MEANING)
SPEAKS_ALONE = frozenset(
    {
        ("PixelData",),
        ("MaximumFractionalValue",),
        ("SegmentSequence", "SegmentNumber"),
        ("PerFrameFunctionalGroupsSequence",),
        ("StructureSetROISequence", "ROINumber"),
        ("ROIContourSequence",),
        ("ROIContourSequence", "ContourSequence"),
        ("ROIContourSequence", "ContourSequence", "ContourData"),
        ("ROIContourSequence", "ContourSequence", "ContourGeometricType"),
    }
)
KEYWORDS = {
    name: {element.keyword for _, _, element in elements_of(base.tree)} for name, base in BASES.items()
}


def may_change(base: Base, touched: tuple[tuple[str, ...], ...]) -> bool:
    """Answer whether nothing that is left of an object speaks against what the changes say."""
    if SPEAKS_ALONE & set(touched):
        return True
    for one, other in SAID_TWICE:
        is_other_told = bool(other & KEYWORDS[base.name] - _EVERYWHERE) and not _touched(other, touched)
        if _touched(one, touched) and not is_other_told:
            return True
    return any(_touched(group, touched) > 1 for group in TOGETHER)


_EVERYWHERE = frozenset({"FrameOfReferenceUID", "SharedFunctionalGroupsSequence"})


def _touched(group: frozenset[str], touched: tuple[tuple[str, ...], ...]) -> int:
    return sum(bool(group & set(words)) for words in touched)


def finding(base: Base, broken: Mutant, outcome: Outcome) -> str:
    """Say what is wrong with an outcome; "" where it is right."""
    wrong = []
    if outcome.kind == "crashed":
        wrong.append("crashed")
    if outcome.kind in {"flagged", "silent"} and not may_change(base, broken.touched):
        wrong.append(f"misplaced ({outcome.kind})")
    if outcome.kind == "refused":
        wrong += _faults_of(outcome.said, base, broken)
    if outcome.seconds > LONGEST_S:
        wrong.append(f"took {outcome.seconds:.1f} s")
    return (
        f"{base.name}: {'; '.join(broken.told)} -> {', '.join(wrong)}: {outcome.said[-1500:]}"
        if wrong
        else ""
    )


def _faults_of(message: str, base: Base, broken: Mutant) -> Iterator[str]:
    if base.sop_instance_uid not in message and not any(
        "SOPInstanceUID" in words for words in broken.touched
    ):
        yield "message without UID"
    if any(value.decode().strip() in message for value in CANARIES.values()):
        yield "message with patient data"
    if len(message) > LONGEST_MESSAGE:
        yield f"message of {len(message)} letters"


def findings_of(node: Node, base: Base, mutants: Iterator[Mutant]) -> list[str]:
    found = []
    for broken in mutants:
        outcome = node.outcome(base, broken)
        SEEN[outcome.kind] += 1
        found.append(finding(base, broken, outcome))
    return [one for one in found if one]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    yield Node(tmp_path_factory.mktemp("spool"))
    print(f"\nobjects {SEEN.total()}: {dict(SEEN)}")


@pytest.mark.parametrize("name", BASES)
def test_whole_objects_are_read_right(name, node):
    assert judged(BASES[name], node.known[name], node.known[name])[0] == "equal"
    assert node.known[name].doubts == ()


def one_of_each(base: Base, seed: int) -> Iterator[Mutant]:
    """Every kind of element removed or emptied, at one of its places."""
    places = {}
    for one in every_single(base):
        in_meta, path, name, _ = one
        if name in {"removed", "emptied"}:
            key = (in_meta, words(base.tree.meta if in_meta else base.tree.content, path))
            places.setdefault(key, []).append(one)
    chance = random.Random(seed)
    return (mutant(base, chance.choice(found)) for found in places.values())


def some_of_all(base: Base, seed: int, count: int) -> Iterator[Mutant]:
    """Changes of any kind anywhere, the kinds of elements with equal chances."""
    places = {}
    for one in every_single(base):
        in_meta, path, name, _ = one
        key = (in_meta, words(base.tree.meta if in_meta else base.tree.content, path))
        places.setdefault(key, {}).setdefault(name, []).append(one)
    chance = random.Random(seed)
    for _ in range(count):
        names = chance.choice(list(places.values()))
        yield mutant(base, chance.choice(chance.choice(list(names.values()))))


@pytest.mark.parametrize("name", BASES)
def test_an_object_without_any_one_element_or_value_is_read_right_or_refused(name, node):
    for seed in range(EXAMPLES):
        assert findings_of(node, BASES[name], one_of_each(BASES[name], seed)) == []


@pytest.mark.parametrize("name", BASES)
def test_an_object_with_any_one_value_changed_is_read_right_held_or_refused(name, node):
    assert findings_of(node, BASES[name], some_of_all(BASES[name], 1, 30 * EXAMPLES)) == []


@settings(max_examples=14 * EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.data())
@pytest.mark.parametrize("name", BASES)
def test_an_object_with_several_changes_is_read_right_held_or_refused(name, node, data):
    base = BASES[name]
    found = elements_of(base.tree)
    others = [element for _, _, element in found]
    chosen = data.draw(st.lists(st.sampled_from(range(len(found))), min_size=2, max_size=5, unique=True))
    changes = []
    for index in chosen:
        in_meta, path, element = found[index]
        of_element = changes_of(element, others)
        kind = data.draw(st.sampled_from(sorted(of_element)))
        changes.append((in_meta, path, kind, of_element[kind]))
    assert findings_of(node, base, iter([mutant(base, *changes)])) == []


@settings(max_examples=14 * EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.data())
@pytest.mark.parametrize("name", BASES)
def test_a_file_with_any_bytes_changed_is_read_right_held_or_refused(name, node, data):
    base = BASES[name]
    places = st.integers(132, len(base.tree.encode()) - 1)
    edits = st.lists(
        st.tuples(st.sampled_from(sorted(EDITS)), places, st.integers(0, 255)), min_size=1, max_size=4
    )
    assert findings_of(node, base, iter([edited(base, data.draw(edits))])) == []
