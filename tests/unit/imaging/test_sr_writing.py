"""The measurement reports that are sent: figures, references, codes, words and header."""

from dataclasses import replace
from datetime import timedelta

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.codedict import codes

from dicomnode.domain import ResultForm
from dicomnode.errors import UnreadableInstanceError
from dicomnode.imaging.identity import is_own_device
from dicomnode.imaging.images.series import stack_volume
from dicomnode.imaging.images.stacks import read_stacks
from dicomnode.imaging.results import seg_write, sr_write
from dicomnode.imaging.results.findings import measure
from dicomnode.imaging.results.result_object import result_object
from dicomnode.imaging.results.sr_groups import image_references
from dicomnode.imaging.results.sr_quantities import pixel_quantity
from tests.imaging_builders import NOW, make_card, part_10, plain_series, reread, sct
from tests.seg_builders import RUN, encoded_forms, found_at, found_in

CARD = make_card()
FIRST, SECOND = ((1, 1, 1), (1, 1, 2), (2, 0, 0)), ((2, 2, 2),)
FINDING, SITE = codes.DCM.Finding, codes.SCT.FindingSite


def found(datasets=None, *, card=CARD, first=FIRST, second=SECOND):
    return found_at(datasets or plain_series(), card, first, second)


def report(findings, segs=None, *, run=RUN):
    """A report as a reader gets it; on BINARY segmentations where none are named."""
    segs = seg_write.encode_binary(findings, run=run) if segs is None else segs
    return reread(sr_write.encode(findings, run=run, segs=segs))


def children(item, name):
    wanted = (name.value, name.scheme_designator)
    return [one for one in item.get("ContentSequence", []) if code_of(one.ConceptNameCodeSequence) == wanted]


def code_of(sequence):
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


def groups_of(ds):
    return [
        group
        for container in children(ds, codes.DCM.ImagingMeasurements)
        for group in children(container, codes.DCM.MeasurementGroup)
    ]


