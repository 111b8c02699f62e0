"""A MONAI Bundle becomes a package that computes the same, without running a line of the bundle."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from highdicom import Volume
from monai.bundle import ConfigParser
from safetensors.torch import save_file
from torch import nn

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.bundle_config import Component, Value
from dicomnode.ml.imports.bundle_transforms import are_regions, preparation
from dicomnode.ml.imports.foreign import ImportOptions
from dicomnode.ml.imports.importer import Imported, import_model
from dicomnode.ml.inference import engine
from dicomnode.ml.model import network, package
from dicomnode.ml.model.plan import FixedRange, ImageRange, Interpolation, ZScore

Json = dict[str, object]
UNET: Json = {
    "_target_": "UNet",
    "spatial_dims": "@dims",
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 8],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "batch",
}
PREPROCESSING: list[Json] = [
    {"_target_": "LoadImaged", "keys": "image", "image_only": True},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 200, "b_min": -1, "b_max": 1},
    {"_target_": "EnsureTyped", "keys": "@image_key"},
]


def config(**changes: object) -> Json:
    """A configuration of inference as bundles have it."""
    made: Json = {
        "imports": ["$import glob"],
        "image_key": "image",
        "dims": 3,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": UNET,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": PREPROCESSING},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [16, 12, 8],
            "sw_batch_size": 2,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            ],
        },
    }
    return made | changes


METADATA: Json = {
    "name": "Spleen CT segmentation",
    "version": "0.5.1",
    "monai_version": "1.4.0",
    "authors": "Somebody",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT", "num_channels": 1}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen", "2": "left kidney"}}},
    },
}


def random_network(described: Json) -> nn.Module:
    """Make the network as MONAI does from the configuration, with drawn weights."""
    parser = ConfigParser(described)
    made = parser.get_parsed_content("network_def")
    assert isinstance(made, nn.Module)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.05, 0.4)
    return made.eval()


def write_bundle(folder: Path, described: Json, net: nn.Module, *, metadata: Json = METADATA) -> Path:
    """Write a bundle with its weights as safetensors."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(described))
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(own, folder / "models" / "model.safetensors")
    return folder


def imported(source: Path, out: Path, **options: str) -> Imported:
    return import_model(source, out, options=ImportOptions(**options), progress=lambda *_: None)  # type: ignore[arg-type]


def test_a_bundle_segments_an_image_as_monai_does(tmp_path: Path) -> None:
    described = config()
    net = random_network(described)
    folder = write_bundle(tmp_path / "bundle", described, net)
    (folder / "models" / "model.safetensors").unlink()
    torch.save(net.state_dict(), folder / "models" / "model.pt")
    # Stored towards the left, the back and the head: each axis of another length.
    array = np.random.default_rng(1).integers(0, 200, (16, 12, 8)).astype(np.float32)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "image.nii.gz")
    volume_affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[:, [2, 1, 0, 3]]
    volume = Volume(array.transpose(2, 1, 0).copy(), volume_affine, coordinate_system="PATIENT")

    parser = ConfigParser(described)
    prepared = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "image.nii.gz")})["image"]
    with torch.inference_mode():
        seen = parser.get_parsed_content("inferer")(prepared[None], net)[0].argmax(0).numpy()
    expected = seen[::-1, ::-1].transpose(2, 1, 0)  # back to the stored axes, slice first
    made = imported(folder, tmp_path / "out").package
    labels = engine.predict(engine.load(made, device="cpu"), volume).array

    assert sorted(np.unique(expected)) == [0, 1, 2]
    assert np.array_equal(labels, expected)
    assert (made.plan.orientation, made.plan.final.patch_shape) == ("RAH", (16, 12, 8))


