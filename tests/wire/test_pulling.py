"""``dicomnode models pull``: a model from the web stands beside the others, once somebody vouched for it."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from dicomnode.cli.models import app
from dicomnode.domain import Sha256
from dicomnode.errors import InputError, ModelFormatError
from dicomnode.ml.model import network, package
from dicomnode.ml.model.architecture import UNetPlan
from dicomnode.ml.model.package import ModelPackage
from tests.pipeline_builders import MODEL, tiny_weights, write_tiny
from tests.wire.file_server import FileServer, Reply


def torch_class(name: str) -> str:
    return f"torch.nn.modules.{name}"


NNUNET_PLANS = {
    "dataset_name": "Dataset007_Belly",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "3d_fullres": {
            "spacing": [1.0, 1.0, 1.0],
            "patch_size": [8, 8, 8],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 2,
                    "features_per_stage": [2, 4],
                    "conv_op": torch_class("conv.Conv3d"),
                    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
                    "strides": [[1, 1, 1], [2, 2, 2]],
                    "n_conv_per_stage": [1, 1],
                    "n_conv_per_stage_decoder": [1],
                    "conv_bias": True,
                    "norm_op": torch_class("instancenorm.InstanceNorm3d"),
                    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        }
    },
}
NNUNET_NETWORK = UNetPlan(
    kind="plain_conv_unet",
    classes=3,
    features=(2, 4),
    kernels=((3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2)),
    encoder_depths=(1, 1),
    decoder_depths=(1,),
)


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    with FileServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(https: FileServer) -> FileServer:
    https.files.clear()
    https.script.clear()
    https.asked.clear()
    return https


@pytest.fixture
def published(server: FileServer, tmp_path: Path) -> Sha256:
    """A package on the server, in one folder of a zip."""
    made = write_tiny(tmp_path / "elsewhere" / "tiny")
    return publish(server, zipped(made.folder, prefix="tiny-1.0/"))


@pytest.fixture
def pull(server: FileServer, tmp_path: Path) -> Callable[..., Result]:
    """Run the command at a site whose packages are in ``packages``."""
    config = tmp_path / "node.toml"
    config.write_text(
        f'[node]\ndata_dir = {json.dumps(str(tmp_path / "data"))}\n[models]\nfolder = "packages"\n'
    )

    def run(*words: str, url: str = f"{server.url}/model.zip") -> Result:
        trusted = ("--ca-file", str(server.ca_file), "--config", str(config))
        return CliRunner().invoke(app, ["pull", url, *words, *trusted])

    return run


def zipped(folder: Path, *, prefix: str = "") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as opened:
        for one in sorted(folder.rglob("*")):
            opened.write(one, prefix + str(one.relative_to(folder)))
    return content.getvalue()


def publish(server: FileServer, content: bytes) -> Sha256:
    server.publish("/model.zip", content)
    return Sha256(hashlib.sha256(content).hexdigest())


def write_nnunet(folder: Path) -> None:
    """Write a model as nnU-Net exports it, untrained and tiny."""
    inside = folder / "Dataset007_Belly" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (inside / "fold_0").mkdir(parents=True)
    labels = {"background": 0, "kidney_left": 1, "gizmo": 2}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (inside / "dataset.json").write_text(json.dumps(about))
    (inside / "plans.json").write_text(json.dumps(NNUNET_PLANS))
    checkpoint = {
        "network_weights": network.tensors_of(network.build(NNUNET_NETWORK)),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, inside / "fold_0" / "checkpoint_final.pth")


def files_in(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


def assert_nothing_new(tmp_path: Path) -> None:
    assert not list((tmp_path / "packages").glob("*"))
    assert not [one for one in (tmp_path / "data" / "downloads").iterdir() if one.is_dir()]


def test_a_package_is_put_beside_the_others_under_its_name(pull, published, tmp_path):
    done = pull("--sha256", published)

    assert done.exit_code == 0, done.output
    assert "is ready" in done.stdout
    assert files_in(tmp_path / "packages" / MODEL) == files_in(tmp_path / "elsewhere" / "tiny")
    assert sorted(one.suffix for one in (tmp_path / "data" / "downloads").iterdir()) == ["", ".json"]


def test_without_a_digest_the_file_is_fetched_and_not_opened(pull, published, server, tmp_path):
    done = pull()

    assert done.exit_code == 1
    assert published in done.stdout
    assert_nothing_new(tmp_path)

    again = pull("--sha256", f"SHA256:{published.upper()}")

    assert again.exit_code == 0, again.output
    assert len(server.asked) == 1  # what was fetched is used
    assert package.read(tmp_path / "packages" / MODEL)


def test_a_second_pull_of_the_same_archive_does_nothing(pull, published, server):
    pull("--sha256", published)
    server.asked.clear()

    done = pull("--sha256", published, "--json")

    told = json.loads(done.stdout)
    assert (told["sha256"], told["was_there"], told["fetched_bytes"]) == (published, True, 0)
    assert server.asked == []


def test_a_package_that_was_damaged_since_is_fetched_again(pull, published, server, tmp_path):
    pull("--sha256", published)
    folder = tmp_path / "packages" / MODEL
    for one in folder.iterdir():
        one.unlink()
    server.asked.clear()

    assert pull("--sha256", published).exit_code == 0
    assert len(server.asked) == 1
    assert package.read(folder)


def test_a_cut_line_is_gone_on_with(pull, published, server, tmp_path):
    server.script = [Reply(cut_after=len(server.files["/model.zip"]) // 2)]

    assert pull("--sha256", published).exit_code == 0
    assert package.read(tmp_path / "packages" / MODEL)


def test_another_folder_can_be_named(pull, published, tmp_path):
    done = pull("--sha256", published, "--out", str(tmp_path / "mine" / "model"))

    assert done.exit_code == 0, done.output
    assert package.read(tmp_path / "mine" / "model").plan.name == MODEL
    assert not (tmp_path / "packages").exists()


def test_another_version_in_the_folder_is_left_alone(pull, published, tmp_path):
    standing = write_tiny(tmp_path / "packages" / MODEL, tensors=tiny_weights(seed=2))

    done = pull("--sha256", published)

    assert isinstance(done.exception, InputError)
    assert f"holds {standing.card.version}" in str(done.exception)
    assert package.read(standing.folder).card == standing.card


def test_the_same_version_in_the_folder_is_enough(pull, published, tmp_path):
    standing: ModelPackage = write_tiny(tmp_path / "packages" / MODEL)
    labels = standing.folder / package.LABELS_FILE
    labels.write_text(labels.read_text() + "# read by me\n")

    assert pull("--sha256", published).exit_code == 0
    assert labels.read_text().endswith("# read by me\n")


def test_a_file_with_another_digest_changes_nothing(pull, published, tmp_path):
    done = pull("--sha256", "0" * 64)

    assert isinstance(done.exception, InputError)
    assert published in str(done.exception)
    assert_nothing_new(tmp_path)


@pytest.mark.parametrize("digest", ["", "abc", "z" * 64, "0" * 65])
def test_a_digest_that_is_none_is_refused_before_anything_is_fetched(digest: str, pull, published, server):
    done = pull("--sha256", digest)

    assert done.exit_code == 2
    assert "64 hexadecimal digits" in done.output
    assert server.asked == []


def test_a_package_that_contradicts_itself_is_refused(pull, server, tmp_path):
    made = write_tiny(tmp_path / "elsewhere" / "tiny")
    made.weights_path.write_bytes(made.weights_path.read_bytes()[:-1] + b"\7")

    done = pull("--sha256", publish(server, zipped(made.folder)))

    assert isinstance(done.exception, ModelFormatError)
    assert_nothing_new(tmp_path)


def test_an_archive_that_reaches_out_of_its_folder_is_refused(pull, server, tmp_path):
    made = write_tiny(tmp_path / "elsewhere" / "tiny")

    done = pull("--sha256", publish(server, zipped(made.folder, prefix="../../")))

    assert isinstance(done.exception, ModelFormatError)
    assert "its name leads out" in str(done.exception)
    assert_nothing_new(tmp_path)


def test_an_archive_without_a_model_is_refused(pull, server, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "readme.md").write_text("no model")

    done = pull("--sha256", publish(server, zipped(tmp_path / "elsewhere")))

    assert isinstance(done.exception, ModelFormatError)
    assert "holds no model that is known here" in str(done.exception)
    assert_nothing_new(tmp_path)


def test_a_model_of_nnunet_is_imported_and_what_is_left_to_do_is_told(pull, server, tmp_path):
    pytest.importorskip("dynamic_network_architectures", reason="the extra nnunet is not installed")
    write_nnunet(tmp_path / "elsewhere")
    digest = publish(server, zipped(tmp_path / "elsewhere"))

    done = pull("--sha256", digest)

    assert done.exit_code == 0, done.output
    made = package.read(tmp_path / "packages" / "belly")
    assert [one.label for one in made.card.segments] == ["Kidney left", "Gizmo"]
    assert "# TO COMPLETE: no code is known for 'gizmo'" in (made.folder / "labels.toml").read_text()
    assert "1 of 2 labels have no code" in done.stdout
    assert (tmp_path / "data" / "downloads" / f"{digest}.zip").is_file()  # to import it otherwise
    assert json.loads(pull("--sha256", digest, "--json").stdout)["was_there"] is True
