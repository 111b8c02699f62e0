"""What comes in over C-STORE lies in the spool as it was sent, or is refused with a reason."""

import json
import socket
import subprocess
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from dicomnode.domain import JobKind
from dicomnode.errors import DeliveryError, UnreadableInstanceError
from dicomnode.scp import sender
from tests.peers import need_dcmtk, storescu, wait_until
from tests.wire.objects import (
    data_set_bytes,
    dicom_files,
    is_consistent,
    make_image,
    names_itself,
    store_raw,
    write,
    write_series,
)

SENDER = "MODALITY"
REAL = ("transfer_syntaxes", "vendors", "charsets", "enhanced", "seg_objects")


def associate(
    port: int, *, syntaxes: list[str] | str = ExplicitVRLittleEndian, sop_class: str = MRImageStorage
) -> Association:
    """Open an association for one class as a plain pynetdicom requestor."""
    ae = AE(ae_title=SENDER)
    ae.dimse_timeout = 10
    ae.add_requested_context(sop_class, syntaxes)
    assoc = ae.associate("127.0.0.1", port)
    assert assoc.is_established
    return assoc


def test_every_real_object_is_stored_byte_for_byte_in_its_own_transfer_syntax(receiver, data_dir):
    files = [
        path
        for path in dicom_files([data_dir / f for f in REAL])
        if names_itself(path) and is_consistent(path)
    ]
    assert len(files) > 80

    sent = sender.send_many(files, receiver.destination, ae_title=SENDER)

    assert {one.status for one in sent} == {0}
    assert {data_set_bytes(path) for path in receiver.paths()} == {data_set_bytes(path) for path in files}
    assert receiver.quarantined() == []
    for path in receiver.paths():
        assert dcmread(path, stop_before_pixels=True).file_meta.MediaStorageSOPInstanceUID in path.name


def test_a_file_whose_meta_information_names_another_object_is_sent_as_its_data_set_says(receiver, data_dir):
    files = [p for p in dicom_files([data_dir / "vendors"]) if not is_consistent(p)]
    assert len(files) > 20

    sender.send_many(files, receiver.destination, ae_title=SENDER)

    uids = {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in files}
    assert {path.name.rsplit(".", 2)[0] for path in receiver.paths()} == uids


def test_a_real_file_without_identity_is_not_sent(receiver, data_dir):
    path = next(p for p in dicom_files([data_dir / "charsets"]) if not names_itself(p))
    with pytest.raises(UnreadableInstanceError, match=path.name):
        sender.send(path, receiver.destination, ae_title=SENDER)


def test_dcmtk_sends_a_series_of_images(receiver, tmp_path):
    files = write_series(tmp_path / "series", count=5)

    result = storescu(files, receiver.destination)

    assert result.returncode == 0, result.stderr
    assert len(receiver.paths()) == 5
    series_uid = dcmread(files[0]).SeriesInstanceUID
    rows = receiver.store.series.instances_of(series_uid)
    assert {row.sender for row in rows} == {"STORESCU"}
    for path in files:
        ds = dcmread(path)
        [row] = [row for row in rows if row.sop_instance_uid == ds.SOPInstanceUID]
        assert dcmread(receiver.spool.path_of(row)).PixelData == ds.PixelData


def test_orthanc_sends_images_and_a_segmentation_as_it_got_them(receiver, orthanc_beside_node, data_dir):
    compressed = dicom_files([data_dir / "transfer_syntaxes"])
    files = [*compressed, data_dir / "seg_objects" / "highdicom" / "seg_image_ct_binary.dcm"]
    files = list({dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in files}.values())
    for path in files:
        orthanc_beside_node.upload(path)

    orthanc_beside_node.send("node")

    kept = {ds.SOPInstanceUID: ds for ds in map(dcmread, receiver.paths())}
    assert len(kept) == len(files)
    for path in files:
        sent = dcmread(path)
        assert kept[sent.SOPInstanceUID].file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert kept[sent.SOPInstanceUID].PixelData == sent.PixelData


def test_dcmtk_sends_every_compressed_syntax_without_decompressing(receiver, data_dir):
    folder = data_dir / "transfer_syntaxes" / "dcm_qa_ts" / "In"
    files = [p for p in dicom_files([folder]) if dcmread(p).file_meta.TransferSyntaxUID.is_compressed]
    program = need_dcmtk("dcmsend")

    result = _run(program, "-dn", "-nuc", "-aec", "DICOMNODE", "127.0.0.1", str(receiver.server.port), *files)

    assert result.returncode == 0, result.stderr
    sent = {str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID) for path in files}
    kept = {
        str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID) for path in receiver.paths()
    }
    assert kept == sent
    assert len(kept) == 4


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"])
def test_a_segmentation_of_either_class_is_taken_and_queued_as_a_correction(receiver, data_dir, sop_class):
    files = dicom_files([data_dir / "seg_objects"])
    path = next(p for p in files if dcmread(p, stop_before_pixels=True).SOPClassUID == sop_class)

    sender.send(path, receiver.destination, ae_title=SENDER)

    assert len(receiver.paths()) == 1
    [job] = receiver.store.jobs.list(limit=10)
    assert job.kind is JobKind.INGEST_CORRECTION


