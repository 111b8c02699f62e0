"""A large file arrives over a bad line and from bad servers, and no byte of it is fetched twice."""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.domain import Sha256
from dicomnode.errors import ConfigError, InputError, PeerError, ResourceError, SpoolFullError
from dicomnode.pipeline import download as downloads
from dicomnode.pipeline.download import GIB, Downloaded, Limits, Source
from tests.wire.file_server import FileServer, Reply

KIB = 1024
CONTENT = b"PK\3\4" + random.Random(1).randbytes(600 * KIB)
DIGEST = Sha256(hashlib.sha256(CONTENT).hexdigest())
OTHER = b"PK\3\4" + random.Random(2).randbytes(600 * KIB)
IMPATIENT = Limits(free_bytes=0, sync_bytes=300 * KIB, attempts=3, wait_s=0.0, timeout_s=5.0)
CUT = Reply(cut_after=300 * KIB)


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    with FileServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(https: FileServer) -> FileServer:
    """The server with nothing on it but one file."""
    https.files.clear()
    https.script.clear()
    https.asked.clear()
    https.sent_bytes = 0
    https.publish("/model.zip", CONTENT)
    return https


@pytest.fixture
def fetch(server: FileServer, tmp_path: Path) -> Callable[..., Downloaded]:
    """Fetch the file of the server into one folder."""

    def fetched(
        path: str = "/model.zip", *, sha256: str | None = DIGEST, limits: Limits = IMPATIENT
    ) -> Downloaded:
        digest = Sha256(sha256) if sha256 else None
        source = Source(url=server.url + path, sha256=digest, ca_file=server.ca_file)
        return downloads.download(source, tmp_path / "downloads", limits=limits, progress=lambda *_: None)

    return fetched


def left_in(folder: Path) -> list[str]:
    return sorted(one.suffix for one in folder.iterdir() if one.name != "lock")


# --- one line, good and bad


def test_a_file_arrives_under_the_name_of_its_digest(fetch, server, tmp_path):
    done = fetch()

    assert done.path == tmp_path / "downloads" / f"{DIGEST}.zip"
    assert (done.path.read_bytes(), done.sha256, done.fetched_bytes) == (CONTENT, DIGEST, len(CONTENT))
    assert left_in(tmp_path / "downloads") == [".zip"]
    assert server.asked[0]["accept-encoding"] == "identity"


def test_progress_is_told_with_the_size_in_all(server, tmp_path):
    told = []
    source = Source(url=f"{server.url}/model.zip", ca_file=server.ca_file)

    downloads.download(source, tmp_path, limits=IMPATIENT, progress=lambda *at: told.append(at))

    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [here for here, _ in told] == sorted(here for here, _ in told)


def test_after_a_cut_only_the_rest_is_asked_for(fetch, server):
    server.script = [CUT]

    done = fetch()

    assert done.path.read_bytes() == CONTENT
    [first, second] = server.asked
    start = int(second["range"].removeprefix("bytes=").removesuffix("-"))
    assert "range" not in first
    assert 0 < start <= 300 * KIB
    assert (start % (256 * KIB), second["if-range"]) == (0, '"v1"')


def test_a_line_that_is_cut_again_and_again_still_brings_the_file(fetch, server):
    cut = Reply(cut_after=257 * KIB)
    server.script = [Reply(status=503), Reply(status=503), cut, Reply(status=502), Reply(status=502), cut]

    assert fetch().path.read_bytes() == CONTENT


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(fetch, server):
    gone = Reply(status=500, body=b"")
    server.script = [CUT, gone, gone, gone, gone, gone]
    with pytest.raises(PeerError, match="answered 500"):
        fetch()

    server.script = []
    done = fetch()

    assert done.path.read_bytes() == CONTENT
    assert done.fetched_bytes == len(CONTENT) - 256 * KIB


def test_bytes_that_were_not_surely_on_the_disk_are_fetched_anew(fetch, server, tmp_path):
    gone = Reply(status=500, body=b"")
    server.script = [CUT, gone, gone, gone, gone, gone]
    with pytest.raises(PeerError):
        fetch()
    [part] = (tmp_path / "downloads").glob("*.part")
    with part.open("ab") as file:  # what a power cut may leave behind: length without content
        file.write(b"\0" * 10 * KIB)

    server.script = []

    assert fetch().path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "record", [b"", b"[]", b'{"validator": "x"}', b'{"validator": "", "synced_bytes": 5}']
)
def test_a_beginning_without_a_usable_record_is_fetched_anew(record: bytes, fetch, server, tmp_path):
    gone = Reply(status=500, body=b"")
    server.script = [CUT, gone, gone, gone, gone, gone]
    with pytest.raises(PeerError):
        fetch()
    [path] = (tmp_path / "downloads").glob("*.json")
    path.write_bytes(record)

    server.script = []
    done = fetch()

    assert (done.path.read_bytes(), done.fetched_bytes) == (CONTENT, len(CONTENT))


