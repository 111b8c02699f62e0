"""The folder of DICOM files."""

import hashlib
import itertools
import json
import os
import resource
import struct
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

from dicomnode.domain import StoredInstance
from dicomnode.errors import InstanceMismatchError, ResourceError, SpoolFullError, UnreadableInstanceError
from dicomnode.spool import Spool, read_part_10

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
SERIES = "1.2.826.0.1.3680043.8.498.77"
PIXELS = np.arange(64 * 512, dtype=np.uint16).reshape(64, 512)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", minimum_free_bytes=0)


def make_image(number: int = 1, *, syntax: str = ExplicitVRLittleEndian, series: str = SERIES) -> Dataset:
    """A small MR image, large enough for its pixels to be deferred."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = MRImageStorage
    ds.SOPInstanceUID = f"{series}.{number}"
    ds.Modality = "MR"
    ds.PatientID = "PATIENT"
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.7"
    ds.SeriesInstanceUID = series
    ds.Rows, ds.Columns = PIXELS.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    if syntax == RLELossless:
        ds.compress(RLELossless, PIXELS, generate_instance_uid=False)
    else:
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        ds.PixelData = PIXELS.astype(order).tobytes()
        ds["PixelData"].VR = "OW"
    return ds


def on_the_wire(ds: Dataset) -> bytes:
    """The data set without preamble and file meta information."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    part10 = buffer.getvalue()
    return part10[144 + struct.unpack_from("<L", part10, 140)[0] :]


def keep(spool: Spool, ds: Dataset, **changes: str) -> StoredInstance:
    return keep_bytes(spool, on_the_wire(ds), ds, **changes)


def keep_bytes(spool: Spool, encoded: bytes, ds: Dataset, **changes: str) -> StoredInstance:
    announced = {
        "sop_class_uid": str(ds.SOPClassUID),
        "sop_instance_uid": str(ds.SOPInstanceUID),
        "transfer_syntax_uid": str(ds.file_meta.TransferSyntaxUID),
    }
    return spool.write(encoded, **{**announced, **changes}, sender="SCANNER", received_at=NOON)


SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "encapsulated": RLELossless,
}


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_an_image_of_any_syntax_is_kept_as_received(spool: Spool, syntax: str) -> None:
    ds = make_image(syntax=syntax)
    encoded = on_the_wire(ds)
    kept = keep(spool, ds)
    assert kept.sha256 == hashlib.sha256(encoded).hexdigest()
    assert kept.path == f"{SERIES}/{SERIES}.1.{kept.sha256[:12]}.dcm"
    assert (kept.modality, kept.size_bytes, kept.sender) == ("MR", len(encoded), "SCANNER")
    assert spool.path_of(kept).read_bytes().endswith(encoded)
    [found] = spool.read([kept])
    assert found.PatientID == "PATIENT"
    assert found.file_meta.TransferSyntaxUID == syntax
    assert found.file_meta.SourceApplicationEntityTitle == "SCANNER"
    assert np.array_equal(found.pixel_array, PIXELS)


def test_a_file_is_conformant_part_10(spool: Spool) -> None:
    meta = dcmread(spool.path_of(keep(spool, make_image()))).file_meta
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.MediaStorageSOPClassUID == MRImageStorage
    assert meta.MediaStorageSOPInstanceUID == f"{SERIES}.1"


def test_instances_are_read_in_the_order_asked_for(spool: Spool) -> None:
    kept = [keep(spool, make_image(number)) for number in (1, 2, 3)]
    found = spool.read([kept[2], kept[0]])
    assert [ds.SOPInstanceUID for ds in found] == [f"{SERIES}.3", f"{SERIES}.1"]


def test_the_same_bytes_again_leave_the_file_alone(spool: Spool) -> None:
    first = keep(spool, make_image())
    before = spool.path_of(first).stat()
    again = keep(spool, make_image())
    after = spool.path_of(again).stat()
    assert again.path == first.path
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_torn_file_under_the_name_is_mended_by_the_next_delivery(spool: Spool) -> None:
    kept = keep(spool, make_image())
    whole = spool.path_of(kept).read_bytes()
    for torn in (b"", whole[:100], whole[:-1]):
        spool.path_of(kept).write_bytes(torn)
        keep(spool, make_image())
        assert spool.path_of(kept).read_bytes() == whole


