"""The cases of the experiments: who is on which side, a third contrast, and corrections that are wrong.

The cases are 170 crops around the hippocampus in two kinds of intensities, A (140) and B (30). The third
contrast C is made from images of A, see :func:`other_contrast`. Every split is drawn from the seed of a run
and stands in its result.
"""

import csv
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from scipy import ndimage, stats

from dicomnode.ml.training import dataset
from dicomnode.ml.training.lessons import CaseSource
from dicomnode.ml.training.reviewed import TrainingCase

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DICOMNODE_DATA", REPOSITORY.parent / "shared" / "data")) / "hippocampus"
CLASSES = 3
LABEL_NAMES = ("anterior", "posterior")

Domain = Literal["A", "B", "C"]
DOMAINS: tuple[Domain, ...] = ("A", "B", "C")
Mistake = Literal["swapped", "shifted", "eroded"]
MISTAKES: tuple[Mistake, ...] = ("swapped", "shifted", "eroded")
SHIFT_VOXELS = 4
EROSION_VOXELS = 2
C_GAMMA = 1.7
C_NOISE = 0.08
C_NOISE_SIGMA_VOXELS = 2.0

Labels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """An image with a truth, or with what somebody took for it."""

    name: str
    image: Volume  # float32
    labels: Labels  # (S, R, K) class indices

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (S, R, K)."""
        first, second, third = self.image.spacing
        return float(first), float(second), float(third)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Names of the cases on each side; no case is on two."""

    pretraining: tuple[str, ...]
    a_test: tuple[str, ...]
    a_pool: tuple[str, ...]
    b_pool: tuple[str, ...]
    b_test: tuple[str, ...]
    c_pool: tuple[str, ...]
    c_test: tuple[str, ...]

    def pool(self, domain: Domain) -> tuple[str, ...]:
        """Give the cases to adapt to a domain with; few cases are the first of these."""
        return {"A": self.a_pool, "B": self.b_pool, "C": self.c_pool}[domain]

    def test(self, domain: Domain) -> tuple[str, ...]:
        """Give the cases to judge by."""
        return {"A": self.a_test, "B": self.b_test, "C": self.c_test}[domain]


def split_of(seed: int) -> Split:
    """Draw the sides: 60 + 20 + 20 of A, 20 + 10 of B, and for C 20 + 10 others of A."""
    generator = np.random.default_rng([seed, 1])
    a, b = (_shuffled(names_of(kind), generator) for kind in ("A", "B"))
    return Split(
        pretraining=a[:60],
        a_test=a[60:80],
        a_pool=a[80:100],
        c_pool=a[100:120],
        c_test=a[120:130],
        b_pool=b[:20],
        b_test=b[20:30],
    )


@cache
def names_of(kind: str) -> tuple[str, ...]:
    """Give the cases of a kind of intensities, A or B."""
    with (DATA / "volumes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [row["file"] for row in rows if row["intensity_domain"].startswith(kind)]
    return tuple(sorted(name.removesuffix(".nii.gz") for name in found))


@cache
def folder_sources() -> dict[str, dataset.CaseSource]:
    """Give all cases as a training from scratch reads them, by name."""
    return {case.name: case for case in dataset.open_folder(DATA, classes=CLASSES).cases}


@cache
def example(name: str, domain: Domain = "A") -> Example:
    """Read a case; in domain C with its other contrast."""
    case = folder_sources()[name].read()
    image = case.image
    if domain == "C":
        image = image.with_array(other_contrast(image.array, seed=zlib.crc32(name.encode())))
    return Example(name=name, image=image, labels=case.labels)


def examples(names: Sequence[str], domain: Domain = "A") -> list[Example]:
    """Read several cases."""
    return [example(name, domain) for name in names]


def other_contrast(image: NDArray[np.float32], *, seed: int) -> NDArray[np.float32]:
    """Make the third contrast: dark becomes bright, by a curve that no shift and scale undoes.

    ``1000 * ((1 - r) ** 1.7 + 0.08 * n)``, where r is the rank of a voxel among all of the image (0 to 1,
    ties share their mean) and n is noise of deviation 1, smoothed with a Gaussian of 2 voxels.
    """
    ranks = (stats.rankdata(image) - 1) / max(image.size - 1, 1)
    noise = ndimage.gaussian_filter(
        np.random.default_rng(seed).standard_normal(image.shape), C_NOISE_SIGMA_VOXELS
    )
    noise /= noise.std()
    curve = (1.0 - ranks.reshape(image.shape)) ** C_GAMMA
    return np.asarray(1000.0 * (curve + C_NOISE * noise), np.float32)


def spoilt(case: Example, mistake: Mistake, *, seed: int) -> Example:
    """Make a correction wrong in one of the ways in which they are wrong.

    ``swapped``: both labels change places. ``shifted``: by 4 voxels along one axis, drawn with its direction;
    what leaves the image is lost. ``eroded``: 2 voxels of both labels together, from outside.
    """
    if mistake == "swapped":
        return replace(case, labels=np.array([0, 2, 1], np.uint8)[case.labels])
    if mistake == "shifted":
        generator = np.random.default_rng(seed)
        offset = [0, 0, 0]
        offset[int(generator.integers(3))] = int(generator.choice([-SHIFT_VOXELS, SHIFT_VOXELS]))
        moved = ndimage.shift(case.labels, offset, order=0, mode="constant", cval=0)
        return replace(case, labels=moved.astype(np.uint8))
    kept = ndimage.binary_erosion(case.labels > 0, iterations=EROSION_VOXELS)
    return replace(case, labels=np.where(kept, case.labels, 0).astype(np.uint8))


def source(
    case: Example, *, known: Sequence[bool] = (True, True), trust: float = 1.0, note: str = ""
) -> CaseSource:
    """Give a case to learn from.

    Parameters
    ----------
    known
        Whether (anterior, posterior) was reviewed; a label that was not is background in the label map.
    note
        Tells versions of one case apart.
    """
    labels = case.labels.copy()
    for index, is_known in enumerate(known, start=1):
        if not is_known:
            labels[labels == index] = 0
    weights = np.repeat(np.asarray(known, np.float32)[:, None], labels.shape[0], axis=1)
    return CaseSource(
        name=case.name,
        version=note or "1",
        read=lambda: TrainingCase(
            image=np.asarray(case.image.array, np.float32),
            affine=np.asarray(case.image.affine, np.float64),
            labels=labels,
            slice_weights=weights,
            patient_key=case.name,
        ),
        trust=trust,
    )


def _shuffled(names: Sequence[str], generator: np.random.Generator) -> tuple[str, ...]:
    return tuple(str(name) for name in generator.permutation(list(names)))
