"""A volume becomes a series of MR images and comes back the same."""

import numpy as np
import pytest

from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results.mr_write import encode_series
from tests.imaging_builders import NOW, make_series, make_volume, reread


def test_whole_numbers_come_back_exactly():
    values = np.random.default_rng(1).integers(0, 32767, (3, 4, 5)).astype(np.uint16)

    image = to_volume(make_series(make_volume(values))).image

    np.testing.assert_array_equal(image.array, values)


def test_fractions_are_scaled_onto_twelve_bits():
    values = np.linspace(-1.0, 2.5, 60).reshape(3, 4, 5)

    image = to_volume(make_series(make_volume(values))).image

    assert (image.array.min(), image.array.max()) == (0, 4095)
    np.testing.assert_allclose(image.array / 4095 * 3.5 - 1.0, values, atol=3.5 / 4095)


def test_a_constant_volume_is_no_division_by_zero():
    assert to_volume(make_series(make_volume(np.full((2, 3, 3), -4.5)))).image.array.max() == 0


def test_names_beyond_ascii_are_written_in_unicode():
    (first, *_) = encode_series(
        make_volume(np.zeros((2, 3, 3), np.uint16)),
        patient_id="P",
        patient_name="Möller^Ä",
        study_description="",
        series_description="",
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.4",
        series_number=1,
        created_at=NOW,
        frame_of_reference_uid="1.2.5",
    )

    assert str(reread(first).PatientName) == "Möller^Ä"
    assert first.FrameOfReferenceUID == "1.2.5"


def test_slices_are_numbered_along_the_slice_axis_and_differ_in_uid():
    datasets = make_series(make_volume(np.zeros((3, 3, 3), np.uint16)))

    assert [ds.InstanceNumber for ds in datasets] == [1, 2, 3]
    assert len({ds.SOPInstanceUID for ds in datasets}) == 3
    assert datasets[2].ImagePositionPatient == pytest.approx([-10, 20, 34])
