"""Objects that contradict themselves, or claim far more than they hold, one contradiction at a time."""

import multiprocessing
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicomnode.errors import CorrectionError
from dicomnode.imaging.reading import received
from tests.fuzz_builders import Mutant, every_single, mutant, words
from tests.fuzz_node import BASES, Node
from tests.fuzz_objects import CARD, LABELS, bombs
from tests.imaging_builders import item, part_10

BOMBS = bombs(BASES)
MOST_KIB = 300 * 1024
LONGEST_S = 20.0  # of the clock on the wall: other tests run beside these

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    return Node(tmp_path_factory.mktemp("spool"))


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


EXACT, DOUBT = frozenset({"exact"}), frozenset({"doubted", "refused"})
PLACES = {  # one contradiction each, and what may become of it
    "a frame without position": (EXACT, lambda ds: frames(ds)[1].pop("PlanePositionSequence")),
    "no positions": (EXACT, lambda ds: without(ds, "PlanePositionSequence")),
    "no references": (EXACT | DOUBT, lambda ds: without(ds, "DerivationImageSequence")),
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

    assert node.reading(BASES[name], part_10(ds)) in allowed


def contours(ds):
    return [contour for roi in ds.ROIContourSequence for contour in roi.ContourSequence]


def moved(ds, by_mm):
    """Move the first contour along z."""
    first = contours(ds)[0]
    points = np.array(first.ContourData, float).reshape(-1, 3) + np.array([0, 0, by_mm])
    first.ContourData = points.reshape(-1).tolist()


def image(ds, index):
    return contours(ds)[index].ContourImageSequence[0]


CONTOURS = {
    "a contour names another image": lambda ds: setattr(
        image(ds, 0), "ReferencedSOPInstanceUID", image(ds, -1).ReferencedSOPInstanceUID
    ),
    "a contour on the next slice": lambda ds: moved(ds, 2.0),
    "a contour between slices": lambda ds: moved(ds, 1.0),
    "a contour far away": lambda ds: moved(ds, 500.0),
    "fewer points than said": lambda ds: setattr(contours(ds)[0], "NumberOfContourPoints", 99),
    "contours of two structures under one number": lambda ds: setattr(
        ds.ROIContourSequence[0], "ReferencedROINumber", ds.ROIContourSequence[1].ReferencedROINumber
    ),
    "structures of one name": lambda ds: setattr(ds.StructureSetROISequence[0], "ROIName", LABELS[1]),
    "another frame of reference": lambda ds: setattr(
        ds.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1.2.3"
    ),
    "a contour twice": lambda ds: ds.ROIContourSequence[0].ContourSequence.append(contours(ds)[0]),
    "a contour without points": lambda ds: contours(ds)[0].pop("ContourData"),
    "a contour of unknown kind": lambda ds: setattr(contours(ds)[0], "ContourGeometricType", "ROUND"),
}


@pytest.mark.parametrize("place", CONTOURS)
def test_what_is_said_twice_of_a_contour_must_agree(place, node):
    base = BASES["ours, contours, plain"]
    ds = dcmread(BytesIO(base.tree.encode()))
    CONTOURS[place](ds)

    assert node.reading(base, part_10(ds)) in DOUBT


@pytest.mark.parametrize("name", ["ours, binary, plain", "highdicom, BINARY", "dcmjs, binary"])
def test_a_frame_of_another_segment_than_its_dimension_index_is_held_or_read_by_rule(name, node):
    ds = dcmread(BytesIO(BASES[name].tree.encode()))
    number = frames(ds)[0].SegmentIdentificationSequence[0]
    number.ReferencedSegmentNumber = 3 - number.ReferencedSegmentNumber

    assert node.reading(BASES[name], part_10(ds)) == "doubted"


def memory_kib(what):
    """Memory of this process as the kernel counts it: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


def read_and_weigh(node, base, content, answers):
    before = memory_kib("VmRSS")
    outcome = node.outcome(base, Mutant(content=content, told=(), touched=()))
    answers.put((outcome, memory_kib("VmHWM") - before))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_claims_much_takes_little_memory_and_time(name, node):
    base, content = BOMBS[name]
    forked = multiprocessing.get_context("fork")
    answers = forked.SimpleQueue()
    child = forked.Process(target=read_and_weigh, args=(node, base, content, answers))
    child.start()
    child.join(60)

    outcome, peak_kib = answers.get()
    assert outcome.kind in {"refused", "held", "missing"}
    assert peak_kib < MOST_KIB
    assert outcome.seconds < LONGEST_S


@pytest.mark.parametrize("name", ["ours, binary, plain", "highdicom, BINARY", "dcmjs, binary"])
def test_a_frame_of_another_dimension_index_than_its_segment_is_held(name, node):
    ds = dcmread(BytesIO(BASES[name].tree.encode()))
    pointers = [index.DimensionIndexPointer for index in ds.DimensionIndexSequence]
    content = frames(ds)[0].FrameContentSequence[0]
    ranks = np.atleast_1d(content.DimensionIndexValues).tolist()
    ranks[pointers.index(0x0062000B)] = 2
    content.DimensionIndexValues = ranks

    assert node.reading(BASES[name], part_10(ds)) == "doubted"


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID"])
def test_a_uid_that_holds_the_name_of_the_patient_is_not_repeated_in_a_message(keyword):
    base = BASES["ours, binary, plain"]
    ds = dcmread(BytesIO(base.tree.encode()))
    setattr(ds, keyword, "1.2.3\0\0PN^CANARY")
    ds.Rows = 4

    with pytest.raises(CorrectionError) as refused:
        received.decode(ds, stack=base.stack, card=CARD, aliases={})

    assert "CANARY" not in str(refused.value)


def test_too_many_structures_are_refused_before_their_contours_are_looked_at():
    ds = dcmread(BytesIO(BASES["ours, contours, plain"].tree.encode()))
    ds.ROIContourSequence = list(ds.ROIContourSequence) * 501

    with pytest.raises(CorrectionError, match="1002 structures, at most 1000 are read"):
        received.referenced_instances(ds)


@pytest.mark.parametrize("name", ["not preserved", "ours, contours, plain"])
def test_a_file_cut_anywhere_is_refused_or_read_without_a_wrong_mask(name, node):
    content = BASES[name].tree.encode()

    said = {node.reading(BASES[name], content[:length]) for length in range(140, len(content), 23)}

    assert said <= {"refused", "doubted", "exact"}


@pytest.mark.parametrize("keyword", ["PerFrameFunctionalGroupsSequence", "SegmentSequence"])
def test_sequences_in_sequences_without_end_are_refused(keyword, node):
    base = BASES["ours, binary, plain"]
    for in_meta, path, name, change in every_single(base):
        if name == "nested 2000 deep" and words(base.tree.content, path) == (keyword,):
            broken = mutant(base, (in_meta, path, name, change))
            assert node.reading(base, broken.content) == "refused"


def test_a_damaged_uid_in_the_spool_is_an_error_of_its_file(node):
    base = BASES["ours, binary, plain"]
    content = base.tree.encode().replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x18\x00XX")

    assert node.reading(base, content) == "refused"
