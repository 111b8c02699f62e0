"""What goes out over C-STORE reaches Orthanc and DCMTK unchanged, and a failure says what to check."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000Lossless
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification

from dicomnode.domain import Destination
from dicomnode.errors import AssociationError, DeliveryError, UnreadableInstanceError
from dicomnode.scp import sender
from tests.peers import Orthanc, need_orthanc, start_orthanc, start_storescp
from tests.wire.objects import data_set_bytes, dicom_files, make_image, write, write_series

OURS = "DICOMNODE"
BINARY = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One Orthanc for the tests of this module."""
    need_orthanc()
    running = start_orthanc(tmp_path_factory.mktemp("peer"), _free_port(), _free_port())
    yield running
    running.stop()


def segmentation(data_dir: Path, sop_class: str) -> Path:
    """A real segmentation of a class."""
    files = dicom_files([data_dir / "seg_objects"])
    return next(p for p in files if dcmread(p, stop_before_pixels=True).SOPClassUID == sop_class)


def test_orthanc_answers_an_echo(orthanc):
    assert 0 < sender.echo(orthanc.destination, ae_title=OURS) < 10


def test_a_segmentation_reaches_orthanc_unchanged(orthanc, data_dir):
    path = segmentation(data_dir, BINARY)

    sent = sender.send(path, orthanc.destination, ae_title=OURS)

    assert (sent.status, sent.warning) == (0, "")
    ours = dcmread(path)
    theirs = [dcmread(BytesIO(content)) for content in orthanc.files()]
    [copy] = [ds for ds in theirs if ds.SOPInstanceUID == ours.SOPInstanceUID]
    assert copy == ours  # Orthanc encodes lengths anew; every element and the pixels are the same


def test_the_same_object_can_be_sent_to_orthanc_again(orthanc, data_dir):
    path = segmentation(data_dir, BINARY)
    for _ in range(2):
        assert sender.send(path, orthanc.destination, ae_title=OURS).status == 0


def test_orthanc_does_not_take_a_label_map_and_the_error_says_so(orthanc, data_dir):
    with pytest.raises(DeliveryError, match=r"ORTHANC at 127.0.0.1 port \d+\) does not take .*66\.7"):
        sender.send(segmentation(data_dir, LABEL_MAP), orthanc.destination, ae_title=OURS)


def test_storescp_gets_the_bytes_of_the_file_in_every_syntax(data_dir, storescp):
    files = dicom_files([data_dir / "transfer_syntaxes"])
    files = list({dcmread(p, stop_before_pixels=True).SOPInstanceUID: p for p in files}.values())

    sent = sender.send_many(files, storescp.destination, ae_title=OURS)

    assert {one.status for one in sent} == {0}
    received = dicom_files([storescp.folder])
    assert {data_set_bytes(path) for path in received} == {data_set_bytes(path) for path in files}


def test_storescp_that_takes_only_implicit_syntax_refuses_and_nothing_is_converted(tmp_path, free_port):
    peer = start_storescp(tmp_path / "received", port=free_port, options=("+xi",))
    try:
        with pytest.raises(
            DeliveryError, match="does not take MR Image Storage in Explicit VR Little Endian"
        ):
            sender.send(write(make_image(), tmp_path), peer.destination, ae_title=OURS)
    finally:
        peer.stop()
    assert dicom_files([tmp_path / "received"]) == []


def test_an_association_that_storescp_refuses_names_source_and_reason(tmp_path, free_port):
    peer = start_storescp(tmp_path / "received", port=free_port, options=("--refuse",))
    try:
        with pytest.raises(AssociationError, match=r"refused the association.*check both AE titles"):
            sender.echo(peer.destination, ae_title=OURS)
    finally:
        peer.stop()


def test_a_storescp_that_aborts_after_the_object_leaves_it_unknown(tmp_path, free_port):
    peer = start_storescp(tmp_path / "received", port=free_port, options=("--abort-after",))
    try:
        with pytest.raises(AssociationError, match="whether it kept the object is unknown"):
            sender.send(write(make_image(), tmp_path), peer.destination, ae_title=OURS, timeout_s=5)
    finally:
        peer.stop()


def test_nothing_that_listens_is_an_unreachable_peer(free_port, tmp_path):
    nobody = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port)
    with pytest.raises(
        AssociationError, match=rf"pacs \(PACS at 127.0.0.1 port {free_port}\) cannot be reached"
    ):
        sender.send(write(make_image(), tmp_path), nobody, ae_title=OURS)


def test_a_host_name_that_does_not_resolve_is_an_unreachable_peer():
    nobody = Destination(name="pacs", ae_title="PACS", host="no-such-host.invalid", port=104)
    with pytest.raises(AssociationError, match="does not resolve"):
        sender.echo(nobody, ae_title=OURS)


