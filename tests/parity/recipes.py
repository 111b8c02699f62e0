"""Which nnU-Net models the parity tests make: data, planner, network size, folds and predictions.

Plain values only: both the interpreter of the tests and that of nnU-Net import this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Fold = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One network of a model, smaller than planned so that it trains in seconds.

    ``stages`` and ``features`` cut the planned network; the strides stay as planned, so each ``patch_size``
    is divisible by their product. ``coarser`` multiplies the spacing of 3d_fullres where the planner gave no
    3d_lowres.
    """

    name: str
    patch_size: tuple[int, ...]
    stages: int = 3
    features: tuple[int, ...] = (8, 16, 24, 32)
    batch_size: int = 2
    epochs: int = 4
    iterations: int = 50
    coarser: float | None = None
    previous: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How to predict; the name is that of the folder of the predictions."""

    folds: tuple[Fold, ...]
    mirroring: bool
    probabilities: bool = True
    cases: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Such as ``folds_0_1_mirroring``; labels without probabilities take another path through nnU-Net."""
        plural = "folds" if len(self.folds) > 1 else "fold"
        mirroring = "mirroring" if self.mirroring else "no_mirroring"
        suffix = "" if self.probabilities else "_labels_only"
        return f"{plural}_{'_'.join(map(str, self.folds))}_{mirroring}{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One model: `volumes.COLLECTIONS` has its cases under the name ``collection``."""

    name: str
    number: int
    collection: str
    channel: str
    labels: Mapping[str, int | tuple[int, ...]]
    configurations: tuple[Configuration, ...]
    modes: tuple[Mode, ...]
    planner: str = "ExperimentPlanner"
    is_mirrored: bool = True
    folds: tuple[Fold, ...] = (0,)
    regions_class_order: tuple[int, ...] | None = None
    is_exported: bool = False

    @property
    def dataset(self) -> str:
        """The name of nnU-Net's data set folder."""
        return f"Dataset{self.number:03d}_{self.name.title().replace('_', '')}"


def _both(*folds: Fold, mirrored: tuple[str, ...]) -> tuple[Mode, ...]:
    """Every case without mirroring, and those of ``mirrored`` with it, which takes eight times as long."""
    return (Mode(folds=folds, mirroring=False), Mode(folds=folds, mirroring=True, cases=mirrored))


HIPPOCAMPUS = MappingProxyType({"background": 0, "anterior": 1, "posterior": 2})
ORGANS = MappingProxyType({"background": 0, "spleen": 1, "vertebrae": 2, "autochthon": 3})
TISSUES = MappingProxyType({"background": 0, "soft_tissue": 1, "vertebrae": 2})
SPLEEN = MappingProxyType({"background": 0, "spleen": 1})

RECIPES = (
    Recipe(
        name="hippocampus",
        number=101,
        collection="hippocampus",
        channel="MRI",
        labels=HIPPOCAMPUS,
        folds=(0, 1),
        configurations=(Configuration(name="3d_fullres", patch_size=(24, 40, 32)),),
        modes=(
            Mode(folds=(0,), mirroring=False),
            Mode(folds=(0,), mirroring=False, probabilities=False),
            Mode(folds=(0, 1), mirroring=False),
            Mode(folds=(0, 1), mirroring=True, cases=("hippocampus_130",)),
        ),
        is_exported=True,
    ),
    Recipe(
        name="ct_residual_encoder",
        number=102,
        collection="organs",
        channel="CT",
        labels=ORGANS,
        planner="nnUNetPlannerResEncM",
        configurations=(Configuration(name="3d_fullres", patch_size=(16, 40, 48), stages=4, iterations=60),),
        modes=_both(0, mirrored=("organs_thick",)),
        is_exported=True,
    ),
    Recipe(
        name="ct_2d",
        number=103,
        collection="spleen",
        channel="CT",
        labels=SPLEEN,
        configurations=(Configuration(name="2d", patch_size=(96, 96), stages=4, batch_size=8),),
        modes=_both(0, mirrored=("spleen_005",)),
    ),
    Recipe(
        name="cascade",
        number=104,
        collection="hippocampus",
        channel="MRI",
        labels=HIPPOCAMPUS,
        folds=("all",),
        configurations=(
            Configuration(name="3d_lowres", patch_size=(16, 32, 24), coarser=1.5),
            Configuration(name="3d_cascade_fullres", patch_size=(24, 40, 32), previous="3d_lowres"),
        ),
        modes=_both("all", mirrored=("hippocampus_130",)),
        is_exported=True,
    ),
    Recipe(
        name="regions",
        number=105,
        collection="hippocampus",
        channel="MRI",
        labels=MappingProxyType({"background": 0, "whole": (1, 2), "posterior": 2}),
        regions_class_order=(1, 2),
        configurations=(Configuration(name="3d_fullres", patch_size=(24, 40, 32)),),
        modes=(
            *_both(0, mirrored=("hippocampus_130",)),
            Mode(folds=(0,), mirroring=False, probabilities=False),
        ),
    ),
    Recipe(
        name="transposed_masked",
        number=106,
        collection="bordered",
        channel="MRI",
        labels=HIPPOCAMPUS,
        configurations=(Configuration(name="3d_fullres", patch_size=(16, 32, 40)),),
        modes=_both(0, mirrored=("hippocampus_130_bordered",)),
    ),
    Recipe(
        name="ignore_label",
        number=107,
        collection="scribbled",
        channel="MRI",
        labels=MappingProxyType({**HIPPOCAMPUS, "ignore": 3}),
        configurations=(Configuration(name="3d_fullres", patch_size=(24, 40, 32)),),
        modes=_both(0, mirrored=("hippocampus_130",)),
    ),
    Recipe(
        name="torch_resampling",
        number=108,
        collection="tissues",
        channel="nonorm",
        labels=TISSUES,
        planner="nnUNetPlannerResEncL_torchres",
        is_mirrored=False,
        configurations=(Configuration(name="3d_fullres", patch_size=(16, 40, 48)),),
        modes=(Mode(folds=(0,), mirroring=False), Mode(folds=(0,), mirroring=True, cases=("organs_thick",))),
    ),
    Recipe(
        name="torch_resampling_separate_z",
        number=109,
        collection="spleen",
        channel="rescale_to_0_1",
        labels=SPLEEN,
        planner="nnUNetPlannerResEncL_torchres_sepz",
        configurations=(Configuration(name="3d_fullres", patch_size=(8, 64, 64)),),
        modes=(Mode(folds=(0,), mirroring=False),),
    ),
)