def test_other_bytes_under_the_same_uid_stand_beside_the_first(spool: Spool) -> None:
    first = keep(spool, make_image())
    other = make_image()
    other.PatientID = "CORRECTED"
    second = keep(spool, other)
    assert second.path != first.path
    assert [ds.PatientID for ds in spool.read([first, second])] == ["PATIENT", "CORRECTED"]


def test_a_result_is_kept_under_the_same_guarantees(spool: Spool) -> None:
    ds = make_image()
    kept = spool.write_result(ds, sender="DICOMNODE", created_at=NOON)
    assert kept.sha256 == hashlib.sha256(on_the_wire(ds)).hexdigest()
    assert spool.write_result(ds, sender="DICOMNODE", created_at=NOON) == kept
    assert np.array_equal(spool.read([kept])[0].pixel_array, PIXELS)


def test_a_result_without_series_is_refused(spool: Spool) -> None:
    ds = make_image()
    del ds.SeriesInstanceUID
    with pytest.raises(UnreadableInstanceError, match="Series Instance UID: found none"):
        spool.write_result(ds, sender="DICOMNODE", created_at=NOON)


def test_a_result_that_cannot_be_encoded_is_named_without_its_values(spool: Spool) -> None:
    ds = make_image()
    weight = DataElement("PatientWeight", "FD", None)
    weight._value = "SECRET-7"  # what a broken header may hold; pydicom's own words repeat it
    ds[0x00101030] = weight

    with pytest.raises(UnreadableInstanceError, match=str(ds.SOPInstanceUID)) as caught:
        spool.write_result(ds, sender="DICOMNODE", created_at=NOON)

    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_an_instance_without_identity_is_refused(spool: Spool, keyword: str) -> None:
    complete, ds = make_image(), make_image()
    delattr(ds, keyword)
    ds.file_meta.MediaStorageSOPClassUID = complete.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = complete.SOPInstanceUID
    with pytest.raises(UnreadableInstanceError, match="found none"):
        keep_bytes(spool, on_the_wire(ds), complete)
    assert files_in(spool) == []


@pytest.mark.parametrize(
    "uid", ["../../etc/passwd", "..", ".", "/etc/passwd", "1.2/../3", "1.2\\3", "1." * 33, "1.2.3 x", "1\n2"]
)
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID"])
def test_a_uid_never_leads_out_of_the_spool(spool: Spool, keyword: str, uid: str) -> None:
    good = make_image()
    value = str(getattr(good, keyword)).encode()
    encoded = on_the_wire(good)
    value += b"\0" * (len(value) % 2)
    hostile = uid.encode() + b"\0" * (len(uid) % 2)
    tag = {"SOPInstanceUID": b"\x08\x00\x18\x00UI", "SeriesInstanceUID": b"\x20\x00\x0e\x00UI"}[keyword]
    old = tag + struct.pack("<H", len(value)) + value
    assert old in encoded
    encoded = encoded.replace(old, tag + struct.pack("<H", len(hostile)) + hostile)
    changes = {"sop_instance_uid": uid} if keyword == "SOPInstanceUID" else {}
    with pytest.raises(UnreadableInstanceError):
        keep_bytes(spool, encoded, good, **changes)
    assert files_in(spool) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sop_instance_uid": "1.2.3"}, "SOP Instance UID: the sender announced '1.2.3'"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2"}, "SOP Class UID: the sender announced"),
        ({"transfer_syntax_uid": "../x"}, "Transfer Syntax UID"),
    ],
)
def test_what_the_sender_announced_must_be_what_it_sent(
    spool: Spool, changes: dict[str, str], words: str
) -> None:
    with pytest.raises(UnreadableInstanceError, match=words) as caught:
        keep(spool, make_image(), **changes)
    assert isinstance(caught.value, InstanceMismatchError) == ("announced" in words)


def test_no_message_carries_a_patient_identifier(spool: Spool) -> None:
    ds = make_image()
    del ds.SeriesInstanceUID
    with pytest.raises(UnreadableInstanceError) as caught:
        keep(spool, ds)
    assert "PATIENT" not in str(caught.value)


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_a_cut_or_wrong_stream_is_refused_whatever_the_cut(spool: Spool, syntax: str) -> None:
    ds = make_image(syntax=syntax)
    encoded = on_the_wire(ds)
    for length in (0, 1, 7, 8, 20, 60, 100):
        with pytest.raises(UnreadableInstanceError):
            keep_bytes(spool, encoded[:length], ds)
    for wrong in (b"\xff" * 200, b"GIF89a" * 100, bytes(200)):
        with pytest.raises(UnreadableInstanceError):
            keep_bytes(spool, wrong, ds)


