"""Ed25519 keys, signed envelopes for manifests and one signed token per HTTP request.

Envelopes are DSSE v1 (https://github.com/secure-systems-lab/dsse): the signature covers the type and
the exact bytes. Tokens are EdDSA JWTs bound to method, path and body, so that a captured one is of no
use with any other request.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, NewType

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.types import Options
from pydantic import Field, StringConstraints

from dicomnode import durable
from dicomnode.errors import ConfigError, UpdateRejectedError
from dicomnode.federation import manifest

PublicKey = NewType("PublicKey", str)
"""The 32 raw bytes of an ed25519 public key in base64url without padding (43 characters)."""

UPDATE_TYPE: Final = "application/vnd.dicomnode.update+json"
RELEASE_TYPE: Final = "application/vnd.dicomnode.release+json"
TOKEN_VALIDITY: Final = timedelta(seconds=300)
MAXIMUM_TOKEN_VALIDITY: Final = timedelta(seconds=600)
CLOCK_TOLERANCE: Final = timedelta(seconds=300)
_MAXIMUM_ENVELOPE_BYTES = 2 * manifest.MAXIMUM_MANIFEST_BYTES


class _Signature(manifest.Record):
    keyid: Annotated[str, StringConstraints(max_length=128)]
    sig: Annotated[str, StringConstraints(max_length=128)]


class _Envelope(manifest.Record):
    payload_type: Annotated[str, StringConstraints(max_length=128)] = Field(alias="payloadType")
    payload: str
    signatures: Annotated[tuple[_Signature, ...], Field(min_length=1, max_length=4)]


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key, or make one on first use (PEM, PKCS #8, mode 0600, created atomically).

    Raises
    ------
    ConfigError
        The file is no ed25519 key, or others may read it.
    """
    if not path.exists():
        durable.keep_once(path, _pem(Ed25519PrivateKey.generate()), mode=durable.PRIVATE)
    return read_key(path)


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key and check that it is ed25519 and nobody else's to read.

    Raises
    ------
    ConfigError
        The file is missing, is no ed25519 key, or others may read it.
    """
    try:
        loose = path.stat().st_mode & 0o077
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read the private key {path}: {type(error).__name__}") from error
    if loose:
        raise ConfigError(f"private key {path} can be read by others; run: chmod 600 {path}")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"private key {path} is {type(key).__name__}, expected ed25519")
    return key


def public_key_of(key: Ed25519PrivateKey) -> PublicKey:
    """Derive the public half of a key."""
    return PublicKey(_base64url(key.public_key().public_bytes_raw()))


def check_public_key(text: str) -> PublicKey:
    """Check that a text is an ed25519 public key in our form.

    Raises
    ------
    UpdateRejectedError
        ``bad_key``.
    """
    _verifier(PublicKey(text))
    return PublicKey(text)


def key_id(public_key: PublicKey) -> str:
    """Name a key for machines: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(_raw(public_key)).hexdigest()[:32]


def fingerprint(public_key: PublicKey) -> str:
    """Name a key for humans: eight groups of four digits, read out on both sides before trust is given."""
    digits = key_id(public_key)
    return "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def sign(message: bytes, key: Ed25519PrivateKey) -> str:
    """Sign bytes; base64url."""
    return _base64url(key.sign(message))


def check_signature(message: bytes, signature: str, public_key: PublicKey) -> None:
    """Check a signature made by :func:`sign`.

    Raises
    ------
    UpdateRejectedError
        ``bad_signature``.
    """
    try:
        _verifier(public_key).verify(_from_base64url(signature), message)
    except (InvalidSignature, ValueError) as error:
        raise UpdateRejectedError(
            f"signature does not belong to these bytes and key {key_id(public_key)}", code="bad_signature"
        ) from error


def seal(payload: bytes, *, payload_type: str, key: Ed25519PrivateKey) -> bytes:
    """Put bytes into a signed DSSE envelope; equal input gives equal bytes."""
    signature = key.sign(_pre_authentication(payload_type, payload))
    return manifest.canonical(
        {
            "payloadType": payload_type,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {"keyid": key_id(public_key_of(key)), "sig": base64.b64encode(signature).decode()}
            ],
        }
    )


def unseal(envelope: bytes, *, payload_type: str, public_key: PublicKey) -> bytes:
    """Check a DSSE envelope and return its payload; one valid signature by ``public_key`` is asked for.

    Raises
    ------
    UpdateRejectedError
        ``envelope_malformed``, ``manifest_too_large`` or ``bad_signature``.
    """
    manifest.parse_json(envelope, limit=_MAXIMUM_ENVELOPE_BYTES)  # refuses repeated keys
    try:
        value = _Envelope.model_validate_json(envelope)
        payload = base64.b64decode(value.payload, validate=True)
        signatures = [base64.b64decode(entry.sig, validate=True) for entry in value.signatures]
    except ValueError as error:
        raise UpdateRejectedError("not a DSSE envelope", code="envelope_malformed") from error
    if value.payload_type != payload_type:
        raise UpdateRejectedError(
            f"envelope holds {value.payload_type!r}, expected {payload_type}", code="envelope_malformed"
        )
    message = _pre_authentication(payload_type, payload)
    if not any(_is_valid(message, signature, public_key) for signature in signatures):
        raise UpdateRejectedError(
            f"envelope carries no valid signature by key {key_id(public_key)}", code="bad_signature"
        )
    return payload


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLine:
    """What a token is bound to, besides the body."""

    audience: str
    method: str
    path: str  # of the URL, without query


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """What a checked token says."""

    issuer: str
    token_id: str
    expires_at: datetime
    body_sha256: str


