"""RT Structure Sets by our own writer, by rt-utils and by plastimatch, read back voxel by voxel.

DICOMNODE_RT_UTILS names a folder with rt-utils and OpenCV (`pip install --target FOLDER --no-deps rt-utils
opencv-python-headless`). It must not be in the virtual environment: its package `tests` would hide ours.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from dicomnode.errors import CorrectionError
from dicomnode.imaging.corrections.comparison import dice
from dicomnode.imaging.identity import voxels_sha256
from dicomnode.imaging.reading import rtstruct_read
from dicomnode.imaging.reading.contour_masks import EDGE_TOLERANCE
from dicomnode.imaging.reading.contour_planes import ContourPlanes
from dicomnode.imaging.results import rtstruct_write
from tests.ct_builders import ct_series, nifti_volume
from tests.imaging_builders import make_card, part_10, reread
from tests.interop.seg_cases import NAMES, blobs, blobs_in, series_named, to_itk
from tests.interop.test_rtstruct_peers import filled_by_plastimatch, found
from tests.rtstruct_builders import contour, distance, on_frame, square, structure_set
from tests.seg_builders import RUN, found_in

CARD = make_card()
FIRST, SECOND = (segment.label for segment in CARD.segments)

RT_UTILS = """
import sys
import numpy as np
from rt_utils import RTStructBuilder

folder, masks, output, pin_hole = sys.argv[1:]
structures = RTStructBuilder.create_new(dicom_series_path=folder)
for name, mask in np.load(masks).items():
    structures.add_roi(mask=mask.transpose(1, 2, 0), name=name, use_pin_hole=pin_hole == "1")
