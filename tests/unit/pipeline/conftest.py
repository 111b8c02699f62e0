"""A site for each test, copied from one that was made once: quicker than making each anew."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline_builders import Scene, opened_scene


@pytest.fixture(scope="session")
def new_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a site that has received nothing yet."""
    folder = tmp_path_factory.mktemp("new") / "site"
    with opened_scene(folder):
        pass
    return folder


@pytest.fixture
def scene(tmp_path: Path, new_site: Path) -> Iterator[Scene]:
    """A site that has received nothing yet, with its model in use."""
    folder = shutil.copytree(new_site, tmp_path / "site")
    with opened_scene(folder) as opened:
        yield opened
