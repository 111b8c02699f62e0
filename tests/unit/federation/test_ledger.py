"""The aggregator's ledger on a real database."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from dicomnode.domain import Sha256
from dicomnode.errors import ConfigError, UpdateRejectedError
from dicomnode.federation import signing
from dicomnode.federation.ledger import Ledger
from dicomnode.federation.ledger.nodes import NodeStatus
from dicomnode.federation.ledger.uploads import MAXIMUM_OPEN_UPLOADS
from tests.federation_builders import NOW

KEYS = [signing.public_key_of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in range(3)]
SHA = Sha256("ab" * 32)
HOUR = timedelta(hours=1)


_LIFT_GUARDS = {
    "sqlite": ("DROP TRIGGER audit_keep_update", "DROP TRIGGER audit_keep_delete"),
    "postgresql": ("DROP TRIGGER audit_keep ON audit",),
}


def enrol(ledger: Ledger, code: str, *, key: int = 0, name: str = "north", node_id: str = "n-1") -> str:
    return ledger.nodes.enrol(code, node_name=name, public_key=KEYS[key], node_id=node_id, now=NOW).id


def invite(ledger: Ledger, code: str, *, name: str = "north") -> None:
    ledger.nodes.invite(code, node_name=name, expires_at=NOW + HOUR, now=NOW)


def refusal_of(call: Callable[[], object]) -> str:
    with pytest.raises(UpdateRejectedError) as caught:
        call()
    return caught.value.code


def test_a_code_admits_one_key_once(ledger: Ledger) -> None:
    invite(ledger, "CODE")
    assert enrol(ledger, "CODE", node_id="n-1") == "n-1"
    assert refusal_of(lambda: enrol(ledger, "CODE", key=1, node_id="n-2")) == "code_used"


def test_an_answer_that_was_lost_can_be_asked_for_again_with_the_same_key(ledger: Ledger) -> None:
    invite(ledger, "CODE")
    assert enrol(ledger, "CODE", node_id="n-1") == enrol(ledger, "CODE", node_id="n-2") == "n-1"
    assert len(ledger.nodes.list()) == 1


def test_an_unknown_an_expired_and_a_misaddressed_code_are_refused(ledger: Ledger) -> None:
    invite(ledger, "CODE")
    late = NOW + 2 * HOUR
    assert refusal_of(lambda: enrol(ledger, "EDOC")) == "code_unknown"
    assert refusal_of(lambda: enrol(ledger, "CODE", name="south")) == "node_name_mismatch"
    call = lambda: ledger.nodes.enrol(  # noqa: E731  # read with the line below
        "CODE", node_name="north", public_key=KEYS[0], node_id="n-1", now=late
    )
    assert refusal_of(call) == "code_expired"


def test_a_code_is_kept_as_a_digest_only(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'aggregator.sqlite'}")
    invite(ledger, "SECRET-CODE")
    ledger.close()
    assert b"SECRET-CODE" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_a_revoked_node_must_enrol_anew_with_a_new_key(ledger: Ledger) -> None:
    invite(ledger, "ONE")
    enrol(ledger, "ONE")
    with pytest.raises(ConfigError, match="enrolled already"):
        invite(ledger, "TWO")
    ledger.nodes.revoke("n-1", now=NOW)
    assert ledger.nodes.list()[0].status == NodeStatus.REVOKED
    invite(ledger, "TWO")
    assert refusal_of(lambda: enrol(ledger, "ONE")) == "code_used"
    assert refusal_of(lambda: enrol(ledger, "TWO", node_id="n-2")) == "key_in_use"
    assert enrol(ledger, "TWO", key=1, node_id="n-2") == "n-2"


def test_a_token_can_be_used_once_per_node_until_it_is_too_old_to_matter(ledger: Ledger) -> None:
    def use(node: str, hours: int) -> bool:
        now = NOW + hours * HOUR
        return ledger.nodes.use_token(node, "jti", keep_until=now + HOUR, now=now)

    assert [use("n-1", 0), use("n-1", 0), use("n-2", 0), use("n-1", 2)] == [True, False, True, True]


def test_an_offset_moves_only_from_where_it_is(ledger: Ledger) -> None:
    invite(ledger, "CODE")
    enrol(ledger, "CODE")
    ledger.uploads.open("n-1", SHA, size=10, now=NOW)
    moves = [(0, 4), (0, 4), (4, 8), (0, 10)]
    moved = [ledger.uploads.advance("n-1", SHA, start=a, stop=b, now=NOW) for a, b in moves]
    assert moved == [True, False, True, False]
    upload = ledger.uploads.open("n-1", SHA, size=10, now=NOW)
    assert (upload.received, upload.is_complete) == (8, False)
    assert refusal_of(lambda: ledger.uploads.open("n-1", SHA, size=11, now=NOW)) == "size_mismatch"


def test_a_node_can_have_so_many_unfinished_uploads(ledger: Ledger) -> None:
    invite(ledger, "CODE")
    enrol(ledger, "CODE")
    for number in range(MAXIMUM_OPEN_UPLOADS):
        ledger.uploads.open("n-1", Sha256(f"{number:064x}"), size=10, now=NOW)
    assert refusal_of(lambda: ledger.uploads.open("n-1", SHA, size=10, now=NOW)) == "too_many_uploads"
    assert len(ledger.uploads.abandon_older(NOW + HOUR)) == MAXIMUM_OPEN_UPLOADS
    assert ledger.uploads.open("n-1", SHA, size=10, now=NOW).received == 0


def test_the_audit_chain_verifies(ledger: Ledger) -> None:
    assert ledger.audit.verify().fault is None
    invite(ledger, "CODE")
    enrol(ledger, "CODE")
    ledger.nodes.revoke("n-1", now=NOW)
    report = ledger.audit.verify()
    assert (report.events, report.fault) == (3, None)
    assert report.head == ledger.audit.head().hash


def test_the_audit_table_refuses_changes(ledger: Ledger, ledger_url: str) -> None:
    invite(ledger, "CODE")
    engine = create_engine(ledger_url)
    for statement in ("UPDATE audit SET body = '{}'", "DELETE FROM audit"):
        with engine.connect() as connection, pytest.raises(DBAPIError, match="append-only"):
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize(
    ("tampering", "words"),
    [
        ("UPDATE audit SET body = replace(body, 'north', 'south') WHERE sequence = 1", "event 1 was changed"),
        ("DELETE FROM audit WHERE sequence = 2", "event 2 does not follow"),
        ("DELETE FROM audit WHERE sequence = 3", "ends before event 3"),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 3", "event 3 does not follow"),
        (f"UPDATE audit SET previous_hash = '{'0' * 64}' WHERE sequence = 2", "event 2 does not follow"),
    ],
)
def test_tampering_with_the_audit_chain_is_found(
    ledger: Ledger, ledger_url: str, tampering: str, words: str
) -> None:
    for name in ("north", "south", "east"):
        invite(ledger, name, name=name)
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        for statement in (*_LIFT_GUARDS[engine.dialect.name], tampering):
            connection.exec_driver_sql(statement)
    engine.dispose()
    fault = ledger.audit.verify().fault
    assert fault is not None
    assert words in fault


def test_writers_in_parallel_leave_one_unbroken_chain(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: invite(ledger, f"code-{n}", name=f"node-{n}"), range(40)))
    report = ledger.audit.verify()
    assert (report.events, report.fault) == (40, None)


def test_a_second_opening_finds_what_was_there(ledger: Ledger, ledger_url: str) -> None:
    invite(ledger, "CODE")
    enrol(ledger, "CODE")
    again = Ledger.open(ledger_url)
    node = again.nodes.by_key(signing.key_id(KEYS[0]))
    again.close()
    assert node is not None
    assert (node.name, node.enrolled_at) == ("north", NOW)


def test_an_unusable_database_url_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="url is not usable"):
        Ledger.open("nonsense://x")