def request_token(
    line: RequestLine, body: bytes, *, key: Ed25519PrivateKey, issuer: str, now: datetime, token_id: str
) -> str:
    """Make the bearer token for exactly one request (claims ``htm``, ``htu`` and ``bh``)."""
    issued = int(now.timestamp())
    claims = {
        "iss": issuer,
        "aud": line.audience,
        "iat": issued,
        "exp": issued + int(TOKEN_VALIDITY.total_seconds()),
        "jti": token_id,
        "htm": line.method,
        "htu": line.path,
        "bh": hashlib.sha256(body).hexdigest(),
    }
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": key_id(public_key_of(key))})


def token_key_id(token: str) -> str:
    """Read, unverified, which key a token claims; any key material in the header is ignored.

    Raises
    ------
    UpdateRejectedError
        ``bad_token``.
    """
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError as error:
        raise UpdateRejectedError("the bearer token is no JWT", code="bad_token") from error
    if not isinstance(kid, str):
        raise UpdateRejectedError("the bearer token names no key", code="bad_token")
    return kid


def check_token(token: str, *, public_key: PublicKey, line: RequestLine, now: datetime) -> TokenClaims:
    """Check a token against the request line that carried it, before any of the body is read.

    The one accepted algorithm is EdDSA. Still to be done by the caller: :func:`check_body`, and refusing a
    ``token_id`` that was seen before.

    Raises
    ------
    UpdateRejectedError
        ``bad_token`` (signature, form), ``token_expired`` (clock), ``wrong_audience`` or
        ``token_mismatch`` (the method or path is not the signed one).
    """
    claims = _verified_claims(token, public_key)
    _check_times(claims, now)
    if claims["aud"] != line.audience:
        raise UpdateRejectedError("the token is meant for another aggregator", code="wrong_audience")
    if (claims["htm"], claims["htu"]) != (line.method, line.path):
        raise UpdateRejectedError("the token was made for another method or path", code="token_mismatch")
    return TokenClaims(
        issuer=str(claims["iss"]),
        token_id=str(claims["jti"]),
        expires_at=datetime.fromtimestamp(int(str(claims["exp"])), UTC),
        body_sha256=str(claims["bh"]),
    )


def check_body(claims: TokenClaims, body: bytes) -> None:
    """Check that a body is the one that the token was made for.

    Raises
    ------
    UpdateRejectedError
        ``token_mismatch``.
    """
    if hashlib.sha256(body).hexdigest() != claims.body_sha256:
        raise UpdateRejectedError("the token was made for another body", code="token_mismatch")


def _verified_claims(token: str, public_key: PublicKey) -> Mapping[str, object]:
    # Times are checked against the caller's clock, the audience with its own code.
    options: Options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False}
    try:
        claims: Mapping[str, object] = jwt.decode(
            token, _verifier(public_key), algorithms=["EdDSA"], options=options
        )
    except (jwt.PyJWTError, ValueError) as error:
        raise UpdateRejectedError("the bearer token is not validly signed", code="bad_token") from error
    kinds = {"iss": str, "aud": str, "iat": int, "exp": int, "jti": str, "htm": str, "htu": str, "bh": str}
    for claim, kind in kinds.items():
        if type(claims.get(claim)) is not kind:
            raise UpdateRejectedError(f"the token lacks the claim {claim}", code="bad_token")
    if not 16 <= len(str(claims["jti"])) <= 64:
        raise UpdateRejectedError("the token id must have 16 to 64 characters", code="bad_token")
    return claims


def _check_times(claims: Mapping[str, object], now: datetime) -> None:
    issued, expires = int(str(claims["iat"])), int(str(claims["exp"]))
    if not 0 < expires - issued <= MAXIMUM_TOKEN_VALIDITY.total_seconds():
        raise UpdateRejectedError("a token may be valid for at most 600 s", code="bad_token")
    tolerance, seconds = CLOCK_TOLERANCE.total_seconds(), now.timestamp()
    if issued > seconds + tolerance or expires < seconds - tolerance:
        raise UpdateRejectedError(
            f"the token is valid from {issued} to {expires}, the clock here says {int(seconds)}",
            code="token_expired",
        )


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _is_valid(message: bytes, signature: bytes, public_key: PublicKey) -> bool:
    try:
        _verifier(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _verifier(public_key: PublicKey) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(_raw(public_key))
    except ValueError as error:
        raise UpdateRejectedError("not an ed25519 public key", code="bad_key") from error


def _raw(public_key: PublicKey) -> bytes:
    raw = _from_base64url(public_key)
    if len(raw) != 32:
        raise UpdateRejectedError(f"public key of {len(raw)} bytes, expected 32", code="bad_key")
    return raw


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_base64url(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UpdateRejectedError("not base64url", code="bad_key") from error
