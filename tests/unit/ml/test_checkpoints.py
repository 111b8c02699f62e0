"""A checkpoint gives tensors and a few facts, whatever else is in it, and runs nothing."""

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dicomnode import weights
from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports import checkpoint
from dicomnode.ml.imports.checkpoint import FACTS_FILE, WEIGHTS_FILE, Checkpoint, Facts, Limits

MIB = 1024**2


class Call:
    """Pickles as a call of a function, which is how a pickle runs code."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def nnunet_content() -> dict[str, object]:
    """What nnU-Net saves, but for sizes."""
    layer = nn.Sequential(nn.Conv3d(1, 2, 1))
    return {
        "network_weights": layer.state_dict(),
        "optimizer_state": {"momentum": torch.ones(3)},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5)], "lrs": [0.01], "curve": np.arange(3)},
        "_best_ema": np.float64(0.25),
        "current_epoch": 13,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2),
    }


def saved(content: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def converted(path: Path, folder: Path) -> Checkpoint:
    """Do what the child does, in this process."""
    folder.mkdir(exist_ok=True)
    checkpoint.convert(path, folder)
    facts = Facts(**{"mirror_axes": None} | json.loads((folder / FACTS_FILE).read_text()))
    return Checkpoint(facts=facts, tensors=weights.read(folder / WEIGHTS_FILE))


def with_other_pickle(path: Path, change: Callable[[bytes], bytes], *, compress: bool = False) -> Path:
    """Replace the pickle inside a checkpoint."""
    changed = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            is_pickle = info.filename.endswith("data.pkl")
            method = zipfile.ZIP_DEFLATED if compress and is_pickle else zipfile.ZIP_STORED
            new.writestr(info.filename, change(data) if is_pickle else data, method)
    return changed


def test_the_child_gives_the_weights_and_the_facts_of_a_training(tmp_path: Path) -> None:
    content = nnunet_content()
    path = saved(content, tmp_path / "checkpoint_final.pth")
    (tmp_path / "out").mkdir()

    read = checkpoint.read(path, tmp_path / "out")

    assert read.facts == Facts(
        trainer="nnUNetTrainer", configuration="3d_fullres", mirror_axes=(0, 2), epoch=13
    )
    assert weights.is_equal(read.tensors, content["network_weights"])


def test_what_a_hostile_checkpoint_asks_for_is_not_done(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved(nnunet_content() | {"logging": Call(os.system, f"touch {canary}")}, tmp_path / "bad.pth")
    (tmp_path / "out").mkdir()

    with pytest.raises(ModelFormatError, match=r"bad\.pth names 'posix\.system', which no weights need"):
        checkpoint.read(path, tmp_path / "out")

    assert not canary.exists()
    torch.load(path, weights_only=False)  # the file would have done it
    assert canary.exists()


def test_a_small_file_that_unpacks_to_much_more_is_stopped(tmp_path: Path) -> None:
    plain = saved({"a": torch.ones(1)}, tmp_path / "plain.pt")
    bomb = with_other_pickle(plain, lambda _: bytes(200 * MIB), compress=True)
    (tmp_path / "out").mkdir()

    with pytest.raises(ModelFormatError, match="takes more than 64 MiB of memory to read, far more than"):
        checkpoint.read(bomb, tmp_path / "out", limits=Limits(spare_bytes=64 * MIB))


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(1)}, tmp_path / "slow.pt")

    with pytest.raises(ModelFormatError, match=r"slow\.pt was not read after 0 seconds"):
        checkpoint.read(path, tmp_path, limits=Limits(seconds=0.01))


def test_the_child_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMNODE_DATABASE_PASSWORD", "secret")

    seen = checkpoint.environment()

    assert "secret" not in seen.values()
    assert set(seen) <= {
        "PATH",
        "LANG",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "SYSTEMROOT",
    }


CALLS = {
    "eval": Call(eval, "1 + 1"),
    "getattr": Call(getattr, "text", "upper"),
    "open": Call(open, "/dev/null"),
    "numpy": Call(np.load, "/dev/null", None, True),
    "object": Path("/tmp"),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_but_plain_values_can_be_named(name: str, tmp_path: Path) -> None:
    for legacy in (False, True):
        path = saved({"a": torch.ones(1), "b": CALLS[name]}, tmp_path / "bad.pt", legacy=legacy)

        with pytest.raises(ModelFormatError, match="which no weights need"):
            checkpoint.convert(path, tmp_path)


def test_numbers_that_numpy_1_and_2_wrote_are_read_without_numpy(tmp_path: Path) -> None:
    path = saved(nnunet_content(), tmp_path / "two.pth")
    older = with_other_pickle(path, lambda data: data.replace(b"numpy._core.", b"numpy.core."))

    assert older.read_bytes() != path.read_bytes()
    for one in (path, older):
        assert converted(one, tmp_path / one.name[:3]).facts.epoch == 13


def test_the_older_format_of_torch_is_read_too(tmp_path: Path) -> None:
    path = saved(nnunet_content(), tmp_path / "old.pth", legacy=True)

    assert converted(path, tmp_path / "out").facts.trainer == "nnUNetTrainer"


def test_a_tensor_under_several_names_is_kept_under_its_first(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    content = {
        "module.conv.weight": weight,
        "module.all.0.weight": weight,
        "_orig_mod.module.bias": weight[1],
    }

    tensors = converted(saved(content, tmp_path / "w.pt"), tmp_path / "out").tensors

    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "conv.weight": [[0, 1, 2], [3, 4, 5]],
        "bias": [3, 4, 5],
    }


@pytest.mark.parametrize("holder", ["state_dict", "model", "network_weights"])
def test_weights_are_found_under_the_usual_names(holder: str, tmp_path: Path) -> None:
    path = saved({holder: {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "w.pt")

    assert converted(path, tmp_path / "out").tensors["a"].tolist() == [1, 1]


def program(path: Path) -> None:
    with warnings.catch_warnings():  # this way of making one is on its way out
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.ReLU()).save(str(path))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "no checkpoint of torch"),
    "a text": (lambda path: path.write_text("weights"), "no checkpoint of torch"),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "no checkpoint of torch"),
    "cut": (
        lambda path: path.write_bytes(saved({"a": torch.ones(999)}, path).read_bytes()[:2000]),
        "no checkpoint of torch",
    ),
    "a zip of something else": (lambda path: zipfile.ZipFile(path, "w").close(), "no checkpoint of torch"),
    "a program": (program, "TorchScript"),
    "no tensors": (lambda path: saved({"a": 1}, path), "no table of weights"),
    "a list": (lambda path: saved([torch.ones(1)], path), "no table of weights"),
    "one number as many": (
        lambda path: saved({"a": torch.ones(1).expand(10**6, 10**6)}, path),
        "larger than the file",
    ),
    "sparse": (lambda path: saved({"a": torch.eye(2).to_sparse()}, path), "no plain tensor"),
    "on no device": (lambda path: saved({"a": torch.ones(2, device="meta")}, path), "no plain tensor"),
    "complex": (lambda path: saved({"a": torch.ones(2, dtype=torch.complex64)}, path), "complex64"),
    "axes out of range": (
        lambda path: saved(nnunet_content() | {"inference_allowed_mirroring_axes": (7,)}, path),
        "nonsense",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_without_usable_weights_is_refused_with_the_reason(fault: str, tmp_path: Path) -> None:
    make, reason = FAULTS[fault]
    path = tmp_path / "bad.pt"
    make(path)

    with pytest.raises(ModelFormatError, match=reason):
        checkpoint.convert(path, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"absent\.pt is not there"):
        checkpoint.read(tmp_path / "absent.pt", tmp_path)
