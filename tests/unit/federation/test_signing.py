"""Keys, envelopes and request tokens."""

import base64
import hashlib
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicomnode.errors import ConfigError, UpdateRejectedError
from dicomnode.federation import signing
from dicomnode.federation.signing import RequestLine

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = signing.public_key_of(KEY)
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
LINE = RequestLine(audience="centre", method="POST", path="/v1/updates")


def a_token(**changes: object) -> str:
    issued = int(NOW.timestamp())
    claims = {
        "iss": "n-1",
        "aud": "centre",
        "iat": issued,
        "exp": issued + 300,
        "jti": "0" * 32,
        "htm": "POST",
        "htu": "/v1/updates",
        "bh": hashlib.sha256(b"body").hexdigest(),
    }
    return jwt.encode(claims | changes, KEY, algorithm="EdDSA", headers={"kid": signing.key_id(PUBLIC)})


def refusal_of(token: str, *, line: RequestLine = LINE, now: datetime = NOW) -> str:
    with pytest.raises(UpdateRejectedError) as caught:
        signing.check_token(token, public_key=PUBLIC, line=line, now=now)
    return caught.value.code


def test_a_new_key_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    first = signing.load_or_create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.public_key_of(signing.load_or_create_key(path)) == signing.public_key_of(first)
    assert [entry.name for entry in path.parent.iterdir()] == ["node.key"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    signing.load_or_create_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        signing.read_key(path)


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_text("no key")
    with pytest.raises(ConfigError, match=r"node\.key"):
        signing.load_or_create_key(path)


def test_a_fingerprint_is_eight_groups_of_four() -> None:
    digest = hashlib.sha256(KEY.public_key().public_bytes_raw()).hexdigest()
    assert signing.fingerprint(PUBLIC).replace("-", "") == digest[:32]
    assert [len(group) for group in signing.fingerprint(PUBLIC).split("-")] == [4] * 8


def test_the_signature_covers_the_pre_authentication_encoding_of_dsse() -> None:
    envelope = json.loads(signing.seal(b"hello world", payload_type="http://example.com/HelloWorld", key=KEY))
    # The example of the DSSE specification, protocol.md.
    message = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    KEY.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)
    assert base64.b64decode(envelope["payload"]) == b"hello world"


def test_an_envelope_gives_back_what_was_sealed() -> None:
    envelope = signing.seal(b"{}", payload_type=signing.UPDATE_TYPE, key=KEY)
    assert signing.unseal(envelope, payload_type=signing.UPDATE_TYPE, public_key=PUBLIC) == b"{}"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"payload": base64.b64encode(b"[]").decode()}, "bad_signature"),
        ({"payloadType": signing.RELEASE_TYPE}, "envelope_malformed"),
        ({"signatures": []}, "envelope_malformed"),
        ({"payload": "%%%"}, "envelope_malformed"),
        ({"more": 1}, "envelope_malformed"),
    ],
)
def test_an_altered_envelope_is_refused(change: dict[str, object], code: str) -> None:
    envelope = json.loads(signing.seal(b"{}", payload_type=signing.UPDATE_TYPE, key=KEY)) | change
    with pytest.raises(UpdateRejectedError) as caught:
        signing.unseal(json.dumps(envelope).encode(), payload_type=signing.UPDATE_TYPE, public_key=PUBLIC)
    assert caught.value.code == code


def test_an_envelope_by_another_key_is_refused() -> None:
    envelope = signing.seal(b"{}", payload_type=signing.UPDATE_TYPE, key=OTHER)
    with pytest.raises(UpdateRejectedError, match="no valid signature"):
        signing.unseal(envelope, payload_type=signing.UPDATE_TYPE, public_key=PUBLIC)


def test_a_fresh_token_passes() -> None:
    token = signing.request_token(LINE, b"body", key=KEY, issuer="n-1", now=NOW, token_id="a" * 32)
    claims = signing.check_token(token, public_key=PUBLIC, line=LINE, now=NOW)
    signing.check_body(claims, b"body")
    assert (claims.issuer, claims.token_id) == ("n-1", "a" * 32)
    assert signing.token_key_id(token) == signing.key_id(PUBLIC)


def test_a_token_does_not_fit_another_body() -> None:
    claims = signing.check_token(a_token(), public_key=PUBLIC, line=LINE, now=NOW)
    with pytest.raises(UpdateRejectedError, match="another body"):
        signing.check_body(claims, b"bodY")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (RequestLine(audience="centre", method="PATCH", path="/v1/updates"), "token_mismatch"),
        (RequestLine(audience="centre", method="POST", path="/v1/uploads"), "token_mismatch"),
        (RequestLine(audience="elsewhere", method="POST", path="/v1/updates"), "wrong_audience"),
    ],
)
def test_a_token_does_not_fit_another_request(line: RequestLine, code: str) -> None:
    assert refusal_of(a_token(), line=line) == code


@pytest.mark.parametrize("minutes", [-10, 10 + 1])
def test_a_token_of_a_clock_ten_minutes_off_is_refused(minutes: int) -> None:
    assert refusal_of(a_token(), now=NOW + timedelta(minutes=minutes)) == "token_expired"


@pytest.mark.parametrize("minutes", [-4, 4])
def test_a_clock_four_minutes_off_is_tolerated(minutes: int) -> None:
    now = NOW + timedelta(minutes=minutes)
    assert signing.check_token(a_token(), public_key=PUBLIC, line=LINE, now=now).issuer == "n-1"


@pytest.mark.parametrize(
    "change",
    [
        {"exp": int(NOW.timestamp()) + 601},
        {"jti": "short"},
        {"jti": 5},
        {"bh": None},
        {"iat": "now"},
        {"aud": ["centre"]},
    ],
)
def test_a_token_with_unfit_claims_is_refused(change: dict[str, object]) -> None:
    assert refusal_of(a_token(**change)) == "bad_token"


def test_a_token_signed_with_a_secret_instead_of_a_key_is_refused() -> None:
    secret = KEY.public_key().public_bytes_raw()
    confused = jwt.encode({"iss": "n-1"}, secret, algorithm="HS256", headers={"kid": "x"})
    unsigned = jwt.encode({"iss": "n-1"}, None, algorithm="none", headers={"kid": "x"})
    assert refusal_of(confused) == "bad_token"
    assert refusal_of(unsigned) == "bad_token"


def test_a_key_inside_the_token_is_ignored() -> None:
    token = jwt.encode(
        {"iss": "n-1"},
        OTHER,
        algorithm="EdDSA",
        headers={"kid": signing.key_id(PUBLIC), "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}},
    )
    assert signing.token_key_id(token) == signing.key_id(PUBLIC)
    assert refusal_of(token) == "bad_token"


@pytest.mark.parametrize("token", ["", "a.b.c", "e30.e30.", "x" * 10_000])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        signing.token_key_id(token)
    assert caught.value.code == "bad_token"


@pytest.mark.parametrize("text", ["", "AAAA", "%" * 43, "é" * 43])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(UpdateRejectedError) as caught:
        signing.check_public_key(text)
    assert caught.value.code == "bad_key"
