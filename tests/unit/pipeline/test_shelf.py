"""The versions of a site on disk: whole or not there, never changed, and a few kept warm."""

import os
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode import weights
from dicomnode.errors import ModelFormatError, ResourceError, SpoolFullError
from dicomnode.ml.shelf import ModelShelf
from tests.pipeline_builders import MODEL, tiny_weights, write_tiny

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def shelf(tmp_path: Path) -> ModelShelf:
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tiny_weights().values())
    return ModelShelf(tmp_path / "models", device="cpu", budget_bytes=2 * size_bytes)


def test_an_installed_package_stands_under_its_name_and_digest(shelf, tmp_path):
    source = write_tiny(tmp_path / "package")

    found = shelf.install(source.folder)

    assert found.folder == tmp_path / "models" / MODEL / source.card.weights_sha256[:12]
    assert shelf.package(found.card.version).card == source.card
    assert {path.name for path in found.folder.iterdir()} == {path.name for path in source.folder.iterdir()}


def test_installing_again_changes_nothing(shelf, tmp_path):
    source = write_tiny(tmp_path / "package")
    found = shelf.install(source.folder)
    before = {path: path.stat().st_mtime_ns for path in found.folder.iterdir()}

    shelf.install(source.folder)

    assert {path: path.stat().st_mtime_ns for path in found.folder.iterdir()} == before
    assert [path.name for path in found.folder.parent.iterdir()] == [found.folder.name]


def test_new_weights_stand_beside_their_parent(shelf, tmp_path):
    parent = shelf.install(write_tiny(tmp_path / "package").folder)

    made = shelf.add(parent, tiny_weights(seed=2), card_text="# child\n")

    assert made.card.version != parent.card.version
    assert (made.plan, made.card.segments) == (parent.plan, parent.card.segments)
    assert weights.is_equal(weights.read(made.weights_path), tiny_weights(seed=2))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [MODEL]


def test_the_first_card_of_a_version_stays(shelf, tmp_path):
    parent = shelf.install(write_tiny(tmp_path / "package").folder)
    shelf.add(parent, tiny_weights(seed=2), card_text="# first\n")

    again = shelf.add(parent, tiny_weights(seed=2), card_text="# made again after a crash\n")

    assert (again.folder / "card.md").read_text() == "# first\n"


def test_a_version_that_is_missing_is_named_with_its_place(shelf):
    with pytest.raises(
        ModelFormatError, match=r"tiny@0123456789ab is not on this site's shelf: .*is missing"
    ):
        shelf.package("tiny@0123456789ab")


def test_a_damaged_version_is_not_loaded(shelf, tmp_path):
    found = shelf.install(write_tiny(tmp_path / "package").folder)
    content = bytearray(found.weights_path.read_bytes())
    content[-1] ^= 1
    found.weights_path.write_bytes(content)

    with pytest.raises(ModelFormatError, match="SHA-256"):
        shelf.loaded(found.card.version)


def test_the_least_recently_used_model_is_let_go(shelf, tmp_path):
    parent = shelf.install(write_tiny(tmp_path / "package").folder)
    versions = [parent.card.version]
    versions += [shelf.add(parent, tiny_weights(seed=s), card_text="#\n").card.version for s in (2, 3)]
    first, second = shelf.loaded(versions[0]), shelf.loaded(versions[1])

    assert shelf.loaded(versions[0]) is first
    shelf.loaded(versions[2])

    assert shelf.loaded(versions[0]) is first
    assert shelf.loaded(versions[1]) is not second


def test_a_shelf_that_cannot_be_written_is_a_fault_of_the_machine(shelf, tmp_path):
    parent = shelf.install(write_tiny(tmp_path / "package").folder)
    other = write_tiny(tmp_path / "other", name="other")
    (tmp_path / "models" / "other").write_text("in the way")

    with pytest.raises(ResourceError, match="cannot use"):
        shelf.install(other.folder)

    assert shelf.package(parent.card.version).card == parent.card


def test_a_full_disk_leaves_nothing_half_done_and_is_told_as_such(shelf, tmp_path):
    parent = shelf.install(write_tiny(tmp_path / "package").folder)
    before = sorted((tmp_path / "models").rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # stands in for a disk without room
    try:
        with pytest.raises(SpoolFullError, match="free some space on that disk"):
            shelf.add(parent, tiny_weights(seed=2), card_text="# child\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert sorted((tmp_path / "models").rglob("*")) == before
    shelf.add(parent, tiny_weights(seed=2), card_text="# child\n")


def test_what_a_crash_left_unfinished_is_swept_and_versions_stay(shelf, tmp_path):
    found = shelf.install(write_tiny(tmp_path / "package").folder)
    stale = [tmp_path / "models" / ".new-abc", tmp_path / "models" / MODEL / ".new-def"]
    fresh = tmp_path / "models" / MODEL / ".new-ghi"
    for folder, age_h in ((stale[0], 7), (stale[1], 7), (fresh, 1)):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"half")
        when = (NOW - timedelta(hours=age_h)).timestamp()
        os.utime(folder, (when, when))

    assert shelf.sweep(older_than=timedelta(hours=6), now=NOW) == 2

    assert not any(folder.exists() for folder in stale)
    assert fresh.exists()
    assert shelf.package(found.card.version).card == found.card
