"""Files that are whole under their final name, or not there."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode import durable
from dicomnode.errors import ResourceError, SpoolFullError


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, (b"old",))
    durable.write(path, (b"n", b"ew"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_stops_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, (b"old",))

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        durable.write(path, parts())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_first_writers_one_wins(tmp_path: Path) -> None:
    path, won = tmp_path / "file", []
    threads = [
        threading.Thread(target=lambda n=n: won.append((durable.write_once(path, b"%d" % n), n)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [n for is_first, n in won if is_first]
    assert path.read_bytes() == b"%d" % winner
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, SpoolFullError), (errno.EDQUOT, SpoolFullError), (errno.EROFS, ResourceError)],
)
def test_the_system_s_refusals_become_ours(tmp_path: Path, number: int, kind: type[ResourceError]) -> None:
    with pytest.raises(ResourceError) as caught, durable.translated(tmp_path):
        raise OSError(number, "refused")
    assert type(caught.value) is kind
