"""The segmentation object that is sent: identity, header and what it never does."""

from datetime import timedelta

import numpy as np
import pytest

from dicomnode.imaging import seg_read, seg_write
from dicomnode.imaging.series import to_volume
from tests.imaging_builders import NOW, make_card, part_10, plain_series, reread

CARD = make_card()


def labelled(datasets, *, first=((1, 1, 1),), second=((2, 2, 2), (3, 2, 2))):
    image = to_volume(datasets).image
    labels = np.zeros(image.shape, np.uint8)
    for at in first:
        labels[at] = 1
    for at in second:
        labels[at] = 2
    return image.with_array(labels)


def encode(datasets, *, card=CARD, created_at=NOW, run_id="", **voxels):
    return seg_write.encode(
        labelled(datasets, **voxels), sources=datasets, card=card, created_at=created_at, run_id=run_id
    )


def test_the_same_inputs_give_the_same_bytes_in_any_file_order():
    datasets = plain_series()

    assert part_10(encode(datasets).ds) == part_10(encode(datasets[::-1]).ds)


def test_uids_change_with_voxels_model_and_run_but_not_with_time():
    datasets = plain_series()
    base = encode(datasets)
    later = encode(datasets, created_at=NOW + timedelta(days=1))
    other_voxels = encode(datasets, first=((0, 0, 0),))
    rerun = encode(datasets, run_id="another")

    assert later.sop_instance_uid == base.sop_instance_uid
    assert other_voxels.sop_instance_uid != base.sop_instance_uid
    assert other_voxels.series_instance_uid == base.series_instance_uid
    assert rerun.series_instance_uid != base.series_instance_uid
    assert rerun.sop_instance_uid != base.sop_instance_uid


def test_an_empty_result_sends_nothing():
    assert encode(plain_series(), first=(), second=()) is None


def test_an_empty_label_is_left_out_and_the_next_is_renumbered():
    encoded = encode(plain_series(), first=())

    assert [(s.SegmentNumber, s.SegmentLabel) for s in encoded.ds.SegmentSequence] == [
        (1, "Hippocampus posterior")
    ]
    assert encoded.voxels == (("Hippocampus anterior", 0), ("Hippocampus posterior", 2))
    assert encoded.millilitres[1] == ("Hippocampus posterior", pytest.approx(2 * 2.0 * 0.75 * 0.5 / 1000))


