"""A model trained with nnU-Net v2 becomes a package that computes the same, or is refused with the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dicomnode.errors import InputError, ModelFormatError
from dicomnode.ml.imports import nnunet_folders, nnunet_plans, nnunet_stage
from dicomnode.ml.imports.foreign import ImportOptions, fitted
from dicomnode.ml.imports.importer import Imported, import_model
from dicomnode.ml.imports.nnunet_dataset import DataSet, read_dataset
from dicomnode.ml.model import network, package
from dicomnode.ml.model.plan import (
    AsItIs,
    ClipAndStandardise,
    FixedRange,
    ImageRange,
    Interpolation,
    Plan,
    ZScore,
)
from tests.nnunet_builders import (
    PLANS,
    TRAINER,
    Json,
    architecture,
    configuration,
    data_set,
    make_network,
    plans,
    write_model,
)

FULL, LOW, CASCADE, FLAT = "3d_fullres", "3d_lowres", "3d_cascade_fullres", "2d"


def imported(source: Path, out: Path, **options: object) -> Imported:
    return import_model(
        source,
        out,
        options=ImportOptions(**options),  # type: ignore[arg-type]
        progress=lambda *_: None,
    )


def scores(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result = net(image)
    assert isinstance(result, torch.Tensor)
    return result


def test_a_cascade_with_folds_computes_what_nnunet_s_networks_compute(tmp_path: Path) -> None:
    described = plans(
        {
            LOW: configuration(spacing=[2.0, 2.0, 2.0]),
            FULL: configuration(),
            CASCADE: {"inherits_from": FULL, "previous_stage": LOW},
        },
        transpose_forward=[1, 0, 2],
    )
    first = make_network(architecture())
    second = [make_network(architecture(), inputs=3) for _ in range(2)]
    write_model(tmp_path, LOW, described, data_set(), {"0": first}, mirror_axes=None)
    folder = write_model(tmp_path, CASCADE, described, data_set(), {"0": second[0], "1": second[1]})
    (tmp_path / "image").mkdir()

    made = imported(folder.parent, tmp_path / "out" / "mine", folds=(), name="mine").package

    low, full = made.plan.stages
    assert (low.name, low.members, low.network.input_channels, low.mirror_axes) == (LOW, 1, 1, ())
    assert (full.name, full.members, full.network.input_channels, full.mirror_axes) == (
        CASCADE,
        2,
        3,
        (0, 1, 2),
    )
    assert (low.spacing_mm, full.spacing_mm) == ((2.0, 2.0, 2.0), (1.0, 0.8, 0.9))
    assert (made.plan.axis_order, made.plan.orientation, made.plan.crop_to_nonzero) == (
        (1, 0, 2),
        "HAR",
        True,
    )
    built = network.build_all(made.plan, package.read_weights(made))
    image = torch.randn(1, 3, 8, 8, 8)
    for one, source, channels in ((built[0][0], first, 1), *zip(built[1], second, (3, 3), strict=True)):
        assert torch.equal(scores(one.eval(), image[:, :channels]), scores(source, image[:, :channels]))
    words = (made.folder / "card.md").read_text()
    assert (
        f"- Configuration {CASCADE}: nnUNetTrainer, fold 0, 1, checkpoint_final.pth, after 7, 7 epochs"
        in words
    )
    assert [segment.label for segment in made.card.segments] == [
        "Hippocampus anterior",
        "Hippocampus posterior",
    ]


def test_a_two_dimensional_network_takes_the_slices_one_by_one() -> None:
    source = make_network(architecture(2), outputs=2)
    found = nnunet_plans.Configuration.model_validate(
        configuration(2, normalization_schemes=["CTNormalization"])
    )
    told = nnunet_plans.Plans.model_validate(plans({}))

    plan = nnunet_plans.network(found, input_channels=1, outputs=2, trainer=TRAINER)
    ours = network.build(plan)
    network.load(ours, fitted(source.state_dict(), plan, what="test"))
    stage = nnunet_stage.stage(
        "my 2d",
        found,
        plan,
        intensities=told.foreground_intensity_properties_per_channel,
        mirror_axes=(0, 1),
        members=5,
    )

    image = torch.randn(1, 1, 3, 8, 8)
    expected = torch.stack([scores(source, image[:, :, index]) for index in range(3)], dim=2)
    torch.testing.assert_close(scores(ours.eval(), image), expected)
    assert (stage.name, stage.members, stage.overlap) == ("my_2d", 5, 0.5)
    assert (stage.spacing_mm, stage.patch_shape, stage.mirror_axes) == ((None, 0.8, 0.9), (1, 8, 8), (1, 2))
    assert stage.normalisation == ClipAndStandardise(lower=-50, upper=120, mean=40, deviation=20)


OLD_STYLE: Json = {
    "UNet_class_name": "ResidualEncoderUNet",
    "UNet_base_num_features": 4,
    "unet_max_num_features": 6,
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3]],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2]],
    "num_pool_per_axis": [0, 1, 1],
    "n_conv_per_stage_encoder": [1, 2],
    "n_conv_per_stage_decoder": [1],
}
VARIANTS: dict[str, tuple[Json, Json, str]] = {
    # What the plan says, what nnU-Net makes of it, and by which trainer
    "as planned today": ({"architecture": architecture()}, architecture(), TRAINER),
    "residual": (
        {"architecture": architecture(kind="ResidualEncoderUNet")},
        architecture(kind="ResidualEncoderUNet"),
        TRAINER,
    ),
    "of version 2.0": (
        OLD_STYLE,
        architecture(
            kind="ResidualEncoderUNet",
            kernel_sizes=OLD_STYLE["conv_kernel_sizes"],
            strides=OLD_STYLE["pool_op_kernel_sizes"],
        ),
        TRAINER,
    ),
    "plain, of version 2.0": (
        OLD_STYLE | {"UNet_class_name": "PlainConvUNet", "unet_max_num_features": 320},
        architecture(
            features_per_stage=[4, 8],
            kernel_sizes=OLD_STYLE["conv_kernel_sizes"],
            strides=OLD_STYLE["pool_op_kernel_sizes"],
        ),
        TRAINER,
    ),
    "one number for all levels": (
        {"architecture": architecture(kernel_sizes=3, n_conv_per_stage=2, n_conv_per_stage_decoder=1)},
        architecture(kernel_sizes=3, n_conv_per_stage=2, n_conv_per_stage_decoder=1),
        TRAINER,
    ),
    "batch norm by the trainer": (
        {"architecture": architecture()},
        architecture(norm_op="torch.nn.BatchNorm3d"),
        "nnUNetTrainerBN",
    ),
    "no bias, ReLU, plain norm, dropout": (
        {
            "architecture": architecture(
                conv_bias=False,
                nonlin="torch.nn.ReLU",
                norm_op_kwargs=None,
                dropout_op="torch.nn.Dropout3d",
                dropout_op_kwargs={"p": 0.5},
            )
        },
        architecture(conv_bias=False, nonlin="torch.nn.ReLU", norm_op_kwargs={}),
        TRAINER,
    ),
    "another slope": (
        {"architecture": architecture(nonlin_kwargs={"negative_slope": 0.2, "inplace": True})},
        architecture(nonlin_kwargs={"negative_slope": 0.2}),
        TRAINER,
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_describing_a_network_gives_the_network_that_nnunet_makes(variant: str) -> None:
    said, meant, trainer = VARIANTS[variant]
    described = configuration() | {"architecture": None} | said
    source = make_network(meant)
    image = torch.randn(2, 1, 8, 8, 8)

    found = nnunet_plans.configuration(nnunet_plans.Plans.model_validate(plans({"x": described})), "x")
    plan = nnunet_plans.network(found, input_channels=1, outputs=3, trainer=trainer)
    ours = network.build(plan)
    network.load(ours, fitted(source.state_dict(), plan, what="test"))

    torch.testing.assert_close(scores(ours.eval(), image), scores(source, image))


def set_up(tmp_path: Path, described: Json, data: Json, *, trainer: str = TRAINER, name: str = FULL) -> Path:
    """Write a model whose checkpoint is never reached."""
    return write_model(tmp_path, name, described, data, {"0": nn.Conv3d(1, 1, 1)}, trainer=trainer).parent


def of_plan(**changes: object) -> Callable[[Path], Path]:
    return lambda path: set_up(path, plans({FULL: configuration()}, **changes), data_set())


def of_configuration(**changes: object) -> Callable[[Path], Path]:
    return lambda path: set_up(path, plans({FULL: configuration(**changes)}), data_set())


def of_data(**changes: object) -> Callable[[Path], Path]:
    return lambda path: set_up(path, plans({FULL: configuration()}), data_set(**changes))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another network": (
        of_configuration(architecture=architecture() | {"network_class_name": "os.system"}),
        r"the network of this model is os\.system; imported are the U-Nets that nnU-Net plans",
    ),
    "another network by its trainer": (
        lambda path: set_up(
            path, plans({FULL: configuration()}), data_set(), trainer="nnUNet_Primus_M_Trainer"
        ),
        "the network of this model is the Primus of nnUNet_Primus_M_Trainer",
    ),
    "an unknown option": (
        of_configuration(architecture=architecture(squeeze_excitation=True)),
        "has squeeze_excitation = True",
    ),
    "an unknown layer": (
        of_configuration(architecture=architecture(nonlin="torch.nn.GELU")),
        r"the network is made of .* and torch\.nn\.GELU",
    ),
    "two channels": (
        of_data(channel_names={"0": "T1", "1": "T2"}),
        r"takes 2 images at once \(T1, T2\); the node gives a model one series",
    ),
    "unknown intensities": (
        of_configuration(normalization_schemes=["MyNormalization"]),
        "intensities of this model are changed by MyNormalization",
    ),
    "unknown resampling": (
        of_configuration(resampling_fn_data="my_resampling"),
        "images of this model are resampled by my_resampling",
    ),
    "unknown option of the resampling": (
        of_configuration(resampling_fn_data_kwargs={"separate_z_anisotropy_threshold": 5}),
        "resample_data_or_seg_to_shape has separate_z_anisotropy_threshold = 5",
    ),
    "another preprocessor": (
        of_configuration(preprocessor_name="MyPreprocessor"),
        "prepared by MyPreprocessor",
    ),
    "photographs": (of_plan(image_reader_writer="NaturalImage2DIO"), "were read by NaturalImage2DIO"),
    "other labels": (of_plan(label_manager="MyLabels"), "labels of this model are read by MyLabels"),
    "a circle": (
        lambda path: set_up(path, plans({FULL: {"inherits_from": FULL}}), data_set()),
        "no usable configuration '3d_fullres'",
    ),
    "no such configuration": (
        lambda path: set_up(path, plans({"2d": configuration(2)}), data_set()),
        "no usable configuration '3d_fullres'; there is 2d",
    ),
    "plans without a patch": (
        of_configuration(patch_size=None),
        "3d_fullres in plans.json is wrong at patch_size",
    ),
    "no background": (of_data(labels={"spleen": 1}), "names no background"),
    "regions without order": (
        of_data(labels={"background": 0, "a": [1, 2], "b": 2}),
        "2 regions and 0 entries in regions_class_order",
    ),
    "a cascade alone": (
        lambda path: set_up(
            path,
            plans({LOW: configuration(), CASCADE: configuration(previous_stage=LOW)}),
            data_set(),
            name=CASCADE,
        ),
        f"the model {TRAINER}__{PLANS}__3d_lowres is missing beside {TRAINER}__{PLANS}__3d_cascade_fullres",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_imported_is_refused_before_its_weights_are_read(fault: str, tmp_path: Path) -> None:
    make, reason = REFUSED[fault]
    source = make(tmp_path / "results")

    with pytest.raises(ModelFormatError, match=reason):
        imported(source, tmp_path / "out")

    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "results"]


def test_weights_of_another_network_are_told_with_their_trainer(tmp_path: Path) -> None:
    plan = nnunet_plans.network(
        nnunet_plans.Configuration.model_validate(configuration()),
        input_channels=1,
        outputs=3,
        trainer=TRAINER,
    )
    other = make_network(architecture(features_per_stage=[4, 5])).state_dict()

    with pytest.raises(ModelFormatError, match=r"fold 0: The weights do not fit the network: .* unexpected"):
        fitted(other, plan, what="fold 0")


@pytest.mark.parametrize(
    ("scheme", "masked", "expected"),
    [
        ("CTNormalization", False, ClipAndStandardise(lower=-50, upper=120, mean=40, deviation=20)),
        ("ZScoreNormalization", False, ZScore(over="image")),
        ("ZScoreNormalization", True, ZScore(over="nonzero_filled")),
        ("NoNormalization", True, AsItIs()),
        ("RescaleTo01Normalization", False, ImageRange()),
        ("RGBTo01Normalization", False, FixedRange(source=(0, 255), target=(0, 1))),
    ],
)
def test_each_way_to_change_intensities_has_its_name_here(
    scheme: str, masked: object, expected: object
) -> None:
    told = nnunet_plans.Plans.model_validate(plans({}))
    found = nnunet_plans.Configuration.model_validate(
        configuration(normalization_schemes=[scheme], use_mask_for_norm=[masked])
    )

    made = nnunet_stage.normalisation(found, told.foreground_intensity_properties_per_channel)

    assert made == expected


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        ("resample_data_or_seg_to_shape", {}, Interpolation(order=3, separate="never", order_across=0)),
        (
            "resample_data_or_seg_to_shape",
            {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
            Interpolation(order=1, separate="auto", order_across=0),
        ),
        (
            "resample_data_or_seg_to_shape",
            {"order": 3, "order_z": 1, "force_separate_z": True, "separate_z_anisotropy_threshold": 3},
            Interpolation(order=3, separate="always", order_across=1),
        ),
        (
            "resample_torch_fornnunet",
            {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False},
            Interpolation(order=1, separate="never", order_across=0),
        ),
        ("resample_torch_fornnunet", {}, Interpolation(order=1, separate="auto", order_across=0)),
        ("no_resampling_hack", {}, None),
    ],
)
def test_each_way_to_resample_has_its_name_here(function: str, options: Json, expected: object) -> None:
    assert nnunet_stage.interpolation(function, options) == expected  # type: ignore[arg-type]


def read_labels(folder: Path, **changes: object) -> DataSet:
    folder.mkdir()
    set_up(folder, plans({}), data_set(**changes))
    return read_dataset(next(folder.glob("*/*")))


def test_outputs_stand_for_the_values_in_their_order_without_the_ignored_one(tmp_path: Path) -> None:
    labels = {"b": 5, "background": 0, "a": [2], "ignore": 6}

    found = read_labels(tmp_path / "one", labels=labels)

    assert (found.outputs, found.class_names, found.values) == (3, {1: "a", 2: "b"}, (2, 5))
    assert found.region_classes == ()


def test_regions_paint_their_class_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4}

    found = read_labels(tmp_path / "one", labels=labels, regions_class_order=[2, 1, 4])

    assert (found.outputs, found.region_classes, found.values) == (3, (2, 1, 3), (1, 2, 4))
    assert found.class_names == {2: "whole", 1: "core", 3: "enhancing"}


def test_the_best_configuration_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    for name in (FLAT, LOW, FULL):
        set_up(tmp_path, plans({}), data_set(), name=name)
    found = nnunet_folders.find(tmp_path)

    assert nnunet_folders.choose(found, None).configuration == FULL
    assert nnunet_folders.choose(found, FLAT).configuration == FLAT
    with pytest.raises(
        ModelFormatError, match="no configuration is called '3d' there; found: 2d, 3d_fullres"
    ):
        nnunet_folders.choose(found, "3d")


def test_two_models_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    for trainer in ("One", "Two"):
        set_up(tmp_path, plans({}), data_set(), trainer=trainer)

    with pytest.raises(ModelFormatError, match=r"there is more than one model: .*One__.*, .*Two__"):
        nnunet_folders.choose(nnunet_folders.find(tmp_path), None)


def test_all_numbered_folds_are_taken_unless_some_are_asked_for(tmp_path: Path) -> None:
    layers = {name: nn.Conv3d(1, 1, 1) for name in ("0", "2", "10", "all")}
    write_model(tmp_path, FULL, plans({}), data_set(), layers)
    (trained,) = nnunet_folders.find(tmp_path)

    def names(*wanted: str) -> list[str]:
        return [fold.name for fold in nnunet_folders.folds(trained, wanted, None)]

    assert names() == ["0", "2", "10"]
    assert names("all") == ["all"]
    with pytest.raises(ModelFormatError, match=r"no fold_1/checkpoint_final\.pth; found: fold_0, fold_10"):
        names("1")
    with pytest.raises(ModelFormatError, match=r"no fold_\*/checkpoint_best\.pth; found: none"):
        nnunet_folders.folds(trained, (), "best")


def test_a_folder_without_a_model_tells_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "plans.pkl").touch()
    (tmp_path / "other").mkdir()

    with pytest.raises(ModelFormatError, match="nnU-Net v1"):
        imported(tmp_path / "old", tmp_path / "out")
    with pytest.raises(ModelFormatError, match=r"looked for plans\.json, dataset\.json and fold_"):
        imported(tmp_path / "other", tmp_path / "out")
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ModelFormatError, match="holds weights alone"):
        imported(tmp_path / "weights.pth", tmp_path / "out")


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()

    with pytest.raises(InputError, match="is there already; give another folder with --out"):
        imported(tmp_path, tmp_path / "out")


def test_a_package_of_our_own_is_taken_over_under_another_name(
    tiny: package.ModelPackage, plan: Plan, tmp_path: Path
) -> None:
    made = imported(tiny.folder, tmp_path / "copy", name="renamed").package

    assert made.card.weights_sha256 == tiny.card.weights_sha256
    assert (made.card.name, made.card.segments) == ("renamed", tiny.card.segments)
    assert made.plan.stages == plan.stages


def test_two_packages_in_one_folder_are_not_guessed_between(
    tiny: package.ModelPackage, tmp_path: Path
) -> None:
    shutil.copytree(tiny.folder, tiny.folder.parent / "other")

    with pytest.raises(ModelFormatError, match="there is more than one model: other, tiny; give the folder"):
        imported(tiny.folder.parent, tmp_path / "out")


def test_a_real_model_is_imported(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir.parent / "models" / "nnunet" / "Dataset009_SpleenCT_3d_fullres_resencM_narrow.zip"
    if not source.is_file():
        pytest.skip(f"no real images: {source} is absent")

    found = import_model(
        source, tmp_path, options=ImportOptions(), progress=lambda *_: None, under_its_name=True
    )

    stage = found.package.plan.final
    assert found.package.folder == tmp_path / "spleen-ct"
    assert (found.package.plan.modalities, found.unknown) == (("CT",), ())
    assert stage.spacing_mm == (3.0, 1.4997559785842896, 1.499236822128296)
    assert (stage.patch_shape, stage.mirror_axes) == ((32, 128, 112), (0, 1, 2))
    assert found.package.card.segments[0].type.value == "78961009"
