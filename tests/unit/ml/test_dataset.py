"""NIfTI folders are read into patient coordinates, one case at a time, checked and split."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dicomnode.errors import GeometryError, InputError, UnsupportedSeriesError
from dicomnode.ml.training import dataset
from dicomnode.ml.training.dataset import IGNORED
from dicomnode.ml.training.splits import CaseSplit, SplitCase, split_cases

RAS = np.diag([1.0, 2.0, 3.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = RAS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def add(
    folder: Path, name: str, *, layout: tuple[str, str] = ("images", "labels"), scale: float = 1.0
) -> None:
    generator = np.random.default_rng(len(name))
    save(folder / layout[0] / f"{name}.nii.gz", (scale * generator.random((8, 9, 10))).astype(np.float32))
    labels = np.zeros((8, 9, 10), np.float32)
    labels[2:4, 2:4, 2:4] = 1
    save(folder / layout[1] / f"{name.removesuffix('_0000')}.nii.gz", labels)


def test_a_voxel_keeps_its_place_in_the_patient_between_nifti_and_volume(tmp_path: Path) -> None:
    affine = np.array([[0, -2.0, 0, 11], [0, 0, 3.0, -7], [1.5, 0, 0, 5], [0, 0, 0, 1]])
    array = np.zeros((4, 5, 6), np.float32)
    array[1, 2, 3] = 1
    save(tmp_path / "x.nii.gz", array, affine)

    volume = dataset.read_image(tmp_path / "x.nii.gz")

    x, y, z = (affine @ [1, 2, 3, 1])[:3]  # right, anterior, superior
    found = np.argwhere(volume.array == 1)
    np.testing.assert_allclose(volume.map_indices_to_reference(found), [[-x, -y, z]], atol=1e-6)


def test_the_scaling_of_the_file_is_applied(tmp_path: Path) -> None:
    nifti = nibabel.Nifti1Image(np.full((2, 2, 2), 3, np.int16), RAS)
    nifti.header.set_slope_inter(2, 1)
    nibabel.save(nifti, tmp_path / "x.nii")

    stored = np.asarray(nibabel.load(tmp_path / "x.nii").dataobj)

    np.testing.assert_array_equal(dataset.read_image(tmp_path / "x.nii").array, stored)


@pytest.mark.parametrize("layout", [("images", "labels"), ("imagesTr", "labelsTr")])
def test_both_layouts_are_read_and_images_without_labels_left_out(
    tmp_path: Path, layout: tuple[str, str]
) -> None:
    add(tmp_path, "b_0000", layout=layout)
    add(tmp_path, "a", layout=layout)
    save(tmp_path / layout[0] / "lonely.nii.gz", np.zeros((4, 4, 4), np.float32))
    (tmp_path / layout[0] / "._a.nii.gz").write_bytes(b"a resource fork")

    cases = dataset.open_folder(tmp_path, classes=2).cases

    assert [case.name for case in cases] == ["a", "b"]
    first = cases[0].read()
    assert first.labels.dtype == np.uint8
    assert int(first.labels.sum()) == 8


def test_folders_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither"):
        dataset.open_folder(tmp_path, classes=2)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(InputError, match="has a label map of the same name"):
        dataset.open_folder(tmp_path, classes=2)


def test_faulty_cases_are_refused_by_name(tmp_path: Path) -> None:
    add(tmp_path, "case7")
    labels = tmp_path / "labels" / "case7.nii.gz"
    (case,) = dataset.open_folder(tmp_path, classes=2).cases

    save(labels, np.full((8, 9, 10), 2, np.uint8))
    with pytest.raises(UnsupportedSeriesError, match=r"case7 holds .*expected are 0 to 1"):
        case.read()
    save(labels, np.full((8, 9, 10), 0.5, np.float32))
    with pytest.raises(UnsupportedSeriesError, match="case7"):
        case.read()
    save(labels, np.zeros((8, 9, 9), np.uint8))
    with pytest.raises(GeometryError, match="case7 have different voxel grids"):
        case.read()
    save(labels, np.zeros((8, 9, 10), np.uint8), np.diag([1, 2, 3.5, 1]))
    with pytest.raises(GeometryError, match="case7 have different voxel grids"):
        case.read()
    labels.write_bytes(b"not a NIfTI file")
    with pytest.raises(UnsupportedSeriesError, match="case7"):
        case.read()


def test_a_case_that_was_written_anew_has_another_version(tmp_path: Path) -> None:
    add(tmp_path, "a")
    (before,) = dataset.open_folder(tmp_path, classes=2).cases
    add(tmp_path, "a", scale=2)
    (after,) = dataset.open_folder(tmp_path, classes=2).cases

    assert before.version != after.version


def write_raw(folder: Path, **entries: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, **entries}))


def test_a_raw_folder_says_what_its_labels_are(tmp_path: Path) -> None:
    add(tmp_path, "a_0000", layout=("imagesTr", "labelsTr"))
    save(tmp_path / "labelsTr" / "a.nii.gz", (np.arange(720).reshape(8, 9, 10) % 3).astype(np.uint8))
    write_raw(tmp_path, labels={"background": 0, "liver": 1, "ignore": 2}, file_ending=".nii.gz")

    folder = dataset.open_folder(tmp_path, classes=2)

    assert folder.raw is not None
    assert (folder.raw.names, folder.raw.modality, folder.raw.regions) == (((1, "liver"),), "CT", ())
    labels = folder.cases[0].read().labels
    assert np.bincount(labels.ravel())[[0, 1, IGNORED]].tolist() == [240, 240, 240]


def test_the_decathlon_names_values_the_other_way_round(tmp_path: Path) -> None:
    add(tmp_path, "a", layout=("imagesTr", "labelsTr"))
    write_raw(tmp_path, labels={"0": "background", "1": "spleen"}, modality={"0": "MRI"}, channel_names={})

    folder = dataset.open_folder(tmp_path, classes=2)

    assert folder.raw is not None
    assert (folder.raw.names, folder.raw.modality) == (((1, "spleen"),), "MR")


def test_regions_keep_their_values_and_the_class_that_each_paints(tmp_path: Path) -> None:
    add(tmp_path, "a", layout=("imagesTr", "labelsTr"))
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "bright": 3}
    write_raw(tmp_path, labels=labels, regions_class_order=[1, 2, 3])

    raw = dataset.open_folder(tmp_path, classes=4).raw

    assert raw is not None
    assert (raw.regions, raw.region_classes) == (((1, 2, 3), (2, 3), (3,)), (1, 2, 3))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": {"background": 0, "a": 1}, "channel_names": {"0": "T1", "1": "T2"}}, "2 channels"),
        ({"labels": {"background": 0, "a": 1}, "file_ending": ".nrrd"}, r"end in \.nrrd"),
        ({"labels": {"background": 0, "a": 1, "b": 2}}, r"labels \[1, 2\]; .* 1 to 1"),
        ({"labels": {"background": 0, "a": [1, 2]}}, "0 entries in regions_class_order"),
        ({"labels": {"background": 0, "a": "first"}}, "whole number"),
        ({}, "wrong at labels"),
    ],
)
def test_a_dataset_file_that_cannot_be_followed_is_refused(
    tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    add(tmp_path, "a", layout=("imagesTr", "labelsTr"))
    write_raw(tmp_path, **entries)

    with pytest.raises(InputError, match=message):
        dataset.open_folder(tmp_path, classes=2)


def test_images_that_are_not_three_dimensional_or_sheared_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "four.nii.gz", np.zeros((2, 2, 2, 3), np.float32))
    save(tmp_path / "one.nii.gz", np.zeros((2, 2, 2, 1), np.float32))
    sheared = RAS.copy()
    sheared[0, 1] = 1
    save(tmp_path / "sheared.nii.gz", np.zeros((2, 2, 2), np.float32), sheared)

    assert dataset.read_image(tmp_path / "one.nii.gz").shape == (2, 2, 2)
    with pytest.raises(UnsupportedSeriesError, match="three axes"):
        dataset.read_image(tmp_path / "four.nii.gz")
    with pytest.raises(GeometryError, match="affine of sheared"):
        dataset.read_image(tmp_path / "sheared.nii.gz")


def bright_and_dark() -> list[SplitCase]:
    names = [(f"{kind}{index}", kind) for index in range(10) for kind in ("bright", "dark")]
    return [SplitCase(name=name, stratum=kind) for name, kind in names]


def split(cases: list[SplitCase], seed: int = 3) -> CaseSplit:
    return split_cases(
        cases, hold_out_fraction=0.2, validation_fraction=0.1, generator=np.random.default_rng(seed)
    )


def test_a_stratum_is_the_stored_type_and_the_magnitude(tmp_path: Path) -> None:
    add(tmp_path, "bright", scale=500)
    add(tmp_path, "dark", scale=5)

    bright, dark = (case.read().stratum for case in dataset.open_folder(tmp_path, classes=2).cases)

    assert (bright, dark) == ("float32/1e2", "float32/1e0")


def test_a_split_takes_its_share_of_every_kind_of_intensities() -> None:
    cases = bright_and_dark()

    found = split(cases)

    for names, expected in ((found.hold_out, 2), (found.validation, 1), (found.training, 7)):
        assert sum(name.startswith("bright") for name in names) == expected
        assert sum(name.startswith("dark") for name in names) == expected
    assert sorted(found.hold_out + found.validation + found.training) == sorted(case.name for case in cases)


def test_a_split_depends_on_names_and_seed_only() -> None:
    cases = bright_and_dark()

    assert split(cases, 1) == split(cases[::-1], 1)
    assert split(cases, 1) != split(cases, 2)


def test_cases_of_one_patient_stay_on_one_side() -> None:
    cases = [SplitCase(name=f"{index:02}", stratum="s", patient=f"p{index // 3}") for index in range(30)]

    found = split(cases)

    for names in (found.training, found.validation, found.hold_out):
        patients = {int(name) // 3 for name in names}
        assert len(names) == 3 * len(patients)


def test_a_side_that_was_fixed_before_stays_for_the_whole_patient() -> None:
    sides = {0: True, 1: False, 2: False, 3: False, 4: None}
    cases = [
        SplitCase(name=f"{index}", stratum="s", patient=f"p{min(index, 4)}", is_hold_out=sides[min(index, 4)])
        for index in range(6)
    ]
    cases.append(SplitCase(name="late", stratum="t", patient="p0"))

    found = split(cases)

    assert {"0", "late"} <= set(found.hold_out)
    assert not {"1", "2", "3"} & set(found.hold_out)
