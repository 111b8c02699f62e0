"""Objects that we write satisfy an independent validator of the standard."""

import subprocess

import pytest

from dicomnode.imaging.results import seg_write
from tests.imaging_builders import make_card
from tests.interop.seg_cases import HIPPOCAMPUS_STUDIES, NAMES, blobs_in, series_named
from tests.seg_builders import RUN

UNKNOWN = ("Information Object Not found", "SegmentNumber not monotonically increasing")
"""What the validator of 2022 says of a label map (2024): it knows neither the class nor its numbers."""


def faults(program, path):
    run = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("name", NAMES)
def test_dciodvfy_finds_no_error_in_our_segmentation(name, data_dir, need_program, tmp_path):
    program = need_program("dciodvfy")
    findings = blobs_in(series_named(name, data_dir), make_card())
    (ds,) = seg_write.encode_binary(findings, run=RUN)
    ds.save_as(tmp_path / "seg.dcm", enforce_file_format=True)

    assert faults(program, tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("name", [*HIPPOCAMPUS_STUDIES, "enhanced axial", "made"])
def test_dciodvfy_has_nothing_against_our_label_map_but_that_it_does_not_know_the_class(
    name, data_dir, need_program, tmp_path
):
    program = need_program("dciodvfy")
    findings = blobs_in(series_named(name, data_dir), make_card())
    seg_write.encode_label_map(findings, run=RUN).save_as(tmp_path / "map.dcm", enforce_file_format=True)

    found = faults(program, tmp_path / "map.dcm")

    assert [line for line in found if not any(known in line for known in UNKNOWN)] == []


def test_dciodvfy_finds_no_error_in_our_images(data_dir, need_program, tmp_path):
    program = need_program("dciodvfy")
    for number, ds in enumerate(series_named("made", data_dir).sources):
        path = tmp_path / f"{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        assert faults(program, path) == []
