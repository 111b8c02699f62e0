"""Which label maps belong together, whether they lie on one grid, and what is refused."""

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from dicomnode.errors import DicomNodeError, GeometryError, InputError, UnsupportedSeriesError
from dicomnode.ml.evaluation.label_maps import Pair, check_grid, find_pairs, read_labels, read_pair

AFFINE = np.array([[-0.8, 0, 0, 90], [0, -0.8, 0, 60], [0, 0, 3, -500], [0, 0, 0, 1.0]])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    found = tmp_path / "predictions", tmp_path / "truth"
    for folder in found:
        folder.mkdir()
    return found


def labels() -> np.ndarray:
    array = np.zeros((4, 5, 6), np.uint8)
    array[1:3, 1:4, 2:5], array[3, 4, 5] = 1, 2
    return array


def save(path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(labels() if array is None else array, affine), path)
    return path


def pair_of(tmp_path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Pair:
    prediction, truth = save(tmp_path / "p.nii", array, affine), save(tmp_path / "t.nii")
    return Pair(case_id="c", prediction=prediction, truth=truth)


def test_files_of_the_same_name_belong_together_and_the_rest_is_listed(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    for name in ("b.nii.gz", "a.nii", "only.nii.gz", "._b.nii.gz"):
        save(predictions / name)
    for name in ("a.nii.gz", "b.nii.gz", "lost_0007.nii.gz"):
        save(truth / name)
    (predictions / "dataset.json").write_text("{}", encoding="utf-8")

    found = find_pairs(predictions, truth)

    assert [(p.case_id, p.prediction.name, p.truth.name) for p in found.pairs] == [
        ("a", "a.nii", "a.nii.gz"),
        ("b", "b.nii.gz", "b.nii.gz"),
    ]
    assert (found.without_prediction, found.without_truth) == (("lost_0007.nii.gz",), ("only.nii.gz",))


def test_endings_that_say_what_a_file_is_do_not_keep_files_apart(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    for name in ("one_pred.nii.gz", "two.nii.gz"):
        save(predictions / name)
    for name in ("one_label.nii.gz", "one_0000.nii.gz", "two.nii.gz", "two_0000.nii.gz", "three-seg.nii.gz"):
        save(truth / name)

    found = find_pairs(predictions, truth)

    assert [(p.case_id, p.truth.name) for p in found.pairs] == [
        ("one", "one_label.nii.gz"),
        ("two", "two.nii.gz"),
    ]
    assert (found.without_prediction, found.without_truth) == (("three-seg.nii.gz",), ())


def test_cases_that_are_numbered_like_channels_are_cases(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        for name in ("amos_0001.nii.gz", "amos_0002.nii.gz"):
            save(folder / name)

    assert [pair.case_id for pair in find_pairs(*folders).pairs] == ["amos_0001", "amos_0002"]


def test_two_files_belong_together_whatever_their_names(tmp_path: Path) -> None:
    found = find_pairs(save(tmp_path / "x.nii"), save(tmp_path / "y.nii"))

    assert [pair.case_id for pair in found.pairs] == ["y"]


def test_what_cannot_be_paired_is_said(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    save(predictions / "a.nii")
    save(truth / "b.nii")
    with pytest.raises(InputError, match="has the name of one in"):
        find_pairs(predictions, truth)
    with pytest.raises(InputError, match="both be folders, or both be files"):
        find_pairs(predictions, truth / "b.nii")
    save(predictions / "a.nii.gz")
    with pytest.raises(InputError, match=r"a.nii and .*a.nii.gz would both be"):
        find_pairs(predictions, truth)


def test_voxels_come_slices_first_with_their_spacing(tmp_path: Path) -> None:
    prediction, truth, spacing = read_pair(pair_of(tmp_path, labels() * 2))

    assert np.array_equal(truth, labels().T)
    assert np.array_equal(prediction, labels().T * 2)
    assert spacing == pytest.approx((3, 0.8, 0.8))


def test_a_prediction_with_turned_axes_is_turned_back(tmp_path: Path) -> None:
    turn = np.array([[2, 1], [0, -1], [1, -1]])  # the file's axes become the third, the first and the second
    turned = apply_orientation(labels(), turn)
    pair = pair_of(tmp_path, turned, AFFINE @ inv_ornt_aff(turn, labels().shape))
    assert turned.shape != labels().shape

    check_grid(pair)
    prediction, truth, _ = read_pair(pair)

    assert np.array_equal(prediction, truth)


def test_grids_may_differ_by_a_tenth_of_a_voxel(tmp_path: Path) -> None:
    near, far = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 0.05
    far[0, 3] += 0.2
    check_grid(pair_of(tmp_path, labels(), near))
    words = re.escape("p.nii lies on another grid (4 x 5 x 6 voxels of 0.8 x 0.8 x 3 mm, the first at 90.20")
    with pytest.raises(GeometryError, match=words):
        check_grid(pair_of(tmp_path, labels(), far))


def test_a_small_turn_that_moves_the_far_corner_is_another_grid(tmp_path: Path) -> None:
    large = np.zeros((200, 200, 2), np.uint8)
    angle = 0.003
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pair = Pair(
        case_id="c",
        prediction=save(tmp_path / "p.nii", large, turn @ AFFINE),
        truth=save(tmp_path / "t.nii", large),
    )

    with pytest.raises(GeometryError, match="another grid"):
        check_grid(pair)


def test_other_shapes_and_sheared_grids_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"p\.nii lies on another grid \(4 x 5 x 5 voxels"):
        check_grid(pair_of(tmp_path, labels()[:, :, 1:]))
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.5
    with pytest.raises(GeometryError, match=r"axes of .*p\.nii are not at right angles"):
        check_grid(pair_of(tmp_path, labels(), sheared))


def test_plane_images_and_trailing_axes_have_three_axes(tmp_path: Path) -> None:
    assert read_labels(save(tmp_path / "plane.nii", labels()[:, :, 3])).array.shape == (4, 5, 1)
    assert read_labels(save(tmp_path / "four.nii", labels()[..., None])).array.shape == (4, 5, 6)


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.uint16])
def test_whole_numbers_of_any_type_are_labels(tmp_path: Path, dtype: type[np.generic]) -> None:
    found = read_labels(save(tmp_path / "x.nii.gz", labels().astype(dtype)))

    assert found.array.dtype == np.uint8
    assert np.array_equal(found.array, labels())
    many = (labels().astype(np.float32) * 300).astype(np.uint16)
    assert read_labels(save(tmp_path / "y.nii", many)).array.max() == 600


@pytest.mark.parametrize(
    ("value", "words"), [(0.5, "broken numbers"), (-1, "values from -1"), (7e4, "to 70000"), (np.nan, "nan")]
)
def test_what_is_no_label_is_refused_by_name(tmp_path: Path, value: float, words: str) -> None:
    array = labels().astype(np.float32)
    array[0, 0, 0] = value

    with pytest.raises(UnsupportedSeriesError, match=f"x.nii holds .*{words}"):
        read_labels(save(tmp_path / "x.nii", array))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "x.nii.gz").read_bytes()
    generator = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(whole[: int(generator.integers(20, len(whole)))])
        damaged[int(generator.integers(len(damaged)))] ^= 255
        (tmp_path / "x.nii.gz").write_bytes(damaged)
        with pytest.raises(DicomNodeError, match=r"x\.nii\.gz"):
            read_labels(tmp_path / "x.nii.gz")


def test_colours_are_no_labels(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))

    with pytest.raises(UnsupportedSeriesError, match="whole numbers"):
        read_labels(save(tmp_path / "x.nii", colours))