NETWORKS: dict[str, tuple[Json, tuple[int, int, int]]] = {
    "UNet": (UNET, (4, 4, 4)),
    "SegResNet": (
        {"_target_": "monai.networks.nets.SegResNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2}
        | {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "dropout_prob": 0.2},
        (2, 2, 2),
    ),
    "DynUNet": (
        {"_target_": "monai.networks.nets.dynunet.DynUNet", "spatial_dims": 3, "in_channels": 1}
        | {"out_channels": 2, "kernel_size": [3, 3, 3], "strides": [1, [2, 2, 1], 2], "filters": [4, 8, 8]}
        | {"upsample_kernel_size": [[2, 2, 1], 2], "norm_name": "instance"},
        (4, 4, 2),
    ),
    "BasicUNet": (
        {
            "_target_": "BasicUNet",
            "in_channels": 1,
            "out_channels": 2,
            "features": [4, 4, 8, 8, 8, 4],
            "norm": "batch",
        },
        (16, 16, 16),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_of_monai_gives_the_scores_that_it_gives_there(name: str, tmp_path: Path) -> None:
    described, divisors = NETWORKS[name]
    whole = config(network_def=described)
    whole["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]}
    net = random_network(whole)
    folder = write_bundle(tmp_path / "bundle", whole, net)
    (folder / "configs" / "inference.json").unlink()
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(whole))

    found = imported(folder, tmp_path / "out")

    made = found.package
    ((built,),) = network.build_all(made.plan, package.read_weights(made))
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(built.eval()(image), net(image))
    assert made.plan.final.network.divisors == divisors
    assert made.plan.final.overlap == 0.25
    assert any("weighs all of a window alike" in note for note in found.notes)


def test_the_description_of_a_bundle_becomes_plan_labels_and_card(tmp_path: Path) -> None:
    described = config()
    folder = write_bundle(tmp_path / "bundle", described, random_network(described))
    (folder / "LICENSE").write_text("\n  Apache License\n  Version 2.0\n")

    made = imported(folder, tmp_path / "models" / "x").package

    assert (made.plan.name, made.plan.modalities) == ("spleen-ct-segmentation", ("CT",))
    assert [segment.label for segment in made.card.segments] == ["Spleen", "Kidney left"]
    assert made.plan.final.normalisation == FixedRange(source=(0, 200), target=(-1, 1), clip=False)
    card = (made.folder / "card.md").read_text()
    assert "- Bundle: Spleen CT segmentation 0.5.1\n" in card
    assert "- Licence of the bundle: Apache License\n" in card


def changed(*, at: int, to: Json) -> Json:
    transforms = [*PREPROCESSING[:at], to, *PREPROCESSING[at:]]
    return config(preprocessing={"_target_": "Compose", "transforms": transforms})


REFUSED: dict[str, tuple[Json, str]] = {
    "a network of its own": (
        config(network_def=UNET | {"_target_": "scripts.networks.UNet"}),
        r"network of the bundle is scripts\.networks\.UNet; known are MONAI's BasicUNet",
    ),
    "a function": (
        config(network_def=UNET | {"_target_": "os.system"}),
        r"network of the bundle is os\.system",
    ),
    "computed channels": (
        config(network_def=UNET | {"out_channels": "$len(@labels) + 1"}),
        r"out_channels of UNet is computed by the bundle \('\$len\(@labels\) \+ 1'\), and its code is not",
    ),
    "no network": (config(network_def="$MyNet()"), "describes no network"),
    "four channels": (config(network_def=UNET | {"in_channels": 4}), "sees 4 channels in 3 dimensions"),
    "two dimensions": (config(dims=2), "sees 1 channels in 2 dimensions"),
    "arguments that it does not take": (
        config(network_def=UNET | {"depth": 5}),
        "arguments of UNet .* do not fit",
    ),
    "an unknown transform": (
        changed(at=4, to={"_target_": "scripts.MyTransformd", "keys": "image"}),
        r"prepares its images with scripts\.MyTransformd, which is not known here",
    ),
    "a fixed size": (changed(at=4, to={"_target_": "Resized", "spatial_size": [96, 96, 96]}), "Resized"),
    "computed transforms": (
        config(preprocessing={"_target_": "Compose", "transforms": "$@first + @second"}),
        r"preprocessing of the bundle is '\$@first \+ @second'; a list of transforms is expected",
    ),
    "the whole image at once": (
        config(inferer={"_target_": "SimpleInferer"}),
        "with SimpleInferer; known is the",
    ),
    "a circle": (config(dims="@dims"), "refers to itself"),
    "a reference to nothing": (config(image_key="@absent"), "refers to 'absent', not there"),
    "another result": (
        config(postprocessing=[{"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}]),
        "changes its result with KeepLargestConnectedComponentd",
    ),
    "a window that its network cannot take": (
        config(inferer={"_target_": "SlidingWindowInferer", "roi_size": 10}),
        "not divisible by",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_known_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    described, reason = REFUSED[fault]
    folder = write_bundle(tmp_path / "bundle", described, random_network(config()))

    with pytest.raises(ModelFormatError, match=reason):
        imported(folder, tmp_path / "out")


def test_a_line_of_python_is_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    call = f"$open({str(canary)!r}, 'w').close()"
    described = config(imports=[call], initialize=[call], bundle_root=call, network=call)
    folder = write_bundle(tmp_path / "bundle", described, random_network(config()))

    imported(folder, tmp_path / "out")

    assert not canary.exists()


def test_weights_that_are_not_there_or_of_another_network_are_told(tmp_path: Path) -> None:
    other = random_network(config(network_def=UNET | {"channels": [4, 8, 9]}))
    folder = write_bundle(tmp_path / "bundle", config(), other)

    with pytest.raises(ModelFormatError, match="the weights of bundle: The weights do not fit the network"):
        imported(folder, tmp_path / "out")
    (folder / "models" / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"has no models/model\.pt .* download_large_files"):
        imported(folder, tmp_path / "out")


def step(name: str, **arguments: Value) -> Component:
    return Component(name=name, arguments=arguments)


def test_spacing_and_intensities_are_taken_from_the_transforms() -> None:
    found = preparation(
        [
            step("Orientationd", axcodes="LPS"),
            step("Spacingd", pixdim=[1.5, -1, 2], mode=["bilinear", "nearest"]),
            step("CropForegroundd", source_key="image"),
            step("NormalizeIntensityd", nonzero=True, channel_wise=True),
        ]
    )

    assert (found.orientation, found.spacing_mm) == ("LPH", (1.5, None, 2))
    assert (found.interpolation, found.normalisation) == (Interpolation(order=1), ZScore(over="nonzero"))
    assert found.crop_to_nonzero
    assert len(found.notes) == 2  # what is cropped, and that intensities come before the resampling here


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (step("NormalizeIntensity"), ZScore(over="image")),
        (step("NormalizeIntensityd", subtrahend=100, divisor=25), FixedRange(source=(100, 125))),
        (step("ScaleIntensityd"), ImageRange()),
        (step("ScaleIntensityd", minv=0, maxv=1), ImageRange()),
        (
            step("ScaleIntensityRanged", a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
            FixedRange(source=(-57, 164), clip=True),
        ),
    ],
)
def test_each_way_to_change_intensities_has_its_name_here(transform: Component, expected: object) -> None:
    assert preparation([transform]).normalisation == expected


@pytest.mark.parametrize(
    ("transforms", "reason"),
    [
        ([step("ScaleIntensityd", minv=-1, maxv=1)], "known is 0 to 1"),
        (
            [step("ScaleIntensityd"), step("NormalizeIntensityd")],
            "twice, the second time with NormalizeIntensityd",
        ),
        ([step("Spacingd", pixdim=[1, 1, 1]), step("Orientationd", axcodes="RAS")], "before it turns them"),
        ([step("Orientationd", axcodes="XYZ")], "letters such as RAS"),
        ([step("Spacingd", pixdim=[1, 1])], "pixdim of Spacingd is wrong"),
        ([step("Spacingd", pixdim=1, mode="bicubic")], "resamples its images with 'bicubic'"),
        ([step("CropForegroundd", margin=5)], "has a margin"),
        ([step("ScaleIntensityRanged", a_min=1, a_max=1, b_min=0, b_max=1)], "lower to a higher"),
    ],
)
def test_a_transform_with_an_unknown_option_is_refused(transforms: list[Component], reason: str) -> None:
    with pytest.raises(ModelFormatError, match=reason):
        preparation(transforms)


@pytest.mark.parametrize(
    ("transforms", "outputs", "expected"),
    [
        ([step("Activationsd", sigmoid=True), step("AsDiscreted", threshold=0.5)], 2, True),
        ([step("Activationsd", softmax=True), step("AsDiscreted", argmax=True)], 2, False),
        ([step("AsDiscreted", argmax=[True, False])], 2, False),
        ([], 2, False),
        ([], 1, True),
    ],
)
def test_outputs_are_regions_where_each_is_cut_for_itself(
    transforms: list[Component], outputs: int, expected: object
) -> None:
    assert are_regions(transforms, outputs=outputs) is expected


@pytest.mark.parametrize(
    ("told", "expected", "order"),
    [
        ("", "RAH", (0, 1, 2)),
        ("HPL", "LPH", (0, 1, 2)),
        ("acquired", "acquired", (2, 1, 0)),
    ],
)
def test_images_that_the_bundle_does_not_turn_are_taken_as_told(
    told: str, expected: str, order: tuple[int, int, int], tmp_path: Path
) -> None:
    transforms = [one for one in PREPROCESSING if one["_target_"] != "Orientationd"]
    described = config(preprocessing=transforms)
    folder = write_bundle(tmp_path / "bundle", described, random_network(config()))

    found = imported(folder, tmp_path / "out", **({"orientation": told} if told else {}))

    assert (found.package.plan.orientation, found.package.plan.axis_order) == (expected, order)
    assert any("does not turn its images" in note for note in found.notes) is not bool(told)
