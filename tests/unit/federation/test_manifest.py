"""Manifests: one value, one encoding, nothing unknown."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.errors import UpdateRejectedError
from dicomnode.federation import manifest
from dicomnode.federation.manifest import BaseRelease, BlobRef, ClassCases, Metrics, UpdateManifest

DIGEST = "ab" * 32
MOMENT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def an_update(**changes: object) -> UpdateManifest:
    known = {
        "update_id": manifest.new_update_id(MOMENT, randomness=bytes(10)),
        "node_id": "n-0011223344556677",
        "family": "toy",
        "base": BaseRelease(version=4, sha256=DIGEST),
        "encoding": "bf16",
        "blob": BlobRef(sha256=DIGEST, size=100),
        "keys_digest": DIGEST,
        "arch_id": DIGEST,
        "classes": (ClassCases(code="SCT/14414005", cases=7),),
        "n_cases": 12,
        "n_steps": 300,
        "local_epochs": 3,
        "metrics": Metrics(before={"SCT/14414005": 0.8}, after={"SCT/14414005": 0.85}),
        "app": "0.1.0",
        "aud": "centre",
        "iat": 1,
        "exp": 2,
        "nonce": "00" * 16,
    }
    return UpdateManifest.model_validate(known | changes)


def code_of(payload: bytes) -> str:
    with pytest.raises(UpdateRejectedError) as caught:
        manifest.decode(payload, UpdateManifest)
    return caught.value.code


def test_a_manifest_survives_encoding() -> None:
    update = an_update()
    assert manifest.decode(manifest.encode(update), UpdateManifest) == update


def test_encoding_is_rfc_8785_with_sorted_keys_and_no_blanks() -> None:
    payload = manifest.encode(an_update())
    assert payload.startswith(b'{"app":"0.1.0","arch_id":"abab')
    assert b": " not in payload
    assert b'"dp":null' in payload


def test_an_unknown_key_is_refused() -> None:
    value = json.loads(manifest.encode(an_update())) | {"extra": 1}
    assert code_of(manifest.canonical(value)) == "manifest_malformed"


def test_a_repeated_key_is_refused() -> None:
    payload = manifest.encode(an_update())
    assert code_of(payload[:-1] + b',"type":"fed.update/1"}') == "manifest_malformed"


def test_another_spelling_of_the_same_value_is_refused() -> None:
    payload = manifest.encode(an_update())
    assert code_of(payload.replace(b'"n_cases":12', b'"n_cases": 12')) == "not_canonical"


def test_more_than_64_kib_is_refused_before_parsing() -> None:
    assert code_of(b"{" * (64 * 1024 + 1)) == "manifest_too_large"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"n_cases":12', b'"n_cases":-1'),
        (b'"n_cases":12', b'"n_cases":"12"'),
        (b'"n_cases":12', b'"n_cases":true'),
        (b'"family":"toy"', b'"family":"../toy"'),
        (b'"encoding":"bf16"', b'"encoding":"pickle"'),
        (b'"kind":"delta"', b'"kind":"full"'),
        (b'"type":"fed.update/1"', b'"type":"fed.update/2"'),
        (b"0.8}", b"NaN}"),
        (b'"size":100', b'"size":0'),
        (b'"dp":null', b'"dp":{"epsilon":1}'),
    ],
)
def test_a_value_out_of_its_range_is_refused(before: bytes, after: bytes) -> None:
    payload = manifest.encode(an_update())
    assert before in payload
    assert code_of(payload.replace(before, after)) == "manifest_malformed"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_nothing_else_happens(payload: bytes) -> None:
    assert code_of(payload) in {"manifest_malformed", "not_canonical"}


def test_deep_nesting_is_refused() -> None:
    assert code_of(b"[" * 60_000) == "manifest_malformed"


def test_an_update_id_is_uuid_7_of_its_moment() -> None:
    # RFC 9562 appendix A.6: 2022-02-22 14:22:22.00 UTC-5 is 017F22E2-79B0-7CC3-98C4-DC0C0C07398F.
    moment = datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)
    randomness = bytes.fromhex("0cc318c4dc0c0c07398f")
    assert manifest.new_update_id(moment, randomness=randomness) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_update_ids_sort_by_time() -> None:
    early = manifest.new_update_id(datetime(2026, 1, 1, tzinfo=UTC), randomness=b"\xff" * 10)
    late = manifest.new_update_id(datetime(2026, 1, 2, tzinfo=UTC), randomness=bytes(10))
    assert early < late
    assert UUID(early).version == UUID(late).version == 7
