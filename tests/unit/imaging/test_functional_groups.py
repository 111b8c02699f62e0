"""Functional groups that are encoded by hand say what pydicom reads, and pydicom writes them alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.imaging.images.frames import SourceFrame
from dicomnode.imaging.images.functional_groups import decimal_string, per_frame_groups
from tests.imaging_builders import item, part_10

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def planes_of(count, *, is_multi_frame):
    datasets = [
        item(SOPClassUID=ENHANCED_MR, SOPInstanceUID=f"1.2.3.{number}" + "0" * number)
        for number in range(1 if is_multi_frame else count)
    ]
    return [
        SourceFrame(
            ds=datasets[0 if is_multi_frame else index],
            frame_number=7 + index if is_multi_frame else 1,
            is_multi_frame=is_multi_frame,
            position_mm=np.array([-1 / 3, 1e-7, 2.5 * index]),
            row_cosines=np.array([1.0, 0, 0]),
            column_cosines=np.array([0, 1.0, 0]),
            pixel_spacing_mm=np.array([1.0, 1.0]),
            size=(4, 4),
        )
        for index in range(count)
    ]


def object_with(groups):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = ENHANCED_MR, "1.2.3"
    ds[groups.tag] = groups
    return ds


@pytest.mark.parametrize("is_multi_frame", [False, True])
@pytest.mark.parametrize("number", [None, 3])
def test_what_pydicom_reads_is_what_it_would_write(is_multi_frame, number, tmp_path):
    planes = planes_of(5, is_multi_frame=is_multi_frame)
    frames = [(number, 4), (number, 2), (number, 1)]
    ds = object_with(per_frame_groups(planes, frames))
    ds.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding="iso8859")
    as_encoded = part_10(ds)

    for rank, (group, (_, index)) in enumerate(
        zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True), start=1
    ):
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == planes[index].sop_instance_uid
        assert reference.get("ReferencedFrameNumber") == (7 + index if is_multi_frame else None)
        assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert group.DerivationImageSequence[0].DerivationCodeSequence[0].CodeValue == "113076"
        position = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, planes[index].position_mm, atol=1e-13)
        indices = np.atleast_1d(group.FrameContentSequence[0].DimensionIndexValues).tolist()
        assert indices == ([rank] if number is None else [number, rank])
    ds.set_original_encoding(is_implicit_vr=None, is_little_endian=None)  # so that every item is encoded anew
    assert part_10(ds) == as_encoded
    (tmp_path / "implicit.dcm").write_bytes(as_encoded)
    assert dcmread(tmp_path / "implicit.dcm") == ds


@given(st.floats(-1e15, 1e15, allow_nan=False))
def test_a_decimal_string_has_16_characters_and_is_the_number(value):
    text = decimal_string(value)

    assert len(text) <= 16
    assert float(text) == pytest.approx(value, rel=1e-9, abs=1e-12)
