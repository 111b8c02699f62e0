"""Our Secondary Captures as other programs read them: a validator and DCMTK's renderer."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from dicomnode.imaging.results import sc_write
from dicomnode.imaging.results.findings import measure
from tests.imaging_builders import make_card
from tests.interop.seg_cases import NAMES, blobs_in, series_named
from tests.interop.test_seg_validators import faults
from tests.peers import need_dcmtk
from tests.seg_builders import RUN


@pytest.mark.parametrize("name", NAMES)
def test_dciodvfy_finds_no_error_in_our_pictures(name, data_dir, need_program, tmp_path):
    program = need_program("dciodvfy")
    pictures = sc_write.encode(blobs_in(series_named(name, data_dir), make_card()), run=RUN)

    for ds in (*pictures[:2], pictures[-1]):
        ds.save_as(tmp_path / "sc.dcm", enforce_file_format=True)
        assert faults(program, tmp_path / "sc.dcm") == []


def test_dciodvfy_finds_no_error_in_the_picture_of_an_empty_result(data_dir, need_program, tmp_path):
    program = need_program("dciodvfy")
    series = series_named("Study1", data_dir)
    nothing = series.image.with_array(np.zeros(series.image.shape, np.uint8))
    (ds,) = sc_write.encode(measure(nothing, series=series, card=make_card()), run=RUN)
    ds.save_as(tmp_path / "sc.dcm", enforce_file_format=True)

    assert faults(program, tmp_path / "sc.dcm") == []


@pytest.mark.parametrize("name", ["Study1", "prostate sagittal", "made"])
def test_dcmtk_renders_the_pixels_that_we_drew(name, data_dir, tmp_path):
    program = need_dcmtk("dcm2pnm")
    pictures = sc_write.encode(blobs_in(series_named(name, data_dir), make_card()), run=RUN)

    for ds in pictures[:3]:
        ds.save_as(tmp_path / "sc.dcm", enforce_file_format=True)
        command = [program, "sc.dcm", "sc.ppm"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
        with Image.open(tmp_path / "sc.ppm") as rendered:
            assert np.array_equal(np.asarray(rendered.convert("RGB")), ds.pixel_array)