@given(
    noise=st.binary(max_size=300), start=st.integers(0, 200), syntax=st.sampled_from(list(SYNTAXES.values()))
)
def test_noise_is_kept_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, start: int, syntax: str
) -> None:
    spool = Spool(tmp_path_factory.mktemp("noise"), minimum_free_bytes=0)
    ds = make_image(syntax=ExplicitVRLittleEndian)
    encoded = on_the_wire(ds)[:400]
    encoded = encoded[:start] + noise + encoded[start + len(noise) :]
    try:
        keep_bytes(spool, encoded, ds, transfer_syntax_uid=syntax)
    except UnreadableInstanceError:
        assert files_in(spool) == []


def test_a_length_beyond_the_end_is_refused(spool: Spool) -> None:
    ds = make_image()
    encoded = b"\x08\x00\x08\x00OB\x00\x00" + struct.pack("<L", 0xFFFFFFF0) + on_the_wire(ds)
    with pytest.raises(UnreadableInstanceError):
        keep_bytes(spool, encoded, ds)


def test_sequences_nested_without_end_are_refused(spool: Spool) -> None:
    ds = make_image()
    level = b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(UnreadableInstanceError):
        keep_bytes(spool, level * 5000 + on_the_wire(ds), ds)


def test_a_deflate_bomb_is_not_inflated(spool: Spool) -> None:
    ds = make_image(syntax=DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = b"\x08\x00\x08\x00OB\x00\x00" + struct.pack("<L", 1 << 30)
    bomb = (
        packer.compress(start)
        + b"".join(packer.compress(bytes(1 << 20)) for _ in range(256))
        + packer.flush()
    )
    assert len(bomb) < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableInstanceError):
        keep_bytes(spool, bomb, ds)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_pixels_that_cannot_be_decoded_are_kept_all_the_same(spool: Spool) -> None:
    ds = make_image()
    del ds.PixelData
    encoded = on_the_wire(ds) + b"\xe0\x7f\x10\x00OW\x00\x00\xff\xff\xff\xff garbage"
    assert keep_bytes(spool, encoded, ds, transfer_syntax_uid="1.2.840.10008.1.2.4.90").size_bytes == len(
        encoded
    )


def test_below_the_watermark_nothing_is_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path, minimum_free_bytes=1 << 60)
    assert not spool.has_room()
    with pytest.raises(SpoolFullError, match="free some space"):
        keep(spool, make_image())
    with pytest.raises(SpoolFullError):
        spool.quarantine(b"x", reason="r", received_at=NOON)
    assert files_in(spool) == []
    assert spool.usage().minimum_free_bytes == 1 << 60


def test_a_write_that_finds_no_room_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """A limit on the size of files is a real refusal in the middle of a write, in a process of its own."""
    script = f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_spool import Spool, SpoolFullError, files_in, keep, make_image
        spool = Spool(Path({str(tmp_path)!r}), minimum_free_bytes=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            keep(spool, make_image())
        except SpoolFullError as error:
            assert "no room" in str(error), error
            assert files_in(spool) == [], files_in(spool)
            sys.exit(7)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert run.returncode == 7, run.stderr.decode()


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.decode().strip()}")
    try:
        spool = Spool(disk, minimum_free_bytes=0)
        kept = keep(spool, make_image(1))
        (disk / "filler").write_bytes(bytes(32 * 1024))
        with pytest.raises(SpoolFullError):
            keep(spool, make_image(2))
        assert [Path(name).name for name in files_in(spool)] == [Path(kept.path).name, "filler"]
        assert np.array_equal(spool.read([kept])[0].pixel_array, PIXELS)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_root_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot use"):
        Spool(tmp_path / "file" / "spool", minimum_free_bytes=0)


def test_a_missing_or_damaged_file_names_the_instance(spool: Spool) -> None:
    kept, other = keep(spool, make_image(1)), keep(spool, make_image(2))
    spool.path_of(kept).write_bytes(spool.path_of(other).read_bytes())
    with pytest.raises(UnreadableInstanceError, match=rf"{SERIES}\.1 is damaged"):
        spool.read([kept])
    spool.path_of(kept).write_bytes(b"no DICOM")
    with pytest.raises(UnreadableInstanceError, match=rf"{SERIES}\.1 cannot be read"):
        spool.read([kept])
    spool.path_of(kept).unlink()
    with pytest.raises(UnreadableInstanceError, match=rf"{SERIES}\.1 is not in the spool"):
        spool.read([kept])


