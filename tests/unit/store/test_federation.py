"""This site's side of the federation."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dicomnode.domain import ModelVersion, Sha256
from dicomnode.errors import InputError
from dicomnode.store import (
    EnrolmentRecord,
    KnownRelease,
    OutboxState,
    OutboxUpdate,
    ReleaseState,
    Store,
)

from .conftest import NOON

ENROLMENT = EnrolmentRecord(
    url="https://aggregator:8443",
    node_id="n-1",
    aggregator_name="aggregator",
    aggregator_key="-----BEGIN PUBLIC KEY-----",
    enrolled_at=NOON,
)
UPDATE = OutboxUpdate(
    update_id="u1",
    model_version=ModelVersion("hippocampus@a"),
    base_release=3,
    blob_path="outbox/u1.safetensors",
    blob_sha256=Sha256("a" * 64),
    blob_bytes=5_000_000_000,
    manifest_json="{}",
    created_at=NOON,
)
RELEASE = KnownRelease(
    family="hippocampus", version=4, blob_sha256=Sha256("b" * 64), manifest_json="{}", seen_at=NOON
)


def test_a_membership_is_kept_and_renewed(store: Store) -> None:
    assert store.federation.enrolment() is None
    store.federation.enrol(ENROLMENT)
    renewed = replace(ENROLMENT, node_id="n-2", enrolled_at=NOON + timedelta(days=1))
    store.federation.enrol(renewed)
    assert store.federation.enrolment() == renewed
    assert store.federation.enrolment(ENROLMENT.url) == renewed
    assert store.federation.enrolment("https://elsewhere") is None


def test_an_update_enters_the_outbox_once(store: Store) -> None:
    assert store.federation.add_update(UPDATE)
    assert not store.federation.add_update(UPDATE)
    assert not store.federation.add_update(replace(UPDATE, update_id="u2"))  # same model version
    assert store.federation.update("u1") == UPDATE
    assert store.federation.update_of("hippocampus@a") == UPDATE
    assert store.federation.update("u2") is None


def test_an_update_is_followed_from_pending_to_merged(store: Store) -> None:
    store.federation.add_update(UPDATE)
    store.federation.note_attempt("u1", now=NOON, answer="connection refused")
    [pending] = store.federation.updates(OutboxState.PENDING)
    assert (pending.attempts, pending.last_answer) == (1, "connection refused")
    store.federation.set_update_state("u1", OutboxState.SENT, now=NOON)
    store.federation.set_update_state("u1", OutboxState.MERGED, now=NOON, answer="release 4")
    assert store.federation.updates(OutboxState.PENDING, OutboxState.SENT) == []
    [merged] = store.federation.updates()
    assert (merged.state, merged.last_answer) == (OutboxState.MERGED, "release 4")
    assert [entry.event for entry in store.audit.list()] == ["update_merged", "update_sent"]


def test_a_release_is_seen_once_and_its_fate_is_kept(store: Store) -> None:
    assert store.federation.latest_release("hippocampus") is None
    assert store.federation.add_release(RELEASE)
    assert not store.federation.add_release(RELEASE)
    newer = replace(RELEASE, version=12)
    store.federation.add_release(newer)
    assert store.federation.latest_release("hippocampus") == newer
    store.federation.set_release_state(
        "hippocampus", 4, ReleaseState.ADOPTED, now=NOON, model_version=ModelVersion("hippocampus@b")
    )
    adopted = store.federation.latest_release("hippocampus", ReleaseState.ADOPTED)
    assert adopted is not None
    assert (adopted.version, adopted.model_version) == (4, "hippocampus@b")
    assert [release.version for release in store.federation.releases("hippocampus")] == [4, 12]


def test_nothing_is_noted_of_what_is_unknown(store: Store) -> None:
    with pytest.raises(InputError, match="nothing is known of u9"):
        store.federation.set_update_state("u9", OutboxState.SENT, now=NOON)
    with pytest.raises(InputError, match="nothing is known of u9"):
        store.federation.note_attempt("u9", now=NOON, answer="")
    with pytest.raises(InputError, match="hippocampus 1"):
        store.federation.set_release_state("hippocampus", 1, ReleaseState.REFUSED, now=NOON)
