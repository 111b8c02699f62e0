"""``dicomnode models``: a person looks at versions and decides which is in use."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicomnode.__main__ import app
from dicomnode.errors import ModelFormatError
from dicomnode.node import opened_tools
from dicomnode.settings import load_node_settings
from tests.pipeline_builders import MODEL, put_into_use, tiny_weights, write_tiny


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site with two versions of one model; the second is in use."""
    write_tiny(tmp_path / "packages" / MODEL)
    path = tmp_path / "node.toml"
    path.write_text(
        f'[node]\ndata_dir = {json.dumps(str(tmp_path / "data"))}\n[work]\ndevice = "cpu"\n'
        f'[models]\nfolder = "packages"\n[[routes]]\nname = "tiny"\nmodel = "{MODEL}"\n'
    )
    with opened_tools(load_node_settings(path)) as tools:
        made = tools.shelf.add(tools.current_package(MODEL), tiny_weights(seed=2), card_text="# second\n")
        put_into_use(tools.store, made, now=tools.now())
    return path


def ask(config: Path, *words: str):
    return CliRunner().invoke(app, ["models", *words, "--config", str(config)])


def versions(config: Path) -> dict[str, str]:
    return {one["version"]: one["state"] for one in json.loads(ask(config, "list", "--json").stdout)}


def folder_of(config: Path, version: str) -> Path:
    return config.parent / "data" / "models" / MODEL / version.partition("@")[2]


def test_a_rollback_puts_the_version_before_into_use(config):
    (retired,) = [version for version, state in versions(config).items() if state == "retired"]

    assert ask(config, "rollback", MODEL, "--by", "chief").exit_code == 0

    assert versions(config)[retired] == "current"


def test_a_version_that_cannot_be_read_is_not_rolled_back_to(config):
    before = versions(config)
    (retired,) = [version for version, state in before.items() if state == "retired"]
    folder_of(config, retired).rename(config.parent / "elsewhere")

    done = ask(config, "rollback", MODEL)

    assert isinstance(done.exception, ModelFormatError)
    assert "is not on this site's shelf" in str(done.exception)
    assert versions(config) == before


def test_a_version_whose_card_is_lost_is_shown_all_the_same(config):
    (current,) = [version for version, state in versions(config).items() if state == "current"]
    folder_of(config, current).rename(config.parent / "elsewhere")

    done = ask(config, "show", current)

    assert done.exit_code == 0
    assert "is missing" in " ".join(done.stdout.split())


def test_a_model_that_nobody_knows_is_named_with_those_that_are(config):
    done = ask(config, "list", "liver")

    assert isinstance(done.exception, ModelFormatError)
    assert "'liver'; there is: tiny" in str(done.exception)