def test_unreadable_bytes_are_quarantined_with_their_reason(spool: Spool) -> None:
    path = spool.quarantine(
        b"no DICOM", reason="no header", received_at=NOON, transfer_syntax_uid="1.2", sender="SCANNER"
    )
    assert path.read_bytes() == b"no DICOM"
    note = json.loads(path.with_suffix(".json").read_text())
    assert (note["reason"], note["sender"], note["size_bytes"]) == ("no header", "SCANNER", 8)
    assert spool.usage().quarantined == 1


def test_only_stale_temporary_files_are_swept(spool: Spool, tmp_path: Path) -> None:
    kept = keep(spool, make_image())
    stale, fresh = (tmp_path / "spool" / "incoming" / f"{name}.part" for name in ("stale", "fresh"))
    for path in (stale, fresh):
        path.write_bytes(b"x")
    os.utime(stale, (0, 0))
    assert spool.sweep(older_than=timedelta(hours=1)) == 1
    assert (stale.exists(), fresh.exists(), spool.path_of(kept).exists()) == (False, True, True)


def test_stored_paths_are_found_for_the_search_of_orphans(spool: Spool) -> None:
    kept = keep(spool, make_image())
    spool.quarantine(b"x", reason="r", received_at=NOON)
    later = datetime.now(UTC) + timedelta(hours=1)
    assert list(spool.stored_paths(older_than=timedelta(minutes=1), now=later)) == [kept.path]
    assert list(spool.stored_paths(older_than=timedelta(hours=2), now=later)) == []


def test_many_threads_write_the_same_and_other_images(spool: Spool) -> None:
    kept: list[StoredInstance] = []

    def receive() -> None:
        kept.extend(keep(spool, make_image(number)) for number in range(1, 11))

    threads = [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 40
    assert len({instance.path for instance in kept}) == 10 == len(files_in(spool))
    assert len(spool.read(kept)) == 40


def test_odd_senders_and_modalities_are_made_harmless(spool: Spool) -> None:
    ds = make_image()
    ds.Modality = "M\x00R\n" + "X" * 40
    kept = spool.write(
        on_the_wire(ds),
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
        sender="A" * 70 + "\x1b[31m",
        received_at=NOON,
    )
    assert kept.modality == ("MR" + "X" * 14)
    assert kept.sender == "A" * 64
    assert "SourceApplicationEntityTitle" not in spool.read([kept])[0].file_meta


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_pixels_of_a_file_of_any_syntax_are_fetched_when_used(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 4096, (256, 512), dtype=np.uint16)
    ds = make_image(syntax=syntax)
    ds.Rows = 256
    ds.PixelData = pixels.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    if syntax == RLELossless:
        ds.compress(RLELossless, pixels, generate_instance_uid=False)
    ds.save_as(tmp_path / "image.dcm", enforce_file_format=True)

    read = read_part_10(tmp_path / "image.dcm")

    is_in_memory = syntax == DeflatedExplicitVRLittleEndian
    assert (read.get_item("PixelData", keep_deferred=True).value is not None) == is_in_memory
    assert np.array_equal(read.pixel_array, pixels)


def test_a_deflated_file_that_grows_beyond_the_limit_is_not_taken_into_memory(tmp_path: Path) -> None:
    ds = make_image(syntax=DeflatedExplicitVRLittleEndian)
    ds.PixelData = bytes(50_000_000)
    ds.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    assert (tmp_path / "bomb.dcm").stat().st_size < 100_000

    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more than 1000000 bytes"):
        read_part_10(tmp_path / "bomb.dcm", inflated_limit_bytes=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


def test_real_images_of_every_syntax_are_kept(spool: Spool, data_dir: Path) -> None:
    paths = sorted((data_dir / "transfer_syntaxes").rglob("*.dcm"))
    assert paths
    for path in paths:
        original = dcmread(path)
        part10 = path.read_bytes()
        encoded = part10[144 + struct.unpack_from("<L", part10, 140)[0] :]
        kept = keep_bytes(spool, encoded, original)
        assert spool.path_of(kept).read_bytes().endswith(encoded)
        assert spool.read([kept])[0] == original


def files_in(spool: Spool) -> list[str]:
    """Every file below the root, temporary ones too."""
    root = spool._root
    found = itertools.chain.from_iterable(
        (Path(at) / name for name in names) for at, _, names in os.walk(root)
    )
    return sorted(str(path.relative_to(root)) for path in found)
