"""A model small enough to train in a test: two labels, three levels, patches of 8 voxels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from highdicom import Volume

from dicomnode.domain import Code, Segment
from dicomnode.ml.model import network, package
from dicomnode.ml.model.architecture import DynUNetPlan
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import ImageExtent, Interpolation, PercentileZScore, Plan, Stage

BLOCK = (3, 3, 3)


@pytest.fixture(scope="session")
def plan() -> Plan:
    return Plan(
        name="tiny",
        modalities=("MR",),
        orientation="HPL",
        stages=(
            Stage(
                spacing_mm=(1.0, 1.0, 1.0),
                spacing_tolerance=0.01,
                patch_shape=(8, 8, 8),
                normalisation=PercentileZScore(),
                image_interpolation=Interpolation(antialias=True),
                score_interpolation=Interpolation(),
                network=DynUNetPlan(
                    classes=3,
                    filters=(4, 8, 8),
                    kernels=(BLOCK, BLOCK, BLOCK),
                    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
                ),
                mirror_axes=(),
                overlap=0.5,
            ),
        ),
        image_extent=ImageExtent(minimum_mm=(8, 8, 8), median_mm=(10, 10, 10), maximum_mm=(12, 12, 12)),
    )


@pytest.fixture(scope="session")
def segments() -> tuple[Segment, ...]:
    organ = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
    first = Segment(
        class_index=1,
        segment_number=1,
        label="Front",
        category=organ,
        type=Code(value="5366008", scheme="SCT", meaning="Hippocampus"),
        type_modifier=Code(value="255549009", scheme="SCT", meaning="Anterior"),
        region=None,
        rgb=(230, 159, 0),
    )
    return first, replace(first, class_index=2, segment_number=2, label='Back "2"', type_modifier=None)


@pytest.fixture
def tiny(plan: Plan, segments: tuple[Segment, ...], tmp_path: Path) -> ModelPackage:
    torch.manual_seed(1)
    tensors = network.tensors_of(network.build(plan.final.network))
    return package.write(tmp_path / "tiny", plan, segments, tensors, "# tiny\n")


@pytest.fixture(scope="session")
def make_volume() -> Callable[..., Volume]:
    """Make an upright axial volume (indices grow towards head, back, left) with a bright, lopsided object."""

    def make(
        shape: tuple[int, int, int] = (9, 11, 13), spacing: tuple[float, float, float] = (1, 1, 1)
    ) -> Volume:
        generator = np.random.default_rng(5)
        array = generator.normal(100, 10, shape).astype(np.float32)
        array[1 : shape[0] // 2, 2 : shape[1] // 3 + 2, 1:4] += 200
        affine = np.zeros((4, 4))
        affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*spacing, 1)
        affine[:3, 3] = (-20, 5, 60)
        return Volume(array, affine, coordinate_system="PATIENT")

    return make
