"""Images for the parity models: cut from the real data where there are any, otherwise made of ellipsoids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import SimpleITK
from numpy.typing import NDArray

# Of both intensity domains: 130 and 164 are uint8, the others float32.
TRAINING_HIPPOCAMPI = ("003", "004", "008", "025", "034", "075", "143", "164")
TESTED_HIPPOCAMPI = ("006", "130")
# The test cases are among the training cases: what is compared is arithmetic, and a label that is never
# predicted compares nothing.
ORGAN_CLASSES = MappingProxyType({1: 1, 30: 2, 31: 2, 32: 2, 33: 2, 86: 3, 87: 3})
TRUNK = (slice(8, 64), slice(12, 76), slice(0, 30))  # x, y, z: where these organs lie
TRUNK_MM = (168.0, 192.0, 90.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An image and its labels on one grid."""

    name: str
    image: SimpleITK.Image
    labels: SimpleITK.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What one model learns from, and what is predicted with it; a case may be in both."""

    training: Sequence[Case]
    tested: Sequence[Case]


def hippocampus(data: Path | None) -> Collection:
    """Crops of MR at 1 mm, with anterior (1) and posterior (2) hippocampus."""
    training = [_hippocampus(data, number) for number in (*TRAINING_HIPPOCAMPI, *TESTED_HIPPOCAMPI)]
    return Collection(training=training, tested=training[-len(TESTED_HIPPOCAMPI) :])


def scribbled(data: Path | None) -> Collection:
    """The hippocampi with labels in every third slice only; label 3 everywhere else."""
    whole = hippocampus(data)
    return Collection(training=[_scribble(case) for case in whole.training], tested=whole.tested)


def bordered(data: Path | None) -> Collection:
    """The hippocampi with 3 mm sagittal slices, zero outside an ellipsoid and in a border of uneven width."""
    whole = hippocampus(data)
    training = [_with_border(case) for case in whole.training]
    return Collection(training=training, tested=training[-len(whole.tested) :])


def organs(data: Path | None) -> Collection:
    """One CT of the trunk on several grids: 1 spleen, 2 vertebrae, 3 autochthonous muscle of the back."""
    case = _organs(data)
    grids = {
        "organs_001": (3.0, 3.0, 3.0),
        "organs_002": (2.0, 2.0, 4.0),
        "organs_003": (2.5, 2.5, 2.5),
        "organs_004": (2.2, 2.2, 5.0),
        "organs_005": (2.5, 2.5, 3.0),
    }
    training = [_resample(case, name, spacing) for name, spacing in grids.items()]
    thick = _resample(case, "organs_thick", (1.6, 1.6, 7.5))  # anisotropic: nnU-Net resamples z on its own
    turned = _turned(training[0], "organs_turned")
    return Collection(training=training, tested=(training[0], thick, turned))


def tissues(data: Path | None) -> Collection:
    """The CT of :func:`organs` with fewer labels: 1 spleen and muscle, 2 vertebrae."""
    whole = organs(data)
    return Collection(
        training=[_with_soft_tissue(case) for case in whole.training],
        tested=[_with_soft_tissue(case) for case in whole.tested],
    )


def spleen(data: Path | None) -> Collection:
    """One CT with slices of 5 mm on several grids: 1 spleen."""
    case = _spleen(data)
    grids = {
        "spleen_001": (0.79, 0.79, 5.0),
        "spleen_002": (1.0, 1.0, 5.0),
        "spleen_003": (1.2, 1.2, 5.0),
        "spleen_004": (1.2, 1.2, 4.0),
        "spleen_005": (1.4, 1.4, 6.0),
    }
    training = [_resample(case, name, spacing) for name, spacing in grids.items()]
    return Collection(training=training, tested=(training[0], training[4]))


COLLECTIONS: Mapping[str, Callable[[Path | None], Collection]] = MappingProxyType(
    {
        "hippocampus": hippocampus,
        "scribbled": scribbled,
        "bordered": bordered,
        "organs": organs,
        "tissues": tissues,
        "spleen": spleen,
    }
)


def _hippocampus(data: Path | None, number: str) -> Case:
    name = f"hippocampus_{number}"
    if data is None:
        seed = int(number)
        size_mm = (34.0 + seed % 4, 50.0 + seed % 5, 35.0 + seed % 3)
        return _ellipsoids(name, size_mm, 1.0, values=(250.0, 420.0, 360.0), noise=40.0, seed=seed)
    folder = data / "hippocampus"
    image = SimpleITK.ReadImage(str(folder / "images" / f"{name}.nii.gz"))
    labels = SimpleITK.ReadImage(str(folder / "labels" / f"{name}.nii.gz"), SimpleITK.sitkUInt8)
    return Case(name=name, image=image, labels=labels)


def _organs(data: Path | None) -> Case:
    if data is None:
        return _ellipsoids("organs", TRUNK_MM, 3.0, values=(-900.0, 45.0, 190.0, -40.0), noise=20.0, seed=1)
    folder = data / "organs" / "totalseg"
    image = SimpleITK.ReadImage(str(folder / "example_ct_sm.nii.gz"))
    found = SimpleITK.ReadImage(str(folder / "example_seg.nii.gz"), SimpleITK.sitkUInt8)
    array = SimpleITK.GetArrayViewFromImage(found)
    labels = np.zeros(array.shape, np.uint8)
    for organ, label in ORGAN_CLASSES.items():
        labels[array == organ] = label
    return Case(name="organs", image=image[TRUNK], labels=_like(found, labels)[TRUNK])


def _spleen(data: Path | None) -> Case:
    if data is None:
        return _ellipsoids("spleen", (130.0, 131.0, 130.0), 1.2, values=(-100.0, 90.0), noise=20.0, seed=2)
    folder = data / "organs" / "spleen_msd"
    image = SimpleITK.ReadImage(
        str(folder / "sub-spleen2" / "ct" / "sub-spleen2_ct.nii.gz"), SimpleITK.sitkInt16
    )
    path = folder / "derivatives" / "labels" / "sub-spleen2" / "ct" / "sub-spleen2_ct_seg-manual.nii.gz"
    return Case(name="spleen", image=image, labels=SimpleITK.ReadImage(str(path), SimpleITK.sitkUInt8))


def _ellipsoids(
    name: str,
    size_mm: Sequence[float],
    spacing_mm: float,
    *,
    values: Sequence[float],
    noise: float,
    seed: int,
) -> Case:
    """One ellipsoid per label, side by side along y, in a noisy background of ``values[0]``."""
    generator = np.random.default_rng(seed)
    shape = tuple(round(size / spacing_mm) for size in reversed(size_mm))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    labels = np.zeros(shape, np.uint8)
    image = values[0] + generator.normal(0, noise, shape)
    width = 0.8 / (len(values) - 1)
    for label, value in enumerate(values[1:], start=1):
        middle = -0.8 + (2 * label - 1) * width + generator.uniform(-0.05, 0.05)
        inside = (z / 0.7) ** 2 + ((y - middle) / width) ** 2 + (x / 0.6) ** 2 < 1
        labels[inside] = label
        image[inside] += value - values[0]
    made = SimpleITK.GetImageFromArray(image.astype(np.float32))
    made.SetSpacing([spacing_mm] * 3)
    made.SetOrigin((-10.0, 20.0, 30.0))
    made.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return Case(name=name, image=made, labels=_like(made, labels))


def _scribble(case: Case) -> Case:
    labels = SimpleITK.GetArrayFromImage(case.labels)
    unknown = np.ones(len(labels), bool)
    unknown[::3] = False
    labels[unknown] = 3
    return Case(name=case.name, image=case.image, labels=_like(case.labels, labels))


def _with_soft_tissue(case: Case) -> Case:
    labels = SimpleITK.GetArrayFromImage(case.labels)
    labels[labels == 3] = 1
    return Case(name=case.name, image=case.image, labels=_like(case.labels, labels))


def _with_border(case: Case) -> Case:
    spacing = case.image.GetSpacing()
    coarse = _resample(case, case.name, (3.0 * spacing[0], spacing[1], spacing[2]))
    image = SimpleITK.GetArrayFromImage(coarse.image).astype(np.float32) + 1.0  # no zero inside
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in image.shape), indexing="ij")
    outside = (z / 1.05) ** 2 + (y / 1.05) ** 2 + (x / 1.2) ** 2 > 1
    image[outside] = 0
    labels = SimpleITK.GetArrayFromImage(coarse.labels)
    labels[outside] = 0
    lower, upper = (1, 4, 7), (2, 9, 3)  # x, y, z
    return Case(
        name=f"{case.name}_bordered",
        image=SimpleITK.ConstantPad(_like(coarse.image, image), lower, upper, 0),
        labels=SimpleITK.ConstantPad(_like(coarse.labels, labels), lower, upper, 0),
    )


def _turned(case: Case, name: str) -> Case:
    """The same voxels with other stored axes: x along superior, y along posterior, z along left."""
    return Case(
        name=name,
        image=SimpleITK.PermuteAxes(case.image, (2, 1, 0)),
        labels=SimpleITK.PermuteAxes(case.labels, (2, 1, 0)),
    )


def _resample(case: Case, name: str, spacing: Sequence[float]) -> Case:
    old = np.asarray(case.image.GetSpacing())
    size = np.maximum(np.rint(np.asarray(case.image.GetSize()) * old / spacing), 1).astype(int).tolist()
    grid = SimpleITK.Image(size, SimpleITK.sitkUInt8)
    grid.SetSpacing(list(spacing))
    grid.SetOrigin(case.image.GetOrigin())
    grid.SetDirection(case.image.GetDirection())
    lowest = float(SimpleITK.GetArrayViewFromImage(case.image).min())
    identity = SimpleITK.Transform()
    return Case(
        name=name,
        image=SimpleITK.Resample(case.image, grid, identity, SimpleITK.sitkLinear, lowest),
        labels=SimpleITK.Resample(case.labels, grid, identity, SimpleITK.sitkNearestNeighbor, 0),
    )


def _like(image: SimpleITK.Image, array: NDArray[np.generic]) -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(array)
    made.CopyInformation(image)
    return made