def test_a_file_that_was_complete_before_a_crash_is_not_fetched_again(fetch, server, tmp_path):
    folder = tmp_path / "downloads"
    wrong = "0" * 64
    with pytest.raises(InputError):
        fetch(sha256=wrong)
    part = downloads.PartialFile(folder, f"{server.url}/model.zip")
    part.begin('"v1"')
    part.append(iter([CONTENT]), sync_bytes=KIB, on_growth=lambda _: None)
    server.sent_bytes = 0

    assert fetch().path.read_bytes() == CONTENT
    assert server.sent_bytes == 0
    assert server.asked[-1]["range"] == f"bytes={len(CONTENT)}-"


# --- servers that change their mind, or lie


def test_a_file_that_was_changed_meanwhile_is_fetched_from_its_beginning(fetch, server):
    server.script = [CUT, Reply(before=lambda: server.publish("/model.zip", OTHER, tag='"v2"'))]
    digest = hashlib.sha256(OTHER).hexdigest()

    assert fetch(sha256=digest).path.read_bytes() == OTHER


def test_a_server_that_mixes_two_files_up_is_asked_once_more_from_the_beginning(fetch, server):
    swap = Reply(before=lambda: server.publish("/model.zip", OTHER))  # another file with the same ETag
    server.script = [CUT, swap]

    assert fetch(sha256=hashlib.sha256(OTHER).hexdigest()).path.read_bytes() == OTHER
    assert ["range" in one for one in server.asked] == [False, True, False]


def test_a_piece_from_elsewhere_in_the_file_is_not_taken(fetch, server):
    span = f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"
    server.script = [CUT, Reply(headers={"Content-Range": span})]

    assert fetch().path.read_bytes() == CONTENT
    assert ["range" in one for one in server.asked] == [False, True, False]


def test_a_piece_of_another_version_is_not_taken(fetch, server):
    server.script = [CUT, Reply(headers={"ETag": '"v9"'})]

    assert fetch().path.read_bytes() == CONTENT
    assert ["range" in one for one in server.asked] == [False, True, False]


@pytest.mark.parametrize("tag", [None, 'W/"v1"'])
def test_a_file_that_cannot_be_recognised_again_is_not_continued(tag: str | None, fetch, server):
    server.script = [replace(CUT, headers={"ETag": tag})]

    assert fetch().path.read_bytes() == CONTENT
    assert ["range" in one for one in server.asked] == [False, False]


def test_a_server_without_ranges_sends_the_whole_again(fetch, server):
    server.script = [CUT, Reply(status=200, headers={"Content-Range": None}, body=CONTENT)]

    assert fetch().path.read_bytes() == CONTENT


def test_a_server_that_says_more_bytes_than_it_has_is_given_up(fetch, server):
    lie = Reply(headers={"Content-Length": str(len(CONTENT) + 9)}, cut_after=len(CONTENT))
    server.script = [lie] * 9

    with pytest.raises(PeerError):
        fetch()


def test_a_server_that_says_fewer_bytes_is_found_out_by_the_digest(fetch, server, tmp_path):
    server.script = [Reply(headers={"Content-Length": "1000"}, cut_after=1000)]

    with pytest.raises(InputError, match="another file, or was changed"):
        fetch()

    assert left_in(tmp_path / "downloads") == []


def test_a_file_of_unknown_length_is_taken_to_its_end(fetch, server):
    server.script = [Reply(headers={"Content-Length": None, "Connection": "close"}, cut_after=len(CONTENT))]

    assert fetch().path.read_bytes() == CONTENT


def test_another_file_than_the_digest_says_is_not_kept(fetch, server, tmp_path):
    server.publish("/model.zip", OTHER)

    with pytest.raises(
        InputError, match=f"has the SHA-256 {hashlib.sha256(OTHER).hexdigest()}, not {DIGEST}"
    ):
        fetch()

    assert left_in(tmp_path / "downloads") == []


