"""The README and the command line say the same."""

import re
from pathlib import Path

import typer

from dicomnode.__main__ import app

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_readme_names_every_command() -> None:
    command = typer.main.get_command(app)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Commands")[2].partition("\n## ")[0]
    names = [name for name, one in getattr(command, "commands", {}).items() if not one.hidden]
    assert names
    assert [name for name in names if not re.search(rf"`{name}\b", table)] == []