def test_a_deflated_object_is_kept_deflated(receiver, tmp_path):
    ds = make_image()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = write(ds, tmp_path)

    sender.send(path, receiver.destination, ae_title=SENDER)

    assert data_set_bytes(receiver.paths()[0]) == data_set_bytes(path)


def test_the_same_object_twice_is_one_file_and_two_successes(receiver, tmp_path):
    path = write(make_image(), tmp_path)

    first, second = sender.send_many([path, path], receiver.destination, ae_title=SENDER)

    assert (first.status, second.status) == (0, 0)
    assert len(receiver.paths()) == 1


def test_other_content_under_the_same_uid_is_kept_beside_the_first_and_the_latest_counts(receiver, tmp_path):
    first = make_image(sop_uid="1.2.3.4", series_uid="1.2.3")
    second = make_image(sop_uid="1.2.3.4", series_uid="1.2.3", seed=7)
    for name, ds in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        sender.send(write(ds, tmp_path / name), receiver.destination, ae_title=SENDER)

    assert len(receiver.paths()) == 2
    assert receiver.stored_bytes(second) == data_set_bytes(tmp_path / "b" / "1.2.3.4.dcm")
    assert "instance_variant" in {row.event for row in receiver.store.audit.list(limit=10)}


@pytest.mark.parametrize("garbage", [b"x", b"this is no DICOM at all" * 50, bytes(4096), b"\xff" * 4096])
def test_bytes_that_are_no_data_set_are_refused_with_a_reason_and_kept(receiver, garbage):
    assoc = associate(receiver.server.port)

    answer = store_raw(assoc, garbage, sop_class_uid=MRImageStorage, sop_instance_uid="1.2.3")
    after = assoc.send_c_store(make_image())
    assoc.release()

    assert answer is not None
    assert answer.Status == 0xC000
    assert "kept" in answer.ErrorComment
    assert after.Status == 0
    assert [path.read_bytes() for path in receiver.quarantined()] == [garbage]
    note = json.loads(receiver.quarantined()[0].with_suffix(".json").read_text())
    assert note["sender"] == SENDER


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
def test_a_data_set_that_names_another_object_is_refused_and_kept(receiver, keyword):
    ds = make_image()
    announced = {"sop_class_uid": str(ds.SOPClassUID), "sop_instance_uid": str(ds.SOPInstanceUID)}
    ds[keyword].value = "1.2.840.10008.5.1.4.1.1.2"
    assoc = associate(receiver.server.port)

    answer = store_raw(assoc, _encoded(ds), **announced)
    assoc.release()

    assert answer is not None
    assert answer.Status == 0xA900
    assert receiver.paths() == []
    assert [path.read_bytes() for path in receiver.quarantined()] == [_encoded(ds)]


def test_damaged_data_sets_are_stored_or_refused_with_a_reason_and_never_a_fault(receiver, data_dir):
    chance = np.random.default_rng(3)
    answers = []
    for name in ("seg_image_ct_binary.dcm", "ct_image.dcm"):
        path = data_dir / "seg_objects" / "highdicom" / name
        ds = dcmread(path, stop_before_pixels=True)
        uids = {"sop_class_uid": str(ds.SOPClassUID), "sop_instance_uid": str(ds.SOPInstanceUID)}
        syntax = str(ds.file_meta.TransferSyntaxUID)
        assoc = associate(receiver.server.port, sop_class=uids["sop_class_uid"], syntaxes=syntax)
        damaged = [_damage(data_set_bytes(path), chance) for _ in range(60)]
        answers += [(store_raw(assoc, one, **uids), one) for one in damaged]
        assoc.release()

    statuses = Counter(answer.Status for answer, _ in answers)
    assert set(statuses) <= {0x0000, 0xA900, 0xC000}
    assert statuses[0x0000] > 5
    assert statuses[0xC000] + statuses[0xA900] > 5
    quarantined = {path.read_bytes() for path in receiver.quarantined()}
    assert quarantined | {data_set_bytes(path) for path in receiver.paths()} == {one for _, one in answers}