def evaluations_of(ds):
    (container,) = children(ds, hd.sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations"))
    return container.ContentSequence


def words_of(ds):
    return [item.TextValue for item in evaluations_of(ds) if item.ValueType == "TEXT"]


def figures_of(group):
    return [
        (
            item.ConceptNameCodeSequence[0].CodeMeaning,
            [one.ConceptCodeSequence[0].CodeMeaning for one in children(item, codes.DCM.Derivation)],
            item.MeasuredValueSequence[0].FloatingPointValue,
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    ]


def references_of(ds):
    return [
        (str(series.SeriesInstanceUID), str(item.ReferencedSOPInstanceUID))
        for study in ds.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


def test_the_same_inputs_give_the_same_bytes_in_any_file_order():
    datasets = plain_series()

    def written(sources, segs):
        return part_10(sr_write.encode(found(sources), run=RUN, segs=segs))

    segs = seg_write.encode_binary(found(datasets), run=RUN)
    assert written(datasets, segs) == written(datasets[::-1], segs)
    assert written(datasets, ()) == written(datasets[::-1], ())


def test_uids_change_with_voxels_model_run_and_what_is_referred_to_but_not_with_time():
    base = report(found())
    later = report(found(), run=replace(RUN, created_at=NOW + timedelta(days=1)))
    rerun = report(found(), run=replace(RUN, revision="another"))
    other_voxels = report(found(first=((0, 0, 0),)))
    on_images = report(found(), segs=())

    assert (later.SOPInstanceUID, later.SeriesInstanceUID) == (base.SOPInstanceUID, base.SeriesInstanceUID)
    assert rerun.SeriesInstanceUID != base.SeriesInstanceUID
    assert len({ds.SOPInstanceUID for ds in (base, rerun, other_voxels, on_images)}) == 4
    assert other_voxels.SeriesInstanceUID == on_images.SeriesInstanceUID == base.SeriesInstanceUID


def test_a_report_is_a_series_of_its_own_of_the_node_that_nobody_verified():
    ds = report(found())

    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert (ds.Modality, ds.SeriesNumber) == ("SR", 9101)
    assert "(not verified)" in ds.SeriesDescription
    assert is_own_device(ds)
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert (ds.ContentDate, ds.ContentTime) == ("20260304", "050607.000089")
    assert "FrameOfReferenceUID" not in ds
    assert ds.SeriesInstanceUID == result_object(found(), run=RUN, form=ResultForm.SR).SeriesInstanceUID


def test_times_are_in_the_time_zone_of_the_source():
    datasets = plain_series()
    for ds in datasets:
        ds.TimezoneOffsetFromUTC = "+0530"

    ds = report(found(datasets))

    assert (ds.TimezoneOffsetFromUTC, ds.ContentTime) == ("+0530", "103607.000089")


def test_a_found_label_has_its_volume_mean_and_sd():
    first, second = groups_of(report(found()))  # voxels of 2.0 x 0.75 x 0.5 mm with the values 37, 38, 60; 74

    assert figures_of(first) == [
        ("Volume", [], pytest.approx(0.00225), "cm3"),
        ("MR signal intensity", ["Mean"], pytest.approx(45.0), "1"),
        ("MR signal intensity", ["Standard Deviation"], pytest.approx(np.sqrt(338 / 3)), "1"),
    ]
    assert [value for _, _, value, _ in figures_of(second)] == pytest.approx([0.00075, 74.0, 0.0])


@pytest.mark.parametrize("form", ["binary", "label map"])
def test_a_group_refers_to_the_segment_of_its_label(form):
    card = make_card(("A", "B", "C"))
    findings = found_at(plain_series(), card, (), ((1, 1, 1),), ((2, 2, 2),))
    seg = encoded_forms(findings)[form]

    groups = groups_of(report(findings, (seg,)))

    assert len(groups) == 2
    for group, item in zip(groups, seg.SegmentSequence, strict=False):
        (reference,) = children(group, codes.DCM.ReferencedSegment)
        named = reference.ReferencedSOPSequence[0]
        assert (named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID) == (
            seg.SOPClassUID,
            seg.SOPInstanceUID,
        )
        assert named.ReferencedSegmentNumber == item.SegmentNumber
        assert item.TrackingUID == children(group, codes.DCM.TrackingUniqueIdentifier)[0].UID
        assert children(group, codes.DCM.TrackingIdentifier)[0].TextValue == item.TrackingID
        (series,) = children(group, codes.DCM.SourceSeriesForSegmentation)
        assert findings.stack.series_instance_uid == series.UID


def test_labels_in_several_segmentations_are_each_referred_to_where_they_are():
    card = make_card([f"Label {number}" for number in range(1, 33)])
    labels = np.zeros((4, 5, 6), np.uint8)
    labels.reshape(-1)[:32] = np.arange(1, 33)
    findings = found_in(plain_series(), labels, card)
    segs = seg_write.encode_binary(findings, run=RUN)
    places = {
        item.TrackingUID: (seg.SOPInstanceUID, item.SegmentNumber)
        for seg in segs
        for item in seg.SegmentSequence
    }

    groups = groups_of(report(findings, segs))

    assert len(segs) > 1
    assert len(groups) == 32
    for group in groups:
        (reference,) = children(group, codes.DCM.ReferencedSegment)
        named = reference.ReferencedSOPSequence[0]
        uid = children(group, codes.DCM.TrackingUniqueIdentifier)[0].UID
        assert places[uid] == (named.ReferencedSOPInstanceUID, named.ReferencedSegmentNumber)


def test_without_segmentations_a_group_refers_to_the_images_of_its_label():
    findings = found()
    sources = [frame.sop_instance_uid for frame in findings.stack.frames]

    groups = groups_of(report(findings, ()))

    named = [
        [
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for item in group.ContentSequence
            if item.ValueType == "IMAGE"
        ]
        for group in groups
    ]
    assert named == [sources[1:3], sources[2:3]]
    assert {group.ContentTemplateSequence[0].TemplateIdentifier for group in groups} == {"1501"}


def test_a_label_that_no_segmentation_holds_is_an_error():
    findings = found()
    other = seg_write.encode_binary(found(second=()), run=RUN)

    with pytest.raises(ValueError, match="'Hippocampus posterior' was found and is in none"):
        sr_write.encode(findings, run=RUN, segs=other)


def test_the_evidence_is_every_segmentation_and_every_source_image():
    findings = found()
    forms = list(encoded_forms(findings).values())
    sources = [(findings.stack.series_instance_uid, ds.SOPInstanceUID) for ds in findings.stack.datasets]

    assert references_of(report(findings, forms)) == [
        *((seg.SeriesInstanceUID, seg.SOPInstanceUID) for seg in forms),
        *sources,
    ]
    assert references_of(report(findings, ())) == sources


def test_when_nothing_is_found_the_report_says_so_in_words_and_in_code():
    ds = report(found(first=(), second=()), ())

    assert groups_of(ds) == []
    assert words_of(ds) == [
        "AI result, not verified by a physician",
        "Nothing was found. Model hippocampus@0123456789ab looked in these images for: "
        "Hippocampus anterior, Hippocampus posterior",
    ]
    said = [item for item in evaluations_of(ds) if item.ValueType == "CODE"]
    assert [code_of(item.ConceptNameCodeSequence) for item in said] == 2 * [("5366008", "SCT")]
    assert [code_of(item.ConceptCodeSequence) for item in said] == 2 * [("260415000", "SCT")]
    modifiers = [item.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning for item in said]
    assert modifiers == ["Anterior", "Posterior"]
    assert len(references_of(ds)) == 4


def test_a_label_that_was_not_found_is_named_beside_those_that_were():
    ds = report(found(second=()))

    assert len(groups_of(ds)) == 1
    assert words_of(ds)[1:] == [
        "Found by model hippocampus@0123456789ab: Hippocampus anterior (0.00225 ml)",
        "Looked for and not found: Hippocampus posterior",
    ]
    assert [item.ValueType for item in evaluations_of(ds)].count("CODE") == 1


@pytest.mark.parametrize(
    ("millilitres", "words"), [(0.00075, "0.00075"), (3.14159, "3.142"), (1500.0, "1500"), (11125.5, "11130")]
)
def test_volumes_are_said_without_exponents(millilitres, words):
    findings = found(second=())
    measures = (replace(findings.measures[0], millilitres=millilitres), findings.measures[1])

    ds = report(replace(findings, measures=measures))

    assert f"({words} ml)" in words_of(ds)[1]


def test_what_is_not_regular_of_the_images_is_said_in_words():
    findings = found()
    stack = replace(findings.stack, name="echo time 4.6 ms", remarks=("2 slices are missing", "tilt of 12°"))

    ds = report(replace(findings, stack=stack), ())

    assert words_of(ds)[-3:] == ["Images: echo time 4.6 ms", "2 slices are missing", "tilt of 12?"]


def test_the_model_is_named_with_its_version_and_weights():
    group = groups_of(report(found()))[0]

    said = [children(group, name)[0].TextValue for name in (
        codes.DCM.AlgorithmName,
        codes.DCM.AlgorithmVersion,
        codes.DCM.AlgorithmParameters,
    )]  # fmt: skip
    assert said == ["hippocampus", "hippocampus@0123456789ab", f"weights_sha256={CARD.weights_sha256}"]


ANATOMY, LESION = (
    sct("123037004", "Anatomical Structure"),
    sct("49755003", "Morphologically Altered Structure"),
)
KIDNEY, ABDOMEN, TUMOUR = sct("64033007", "Kidney"), sct("818981001", "Abdomen"), sct("108369006", "Neoplasm")
RIGHT, UPPER, PRIMARY = sct("24028007", "Right"), sct("261183002", "Upper"), sct("63161005", "Principal")


@pytest.mark.parametrize(
    ("category", "type_", "modifier", "region", "finding", "sites"),
    [
        (ANATOMY, KIDNEY, None, None, [], [("Kidney", [])]),
        (ANATOMY, KIDNEY, RIGHT, None, [], [("Kidney", ["Laterality: Right"])]),
        (ANATOMY, KIDNEY, UPPER, None, [], [("Kidney", ["Topographical modifier: Upper"])]),
        (ANATOMY, KIDNEY, RIGHT, ABDOMEN, [], [("Abdomen", ["Laterality: Right"])]),
        (ANATOMY, KIDNEY, UPPER, ABDOMEN, ["Topographical modifier: Upper"], [("Abdomen", [])]),
        (LESION, TUMOUR, None, None, [], []),
        (LESION, TUMOUR, RIGHT, None, ["Laterality: Right"], []),
        (LESION, TUMOUR, RIGHT, KIDNEY, [], [("Kidney", ["Laterality: Right"])]),
        (LESION, TUMOUR, PRIMARY, KIDNEY, ["General adjectival modifier: Principal"], [("Kidney", [])]),
    ],
)
def test_a_finding_its_site_and_their_modifiers_are_coded_where_they_are_true(
    category, type_, modifier, region, finding, sites
):
    segment = replace(CARD.segments[0], category=category, type=type_, type_modifier=modifier, region=region)
    findings = found(card=replace(CARD, segments=(segment, CARD.segments[1])))

    group = groups_of(report(findings))[0]

    (found_code,) = children(group, FINDING)
    assert found_code.ConceptCodeSequence[0].CodeMeaning == type_.meaning
    assert modifiers_of(found_code) == finding
    assert [
        (item.ConceptCodeSequence[0].CodeMeaning, modifiers_of(item)) for item in children(group, SITE)
    ] == sites


def modifiers_of(item):
    return [
        f"{one.ConceptNameCodeSequence[0].CodeMeaning}: {one.ConceptCodeSequence[0].CodeMeaning}"
        for one in item.get("ContentSequence", [])
    ]


@pytest.mark.parametrize(
    ("header", "name", "unit"),
    [
        ({"Modality": "CT"}, "Attenuation Coefficient", "[hnsf'U]"),
        ({"Modality": "CT", "RescaleType": "HU"}, "Attenuation Coefficient", "[hnsf'U]"),
        ({"Modality": "CT", "RescaleType": "MGML"}, "Quantity", "mg/ml"),
        ({"Modality": "CT", "RescaleType": "US"}, "Quantity", "[arb'U]"),
        ({"Modality": "CT", "ImageType": ["DERIVED", "PRIMARY", "CBF"]}, "Quantity", "[arb'U]"),
        ({"Modality": "MR"}, "MR signal intensity", "1"),
        ({"Modality": "MR", "ImageType": ["DERIVED", "PRIMARY", "ADC"]}, "Quantity", "[arb'U]"),
        ({"Modality": "PT", "Units": "BQML"}, "Nuclear Medicine Tomographic Activity", "Bq/ml"),
        ({"Modality": "PT", "Units": "CNTS"}, "Nuclear Medicine Tomographic Activity", "{counts}"),
        ({"Modality": "PT", "Units": "GML"}, "SUVbw", "g/ml{SUVbw}"),
        ({"Modality": "PT", "Units": "GML", "SUVType": "LBM"}, "SUVlbm", "g/ml{SUVlbm}"),
        ({"Modality": "PT", "Units": "CM2ML", "SUVType": "BSA"}, "SUVbsa", "cm2/ml{SUVbsa}"),
        ({"Modality": "PT", "Units": "CM2ML"}, "Quantity", "cm2/ml"),
        ({"Modality": "PT"}, "Quantity", "[arb'U]"),
        ({"Modality": "PT", "Units": "FURLONG"}, "Quantity", "[arb'U]"),
    ],
)
def test_units_are_those_of_the_pixel_values(header, name, unit):
    datasets = plain_series()
    for ds in datasets:
        for keyword, value in header.items():
            setattr(ds, keyword, value)
    (stack,) = read_stacks(datasets)

    quantity = pixel_quantity(stack)

    assert (quantity.name.meaning, quantity.unit.value) == (name, unit)


def test_a_stack_of_some_frames_of_an_instance_is_referred_to_by_frame_numbers(data_dir):
    path = data_dir / "enhanced" / "dcm_qa_enh" / "In" / "Philips" / "IM_0027_fMAP.dcm"
    stack = read_stacks([dcmread(path)])[0]
    series = stack_volume(stack)
    labels = np.zeros(series.image.shape, np.uint8)
    labels[3:5, 20:30, 20:30] = 1
    findings = measure(series.image.with_array(labels), series=series, card=CARD)
    numbers = [frame.frame_number for frame in stack.frames]

    ds = report(findings, ())

    assert 1 < len(numbers) < stack.first.NumberOfFrames
    (group,) = groups_of(ds)
    (image,) = [item for item in group.ContentSequence if item.ValueType == "IMAGE"]
    assert list(image.ReferencedSOPSequence[0].ReferencedFrameNumber) == sorted(numbers[3:5])
    (library,) = children(ds, codes.DCM.ImageLibrary)
    (image,) = [one for one in library.ContentSequence[0].ContentSequence if one.ValueType == "IMAGE"]
    assert list(image.ReferencedSOPSequence[0].ReferencedFrameNumber) == sorted(numbers)
    assert f"Images: {stack.name}" in words_of(ds)
    assert len(references_of(ds)) == 1


def test_a_whole_instance_is_referred_to_without_frame_numbers(data_dir):
    ds = dcmread(data_dir / "enhanced" / "nema" / "BRTUM001")
    (stack,) = read_stacks([ds])

    assert image_references(stack.frames) == [(ds.SOPClassUID, ds.SOPInstanceUID, None)]


def test_patients_are_named_in_the_character_set_of_the_source(data_dir):
    named = {
        path.name: theirs
        for path in sorted((data_dir / "charsets" / "fo-dicom").glob("*.dcm"))
        if "PatientName" in (theirs := dcmread(path))
    }

    for name, theirs in named.items():
        datasets = plain_series()
        for ds in datasets:
            ds.PatientName = theirs.PatientName
            if "SpecificCharacterSet" in theirs:
                ds.SpecificCharacterSet = theirs.SpecificCharacterSet
        source = reread(datasets[0])

        ours = report(found([reread(ds) for ds in datasets]))

        assert str(ours.PatientName) == str(theirs.PatientName), name
        assert ours.PatientName.original_string == source.PatientName.original_string, name
        assert ours.get("SpecificCharacterSet") == source.get("SpecificCharacterSet"), name
    assert len(named) > 10


def test_a_source_with_a_malformed_header_still_gets_its_report():
    datasets = plain_series()
    for ds in datasets:
        ds.add_new("PatientBirthDate", "LO", "31.12.1970")
        ds.add_new("StudyTime", "LO", "noon")
        ds.add_new("PatientName", "LO", "a^b^c^d^e^f^g")
        del ds.PatientID

    ds = report(found(datasets))

    assert (ds.PatientBirthDate, ds.StudyTime, ds.PatientID) == ("", "", "")


def test_a_source_that_cannot_be_referred_to_is_refused():
    datasets = plain_series()
    findings = found(datasets)
    del datasets[1].SOPClassUID

    with pytest.raises(UnreadableInstanceError, match="lacks SOPClassUID"):
        sr_write.encode(findings, run=RUN, segs=())
