"""Other programs accept our measurement reports and read the same figures from them."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread

from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results import seg_write, sr_write
from dicomnode.imaging.results.findings import Findings, measure
from dicomnode.ml.model import package
from tests.ct_builders import ct_series, nifti_volume
from tests.interop.seg_cases import read_series
from tests.seg_builders import RUN

REPOSITORY = Path(__file__).resolve().parents[2]
CARD = package.read(REPOSITORY / "models" / "hippocampus").card
FORMS = ("binary", "label map", "images", "first only", "nothing")
SPLEEN = Path("organs/spleen_msd")
SERIES = {
    "hippocampus": Path("hippocampus_dicom/Study1"),
    "PET": Path("studies/acrin_nsclc_petct/317561081015"),
    "GE": Path("ge_mprage/GE_Pioneer_T1"),
}
UNITS = {"hippocampus": "1", "PET": "Bq/ml", "GE": "1", "enhanced": "1", "spleen": "[hnsf'U]"}
UNLIMITED_XPATH = " ".join(
    f"-Djdk.xml.{limit}=0" for limit in ("xpathTotalOpLimit", "xpathExprOpLimit", "xpathExprGrpLimit")
)
UNKNOWN_CLASS = (
    "Error - Shall not be present for Referenced SOP Class that is not segmentation"
    " - attribute <ReferencedSegmentNumber>"
)
"""What dciodvfy of 2022 says of a segment of a label map, whose class it does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A report on disk and what it says."""

    path: Path
    findings: Findings
    form: str
    unit: str


def images_named(name, data_dir):
    if name == "enhanced":
        return to_volume([dcmread(data_dir / "enhanced" / "nema" / "BRTUM001")])
    if name == "spleen":
        return to_volume(ct_series(nifti_volume(data_dir / SPLEEN / "sub-spleen2/ct/sub-spleen2_ct.nii.gz")))
    return read_series(data_dir / SERIES[name])


def labels_of(name, image, data_dir):
    """Two labels: the brightest voxels and the next, or the spleen as a physician drew it and bone."""
    if name == "spleen":
        drawn = nifti_volume(
            data_dir / SPLEEN / "derivatives/labels/sub-spleen2/ct/sub-spleen2_ct_seg-manual.nii.gz"
        )
        return np.where(drawn.array > 0, 1, np.where(image.array > 300, 2, 0)).astype(np.uint8)
    low, high = np.percentile(image.array, (90, 97))
    return np.where(image.array > high, 1, np.where(image.array > low, 2, 0)).astype(np.uint8)


@pytest.fixture(scope="module", params=sorted(UNITS))
def measured(request, data_dir):
    """Findings of each form, and the name of the series."""
    series = images_named(request.param, data_dir)
    labels = labels_of(request.param, series.image, data_dir)
    both, first, none = (
        measure(series.image.with_array(one), series=series, card=CARD)
        for one in (labels, np.where(labels == 1, labels, 0).astype(np.uint8), np.zeros_like(labels))
    )
    return request.param, {
        "binary": both, "label map": both, "images": both, "first only": first, "nothing": none
    }  # fmt: skip


@pytest.fixture(scope="module", params=FORMS)
def case(request, measured, tmp_path_factory):
    name, by_form = measured
    return write(name, request.param, by_form[request.param], tmp_path_factory.mktemp("sr"))


def write(name, form, findings, folder):
    segs = ()
    if form in ("binary", "first only"):
        segs = seg_write.encode_binary(findings, run=RUN)
    elif form == "label map":
        segs = (seg_write.encode_label_map(findings, run=RUN),)
    path = folder / "report.dcm"
    sr_write.encode(findings, run=RUN, segs=segs).save_as(path, enforce_file_format=True)
    return Case(path=path, findings=findings, form=form, unit=UNITS[name])


def run(*command, environment=None):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def expected_figures(case):
    """Volume, mean and SD of each found label, taken from the arrays and not from what was written."""
    figures = {}
    for one in case.findings.found:
        inside = case.findings.planes[case.findings.labels == one.segment.segment_number].astype(np.float64)
        voxel_ml = np.prod(case.findings.stack.grid.spacing_mm) / 1000
        figures[one.tracking_uid] = pytest.approx([inside.size * voxel_ml, inside.mean(), inside.std()])
    return figures


def test_dciodvfy_finds_no_error(case, need_program):
    said = run(need_program("dciodvfy"), case.path)

    errors = {line for line in said.splitlines() if line.startswith("Error")}
    assert "Comprehensive3DSR" in said
    assert errors - ({UNKNOWN_CLASS} if case.form == "label map" else set()) == set()


def test_dcmqi_reads_the_same_figures(case, need_program, tmp_path):
    program, out = need_program("tid1500reader"), tmp_path / "read.json"
    run(program, "--inputDICOM", case.path, "--outputMetadata", out)

    read = json.loads(out.read_text())
    figures = {
        group["TrackingUniqueIdentifier"]: [float(item["value"]) for item in group["measurementItems"]]
        for group in read["Measurements"]
    }
    units = [
        item["units"]["CodeValue"] for group in read["Measurements"] for item in group["measurementItems"]
    ]
    assert figures == expected_figures(case)
    assert units == len(figures) * ["cm3", case.unit, case.unit]
    if case.form not in ("images", "nothing"):
        assert [group["ReferencedSegment"] for group in read["Measurements"]] == [1, 2][: len(figures)]
    assert {ds.SOPInstanceUID for ds in case.findings.stack.datasets} <= set(read["imageLibrary"])


def test_highdicom_reads_the_same_figures(case):
    content = hd.sr.srread(case.path).content

    groups = content.get_volumetric_roi_measurement_groups() + content.get_image_measurement_groups()
    figures = {str(group.tracking_uid): [one.value for one in group.get_measurements()] for group in groups}
    derivations = [one.derivation.meaning for group in groups for one in group.get_measurements()[1:]]
    assert figures == expected_figures(case)
    assert derivations == len(groups) * ["Mean", "Standard Deviation"]


def test_dcmtk_prints_the_report(case, need_program):
    # DCMTK 3.6.7 does not know the class of a label map, nor that of an image of it in a report.
    lenient = ["--ignore-item-errors"] if case.form == "label map" else []
    said = run(need_program("dsrdump"), "--print-long-values", *lenient, case.path)

    assert 'CONTAINER:(,,"Imaging Measurement Report")' in said
    assert "AI result, not verified by a physician" in said
    assert said.count('NUM:(,,"Volume")') == len(case.findings.found)
    assert said.count('"Not detected"') == len(CARD.segments) - len(case.findings.found)
    assert ("Nothing was found." in said) is (case.form == "nothing")


@pytest.mark.parametrize("form", FORMS)
def test_pixelmed_finds_no_error(form, data_dir, need_program, tmp_path):
    program = need_program("DicomSRValidator")
    series = read_series(data_dir / SERIES["hippocampus"])
    labels = labels_of("hippocampus", series.image, data_dir)
    labels[labels > {"first only": 1, "nothing": 0}.get(form, 2)] = 0
    findings = measure(series.image.with_array(labels), series=series, card=CARD)
    written = write("hippocampus", form, findings, tmp_path)

    said = run(program, written.path, environment={"JAVA_TOOL_OPTIONS": UNLIMITED_XPATH})

    assert "Found Root Template TID_1500" in said
    assert "IOD validation complete" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []
