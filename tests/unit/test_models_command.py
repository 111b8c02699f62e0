"""``dicomnode models``: a person looks at versions and decides which is in use."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicomnode.__main__ import app
from dicomnode.domain import ModelState
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


def by_state(config: Path, state: str) -> str:
    (version,) = [one for one, found in versions(config).items() if found == state]
    return version


def said(config: Path, *words: str) -> str:
    """What a command that must succeed says, in one line."""
    done = ask(config, *words)
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


def test_a_lock_is_shown_until_it_is_ended(config):
    words = said(config, "lock", MODEL, "--by", "chief", "--reason", "in the clinic")
    assert "lock: model tiny is locked by chief (in the clinic), since " in words
    for asked in (["list"], ["show", by_state(config, "current")]):
        assert "is locked by chief (in the clinic)" in said(config, *asked)
    assert {one["locked"] for one in json.loads(ask(config, "list", "--json").stdout)} == {True}
    assert json.loads(ask(config, "show", by_state(config, "current"), "--json").stdout)["locked"]

    assert "model tiny is open again" in said(config, "unlock", MODEL, "--by", "chief", "--reason", "over")

    assert "locked" not in said(config, "list")


def test_a_lock_needs_a_reason(config):
    done = ask(config, "lock", MODEL)
    assert done.exit_code == 2
    assert "--reason" in done.output
    assert "locked" not in said(config, "list")


def test_a_person_changes_the_version_of_a_locked_model_and_is_reminded_of_the_lock(config):
    said(config, "lock", MODEL, "--by", "chief", "--reason", "in the clinic")
    retired = by_state(config, "retired")

    words = said(config, "promote", retired, "--by", "chief")

    assert by_state(config, "current") == retired
    assert "is locked by chief" in words
    assert f"{retired} is in use from the next series on" in words


def test_who_promotes_the_version_in_use_stands_by_it(config):
    current = by_state(config, "current")
    assert f"{current} is in use already; it stays" in said(config, "promote", current, "--by", "chief")
    with opened_tools(load_node_settings(config)) as tools:
        newest = tools.store.audit.list()[0]
    assert (newest.event, newest.subject) == ("model_confirmed", current)


def test_what_a_version_was_made_of_is_shown(config):
    with opened_tools(load_node_settings(config)) as tools:
        made = tools.shelf.add(tools.current_package(MODEL), tiny_weights(seed=3), card_text="# third\n")
        digests = tuple((f"case{number:02}", "ab" * 32) for number in range(21))
        record = replace(
            tools.current_record(MODEL),
            version=made.card.version,
            state=ModelState.CANDIDATE,
            recipe_json='{"rate": 0.001}',
            environment_json='{"python": "3.12.1"}',
            run_folder="/runs/tiny/1",
            case_digests=digests,
        )
        tools.store.models.register(record)

    words = said(config, "show", made.card.version)

    for expected in ("rate = 0.001", 'python = "3.12.1"', "run folder /runs/tiny/1", "case00", "case19"):
        assert expected in words
    assert "case20" not in words
    assert "and 1 more; --json lists all" in words
    assert len(json.loads(ask(config, "show", made.card.version, "--json").stdout)["case_digests"]) == 21


def test_two_versions_are_compared(config):
    first, second = by_state(config, "retired"), by_state(config, "current")

    found = json.loads(ask(config, "diff", first, second, "--json").stdout)

    assert (found["first"]["version"], found["second"]["version"]) == (first, second)
    assert (found["plan"], found["labels"]) == ([], [])
    changed = found["weights"]["changed"]
    assert changed
    assert [one["relative"] for one in changed] == sorted((one["relative"] for one in changed), reverse=True)
    words = said(config, "diff", first, second, "--top", "1")
    assert f"{len(changed)} tensors changed" in words
    assert changed[0]["name"] in words
    same = json.loads(ask(config, "diff", first, first, "--json").stdout)["weights"]
    assert (same["relative"], same["changed"]) == (0.0, [])


def test_a_difference_to_a_version_that_cannot_be_read_is_refused(config):
    first, second = by_state(config, "retired"), by_state(config, "current")
    folder_of(config, first).rename(config.parent / "elsewhere")
    done = ask(config, "diff", first, second)
    assert isinstance(done.exception, ModelFormatError)
    assert "is not on this site's shelf" in str(done.exception)


def test_the_commands_are_listed_in_the_order_in_which_they_are_needed():
    _, _, words = CliRunner().invoke(app, ["models", "--help"]).output.partition("Commands")
    names = ["list", "show", "diff", "promote", "rollback", "lock", "unlock", "pull", "import"]
    places = [words.index(f"│ {name} ") for name in names]
    assert places == sorted(places)
