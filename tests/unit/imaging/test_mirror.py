import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dicomnode.domain import STRUCTURE_SET_SOP_CLASS
from dicomnode.imaging.corrections import mirror
from dicomnode.imaging.corrections.mirror import MirrorVerdict
from dicomnode.imaging.reading.decoded import Decoded
from tests.imaging_builders import item

SHAPE = (8, 10, 10)


def box(*slices, rows=slice(2, 7), columns=slice(3, 8)):
    mask = np.zeros(SHAPE, bool)
    for index in slices:
        mask[index, rows, columns] = True
    return mask


def decoded_as(masks, unmapped=None):
    return Decoded(
        sop_instance_uid="1.2.3",
        referenced_series_uid="1.2.4",
        shape=SHAPE,
        masks=masks,
        empty_labels=(),
        unmapped=unmapped or {},
        flags=("position_conflict",),
        confidence=dict.fromkeys(masks, 1.0),
    )


def dcmjs_object(**source):
    return item(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4",
        Manufacturer="Unspecified",
        ManufacturerModelName="Unspecified",
        SoftwareVersions="0",
        DeviceSerialNumber="1",
        ContentLabel="SEGMENTATION",
        PerFrameFunctionalGroupsSequence=[
            item(DerivationImageSequence=[item(SourceImageSequence=[item(**source)])] if source else [])
        ],
    )


