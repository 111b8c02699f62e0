"""Who may connect, how many, when the disk is short, and how the server begins and ends."""

import re
import socket
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification
from structlog.testing import capture_logs

from dicomnode.errors import AssociationError, ConfigError, DeliveryError
from dicomnode.scp import sender, server
from dicomnode.settings import ScpSettings
from tests.peers import need_dcmtk, wait_until
from tests.wire.objects import data_set_bytes, make_image, write, write_series

NO_DISK_HAS_SO_MUCH = 10**18


def test_below_the_watermark_associations_are_refused_as_temporary_congestion(start_receiver):
    receiver = start_receiver(minimum_free_bytes=NO_DISK_HAS_SO_MUCH)

    with pytest.raises(AssociationError, match=r"Rejected Transient.*Temporary congestion"):
        sender.echo(receiver.destination, ae_title="MODALITY")
    wait_until(lambda: not receiver.server.connections())


def test_a_disk_that_fills_during_an_association_answers_out_of_resources(start_receiver, tmp_path):
    receiver = start_receiver()
    path = write(make_image(), tmp_path)
    ae = AE()
    ae.add_requested_context(MRImageStorage, "1.2.840.10008.1.2.1")
    assoc = ae.associate("127.0.0.1", receiver.server.port)
    receiver.spool._minimum_free_bytes = NO_DISK_HAS_SO_MUCH

    answer = assoc.send_c_store(path)
    receiver.spool._minimum_free_bytes = 0
    again = assoc.send_c_store(path)
    assoc.release()

    assert answer.Status == 0xA700
    assert "later" in answer.ErrorComment
    assert again.Status == 0
    assert len(receiver.paths()) == 1


def test_a_database_that_refuses_answers_out_of_resources_and_the_repeat_succeeds(start_receiver, tmp_path):
    receiver = start_receiver()
    path = write(make_image(), tmp_path)
    database = receiver.root.parent / "node.sqlite"
    _rename_table(database, "instance", "away")
    with pytest.raises(DeliveryError, match="0xA700"):
        sender.send(path, receiver.destination, ae_title="MODALITY")
    _rename_table(database, "away", "instance")

    assert sender.send(path, receiver.destination, ae_title="MODALITY").status == 0
    assert len(receiver.paths()) == 1


def test_while_the_database_does_not_answer_associations_are_refused_as_temporary_congestion(receiver):
    database = receiver.root.parent / "node.sqlite"
    _rename_table(database, "audit", "away")
    with pytest.raises(AssociationError, match="Temporary congestion"):
        sender.echo(receiver.destination, ae_title="MODALITY")
    _rename_table(database, "away", "audit")

    assert sender.echo(receiver.destination, ae_title="MODALITY") > 0


def test_only_listed_callers_may_connect(start_receiver):
    receiver = start_receiver(calling_ae_titles=("PACS", "MODALITY"))

    assert sender.echo(receiver.destination, ae_title="PACS") > 0
    with capture_logs() as logs:
        with pytest.raises(AssociationError, match="Calling AE title not recognised"):
            sender.echo(receiver.destination, ae_title="STRANGER")
        wait_until(lambda: bool(logs))
    assert [(line["event"], line["calling_ae_title"]) for line in logs] == [
        ("association refused", "STRANGER")
    ]


def test_a_called_title_that_is_not_ours_is_refused_only_when_asked_for(start_receiver):
    strict = start_receiver(name="strict", require_called_ae_title=True)
    lenient = start_receiver(name="lenient")
    ae = AE()
    ae.add_requested_context(Verification)

    refused = ae.associate("127.0.0.1", strict.server.port, ae_title="OTHER")
    accepted = ae.associate("127.0.0.1", lenient.server.port, ae_title="OTHER")

    assert refused.is_rejected
    assert refused.acceptor.primitive.reason_str == "Called AE title not recognised"
    assert accepted.is_established
    accepted.release()


def test_more_associations_than_allowed_are_rejected_and_none_is_lost(start_receiver):
    receiver = start_receiver(maximum_associations=2)
    ae = AE()
    ae.add_requested_context(Verification)
    first, second = (ae.associate("127.0.0.1", receiver.server.port) for _ in range(2))

    with pytest.raises(AssociationError, match="Local limit exceeded"):
        sender.echo(receiver.destination, ae_title="MODALITY")

    assert [a.send_c_echo().Status for a in (first, second)] == [0, 0]
    first.release()
    second.release()
    wait_until(lambda: not receiver.server.connections())
    assert sender.echo(receiver.destination, ae_title="MODALITY") > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_second_node_on_the_same_port_is_told_so(receiver, host):
    settings = ScpSettings(host=host, port=receiver.server.port)
    with pytest.raises(
        ConfigError, match=rf"port {receiver.server.port} of {re.escape(host)} is in use: stop"
    ):
        server.start(settings, spool=receiver.spool, store=receiver.store, now=None)
    assert sender.echo(receiver.destination, ae_title="MODALITY") > 0


def test_an_address_of_another_machine_cannot_be_listened_on(receiver):
    settings = ScpSettings(host="192.0.2.1", port=0)
    with pytest.raises(ConfigError, match=r"192.0.2.1 cannot be listened on.*check \[scp\] host"):
        server.start(settings, spool=receiver.spool, store=receiver.store, now=None)


