"""Other readers find our labels at the same place, and we find theirs."""

import json
import subprocess
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from dicomnode.imaging.identity import voxels_sha256
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.results import seg_write
from dicomnode.imaging.results.findings import measure
from tests.imaging_builders import make_card
from tests.interop.seg_cases import (
    HIPPOCAMPUS_STUDIES,
    NAMES,
    blobs,
    blobs_in,
    on_grid,
    series_named,
    to_itk,
)
from tests.seg_builders import RUN, encoded_forms

CARD = make_card()
OWN_SERIES = [*HIPPOCAMPUS_STUDIES, "made"]


def case_of(series, tmp_path):
    findings = blobs_in(series, CARD)
    paths = {}
    for form, ds in encoded_forms(findings).items():
        paths[form] = tmp_path / f"{form}.dcm"
        ds.save_as(paths[form], enforce_file_format=True)
    return SimpleNamespace(series=series, labels=blobs(series.image), findings=findings, paths=paths)


@pytest.fixture(params=OWN_SERIES)
def case(request, data_dir, tmp_path):
    return case_of(series_named(request.param, data_dir), tmp_path)


def masks_of(case):
    return {s.label: np.asarray(case.labels.array == s.segment_number) for s in CARD.segments}


def assert_exact(decoded, case):
    for label, mask in masks_of(case).items():
        np.testing.assert_array_equal(decoded.masks[label], mask)
    assert voxels_sha256(decoded.masks) == case.findings.voxels_sha256


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["binary", "label map"])
def test_highdicom_reads_our_labels_on_the_image_grid(name, form, data_dir, tmp_path):
    case = case_of(series_named(name, data_dir), tmp_path)
    seg = hd.seg.segread(case.paths[form])

    volume = seg.get_volume(combine_segments=True).match_geometry(case.series.image)

    np.testing.assert_array_equal(volume.array, case.labels.array)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["binary", "label map"])
def test_dcmqi_reads_our_labels_at_their_place(name, form, data_dir, need_program, tmp_path):
    case = case_of(series_named(name, data_dir), tmp_path)
    run(
        need_program("segimage2itkimage"),
        "--inputDICOM", case.paths[form], "--outputDirectory", tmp_path, "--prefix", "out",
    )  # fmt: skip

    pictures = sorted(tmp_path.glob("out-*.nrrd"))
    assert len(pictures) == (2 if form == "binary" else 1)
    for number, mask in enumerate(masks_of(case).values(), 1):
        picture = SimpleITK.ReadImage(pictures[number - 1 if form == "binary" else 0])
        value = 1 if form == "binary" else number
        found = on_grid(picture, case.series.image, None if form == "binary" else value)
        np.testing.assert_array_equal(found, mask)
    listed = json.loads((tmp_path / "out-meta.json").read_text())["segmentAttributes"]
    names = [segment["SegmentLabel"] for group in listed for segment in group]
    assert names == [segment.label for segment in CARD.segments]


def test_an_empty_label_map_is_read_as_such(data_dir, need_program, tmp_path):
    series = series_named("Study1", data_dir)
    nothing = series.image.with_array(np.zeros(series.image.shape, np.uint8))
    findings = measure(nothing, series=series, card=CARD)
    path = tmp_path / "empty.dcm"
    seg_write.encode_label_map(findings, run=RUN).save_as(path, enforce_file_format=True)
    program = need_program("segimage2itkimage")

    run(program, "--inputDICOM", path, "--outputDirectory", tmp_path, "--prefix", "out")

    pictures = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(p)) for p in tmp_path.glob("out-*.nrrd")]
    assert not any(picture.any() for picture in pictures)
    assert not hd.seg.segread(path).pixel_array.any()
    assert seg_read.decode(dcmread(path), stack=series.stack, card=CARD).masks == {}


@pytest.mark.parametrize("form", ["binary", "labelmap"])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_correction_made_with_dcmqi_is_read_exactly(case, form, compress, need_program, tmp_path):
    program = need_program("itkimage2segimage")
    (tmp_path / "images").mkdir()
    for number, ds in enumerate(case.series.sources):
        ds.save_as(tmp_path / "images" / f"{number}.dcm", enforce_file_format=True)
    SimpleITK.WriteImage(to_itk(case.labels.array, case.series.image), tmp_path / "labels.nrrd")
    (tmp_path / "meta.json").write_text(json.dumps(dcmqi_metadata()))
    run(
        program,
        "--inputImageList", tmp_path / "labels.nrrd", "--inputDICOMDirectory", tmp_path / "images",
        "--inputMetadata", tmp_path / "meta.json", "--outputDICOM", tmp_path / "theirs.dcm",
        "--skip", "1", "--segmentationType", form, "--compress", compress,
    )  # fmt: skip

    assert_exact(seg_read.decode(dcmread(tmp_path / "theirs.dcm"), stack=case.series.stack, card=CARD), case)


@pytest.mark.parametrize(
    ("form", "syntax"),
    [
        ("BINARY", ExplicitVRLittleEndian),
        ("LABELMAP", ExplicitVRLittleEndian),
        ("LABELMAP", RLELossless),
        ("FRACTIONAL", RLELossless),
    ],
)
def test_a_correction_made_with_highdicom_is_read_exactly(case, form, syntax, tmp_path):
    masks = np.stack(list(masks_of(case).values()), axis=-1)
    seg = hd.seg.Segmentation(
        source_images=[complete(ds) for ds in case.series.sources],
        pixel_array=masks.astype(np.uint8),
        segmentation_type=form,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                number,
                segment.label,
                codes.SCT.Organ,
                codes.SCT.Brain,
                hd.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
            for number, segment in enumerate(CARD.segments, 1)
        ],
        series_instance_uid=generate_uid(),
        series_number=5,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Other",
        manufacturer_model_name="Other",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=syntax,
    )
    seg.save_as(tmp_path / "theirs.dcm")

    assert_exact(seg_read.decode(dcmread(tmp_path / "theirs.dcm"), stack=case.series.stack, card=CARD), case)


def complete(source):
    """The source with what highdicom insists on; the series of the collection lack it."""
    for keyword in ("PatientBirthDate", "PatientSex"):
        if keyword not in source:
            setattr(source, keyword, "")
    if "SliceThickness" not in source:
        source.SliceThickness = 1
    return source


def dcmqi_metadata():
    tissue = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    return {
        "ContentCreatorName": "Slicer",
        "ContentLabel": "DCMQI",
        "SeriesDescription": "Segmentation",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "segmentAttributes": [
            [
                {
                    "labelID": segment.segment_number,
                    "SegmentLabel": segment.label,
                    "SegmentDescription": segment.label,
                    "SegmentAlgorithmType": "MANUAL",
                    "SegmentedPropertyCategoryCodeSequence": tissue,
                    "SegmentedPropertyTypeCodeSequence": tissue,
                    "recommendedDisplayRGBValue": list(segment.rgb),
                }
                for segment in CARD.segments
            ]
        ],
    }
