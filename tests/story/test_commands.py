"""What people and scripts type: help, answers in words and in JSON, exit statuses."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from PIL import Image
from pydicom import Dataset, dcmread

from dicomnode import __version__, weights
from dicomnode.__main__ import app
from dicomnode.domain import Destination, JobKind, JobState, ModelOrigin, ModelState, ResultForm
from dicomnode.errors import ConfigError, InputError, ModelFormatError
from dicomnode.ml.model import package
from dicomnode.ml.shelf import ModelShelf
from dicomnode.node import prepare
from dicomnode.site import utc_now
from tests.conftest import take_free_port

from .series import write_series
from .site import Site, call, command, write_config


def every_command(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group below a group."""
    for name, one in group.commands.items():
        yield (*path, name)
        if isinstance(one, click.Group) or hasattr(one, "commands"):
            yield from every_command(one, (*path, name))


COMMANDS = sorted(every_command(typer.main.get_command(app)))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that was never started."""
    return write_config(tmp_path / "node", port=take_free_port(), web_port=take_free_port())


@pytest.fixture
def with_two_versions(site: Site) -> tuple[Site, str, str]:
    """A site with the shipped version in use, and one more on the shelf."""
    prepare(site.settings)
    shelf = ModelShelf(site.settings.versions_dir, device="cpu")
    with site.store() as store:
        first = store.models.current("hippocampus")
        assert first is not None
        parent = shelf.package(first.version)
        tensors = _nudged(parent)
        made = shelf.add(parent, tensors, card_text="trained in a test")
        store.models.register(
            replace(
                first,
                version=made.card.version,
                weights_sha256=made.card.weights_sha256,
                folder=str(made.folder),
                origin=ModelOrigin.TRAINED,
                state=ModelState.INCONCLUSIVE,
                parent=first.version,
                created_at=utc_now(),
            )
        )
    return site, first.version, made.card.version


def _nudged(parent: package.ModelPackage) -> weights.Tensors:
    read = weights.read(parent.weights_path)
    return {name: t + 1e-6 if t.is_floating_point() else t for name, t in read.items()}


def ask(site: Site, *words: str) -> Any:
    return command(*words, "--config", str(site.config))


def test_help_names_every_command() -> None:
    done = command("--help")

    assert done.exit_code == 0
    for path in COMMANDS:
        if len(path) == 1:
            assert path[0] in done.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    done = command(*path, "--help")

    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert "Usage:" in said
    assert len(said) > 150


def test_the_version_is_printed() -> None:
    done = command("--version")

    assert (done.exit_code, done.stdout) == (0, f"dicomnode {__version__}\n")


def test_a_command_that_nobody_knows_is_a_usage_error() -> None:
    assert command("segmnt").exit_code == 2


def test_status_of_a_site_that_was_never_started(site: Site) -> None:
    assert ask(site, "status").exit_code == 0
    found = site.ask("status")

    assert found["series"] == found["jobs"] == found["set_aside"] == found["troubled_jobs"] == []
    assert found["quarantined"] == 0


def test_check_finds_a_new_site_sound(site: Site) -> None:
    found = {one["what"]: one for one in site.ask("check")}

    assert {name for name, one in found.items() if one["is_sound"] is False} == set()
    assert "is free" in found["DICOM port"]["finding"]
    assert "loads on cpu" in found["model hippocampus"]["finding"]
    assert "none configured" in found["destinations"]["finding"]
    assert found["routes"]["finding"] == "hippocampus → hippocampus"
    assert ask(site, "check").exit_code == 0


def test_check_names_a_destination_that_does_not_answer(tmp_path: Path) -> None:
    port = take_free_port()
    down = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port)
    site = write_config(
        tmp_path / "node", port=take_free_port(), web_port=take_free_port(), destinations=[down]
    )

    done = ask(site, "check", "--json")

    assert done.exit_code == 1
    [fault] = [one for one in json.loads(done.stdout) if one["is_sound"] is False]
    assert fault["what"] == "destination pacs"
    assert f"127.0.0.1 port {port}" in fault["finding"]


def test_a_folder_is_segmented_into_objects_pictures_and_json(site: Site, tmp_path: Path) -> None:
    series = write_series(tmp_path / "images" / "good")
    bad = write_series(tmp_path / "images" / "bad", seed=1, slices=5)
    (tmp_path / "images" / "notes.txt").write_text("no DICOM")

    done = ask(site, "segment", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--json")

    assert done.exit_code == 0
    found = {one["series_instance_uid"]: one for one in json.loads(done.stdout)}
    assert set(found) == {series.series_instance_uid, bad.series_instance_uid}
    made = found[series.series_instance_uid]
    [[form, path]] = made["objects"]
    assert form == "seg"
    seg = dcmread(path)
    assert seg.Modality == "SEG"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series.series_instance_uid
    voxels = dict(made["voxels"])
    assert sum(voxels.values()) == int(np.count_nonzero(seg.pixel_array))
    assert dict(made["millilitres"]) == pytest.approx({k: n / 1000 for k, n in voxels.items()}, rel=1e-3)
    with Image.open(made["picture_path"]) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100
    refused = found[bad.series_instance_uid]
    assert refused["objects"] == []
    assert "5 slices, at least 16 wanted" in refused["reason"]


def test_json_stays_json_where_an_odd_header_gives_warnings(site: Site, tmp_path: Path) -> None:
    def spoil(ds: Dataset) -> None:
        ds.add_new("SpecificCharacterSet", "CS", "ISO IR 666")

    series = write_series(tmp_path / "images", change=spoil)

    words = ("segment", tmp_path / "images", "--out", tmp_path / "out", "--config", site.config, "--json")
    done = call(*words, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "666" in done.stderr
    assert [one["series_instance_uid"] for one in json.loads(done.stdout)] == [series.series_instance_uid]


def test_a_folder_in_which_nothing_can_be_segmented_ends_with_status_1(site: Site, tmp_path: Path) -> None:
    write_series(tmp_path / "images", slices=5)

    done = ask(site, "segment", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--json")

    assert done.exit_code == 1
    assert "5 slices" in json.loads(done.stdout)[0]["reason"]


def test_a_folder_without_dicom_ends_with_status_1_and_one_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("no DICOM")

    words = ("segment", tmp_path / "images", "--out", tmp_path / "out", "--config", site.config, "--json")
    done = call(*words, cwd=tmp_path)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == f"error: {tmp_path / 'images'}: no DICOM image in this folder or below it"


def test_routes_are_tried_on_a_folder_without_doing_anything(tmp_path: Path) -> None:
    pacs = Destination(
        name="pacs", ae_title="PACS", host="127.0.0.1", port=104, results=(ResultForm.SEG, ResultForm.SR)
    )
    site = write_config(tmp_path / "node", port=11112, web_port=8080, destinations=[pacs])
    good = write_series(tmp_path / "images" / "good")
    short = write_series(tmp_path / "images" / "short", seed=1, slices=5)

    done = ask(site, "routes", "test", str(tmp_path / "images"), "--json")

    assert done.exit_code == 0
    found = {one["series_instance_uid"]: one for one in json.loads(done.stdout)}
    assert set(found) == {good.series_instance_uid, short.series_instance_uid}
    taken = found[good.series_instance_uid]
    assert taken["taken"]["model"] == "hippocampus"
    assert taken["taken"]["destinations"] == [["pacs", ["seg", "sr"]]]
    assert (taken["stacks"][0]["plane"], taken["stacks"][0]["kind"]) == ("axial", "image")
    refused = found[short.series_instance_uid]
    assert refused["taken"] is None
    assert refused["answers"] == [
        {"route": "hippocampus", "stacks": [""], "objection": "5 slices, at least 16 wanted"}
    ]
    assert not site.settings.node.data_dir.exists()


def test_what_routes_do_is_told_in_words_without_the_name_of_a_patient(site: Site, tmp_path: Path) -> None:
    def name(ds: Dataset) -> None:
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = "SECRET^NAME", "SECRET-7", "19010203"
        ds.SeriesDescription = "T1 [mm] left"

    series = write_series(tmp_path / "images", change=name)

    done = ask(site, "routes", "test", str(tmp_path / "images"))

    assert done.exit_code == 0
    said = " ".join(done.stdout.replace("│", " ").split())
    assert series.series_instance_uid in said
    assert "T1 [mm] left" in said
    assert "MR, axial" in said
    assert "taken by route hippocampus: model hippocampus, routine; no destination is configured" in said
    assert "SECRET" not in said
    assert "19010203" not in said


def test_what_headers_say_does_not_steer_the_terminal(site: Site, tmp_path: Path) -> None:
    def ring(ds: Dataset) -> None:
        ds.SeriesDescription = "T1\x07 [red]left[/red]\x9b31m"

    write_series(tmp_path / "images", slices=5, change=ring)

    done = ask(site, "routes", "test", str(tmp_path / "images"))

    assert "T1 [red]left[/red]31m" in done.stdout
    assert "\x07" not in done.stdout
    assert "\x9b" not in done.stdout


def test_routes_that_take_nothing_of_a_folder_end_with_status_1(site: Site, tmp_path: Path) -> None:
    write_series(tmp_path / "images", slices=5)

    done = ask(site, "routes", "test", str(tmp_path / "images"))

    assert done.exit_code == 1
    assert "not taken: no route takes it" in done.stdout
    assert "5 slices, at least 16 wanted" in done.stdout


def test_a_route_for_one_sender_is_tried_as_that_sender(tmp_path: Path) -> None:
    only = '[[routes]]\nname = "one"\nmodel = "hippocampus"\nwhere = { sender = ["MR?"] }\n'
    site = write_config(tmp_path / "node", port=11112, web_port=8080, routes=only)
    write_series(tmp_path / "images")
    words = ("routes", "test", str(tmp_path / "images"))

    assert ask(site, *words, "--sender", "mr1").exit_code == 0
    nobody = ask(site, *words)
    assert nobody.exit_code == 1
    assert "sender is unknown, wanted MR?" in nobody.stdout


def test_a_route_that_asks_for_what_dicom_has_not_is_named_by_every_command_that_tries_it(
    tmp_path: Path,
) -> None:
    where = 'where = { attributes = { SeriesDescripton = ["*"] } }'
    odd = f'[[routes]]\nname = "odd"\nmodel = "hippocampus"\n{where}\n'
    site = write_config(tmp_path / "node", port=take_free_port(), web_port=take_free_port(), routes=odd)
    write_series(tmp_path / "images")

    done = ask(site, "routes", "test", str(tmp_path / "images"))
    found = {one["what"]: one for one in json.loads(ask(site, "check", "--json").stdout)}

    assert isinstance(done.exception, ConfigError)
    assert 'did you mean "SeriesDescription"?' in str(done.exception)
    assert found["routes"]["is_sound"] is False
    assert "routes[0].where.attributes.SeriesDescripton (route 'odd')" in found["routes"]["finding"]


def test_versions_are_listed_newest_first_and_shown(with_two_versions: tuple[Site, str, str]) -> None:
    site, first, second = with_two_versions

    assert [one["version"] for one in site.ask("models", "list")] == [second, first]
    assert site.ask("models", "list", "hippocampus") == site.ask("models", "list")
    assert site.ask("models", "show", second)["parent"] == first
    assert site.ask("models", "show", first.partition("@")[2][:6])["version"] == first
    assert ask(site, "models", "list").exit_code == 0
    shown = ask(site, "models", "show", second)
    assert shown.exit_code == 0
    assert "trained in a test" in shown.stdout


def test_a_version_is_promoted_and_rolled_back_by_a_person(with_two_versions: tuple[Site, str, str]) -> None:
    site, first, second = with_two_versions

    assert (
        ask(site, "models", "promote", second, "--by", "physicist", "--reason", "looks better").exit_code == 0
    )
    assert _in_use(site) == second
    assert ask(site, "models", "rollback", "hippocampus", "--by", "physicist").exit_code == 0
    assert _in_use(site) == first
    with site.store() as store:
        told = [entry.detail for entry in store.audit.list(limit=10)]
    assert any("physicist" in detail and "looks better" in detail for detail in told)


def _in_use(site: Site) -> str:
    [current] = [one for one in site.ask("models", "list") if one["state"] == "current"]
    assert [one["version"] for one in site.ask("status")["models"]] == [current["version"]]
    return str(current["version"])


def test_a_version_that_is_not_there_is_an_error(with_two_versions: tuple[Site, str, str]) -> None:
    site, _, _ = with_two_versions

    for word in ("show", "promote"):
        done = ask(site, "models", word, "ffff")
        assert done.exit_code == 1
        assert isinstance(done.exception, ModelFormatError)
        assert "models list" in str(done.exception)


def test_there_is_nothing_to_roll_back_to_at_first(site: Site) -> None:
    prepare(site.settings)

    done = ask(site, "models", "rollback", "hippocampus")

    assert done.exit_code == 1
    assert isinstance(done.exception, InputError)


def test_a_site_without_corrections_lists_none(site: Site) -> None:
    prepare(site.settings)

    assert site.ask("corrections", "list") == []
    assert ask(site, "corrections", "list").exit_code == 0


def test_a_job_that_was_set_aside_is_run_again_on_demand(site: Site) -> None:
    prepare(site.settings)
    with site.store() as store:
        now = utc_now()
        store.jobs.enqueue(JobKind.INGEST_CORRECTION, "1", "d", now=now)
        job = store.jobs.claim(now, kinds={JobKind.INGEST_CORRECTION}, owner="test", lease=utc_now() - now)
        assert job is not None
        store.jobs.set_aside(job, now=now, reason="images are missing")
    [shown] = site.ask("status")["troubled_jobs"]
    assert (shown["reason"], shown["state"]) == ("images are missing", "set_aside")

    done = ask(site, "retry", str(shown["id"]))

    assert done.exit_code == 0
    assert "waits to be run again" in done.stdout
    with site.store() as store:
        found = store.jobs.get(shown["id"])
    assert found is not None
    assert (found.state, found.attempts, found.reason) == (JobState.READY, 0, "")
    again = ask(site, "retry", str(shown["id"]))
    assert again.exit_code == 1
    assert "only a job that is set aside or failed" in str(again.exception)
    assert ask(site, "retry", "99").exit_code == 1
