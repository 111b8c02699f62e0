"""One slice in the place of all, as OHIF 3.13.2 saves it the second time."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.imaging.corrections.repeated import repeats_one_plane
from dicomnode.imaging.reading.decoded import Decoded


def cone(planes: int) -> NDArray[np.bool_]:
    """Plane k has the first k + 1 voxels of its first row."""
    mask = np.zeros((8, 3, 8), np.bool_)
    for index in range(planes):
        mask[index, 0, : index + 1] = True
    return mask


def column(planes: int) -> NDArray[np.bool_]:
    """The same two voxels in every plane."""
    mask = np.zeros((8, 3, 8), np.bool_)
    mask[:planes, 0, :2] = True
    return mask


def decoded(**masks: NDArray[np.bool_]) -> Decoded:
    return Decoded(
        sop_instance_uid="1.2",
        referenced_series_uid="1.3",
        shape=(8, 3, 8),
        masks=masks,
        empty_labels=(),
        unmapped={},
        flags=(),
    )


def written_by(manufacturer: str) -> Dataset:
    ds = Dataset()
    ds.Manufacturer = manufacturer
    return ds


DCMJS = written_by("Unspecified")


def test_the_same_outline_in_every_plane_is_one_plane_repeated() -> None:
    received = decoded(head=column(8), tail=column(4))

    assert repeats_one_plane(DCMJS, decoded=received, prediction={"head": cone(8), "tail": cone(4)})


def test_a_few_planes_edited_afterwards_do_not_hide_it() -> None:
    mask = column(7)
    mask[:3, 2] = cone(3)[:3, 0]

    assert repeats_one_plane(DCMJS, decoded=decoded(head=mask), prediction={"head": cone(7)})


def test_it_is_seen_without_a_prediction_too() -> None:
    assert repeats_one_plane(DCMJS, decoded=decoded(head=column(4)), prediction={})


@pytest.mark.parametrize(("alike", "expected"), [(4, False), (5, True)])
def test_more_than_half_of_the_planes_must_be_alike(alike: int, *, expected: bool) -> None:
    mask = cone(8)
    mask[:alike] = column(alike)[:alike]

    assert repeats_one_plane(DCMJS, decoded=decoded(head=mask), prediction={"head": cone(8)}) is expected


def test_a_label_with_planes_of_its_own_speaks_against_it() -> None:
    received = decoded(head=column(8), tail=cone(4))

    assert not repeats_one_plane(DCMJS, decoded=received, prediction={"head": cone(8), "tail": cone(4)})


def test_a_structure_that_we_found_alike_in_its_planes_may_be_so() -> None:
    assert not repeats_one_plane(DCMJS, decoded=decoded(head=column(8)), prediction={"head": column(7)})


def test_three_planes_say_nothing() -> None:
    assert not repeats_one_plane(DCMJS, decoded=decoded(head=column(3)), prediction={"head": cone(3)})


def test_other_writers_do_not_repeat_planes() -> None:
    received = decoded(head=column(8))

    assert not repeats_one_plane(written_by("QIICR"), decoded=received, prediction={"head": cone(8)})


def test_an_object_without_voxels_repeats_nothing() -> None:
    assert not repeats_one_plane(DCMJS, decoded=decoded(), prediction={"head": cone(8)})
