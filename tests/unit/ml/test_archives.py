"""An archive from elsewhere is unpacked whole, or refused with the reason and without a trace."""

import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomnode.errors import ModelFormatError, ResourceError, SpoolFullError
from dicomnode.ml.imports import archive
from dicomnode.ml.imports.archive import GIB, Limits

FEW = Limits(members=4, unpacked_bytes=10_000, ratio=10, small_bytes=1_000, free_bytes=0)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Make an archive of members given as name and content, or as ready ZipInfo and content."""

    def made(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
        path = tmp_path / "model.zip"
        with zipfile.ZipFile(path, "w", method) as opened:
            for name, content in members:
                opened.writestr(name, content)
        return path

    return made


def unpack(path: Path, limits: Limits | None = None) -> Path:
    return archive.unpack(path, path.parent / "unpacked" / "model", limits=limits)


def assert_refused(path: Path, *, match: str, limits: Limits | None = None) -> None:
    before = path.read_bytes()

    with pytest.raises(ModelFormatError, match=match):
        unpack(path, limits)

    left = [one for one in path.parent.rglob("*") if one != path and one != path.parent / "unpacked"]
    assert left == []
    assert path.read_bytes() == before


def member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def test_an_archive_is_unpacked_with_its_folders(make):
    path = make(("a/plan.json", b"{}"), ("a/f/", b""), ("a/f/x.pth", b"\0" * 10_000), ("b.md", b"b"))

    folder = unpack(path)

    files = {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    assert files == {"a/plan.json": b"{}", "a/f/x.pth": b"\0" * 10_000, "b.md": b"b"}
    assert list(folder.parent.iterdir()) == [folder]


def test_nothing_unpacked_can_be_run(make):
    path = make((member("run.sh", stat.S_IFREG | 0o6755), b"#!/bin/sh\n"))

    assert (unpack(path) / "run.sh").stat().st_mode & 0o7111 == 0


def test_what_macos_adds_is_left_out(make):
    folder = unpack(make(("plan.json", b"{}"), ("__MACOSX/._plan.json", b"x"), (".DS_Store", b"x")))

    assert [one.name for one in folder.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "a//b", "./a", "..", "C:/evil", "a\\..\\b", "a\nb", "x" * 256],
)
def test_a_name_that_is_no_plain_relative_path_is_refused(name: str, make):
    assert_refused(make(("plan.json", b"{}"), (name, b"x")), match="its name")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_a_link_or_device_is_refused(kind: int, make):
    assert_refused(make((member("plan.json", kind | 0o777), b"/etc/passwd")), match="a link or a device")


@pytest.mark.parametrize(
    "names",
    [
        ("plan.json", "plan.json"),
        ("plan.json", "PLAN.json"),
        ("\u00e9.md", "e\u0301.md"),
        ("a", "a/b"),
        ("a/b", "a"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_for_one_name_are_refused(names: tuple[str, str], make):
    assert_refused(make(*((name, b"x") for name in names)), match="two members|is a file")


def test_too_many_members_are_refused(make):
    assert_refused(make(*((f"{n}.txt", b"") for n in range(5))), match="has 5 members", limits=FEW)


def test_an_archive_without_members_is_refused(make):
    assert_refused(make(), match="has 0 members")


def test_a_large_archive_is_refused_by_the_sizes_that_it_lists(make):
    path = make(("w", b"\0" * 10_001), method=zipfile.ZIP_STORED)

    assert_refused(path, match="unpack to", limits=FEW)


def test_a_small_archive_that_unpacks_to_a_huge_one_is_refused(make):
    path = make(("w", b"\0" * 5_000))
    assert path.stat().st_size < 200

    assert_refused(path, match="times its size", limits=FEW)


def test_a_list_of_more_members_than_can_be_read_well_is_refused(make):
    path = make(*((f"{'x' * 250}{n}", b"") for n in range(20)))

    assert_refused(path, match="far more members", limits=FEW)


def test_members_that_share_their_bytes_are_refused(make):
    path = make(("a", b"\1" * 900), ("b", b"\1" * 900), method=zipfile.ZIP_STORED)
    whole = path.read_bytes()
    second = whole.index(b"PK\3\4", 4)
    # Keep the first member alone, and let both entries of the list point to it.
    listed = whole[whole.index(b"PK\1\2") :]
    listed = listed.replace(struct.pack("<L", second) + b"b", struct.pack("<L", 0) + b"b")
    end = listed.index(b"PK\5\6")
    path.write_bytes(whole[:second] + listed[: end + 16] + struct.pack("<L", second) + listed[end + 20 :])

    assert_refused(path, match="overlap|damaged")


def test_an_encrypted_member_is_refused(make):
    path = make(("a", b"x"))
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + at] |= 1
    path.write_bytes(content)

    assert_refused(path, match="encrypted")


def test_a_rare_method_of_packing_is_refused(make):
    assert_refused(make(("a", b"x"), method=zipfile.ZIP_LZMA), match="neither stored nor deflated")


def test_damage_is_found_by_the_checksum_and_leaves_nothing(make):
    path = make(("fine", b"fine"), ("w", b"\5" * 1000), method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"\5" * 1000, b"\5" * 999 + b"\6"))

    assert_refused(path, match="damaged one: Bad CRC-32")


@pytest.mark.parametrize("kept", [0, 1, 60, 1000])
def test_a_cut_archive_is_refused(kept: int, make):
    path = make(("w", bytes(range(256)) * 8), method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes()[:kept])

    assert_refused(path, match="no zip, or a damaged one")


def test_an_archive_that_is_not_there_is_told_by_its_name(tmp_path: Path):
    with pytest.raises(ResourceError, match=r"nothing\.zip: No such file"):
        archive.unpack(tmp_path / "nothing.zip", tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(make):
    path = make(("plan.json", b"new"))
    (unpack(path) / "plan.json").write_bytes(b"old")

    with pytest.raises(ResourceError, match="something already"):
        unpack(path)

    assert (path.parent / "unpacked" / "model" / "plan.json").read_bytes() == b"old"


def test_a_disk_without_room_is_told_before_anything_is_written(make):
    path = make(("w", b"x"))

    with pytest.raises(SpoolFullError, match="free some space"):
        unpack(path, Limits(free_bytes=GIB * GIB))

    assert list((path.parent / "unpacked").iterdir()) == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_byte_is_refused_or_harmless(data: st.DataObject, make):
    path = make(("a/plan.json", b'{"x": 1}'), ("a/w", b"\0\1" * 50))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    target = path.parent / f"unpacked-{at}-{content[at]}"

    try:
        archive.unpack(path, target)
    except ModelFormatError:
        assert not target.exists()
    else:
        assert all(one.resolve().is_relative_to(target.resolve()) for one in target.rglob("*"))
        for one in target.rglob("*"):
            assert one.is_dir() or one.read_bytes() in {b'{"x": 1}', b"\0\1" * 50}
    finally:
        shutil.rmtree(target, ignore_errors=True)
