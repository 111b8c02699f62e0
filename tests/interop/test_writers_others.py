"""What dcmqi and highdicom make of a correction, and what we make of that: voxel by voxel."""

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from dicomnode.imaging.reading import seg_read
from tests.interop.other_writers import DCMQI_FORMS, HIGHDICOM_FORMS, can_hold, dcmqi, highdicom
from tests.interop.seg_cases import series_named
from tests.interop.written import CARD, CASES, EMPTIED, LABELS, ct_of_even_size, mr_of_odd_size, outcome

EXACT, LISTED, UNLISTED = "read exactly", "; listed as empty", "; not listed: unknown"


@pytest.fixture(params=["MR 11 x 9", "CT 16 x 12", "hippocampus"])
def series(request):
    match request.param:
        case "MR 11 x 9":
            return mr_of_odd_size()
        case "CT 16 x 12":
            return ct_of_even_size()
    return series_named("Study2", request.getfixturevalue("data_dir"))


@pytest.mark.parametrize(
    ("form", "case"), [(form, case) for form in DCMQI_FORMS for case in CASES if can_hold(form, case)]
)
def test_corrections_by_dcmqi_are_read_exactly(form, case, series, tmp_path):
    ds = dcmqi(series, case, form, tmp_path)

    assert outcome(ds, series, case) == EXACT + (UNLISTED if case == EMPTIED else "")


@pytest.mark.parametrize(
    ("form", "case"), [(form, case) for form in HIGHDICOM_FORMS for case in CASES if can_hold(form, case)]
)
def test_corrections_by_highdicom_are_read_exactly(form, case, series, tmp_path):
    ds = highdicom(series, case, form, tmp_path)

    assert outcome(ds, series, case) == EXACT + (LISTED if case == EMPTIED else "")


def test_a_probability_counts_from_one_half(tmp_path):
    series = mr_of_odd_size()
    values = np.zeros((7, 11, 9, 1), np.float32)
    values[2, 3, 1:6, 0] = (0.1, 0.4, 0.51, 0.9, 1.0)
    seg = hd.seg.Segmentation(
        source_images=list(series.sources),
        pixel_array=values,
        segmentation_type="FRACTIONAL",
        segment_descriptions=[
            hd.seg.SegmentDescription(
                1, LABELS[0], codes.SCT.Organ, codes.SCT.Brain, hd.seg.SegmentAlgorithmTypeValues.MANUAL
            )
        ],
        max_fractional_value=100,
        series_instance_uid=generate_uid(),
        series_number=5,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Other",
        manufacturer_model_name="Other",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(tmp_path / "theirs.dcm")

    decoded = seg_read.decode(dcmread(tmp_path / "theirs.dcm"), stack=series.stack, card=CARD)

    assert np.argwhere(decoded.masks[LABELS[0]]).tolist() == [[2, 3, 3], [2, 3, 4], [2, 3, 5]]
    assert "fractional" in decoded.flags
