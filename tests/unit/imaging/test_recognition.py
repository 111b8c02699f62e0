"""What a received segmentation is, how it differs from ours, and what of it was reviewed."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicomnode.domain import Recognition
from dicomnode.imaging.corrections import comparison, recognition
from dicomnode.imaging.corrections.recognition import Known, SentObject
from dicomnode.imaging.identity import voxels_sha256
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.reading.decoded import Decoded
from tests.imaging_builders import foreign_seg, item, make_card, plain_series, reread
from tests.seg_builders import encoded_forms, found_in

CARD = make_card()
ANTERIOR, POSTERIOR = "Hippocampus anterior", "Hippocampus posterior"
SHAPE = (6, 5, 6)


def block(slices, rows, columns):
    mask = np.zeros(SHAPE, bool)
    mask[slices, rows, columns] = True
    return mask


OURS = {ANTERIOR: block(slice(1, 4), slice(1, 3), slice(1, 4)), POSTERIOR: block(slice(3, 6), 4, slice(0, 4))}


def decoded(masks, *, empty=(), unmapped=None):
    return Decoded(
        sop_instance_uid="1.2.3",
        referenced_series_uid="1.2.4",
        shape=SHAPE,
        masks=masks,
        empty_labels=empty,
        unmapped=unmapped or {},
        flags=(),
    )


@pytest.fixture(scope="module")
def sources():
    return plain_series(SHAPE)


@pytest.fixture(scope="module")
def findings(sources):
    labels = np.zeros(SHAPE, np.uint8)
    labels[OURS[ANTERIOR]], labels[OURS[POSTERIOR]] = 1, 2
    return found_in(sources, labels, CARD)


@pytest.fixture(scope="module")
def sent(findings):
    return encoded_forms(findings)["binary"]


def record_of(ds, findings, *labels):
    """What is kept of an object of ours that holds these labels."""
    held = {found.segment.label: found for found in findings if found.segment.label in labels}
    return SentObject(
        sop_instance_uid=ds.SOPInstanceUID,
        series_instance_uid=ds.SeriesInstanceUID,
        voxels_sha256=voxels_sha256({label: OURS[label] for label in labels}),
        labels=frozenset(labels),
        tracking_uids=frozenset(found.tracking_uid for found in held.values()),
    )


@pytest.fixture
def known(sent, findings):
    record = record_of(sent, findings, ANTERIOR, POSTERIOR)
    return Known(sent=[record], prediction=OURS, model_name="hippocampus")


def recognise(ds, sources, known):
    decoded = seg_read.decode(ds, stack=only_stack(sources), card=CARD)
    return recognition.recognise(ds, decoded=decoded, known=known)


def from_viewer(sources, masks, **options):
    numbers = {ANTERIOR: 1, POSTERIOR: 2}
    frames = [
        (numbers[label], int(k), mask[k])
        for label, mask in masks.items()
        for k in np.flatnonzero(mask.any((1, 2)))
    ]
    return foreign_seg(sources, frames, **options)


def test_our_object_with_our_voxels_is_a_loop_back(sources, sent, known):
    assert recognise(reread(sent), sources, known).kind is Recognition.LOOP_BACK


def test_our_uid_with_other_voxels_is_a_correction_in_place(sources, sent, known):
    ds = from_viewer(sources, {ANTERIOR: OURS[ANTERIOR]})
    ds.SOPInstanceUID = sent.SOPInstanceUID

    found = recognise(ds, sources, known)

    assert found.kind is Recognition.CORRECTION
    assert "own UID with other voxels" in found.reasons[0]


def test_our_voxels_from_our_device_under_a_coerced_uid_are_a_loop_back(sources, sent, known):
    ds = reread(sent)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"

    assert recognise(ds, sources, known).kind is Recognition.LOOP_BACK


def test_our_voxels_saved_by_a_viewer_are_accepted_unchanged(sources, known):
    found = recognise(from_viewer(sources, OURS), sources, known)

    assert found.kind is Recognition.ACCEPTED_UNCHANGED
    assert found.corrects is known.sent[0]


def test_a_reference_to_our_object_makes_a_correction(sources, known):
    ds = from_viewer(sources, {ANTERIOR: block(0, 0, 0)})
    predecessor = item(ReferencedSOPInstanceUID=known.sent[0].sop_instance_uid)
    ds.PredecessorDocumentsSequence = [
        item(ReferencedSeriesSequence=[item(ReferencedSOPSequence=[predecessor])])
    ]

    found = recognise(ds, sources, known)

    assert (found.kind, found.reasons[0]) == (Recognition.CORRECTION, "it references our object")


def test_a_new_object_in_our_series_is_a_correction(sources, known):
    ds = from_viewer(sources, {ANTERIOR: block(0, 0, 0)})
    ds.SeriesInstanceUID = known.sent[0].series_instance_uid

    assert recognise(ds, sources, known).kind is Recognition.CORRECTION


def test_our_tracking_uid_makes_a_correction(sources, sent, known):
    ds = from_viewer(sources, {ANTERIOR: block(0, 0, 0)})
    ds.SegmentSequence[0].TrackingUID = sent.SegmentSequence[0].TrackingUID

    assert recognise(ds, sources, known).kind is Recognition.CORRECTION


def test_a_similar_object_from_a_viewer_is_a_probable_correction(sources, known):
    edited = OURS[ANTERIOR].copy()
    edited[1, 1, 1] = False

    assert (
        recognise(from_viewer(sources, {ANTERIOR: edited}), sources, known).kind
        is Recognition.PROBABLE_CORRECTION
    )


def test_the_automatic_type_of_an_edited_segment_does_not_make_it_foreign(sources, known):
    edited = OURS[ANTERIOR].copy()
    edited[1, 1, 1] = False
    ds = from_viewer(sources, {ANTERIOR: edited})
    for segment in ds.SegmentSequence:
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "AUTOMATIC", "hippocampus"

    assert recognise(ds, sources, known).kind is Recognition.PROBABLE_CORRECTION


def test_the_result_of_another_vendor_is_foreign_even_if_it_resembles_ours(sources, known):
    edited = OURS[ANTERIOR].copy()
    edited[1, 1, 1] = False
    ds = from_viewer(sources, {ANTERIOR: edited}, manufacturer="Other AI")
    for segment in ds.SegmentSequence:
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "AUTOMATIC", "OtherNet"

    assert recognise(ds, sources, known).kind is Recognition.FOREIGN


def test_an_object_without_a_label_of_the_model_is_foreign(sources, known):
    ds = foreign_seg(sources, [(1, 0, block(0, 0, 0)[0])], labels=("Cyst", "Bone"))

    assert recognise(ds, sources, known).kind is Recognition.FOREIGN


def test_an_unlike_object_is_a_new_annotation(sources, known):
    found = recognise(from_viewer(sources, {ANTERIOR: block(0, 0, 0)}), sources, known)

    assert found.kind is Recognition.NEW_ANNOTATION
    assert "not trusted" in found.reasons[0]


def test_the_score_counts_only_labels_that_the_correction_speaks_of():
    edited = OURS[ANTERIOR].copy()  # 18 voxels
    edited[2, 1, 1] = False
    edited[3, 0, 0] = True

    scores = comparison.compare(OURS, decoded({ANTERIOR: edited}), CARD)

    assert [score.label for score in scores] == [ANTERIOR]
    assert scores[0].dice == pytest.approx(2 * 17 / (18 + 18))
    assert scores[0].edited_slices == (2, 3)
    assert (scores[0].prediction_voxels, scores[0].correction_voxels) == (18, 18)


def test_a_listed_label_without_voxels_was_emptied_and_an_absent_one_is_unknown():
    listed = comparison.compare(OURS, decoded({}, empty=(POSTERIOR,)), CARD)
    alone = comparison.with_absent_emptied(decoded({}), CARD, corrects=None)
    there = decoded({ANTERIOR: OURS[ANTERIOR]})
    emptied = comparison.with_absent_emptied(there, CARD, corrects=None)
    by_policy = comparison.compare(OURS, emptied, CARD)

    assert [(score.label, score.dice, score.edited_slices) for score in listed] == [
        (POSTERIOR, 0.0, (3, 4, 5))
    ]
    assert [(score.label, score.correction_voxels) for score in by_policy] == [(ANTERIOR, 18), (POSTERIOR, 0)]
    assert alone.empty_labels == ()


def test_a_label_that_is_empty_on_both_sides_agrees():
    (score,) = comparison.compare({}, decoded({}, empty=(ANTERIOR,)), CARD)

    assert (score.dice, score.edited_slices) == (1.0, ())


def test_reviewed_weights_follow_the_edited_range_and_the_extent():
    ours = {ANTERIOR: block(slice(0, 6), 1, 1)}
    edited = ours[ANTERIOR].copy()
    edited[3, 2, 2] = True

    (said,) = comparison.spoken(ours, decoded({ANTERIOR: edited}), CARD)

    # edited slice 3, seen on 2 and 4; elsewhere within the extent left as it was; posterior unknown
    assert said.label == ANTERIOR
    np.testing.assert_array_equal(said.weights, [0.5, 0.5, 1, 1, 1, 0.5])
    assert said.weights.dtype == np.float32


def test_slices_outside_extent_and_range_are_unknown():
    ours = {ANTERIOR: block(slice(1, 3), 1, 1)}

    (said,) = comparison.spoken(ours, decoded(ours), CARD)

    np.testing.assert_array_equal(said.weights, [0, 0.5, 0.5, 0, 0, 0])
    (whole,) = comparison.spoken(ours, decoded(ours), CARD, is_whole_study_read=True)
    np.testing.assert_array_equal(whole.weights, [0, 1, 1, 0, 0, 0])


def test_training_labels_take_the_correction_and_keep_ours_where_it_is_silent():
    edited = block(slice(3, 5), 4, slice(0, 2))  # overlaps our posterior

    merged = merge_of(decoded({ANTERIOR: edited}))

    assert merged.labels[3, 4, 0] == 1
    assert merged.labels[3, 4, 2] == 2
    assert merged.labels[1, 1, 1] == 0
    assert merged.labels.dtype == np.uint8
    assert merged.labels_known == (ANTERIOR,)


def merge_of(*received):
    """What several objects say together, oldest first."""
    said = [comparison.spoken(OURS, one, CARD) for one in received]
    return comparison.merge(OURS, said, CARD, shape=SHAPE)


def test_of_several_corrections_the_latest_counts_for_each_label():
    first = block(slice(1, 3), 1, slice(1, 4))
    second = block(slice(1, 2), 1, slice(1, 4))
    back = block(slice(3, 4), 4, slice(0, 4))

    merged = merge_of(
        decoded({ANTERIOR: first, POSTERIOR: OURS[POSTERIOR]}),
        decoded({POSTERIOR: back}),
        decoded({ANTERIOR: second}),
    )

    np.testing.assert_array_equal(merged.labels == 1, second)
    np.testing.assert_array_equal(merged.labels == 2, back)
    assert merged.labels_known == (ANTERIOR, POSTERIOR)
    # ours on 1..3, the last on 1: edited 1, 2 and 3, seen on 0 and 4
    np.testing.assert_array_equal(merged.weights[0], [1, 1, 1, 1, 1, 0])
    assert merged.standing == (frozenset(), frozenset({POSTERIOR}), frozenset({ANTERIOR}))


def test_a_later_correction_goes_before_an_earlier_one_where_their_labels_meet():
    earlier = block(slice(1, 3), 1, slice(0, 3))
    later = block(slice(1, 3), 1, slice(2, 5))

    merged = merge_of(decoded({ANTERIOR: earlier}), decoded({POSTERIOR: later}))

    np.testing.assert_array_equal(merged.labels == 2, later)
    np.testing.assert_array_equal(merged.labels == 1, earlier & ~later)


@pytest.mark.parametrize(
    ("operators", "creator", "expected"),
    [
        ("Doe^Jane", "Slicer", "Doe^Jane"),
        (["A^B", "C^D"], "", "A^B; C^D"),
        (None, "Roe^Rita", "Roe^Rita"),
        (None, "MITK", "WORKSTATION"),
        (None, None, "WORKSTATION"),
    ],
)
def test_the_author_is_the_operator_then_the_creator_then_the_sender(operators, creator, expected):
    ds = Dataset()
    ds.OperatorsName, ds.ContentCreatorName = operators, creator

    assert recognition.author(reread_header(ds), "WORKSTATION") == expected


def reread_header(ds):
    full = plain_series((2, 3, 3))[0]
    full.update(ds)
    return reread(full)


def test_another_products_result_is_foreign_though_a_viewers_library_wrote_it(sources, known):
    edited = OURS[ANTERIOR].copy()
    edited[1, 1, 1] = False
    ds = from_viewer(sources, {ANTERIOR: edited}, manufacturer="QIICR")
    for segment in ds.SegmentSequence:
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "AUTOMATIC", "TotalSegmentator"

    assert recognise(ds, sources, known).kind is Recognition.FOREIGN


@pytest.mark.parametrize("name", ["MITK Segmentation", "OHIF Brush"])
def test_a_viewers_own_tool_is_no_other_product_whatever_type_it_claims(sources, known, name):
    edited = OURS[ANTERIOR].copy()
    edited[1, 1, 1] = False
    ds = from_viewer(sources, {ANTERIOR: edited}, manufacturer="QIICR")
    for segment in ds.SegmentSequence:
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "AUTOMATIC", name

    assert recognise(ds, sources, known).kind is Recognition.PROBABLE_CORRECTION


def test_our_device_with_voxels_that_we_never_sent_waits_for_a_person(sources, sent, known):
    ds = reread(sent)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.SeriesInstanceUID = "1.2.3.5"
    other = Known(
        sent=[replace(known.sent[0], voxels_sha256="0" * 64)], prediction=OURS, model_name="hippocampus"
    )

    found = recognise(ds, sources, other)

    assert found.kind is Recognition.CORRECTION  # by its tracking UIDs, which every node derives alike
    assert "another node's result" in found.doubts[0]


def test_a_certain_correction_that_shares_nothing_with_ours_waits_for_a_person(sources, known):
    ds = from_viewer(sources, {ANTERIOR: block(5, 0, 5)})
    ds.SeriesInstanceUID = known.sent[0].series_instance_uid

    found = recognise(ds, sources, known)

    assert found.kind is Recognition.CORRECTION
    assert "no label of it overlaps our result" in found.doubts[0]


def test_a_drawing_of_a_stranger_waits_for_a_person_and_one_of_a_trusted_reader_does_not(sources, known):
    drawn = from_viewer(sources, {ANTERIOR: block(0, 0, 0)})

    stranger = recognise(drawn, sources, known)
    trusted = recognise(drawn, sources, replace(known, is_trusted_sender=True))

    assert stranger.kind is trusted.kind is Recognition.NEW_ANNOTATION
    assert (len(stranger.doubts), trusted.doubts) == (1, ())