def test_a_page_about_the_file_is_refused_at_its_first_bytes(fetch, server, tmp_path):
    server.publish("/model.zip", b"<!DOCTYPE html>" + b" " * 900 * KIB)

    with pytest.raises(InputError, match="is no zip: it begins with b'<!DOCTYPE html> '"):
        fetch(sha256=None)

    assert left_in(tmp_path / "downloads") == []


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (Reply(status=404), "answered 404, not with a file; check the address"),
        (Reply(status=401), "wants a login"),
        (Reply(status=204, body=b""), "answered 204"),
        (Reply(headers={"Content-Encoding": "gzip"}), "packed once more"),
    ],
)
def test_a_refusal_is_final(reply: Reply, match: str, fetch, server):
    server.script = [reply]

    with pytest.raises(InputError, match=match):
        fetch()

    assert len(server.asked) == 1


# --- limits


def test_a_file_that_is_too_large_is_refused_before_it_is_fetched(fetch, server, tmp_path):
    with pytest.raises(InputError, match=r"at most .* are taken"):
        fetch(limits=replace(IMPATIENT, file_bytes=len(CONTENT) - 1))

    assert left_in(tmp_path / "downloads") == []


def test_a_file_that_grows_too_large_on_the_way_is_dropped(fetch, server, tmp_path):
    server.script = [Reply(headers={"Content-Length": None, "Connection": "close"}, cut_after=len(CONTENT))]

    with pytest.raises(InputError, match="sends more than"):
        fetch(limits=replace(IMPATIENT, file_bytes=300 * KIB))

    assert left_in(tmp_path / "downloads") == []


def test_a_disk_without_room_is_told_before_anything_is_written(fetch, tmp_path):
    with pytest.raises(SpoolFullError, match="free some space"):
        fetch(limits=replace(IMPATIENT, free_bytes=GIB * GIB))

    assert left_in(tmp_path / "downloads") == []


def test_a_folder_that_cannot_be_made_is_told(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    source = Source(url=f"{server.url}/model.zip", ca_file=server.ca_file)

    with pytest.raises(ResourceError, match="cannot use"):
        downloads.download(source, tmp_path / "file" / "x", limits=IMPATIENT, progress=lambda *_: None)


# --- https, and nothing else


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://example.org/a.zip", "does not begin with https"),
        ("ftp://example.org/a.zip", "does not begin with https"),
        ("file:///etc/passwd", "does not begin with https"),
        ("https://", "does not begin with https"),
        ("a.zip", "does not begin with https"),
        ("https://me:secret@example.org/a.zip", "holds a user name or password"),
        ("https://example.org:port/a.zip", "is no address"),
    ],
)
def test_an_address_must_be_plain_https(url: str, match: str, tmp_path):
    with pytest.raises(ConfigError, match=match) as caught:
        downloads.download(Source(url=url), tmp_path, limits=IMPATIENT, progress=lambda *_: None)

    assert "secret" not in str(caught.value)


def test_a_redirect_is_followed_on_https(fetch, server):
    server.script = [Reply(status=302, headers={"Location": "/model.zip?token=1"})]

    assert fetch("/latest").path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("http://localhost/model.zip", "does not begin with https"),
        ("https://me:secret@localhost/model.zip", "holds a user name"),
    ],
)
def test_a_redirect_that_leads_elsewhere_is_refused(location: str, match: str, fetch, server):
    server.script = [Reply(status=302, headers={"Location": location})]

    with pytest.raises(InputError, match=match) as caught:
        fetch("/latest")

    assert "secret" not in str(caught.value)


def test_a_chain_of_redirects_without_end_is_refused(fetch, server):
    server.script = [Reply(status=307, headers={"Location": "/model.zip"})] * 99

    with pytest.raises(InputError, match="points on more than 5 times"):
        fetch()


def test_a_server_that_is_not_trusted_is_told_at_once(server, tmp_path):
    with pytest.raises(PeerError, match=r"not trusted .* --ca-file"):
        downloads.download(
            Source(url=f"{server.url}/model.zip"), tmp_path, limits=IMPATIENT, progress=lambda *_: None
        )

    assert server.asked == []


def test_a_file_without_certificates_is_told(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    source = Source(url="https://localhost/x", ca_file=tmp_path / "ca.pem")

    with pytest.raises(ConfigError, match=r"no certificates can be read from .*ca\.pem"):
        downloads.download(source, tmp_path / "d", limits=IMPATIENT, progress=lambda *_: None)


def test_the_query_of_an_address_is_never_told(fetch, server, caplog):
    caplog.set_level(logging.WARNING)
    server.script = [Reply(status=503), Reply(status=404)]

    with pytest.raises(InputError) as caught:
        fetch("/model.zip?token=hush")

    assert "hush" not in str(caught.value) + caplog.text
    assert server.asked[1]["path"] == "/model.zip?token=hush"
