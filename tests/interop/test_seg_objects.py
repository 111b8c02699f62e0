"""Every segmentation in the folder of real data: exact, or refused with the reason.

Truth is an NRRD file or the packed bits of a golden file where there is one, else what an independent reader
makes of the object: highdicom, or dcmqi's `segimage2itkimage`.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.errors import InvalidDicomError

from dicomnode.domain import SegmentSopClasses
from dicomnode.errors import CorrectionError, GeometryError
from dicomnode.imaging.identity import BoolArray
from dicomnode.imaging.images.series import stack_volume
from dicomnode.imaging.images.stacks import Stack, read_stacks
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.reading.decoded import Decoded
from tests.conftest import DATA, NO_DATA
from tests.imaging_builders import make_card
from tests.interop.seg_cases import on_grid

if not DATA.is_dir():
    pytest.skip(f"{NO_DATA} in {DATA}; set DICOMNODE_DATA", allow_module_level=True)

LIVER = "seg_objects/dcmqi_ct_liver"
HIGHDICOM = "seg_objects/highdicom"
RUBY = "seg_objects/segruby"
PET = "studies/acrin_nsclc_petct"
DCMTK_ROOT = "1.2.276.0.7230010.3.1.4.0"
PYDICOM = "dicomdirtests/77654033"  # images that travel with pydicom, of which highdicom made its objects

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        f"{LIVER}/liver.dcm": f"{LIVER}/ct-3slice",
        f"{LIVER}/partial_overlaps.dcm": f"{LIVER}/ct-3slice",
        f"{LIVER}/24x38x3/seg/label.seg": f"{LIVER}/24x38x3/image",
        f"{LIVER}/sparse-labelmap-noppv.dcm": f"{LIVER}/24x38x3/image",
        f"{HIGHDICOM}/seg_image_ct_binary.dcm": f"{PYDICOM}/CT2",
        f"{HIGHDICOM}/seg_image_ct_binary_overlap.dcm": f"{PYDICOM}/CT2",
        f"{HIGHDICOM}/seg_image_ct_binary_fractional.dcm": f"{PYDICOM}/CT2",
        f"{HIGHDICOM}/seg_image_ct_true_fractional.dcm": f"{PYDICOM}/CT2",
        f"{HIGHDICOM}/seg_image_ct_binary_single_frame.dcm": f"{HIGHDICOM}/ct_image.dcm",
        f"{RUBY}/golden/multi_slice_bone.dcm": f"{RUBY}/fixtures/ct_small_series",
        f"{RUBY}/golden/single_slice_humerus.dcm": f"{HIGHDICOM}/ct_image.dcm",
        f"{PET}/orig_SEG_7.504365/{DCMTK_ROOT}.25814.1661528447.504366.dcm": f"{PET}/317561081015",
        f"{PET}/orig_SEG_9.162308/{DCMTK_ROOT}.32885.1661548339.162309.dcm": f"{PET}/317561081015",
    }
)
"""Object -> the images that it was made of."""
NRRD = {
    f"{LIVER}/liver.dcm": f"{LIVER}/liver_seg.nrrd",
    f"{LIVER}/24x38x3/seg/label.seg": f"{LIVER}/24x38x3/nrrd/label.nrrd",
}
WITHOUT_IMAGES = (
    "seg_objects/dcmjs_written_orphan/edited-seg_dcmjs.dcm",
    "seg_objects/ohif_dcmjs_orphan/ohif_export.dcm",
)
WITHOUT_GEOMETRY = (f"{HIGHDICOM}/seg_image_cr_binary.dcm",)
FLAGS = {
    f"{LIVER}/partial_overlaps.dcm": ("labels_overlap",),
    f"{HIGHDICOM}/seg_image_ct_binary_overlap.dcm": ("labels_overlap",),
    f"{HIGHDICOM}/seg_image_ct_binary_fractional.dcm": ("fractional",),
    f"{HIGHDICOM}/seg_image_ct_true_fractional.dcm": ("fractional", "fractional_thresholded"),
}
DCMQI = [name for name in SOURCES if name.startswith((LIVER, PET))]
OF_HIGHDICOM = [name for name in SOURCES if name.startswith(HIGHDICOM)]


def is_segmentation(path: Path) -> bool:
    try:
        return dcmread(path, stop_before_pixels=True).get("SOPClassUID") in SegmentSopClasses
    except InvalidDicomError:
        return False


def found_objects() -> list[str]:
    """All segmentations below the two folders, relative to that of the data."""
    files = [path for part in ("seg_objects", "studies") for path in sorted((DATA / part).rglob("*"))]
    return [str(path.relative_to(DATA)) for path in files if path.is_file() and is_segmentation(path)]


def stack_of(name: str) -> Stack:
    source = SOURCES[name]
    if source.startswith(PYDICOM):
        files = [Path(path) for path in get_testdata_files(f"{source}/*")]
    else:
        files = [DATA / source] if (DATA / source).is_file() else sorted((DATA / source).iterdir())
    (stack,) = read_stacks([dcmread(path) for path in files])
    return stack


def labels_of(name: str) -> list[str]:
    """Segment Labels by ascending number, without the background."""
    listed = dcmread(DATA / name, stop_before_pixels=True).SegmentSequence
    return [segment.SegmentLabel for segment in listed if segment.SegmentNumber > 0]


def decode(name: str, stack: Stack) -> Decoded:
    return seg_read.decode(dcmread(DATA / name), stack=stack, card=make_card(labels_of(name)))


def of_highdicom(name: str, stack: Stack) -> dict[str, BoolArray]:
    segmentation = hd.seg.segread(DATA / name)
    labels = labels_of(name)
    values = segmentation.get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in stack.frames],
        segment_numbers=list(range(1, len(labels) + 1)),
        assert_missing_frames_are_empty=True,
        rescale_fractional=False,
    )
    half = segmentation.get("MaximumFractionalValue", 1) / 2
    return {label: values[..., k] >= half for k, label in enumerate(labels)}


def of_dcmqi(name: str, stack: Stack, program: str, folder: Path) -> dict[str, BoolArray]:
    command = [program, "--inputDICOM", DATA / name, "--outputDirectory", folder, "--prefix", "out"]
    subprocess.run(command, check=True, capture_output=True)
    listed = json.loads((folder / "out-meta.json").read_text())["segmentAttributes"]
    pictures = [SimpleITK.ReadImage(folder / f"out-{number}.nrrd") for number in range(1, len(listed) + 1)]
    image = stack_volume(stack).image
    return {
        segment["SegmentLabel"]: on_grid(picture, image, segment["labelID"])
        for picture, segments in zip(pictures, listed, strict=True)
        for segment in segments
        if segment["labelID"]
    }


def assert_exact(decoded: Decoded, truth: Mapping[str, BoolArray]) -> None:
    assert any(mask.any() for mask in truth.values())
    for label, mask in truth.items():
        found = decoded.masks.get(label, np.zeros(decoded.shape, bool))
        np.testing.assert_array_equal(found, mask, err_msg=label)
    assert decoded.masks.keys() <= truth.keys()


@pytest.mark.parametrize("name", found_objects())
def test_every_object_of_the_folder_is_read_without_doubt_or_refused_by_name(name):
    if name in WITHOUT_GEOMETRY or name in WITHOUT_IMAGES:
        return  # see below
    decoded = decode(name, stack_of(name))

    assert list(decoded.masks) == labels_of(name)
    assert decoded.flags == FLAGS.get(name, ())
    assert decoded.doubts == ()
    expected = 0.8 if "fractional_thresholded" in decoded.flags else 1.0
    assert dict(decoded.confidence) == dict.fromkeys(labels_of(name), expected)


def test_no_object_of_the_tables_is_missing(data_dir):
    assert {*SOURCES, *WITHOUT_IMAGES, *WITHOUT_GEOMETRY} == set(found_objects())


@pytest.mark.parametrize("name", NRRD)
def test_an_object_is_its_true_volume(name, data_dir):
    stack = stack_of(name)

    decoded = decode(name, stack)

    truth = on_grid(SimpleITK.ReadImage(data_dir / NRRD[name]), stack_volume(stack).image)
    assert_exact(decoded, {labels_of(name)[0]: truth})


@pytest.mark.parametrize("name", ["multi_slice_bone", "single_slice_humerus"])
def test_an_object_is_its_golden_file(name, data_dir):
    path = f"{RUBY}/golden/{name}.dcm"
    stack = stack_of(path)

    decoded = decode(path, stack)

    stored = np.frombuffer((data_dir / RUBY / "golden" / f"{name}.pixel_data.bin").read_bytes(), np.uint8)
    frames = np.unpackbits(stored, bitorder="little").reshape(stack.shape).astype(bool)
    uids = [
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for groups in dcmread(data_dir / path).PerFrameFunctionalGroupsSequence
    ]
    order = [uids.index(frame.sop_instance_uid) for frame in stack.frames]
    assert_exact(decoded, {labels_of(path)[0]: frames[order]})


@pytest.mark.parametrize("name", OF_HIGHDICOM)
def test_an_object_is_what_highdicom_reads(name, data_dir):
    stack = stack_of(name)

    assert_exact(decode(name, stack), of_highdicom(name, stack))


@pytest.mark.parametrize("name", DCMQI)
def test_an_object_is_what_dcmqi_reads(name, data_dir, need_program, tmp_path):
    stack = stack_of(name)

    assert_exact(decode(name, stack), of_dcmqi(name, stack, need_program("segimage2itkimage"), tmp_path))


@pytest.mark.parametrize("name", WITHOUT_IMAGES)
def test_an_object_without_its_images_names_their_series_and_is_read_on_no_other(name, data_dir):
    ds = dcmread(data_dir / name)
    named = seg_read.referenced_series(ds)

    assert named
    assert seg_read.referenced_instances(ds)
    for other in sorted(set(SOURCES)):
        stack = stack_of(other)
        assert not seg_read.fits(ds, [stack])
        with pytest.raises(CorrectionError, match=f"was made on series {named}"):
            seg_read.decode(ds, stack=stack, card=make_card(labels_of(name)))


@pytest.mark.parametrize("name", WITHOUT_GEOMETRY)
def test_an_object_on_projection_radiographs_is_refused_for_its_images(name, data_dir):
    image = dcmread(get_testdata_file(f"{PYDICOM}/CR1/6154"))

    assert seg_read.referenced_series(dcmread(data_dir / name)) == image.SeriesInstanceUID
    with pytest.raises(GeometryError):
        read_stacks([image])


@pytest.mark.parametrize("name", SOURCES)
def test_without_references_an_object_is_known_to_fit_its_own_images(name, data_dir):
    ds = dcmread(data_dir / name)
    stack = stack_of(name)
    of_other_studies = [stack_of(other) for other in SOURCES if SOURCES[other] != SOURCES[name]]

    is_of_study = ds.StudyInstanceUID == stack.first.StudyInstanceUID
    assert seg_read.fits(ds, [stack]) is is_of_study
    assert not any(
        seg_read.fits(ds, [other])
        for other in of_other_studies
        if other.first.FrameOfReferenceUID != stack.first.FrameOfReferenceUID
    )
