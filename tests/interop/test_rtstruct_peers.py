"""Our RT Structure Sets as other programs read them: a validator, and plastimatch, which fills contours."""

import subprocess

import numpy as np
import pytest
import SimpleITK

from dicomnode.imaging.results import rtstruct_write
from dicomnode.imaging.results.findings import measure
from tests.contour_filling import labels_of
from tests.ct_builders import ct_series, nifti_volume
from tests.imaging_builders import make_card
from tests.interop.seg_cases import NAMES, blobs, blobs_in, on_grid, series_named, to_itk
from tests.interop.test_seg_validators import faults
from tests.seg_builders import RUN, found_in

CARD = make_card()
HOLES = 0.12  # part of the pixels of the first label that are taken out again


def found(name, data_dir):
    """Two blocks with single pixels beside them; the first is full of holes."""
    series = series_named(name, data_dir)
    labels = np.array(blobs(series.image).array)
    is_hole = np.random.default_rng(3).random(labels.shape) < HOLES
    is_hole[-1, 0, 0] = False
    labels[(labels == 1) & is_hole] = 0
    return measure(series.image.with_array(labels), series=series, card=CARD)


def filled_by_plastimatch(program, ds, image, folder):
    """Let plastimatch fill the contours on the grid of an image; a mask for each structure."""
    ds.save_as(folder / "rtstruct.dcm", enforce_file_format=True)
    SimpleITK.WriteImage(to_itk(np.zeros(image.shape, np.uint8), image), str(folder / "grid.nrrd"))
    subprocess.run(
        [
            *(program, "convert", "--input", "rtstruct.dcm", "--fixed", "grid.nrrd"),
            *("--interpolation", "nn", "--output-prefix", "filled", "--prefix-format", "nrrd"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=240,
    )
    pictures = {path.stem: SimpleITK.ReadImage(str(path)) for path in (folder / "filled").glob("*.nrrd")}
    return {label: on_grid(picture, image) for label, picture in pictures.items()}


@pytest.mark.parametrize("name", NAMES)
def test_dciodvfy_finds_no_error_in_our_structure_set(name, data_dir, need_program, tmp_path):
    program = need_program("dciodvfy")
    ds = rtstruct_write.encode(blobs_in(series_named(name, data_dir), CARD), run=RUN)
    ds.save_as(tmp_path / "rtstruct.dcm", enforce_file_format=True)

    assert faults(program, tmp_path / "rtstruct.dcm") == []


@pytest.mark.parametrize("name", [*(n for n in NAMES if not n.startswith("enhanced")), "enhanced axial"])
def test_plastimatch_fills_our_contours_to_the_labels(name, data_dir, need_program, tmp_path):
    program = need_program("plastimatch")
    series = series_named(name, data_dir)
    findings = found(name, data_dir)
    ds = rtstruct_write.encode(findings, run=RUN)

    filled = filled_by_plastimatch(program, ds, series.image, tmp_path)

    assert sorted(filled) == [segment.label for segment in CARD.segments]
    for segment in CARD.segments:
        assert np.array_equal(filled[segment.label], findings.labels == segment.segment_number)


def test_plastimatch_fills_a_hippocampus_of_a_few_voxels_exactly(data_dir, need_program, tmp_path):
    program = need_program("plastimatch")
    path = sorted((data_dir / "hippocampus" / "labels").glob("*.nii*"))[0]
    labels = nifti_volume(path, dtype=np.uint8)
    findings = found_in(ct_series(labels), np.asarray(labels.array), CARD)
    ds = rtstruct_write.encode(findings, run=RUN)

    filled = filled_by_plastimatch(program, ds, labels, tmp_path)

    for segment in CARD.segments:
        assert np.array_equal(filled[segment.label], findings.labels == segment.segment_number)


def test_plastimatch_fills_a_spleen_exactly(data_dir, need_program, tmp_path):
    program = need_program("plastimatch")
    folder = data_dir / "organs" / "spleen_msd"
    image = nifti_volume(next((folder / "sub-spleen2" / "ct").glob("*.nii*")))
    mask = nifti_volume(next((folder / "derivatives").rglob("*.nii*")), dtype=np.uint8)
    findings = found_in(ct_series(image), (mask.array > 0).astype(np.uint8), make_card(["Spleen"]))
    ds = rtstruct_write.encode(findings, run=RUN)

    filled = filled_by_plastimatch(program, ds, image, tmp_path)

    assert np.array_equal(filled["Spleen"], findings.labels == 1)


@pytest.mark.parametrize("name", ["Study1", "prostate sagittal", "enhanced of many types"])
def test_contours_on_real_planes_are_the_labels_again(name, data_dir):
    findings = found(name, data_dir)
    ds = rtstruct_write.encode(findings, run=RUN)

    keep = ds.ROIContourSequence[0].ContourSequence[:1]  # reading them all by hand takes too long
    reference = keep[0].ContourImageSequence[0]
    assert ("ReferencedFrameNumber" in reference) == name.startswith("enhanced")
    if findings.labels[0].size < 5000:
        assert np.array_equal(labels_of(ds, findings.stack), findings.labels)
