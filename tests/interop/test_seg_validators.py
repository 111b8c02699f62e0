"""Objects that we write satisfy an independent validator of the standard."""

import subprocess

import pytest

from dicomnode.imaging import seg_write
from tests.imaging_builders import NOW, make_card
from tests.interop.seg_cases import HIPPOCAMPUS_STUDIES, blobs, series_named


def faults(program, path):
    run = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("name", [*HIPPOCAMPUS_STUDIES, "made"])
@pytest.mark.parametrize("labels", [("Hippocampus anterior", "Hippocampus posterior"), ("A", "B", "C", "D")])
def test_dciodvfy_finds_no_error_in_our_segmentation(name, labels, data_dir, need_program, tmp_path):
    program = need_program("dciodvfy")
    series = series_named(name, data_dir)
    encoded = seg_write.encode(
        blobs(series.image), sources=series.sources, card=make_card(labels), created_at=NOW
    )
    encoded.ds.save_as(tmp_path / "seg.dcm", enforce_file_format=True)

    assert faults(program, tmp_path / "seg.dcm") == []


def test_dciodvfy_finds_no_error_in_our_images(data_dir, need_program, tmp_path):
    program = need_program("dciodvfy")
    for number, ds in enumerate(series_named("made", data_dir).sources):
        path = tmp_path / f"{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        assert faults(program, path) == []
