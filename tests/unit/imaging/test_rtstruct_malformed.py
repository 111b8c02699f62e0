"""Malformed RT Structure Sets: read right, doubted or refused with the reason; never a crash."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicomnode.errors import CorrectionError
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import rtstruct_contours, rtstruct_read, seg_canvas
from dicomnode.imaging.reading.rtstruct_defects import DEFECTS
from tests.imaging_builders import make_card, plain_series, reread
from tests.rtstruct_builders import contour, on_frame, square, square_on, structure_set

ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"
CARD = make_card()
STACK = only_stack(plain_series((6, 9, 8)))


def decode(ds):
    return rtstruct_read.decode(reread(ds), stack=STACK, card=CARD)


def drawn(*contours):
    return structure_set(STACK, {ANTERIOR: contours})


def voxels(decoded):
    return int(decoded.masks[ANTERIOR].sum())


# what is passed over, and what is doubted


def test_points_and_open_lines_are_passed_over_with_a_flag():
    points = on_frame(STACK.frames[1], square(0.5, 3.5))
    others = [contour(points[:count], kind=kind) for count, kind in ((1, "POINT"), (4, "OPEN_PLANAR"))]

    decoded = decode(drawn(square_on(STACK, 1), *others))

    assert voxels(decoded) == 9
    assert decoded.flags == ("contours_not_closed",)
    assert decoded.doubts == ()
    assert decoded.confidence[ANTERIOR] == DEFECTS["contours_not_closed"].factor


def test_a_structure_of_points_alone_is_refused_not_empty():
    with pytest.raises(CorrectionError, match="none of its contours can be used"):
        decode(drawn(contour(on_frame(STACK.frames[1], [(1, 1)]), kind="POINT")))


@pytest.mark.parametrize("kind", ["", "SPLINE"])
def test_a_contour_of_no_known_kind_is_left_out_and_doubted(kind):
    points = on_frame(STACK.frames[1], square(4.5, 6.5))

    decoded = decode(drawn(square_on(STACK, 1), contour(points, kind=kind)))

    assert voxels(decoded) == 9
    assert decoded.flags == ("contour_kind_unknown",)
    assert decoded.doubts


def test_another_number_of_points_than_said_is_doubted():
    one = square_on(STACK, 1)
    one.NumberOfContourPoints = 5

    decoded = decode(drawn(one))

    assert voxels(decoded) == 9
    assert decoded.flags == ("point_count_differs",)
    assert decoded.doubts


def test_a_missing_number_of_points_is_flagged():
    one = square_on(STACK, 1)
    del one.NumberOfContourPoints

    assert decode(drawn(one)).flags == ("point_count_missing",)


def test_a_contour_without_points_is_doubted():
    one = square_on(STACK, 2)
    del one.ContourData

    decoded = decode(drawn(square_on(STACK, 1), one))

    assert decoded.flags == ("contour_without_points",)
    assert decoded.doubts


def test_an_offset_contour_is_left_out_and_doubted():
    one = square_on(STACK, 2)
    one.ContourOffsetVector = [0, 0, 5]

    assert decode(drawn(square_on(STACK, 1), one)).flags == ("contour_offset",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (["1", "2", "3", "4"], "has 4 coordinates"),
        (["1e6", "0", "0"], "more than 100000 mm away"),
    ],
)
def test_coordinates_that_are_none_are_refused(data, reason):
    one = square_on(STACK, 1)
    one.ContourData = data

    with pytest.raises(CorrectionError, match=rf"ROI 1, contour 1.* {reason}"):
        decode(drawn(one))


@pytest.mark.parametrize("word", [b"nan", b"inf", b"abc", b"1 2"])
def test_words_among_coordinates_are_refused(word):
    ds = reread(drawn(square_on(STACK, 1)))
    found = ds.ROIContourSequence[0].ContourSequence[0]
    raw = found.get_item("ContourData")
    value = word + raw.value[raw.value.index(b"\\") :]
    found["ContourData"] = raw._replace(value=value, length=len(value))

    with pytest.raises(CorrectionError, match="no finite numbers"):
        rtstruct_read.decode(ds, stack=STACK, card=CARD)


def test_an_object_of_another_class_is_refused():
    ds = drawn(square_on(STACK, 1))
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"

    with pytest.raises(CorrectionError, match="no RT Structure Set"):
        decode(ds)


@pytest.mark.parametrize("keyword", ["StructureSetROISequence", "ROIContourSequence"])
def test_an_object_without_structures_or_contours_is_refused_not_empty(keyword):
    ds = drawn(square_on(STACK, 1))
    delattr(ds, keyword)

    with pytest.raises(CorrectionError, match=r"structure set 1\.2\.826"):
        decode(ds)


def test_structures_with_one_number_are_refused():
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], POSTERIOR: []})
    ds.StructureSetROISequence[1].ROINumber = 1

    with pytest.raises(CorrectionError, match="ROI number 1 is missing or listed twice"):
        decode(ds)


@pytest.mark.parametrize(
    ("module", "limit", "value"),
    [
        (rtstruct_contours, "MAXIMUM_CONTOURS", 1),
        (rtstruct_contours, "MAXIMUM_CONTOUR_POINTS", 3),
        (rtstruct_contours, "MAXIMUM_POINTS", 7),
        (rtstruct_contours, "MAXIMUM_EFFORT", 100),
        (seg_canvas, "MAXIMUM_MASK_VOXELS", 6 * 9 * 8),
    ],
)
def test_more_than_one_object_may_have_is_refused(module, limit, value, monkeypatch):
    monkeypatch.setattr(module, limit, value)
    ds = structure_set(STACK, {ANTERIOR: [square_on(STACK, 1)], POSTERIOR: [square_on(STACK, 1)]})

    with pytest.raises(CorrectionError, match=r"structure set 1\.2\.826"):
        decode(ds)


# damage


def every_element(ds, path=()):
    for element in list(ds):
        yield (*path, element.tag)
        if element.VR == "SQ":
            for index, one in enumerate(element.value):
                yield from every_element(one, (*path, element.tag, index))


def holder(ds, path):
    for step in path[:-1]:
        ds = ds[step].value if not isinstance(step, int) or isinstance(ds, Dataset) else ds[step]
    return ds


SOUND = reread(
    structure_set(
        STACK,
        {
            ANTERIOR: [square_on(STACK, 1), square_on(STACK, 2, 1.5, 4.5)],
            POSTERIOR: [square_on(STACK, 3), square_on(STACK, 4)],
        },
    )
)
PATHS = list(every_element(SOUND))
RIGHT = rtstruct_read.decode(SOUND, stack=STACK, card=CARD)


def is_harmless(decoded):
    """Right, or doubted: a label is what was drawn, or a person looks, or the object says nothing of it."""
    if decoded.doubts:
        return True
    said = {**dict.fromkeys(decoded.empty_labels, 0), **decoded.masks}
    return all(np.array_equal(mask, RIGHT.masks[label]) for label, mask in said.items())


@pytest.mark.parametrize("damage", ["removed", "emptied"])
def test_an_object_that_lost_any_element_is_read_right_doubted_or_refused(damage):
    for path in PATHS:
        ds = copy.deepcopy(SOUND)
        if damage == "removed":
            del holder(ds, path)[path[-1]]
        else:
            element = holder(ds, path)[path[-1]]
            element.value = [] if element.VR == "SQ" else None
        try:
            decoded = rtstruct_read.decode(ds, stack=STACK, card=CARD)
        except CorrectionError:
            continue
        is_emptied = Tag(path[-1]) == Tag("ContourSequence")  # a structure without contours is an empty label
        assert is_harmless(decoded) or is_emptied, path


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
@settings(max_examples=150)
@given(
    path=st.sampled_from(PATHS),
    value=st.binary(max_size=40) | st.sampled_from([b"-1", b"1e400", b"99999999", b"0\\0"]),
    items=st.integers(0, 3),
)
def test_damaged_bytes_are_read_or_refused_and_never_crash(path, value, items):
    ds = copy.deepcopy(SOUND)
    target = holder(ds, path)
    if target[path[-1]].VR == "SQ":
        target[path[-1]].value = [Dataset() for _ in range(items)]
    else:
        target[path[-1]] = RawDataElement(path[-1], None, len(value), value, 0, True, True)
    try:
        decoded = rtstruct_read.decode(ds, stack=STACK, card=CARD)
    except CorrectionError:
        return
    assert all(mask.shape == STACK.shape for mask in decoded.masks.values())
    assert set(decoded.confidence) == {*decoded.masks, *decoded.empty_labels}
