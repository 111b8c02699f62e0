"""Broken objects of every writer: decoded right or refused with the reason, within bounds, never misplaced.

What may follow from a change depends on whether anything else in the object contradicts it. A frame's
position and its source reference say the same twice, so that a change of one must never move a mask without
a doubt for a person; pixels, segment numbers and contour coordinates stand for themselves. `may_change`
holds what is known of that. `DICOMNODE_FUZZ_EXAMPLES` multiplies the examples.
"""

import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from dicomnode.domain import StoredInstance
from dicomnode.errors import InputError, ResourceError
from dicomnode.imaging import mirror, received, recognition
from dicomnode.imaging.decoded import Decoded
from dicomnode.spool import Spool
from tests.fuzz_builders import (
    CANARIES,
    CARD,
    EDITS,
    Base,
    Mutant,
    bases,
    changes_of,
    edited,
    elements_of,
    every_single,
    mutant,
    words,
)
from tests.imaging_builders import NOW, item, part_10

EXAMPLES = int(os.environ.get("DICOMNODE_FUZZ_EXAMPLES", "1"))
LONGEST_S = 20.0  # of the clock on the wall: other tests run beside these
LONGEST_MESSAGE = 2000
BASES = bases()
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the node makes of one file."""

    kind: str  # refused, equal, missing, held, flagged, silent or crashed
    said: str = ""  # reason of a refusal, or what is wrong with the labels
    seconds: float = 0.0


class Node:
    """Reads files as the node does: from its spool, and everything that the pipeline asks of an object."""

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder, minimum_free_bytes=0)
        self._path = folder / "received.dcm"
        self.known = {name: self._decoded(base, base.tree.encode()) for name, base in BASES.items()}

    def outcome(self, base: Base, broken: Mutant) -> Outcome:
        """Read a file; any error that is not of the tree is a crash."""
        start = time.perf_counter()
        try:
            decoded = self._decoded(base, broken.content, own_uid=("SOPInstanceUID",) not in broken.touched)
        except (InputError, ResourceError) as error:
            kind, said = "refused", str(error)
        except Exception:
            kind, said = "crashed", traceback.format_exc()[-1500:]
        else:
            kind, said = judged(base, decoded, self.known[base.name])
        return Outcome(kind=kind, said=said, seconds=time.perf_counter() - start)

    def reading(self, base: Base, content: bytes) -> str:
        """Read a file that may contradict itself: refused, doubted, exact or wrong."""
        try:
            decoded = self._decoded(base, content)
        except InputError:
            return "refused"
        kind, said = judged(base, decoded, self.known[base.name])
        if decoded.doubts:
            return "doubted"
        return "exact" if kind == "equal" else f"wrong: {kind}, {said}"

    def _decoded(self, base: Base, content: bytes, *, own_uid: bool = True) -> Decoded:
        self._path.write_bytes(content)
        stored = StoredInstance(
            sop_instance_uid=base.sop_instance_uid if own_uid else uid_in(content),
            sop_class_uid="",
            series_instance_uid="",
            study_instance_uid="",
            modality="",
            transfer_syntax_uid="",
            sha256="",
            size_bytes=0,
            path=self._path.name,
            sender="SENDER",
            received_at=NOW,
        )
        (ds,) = self._spool.read([stored])
        received.referenced_series(ds)
        received.referenced_instances(ds)
        stack = received.stack_of(ds, [base.stack])
        decoded = received.decode(ds, stack=stack, card=CARD, aliases={})
        received.content_time(ds)
        received.is_whole_save(ds)
        known = recognition.Known(sent=[], prediction=dict(base.truth), model_name=CARD.name)
        recognition.recognise(ds, decoded=decoded, known=known)
        recognition.author(ds, "SENDER")
        mirror.arbitrate(ds, decoded=decoded, prediction=base.truth, image=None, unflip=False)
        return decoded


def uid_in(content: bytes) -> str:
    """The SOP Instance UID under which the node keeps a file."""
    try:
        return str(dcmread(BytesIO(content)).SOPInstanceUID)
    except Exception:  # the node is held to its own errors when it reads the same file
        return ""


def judged(base: Base, decoded: Decoded, whole: Decoded) -> tuple[str, str]:
    """Compare what an object says of each label with the truth; a label that it says nothing of is unknown."""
    nothing = np.zeros(decoded.shape, np.bool_)
    claims = dict.fromkeys(decoded.empty_labels, nothing) | dict(decoded.masks)
    wrong = [label for label, mask in claims.items() if not np.array_equal(mask, base.truth[label])]
    more_flags = set(decoded.flags) - set(whole.flags)
    said = f"{wrong} of {sorted(claims)}, flags {sorted(more_flags)}, doubts {decoded.doubts}"
    if wrong:
        return ("held" if decoded.doubts else "flagged" if more_flags else "silent"), said
    if claims.keys() < base.truth.keys():
        is_seen = more_flags or decoded.doubts or decoded.unmapped
        return ("missing" if is_seen else "silent"), said
    return "equal", said


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
    """Every kind of element removed and emptied, at one of its places."""
    places = {}
    for one in every_single(base):
        in_meta, path, name, _ = one
        if name in {"removed", "emptied"}:
            key = (in_meta, words(base.tree.meta if in_meta else base.tree.content, path), name)
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
    assert findings_of(node, BASES[name], some_of_all(BASES[name], 1, 60 * EXAMPLES)) == []


@settings(max_examples=30 * EXAMPLES, suppress_health_check=list(HealthCheck))
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


@settings(max_examples=30 * EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.data())
@pytest.mark.parametrize("name", BASES)
def test_a_file_with_any_bytes_changed_is_read_right_held_or_refused(name, node, data):
    base = BASES[name]
    places = st.integers(132, len(base.tree.encode()) - 1)
    edits = st.lists(
        st.tuples(st.sampled_from(sorted(EDITS)), places, st.integers(0, 255)), min_size=1, max_size=4
    )
    assert findings_of(node, base, iter([edited(base, data.draw(edits))])) == []


def frames(ds):
    return ds.PerFrameFunctionalGroupsSequence


def position(ds, index):
    return frames(ds)[index].PlanePositionSequence[0]


def source(ds, index):
    return frames(ds)[index].DerivationImageSequence[0].SourceImageSequence[0]


def beside(ds, *, rows=0, columns=0, slices=0, index=None):
    """Move positions by whole voxels of the plain series."""
    for k in range(len(frames(ds))) if index is None else [index]:
        x, y, z = map(float, position(ds, k).ImagePositionPatient)
        position(ds, k).ImagePositionPatient = [x + 0.5 * columns, y + 0.75 * rows, z + 2.0 * slices]


def exchanged(ds, get, keyword):
    """Exchange an attribute of the first frame with that of the next one on another slice."""
    here = get(ds, 0)
    there = next(get(ds, k) for k in range(len(frames(ds))) if get(ds, k)[keyword] != here[keyword])
    here[keyword], there[keyword] = there[keyword], here[keyword]


def grid(ds):
    """Say orientation and pixel spacing, where an object leaves them out, in the shared groups."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    if "PlaneOrientationSequence" not in shared:
        shared.PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
        shared.PixelMeasuresSequence = [item(PixelSpacing=[0.75, 0.5], SliceThickness=2)]
    return shared


