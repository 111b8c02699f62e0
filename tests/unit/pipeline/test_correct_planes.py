"""Corrections on series that are no plain column of slices become cases on the grid of the image."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydicom import Dataset

from dicomnode.domain import JobKind, Recognition, ResultForm, Split
from dicomnode.imaging.images.series import stack_volume, to_volume
from dicomnode.imaging.images.stacks import Stack, only_stack, read_stacks
from dicomnode.imaging.results.findings import Run, measure
from dicomnode.ml.model import network, package
from dicomnode.pipeline import forms
from dicomnode.settings import CorrectionSettings, RouteSettings
from dicomnode.store.records import ResultObject, ResultRecord, WrittenObject
from tests.imaging_builders import foreign_seg, reread
from tests.pipeline_builders import (
    BACK,
    FRONT,
    MODEL,
    SHAPE,
    mr_series,
    put_into_use,
    tiny_plan,
    tiny_segments,
)

TILT_MM = 0.6  # of a pixel of 1 mm, from slice to slice
NINE = (9, 12, 14)
TRUSTING = CorrectionSettings(trusted_ae_titles=("CHIEF",))


def tilted(series: list[Dataset]) -> list[Dataset]:
    for k, ds in enumerate(series):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, float(y) + TILT_MM * k, z]
    return series


def without(series: list[Dataset], *missing: int) -> list[Dataset]:
    return [ds for k, ds in enumerate(series) if k not in missing]


def drawn(series: list[Dataset]) -> Dataset:
    """A reader's block of Front on the planes 2, 3 and 4."""
    stack = only_stack(series)
    mask = np.zeros(stack.shape[1:], bool)
    mask[4:7, 5:9] = True
    return reader_seg(stack, [(1, k, mask) for k in (2, 3, 4)])


def reader_seg(stack: Stack, frames: Sequence[tuple[int, int, np.ndarray]]) -> Dataset:
    ds = foreign_seg(stack, frames, labels=(FRONT, BACK))
    ds.PatientID = stack.first.PatientID
    return reread(ds)


def ready(scene, *, maximum_missing: int = 0):
    """A site that takes such series and trusts its reader."""
    route = RouteSettings(name="tiny", model=MODEL, maximum_missing_slices=maximum_missing)
    return scene.with_changes(routes=(route,), corrections=TRUSTING)


def test_a_correction_on_a_tilted_series_is_scored_on_its_planes_and_kept_on_the_grid(scene):
    series = tilted(mr_series(patient_id=scene.patient_on(Split.TRAINING)))
    site = ready(scene)
    site.segment(series)

    record = site.correct(drawn(series), sender="CHIEF")

    case = site.tools.casebook.read(record.case_id)
    volume = stack_volume(only_stack(series))
    assert volume.image.shape != SHAPE
    assert case.image.shape == case.labels.shape == volume.image.shape
    np.testing.assert_array_equal(case.image, volume.image.array)
    # Plane k begins at y = 20 + 0.6 k, so that rows 4 to 6 of it are rows 4 + 0.6 k onward of the grid.
    for k in range(SHAPE[0]):
        rows = np.flatnonzero((case.labels[k] == 1).any(axis=1)).tolist()
        first = 4 + round(TILT_MM * k)
        assert rows == (list(range(first, first + 3)) if 2 <= k < 5 else [])
    scores = {score.label: score for score in record.scores}
    assert scores[FRONT].correction_voxels == 3 * 3 * 4


def test_slices_that_nobody_received_are_never_learned_from(scene):
    series = without(mr_series(patient_id=scene.patient_on(Split.TRAINING), shape=NINE), 3)
    site = ready(scene, maximum_missing=1)
    site.segment(series)

    record = site.correct(drawn(series), sender="CHIEF")  # on planes 2, 3 and 4: slices 2, 4 and 5

    case = site.tools.casebook.read(record.case_id)
    assert case.image.shape == NINE
    assert np.flatnonzero((case.labels == 1).any(axis=(1, 2))).tolist()[:3] == [2, 4, 5]
    weights = case.reviewed[case.labels_known.index(FRONT)]
    assert weights[3] == 0
    assert weights[[2, 4, 5]].tolist() == [1, 1, 1]


def test_what_was_found_on_a_gapped_series_is_accepted_unchanged_plane_by_plane(scene):
    series = without(mr_series(patient_id=scene.patient_on(Split.TRAINING), shape=NINE), 3)
    site = ready(scene, maximum_missing=1)
    result = site.segment(series)
    stored = site.tools.store.series.instance(result.sop_instance_uid)
    (ours,) = site.tools.spool.read([stored])
    returned = reread(ours)
    returned.SOPInstanceUID = returned.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    returned.Manufacturer = "A viewer"

    record = site.correct(reread(returned))

    assert record.recognition is Recognition.ACCEPTED_UNCHANGED
    assert all(score.dice == 1 for score in record.scores)