def test_a_port_is_free_again_at_once_after_a_stop(start_receiver):
    first = start_receiver(name="first")
    assert sender.echo(first.destination, ae_title="MODALITY") > 0
    first.server.stop()

    second = start_receiver(name="second", port=first.server.port)

    assert sender.echo(second.destination, ae_title="MODALITY") > 0


def test_a_stop_lets_a_running_association_finish(receiver, tmp_path):
    files = write_series(tmp_path / "series", count=30, size=128)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(sender.send_many, files, receiver.destination, ae_title="MODALITY")
        wait_until(lambda: len(receiver.paths()) > 2)
        receiver.server.stop(limit_s=30)
        sent = sending.result()

    assert len(sent) == 30
    assert len(receiver.paths()) == 30
    with pytest.raises(AssociationError, match="cannot be reached"):
        sender.echo(receiver.destination, ae_title="MODALITY")


def test_a_stop_aborts_an_idle_association_after_its_limit(receiver):
    ae = AE()
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", receiver.server.port)
    began = time.monotonic()

    receiver.server.stop(limit_s=0.5)

    assert time.monotonic() - began < 5
    wait_until(lambda: assoc.is_aborted)
    assert receiver.server.connections() == []


def test_a_connection_that_says_nothing_does_not_hold_up_others_and_is_closed(start_receiver):
    receiver = start_receiver(acse_timeout_s=1)
    with socket.create_connection(("127.0.0.1", receiver.server.port)) as silent:
        assert sender.echo(receiver.destination, ae_title="MODALITY") < 1
        silent.settimeout(10)
        assert silent.recv(1) == b""


def test_probes_of_the_port_take_no_place(start_receiver):
    receiver = start_receiver(maximum_associations=2)
    for _ in range(10):
        socket.create_connection(("127.0.0.1", receiver.server.port)).close()

    wait_until(lambda: not receiver.server.connections(), limit_s=5)
    assert sender.echo(receiver.destination, ae_title="MODALITY") > 0


def test_a_connection_that_speaks_another_protocol_is_closed_and_the_server_lives_on(receiver):
    with socket.create_connection(("127.0.0.1", receiver.server.port)) as other:
        other.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
        other.settimeout(10)
        answer = other.recv(64)

    assert answer[:1] in (b"", b"\x07")  # closed, or A-ABORT
    assert sender.echo(receiver.destination, ae_title="MODALITY") > 0


def test_one_line_is_logged_for_an_association_and_names_no_patient(receiver, tmp_path):
    files = write_series(tmp_path / "series", count=3)
    bad = make_image()
    del bad.SeriesInstanceUID
    with capture_logs() as logs:
        with pytest.raises(DeliveryError):
            sender.send_many([*files, write(bad, tmp_path)], receiver.destination, ae_title="MODALITY")
        wait_until(lambda: any(line["event"] == "association ended" for line in logs))

    [line] = [line for line in logs if line["event"] == "association ended"]
    assert line["instances"] == 4
    assert line["answers"] == {"0000": 3, "C000": 1}
    assert (line["calling_ae_title"], line["faults"], line["how"]) == ("MODALITY", 0, "aborted")
    assert len(logs) == 2
    assert "Wire" not in str(logs)


def test_a_fault_inside_answers_a_failure_and_the_association_lives_on(free_port, tmp_path):
    seen: list[int] = []

    def stumble(_event: evt.Event) -> int:
        seen.append(len(seen))
        return 1 // (len(seen) - 1) * 0  # the first request divides by zero

    running = server.listen(ScpSettings(host="127.0.0.1", port=free_port), on_c_store=stumble)
    ae = AE()
    ae.add_requested_context(MRImageStorage, "1.2.840.10008.1.2.1")
    with capture_logs() as logs:
        assoc = ae.associate("127.0.0.1", free_port)
        statuses = [assoc.send_c_store(write(make_image(), tmp_path)).Status for _ in range(2)]
        assoc.release()
        wait_until(lambda: any(line["event"] == "association ended" for line in logs))
    running.stop()

    assert statuses == [0xC211, 0x0000]
    [line] = [line for line in logs if line["event"] == "association ended"]
    assert (line["instances"], line["answers"], line["faults"]) == (2, {"0000": 1}, 1)


def test_eight_senders_at_once_lose_nothing(receiver, tmp_path):
    series = [write_series(tmp_path / f"series{n}", count=20, size=64) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        sent = list(
            pool.map(
                lambda pair: sender.send_many(
                    pair[1], receiver.destination, ae_title=f"MODALITY{pair[0]}", timeout_s=120
                ),
                enumerate(series),
            )
        )

    assert sum(len(one) for one in sent) == 160
    assert len(receiver.paths()) == 160
    assert {data_set_bytes(p) for p in receiver.paths()} == {data_set_bytes(p) for s in series for p in s}
    rows = [receiver.store.series.instances_of(path.parent.name) for path in receiver.paths()[::20]]
    assert [len(r) for r in rows] == [20] * 8


def test_one_association_per_image_from_many_threads_loses_nothing(receiver, tmp_path):
    files = write_series(tmp_path / "series", count=40)
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(
                lambda path: sender.send(path, receiver.destination, ae_title="MODALITY", timeout_s=60), files
            )
        )

    assert len(receiver.store.series.instances_of(receiver.paths()[0].parent.name)) == 40
    wait_until(lambda: not receiver.server.connections())


def test_dcmtk_gets_an_answer_to_its_echo(receiver):
    command = [need_dcmtk("echoscu"), "-aec", "DICOMNODE", "127.0.0.1", str(receiver.server.port)]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0


def _rename_table(database: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