structures.save(output)
read = {name: structures.get_roi_mask_by_name(name).transpose(2, 0, 1) for name in np.load(masks)}
np.savez(masks, **read)
"""


@pytest.fixture(scope="session")
def rt_utils():
    folder = os.environ.get("DICOMNODE_RT_UTILS", "")
    if not (Path(folder) / "rt_utils").is_dir():
        pytest.skip("rt-utils is not installed; set DICOMNODE_RT_UTILS to its folder")
    return folder


def decode(ds, stack, card=CARD):
    return rtstruct_read.decode(ds, stack=stack, card=card)


def masks_of(findings, card=CARD):
    return {segment.label: findings.labels == segment.segment_number for segment in card.segments}


def blocks_with_holes(series):
    """Two blocks with holes, islands in holes, rings of one voxel and single voxels; the border is free."""
    labels = np.array(blobs(series.image).array)
    rows, columns = labels.shape[1:]
    for row, column in ((rows // 4, columns // 4), (3 * rows // 4, columns // 2)):
        labels[:, row - 3 : row + 4, column - 3 : column + 4] = 0
        labels[:, row - 2 : row + 3, column - 2 : column + 3] = labels[:, row + 4, column + 4][:, None, None]
        labels[:, row - 1 : row + 2, column - 1 : column + 2] = 0
    labels[1, rows // 4, columns // 4] = 1
    labels[:, [0, -1]] = 0
    labels[:, :, [0, -1]] = 0
    return {segment.label: labels == segment.segment_number for segment in CARD.segments}


def saved_series(series, folder):
    folder.mkdir()
    for number, ds in enumerate(series.stack.datasets):
        (folder / f"{number:04}.dcm").write_bytes(part_10(ds))
    return folder


def by_rt_utils(rt_utils, series, masks, folder, *, pin_hole=False):
    """Let rt-utils write masks, and read them again itself."""
    np.savez(folder / "masks.npz", **masks)
    images = saved_series(series, folder / "images")
    paths = [str(images), str(folder / "masks.npz"), str(folder / "rtstruct.dcm")]
    subprocess.run(
        [sys.executable, "-c", RT_UTILS, *paths, str(int(pin_hole))],
        env={**os.environ, "PYTHONPATH": rt_utils},
        check=True,
        capture_output=True,
        timeout=240,
    )
    return dcmread(folder / "rtstruct.dcm"), dict(np.load(folder / "masks.npz"))


def by_plastimatch(program, series, masks, folder):
    (folder / "masks").mkdir()
    for label, mask in masks.items():
        SimpleITK.WriteImage(to_itk(mask, series.image), str(folder / "masks" / f"{label}.nrrd"))
    saved_series(series, folder / "images")
    subprocess.run(
        [
            *(program, "convert", "--input-prefix", "masks"),
            *("--referenced-ct", "images", "--output-dicom", "made"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=240,
    )
    made = [dcmread(path) for path in (folder / "made").glob("*.dcm")]
    (ds,) = [ds for ds in made if ds.Modality == "RTSTRUCT"]
    return ds


def assert_same(decoded, masks):
    for label, mask in masks.items():
        np.testing.assert_array_equal(decoded.masks[label], mask)


# our own writer


@pytest.mark.parametrize("name", NAMES)
def test_what_we_wrote_comes_back_voxel_by_voxel_and_sure(name, data_dir):
    findings = found(name, data_dir)

    decoded = decode(reread(rtstruct_write.encode(findings, run=RUN)), findings.stack)

    assert_same(decoded, masks_of(findings))
    assert voxels_sha256(decoded.masks) == voxels_sha256(masks_of(findings))
    assert decoded.flags == decoded.doubts == ()
    assert set(decoded.confidence.values()) == {1.0}


def test_a_hippocampus_and_a_spleen_of_experts_come_back(data_dir):
    hippocampus = nifti_volume(next((data_dir / "hippocampus" / "labels").glob("*.nii*")), dtype=np.uint8)
    folder = data_dir / "organs" / "spleen_msd"
    spleen = nifti_volume(next((folder / "derivatives").rglob("*.nii*")), dtype=np.uint8)
    spleen = spleen.with_array((spleen.array > 0).astype(np.uint8))
    for labels, card in ((hippocampus, CARD), (spleen, make_card(["Spleen"]))):
        findings = found_in(ct_series(labels), np.asarray(labels.array), card)

        decoded = decode(reread(rtstruct_write.encode(findings, run=RUN)), findings.stack, card)

        assert_same(decoded, masks_of(findings, card))
        assert decoded.doubts == ()


# rt-utils: contours through the centres of the border voxels, holes as contours of their own


@pytest.mark.parametrize("name", ["ge", "pet", "prostate axial", "prostate sagittal", "prostate coronal"])
def test_rt_utils_is_read_voxel_by_voxel(name, rt_utils, data_dir, tmp_path):
    series = series_named(name, data_dir)
    masks = blocks_with_holes(series)

    ds, _ = by_rt_utils(rt_utils, series, masks, tmp_path)

    decoded = decode(ds, series.stack)
    assert_same(decoded, masks)
    assert decoded.flags == ("contours_degenerate",)  # single voxels are contours of one point
    assert decoded.doubts == ()
    assert rtstruct_read.referenced_series(ds) == series.stack.series_instance_uid


def test_rt_utils_with_pin_holes_loses_voxels_and_is_read_as_it_reads_itself(rt_utils, data_dir, tmp_path):
    series = series_named("ge", data_dir)
    masks = blocks_with_holes(series)

    ds, itself = by_rt_utils(rt_utils, series, masks, tmp_path, pin_hole=True)

    decoded = decode(ds, series.stack)
    assert_same(decoded, itself)
    assert dice(decoded.masks[FIRST], masks[FIRST]) == pytest.approx(0.9942, abs=1e-4)


def test_rt_utils_on_unequal_spacing_is_misplaced_and_doubted(rt_utils, data_dir, tmp_path):
    series = series_named("made", data_dir)  # pixels of 0.9 x 0.7 mm
    mask = np.zeros(series.image.shape, bool)
    mask[2:5, 4:7, 3:6] = True

    ds, _ = by_rt_utils(rt_utils, series, {FIRST: mask}, tmp_path)

    decoded = decode(ds, series.stack)
    assert dice(decoded.masks[FIRST], mask) < 0.7
    assert decoded.flags == ("spacing_exchanged",)
    assert decoded.doubts


# plastimatch: contours half-way between voxels as ours; nothing outside the image, holes as other contours


@pytest.mark.parametrize("name", ["Study1", "Study2", "Study3"])
def test_plastimatch_is_read_voxel_by_voxel(name, need_program, data_dir, tmp_path):
    series = series_named(name, data_dir)
    masks = blocks_with_holes(series)

    decoded = decode(by_plastimatch(need_program("plastimatch"), series, masks, tmp_path), series.stack)

    assert_same(decoded, masks)
    assert decoded.doubts == ()


def test_plastimatch_cuts_the_corners_of_the_image(need_program, data_dir, tmp_path):
    series = series_named("Study1", data_dir)
    masks = masks_of(blobs_in(series, CARD))

    decoded = decode(by_plastimatch(need_program("plastimatch"), series, masks, tmp_path), series.stack)

    lost = [np.argwhere(decoded.masks[label] != mask).tolist() for label, mask in masks.items()]
    assert lost == [[[31, 0, 0]], [[0, 50, 34]]]


def test_plastimatch_names_wrong_slices_of_an_oblique_series_and_is_doubted(need_program, data_dir, tmp_path):
    series = series_named("ge", data_dir)
    masks = blocks_with_holes(series)

    decoded = decode(by_plastimatch(need_program("plastimatch"), series, masks, tmp_path), series.stack)

    assert_same(decoded, masks)
    assert "position_conflict" in decoded.flags
    assert decoded.doubts


def test_plastimatch_without_the_source_series_is_refused(need_program, data_dir, tmp_path):
    series = series_named("prostate sagittal", data_dir)
    masks = masks_of(blobs_in(series, CARD))

    ds = by_plastimatch(need_program("plastimatch"), series, masks, tmp_path)

    with pytest.raises(CorrectionError, match="was made on series"):
        decode(ds, series.stack)


# agreement with plastimatch on contours of any shape


def drawn_freely(stack, seed):
    """Wavy contours with a hole, on most slices, at no particular places."""
    random = np.random.default_rng(seed)
    rows, columns = stack.shape[1:]
    centre = np.array([rows, columns]) / 2 + random.uniform(-2, 2, 2)
    turns = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    contours = []
    for frame in stack.frames[1:-1]:
        wave = 1 + 0.3 * np.sin(random.integers(2, 6) * turns + random.uniform(0, 6))
        shape = np.stack([rows * np.sin(turns), columns * np.cos(turns)], axis=1) * wave[:, None] / 4
        contours += [contour(on_frame(frame, centre + shape), names=frame)]
    return contours


@pytest.mark.parametrize("name", ["Study1", "ge", "prostate axial", "made"])
def test_plastimatch_fills_free_contours_as_we_do(name, need_program, data_dir, tmp_path):
    series = series_named(name, data_dir)
    ds = structure_set(series.stack, {FIRST: drawn_freely(series.stack, 4)})
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.5", "1.2.3.6"

    filled = filled_by_plastimatch(need_program("plastimatch"), ds, series.image, tmp_path)

    ours = decode(ds, series.stack).masks[FIRST]
    assert dice(ours, filled[FIRST]) > 0.9999
    for index, row, column in np.argwhere(ours != filled[FIRST]).tolist():  # only centres on a contour
        data = ds.ROIContourSequence[0].ContourSequence[index - 1].ContourData
        ring = ContourPlanes(series.stack).ring(np.array(data, float).reshape(-1, 3), index)
        assert distance(ring, np.array([row, column])) <= 2 * EDGE_TOLERANCE


def test_plastimatch_joins_holes_that_are_contours_of_their_own(need_program, data_dir, tmp_path):
    series = series_named("Study1", data_dir)
    frame = series.stack.frames[3]
    both = [contour(on_frame(frame, square(*ends)), names=frame) for ends in ((4.5, 14.5), (7.5, 10.5))]
    ds = structure_set(series.stack, {FIRST: both})
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.5", "1.2.3.6"

    filled = filled_by_plastimatch(need_program("plastimatch"), ds, series.image, tmp_path)

    assert decode(ds, series.stack).masks[FIRST].sum() == 100 - 9
    assert filled[FIRST].sum() == 100
