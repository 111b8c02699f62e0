"""Findings as an RT Structure Set: the same voxels, the right planes, the right words."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from dicomnode.domain import Code
from dicomnode.imaging.images.series import stack_volume
from dicomnode.imaging.images.stacks import only_stack, read_stacks
from dicomnode.imaging.results import rtstruct_write
from dicomnode.imaging.results.findings import Run, measure
from tests.contour_filling import labels_of
from tests.frame_builders import frame_groups, multi_frame, tilted
from tests.imaging_builders import (
    NOW,
    make_card,
    make_series,
    make_volume,
    part_10,
    plain_series,
    reread,
)
from tests.interop.seg_cases import OBLIQUE
from tests.seg_builders import RUN, found_at, found_in

CARD = make_card()


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def written(findings) -> Dataset:
    return reread(rtstruct_write.encode(findings, run=RUN))


def contours_of(ds):
    return [contour for roi in ds.ROIContourSequence for contour in roi.ContourSequence]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    spacing_mm=st.tuples(*[st.floats(0.5, 4.0)] * 3),
    origin_mm=st.tuples(*[st.floats(-900, 900)] * 3),
)
def test_filled_contours_are_the_labels_again_in_any_orientation(seed, spacing_mm, origin_mm):
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    axes[:, 0] = np.cross(axes[:, 2], axes[:, 1])  # slices ascend along the normal
    volume = make_volume(
        np.zeros((3, 9, 8), np.uint16), axes=axes, spacing_mm=spacing_mm, origin_mm=origin_mm
    )
    findings = found_in(make_series(volume), noise((3, 9, 8), seed), CARD)

    assert np.array_equal(labels_of(written(findings), findings.stack), findings.labels)


def test_contours_of_a_tilted_gantry_lie_in_the_received_planes():
    series = stack_volume(only_stack(tilted(6)))
    findings = measure(series.image.with_array(noise(series.image.shape)), series=series, card=CARD)

    ds = written(findings)

    assert np.array_equal(labels_of(ds, findings.stack), findings.labels)
    assert "tilt" in ds.StructureSetDescription
    assert "SourcePixelPlanesCharacteristicsSequence" not in ds.ROIContourSequence[0]


def test_contours_of_a_multi_frame_image_name_their_frames():
    pixels = np.arange(4 * 30, dtype=np.uint16).reshape(4, 5, 6)
    image = multi_frame([frame_groups((0, 0, 8.0 - 2 * k)) for k in range(4)], pixels)
    findings = found_in([image], noise((4, 5, 6)), CARD)

    ds = written(findings)

    assert np.array_equal(labels_of(ds, findings.stack), findings.labels)
    numbers = {int(contour.ContourImageSequence[0].ReferencedFrameNumber) for contour in contours_of(ds)}
    assert numbers == {1, 2, 3, 4}
    series = (
        ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    )
    (reference,) = series.ContourImageSequence
    assert "ReferencedFrameNumber" not in reference  # all of its frames


def test_a_stack_of_some_frames_refers_to_those_alone():
    pixels = np.zeros((4, 5, 6), np.uint16)
    sideways = {"PlaneOrientationSequence": Dataset()}
    sideways["PlaneOrientationSequence"].ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    groups = [frame_groups((0, 0, 2.0 * k)) for k in range(3)] + [frame_groups((50, 0, 0), **sideways)]
    image = multi_frame(groups, pixels)
    from_three = next(s for s in read_stacks([image]) if len(s.frames) == 3)
    series = stack_volume(from_three)
    findings = measure(series.image.with_array(noise(series.image.shape)), series=series, card=CARD)

    ds = written(findings)

    series = (
        ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    )
    assert [int(n) for n in series.ContourImageSequence[0].ReferencedFrameNumber] == [1, 2, 3]


def test_every_image_of_the_series_is_referred_to_and_each_contour_to_its_own():
    sources = plain_series((4, 5, 6))
    ds = written(found_at(sources, CARD, [(1, 2, 3)], [(2, 0, 0)]))

    frame_of_reference = ds.ReferencedFrameOfReferenceSequence[0]
    series = frame_of_reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert frame_of_reference.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    references = {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence}
    assert references == {source.SOPInstanceUID for source in sources}
    assert [contour.ContourImageSequence[0].ReferencedSOPInstanceUID for contour in contours_of(ds)] == [
        sources[1].SOPInstanceUID,
        sources[2].SOPInstanceUID,
    ]


def test_a_single_voxel_is_a_diamond_around_its_place_in_the_patient():
    # pixels of 0.75 mm (rows) x 0.5 mm (columns), slices of 2 mm, first voxel at (-10, 20, 30)
    ds = written(found_at(plain_series(), CARD, [(1, 2, 3)]))

    points = np.array(contours_of(ds)[0].ContourData, float).reshape(-1, 3)

    centre = [-10 + 3 * 0.5, 20 + 2 * 0.75, 30 + 2.0]
    assert points.mean(axis=0).tolist() == pytest.approx(centre)
    assert np.ptp(points, axis=0).tolist() == pytest.approx([0.5, 0.75, 0])


def test_numbers_fit_their_value_representation_and_keep_a_ten_thousandth_of_a_pixel():
    volume = make_volume(
        np.zeros((3, 9, 8), np.uint16),
        axes=OBLIQUE,
        spacing_mm=(3.3, 0.7031, 0.7043),
        origin_mm=(-987.6543, 1234.5, -0.001),
    )
    ds = written(found_in(make_series(volume), noise((3, 9, 8)), CARD))

    texts = [text for contour in contours_of(ds) for text in map(str, contour.ContourData)]

    assert max(map(len, texts)) <= 16
    assert max(len(text.partition(".")[2]) for text in texts) == 5  # 0.7 mm: 0.00001 mm


def test_a_structure_says_what_it_is_and_who_made_it():
    ds = written(found_at(plain_series(), CARD, [(1, 2, 3)]))

    (roi,), (contour,), (observation,) = (
        ds.StructureSetROISequence,
        ds.ROIContourSequence,
        ds.RTROIObservationsSequence,
    )
    assert (roi.ROIName, roi.ROIGenerationAlgorithm) == ("Hippocampus anterior", "AUTOMATIC")
    assert float(roi.ROIVolume) == pytest.approx(2.0 * 0.75 * 0.5 / 1000)
    assert [int(value) for value in contour.ROIDisplayColor] == [230, 60, 60]
    assert roi.ROINumber == contour.ReferencedROINumber == observation.ReferencedROINumber == 1
    kind = observation.RTROIIdentificationCodeSequence[0]
    assert (kind.CodeValue, kind.CodeMeaning) == ("5366008", "Hippocampus")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Anterior"
    assert observation.RTROIInterpretedType == "ORGAN"
    assert ds.ApprovalStatus == "UNAPPROVED"
    assert "not verified" in ds.SeriesDescription


def test_a_finding_that_is_no_anatomy_is_not_called_an_organ():
    lesion = Code(value="49755003", scheme="SCT", meaning="Morphologically abnormal structure")
    card = replace(CARD, segments=tuple(replace(s, category=lesion) for s in CARD.segments))

    ds = written(found_at(plain_series(), card, [(1, 2, 3)]))

    assert ds.RTROIObservationsSequence[0].RTROIInterpretedType == ""


def test_labels_without_voxels_are_left_out_and_the_others_keep_their_numbers():
    ds = written(found_at(plain_series(), CARD, [], [(1, 2, 3)]))

    assert [(int(roi.ROINumber), roi.ROIName) for roi in ds.StructureSetROISequence] == [
        (2, "Hippocampus posterior")
    ]


def test_nothing_found_gives_no_structure_set():
    assert rtstruct_write.encode(found_at(plain_series(), CARD), run=RUN) is None


def test_the_same_run_gives_the_same_bytes_and_another_one_another_object():
    sources = plain_series((4, 9, 8))
    labels = noise((4, 9, 8))
    first, second = (
        rtstruct_write.encode(found_in(datasets, labels, CARD), run=RUN)
        for datasets in (sources, sources[::-1])
    )
    other = rtstruct_write.encode(found_in(sources, labels, CARD), run=Run(created_at=NOW, revision="second"))

    assert part_10(first) == part_10(second)
    assert other.SeriesInstanceUID != first.SeriesInstanceUID
    assert other.SOPInstanceUID != first.SOPInstanceUID


def test_bytes_stay_the_same_after_somebody_looked_at_the_contours():
    ds = rtstruct_write.encode(found_in(plain_series((4, 9, 8)), noise((4, 9, 8)), CARD), run=RUN)
    before = part_10(ds)

    assert contours_of(ds)

    assert part_10(ds) == before


@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 192", "Ölmez^Ş"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO_IR 144", "Иванов")],
)
def test_names_survive_in_every_character_set(character_set, name):
    sources = plain_series()
    for source in sources:
        source.SpecificCharacterSet = character_set
        source.PatientName = name

    ds = written(found_at([reread(source) for source in sources], CARD, [(1, 2, 3)]))

    assert ds.PatientName == name
    assert len(contours_of(ds)) == 1


def test_the_last_point_differs_from_the_first_in_x_or_y_even_on_upright_planes():
    # rows run along z, so a step from row to row changes z alone; plastimatch would drop such a last point
    volume = make_volume(np.zeros((3, 9, 8), np.uint16), axes=OBLIQUE)
    ds = written(found_in(make_series(volume), noise((3, 9, 8)), CARD))

    for contour in contours_of(ds):
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert np.abs(points[-1, :2] - points[0, :2]).max() > 0