def test_a_data_set_without_series_is_refused_and_kept(receiver):
    ds = make_image()
    del ds.SeriesInstanceUID
    assoc = associate(receiver.server.port)

    answer = assoc.send_c_store(ds)
    assoc.release()

    assert answer.Status == 0xC000
    assert len(receiver.quarantined()) == 1


@pytest.mark.parametrize("uid", ["../../etc/passwd", "..", "/tmp/x", "1.2.3/../../x", "1.2.3\\4"])
def test_a_uid_that_is_a_path_leaves_nothing_outside_the_spool(receiver, tmp_path, uid):
    ds = make_image()
    ds.add_new(0x0020000E, "LO", uid)
    ds.SeriesInstanceUID = uid
    before = {path for path in tmp_path.rglob("*") if "quarantine" not in path.parts}
    assoc = associate(receiver.server.port)

    answer = store_raw(
        assoc, _encoded(ds), sop_class_uid=str(ds.SOPClassUID), sop_instance_uid=str(ds.SOPInstanceUID)
    )
    assoc.release()

    assert answer is not None
    assert answer.Status == 0xC000
    assert {path for path in tmp_path.rglob("*") if "quarantine" not in path.parts} - before <= _sqlite(
        tmp_path
    )


def test_a_request_for_another_class_than_its_context_is_refused(receiver):
    assoc = associate(receiver.server.port)

    answer = store_raw(
        assoc, _encoded(make_image()), sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid="1.2.3"
    )
    assoc.release()

    assert answer is not None
    assert answer.Status == 0x0122


def test_the_order_of_the_requestors_syntaxes_decides(receiver):
    for syntaxes in (
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian],
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian],
        [JPEG2000Lossless, ImplicitVRLittleEndian],
    ):
        assoc = associate(receiver.server.port, syntaxes=syntaxes)
        assert assoc.accepted_contexts[0].transfer_syntax == [syntaxes[0]]
        assoc.release()


def test_a_private_class_and_an_unknown_syntax_are_not_accepted_and_the_others_are(receiver):
    ae = AE(ae_title=SENDER)
    ae.add_requested_context("1.2.826.0.1.3680043.2.1", ExplicitVRLittleEndian)
    ae.add_requested_context(MRImageStorage, "1.2.826.0.1.3680043.2.2")
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", receiver.server.port)

    assert [context.result for context in assoc.rejected_contexts] == [3, 4]
    assert assoc.send_c_echo().Status == 0
    assoc.release()


def test_an_association_cut_in_the_middle_of_an_object_leaves_nothing_under_a_final_name(receiver, tmp_path):
    whole = make_image()
    assoc = associate(receiver.server.port)
    assert assoc.send_c_store(whole).Status == 0
    pdus: list[bytes] = []

    def cut(event: evt.Event) -> None:
        pdus.append(b"")
        if len(pdus) == 10:
            assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)

    assoc.bind(evt.EVT_PDU_SENT, cut)
    assoc.send_c_store(make_image(size=1024))
    wait_until(lambda: not receiver.server.connections(), what="the receiver noticed the cut")

    assert [path.name.rsplit(".", 2)[0] for path in receiver.paths()] == [whole.SOPInstanceUID]
    assert receiver.quarantined() == []
    assert receiver.unfinished() == []


def test_an_abort_after_some_objects_keeps_those_acknowledged(receiver):
    assoc = associate(receiver.server.port)
    images = [make_image(number=n) for n in range(4)]
    for ds in images:
        assert assoc.send_c_store(ds).Status == 0
    assoc.abort()
    wait_until(lambda: not receiver.server.connections())

    assert len(receiver.paths()) == 4
    for ds in images:
        receiver.stored_bytes(ds)


def test_a_failure_names_its_status_to_the_sender(receiver, tmp_path):
    ds = make_image()
    del ds.SeriesInstanceUID

    with pytest.raises(DeliveryError, match="0xC000") as caught:
        sender.send(write(ds, tmp_path), receiver.destination, ae_title=SENDER)

    assert caught.value.status == 0xC000


def _encoded(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    content = buffer.getvalue()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def _damage(encoded: bytes, chance: np.random.Generator) -> bytes:
    """Cut a data set, flip bytes in its head, or turn lengths and tags over."""
    content = bytearray(encoded)
    head = min(len(content), 1200)
    match int(chance.integers(3)):
        case 0:
            return bytes(content[: int(chance.integers(1, head))])
        case 1:
            for position in chance.integers(0, head, 4):
                content[position] = int(chance.integers(256))
        case _:
            position = int(chance.integers(0, head - 8))
            content[position : position + 4] = b"\xff\xff\xff\xff"
    return bytes(content)


def _sqlite(tmp_path: Path) -> set[Path]:
    return set(tmp_path.rglob("*.sqlite*"))


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, check=False)