def test_a_peer_that_accepts_the_connection_and_says_nothing_is_given_up(free_port):
    with closing(socket.create_server(("127.0.0.1", free_port))):
        silent = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port)
        with pytest.raises(AssociationError, match="did not answer the request"):
            sender.echo(silent, ae_title=OURS, timeout_s=0.5)


def test_a_peer_that_speaks_another_protocol_is_no_dicom_peer(free_port):
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    with closing(socket.create_server(("127.0.0.1", free_port))) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        web = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port)
        with pytest.raises(AssociationError, match="check that a DICOM service listens there"):
            sender.echo(web, ae_title=OURS, timeout_s=2)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xA700, "Out of Resources"),
        (0xA900, "Does Not Match"),
        (0xC123, "Cannot Understand"),
        (0x0124, "Not Authorised"),
        (0x0122, "SOP Class Not Supported"),
        (0x0110, "Processing Failure"),
    ],
)
def test_a_failure_status_is_not_taken_for_success(status, words, answering, tmp_path):
    with pytest.raises(DeliveryError, match=words) as caught:
        sender.send(write(make_image(), tmp_path), answering(status), ae_title=OURS)
    assert caught.value.status == status
    assert f"0x{status:04X}" in str(caught.value)


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0107, 0x0111])
def test_a_warning_is_a_delivery_with_a_remark(status, answering, tmp_path):
    sent = sender.send(write(make_image(), tmp_path), answering(status), ae_title=OURS)
    assert sent.status == status
    assert f"0x{status:04X}" in sent.warning


def test_only_what_the_file_is_gets_proposed(answering, tmp_path):
    proposed: list[tuple[str, list[str]]] = []

    def see(event: evt.Event) -> None:
        contexts = event.assoc.requestor.requested_contexts
        proposed.extend((str(c.abstract_syntax), [str(s) for s in c.transfer_syntax]) for c in contexts)

    destination = answering(0, on_requested=see)
    sender.send_many(write_series(tmp_path / "s", count=3), destination, ae_title=OURS)

    assert proposed == [("1.2.840.10008.5.1.4.1.1.4", ["1.2.840.10008.1.2.1"])]


def test_the_first_failure_ends_the_sending_of_many(answering, tmp_path):
    files = write_series(tmp_path / "series", count=3)
    seen: list[str] = []

    def refuse_the_second(event: evt.Event) -> int:
        seen.append(event.request.AffectedSOPInstanceUID)
        return 0xA700 if len(seen) == 2 else 0

    with pytest.raises(DeliveryError, match=files[1].stem):
        sender.send_many(files, answering(refuse_the_second), ae_title=OURS)
    assert len(seen) == 2


def test_a_data_set_in_memory_is_sent_too(receiver):
    ds = make_image()
    sender.send(ds, receiver.destination, ae_title=OURS)
    assert dcmread(receiver.paths()[0]).PixelData == ds.PixelData


@pytest.mark.parametrize("content", [b"", b"no DICOM", bytes(128) + b"DICM"])
def test_a_file_that_is_no_dicom_is_not_sent(content, receiver, tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    with pytest.raises(UnreadableInstanceError, match=r"x\.dcm cannot be sent"):
        sender.send(path, receiver.destination, ae_title=OURS)


def test_a_file_that_is_gone_is_not_sent(receiver, tmp_path):
    with pytest.raises(UnreadableInstanceError):
        sender.send(tmp_path / "gone.dcm", receiver.destination, ae_title=OURS)


def test_nothing_to_send_opens_no_association(free_port):
    nobody = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port)
    assert sender.send_many([], nobody, ae_title=OURS) == []


def test_the_peers_words_about_a_patient_stay_out_of_the_message(answering, tmp_path):
    def refuse(_event: evt.Event) -> Dataset:
        answer = Dataset()
        answer.Status, answer.ErrorComment = 0xA700, "Patient DOE^JANE 123 unknown"
        return answer

    with pytest.raises(DeliveryError) as caught:
        sender.send(write(make_image(), tmp_path), answering(refuse), ae_title=OURS)
    assert "DOE" not in str(caught.value)


Answering = Callable[..., Destination]


@pytest.fixture
def answering(free_ports: Callable[[], int]) -> Iterator[Answering]:
    """A peer that answers every C-STORE with a status."""
    started = []

    def start(
        status: int | Callable[[evt.Event], int | Dataset],
        *,
        on_requested: Callable[[evt.Event], None] = lambda _: None,
    ) -> Destination:
        ae = AE(ae_title="PEER")
        ae.add_supported_context(MRImageStorage, ["1.2.840.10008.1.2.1", JPEG2000Lossless])
        ae.add_supported_context(Verification)
        handler = status if callable(status) else lambda _: status
        port = free_ports()
        handlers = [(evt.EVT_C_STORE, handler), (evt.EVT_REQUESTED, on_requested)]
        started.append(ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers))
        return Destination(name="peer", ae_title="PEER", host="127.0.0.1", port=port)

    yield start
    for running in started:
        running.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