def with_cosines(ds, cosines):
    grid(ds).PlaneOrientationSequence[0].ImageOrientationPatient = cosines


def with_spacing(ds, spacing):
    grid(ds).PixelMeasuresSequence[0].PixelSpacing = spacing


def with_own_groups(ds, keyword, group):
    setattr(frames(ds)[1], keyword, [group])


def without(ds, keyword):
    for frame in frames(ds):
        del frame[keyword]


def other_segment(ds):
    number = frames(ds)[0].SegmentIdentificationSequence[0]
    number.ReferencedSegmentNumber = 3 - number.ReferencedSegmentNumber


def labels_exchanged(ds, keyword):
    one, two = [segment for segment in ds.SegmentSequence if segment.SegmentNumber > 0]
    one[keyword], two[keyword] = two[keyword], one[keyword]


EXACT, DOUBT, EITHER = "exact", "doubted", "exact or doubted"
PLACES = {  # one contradiction each, and what may become of it; refused is always right
    "a frame without position": (EXACT, lambda ds: frames(ds)[1].pop("PlanePositionSequence")),
    "no positions": (EXACT, lambda ds: without(ds, "PlanePositionSequence")),
    "no references": (EITHER, lambda ds: without(ds, "DerivationImageSequence")),
    "no frame of reference": (EXACT, lambda ds: ds.pop("FrameOfReferenceUID")),
    "a frame on the next slice": (DOUBT, lambda ds: beside(ds, slices=1, index=0)),
    "a frame far away": (DOUBT, lambda ds: beside(ds, slices=40, index=0)),
    "a frame between slices": (DOUBT, lambda ds: beside(ds, slices=0.6, index=0)),
    "a frame a row further": (DOUBT, lambda ds: beside(ds, rows=1, index=0)),
    "all frames on the next slice": (DOUBT, lambda ds: beside(ds, slices=1)),
    "all frames a column further": (DOUBT, lambda ds: beside(ds, columns=1)),
    "all frames on no slice": (DOUBT, lambda ds: beside(ds, slices=100)),
    "all frames nearly in place": (EXACT, lambda ds: beside(ds, slices=0.04)),
    "positions exchanged": (DOUBT, lambda ds: exchanged(ds, position, "ImagePositionPatient")),
    "references exchanged": (DOUBT, lambda ds: exchanged(ds, source, "ReferencedSOPInstanceUID")),
    "columns turned": (DOUBT, lambda ds: with_cosines(ds, [-1, 0, 0, 0, 1, 0])),
    "rows turned": (DOUBT, lambda ds: with_cosines(ds, [1, 0, 0, 0, -1, 0])),
    "rows and columns exchanged": (DOUBT, lambda ds: with_cosines(ds, [0, 1, 0, 1, 0, 0])),
    "tilted": (DOUBT, lambda ds: with_cosines(ds, [1, 0, 0, 0, 0.8, 0.6])),
    "twice as large pixels": (DOUBT, lambda ds: with_spacing(ds, [1.5, 1.0])),
    "spacings exchanged": (DOUBT, lambda ds: with_spacing(ds, [0.5, 0.75])),
    "a frame turned": (
        DOUBT,
        lambda ds: with_own_groups(
            ds, "PlaneOrientationSequence", item(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
        ),
    ),
    "a frame of other pixels": (
        DOUBT,
        lambda ds: with_own_groups(ds, "PixelMeasuresSequence", item(PixelSpacing=[3, 3])),
    ),
}
REDUNDANT = (
    "ours, binary, plain",
    "ours, label map, plain",
    "highdicom, BINARY",
    "highdicom, LABELMAP",
    "dcmjs, binary",
    "dcmjs, label map",
    "not preserved",
    "1-bit RLE, packed",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", REDUNDANT)
def test_what_is_said_twice_of_a_place_must_agree(name, place, node):
    allowed, change = PLACES[place]
    ds = dcmread(BytesIO(BASES[name].tree.encode()))
    change(ds)

    said = node.reading(BASES[name], part_10(ds))

    assert said == "refused" or said in allowed
