"""``dicomnode corrections``: a person looks at what came back, and decides."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dicomnode.__main__ import app
from dicomnode.domain import JobKind
from dicomnode.errors import CorrectionError, InputError
from dicomnode.node import opened_tools
from dicomnode.settings import load_node_settings
from dicomnode.worker import STORIES
from tests.pipeline_builders import FRONT, MODEL, Scene, mr_series, viewer_seg, write_tiny


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site with three received objects: a correction, one in reverse order, and one without images."""
    write_tiny(tmp_path / "packages" / MODEL)
    path = tmp_path / "node.toml"
    path.write_text(
        f'[node]\ndata_dir = {json.dumps(str(tmp_path / "data"))}\n[work]\ndevice = "cpu"\n'
        f'quiet_period_s = 1\n[models]\nfolder = "packages"\n[[routes]]\nname = "tiny"\nmodel = "{MODEL}"\n'
    )
    with opened_tools(load_node_settings(path)) as tools:
        clock = _Now(tools.now)
        site = Scene(folder=tmp_path / "data", clock=clock, tools=tools)
        series = mr_series()
        site.receive(series)
        tools.store.series.force(series[0].SeriesInstanceUID, now=tools.now())
        from_queue(site, JobKind.SEGMENT_SERIES)
        ours = site.found(series)
        edited = ours[FRONT].copy()
        edited[3] = False
        site.receive([viewer_seg(series, {FRONT: edited})], sender="VIEWER")
        from_queue(site, JobKind.INGEST_CORRECTION)
        site.receive([viewer_seg(series, {label: mask[::-1] for label, mask in ours.items()})])
        from_queue(site, JobKind.INGEST_CORRECTION)
        site.receive([viewer_seg(mr_series(5), {FRONT: edited})])
        from_queue(site, JobKind.INGEST_CORRECTION)
    return path


class _Now:
    """The real clock, as the scene wants it."""

    def __init__(self, now):
        self._now = now

    def __call__(self):
        return self._now()


def from_queue(site: Scene, kind: JobKind) -> None:
    STORIES[kind](site.claim(kind), site.tools)


def ask(config: Path, *words: str):
    return CliRunner().invoke(app, ["corrections", *words, "--config", str(config)])


def listed(config: Path, *words: str) -> list[dict]:
    return json.loads(ask(config, "list", "--json", *words).stdout)


def test_the_list_names_what_is_kept_held_and_not_read(config):
    text = ask(config, "list").stdout

    assert [(one["id"], one["state"]) for one in listed(config)] == [(2, "held"), (1, "kept")]
    assert [one["id"] for one in listed(config, "--state", "held")] == [2]
    assert "reverse order" in " ".join(text.split())
    assert "parked" in " ".join(text.split())


def test_one_correction_is_shown_with_its_figures_and_a_picture(config, tmp_path):
    made = ask(config, "show", "1", "--json", "--picture", str(tmp_path / "one.png"))

    (label,) = json.loads(made.stdout)["labels"]
    assert (label["label"], label["edited_slices"]) == (FRONT, [3])
    assert label["correction_ml"] < label["prediction_ml"]
    with Image.open(tmp_path / "one.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert "edited slices" in ask(config, "show", "1").stdout


def test_a_held_correction_is_accepted_turned_and_taken_back(config):
    assert ask(config, "accept", "2", "--mirrored", "--by", "chief").exit_code == 0
    assert listed(config)[0]["state"] == "kept"
    assert ask(config, "withdraw", "2", "--by", "chief").exit_code == 0
    assert listed(config)[0]["state"] == "withdrawn"


def test_a_held_correction_is_refused(config):
    assert ask(config, "refuse", "2", "--by", "chief").exit_code == 0
    assert listed(config)[0]["state"] == "refused"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("show", "9"), CorrectionError, "there is no correction 9"),
        (("accept", "1"), InputError, "correction 1 is kept; this is for one that is held"),
        (("withdraw", "2"), InputError, "correction 2 is held; this is for one that is kept"),
    ],
)
def test_what_cannot_be_done_is_said(config, words, error, message):
    found = ask(config, *words).exception

    assert isinstance(found, error)
    assert message in str(found)
