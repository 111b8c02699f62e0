"""What is planned for a collection of images: by the rules of nnU-Net, and by those of Dante."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomnode.errors import ConfigError, InputError, ModelFormatError
from dicomnode.ml.model import network
from dicomnode.ml.model.plan import ClipAndStandardise, ZScore
from dicomnode.ml.planning import dante_planner, fingerprint, memory, nnunet_planner, planned, planner
from dicomnode.ml.planning.fingerprint import CaseSize, Fingerprint, ForegroundIntensities
from dicomnode.ml.planning.nnunet_planner import PRESETS
from dicomnode.ml.planning.planned import Aim, PlannedTraining
from dicomnode.ml.planning.planner import Rules
from dicomnode.ml.planning.topology import Topology, feature_map_voxels, topology
from tests.conftest import DATA, NO_DATA

PLANS = DATA.parent / "models" / "nnunet" / "plans"
AIM = Aim(name="made", classes=3)
INTENSITIES = ForegroundIntensities(
    mean=80.0, median=90.0, std=60.0, min=-300.0, max=1500.0, percentile_00_5=-120.0, percentile_99_5=310.0
)
Triple = tuple[float, float, float]


def collection(
    *sizes: tuple[tuple[int, int, int], Triple], kept: float = 1.0, modality: str = "MR"
) -> Fingerprint:
    return Fingerprint(
        orientation="HAR",
        modalities=(modality,),
        median_relative_size_after_cropping=kept,
        foreground_intensity_properties_per_channel=(INTENSITIES,),
        cases=tuple(CaseSize(shape=s, shape_after_crop=s, spacing_mm=mm) for s, mm in sizes),
    )


def alike(shape: tuple[int, int, int], spacing_mm: Triple, *, cases: int = 50, **options: Any) -> Fingerprint:
    return collection(*[(shape, spacing_mm)] * cases, **options)


def named(found: tuple[PlannedTraining, ...]) -> dict[str, PlannedTraining]:
    return {one.configuration: one for one in found}


collections = st.builds(
    lambda shapes, base, factors, modality: collection(
        *[
            ((s[0], s[1], s[2]), (base[0] * f[0], base[1] * f[1], base[2] * f[2]))
            for s, f in zip(shapes, factors, strict=False)
        ],
        modality=modality,
    ),
    st.lists(st.tuples(*[st.integers(16, 400)] * 3), min_size=1, max_size=6),
    st.tuples(*[st.sampled_from([0.4, 0.7, 1.0, 1.5, 3.0, 6.0])] * 3),
    st.lists(st.tuples(*[st.floats(0.8, 1.25)] * 3), min_size=6, max_size=6),
    st.sampled_from(["CT", "MR"]),
)


def read_reference(name: str) -> Any:
    path = PLANS / name
    if not path.is_file():
        pytest.skip(f"{NO_DATA} with plans of nnU-Net beside them in {PLANS}; set DICOMNODE_DATA")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("data_set", "plans", "preset", "aim", "modality"),
    [
        ("Dataset004_Hippocampus", "nnUNetPlans", "plain", AIM, "MR"),
        ("Dataset009_SpleenCT", "nnUNetResEncUNetMPlans_full_width", "M", Aim(name="made", classes=2), "CT"),
    ],
)
def test_plans_are_those_that_nnunet_wrote(
    data_set: str, plans: str, preset: nnunet_planner.PresetName, aim: Aim, modality: str
) -> None:
    wanted = read_reference(f"{data_set}_{plans}.json")
    text = (PLANS / f"{data_set}_dataset_fingerprint.json").read_text()
    found = fingerprint.parse_nnunet(text, orientation="HAR", modalities=(modality,))

    made = named(nnunet_planner.plan(found, aim, preset=preset))

    assert made.keys() == wanted["configurations"].keys()
    for name, theirs in wanted["configurations"].items():
        ours, options = made[name].plan.final, theirs["architecture"]["arch_kwargs"]
        first = 3 - ours.network.dimensions
        assert list(ours.patch_shape[first:]) == theirs["patch_size"]
        assert list(ours.spacing_mm[first:]) == theirs["spacing"]
        assert made[name].batch_size == theirs["batch_size"]
        assert made[name].batch_dice == theirs["batch_dice"]
        assert [list(one[first:]) for one in ours.network.strides] == options["strides"]
        assert [list(one[first:]) for one in ours.network.kernels] == options["kernel_sizes"]
        assert list(ours.network.features) == options["features_per_stage"]


def test_axes_are_halved_from_the_finest_on() -> None:
    found = topology((3.0, 1.5, 1.5), (31.5, 116.0, 105.5))

    # The slices are twice as coarse: they wait a level. They are 4 after three halvings, the others 8 and 7.
    assert found.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.patch == (32, 128, 112)
    assert (found.divisors, found.levels) == ((8, 16, 16), 5)


def test_an_axis_is_halved_alone_only_where_it_is_long() -> None:
    assert topology((1.0, 1.0), (11, 7)) == Topology(patch=(11, 7), strides=((1, 1),), kernels=((3, 3),))
    assert topology((1.0, 1.0), (12, 7)).strides == ((1, 1), (2, 1))


def test_feature_maps_are_counted() -> None:
    made = named(nnunet_planner.plan(alike((16, 16, 16), (1.0, 1.0, 1.0)), AIM))["3d_fullres"].plan.final
    again = named(nnunet_planner.plan(alike((16, 16, 16), (1.0, 1.0, 1.0)), AIM, preset="M"))[
        "3d_fullres"
    ].plan.final

    # 16, 8, 4 voxels an edge with 32, 64, 128 features; two convolutions down, three up, the scores.
    down = 2 * (32 * 4096 + 64 * 512 + 128 * 64)
    up = 3 * (64 * 512 + 32 * 4096)
    assert feature_map_voxels(made.network, made.patch_shape) == down + up + 3 * 4096
    # A stem; 1, 3 and 4 blocks of two convolutions, a projection where a level begins; two up.
    down = 32 * 4096 + 2 * 32 * 4096 + 7 * 64 * 512 + 9 * 128 * 64
    up = 2 * (64 * 512 + 32 * 4096)
    assert feature_map_voxels(again.network, again.patch_shape) == down + up + 3 * 4096


def test_the_target_spacing_is_the_median_and_finer_where_slices_are_thick() -> None:
    thick = [
        ((12, 200, 200), (mm, 1.0, 1.0)) for mm in (4.0, 6.0, 8.0, 8.0, 8.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0)
    ]
    deep = [((80, 200, 200), mm) for _, mm in thick]
    rare = [((12, 200, 200), (mm, 2.0, 2.0)) for mm in (1.0, 1.0, 8.0, 8.0, 8.0)]

    assert nnunet_planner.target_spacing(collection(*thick)).tolist() == [6.0, 1.0, 1.0]  # a tenth are finer
    assert nnunet_planner.target_spacing(collection(*deep)).tolist() == [9.0, 1.0, 1.0]  # enough slices
    assert nnunet_planner.target_spacing(collection(*rare)).tolist() == [2.00001, 2.0, 2.0]


def test_the_coarsest_axis_comes_first() -> None:
    found = named(nnunet_planner.plan(alike((160, 150, 30), (0.8, 0.8, 3.0)), AIM))

    plan = found["3d_fullres"].plan
    assert plan.axis_order == (2, 0, 1)
    assert plan.final.spacing_mm == (3.0, 0.8, 0.8)
    assert found["2d"].plan.final.spacing_mm == (None, 0.8, 0.8)
    assert plan.image_extent is not None
    assert plan.image_extent.median_mm == (90.0, 128.0, 120.0)


def test_large_images_get_a_coarser_grid_and_a_cascade() -> None:
    aim = Aim(name="made", classes=5)
    found = named(nnunet_planner.plan(alike((300, 512, 512), (1.0, 0.8, 0.8), modality="CT"), aim))

    assert list(found) == ["3d_fullres", "3d_lowres", "3d_cascade_fullres", "2d"]
    low, cascade = found["3d_lowres"].plan, found["3d_cascade_fullres"].plan
    assert cascade.stages[0] == low.final
    assert cascade.final.network.input_channels == 5  # the image, and one for each class of the first stage
    assert cascade.final.patch_shape == found["3d_fullres"].plan.final.patch_shape
    assert math.prod(found["3d_lowres"].median_shape) * 2 < math.prod(found["3d_fullres"].median_shape)
    assert math.prod(low.final.patch_shape) * 4 >= math.prod(found["3d_lowres"].median_shape)
    assert [one.batch_dice for one in found.values()] == [True, False, True, True]


def test_images_of_one_slice_are_planned_in_two_dimensions() -> None:
    found = nnunet_planner.plan(alike((1, 512, 600), (999.0, 1.0, 1.0)), AIM)

    assert [one.configuration for one in found] == ["2d"]
    assert found[0].plan.final.patch_shape == (1, 512, 640)  # 600 rounded up to steps of 128


def test_intensities_are_treated_by_modality() -> None:
    ct, mr = (alike((40, 40, 40), (1.0, 1.0, 1.0), modality=one) for one in ("CT", "MR"))
    brain = alike((40, 40, 40), (1.0, 1.0, 1.0), kept=0.7)

    assert nnunet_planner.normalisation(ct) == ClipAndStandardise(
        lower=-120, upper=310, mean=80, deviation=60
    )
    assert nnunet_planner.normalisation(mr) == ZScore(over="image")
    assert nnunet_planner.normalisation(brain) == ZScore(over="nonzero_filled")


def test_regions_have_outputs_of_their_own() -> None:
    aim = Aim(name="made", classes=4, region_classes=(1, 2, 3))
    found = named(nnunet_planner.plan(alike((300, 512, 512), (1.0, 0.8, 0.8)), aim))

    assert found["3d_fullres"].plan.final.network.classes == 3
    assert found["3d_cascade_fullres"].plan.final.network.input_channels == 4


@given(collections, st.sampled_from(sorted(PRESETS)), st.sampled_from([4.0, 8.0, 24.0]))
@settings(max_examples=40)
def test_every_plan_of_nnunet_keeps_its_promises(
    found: Fingerprint, preset: nnunet_planner.PresetName, memory_gb: float
) -> None:
    rule = PRESETS[preset]
    for one in nnunet_planner.plan(found, AIM, preset=preset, memory_gb=memory_gb):
        stage = one.plan.final
        net, patch = stage.network, stage.patch_shape
        assert net.kind != "monai"
        assert one.batch_size >= 2
        assert net.strides[0] == (1, 1, 1)
        assert net.kernels[-1][net.dimensions - 3 :] == (3,) * net.dimensions or net.dimensions == 2
        for size, step, length in zip(patch, net.divisors, one.median_shape, strict=True):
            assert size % step == 0
            assert size < length + step or net.dimensions == 2
            assert size // step >= min(4, length) or step == 1
        counted = feature_map_voxels(net, patch) / (12 if net.dimensions == 2 else 2)
        budget = rule.voxels[net.dimensions] * memory_gb / rule.memory_gb
        assert counted * 2 <= budget
        assert one.batch_size == 2 or counted * (one.batch_size - 0.5) <= budget
        spacing = [mm for mm in stage.spacing_mm if mm is not None]
        assert one.configuration == "3d_lowres" or max(spacing) == spacing[0] or net.dimensions == 2


def test_too_little_is_said_in_words() -> None:
    with pytest.raises(InputError, match=r"median image has \(7.0, 7.0, 7.0\) voxels"):
        nnunet_planner.plan(alike((7, 7, 7), (1.0, 1.0, 1.0)), AIM)
    with pytest.raises(ConfigError, match="too little memory"):
        nnunet_planner.plan(alike((100, 100, 100), (1.0, 1.0, 1.0)), AIM, memory_gb=0.001)
    with pytest.raises(ModelFormatError, match="wrong at name"):
        nnunet_planner.plan(alike((40, 40, 40), (1.0, 1.0, 1.0)), Aim(name="No Name", classes=2))


def test_dante_covers_small_images_and_fills_the_batch() -> None:
    found = dante_planner.plan(alike((36, 50, 35), (1.0, 1.0, 1.0)), AIM, memory_gb=8.0)

    # 6.35e9 usable bytes / (63 000 voxels * 5500) = 18, at most 8. 36, 50, 35 are halved to 4.5, 6.25, 4.4.
    stage = found.plan.final
    assert (stage.patch_shape, found.batch_size) == ((32, 48, 32), 8)
    assert stage.network.kind == "dynunet"
    assert stage.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert stage.network.filters == (32, 64, 128, 256)
    assert stage.network.residual
    assert network.schema(stage.network).entries


def test_dante_cuts_large_images_in_proportion() -> None:
    found = dante_planner.plan(alike((200, 400, 400), (1.0, 0.5, 0.5)), AIM, memory_gb=8.0)

    # 577 000 voxels of 32 million: a factor of 0.262 along each axis, 52 x 105 x 105, rounded down to 16.
    assert found.plan.final.patch_shape == (48, 96, 96)
    assert found.batch_size == 2
    assert found.plan.final.network.kernels[0] == (3, 3, 3)  # twice as coarse is not too coarse


def test_dante_without_a_gpu_takes_a_fixed_patch_that_fits_the_image() -> None:
    large = dante_planner.plan(alike((200, 400, 400), (1.0, 1.0, 1.0)), AIM, memory_gb=None)
    small = dante_planner.plan(alike((36, 50, 35), (1.0, 1.0, 1.0)), AIM, memory_gb=None)

    assert (large.plan.final.patch_shape, large.batch_size) == ((32, 128, 128), 2)
    assert (small.plan.final.patch_shape, small.batch_size) == ((32, 48, 32), 2)


def test_dante_keeps_the_spacing_exactly() -> None:
    found = dante_planner.plan(alike((36, 50, 35), (1.2001, 0.7031, 0.7031)), AIM, memory_gb=None)

    assert found.plan.final.spacing_mm == (1.2001, 0.7031, 0.7031)  # in half precision 1.2002, 0.7031, 0.7031
    assert found.plan.final.normalisation == ZScore(over="nonzero")


@given(collections)
@settings(max_examples=40)
def test_every_patch_of_dante_fits_image_and_strides(found: Fingerprint) -> None:
    one = dante_planner.plan(found, AIM, memory_gb=None)

    stage = one.plan.final
    for size, step, length in zip(stage.patch_shape, stage.network.divisors, one.median_shape, strict=True):
        assert size % step == 0
        assert size <= length


@pytest.mark.parametrize(
    ("memory_gb", "shape", "spacing_mm"),
    [
        (8, (512, 512, 512), (0.7, 0.7, 0.7)),
        (16, (30, 320, 320), (4.0, 0.6, 0.6)),
        (24, (30, 320, 320), (4.0, 0.6, 0.6)),
        (80, (512, 512, 512), (0.7, 0.7, 0.7)),
    ],
)
def test_no_plan_of_dante_is_predicted_to_run_out_of_memory(
    memory_gb: int, shape: tuple[int, int, int], spacing_mm: Triple
) -> None:
    found = dante_planner.plan(alike(shape, spacing_mm), Aim(name="made", classes=30), memory_gb=memory_gb)

    stage = found.plan.final
    needed = memory.training_bytes(
        stage.network, stage.patch_shape, device="cuda", batch_size=found.batch_size
    )
    assert needed <= 0.9 * memory_gb * 2**30


def test_dante_gives_up_samples_and_then_voxels_where_many_classes_need_the_memory() -> None:
    images = alike((36, 50, 35), (1.0, 1.0, 1.0))

    few = dante_planner.plan(images, AIM, memory_gb=1.85)
    many = dante_planner.plan(images, Aim(name="made", classes=256), memory_gb=1.85)
    tight = dante_planner.plan(images, Aim(name="made", classes=256), memory_gb=1.45)

    # 1016 MiB / (63 000 voxels * 5500) = 3.07
    assert (few.plan.final.patch_shape, few.batch_size) == ((32, 48, 32), 3)
    assert (many.plan.final.patch_shape, many.batch_size) == ((32, 48, 32), 2)
    assert (tight.plan.final.patch_shape, tight.batch_size) == ((32, 40, 32), 2)


def test_dante_refuses_what_its_rules_do_not_cover() -> None:
    small, usual = alike((9, 9, 9), (1.0, 1.0, 1.0)), alike((64, 64, 64), (1.0, 1.0, 1.0))

    with pytest.raises(InputError, match="too small for three levels"):
        dante_planner.plan(small, AIM, memory_gb=8.0)
    with pytest.raises(InputError, match="not for regions"):
        dante_planner.plan(usual, Aim(name="made", classes=3, region_classes=(1, 2)), memory_gb=8.0)
    with pytest.raises(ConfigError, match="too little"):
        dante_planner.plan(usual, AIM, memory_gb=0.5)
    with pytest.raises(InputError, match="15 x 15 x 15 voxels is too small for three levels"):
        dante_planner.plan(usual, AIM, memory_gb=0.65)


def test_rules_that_do_not_go_together_are_refused() -> None:
    found = alike((40, 40, 40), (1.0, 1.0, 1.0))

    with pytest.raises(ConfigError, match="Dante's rules have none"):
        planner.plan(found, AIM, Rules(planner="dante", preset="M"))
    with pytest.raises(ConfigError, match="need a GPU memory"):
        planner.plan(found, AIM, Rules(memory_gb=0))
    with pytest.raises(ConfigError, match="cannot be planned for"):
        planner.plan(found, AIM, Rules(memory_gb=-1))
    with pytest.raises(
        InputError, match="3d_lowres is not planned for these images; planned are 3d_fullres, 2d"
    ):
        planner.plan(found, AIM, Rules(), only="3d_lowres")


def test_a_planning_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    planning = planner.plan(alike((40, 44, 36), (1.0, 1.0, 1.0)), AIM, Rules(), only="3d_fullres")

    text = planned.render(planning)

    assert planned.parse(text) == planning
    assert planning.memory_gb == 8
    assert planning.choose(None).memory is not None
    assert '"patch_shape": [40, 48, 40],' in text
    with pytest.raises(InputError, match=r"wrong at configurations\.0\.batch_size"):
        planned.parse(text.replace('"batch_size": ', '"batch_size": -'))


def test_of_equal_axes_the_last_is_shortened_first() -> None:
    found = named(nnunet_planner.plan(alike((200, 200, 200), (1.0, 1.0, 1.0)), AIM, memory_gb=6.0))

    assert found["3d_fullres"].plan.final.patch_shape == (128, 128, 112)
