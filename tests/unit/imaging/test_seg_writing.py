"""The segmentation objects that are sent: identity, header and what they never do."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from dicomnode.errors import UnreadableInstanceError
from dicomnode.imaging.identity import DEVICE, label_table_sha256
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results import seg_write
from tests.imaging_builders import NOW, make_card, part_10, plain_series, reread
from tests.seg_builders import RUN, encoded_forms, found_at

CARD = make_card()
FIRST, SECOND = ((1, 1, 1),), ((2, 2, 2), (3, 2, 2))


def binary_of(datasets, *, card=CARD, run=RUN, first=FIRST, second=SECOND):
    (ds,) = seg_write.encode_binary(found_at(datasets, card, first, second), run=run)
    return ds


def label_map_of(datasets, *, card=CARD, run=RUN, first=FIRST, second=SECOND):
    return seg_write.encode_label_map(found_at(datasets, card, first, second), run=run)


@pytest.fixture(params=[binary_of, label_map_of], ids=["binary", "label map"])
def write(request):
    return request.param


def test_the_same_inputs_give_the_same_bytes_in_any_file_order(write):
    datasets = plain_series()

    assert part_10(write(datasets)) == part_10(write(datasets[::-1]))


def test_looking_into_an_object_does_not_change_its_bytes(write):
    looked_at, other = write(plain_series()), write(plain_series())

    assert len(looked_at.PerFrameFunctionalGroupsSequence) == looked_at.NumberOfFrames
    assert looked_at.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert part_10(looked_at) == part_10(other)


def test_uids_change_with_voxels_model_and_run_but_not_with_time(write):
    datasets = plain_series()
    base = write(datasets)
    later = write(datasets, run=replace(RUN, created_at=NOW + timedelta(days=1)))
    other_voxels = write(datasets, first=((0, 0, 0),))
    rerun = write(datasets, run=replace(RUN, revision="another"))

    assert later.SOPInstanceUID == base.SOPInstanceUID
    assert other_voxels.SOPInstanceUID != base.SOPInstanceUID
    assert other_voxels.SeriesInstanceUID == base.SeriesInstanceUID
    assert rerun.SeriesInstanceUID != base.SeriesInstanceUID
    assert rerun.SOPInstanceUID != base.SOPInstanceUID


def test_each_form_has_a_series_of_its_own():
    forms = encoded_forms(found_at(plain_series(), CARD, FIRST, SECOND))

    assert len({ds.SeriesInstanceUID for ds in forms.values()}) == 2
    assert len({ds.SOPInstanceUID for ds in forms.values()}) == 2
    assert {name: ds.SeriesNumber for name, ds in forms.items()} == {"binary": 9001, "label map": 9000}


def test_an_empty_result_sends_no_binary_segmentation():
    assert seg_write.encode_binary(found_at(plain_series(), CARD), run=RUN) == ()


def test_an_empty_label_map_lists_what_was_looked_for_and_has_no_voxel():
    ds = reread(label_map_of(plain_series(), first=(), second=()))

    assert [item.SegmentLabel for item in ds.SegmentSequence] == [
        "Hippocampus anterior",
        "Hippocampus posterior",
        "Background",
    ]
    assert ds.NumberOfFrames == 1
    assert not ds.pixel_array.any()


def test_an_empty_label_is_left_out_and_the_next_is_renumbered(write):
    ds = write(plain_series(), first=())

    listed = [(s.SegmentNumber, s.SegmentLabel) for s in ds.SegmentSequence if s.SegmentNumber]
    assert listed == [(1, "Hippocampus posterior")]
    assert np.unique(reread(ds).pixel_array).tolist() == [0, 1]


def test_each_frame_refers_to_its_slice_and_no_empty_frame_is_sent():
    datasets = plain_series((4, 8, 8))
    ds = reread(binary_of(datasets))

    assert ds.NumberOfFrames == 3
    # segment by segment, from the last slice to the first: the order in which viewers mirror nothing
    for frame, source in zip(ds.PerFrameFunctionalGroupsSequence, (1, 3, 2), strict=True):
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == datasets[source].SOPInstanceUID
        assert reference.ReferencedSOPClassUID == datasets[source].SOPClassUID
        assert reference.SpatialLocationsPreserved == "YES"
        assert "ReferencedFrameNumber" not in reference
        assert frame.PlanePositionSequence[0].ImagePositionPatient == datasets[source].ImagePositionPatient
    assert len(ds.ReferencedSeriesSequence) == 1
    assert len(ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(datasets)


def test_a_label_map_has_one_frame_for_each_slice_from_the_first_label_to_the_last():
    datasets = plain_series((7, 8, 8))
    ds = reread(label_map_of(datasets, first=((1, 1, 1),), second=((4, 2, 2),)))

    sources = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for frame in ds.PerFrameFunctionalGroupsSequence
    ]
    assert sources == [datasets[index].SOPInstanceUID for index in (4, 3, 2, 1)]
    assert [frame.max() for frame in ds.pixel_array] == [2, 0, 0, 1]
    assert all("SegmentIdentificationSequence" not in f for f in ds.PerFrameFunctionalGroupsSequence)


def test_a_label_map_describes_its_background_behind_the_labels():
    ds = reread(label_map_of(plain_series()))

    assert [item.SegmentNumber for item in ds.SegmentSequence] == [1, 2, 0]
    assert ds.SegmentSequence[-1].SegmentedPropertyTypeCodeSequence[0].CodeValue == "125040"
    assert ds.PixelPaddingValue == 0


@pytest.mark.parametrize("shape", [(4, 5, 7), (7, 5, 6), (9, 3, 3), (12, 50, 34), (5, 8, 9), (6, 2, 3)])
def test_pixel_data_fills_an_even_number_of_bytes_so_that_ohif_opens_it(shape):
    datasets = plain_series(shape)
    ds = reread(binary_of(datasets, first=((1, 1, 1),), second=((2, 1, 2), (3, 1, 2))))

    pixels, frames = shape[1] * shape[2], ds.NumberOfFrames
    assert len(ds.PixelData) == -(-pixels * frames // 8)
    assert pixels % 8 == 0 or len(ds.PixelData) != frames * -(-pixels // 8)
    indices = [
        tuple(f.FrameContentSequence[0].DimensionIndexValues) for f in ds.PerFrameFunctionalGroupsSequence
    ]
    assert len(set(indices)) == frames
    assert indices == sorted(indices)
    assert ds.pixel_array.sum() == 3


def test_a_segment_says_label_codes_colour_algorithm_and_tracking(write):
    findings = found_at(plain_series(), CARD, FIRST, SECOND)
    segment = reread(write(plain_series())).SegmentSequence[0]

    type_item = segment.SegmentedPropertyTypeCodeSequence[0]
    assert type_item.CodeValue == "5366008"
    assert type_item.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Anterior"
    assert segment.AnatomicRegionSequence[0].CodeValue == "12738006"
    assert len(segment.RecommendedDisplayCIELabValue) == 3
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (
        "hippocampus",
        "hippocampus@0123456789ab",
    )
    assert segment.TrackingUID == findings.measures[0].tracking_uid


def test_tracking_uids_stay_over_runs_forms_and_voxels():
    datasets = plain_series()
    objects = [
        binary_of(datasets),
        label_map_of(datasets),
        binary_of(datasets, run=replace(RUN, revision="x"), second=((0, 0, 0),)),
    ]

    assert len({ds.SegmentSequence[1].TrackingUID for ds in objects}) == 1


def test_the_series_says_model_version_and_that_nobody_verified_it(write):
    ds = write(plain_series())

    assert ds.SeriesDescription == "AI hippocampus 0123456789ab (not verified)"
    assert ds.ContentDescription == "AI result, not verified by a physician"
    assert "ImageComments" not in ds
    assert ds.Manufacturer == DEVICE.manufacturer
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, measures.SliceThickness) == (2, 2)


def test_remarks_of_the_stack_stand_in_the_result(write):
    findings = found_at(plain_series(), CARD, FIRST, SECOND)
    remarks = ("gantry tilt of 12.0 degrees", "1 slice is missing between 10.0 and 14.0 mm")
    findings = replace(findings, stack=replace(findings.stack, remarks=remarks, name="echo time 4.6 ms"))

    for ds in encoded_forms(findings).values():
        assert ds.ContentDescription == "AI result, not verified by a physician; see Image Comments"
        assert ds.ImageComments == f"stack: echo time 4.6 ms; {remarks[0]}; {remarks[1]}"


def test_stacks_of_one_series_get_series_of_their_own():
    one = found_at(plain_series(), CARD, FIRST, SECOND)
    stacks = [replace(one, stack=replace(one.stack, name=name)) for name in ("", "echo 1", "echo 2")]

    objects = [ds for findings in stacks for ds in encoded_forms(findings).values()]
    assert len({ds.SeriesInstanceUID for ds in objects}) == len({ds.SOPInstanceUID for ds in objects}) == 6


def test_a_long_model_name_still_fits_the_series_description(write):
    long = make_card()
    object.__setattr__(long, "name", "n" * 80)

    ds = write(plain_series(), card=long)

    assert len(ds.SeriesDescription) <= 64
    assert ds.SeriesDescription.endswith("hippocampus@0123456789ab (not verified)")


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")
def test_missing_and_malformed_patient_attributes_do_not_cost_the_result(write):
    datasets = plain_series()
    for ds in datasets:
        del ds.PatientID, ds.PatientName, ds.StudyID, ds.AccessionNumber, ds.SliceThickness, ds.Manufacturer
        ds.PatientSex = "X"
        ds.add_new("PatientBirthDate", "DA", "19991332")
    before = [ds.to_json() for ds in datasets]

    ds = reread(write(datasets))

    assert (ds.PatientID, ds.PatientSex, ds.PatientBirthDate, ds.StudyID) == ("", "", "", "")
    assert [ds.to_json() for ds in datasets] == before


@pytest.mark.parametrize("keyword", ["SOPClassUID", "StudyInstanceUID"])
def test_sources_that_cannot_be_referred_to_are_refused(keyword):
    datasets = plain_series()
    findings = found_at(datasets, CARD, FIRST, SECOND)
    delattr(findings.stack.frames[2].ds, keyword)

    with pytest.raises(UnreadableInstanceError, match=f"lacks {keyword}"):
        seg_write.encode_binary(findings, run=RUN)
    with pytest.raises(UnreadableInstanceError, match=f"lacks {keyword}"):
        seg_write.encode_label_map(findings, run=RUN)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "王^小東"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_the_patients_name_survives_in_its_character_set(character_set, name, write):
    datasets = plain_series()
    for ds in datasets:
        ds.SpecificCharacterSet = character_set
        ds.PatientName = name
    datasets = [reread(ds) for ds in datasets]

    ds = reread(write(datasets))

    assert str(ds.PatientName) == name
    assert ds.SpecificCharacterSet == datasets[0].SpecificCharacterSet
    assert ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient


def test_a_name_without_declared_character_set_keeps_its_bytes(write):
    datasets = plain_series()
    raw = part_10(datasets[0]).replace(b"Case^One", b"M\xfcller^A")
    assert b"M\xfcller^A" in raw
    for ds in datasets:
        ds.PatientName = "Müller^A"

    assert b"M\xfcller^A" in part_10(write(datasets))


def test_times_are_written_in_the_time_zone_of_the_source(write):
    datasets = plain_series()
    for ds in datasets:
        ds.TimezoneOffsetFromUTC = "+0530"

    ds = write(datasets)

    assert (ds.ContentDate, ds.ContentTime) == ("20260304", "103607.000089")
    assert ds.TimezoneOffsetFromUTC == "+0530"


def test_lossy_compression_of_a_source_is_said_of_the_result(write):
    datasets = plain_series()
    datasets[2].LossyImageCompression, datasets[2].LossyImageCompressionRatio = "01", "8.5"
    datasets[2].LossyImageCompressionMethod = "ISO_10918_1"

    ds = write(datasets)

    assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 8.5)
    assert ds.LossyImageCompressionMethod == "ISO_10918_1"


def test_a_series_without_frame_of_reference_gets_a_derived_one(write):
    datasets = plain_series()
    for ds in datasets:
        del ds.FrameOfReferenceUID

    assert write(datasets).FrameOfReferenceUID.startswith("2.25.")


def test_class_indices_become_segment_numbers():
    card = make_card(("A", "B"))
    object.__setattr__(card.segments[0], "class_index", 2)
    object.__setattr__(card.segments[1], "class_index", 1)
    image = to_volume(plain_series()).image
    classes = np.zeros(image.shape, np.uint8)
    classes[1, 1, 1], classes[2, 2, 2] = 1, 2

    numbers = seg_write.to_segment_numbers(image.with_array(classes), card)

    assert numbers.array[1, 1, 1] == 2
    assert numbers.array[2, 2, 2] == 1


def test_the_label_table_digest_ignores_colours_and_sees_codes():
    one, other, recoloured = make_card(), make_card(("A", "B")), make_card()
    object.__setattr__(recoloured.segments[0], "rgb", (1, 2, 3))

    assert label_table_sha256(one) == label_table_sha256(recoloured)
    assert label_table_sha256(one) != label_table_sha256(other)


TRIAL = {
    "ClinicalTrialSponsorName": "Sponsor",
    "ClinicalTrialProtocolID": "P-1",
    "ClinicalTrialSubjectID": "S-1",
}


@pytest.mark.parametrize("absent", [None, *TRIAL])
def test_a_clinical_trial_is_named_wholly_or_not_at_all(absent, write):
    datasets = plain_series()
    for ds in datasets:
        for keyword, value in TRIAL.items():
            setattr(ds, keyword, "" if keyword == absent else value)

    ds = write(datasets)

    found = {element.keyword: element.value for element in ds if element.tag.group == 0x0012}
    empty = dict.fromkeys(("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName"), "")
    assert found == ({} if absent else {**TRIAL, **empty})
