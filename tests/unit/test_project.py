"""What holds for the project as a whole: documents that agree with the code, pins, limits of the house."""

import ast
import re
import runpy
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import dicomnode
from dicomnode.configtraining import TrainingSettings
from dicomnode.federation.merging import STRATEGIES
from dicomnode.ml.training.recipes import RECIPES
from dicomnode.scp.status import StoreStatus
from dicomnode.settings import MergingSettings, shipped_models_folder

REPOSITORY = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SOURCES = sorted((REPOSITORY / "dicomnode").rglob("*.py"))
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
INSTALLED_EXTRAS = ("web", "aggregator", "postgresql", "demo", "nnunet", "training", "dev")
FORBIDDEN = re.compile(
    r"\b(pickle|dill)\.|import (pickle|dill)\b|torch\.load\(|yaml\.load\(|shell=True|allow_pickle=True"
    r"|(?<![\w.])(eval|exec)\("
)


CHECKPOINT_READER = "dicomnode/ml/imports/checkpoint.py"  # in a process of its own: ADR 0004
SAFE_LOAD = re.compile(r"torch\.load\(\w+, [^()]*\bweights_only=True\b[^()]*\)")


def pins() -> dict[str, Version]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in named}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_torch_is_pinned_without_the_suffix_of_one_build() -> None:
    assert pins()["torch"] == Version("2.13.0")
    assert all(version.local is None for version in pins().values())


def test_every_dependency_that_is_installed_has_a_pin_that_satisfies_it() -> None:
    wanted = [*PROJECT["dependencies"]]
    for extra in INSTALLED_EXTRAS:
        wanted += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement} has no pin in constraints.txt"
        assert requirement.specifier.contains(pin), f"the pin {pin} does not satisfy {requirement}"


def test_the_version_is_the_same_everywhere() -> None:
    assert dicomnode.__version__ == PROJECT["version"]


@pytest.mark.parametrize("page", ["configuration.md", "conformance.md"])
def test_the_generated_parts_of_the_documents_are_current(page: str) -> None:
    generate = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    assert text == generate["render"](text), "run `make docs`"


def test_every_status_that_the_receiver_answers_is_documented() -> None:
    page = (REPOSITORY / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert [f"{status:04X}" for status in StoreStatus if f"\n| {status:04X} |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_link_between_documents_is_broken(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    inside = [target for target in targets if "://" not in target]
    assert [target for target in inside if not (page.parent / target).exists()] == []


def test_the_choices_of_the_configuration_are_the_tables_of_the_code() -> None:
    assert set(get_args(MergingSettings.model_fields["strategy"].annotation)) == set(STRATEGIES)
    assert set(get_args(TrainingSettings.model_fields["recipe"].annotation)) == set(RECIPES)


def test_every_room_has_its_line_in_the_import_contract() -> None:
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    lined_up = {name.strip().removeprefix("dicomnode.") for line in layers for name in line.split("|")}
    parts = (REPOSITORY / "dicomnode").iterdir()
    rooms = {path.stem for path in parts if path.suffix == ".py" or any(path.rglob("*.py"))}
    assert rooms - {"__init__", "migrations"} == lined_up


def test_every_decision_is_listed() -> None:
    folder = REPOSITORY / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in folder.glob("0*.md") if f"({path.name})" not in index] == []


def test_a_model_is_shipped() -> None:
    files = {path.name for path in (shipped_models_folder() / "hippocampus").iterdir()}
    assert {"plan.json", "labels.toml", "weights.safetensors", "card.md"} <= files


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_that_came_from_outside_can_be_executed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if name_of(path) == CHECKPOINT_READER:
        text, found = SAFE_LOAD.subn("", text)
        assert found == 1
    lines = enumerate(text.splitlines(), start=1)
    assert [f"{number}: {line.strip()}" for number, line in lines if FORBIDDEN.search(line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_functions_keep_to_the_limits_of_the_house(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [f"{node.name}: {body_lines(node)}" for node in functions if body_lines(node) > 40] == []


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function after its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0
