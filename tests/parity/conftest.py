"""nnU-Net itself as the peer of the segmentation engine, for `make parity`; `make test` leaves it out.

DICOMNODE_NNUNET names a Python interpreter that has nnunetv2 2.8.1. The first run trains small models with it
for some minutes, in DICOMNODE_PARITY_MODELS where that names a folder, which keeps them for the next run.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import DATA, NO_DATA
from tests.parity.made_models import NnunetModel, read_reference, train

HERE = Path(__file__).resolve().parent
NNUNET = "2.8.1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect these tests only where the command line names them: they take minutes."""
    named = [Path(config.invocation_params.dir, str(arg).split("::")[0]).resolve() for arg in config.args]
    is_named = any(path == HERE or HERE in path.parents for path in named)
    return None if is_named else True


@pytest.fixture(scope="session")
def nnunet_python() -> Path:
    """The interpreter that has nnU-Net."""
    python = os.environ.get("DICOMNODE_NNUNET", "")
    if not python:
        pytest.skip(f"no nnunetv2 {NNUNET}; set DICOMNODE_NNUNET to a Python interpreter that has it")
    ask = "from importlib.metadata import version; print(version('nnunetv2'))"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == NNUNET, f"DICOMNODE_NNUNET has nnunetv2 {answer.stdout.strip()}"
    return Path(python)


@pytest.fixture(scope="session")
def trained_models(
    nnunet_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, NnunetModel]:
    """The models of `tests.parity.recipes`, by name, trained on real images where there are any."""
    kept = os.environ.get("DICOMNODE_PARITY_MODELS", "")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("nnunet")
    return train(nnunet_python, folder, DATA if DATA.is_dir() else None)


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The folder of models, predictions and intermediate arrays that lies beside the real images."""
    folder = DATA.parent / "models" / "nnunet"
    if not folder.is_dir():
        pytest.skip(f"{NO_DATA} with models beside them in {folder}; set DICOMNODE_DATA")
    return folder


@pytest.fixture(scope="session")
def reference_models(reference_folder: Path) -> Mapping[str, NnunetModel]:
    """The two models that were trained longer than ours, ``hippocampus`` and ``ct_residual_encoder``."""
    predictions, inputs = reference_folder / "predictions", reference_folder / "inputs"
    return {
        "hippocampus": read_reference(
            "hippocampus",
            reference_folder / "Dataset004_Hippocampus_3d_fullres.zip",
            predictions / "hippocampus_3d_fullres",
            [inputs, DATA / "hippocampus" / "images"],
        ),
        "ct_residual_encoder": read_reference(
            "ct_residual_encoder",
            reference_folder / "Dataset009_SpleenCT_3d_fullres_resencM_narrow.zip",
            predictions / "spleen_ct_resencM_narrow",
            [inputs],
        ),
    }