def test_each_frame_refers_to_its_slice_and_no_empty_frame_is_sent():
    datasets = plain_series((4, 8, 8))
    ds = reread(encode(datasets).ds)

    assert ds.NumberOfFrames == 3
    # segment by segment, from the last slice to the first: the order in which viewers mirror nothing
    for frame, source in zip(ds.PerFrameFunctionalGroupsSequence, (1, 3, 2), strict=True):
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == datasets[source].SOPInstanceUID
        assert reference.SpatialLocationsPreserved == "YES"
        assert frame.PlanePositionSequence[0].ImagePositionPatient == datasets[source].ImagePositionPatient
    assert len(ds.ReferencedSeriesSequence) == 1
    assert len(ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(datasets)


@pytest.mark.parametrize("shape", [(4, 5, 7), (7, 5, 6), (9, 3, 3), (12, 50, 34), (5, 8, 9)])
def test_pixel_data_fills_an_even_number_of_bytes_so_that_ohif_opens_it(shape):
    datasets = plain_series(shape)
    ds = reread(encode(datasets).ds)

    pixels, frames = shape[1] * shape[2], ds.NumberOfFrames
    assert len(ds.PixelData) == -(-pixels * frames // 8)
    assert pixels % 8 == 0 or len(ds.PixelData) != frames * -(-pixels // 8)
    decoded = seg_read.decode(ds, sources=datasets, card=CARD)
    assert [int(mask.sum()) for mask in decoded.masks.values()] == [1, 2]
    indices = [
        tuple(f.FrameContentSequence[0].DimensionIndexValues) for f in ds.PerFrameFunctionalGroupsSequence
    ]
    assert len(set(indices)) == frames
    assert indices == sorted(indices)


def test_a_segment_says_label_codes_colour_algorithm_and_tracking():
    encoded = encode(plain_series())
    segment = reread(encoded.ds).SegmentSequence[0]

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
    assert segment.TrackingUID == dict(encoded.tracking_uids)["Hippocampus anterior"]


def test_tracking_uids_stay_over_runs_and_model_versions():
    datasets = plain_series()

    assert encode(datasets).tracking_uids == encode(datasets, run_id="x", second=((0, 0, 0),)).tracking_uids


def test_the_series_says_model_version_and_that_nobody_verified_it():
    ds = encode(plain_series()).ds

    assert ds.SeriesDescription == "AI hippocampus 0123456789ab (not verified)"
    assert "not verified" in ds.ContentDescription
    assert ds.Manufacturer == seg_write.DEVICE.manufacturer
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, measures.SliceThickness) == (2, 2)


def test_a_long_model_name_still_fits_the_series_description():
    long = make_card()
    object.__setattr__(long, "name", "n" * 80)

    ds = encode(plain_series(), card=long).ds

    assert len(ds.SeriesDescription) <= 64
    assert ds.SeriesDescription.endswith("hippocampus@0123456789ab (not verified)")


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")
def test_missing_and_malformed_patient_attributes_do_not_cost_the_result():
    datasets = plain_series()
    for ds in datasets:
        del ds.PatientID, ds.PatientName, ds.StudyID, ds.AccessionNumber, ds.SliceThickness, ds.Manufacturer
        ds.PatientSex = "X"
        ds.add_new("PatientBirthDate", "DA", "19991332")
    before = [ds.to_json() for ds in datasets]

    ds = reread(encode(datasets).ds)

    assert (ds.PatientID, ds.PatientSex, ds.PatientBirthDate, ds.StudyID) == ("", "", "", "")
    assert [ds.to_json() for ds in datasets] == before


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
def test_the_patients_name_survives_in_its_character_set(character_set, name):
    datasets = plain_series()
    for ds in datasets:
        ds.SpecificCharacterSet = character_set
        ds.PatientName = name
    datasets = [reread(ds) for ds in datasets]

    ds = reread(encode(datasets).ds)

    assert str(ds.PatientName) == name
    assert ds.SpecificCharacterSet == datasets[0].SpecificCharacterSet


def test_a_name_without_declared_character_set_keeps_its_bytes():
    datasets = plain_series()
    raw = part_10(datasets[0]).replace(b"Case^One", b"M\xfcller^A")
    assert b"M\xfcller^A" in raw
    for ds in datasets:
        ds.PatientName = "Müller^A"

    assert b"M\xfcller^A" in part_10(encode(datasets).ds)


def test_times_are_written_in_the_time_zone_of_the_source():
    datasets = plain_series()
    for ds in datasets:
        ds.TimezoneOffsetFromUTC = "+0530"

    ds = encode(datasets).ds

    assert (ds.ContentDate, ds.ContentTime) == ("20260304", "103607.000089")
    assert ds.TimezoneOffsetFromUTC == "+0530"


def test_a_series_without_frame_of_reference_is_written_and_read_back():
    datasets = plain_series()
    for ds in datasets:
        del ds.FrameOfReferenceUID

    ds = reread(encode(datasets).ds)

    assert ds.FrameOfReferenceUID.startswith("2.25.")
    assert seg_read.decode(ds, sources=datasets, card=CARD).flags == ()


def test_labels_off_the_grid_are_a_bug_of_the_caller():
    datasets = plain_series()
    labels = labelled(datasets)

    with pytest.raises(ValueError, match="do not lie on the grid"):
        seg_write.encode(labels[1:], sources=datasets, card=CARD, created_at=NOW)
    with pytest.raises(ValueError, match="no segment numbers"):
        seg_write.encode(labels.with_array(labels.array * 7), sources=datasets, card=CARD, created_at=NOW)


def test_class_indices_become_segment_numbers():
    datasets = plain_series()
    card = make_card(("A", "B"))
    object.__setattr__(card.segments[0], "class_index", 2)
    object.__setattr__(card.segments[1], "class_index", 1)

    numbers = seg_write.to_segment_numbers(labelled(datasets), card)

    assert numbers.array[1, 1, 1] == 2
    assert numbers.array[2, 2, 2] == 1


def test_the_label_table_digest_ignores_colours_and_sees_codes():
    one, other, recoloured = make_card(), make_card(("A", "B")), make_card()
    object.__setattr__(recoloured.segments[0], "rgb", (1, 2, 3))

    assert seg_write.label_table_sha256(one) == seg_write.label_table_sha256(recoloured)
    assert seg_write.label_table_sha256(one) != seg_write.label_table_sha256(other)
