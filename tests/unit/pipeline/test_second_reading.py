"""What a second reading of the way back found: decisions that must stand, whatever comes after them."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from dicomnode.casebook import Case, Casebook
from dicomnode.domain import CorrectionState, JobKind, Split
from dicomnode.errors import CorrectionError, ResourceError
from dicomnode.pipeline import learn, review
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.settings import CorrectionSettings, TrainingSettings
from dicomnode.store import Store
from dicomnode.store.database import MIGRATIONS
from tests.pipeline_builders import BACK, FRONT, MODEL, SECRET, SHAPE, mr_series, viewer_seg


@pytest.fixture
def series(scene):
    images = mr_series(patient_id=scene.patient_on(Split.TRAINING))
    scene.segment(images)
    return images


def less(mask, *slices):
    changed = mask.copy()
    changed[list(slices)] = False
    return changed


def read_queued(scene):
    ingest_correction(scene.claim(JobKind.INGEST_CORRECTION), scene.tools)


def withdraw(scene, record):
    review.withdraw(record.id, scene.tools, by="chief")
    read_queued(scene)


def again(scene, record):
    """The record as it stands now."""
    return scene.tools.store.corrections.get(record.id)


def in_other_bytes(seg, *, comment="sent once more"):
    """The same object as an archive may send it again: same UID, same voxels, another attribute."""
    seg.ContentDescription = comment
    return seg


def lose(scene, record):
    """Let the file of a correction vanish from the spool."""
    stored = scene.tools.store.series.instance(record.instance_id)
    (scene.folder / "spool" / stored.path).unlink()


# What a person decided


def test_what_was_withdrawn_and_comes_again_in_other_bytes_waits_for_a_person(scene, series):
    seg = viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)})
    withdraw(scene, scene.correct(seg))
    scene.later()

    again = scene.correct(in_other_bytes(seg))

    assert again.state is CorrectionState.HELD
    assert "was withdrawn before" in again.doubts[0]
    assert scene.tools.casebook.cases(model_name=MODEL) == []
    # A person may let it count after all.
    review.accept(again.id, scene.tools, by="chief")
    read_queued(scene)
    assert scene.tools.store.corrections.get(again.id).state is CorrectionState.KEPT


def of_ohif(seg):
    """What OHIF 3.12 and before claims of itself; its frames name the class of their images."""
    seg.Manufacturer = seg.ManufacturerModelName = "Unspecified"
    seg.SoftwareVersions, seg.DeviceSerialNumber = "0", "1"
    seg.ContentLabel, seg.ImageComments = "SEGMENTATION", "NOT FOR CLINICAL USE"
    return seg


def test_what_is_withdrawn_does_not_live_on_in_a_copy_of_other_bytes(scene, series):
    seg = viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)})
    first = scene.correct(seg)
    copy = scene.correct(in_other_bytes(seg))
    assert copy.replaced

    withdraw(scene, first)

    assert again(scene, copy).state is CorrectionState.WITHDRAWN
    assert scene.tools.casebook.cases(model_name=MODEL) == []


def test_slices_that_were_turned_by_rule_stay_turned_when_the_rule_is_switched_off(scene, series):
    ours = scene.found(series)
    turning = scene.with_changes(corrections=CorrectionSettings(unflip=True, trusted_ae_titles=("CHIEF",)))
    reverse = of_ohif(viewer_seg(series, {BACK: ours[BACK][::-1]}))
    first = turning.correct(reverse, sender="CHIEF")
    assert first.state is CorrectionState.KEPT
    assert "slices_turned" in first.reasons
    scene.later()

    scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], 3) & ~ours[BACK]}))

    case = scene.tools.casebook.read(first.case_id)
    np.testing.assert_array_equal(case.labels == 2, ours[BACK])


def test_what_a_person_refuses_waits_until_nobody_reads_it(scene, series):
    ours = scene.found(series)
    held = scene.correct(viewer_seg(series, {label: mask[::-1] for label, mask in ours.items()}))
    refusing = threading.Thread(target=review.refuse, args=(held.id, scene.tools), kwargs={"by": "chief"})

    with scene.tools.casebook.turn():
        refusing.start()
        refusing.join(0.3)
        assert again(scene, held).state is CorrectionState.HELD
    refusing.join()

    assert again(scene, held).state is CorrectionState.REFUSED


# Cases that leave


def test_what_cannot_be_made_anew_is_not_trained_on_and_stops_no_training(scene, series):
    ours = scene.found(series)
    first = scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], 3)}))
    second = scene.correct(viewer_seg(series, {BACK: less(ours[BACK], 4)}))
    lose(scene, first)

    withdraw(scene, second)

    assert again(scene, first).state is CorrectionState.RETIRED
    assert scene.tools.store.corrections.untrained_cases(MODEL) == ()
    assert "case_retired" in [entry.event for entry in scene.tools.store.audit.list()]


def test_the_file_of_what_was_withdrawn_is_not_needed_to_keep_the_others(scene, series):
    ours = scene.found(series)
    front = less(ours[FRONT], 3)
    first = scene.correct(viewer_seg(series, {FRONT: front}))
    second = scene.correct(viewer_seg(series, {BACK: less(ours[BACK], 4)}))
    lose(scene, second)

    withdraw(scene, second)

    case = scene.tools.casebook.read(first.case_id)
    assert case.labels_known == (FRONT,)
    assert again(scene, first).state is CorrectionState.KEPT


def test_images_whose_case_has_left_stay_on_their_side(scene, series):
    record = scene.correct(viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)}))
    scene.tools.casebook.remove(record.case_id)

    copy = mr_series(patient_id=scene.patient_on(Split.HOLD_OUT))
    scene.segment(copy)
    twin = scene.correct(viewer_seg(copy, {FRONT: less(scene.found(copy)[FRONT], 3)}))

    assert (twin.split, twin.patient_key) == (Split.TRAINING, record.patient_key)


def test_a_casebook_from_before_learns_who_came_with_which_images(tmp_path):
    root = tmp_path / "casebook"
    old = Casebook(root, secret=SECRET, hold_out_fraction=0.5)
    key = {old.split_of(old.patient_key(f"P{n}")): old.patient_key(f"P{n}") for n in range(40)}
    case = Case(
        case_id="a" * 32,
        patient_key=key[Split.TRAINING],
        split=Split.TRAINING,
        model_name=MODEL,
        image=np.ones(SHAPE, np.float32),
        affine=np.eye(4),
        labels=np.zeros(SHAPE, np.uint8),
        reviewed=np.ones((1, SHAPE[0]), np.float32),
        labels_known=(FRONT,),
    )
    old.add(case)
    for folder in ("images", "patients"):
        for path in (root / folder).iterdir():
            path.unlink()
        (root / folder).rmdir()

    opened = Casebook(root, secret=SECRET, hold_out_fraction=0.5)

    assert opened.patient_of(key[Split.HOLD_OUT], case.image) == key[Split.TRAINING]
    opened.remove(case.case_id)
    assert opened.patient_of(key[Split.HOLD_OUT], case.image) == key[Split.TRAINING]


def test_a_patient_who_was_trained_on_never_becomes_hold_out_by_a_copy(tmp_path):
    casebook = Casebook(tmp_path / "casebook", secret=SECRET, hold_out_fraction=0.5)
    key = {casebook.split_of(casebook.patient_key(f"P{n}")): casebook.patient_key(f"P{n}") for n in range(40)}
    blank = Case(
        case_id="a" * 32,
        patient_key=key[Split.TRAINING],
        split=Split.TRAINING,
        model_name=MODEL,
        image=np.ones(SHAPE, np.float32),
        affine=np.eye(4),
        labels=np.zeros(SHAPE, np.uint8),
        reviewed=np.ones((1, SHAPE[0]), np.float32),
        labels_known=(FRONT,),
    )
    held_out = replace(
        blank, case_id="b" * 32, patient_key=key[Split.HOLD_OUT], split=Split.HOLD_OUT, image=2 * blank.image
    )
    casebook.add(blank)
    casebook.add(held_out)
    casebook.remove(blank.case_id)

    with pytest.raises(CorrectionError, match="on the other side"):
        casebook.patient_of(key[Split.TRAINING], held_out.image)


# One object several times


def test_of_an_object_that_a_reader_overwrote_only_the_newest_variant_speaks(scene, series):
    ours = scene.found(series)
    wrong = viewer_seg(series, {FRONT: less(ours[FRONT], 3), BACK: less(ours[BACK], 3)})
    first = scene.correct(wrong)
    scene.later()
    better = viewer_seg(series, {FRONT: less(ours[FRONT], 4)})
    better.SOPInstanceUID = better.file_meta.MediaStorageSOPInstanceUID = wrong.SOPInstanceUID

    second = scene.correct(better)

    case = scene.tools.casebook.read(second.case_id)
    assert case.labels_known == (FRONT,)  # what the reader took back about the other label is unknown
    assert again(scene, first).replaced
    assert not second.replaced


def test_an_earlier_variant_that_is_accepted_late_does_not_win(scene, series):
    ours = scene.found(series)
    reverse = viewer_seg(series, {label: mask[::-1] for label, mask in ours.items()})
    first = scene.correct(reverse)
    assert first.state is CorrectionState.HELD
    scene.later()
    newer = viewer_seg(series, {FRONT: less(ours[FRONT], 4)})
    newer.SOPInstanceUID = newer.file_meta.MediaStorageSOPInstanceUID = reverse.SOPInstanceUID
    newer.ContentDate, newer.ContentTime = reverse.ContentDate, reverse.ContentTime
    second = scene.correct(newer)
    scene.later()

    review.accept(first.id, scene.tools, by="chief")
    read_queued(scene)

    assert [again(scene, one).replaced for one in (first, second)] == [True, False]
    case = scene.tools.casebook.read(second.case_id)
    np.testing.assert_array_equal(case.labels == 1, less(ours[FRONT], 4))


def test_the_same_object_in_other_bytes_teaches_nothing_new(scene, series):
    seg = viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)})
    first = scene.correct(seg)
    slices = scene.tools.store.corrections.untrained_slices(MODEL)
    scene.tools.store.corrections.mark_trained([first.case_id], "tiny@x")

    copy = scene.correct(in_other_bytes(seg))

    assert slices > 0
    assert copy.replaced
    assert not again(scene, first).replaced
    assert scene.tools.store.corrections.untrained_slices(MODEL) == 0


def test_corrections_with_nothing_left_to_say_are_not_read_again(scene, series):
    ours = scene.found(series)
    first = scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], 3)}))
    scene.later()
    second = scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], 4)}))
    assert again(scene, first).replaced
    lose(scene, first)
    scene.later()

    third = scene.correct(viewer_seg(series, {BACK: less(ours[BACK], 4)}))

    assert third.state is CorrectionState.KEPT
    assert [again(scene, one).replaced for one in (first, second)] == [True, False]


# Trainings


def held_and_kept(scene, series):
    """A kept correction of a series, and one that is held."""
    ours = scene.found(series)
    kept = scene.correct(viewer_seg(series, {BACK: less(ours[BACK], 4)}))
    held = scene.correct(viewer_seg(series, {label: mask[::-1] for label, mask in ours.items()}))
    assert held.state is CorrectionState.HELD
    return kept, held


def test_what_a_person_accepts_during_a_training_is_new_to_the_next(scene, series):
    kept, held = held_and_kept(scene, series)
    scene.later()
    began = scene.clock()
    scene.later()
    review.accept(held.id, scene.tools, by="chief", mirrored=True)
    read_queued(scene)

    scene.tools.store.corrections.mark_trained([kept.case_id], "tiny@x", recorded_before=began)

    assert again(scene, held).state is CorrectionState.KEPT
    assert again(scene, held).trained_in is None
    assert scene.tools.store.corrections.untrained_cases(MODEL) == (kept.case_id,)


def test_a_version_that_learned_from_what_was_withdrawn_meanwhile_is_not_kept(scene, series):
    record = scene.correct(viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)}))
    learn.enqueue_if_due(MODEL, scene.tools)
    job = scene.claim(JobKind.TRAIN_INCREMENT)

    def withdraw_once(*_):
        if again(scene, record).state is CorrectionState.KEPT:
            scene.later(1)
            withdraw(scene, record)

    with pytest.raises(ResourceError, match="withdrawn while"):
        learn.train_increment(job, scene.with_changes(progress=withdraw_once).tools)

    assert len(scene.tools.store.models.history(MODEL)) == 1


def test_a_damaged_case_hinders_no_correction_of_another_series(scene, series):
    record = scene.correct(viewer_seg(series, {FRONT: less(scene.found(series)[FRONT], 3)}))
    (scene.folder / "cases" / "cases" / record.case_id / "case.json").write_text("{}")
    other = mr_series(7, patient_id=scene.patient_on(Split.TRAINING, number=1))
    scene.segment(other)

    kept = scene.correct(viewer_seg(other, {FRONT: less(scene.found(other)[FRONT], 4)}))

    assert kept.state is CorrectionState.KEPT


def test_a_series_that_is_corrected_again_and_again_does_not_fill_the_disk(scene, series):
    ours = scene.found(series)
    for number in range(2, 6):
        record = scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], number)}))
        scene.later()

    versions = scene.folder / "cases" / "cases" / record.case_id / "versions"
    assert len(list(versions.glob("*.npz"))) == 2
    np.testing.assert_array_equal(scene.tools.casebook.read(record.case_id).labels == 1, less(ours[FRONT], 5))


def test_a_damaged_case_is_mended_by_the_next_correction_of_its_series(scene, series):
    ours = scene.found(series)
    record = scene.correct(viewer_seg(series, {FRONT: less(ours[FRONT], 3)}))
    (scene.folder / "cases" / "cases" / record.case_id / "case.json").write_text("{}")

    scene.correct(viewer_seg(series, {BACK: less(ours[BACK], 4)}))

    assert scene.tools.casebook.read(record.case_id).labels_known == (FRONT, BACK)


# What an object claims


@pytest.mark.parametrize("uid", ["1", "abc"])
def test_a_malformed_reference_is_no_number_of_a_row(scene, series, uid):
    other = mr_series(5)
    scene.receive(series[:1])
    seg = viewer_seg(other, {FRONT: less(scene.found(series)[FRONT], 3)})
    seg.StudyInstanceUID = "1.2.3"
    del seg.ReferencedSeriesSequence
    for frame in seg.PerFrameFunctionalGroupsSequence:
        for source in frame.DerivationImageSequence[0].SourceImageSequence:
            source.ReferencedSOPInstanceUID = uid
    scene.receive([seg])
    read_queued(scene)

    (row,) = scene.tools.store.jobs.list(kind=JobKind.INGEST_CORRECTION)
    assert row.reason.startswith("parked")


# What is said of labels that are not there


def test_a_drawing_of_a_reader_s_own_empties_no_label_that_it_does_not_show(scene, series):
    site = scene.with_changes(
        corrections=CorrectionSettings(absence_means_empty=True, trusted_ae_titles=("CHIEF",)),
        training=TrainingSettings(minimum_corrected_slices=1),
    )
    drawn = np.zeros(SHAPE, bool)
    drawn[0, :2, :2] = True

    record = site.correct(viewer_seg(series, {FRONT: drawn}), sender="CHIEF")

    assert record.recognition == "new_annotation"
    assert site.tools.casebook.read(record.case_id).labels_known == (FRONT,)


# Tables from before


def migrate(connection, revision, *, down=False):
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    (command.downgrade if down else command.upgrade)(config, revision)


def test_corrections_of_older_tables_keep_their_scores_and_find_their_own_bytes(scene, series):
    ours = scene.found(series)
    seg = viewer_seg(series, {FRONT: less(ours[FRONT], 3)})
    first = scene.correct(seg)
    second = scene.correct(in_other_bytes(seg))
    scores = first.scores
    scene.tools.store.close()
    url = f"sqlite:///{scene.folder / 'node.sqlite'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection, "0002", down=True)
        assert connection.execute(text("SELECT count(*) FROM correction_score")).scalar_one() > 0
    engine.dispose()

    opened = Store.open(url)

    assert opened.corrections.get(first.id).scores == scores
    assert [opened.corrections.get(one.id).instance_id for one in (first, second)] == [
        first.instance_id,
        second.instance_id,
    ]
    opened.close()