OLD = dcmjs_object(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.4", ReferencedSOPInstanceUID="1.2.3.4")
NEW = dcmjs_object(ReferencedSOPInstanceUID="1.2.3.4", ReferencedFrameNumber=1)
PLACED_BY_POSITION = dcmjs_object()
OTHER = item(
    Manufacturer="QIICR",
    ContentLabel="SEGMENTATION",
    PerFrameFunctionalGroupsSequence=OLD.PerFrameFunctionalGroupsSequence,
)


def arbitrate(ds, masks, prediction=None, *, image=None, unflip=False):
    return mirror.arbitrate(
        ds, decoded=decoded_as(masks), prediction=prediction or {}, image=image, unflip=unflip
    )


def test_writers_are_known_by_the_items_of_their_source_images():
    assert [mirror.known_to_mirror(ds) for ds in (OLD, NEW, PLACED_BY_POSITION, OTHER)] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(("ds", "remark"), [(OLD, "is known to"), (OTHER, "is not known to")])
def test_masks_that_fit_our_result_in_reverse_order_are_suspect_whoever_wrote_them(ds, remark):
    found = arbitrate(ds, {"A": box(0, 1, 2)}, {"A": box(5, 6, 7)})

    assert found.verdict is MirrorVerdict.SUSPECT
    assert (found.foreground.as_read, found.foreground.mirrored) == (0.0, 1.0)
    assert found.labels["A"] == found.foreground
    assert "Dice 1.00, as read 0.00" in found.sentence
    assert remark in found.sentence


@pytest.mark.parametrize(("ds", "verdict"), [(OTHER, MirrorVerdict.AS_READ), (OLD, MirrorVerdict.SUSPECT)])
def test_a_gain_below_two_tenths_is_suspect_only_of_a_writer_known_to_mirror(ds, verdict):
    # ours has 5 slices and theirs 7, of which 4 are common as read and 5 in reverse order: 8/12 and 10/12
    found = arbitrate(ds, {"A": box(0, 2, 3, 4, 5, 6, 7)}, {"A": box(1, 2, 3, 4, 5)})

    assert found.foreground.as_read == pytest.approx(8 / 12)
    assert found.foreground.mirrored == pytest.approx(10 / 12)
    assert found.verdict is verdict


def test_masks_that_fit_our_result_as_read_pass_of_a_writer_known_to_mirror():
    found = arbitrate(OLD, {"A": box(0, 1, 2)}, {"A": box(0, 1, 2, 3)})

    assert found.verdict is MirrorVerdict.AS_READ
    assert "as read" in found.sentence


def test_one_small_label_in_reverse_order_is_suspect_beside_a_large_symmetric_one():
    large = box(*range(8), rows=slice(0, 9), columns=slice(0, 2))
    masks = {"large": large, "small": box(0, rows=slice(2, 4), columns=slice(5, 7))}

    found = arbitrate(OTHER, masks, {"large": large, "small": masks["small"][::-1]})

    assert found.verdict is MirrorVerdict.SUSPECT
    assert "slices of small" in found.sentence


def test_a_label_that_fits_as_read_speaks_against_one_that_fits_in_reverse():
    masks = {"one": box(0, columns=slice(0, 2)), "other": box(1, columns=slice(8, 10))}

    found = arbitrate(
        OTHER,
        {"large": box(*range(8)), **masks},
        {"large": box(*range(8)), "one": masks["one"], "other": masks["other"][::-1]},
    )

    assert found.verdict is MirrorVerdict.AS_READ


@pytest.mark.parametrize(
    ("ds", "unflip", "verdict"),
    [
        (OLD, True, MirrorVerdict.TURNED),
        (OLD, False, MirrorVerdict.SUSPECT),
        (OTHER, True, MirrorVerdict.SUSPECT),
        (NEW, True, MirrorVerdict.SUSPECT),
    ],
)
def test_slices_are_turned_only_where_the_site_allows_it_and_the_writer_is_known(ds, unflip, verdict):
    found = arbitrate(ds, {"A": box(0, 1, 2)}, {"A": box(5, 6, 7)}, unflip=unflip)

    assert found.verdict is verdict


def test_slices_are_not_turned_where_the_reverse_order_fits_less_than_nine_tenths():
    # 3 slices of ours, 2 of theirs: Dice 4/5 in reverse order
    found = arbitrate(OLD, {"A": box(0, 1)}, {"A": box(5, 6, 7)}, unflip=True)

    assert found.foreground.mirrored == 0.8
    assert found.verdict is MirrorVerdict.SUSPECT


def test_turning_reverses_labels_and_unmapped_segments_and_says_so():
    read = decoded_as({"A": box(0)}, unmapped={"mine": box(1)})

    found = mirror.turned(read)

    np.testing.assert_array_equal(found.masks["A"], box(7))
    np.testing.assert_array_equal(found.unmapped["mine"], box(6))
    assert found.flags == ("position_conflict", "slices_turned")
    assert found.confidence == {"A": 0.9}
    assert read.masks["A"][0].any()


def with_an_organ(mask):
    noise = np.random.default_rng(3).normal(0, 0.05, SHAPE).astype(np.float32)
    return noise + np.where(mask, 3, np.linspace(0, 1, SHAPE[0])[:, None, None]).astype(np.float32)


@pytest.mark.parametrize(
    ("ds", "order", "verdict"),
    [
        (OLD, 1, MirrorVerdict.AS_READ),
        (OLD, -1, MirrorVerdict.SUSPECT),
        (PLACED_BY_POSITION, -1, MirrorVerdict.SUSPECT),
        (NEW, -1, MirrorVerdict.AS_READ),
        (OTHER, -1, MirrorVerdict.AS_READ),
    ],
)
def test_without_our_result_the_image_decides_on_writers_known_to_mirror(ds, order, verdict):
    drawn = box(1, 2, 3)

    found = arbitrate(ds, {"A": drawn[::order]}, {"B": drawn}, image=with_an_organ(drawn))

    assert found.verdict is verdict
    assert found.foreground is None


@pytest.mark.parametrize("image", [None, np.zeros(SHAPE, np.float32), np.full(SHAPE, np.nan, np.float32)])
def test_without_any_evidence_a_person_decides_on_writers_known_to_mirror(image):
    found = arbitrate(OLD, {"A": box(1, 2)}, image=image, unflip=True)

    assert found.verdict is MirrorVerdict.SUSPECT
    assert "neither our result nor the image" in found.sentence


def test_a_result_that_resembles_the_object_in_no_order_is_no_evidence():
    elsewhere = box(0, rows=slice(9, 10), columns=slice(9, 10))

    assert arbitrate(OLD, {"A": box(1, 2)}, {"A": elsewhere}).verdict is MirrorVerdict.SUSPECT


@pytest.mark.parametrize("masks", [{}, {"A": box(2, 3, 4, 5)}])
def test_what_is_the_same_in_either_order_passes(masks):
    assert arbitrate(OLD, masks).verdict is MirrorVerdict.AS_READ


def test_a_structure_set_passes_because_its_contours_lie_in_space():
    ds = item(SOPClassUID=STRUCTURE_SET_SOP_CLASS, Manufacturer="Unspecified")

    found = arbitrate(ds, {"A": box(0, 1, 2)}, {"A": box(5, 6, 7)}, unflip=True)

    assert found.verdict is MirrorVerdict.AS_READ
    assert "patient space" in found.sentence


SMALL_MASKS = st.dictionaries(
    st.sampled_from(["A", "B"]), arrays(np.bool_, (4, 2, 2)).filter(lambda mask: bool(mask.any())), max_size=2
)


@given(masks=SMALL_MASKS, prediction=SMALL_MASKS, ds=st.sampled_from([OLD, NEW, PLACED_BY_POSITION, OTHER]))
def test_nothing_is_turned_that_does_not_fit_our_result_then(masks, prediction, ds):
    read = decoded_as(masks)

    found = mirror.arbitrate(ds, decoded=read, prediction=prediction, image=None, unflip=True)

    if found.verdict is MirrorVerdict.TURNED:
        again = mirror.arbitrate(
            ds, decoded=mirror.turned(read), prediction=prediction, image=None, unflip=True
        )
        assert mirror.known_to_mirror(ds)
        assert again.verdict is MirrorVerdict.AS_READ
        assert (again.foreground.as_read, again.foreground.mirrored) == (
            found.foreground.mirrored,
            found.foreground.as_read,
        )


@given(masks=SMALL_MASKS)
def test_turning_twice_gives_the_masks_as_they_were(masks):
    twice = mirror.turned(mirror.turned(decoded_as(masks)))

    assert twice.masks.keys() == masks.keys()
    for label, mask in masks.items():
        np.testing.assert_array_equal(twice.masks[label], mask)
