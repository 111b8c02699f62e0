"""The main job as a newcomer runs it: the whole loop, and an exit status that can be believed."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread


def play(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dicomnode", "demo", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(660)
def test_the_demonstration_plays_the_whole_loop(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = play("--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    versions = summary["versions"]
    assert len({versions["before"], versions["trained"], versions["after"]}) == 3
    assert (versions["release_before"], versions["release_after"]) == (1, 2)
    assert {line["label"] for line in summary["series"]} == {"Hippocampus anterior", "Hippocampus posterior"}
    assert all(line["voxels"] > 300 and line["edited_slices"] >= 5 for line in summary["series"])
    assert {line["split"] for line in summary["series"]} == {"training", "hold_out"}

    at_pacs = [dcmread(path) for path in (folder / "pacs").rglob("*.dcm")]
    found = Counter(str(ds.Modality) for ds in at_pacs)
    assert (found["SEG"], found["SR"]) == (2, 2)
    assert found["OT"] > 2
    assert set(found) == {"SEG", "SR", "OT"}
    for picture in summary["pictures"]:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert image.width > 400
    for words in ("Relaxed for a demonstration", "What was sent, found and corrected", "Where the time went"):
        assert words in done.stdout


def test_the_demonstration_says_so_when_no_model_takes_the_images(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "note.txt").write_text("no image here", encoding="utf-8")
    done = play("--input", str(tmp_path / "input"), "--out", str(tmp_path / "demo"))
    assert done.returncode == 1
    assert "no DICOM image" in done.stderr