def test_a_correction_is_read_on_the_stack_that_it_was_drawn_on(scene):
    patient = scene.patient_on(Split.TRAINING)
    small, large = (
        mr_series(seed, patient_id=patient, shape=(8, rows, 14)) for seed, rows in enumerate((12, 16))
    )
    for number, ds in enumerate(large, start=100):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = small[0].StudyInstanceUID, small[0].SeriesInstanceUID
        ds.InstanceNumber = number
    series = [*small, *large]
    route = RouteSettings(name="tiny", model=MODEL, several_stacks="best")
    site = scene.with_changes(routes=(route,), corrections=TRUSTING)
    result = site.segment(series)
    stored = site.tools.store.series.instance(result.sop_instance_uid)
    stacks = read_stacks(series)
    (segmented,) = (stack for stack in stacks if stack.shape[1] == site.tools.spool.read([stored])[0].Rows)
    (other,) = (stack for stack in stacks if stack is not segmented)
    mask = np.zeros(other.shape[1:], bool)
    mask[9:11, 3:6] = True

    record = site.correct(reader_seg(other, [(1, 3, mask)]), sender="CHIEF")

    assert record.recognition is Recognition.NEW_ANNOTATION
    case = site.tools.casebook.read(record.case_id)
    assert case.image.shape == other.shape
    assert np.argwhere(case.labels).tolist() == [[3, row, column] for row in (9, 10) for column in (3, 4, 5)]


# A result of more labels than one BINARY segmentation holds.

LABELS = tuple(f"Label {number}" for number in range(1, 33))


def many_segments():
    front, _ = tiny_segments()
    return tuple(
        replace(front, class_index=number, segment_number=number, label=label)
        for number, label in enumerate(LABELS, 1)
    )


def use_model_of_many_labels(scene):
    plan = tiny_plan(name="many")
    wide = replace(plan.final.network, classes=len(LABELS) + 1)
    plan = replace(plan, stages=(replace(plan.final, network=wide),))
    tensors = network.tensors_of(network.build(wide))
    made = package.write(
        scene.folder / "many", plan, many_segments(), tensors, "# many\n\n---\n\nMade in a test.\n"
    )
    put_into_use(scene.tools.store, scene.tools.shelf.install(made.folder), now=scene.clock())
    route = RouteSettings(name="many", model="many")
    return scene.with_changes(
        routes=(route,), corrections=CorrectionSettings(absence_means_empty=True)
    ), made.card


def send_in_parts(site, series, card):
    """Keep a result in which every label has one row of voxels, as the segmentation of a series does."""
    site.receive(series)
    site.quiet()
    job = site.claim(JobKind.SEGMENT_SERIES)
    volume = to_volume(series)
    labels = np.zeros(SHAPE, np.uint8)
    for number in range(1, len(LABELS) + 1):
        labels[number % 8, number // 8, 2:8] = number
    findings = measure(volume.image.with_array(labels), series=volume, card=card)
    run = Run(created_at=site.clock(), revision=job.digest)
    wanted = {"pacs": (ResultForm.SEG,)}
    encoded = forms.write(findings, run=run, wanted=wanted, keep=lambda one: one).objects
    written = [keep(site, one) for one in encoded]
    record = ResultRecord(
        sop_instance_uid=written[0].instance.sop_instance_uid,
        series_instance_uid=written[0].instance.series_instance_uid,
        source_series_uid=job.subject,
        source_digest=job.digest,
        model_version=card.version,
        label_table_sha256=findings.label_table_sha256,
        voxels_sha256=findings.voxels_sha256,
        label_sha256=tuple((one.segment.label, one.sha256) for one in findings),
        voxels=tuple((one.segment.label, one.voxels) for one in findings),
        millilitres=tuple((one.segment.label, one.millilitres) for one in findings),
        tracking_uids=tuple((one.segment.label, one.tracking_uid) for one in findings),
        path=written[0].instance.path,
        created_at=site.clock(),
    )
    site.tools.store.results.finish_segmentation(job, record, written, now=site.clock())
    return [one.ds for one in encoded if one.form is ResultForm.SEG]


def keep(site, one):
    stored = site.tools.spool.write_result(one.ds, sender="DICOMNODE", created_at=site.clock())
    kept = ResultObject(
        sop_instance_uid=stored.sop_instance_uid,
        series_instance_uid=stored.series_instance_uid,
        form=one.form,
        voxels_sha256=one.voxels_sha256,
    )
    return WrittenObject(object=kept, instance=stored, destinations=one.destinations)


def test_one_part_of_a_result_coming_back_is_a_loop_back(scene):
    site, card = use_model_of_many_labels(scene)
    parts = send_in_parts(site, mr_series(), card)
    assert len(parts) == 2

    for part in parts:
        returned = reread(part)
        returned.SeriesDescription = "coerced by a PACS"
        record = site.correct(reread(returned), sender="PACS")
        assert (record.recognition, record.case_id) == (Recognition.LOOP_BACK, None)


def test_a_correction_of_one_part_says_nothing_of_the_labels_of_the_other(scene):
    site, card = use_model_of_many_labels(scene)
    _, part = send_in_parts(site, mr_series(patient_id=site.patient_on(Split.TRAINING)), card)
    labels = [str(one.SegmentLabel) for one in part.SegmentSequence]
    edited = reread(part)
    edited.SOPInstanceUID = edited.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    edited.Manufacturer = "A viewer"
    pixels = bytearray(edited.PixelData)
    pixels[:21] = bytes(21)  # 12 x 14 pixels: the first frame, of the first segment, is wiped
    edited.PixelData = bytes(pixels)

    record = site.correct(reread(edited))

    assert record.recognition is Recognition.CORRECTION
    assert record.result_sop_uid == part.SOPInstanceUID
    assert [score.label for score in record.scores] == labels
    assert [score.dice for score in record.scores] == [0.0] + [1.0] * (len(labels) - 1)
    case = site.tools.casebook.read(record.case_id)
    assert set(case.labels_known) == set(labels)
    first = LABELS.index(labels[0]) + 1
    assert set(np.unique(case.labels).tolist()) == set(range(len(LABELS) + 1)) - {first}
