"""A fingerprint says what labelled images are like, in figures that can be worked out by hand."""

import json
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from highdicom import Volume
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicomnode.errors import InputError, UnsupportedSeriesError
from dicomnode.ml.planning import fingerprint
from dicomnode.ml.planning.fingerprint import Fingerprint
from dicomnode.ml.planning.sample import Sample

Case = tuple[Volume, NDArray[np.uint8]]
NNUNET = {
    "foreground_intensity_properties_per_channel": {
        "0": {
            "max": 606.0,
            "mean": 57.5,
            "median": 50.0,
            "min": -266.0,
            "percentile_00_5": -49.0,
            "percentile_99_5": 125.0,
            "std": 34.5,
        }
    },
    "median_relative_size_after_cropping": 0.75,
    "shapes_after_crop": [[26, 166, 164], [20, 130, 164]],
    "spacings": [[5.0, 0.795, 0.795], [3.0, 1.5, 1.5]],
}


def case(shape: tuple[int, int, int], values: dict[tuple[int, int, int], float]) -> Case:
    """An upright axial image that is 0 but for some labelled voxels; spacing 4, 2 and 1 mm."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (4.0, 2.0, 1.0, 1.0)
    array, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for place, value in values.items():
        array[place], labels[place] = value, 1
    return Volume(array, affine, coordinate_system="PATIENT"), labels


def measure(*cases: Case, orientation: str = "HPL", **options: int) -> Fingerprint:
    count = options.pop("count", len(cases))
    return fingerprint.measure(
        iter(cases), count=count, orientation=orientation, modalities=("MR",), sampled_voxels=4000, **options
    )


def test_sizes_are_those_without_the_border_of_zeros() -> None:
    one = case((4, 6, 8), {(1, 1, 2): 5.0, (2, 3, 6): 9.0})  # 2 x 3 x 5 of 4 x 6 x 8
    other = case((4, 6, 8), {(0, 0, 0): 5.0, (3, 5, 7): 9.0})  # all of it

    found = measure(one, other)

    assert found.shapes_after_crop.tolist() == [[2, 3, 5], [4, 6, 8]]
    assert [size.shape for size in found.cases] == [(4, 6, 8), (4, 6, 8)]
    assert found.spacings_mm.tolist() == [[4.0, 2.0, 1.0]] * 2
    assert found.extents_mm.tolist() == [[16.0, 12.0, 8.0]] * 2
    assert found.median_relative_size_after_cropping == (30 / 192 + 1) / 2


def test_axes_are_those_of_the_orientation() -> None:
    one = case((4, 6, 8), {(1, 1, 2): 5.0, (2, 3, 6): 9.0})

    assert measure(one, orientation="LPH").cases[0].shape == (8, 6, 4)
    assert measure(one, orientation="LPH").spacings_mm.tolist() == [[1.0, 2.0, 4.0]]
    assert measure(one, orientation="RPH").shapes_after_crop.tolist() == [[5, 3, 2]]
    assert measure(one, orientation="acquired").cases[0].shape == (4, 6, 8)


def test_intensities_are_those_of_labelled_voxels_and_each_case_counts_the_same() -> None:
    image, labels = case((2, 2, 2), {(0, 0, 0): 10.0})
    image.array[1, 1, 1] = 1000.0  # bright, and not labelled
    many = case((2, 2, 2), {(0, 0, 0): 20.0, (0, 0, 1): 20.0, (0, 1, 0): 20.0, (1, 0, 0): 20.0})

    found = measure((image, labels), many).foreground_intensity_properties_per_channel[0]

    assert (found.min, found.max, found.mean, found.std) == (10.0, 20.0, 15.0, 5.0)
    assert (found.percentile_00_5, found.percentile_99_5, found.voxels) == (10.0, 20.0, 4000)


def test_a_case_without_labels_has_a_size_and_no_intensities() -> None:
    empty, full = case((3, 3, 3), {}), case((2, 2, 2), {(0, 0, 0): 7.0})

    found = measure(empty, full)

    assert found.shapes_after_crop.tolist() == [[3, 3, 3], [1, 1, 1]]
    assert found.foreground_intensity_properties_per_channel[0].voxels == 2000


def test_images_are_not_kept() -> None:
    alive: weakref.WeakSet[Volume] = weakref.WeakSet()
    counts = []

    def cases() -> Iterator[Case]:
        for _ in range(4):
            made = case((2, 2, 2), {(0, 0, 0): 7.0})
            alive.add(made[0])
            counts.append(len(alive))
            yield made

    fingerprint.measure(cases(), count=4, orientation="HPL", modalities=("MR",), sampled_voxels=400)

    assert max(counts) == 2  # the one that was measured, and the next


@pytest.mark.parametrize("count", [5, 2**20 + 7])
def test_the_voxels_are_those_that_nnunet_draws(count: int) -> None:
    first = np.arange(1000, dtype=np.float32) ** 1.5
    second = np.linspace(-3, 3, 77, dtype=np.float32)
    drawn = np.concatenate([np.random.RandomState(1234).choice(one, count) for one in (first, second)])

    sample = Sample().draw(first, count).draw(np.empty(0, np.float32), count).draw(second, count)

    percents = (0.0, 0.5, 50.0, 99.5, 100.0)
    assert sample.size == 2 * count
    assert sample.percentiles(percents) == pytest.approx(
        np.percentile(drawn.astype(np.float64), percents), rel=1e-12
    )
    assert sample.moments() == pytest.approx((drawn.mean(dtype=float), drawn.std(dtype=float)), rel=1e-9)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.lists(st.floats(0, 100), min_size=1, max_size=4)
)
@settings(max_examples=60)
def test_percentiles_are_those_of_numpy(values: list[int], percents: list[float]) -> None:
    intensities = np.asarray(values, np.float32)
    drawn = np.random.RandomState(1234).choice(intensities, 50).astype(np.float64)

    found = Sample().draw(intensities, 50).percentiles(percents)

    assert found == pytest.approx(np.percentile(drawn, percents), abs=1e-9)


def test_a_fingerprint_is_read_as_it_was_written_one_case_a_line() -> None:
    found = measure(*[case((4, 6, 8), {(1, 1, 2): 5.0, (2, 3, 6): 9.0})] * 30)

    text = fingerprint.render(found)

    assert fingerprint.parse(text) == found
    assert sum('"shape_after_crop"' in line for line in text.splitlines()) == 30
    with pytest.raises(InputError, match="case 0 is larger after cropping"):
        fingerprint.parse(text.replace('"shape_after_crop": [2', '"shape_after_crop": [9'))


def test_a_fingerprint_of_nnunet_is_read() -> None:
    found = fingerprint.parse_nnunet(json.dumps(NNUNET), orientation="HAR", modalities=("CT",))

    assert found.shapes_after_crop.tolist() == NNUNET["shapes_after_crop"]
    assert found.spacings_mm.tolist() == NNUNET["spacings"]
    assert found.median_relative_size_after_cropping == 0.75
    assert found.foreground_intensity_properties_per_channel[0].percentile_00_5 == -49.0
    assert found.median_shape_at(np.array([5.0, 0.795, 0.795])).tolist() == [19.0, 205.5, 236.5]


def test_what_is_no_fingerprint_of_nnunet_is_refused() -> None:
    shorter = {**NNUNET, "spacings": NNUNET["spacings"][:1]}

    with pytest.raises(InputError, match="one spacing for each shape"):
        fingerprint.parse_nnunet(json.dumps(shorter), orientation="HAR", modalities=("CT",))
    with pytest.raises(InputError, match="wrong at spacings: Field required"):
        fingerprint.parse_nnunet(
            json.dumps({k: v for k, v in NNUNET.items() if k != "spacings"}),
            orientation="HAR",
            modalities=("CT",),
        )


def test_what_cannot_be_measured_is_refused_with_its_number(make_volume: Callable[..., Volume]) -> None:
    good, unlabelled = case((2, 2, 2), {(0, 0, 0): 7.0}), case((2, 2, 2), {})
    broken = case((2, 2, 2), {(0, 0, 0): np.nan})

    with pytest.raises(UnsupportedSeriesError, match="Image 2 of 2 has voxels that are NaN"):
        measure(good, broken)
    with pytest.raises(InputError, match=r"Image 1 of 1 has \(9, 11, 13\) voxels and \(2, 2, 2\) labels"):
        measure((make_volume(), good[1]))
    with pytest.raises(InputError, match="No image has a voxel with a label above 0"):
        measure(unlabelled)
    with pytest.raises(InputError, match="1 labelled images came where 2"):
        measure(good, count=2)
    with pytest.raises(InputError, match="at least one"):
        measure()


def test_a_file_is_turned_so_that_its_axes_stay(make_volume: Callable[..., Volume]) -> None:
    # RAS in NIfTI: columns grow to the right, rows to the front, slices to the head
    stored = Volume(
        np.zeros((5, 6, 7), np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]), coordinate_system="PATIENT"
    )

    assert fingerprint.stored_orientation(stored) == "HAR"
    assert measure(
        (stored.with_array(np.ones((5, 6, 7), np.float32)), np.ones((5, 6, 7), np.uint8)), orientation="HAR"
    ).cases[0].shape == (7, 6, 5)
