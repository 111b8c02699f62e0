"""``dicomnode corrections feedback`` and the alarm in ``dicomnode status``."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from dicomnode.cli.feedback import feedback
from dicomnode.cli.feedback_plot import ALARM, NORMAL
from dicomnode.cli.site import status
from dicomnode.errors import ConfigError, ModelFormatError
from dicomnode.settings import load_node_settings
from dicomnode.site import make_folders, opened_store
from tests.feedback_builders import BACK, FRONT, MODEL, Readers

app = typer.Typer()
app.command()(feedback)
app.command()(status)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site whose model was right ten times and then wrong four times, in one of two labels."""
    path = tmp_path / "node.toml"
    path.write_text(f"[node]\ndata_dir = {json.dumps(str(tmp_path / 'data'))}\n", encoding="utf-8")
    settings = load_node_settings(path)
    make_folders(settings)
    begin = datetime.now(UTC) - timedelta(hours=20)
    with opened_store(settings) as store:
        readers = Readers(store=store)
        version = readers.use("a", at=begin)
        for hour in range(14):
            at = begin + timedelta(hours=hour)
            readers.review(version, {FRONT: 0.9 if hour < 10 else 0.6, BACK: 1.0}, at=at)
    return path


def ask(config: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--config", str(config)], env={"COLUMNS": "200"})


def test_figures_of_each_day_and_the_drift_are_shown(config: Path) -> None:
    shown = ask(config, "feedback")
    assert shown.exit_code == 0
    assert f"Drift tiny@a, {FRONT}, since" in shown.stdout
    assert "dicomnode models rollback tiny" in shown.stdout
    assert f"Drift tiny@a, {BACK}" not in shown.stdout


def test_scripts_get_days_and_drift_as_json(config: Path) -> None:
    said = json.loads(ask(config, "feedback", "--json", "--model", MODEL).stdout)
    front = [one for one in said["days"] if one["label"] == FRONT]
    assert sum(one["results"] for one in front) == sum(one["corrected"] for one in front) == 14
    states = {(one["label"], one["figure"]): one["alarm"] for one in said["drift"][0]["states"]}
    assert states == {
        (FRONT, "dice"): True,
        (FRONT, "volume"): False,
        (BACK, "dice"): False,
        (BACK, "volume"): False,
    }


def test_the_picture_shows_what_is_normal_and_the_alarm(config: Path, tmp_path: Path) -> None:
    picture = tmp_path / "reviews.png"
    assert ask(config, "feedback", "--plot", str(picture)).exit_code == 0
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    upper, lower = pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]
    assert (upper == NORMAL).all(axis=-1).any()
    assert (upper == ALARM).all(axis=-1).any()
    assert not (lower == ALARM).all(axis=-1).any()


def test_a_site_without_reviews_gets_a_picture_that_says_so(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f"[node]\ndata_dir = {json.dumps(str(tmp_path / 'data'))}\n", encoding="utf-8")
    assert ask(config, "feedback", "--plot", str(tmp_path / "empty.png")).exit_code == 0
    assert (tmp_path / "empty.png").is_file()


def test_an_unknown_model_and_a_folder_that_is_not_there_are_told(config: Path, tmp_path: Path) -> None:
    unknown = ask(config, "feedback", "--model", "liver")
    assert isinstance(unknown.exception, ModelFormatError)
    assert "there is: tiny" in str(unknown.exception)
    missing = ask(config, "feedback", "--plot", str(tmp_path / "nowhere" / "a.png"))
    assert isinstance(missing.exception, ConfigError)
    assert "cannot be written" in str(missing.exception)


def test_the_status_page_tells_of_the_alarm(config: Path) -> None:
    shown = ask(config, "status")
    assert shown.exit_code == 0
    assert f"Drift tiny@a, {FRONT}, since" in shown.stdout
    said = json.loads(ask(config, "status", "--json").stdout)
    assert [one["model"] for one in said["drift"]] == [MODEL]
