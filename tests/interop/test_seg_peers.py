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

from dicomnode.imaging import seg_read, seg_write
from dicomnode.imaging.identity import voxels_sha256
from tests.imaging_builders import NOW, make_card
from tests.interop.seg_cases import HIPPOCAMPUS_STUDIES, blobs, on_grid, series_named, to_itk

CARD = make_card()
NAMES = [*HIPPOCAMPUS_STUDIES, "made"]


@pytest.fixture(params=NAMES)
def case(request, data_dir, tmp_path):
    series = series_named(request.param, data_dir)
    labels = blobs(series.image)
    encoded = seg_write.encode(labels, sources=series.sources, card=CARD, created_at=NOW)
    path = tmp_path / "ours.dcm"
    encoded.ds.save_as(path, enforce_file_format=True)
    return SimpleNamespace(series=series, labels=labels, encoded=encoded, path=path)


def masks_of(case):
    return {s.label: np.asarray(case.labels.array == s.segment_number) for s in CARD.segments}


def assert_exact(decoded, case):
    for label, mask in masks_of(case).items():
        np.testing.assert_array_equal(decoded.masks[label], mask)
    assert voxels_sha256(decoded.masks) == case.encoded.voxels_sha256


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_highdicom_reads_our_labels_on_the_image_grid(case):
    volume = hd.seg.segread(case.path).get_volume(combine_segments=True).match_geometry(case.series.image)

    np.testing.assert_array_equal(volume.array, case.labels.array)


def test_dcmqi_reads_our_labels_at_their_place(case, need_program, tmp_path):
    run(
        need_program("segimage2itkimage"),
        "--inputDICOM", case.path, "--outputDirectory", tmp_path, "--prefix", "out",
    )  # fmt: skip

    for number, mask in enumerate(masks_of(case).values(), 1):
        picture = SimpleITK.ReadImage(tmp_path / f"out-{number}.nrrd")
        np.testing.assert_array_equal(on_grid(picture, case.series.image), mask)


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

    assert_exact(
        seg_read.decode(dcmread(tmp_path / "theirs.dcm"), sources=case.series.sources, card=CARD), case
    )


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

    assert_exact(
        seg_read.decode(dcmread(tmp_path / "theirs.dcm"), sources=case.series.sources, card=CARD), case
    )


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
