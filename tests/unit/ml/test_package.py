"""A model package is read whole or refused with the reason."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicomnode import weights
from dicomnode.domain import Segment
from dicomnode.errors import ModelFormatError
from dicomnode.ml.inference import engine
from dicomnode.ml.model import network, package
from dicomnode.ml.model import plan as plans
from dicomnode.ml.model.architecture import DynUNetPlan, MonaiPlan
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.model.plan import Plan, PlanFile


def test_a_package_comes_back_as_it_was_written(
    tiny: ModelPackage, plan: Plan, segments: tuple[Segment, ...]
) -> None:
    found = package.read(tiny.folder)

    assert found.plan == plan
    assert found.card.segments == segments
    assert found.card.weights_sha256 == weights.sha256_of(found.weights_path)
    assert found.card.version == f"tiny@{found.card.weights_sha256[:12]}"
    assert sorted(path.name for path in tiny.folder.iterdir()) == sorted(package.FILES)


def test_the_files_are_readable_text(tiny: ModelPackage) -> None:
    assert '"spacing_mm": [1.0, 1.0, 1.0],\n' in (tiny.folder / "plan.json").read_text()
    labels = (tiny.folder / "labels.toml").read_text()
    assert labels.startswith("# The labels of this model.")
    assert 'category = { value = "123037004", scheme = "SCT", meaning = "Anatomical Structure" }' in labels


@pytest.mark.parametrize("name", package.FILES)
def test_a_missing_file_is_named(name: str, tiny: ModelPackage) -> None:
    (tiny.folder / name).unlink()

    with pytest.raises(ModelFormatError, match=name):
        package.read(tiny.folder)


FAULTS = {
    "plan no JSON": ("plan.json", "{", "(", "plan of the model is wrong"),
    "plan with an unknown key": ("plan.json", '"overlap"', '"overlapp": 1, "overlap"', "overlapp"),
    "plan without a key": ("plan.json", '"patch_shape": [8, 8, 8],', "", "patch_shape"),
    "plan of another format": ("plan.json", '"format_version": 2', '"format_version": 1', "format_version"),
    "plan with a negative spacing": ("plan.json", "[1.0, 1.0, 1.0]", "[-1, 1, 1]", "spacing"),
    "plan with NaN": ("plan.json", "[1.0, 1.0, 1.0]", "[NaN, 1, 1]", "spacing"),
    "plan with a path as name": ("plan.json", '"tiny"', '"../tiny"', "plan.name"),
    "plan with one axis twice": ("plan.json", '"HPL"', '"HFL"', "orientation"),
    "patch that strides do not divide": ("plan.json", "[8, 8, 8]", "[8, 8, 9]", "divisible"),
    "another network": ("plan.json", '"dynunet"', '"os.system"', "stages.0.network"),
    "more classes than labels": ("plan.json", '"classes": 3', '"classes": 4', "2 segments"),
    "other filters than weights": ("plan.json", "[4, 8, 8]", "[4, 8, 4]", "do not fit"),
    "other levels": ("plan.json", "[4, 8, 8]", "[4, 8]", "3 to 8 levels"),
    "other digest": ("plan.json", "[0-9a-f]{64}", "0" * 64, "SHA-256"),
    "labels no TOML": ("labels.toml", "[[segments]]", "[[segments", "no TOML"),
    "labels with an unknown key": ("labels.toml", "rgb =", 'colour = "red"\nrgb =', "colour"),
    "labels of another format": ("labels.toml", "format = 1", "format = 2", "format"),
    "code without scheme": ("labels.toml", 'scheme = "SCT", ', "", "category.scheme"),
    "class left out": ("labels.toml", "class_index = 2", "class_index = 3", "class indices"),
    "segment number twice": ("labels.toml", "segment_number = 2", "segment_number = 1", "segment numbers"),
    "label twice": ("labels.toml", '"Back .*"\n', '"FRONT"\n', "same label"),
    "label not ASCII": ("labels.toml", '"Front"', '"Fr\u00f6nt"', "label"),
    "label too long": ("labels.toml", '"Front"', f'"{"x" * 65}"', "label"),
    "label with outer blanks": ("labels.toml", '"Front"', '" Front"', "blank"),
    "colour out of range": ("labels.toml", "230", "256", "rgb"),
}
PATTERNS = ("other digest", "label twice")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_with_the_reason(fault: str, tiny: ModelPackage) -> None:
    name, old, new, reason = FAULTS[fault]
    path = tiny.folder / name
    before = path.read_text()
    after = re.sub(old if fault in PATTERNS else re.escape(old), lambda _: new, before)
    path.write_text(after, encoding="utf-8")

    assert after != before
    with pytest.raises(ModelFormatError, match=reason):
        package.read(tiny.folder)


def test_exchanged_weights_are_noticed(tiny: ModelPackage) -> None:
    tensors = weights.read(tiny.weights_path)
    weights.write(tiny.weights_path, {name: tensor + 1 for name, tensor in tensors.items()})

    with pytest.raises(ModelFormatError, match="do not belong together"):
        package.read(tiny.folder)


def test_weights_that_do_not_fit_the_plan_cannot_be_written(
    tiny: ModelPackage, plan: Plan, segments: tuple[Segment, ...], tmp_path: Path
) -> None:
    tensors = weights.read(tiny.weights_path)
    tensors.popitem()

    with pytest.raises(ModelFormatError, match="1 lacking"):
        package.write(tmp_path / "other", plan, segments, tensors, "# card\n")


def test_weights_that_are_not_finite_cannot_be_loaded(
    tiny: ModelPackage, plan: Plan, segments: tuple[Segment, ...], tmp_path: Path
) -> None:
    tensors = weights.read(tiny.weights_path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    broken = package.write(tmp_path / "broken", plan, segments, tensors, "# card\n")

    with pytest.raises(ModelFormatError, match="NaN or infinite"):
        engine.load(broken, device="cpu")


def test_each_tensor_is_stored_once_and_goes_back_into_the_network(plan: Plan) -> None:
    torch.manual_seed(3)
    source = network.build(plan.final.network)
    tensors = network.tensors_of(source)
    target = network.build(plan.final.network)
    image = torch.randn(1, 1, 8, 8, 8)

    network.load(target, tensors)

    assert len(tensors) == len(list(source.parameters()))
    assert torch.equal(source(image), target(image))
    assert source(image).shape == (1, 3, 8, 8, 8)
    assert network.schema(plan.final.network) == weights.schema_of(tensors)


def test_the_architecture_digest_covers_what_names_and_shapes_do_not_show(plan: Plan) -> None:
    stage = plan.final
    flat = replace(stage.network, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))

    digest = plans.architecture_sha256(plan)

    assert digest == plans.architecture_sha256(
        replace(plan, name="other", stages=(replace(stage, overlap=0.25),))
    )
    assert digest != plans.architecture_sha256(replace(plan, stages=(replace(stage, network=flat),)))
    assert digest != plans.architecture_sha256(
        replace(plan, stages=(replace(stage, spacing_mm=(2.0, 1.0, 1.0)),))
    )


@given(
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    overlap=st.floats(0, 0.9),
    filters=st.lists(st.integers(1, 64), min_size=3, max_size=5),
    mirror=st.sets(st.integers(0, 2)),
)
def test_every_plan_comes_back_from_its_file(
    plan: Plan,
    spacing: tuple[float, float, float],
    overlap: float,
    filters: list[int],
    mirror: set[int],
) -> None:
    steps = ((1, 1, 1),) + ((2, 1, 2),) * (len(filters) - 1)
    wide = DynUNetPlan(classes=3, filters=tuple(filters), kernels=((3, 1, 3),) * len(filters), strides=steps)
    stage = replace(
        plan.final,
        spacing_mm=spacing,
        overlap=overlap,
        network=wide,
        patch_shape=(16, 16, 16),
        mirror_axes=tuple(sorted(mirror)),
    )

    file = PlanFile(weights_sha256="0" * 64, plan=replace(plan, stages=(stage,)))

    assert plans.parse(plans.render(file)) == file


def test_a_package_of_several_networks_holds_all_of_them_or_is_refused(
    plan: Plan, segments: tuple[Segment, ...], tmp_path: Path
) -> None:
    several = replace(plan, stages=(replace(plan.final, members=2),))
    own = network.tensors_of(network.build(plan.final.network))
    tensors = {f"stage0.member{index}.{name}": t + index for index in range(2) for name, t in own.items()}

    made = package.write(tmp_path / "both", several, segments, tensors, "# both\n")

    assert made.plan.networks == 2
    assert weights.is_equal(package.read_weights(made), tensors)
    tensors.popitem()
    with pytest.raises(ModelFormatError, match=r"1 lacking \[\('stage0\.member1\."):
        package.write(tmp_path / "one", several, segments, tensors, "# one\n")


def test_a_model_of_regions_has_a_label_for_each_class_that_they_paint(
    plan: Plan, segments: tuple[Segment, ...], tmp_path: Path
) -> None:
    regions = replace(plan, region_classes=(1, 2, 2))  # three outputs, of which two paint the second class
    tensors = network.tensors_of(network.build(plan.final.network))

    assert package.write(tmp_path / "two", regions, segments, tensors, "# two\n").plan.classes == 3
    with pytest.raises(ModelFormatError, match=r"names 1 segments; the model of plan\.json has 3 classes"):
        package.write(tmp_path / "one", regions, segments[:1], tensors, "# one\n")


def test_a_network_that_cannot_be_built_without_content_has_a_schema_too() -> None:
    plan = MonaiPlan(
        network="SwinUNETR",
        classes=2,
        divisors=(32, 32, 32),
        arguments={"feature_size": 12, "depths": [1, 1, 1, 1]},
    )

    found = network.schema(plan)

    assert found == weights.schema_of(network.tensors_of(network.build(plan)))
