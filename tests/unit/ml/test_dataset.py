"""NIfTI folders are read into patient coordinates, checked, split and planned."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dicomnode.errors import GeometryError, InputError, UnsupportedSeriesError
from dicomnode.ml.planning import planner
from dicomnode.ml.training import dataset
from dicomnode.ml.training.dataset import LabelledCase

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

    cases = dataset.read_cases(tmp_path, classes=2)

    assert [case.name for case in cases] == ["a", "b"]
    assert cases[0].labels.dtype == np.uint8
    assert int(cases[0].labels.sum()) == 8


def test_folders_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither"):
        dataset.read_cases(tmp_path, classes=2)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(InputError, match="has a label map of the same name"):
        dataset.read_cases(tmp_path, classes=2)


def test_faulty_cases_are_refused_by_name(tmp_path: Path) -> None:
    add(tmp_path, "case7")
    labels = tmp_path / "labels" / "case7.nii.gz"

    save(labels, np.full((8, 9, 10), 2, np.uint8))
    with pytest.raises(UnsupportedSeriesError, match=r"case7 holds .*expected are 0 to 1"):
        dataset.read_cases(tmp_path, classes=2)
    save(labels, np.full((8, 9, 10), 0.5, np.float32))
    with pytest.raises(UnsupportedSeriesError, match="case7"):
        dataset.read_cases(tmp_path, classes=2)
    save(labels, np.zeros((8, 9, 9), np.uint8))
    with pytest.raises(GeometryError, match="case7 have different voxel grids"):
        dataset.read_cases(tmp_path, classes=2)
    save(labels, np.zeros((8, 9, 10), np.uint8), np.diag([1, 2, 3.5, 1]))
    with pytest.raises(GeometryError, match="case7 have different voxel grids"):
        dataset.read_cases(tmp_path, classes=2)
    labels.write_bytes(b"not a NIfTI file")
    with pytest.raises(UnsupportedSeriesError, match="case7"):
        dataset.read_cases(tmp_path, classes=2)


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


@pytest.fixture
def cases(tmp_path: Path) -> tuple[LabelledCase, ...]:
    for index in range(10):
        add(tmp_path, f"bright{index}", scale=500)
        add(tmp_path, f"dark{index}", scale=5)
    return dataset.read_cases(tmp_path, classes=2)


def test_a_split_takes_its_share_of_every_kind_of_intensities(cases: tuple[LabelledCase, ...]) -> None:
    split = dataset.split_cases(
        cases, hold_out_fraction=0.2, validation_fraction=0.1, generator=np.random.default_rng(3)
    )

    for names, expected in ((split.hold_out, 2), (split.validation, 1), (split.training, 7)):
        assert sum(name.startswith("bright") for name in names) == expected
        assert sum(name.startswith("dark") for name in names) == expected
    assert sorted(split.hold_out + split.validation + split.training) == [case.name for case in cases]


def test_a_split_depends_on_names_and_seed_only(cases: tuple[LabelledCase, ...]) -> None:
    def split(order: tuple[LabelledCase, ...], seed: int) -> dataset.CaseSplit:
        return dataset.split_cases(
            order, hold_out_fraction=0.2, validation_fraction=0.1, generator=np.random.default_rng(seed)
        )

    assert split(cases, 1) == split(tuple(reversed(cases)), 1)
    assert split(cases, 1) != split(cases, 2)


def test_a_plan_follows_the_training_images(cases: tuple[LabelledCase, ...]) -> None:
    plan = planner.make_plan(
        [case.image for case in cases], name="m", modalities=("MR",), classes=2, filters=(4, 8, 8, 8)
    )

    # The NIfTI axes are x 1 mm, y 2 mm, z 3 mm; the plan's are (slice z, row y, column x).
    assert plan.spacing_mm == (3.0, 2.0, 1.0)
    assert plan.image_extent.median_mm == (30.0, 18.0, 8.0)
    # Slices (3 mm) are coarser than twice the columns (1 mm) at the first level, not at the second.
    assert plan.network.kernels[0] == (1, 3, 3)
    assert plan.network.strides[:3] == ((1, 1, 1), (1, 2, 2), (2, 1, 1))
    assert all(size % step == 0 for size, step in zip(plan.patch_shape, plan.network.divisors, strict=True))


def test_a_patch_of_large_images_is_bounded() -> None:
    network = planner.plan_network(
        np.array([300.0, 512, 512]), np.ones(3), classes=2, filters=(4, 4, 4, 4, 4)
    )

    patch = planner.patch_shape(np.array([300.0, 512, 512]), network.divisors)

    assert network.divisors == (16, 16, 16)
    assert np.prod(patch) <= 96**3
    assert all(size % 16 == 0 and size >= 16 for size in patch)
