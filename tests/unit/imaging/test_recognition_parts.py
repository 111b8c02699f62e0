"""A result that was sent in parts by organ group: what comes back speaks of its part and of nothing else."""

import numpy as np
import pytest

from dicomnode.domain import Recognition
from dicomnode.imaging.corrections import comparison, recognition
from dicomnode.imaging.corrections.recognition import Known, SentObject
from dicomnode.imaging.identity import tracking_uid, voxels_sha256
from dicomnode.imaging.reading.decoded import Decoded
from tests.imaging_builders import item, make_card

LABELS = ("Liver", "Spleen", "Left lung", "Right lung")
CARD = make_card(LABELS)
SHAPE = (6, 8, 8)
OURS = {label: np.zeros(SHAPE, bool) for label in LABELS}
for row, mask in enumerate(OURS.values()):
    mask[row : row + 3, 2 * row, 1:6] = True
ABDOMEN, LUNGS = LABELS[:2], LABELS[2:]


def tracking(label):
    return tracking_uid("1.8", label)


def sent_object(uid, labels):
    return SentObject(
        sop_instance_uid=uid,
        series_instance_uid=f"{uid}.1",
        voxels_sha256=voxels_sha256({label: OURS[label] for label in labels}),
        labels=frozenset(labels),
        tracking_uids=frozenset(map(tracking, labels)),
    )


WHOLE, FIRST, SECOND = sent_object("1.1", LABELS), sent_object("1.2", ABDOMEN), sent_object("1.3", LUNGS)
REPORT = SentObject(
    sop_instance_uid="1.4", series_instance_uid="1.4.1", voxels_sha256=None, labels=frozenset(LABELS)
)
KNOWN = Known(sent=[WHOLE, FIRST, SECOND], prediction=OURS, model_name="organs")


def decoded(masks, *, empty=(), unmapped=None):
    return Decoded(
        sop_instance_uid="1.9",
        referenced_series_uid="1.8",
        shape=SHAPE,
        masks=masks,
        empty_labels=empty,
        unmapped=unmapped or {},
        flags=(),
    )


def received(
    uid="1.9", *, manufacturer="QIICR", model="https://github.com/QIICR/dcmqi", serial="0", tracking=()
):
    return item(
        SOPInstanceUID=uid,
        SeriesInstanceUID="1.9.1",
        Manufacturer=manufacturer,
        ManufacturerModelName=model,
        DeviceSerialNumber=serial,
        SegmentSequence=[item(TrackingUID=one) for one in tracking],
    )


def part_of_ours(labels):
    return {label: OURS[label].copy() for label in labels}


@pytest.mark.parametrize(("sent", "labels"), [(FIRST, ABDOMEN), (SECOND, LUNGS), (WHOLE, LABELS)])
def test_a_part_that_comes_back_unchanged_is_a_loop_back(sent, labels):
    found = recognition.recognise(
        received(sent.sop_instance_uid), decoded=decoded(part_of_ours(labels)), known=KNOWN
    )

    assert (found.kind, found.corrects) == (Recognition.LOOP_BACK, sent)


def test_a_part_under_another_uid_from_our_device_is_a_loop_back():
    ds = received("1.77", manufacturer="dicomnode-federated", model="dicomnode", serial="dicomnode-seg-1")

    found = recognition.recognise(ds, decoded=decoded(part_of_ours(LUNGS)), known=KNOWN)

    assert (found.kind, found.corrects) == (Recognition.LOOP_BACK, SECOND)


def test_a_part_saved_by_a_viewer_without_an_edit_is_accepted_unchanged_and_deletes_nothing():
    theirs = decoded(part_of_ours(ABDOMEN))

    found = recognition.recognise(received(), decoded=theirs, known=KNOWN)

    assert (found.kind, found.corrects) == (Recognition.ACCEPTED_UNCHANGED, FIRST)
    assert [(one.label, one.dice) for one in comparison.compare(OURS, theirs, CARD)] == [
        ("Liver", 1.0),
        ("Spleen", 1.0),
    ]


def test_half_of_a_part_is_not_the_part():
    found = recognition.recognise(received("1.2"), decoded=decoded(part_of_ours(["Liver"])), known=KNOWN)

    assert (found.kind, found.corrects) == (Recognition.CORRECTION, FIRST)


def test_tracking_uids_tell_the_part_that_was_corrected():
    theirs = part_of_ours(ABDOMEN)
    theirs["Liver"][0] = False

    found = recognition.recognise(
        received(tracking=map(tracking, ABDOMEN)), decoded=decoded(theirs), known=KNOWN
    )

    assert (found.kind, found.corrects) == (Recognition.CORRECTION, FIRST)


def test_a_similar_object_corrects_the_part_whose_labels_it_has():
    theirs = part_of_ours(LUNGS)
    theirs["Left lung"][2] = False

    found = recognition.recognise(received(), decoded=decoded(theirs), known=KNOWN)

    assert (found.kind, found.corrects) == (Recognition.PROBABLE_CORRECTION, SECOND)


def test_a_similar_object_with_labels_of_two_parts_corrects_the_whole():
    theirs = part_of_ours(["Spleen", "Left lung"])
    theirs["Left lung"][2] = False

    found = recognition.recognise(received(), decoded=decoded(theirs), known=KNOWN)

    assert (found.kind, found.corrects) == (Recognition.PROBABLE_CORRECTION, WHOLE)


def test_an_object_of_ours_without_voxels_is_never_a_loop_back():
    known = Known(sent=[REPORT], prediction=OURS, model_name="organs")
    lesion = {"Lesion": OURS["Liver"]}  # what cannot be digested either

    found = recognition.recognise(
        received("1.4"), decoded=decoded(part_of_ours(["Spleen"]), unmapped=lesion), known=known
    )

    assert found.kind is Recognition.CORRECTION


@pytest.mark.parametrize(
    ("corrects", "emptied"),
    [
        (FIRST, ["Spleen"]),
        (SECOND, ["Left lung", "Right lung"]),
        (WHOLE, list(LABELS[1:])),
        (None, list(LABELS[1:])),
    ],
)
def test_absence_empties_labels_of_the_part_that_was_corrected_and_no_others(corrects, emptied):
    correction = decoded(part_of_ours(["Liver"]))

    spoken = comparison.with_absent_emptied(correction, CARD, corrects=corrects.labels if corrects else None)

    scores = comparison.compare(OURS, spoken, CARD)
    assert [(one.label, one.correction_voxels) for one in scores] == [("Liver", 15)] + [
        (label, 0) for label in emptied
    ]
    merged = comparison.merge(OURS, [comparison.spoken(OURS, spoken, CARD)], CARD, shape=SHAPE)
    assert merged.labels_known == ("Liver", *emptied)
    trained = merged.labels
    kept = [label for label in LABELS[1:] if label not in emptied]
    for number, label in enumerate(LABELS, 1):
        assert np.count_nonzero(trained == number) == (15 if label == "Liver" or label in kept else 0)
