"""A node's side of the federation: join, ask for releases, send updates.

Single calls are repeated a few times on passing faults; what must survive a restart belongs into the
caller's outbox. A passing fault is an :class:`AggregatorError`, a definite no an
:class:`UpdateRejectedError` with the aggregator's code and words.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Self

import stamina
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicomnode import __version__, durable, weights
from dicomnode.domain import Sha256
from dicomnode.errors import AggregatorError, ConfigError, UpdateRejectedError
from dicomnode.federation import certificates, exchange, manifest, messages, signing
from dicomnode.federation.exchange import Answer
from dicomnode.federation.manifest import (
    BaseRelease,
    BlobRef,
    ClassCases,
    Encoding,
    Metrics,
    ReleaseManifest,
    UpdateManifest,
)
from dicomnode.federation.messages import HeartbeatAnswer, Message, Policy, UpdateStatus
from dicomnode.federation.signing import PublicKey, RequestLine

_MAXIMUM_BLOB_BYTES: Final = weights.MAXIMUM_FILE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A site's membership; everything but the private key, which stays in its file."""

    url: str
    node_id: str
    node_name: str
    aggregator_name: str
    aggregator_key: PublicKey
    node_fingerprint: str  # of the site's own key, to be compared by people
    aggregator_fingerprint: str
    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release whose signature was checked."""

    manifest: ReleaseManifest
    manifest_json: bytes  # canonical
    etag: str  # to be given back at the next question


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a site says of an update; the rest of the manifest follows from who and when."""

    base: ReleaseManifest
    blob: BlobRef
    encoding: Encoding
    n_cases: int
    n_steps: int
    local_epochs: int
    classes: tuple[ClassCases, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)


def enrol(  # one call of an operator, all of it named
    url: str,
    code: str,
    *,
    node_name: str,
    key_file: Path,
    ca_file: Path | None = None,
    fingerprint: str | None = None,
) -> Enrolment:
    """Join a federation with a one-time code.

    Parameters
    ----------
    url
        Address of the aggregator, https only.
    code
        As the aggregator's operator gave it; blanks around it do not matter.
    node_name
        The name that the code was made for.
    key_file
        The site's private key, made here if there is none; it never leaves the machine.
    ca_file
        The aggregator's CA certificate; ``None`` trusts the system's authorities.
    fingerprint
        SHA-256 of the CA certificate as the operator read it out. With it, ``ca_file`` is fetched from the
        aggregator and written.

    Raises
    ------
    UpdateRejectedError
        The code or the key is refused, or the certificate has another fingerprint.
    AggregatorError
        The aggregator cannot be reached, or its certificate is not signed by ``ca_file``.
    ConfigError
        The key or certificate file cannot be used.
    """
    key = signing.load_or_create_key(key_file)
    if fingerprint is not None:
        if ca_file is None:
            raise ConfigError("a fingerprint needs ca_file, the place for the certificate it belongs to")
        fetch_ca(url, fingerprint, ca_file)
    request = _enrolment_request(code.strip().upper(), node_name=node_name, key=key)
    with exchange.connect(url, certificates.client_context(ca_file)) as http:
        answer = exchange.send(http, "POST", "/v1/enrol", body=request.model_dump_json().encode())
    granted = _understood(exchange.accepted(answer), messages.EnrolAnswer)
    aggregator_key = signing.check_public_key(granted.public_key)
    return Enrolment(
        url=url,
        node_id=granted.node_id,
        node_name=granted.node_name,
        aggregator_name=granted.aggregator,
        aggregator_key=aggregator_key,
        node_fingerprint=signing.fingerprint(signing.public_key_of(key)),
        aggregator_fingerprint=signing.fingerprint(aggregator_key),
        policy=granted.policy,
    )


def fetch_ca(url: str, fingerprint: str, ca_file: Path) -> None:
    """Fetch the aggregator's CA certificate and keep it if its fingerprint is the expected one.

    Raises
    ------
    UpdateRejectedError
        ``wrong_certificate``: somebody else answers there, or the fingerprint was misread.
    AggregatorError
        The aggregator cannot be reached.
    """
    with exchange.connect(url, certificates.unverified_context()) as http:
        pem = exchange.accepted(exchange.send(http, "GET", "/ca.pem")).body
    wanted = fingerprint.replace(":", "").strip().lower()
    try:
        found = certificates.fingerprint(pem)
    except ConfigError as error:
        raise UpdateRejectedError(f"{url} gave no certificate", code="wrong_certificate") from error
    if found != wanted:
        raise UpdateRejectedError(
            f"the certificate at {url} has the fingerprint {found}, expected {wanted}",
            code="wrong_certificate",
        )
    durable.keep(ca_file, pem, mode=durable.PUBLIC)


def check_successor(release: ReleaseManifest, known: BaseRelease) -> None:
    """Check that a release does not lead backwards from the newest one that this site has seen.

    A federation goes back by publishing old weights under a new version, so a lower version is never right.

    Raises
    ------
    UpdateRejectedError
        ``downgrade``, or ``release_changed`` when a version now has other weights.
    """
    if release.version < known.version:
        raise UpdateRejectedError(
            f"release {release.version} of {release.family!r} is older than {known.version}, seen before",
            code="downgrade",
        )
    if release.version == known.version and release.blob.sha256 != known.sha256:
        raise UpdateRejectedError(
            f"release {release.version} of {release.family!r} now has other weights than before",
            code="release_changed",
        )


class AggregatorClient:
    """An enrolled site's connection to its aggregator; may be used by one thread at a time."""

    def __init__(  # the parts of an enrolment, each from another place
        self,
        *,
        url: str,
        node_id: str,
        aggregator_name: str,
        aggregator_key: str,
        key_file: Path,
        ca_file: Path | None,
        attempts: int = 3,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare; nothing is sent yet.

        Raises
        ------
        ConfigError
            The key, the certificate or the URL cannot be used.
        """
        self._key = signing.read_key(key_file)
        self._http = exchange.connect(url, certificates.client_context(ca_file))
        self._node_id = node_id
        self._aggregator_name = aggregator_name
        self._aggregator_key = PublicKey(aggregator_key)
        self._attempts = attempts
        self._now = now
        self._clock_offset = timedelta(0)  # learned from the aggregator when the clocks disagree

    def __enter__(self) -> Self:
        """Use as a context manager that closes the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def policy(self) -> Policy:
        """Ask what the aggregator takes."""
        return _understood(self._call("GET", "/v1/policy"), Policy)

    def latest_release(
        self,
        family: str,
        *,
        etag: str | None = None,
        known: BaseRelease | None = None,
        ring: str = "all",
    ) -> Release | None:
        """Ask for the newest release of a model and check who signed it.

        Parameters
        ----------
        etag
            Of the release seen last; then ``None`` is returned while it is still the newest.
        known
            The newest release that this site has seen; see :func:`check_successor`.

        Raises
        ------
        UpdateRejectedError
            ``not_found``; ``bad_signature``, ``wrong_release`` or ``downgrade`` for a release not to be used.
        AggregatorError
            A passing fault.
        """
        headers = {} if etag is None else {"If-None-Match": etag}
        answer = self._call("GET", f"/v1/channels/{ring}/{family}", headers=headers)
        if answer.status == 304:
            return None
        payload = signing.unseal(
            answer.body, payload_type=signing.RELEASE_TYPE, public_key=self._aggregator_key
        )
        statement = manifest.decode(payload, ReleaseManifest)
        if (statement.family, statement.ring, statement.aggregator) != (family, ring, self._aggregator_name):
            raise UpdateRejectedError(
                f"asked for {family!r} in ring {ring!r}, got a release of {statement.family!r} in "
                f"{statement.ring!r} by {statement.aggregator!r}",
                code="wrong_release",
            )
        if known is not None:
            check_successor(statement, known)
        return Release(manifest=statement, manifest_json=payload, etag=answer.headers.get("etag", ""))

    def fetch_blob(self, sha256: str, path: Path, *, size_bytes: int | None = None) -> None:
        """Fetch a release's weights, continuing an earlier attempt, and name them only when complete.

        Parameters
        ----------
        path
            Gets the file; ``<path>.part`` beside it holds what has arrived so far.
        size_bytes
            As the release manifest says; more is not read.

        Raises
        ------
        UpdateRejectedError
            ``not_found``, ``too_large``, or ``digest_mismatch``: then the part is deleted.
        AggregatorError
            A passing fault; call again to continue.
        SpoolFullError
            The disk took no more.
        """
        if path.exists() and weights.sha256_of(path) == sha256:
            return
        limit = _MAXIMUM_BLOB_BYTES if size_bytes is None else size_bytes
        part = path.with_name(path.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        for attempt in self._attempts_of():
            with attempt:
                self._fetch_rest(sha256, part, limit=limit)
        if weights.sha256_of(part) != sha256:
            part.unlink()
            raise UpdateRejectedError(f"what arrived is not the blob {sha256}", code="digest_mismatch")
        durable.publish(part, path)

    def describe(self, offer: Offer) -> UpdateManifest:
        """Complete an offer to a manifest; keep it with the blob, so that a repeated push is the same."""
        now = self._now() + self._clock_offset
        return UpdateManifest(
            update_id=manifest.new_update_id(now, randomness=secrets.token_bytes(10)),
            node_id=self._node_id,
            family=offer.base.family,
            base=BaseRelease(version=offer.base.version, sha256=offer.base.blob.sha256),
            encoding=offer.encoding,
            blob=offer.blob,
            keys_digest=offer.base.keys_digest,
            arch_id=offer.base.arch_id,
            classes=offer.classes,
            n_cases=offer.n_cases,
            n_steps=offer.n_steps,
            local_epochs=offer.local_epochs,
            metrics=offer.metrics,
            app=__version__,
            aud=self._aggregator_name,
            iat=int(now.timestamp()),
            exp=int((now + manifest.UPDATE_VALIDITY).timestamp()),
            nonce=secrets.token_hex(16),
        )

    def push(self, blob: Path, update: UpdateManifest) -> UpdateStatus:
        """Send an update, or what is missing of it; repeating this is harmless at any moment.

        Raises
        ------
        UpdateRejectedError
            The aggregator refuses it for good; ``code`` and message say why.
        AggregatorError
            A passing fault: keep the update and push again later.
        """
        if weights.sha256_of(blob) != update.blob.sha256:
            raise UpdateRejectedError(
                f"{blob.name} is not the blob of update {update.update_id}", code="digest_mismatch"
            )
        self._upload(blob, update.blob)
        envelope = signing.seal(manifest.encode(update), payload_type=signing.UPDATE_TYPE, key=self._key)
        headers = {"Idempotency-Key": update.update_id, "Content-Type": "application/json"}
        return _understood(self._call("POST", "/v1/updates", body=envelope, headers=headers), UpdateStatus)

    def update_state(self, update_id: str) -> UpdateStatus:
        """Ask how an update stands."""
        return _understood(self._call("GET", f"/v1/updates/{update_id}"), UpdateStatus)

    def heartbeat(self, *, releases: Mapping[str, int]) -> HeartbeatAnswer:
        """Say that this site is alive and which release of each family it runs."""
        beat = messages.HeartbeatRequest(app=__version__, releases=dict(releases))
        answer = self._call("POST", "/v1/heartbeat", body=beat.model_dump_json().encode())
        return _understood(answer, HeartbeatAnswer)

    def _upload(self, blob: Path, reference: BlobRef) -> None:
        wanted = messages.UploadRequest(sha256=reference.sha256, size=reference.size)
        offset = _offset(self._call("POST", "/v1/uploads", body=wanted.model_dump_json().encode()))
        with blob.open("rb") as file:
            while offset < reference.size:
                file.seek(offset)
                chunk = file.read(messages.CHUNK_BYTES)
                headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
                try:
                    answer = self._call(
                        "PATCH", f"/v1/uploads/{reference.sha256}", body=chunk, headers=headers
                    )
                except UpdateRejectedError as error:
                    if error.code not in {"digest_mismatch", "not_found"}:
                        raise
                    # The file is right, so what lies at the aggregator is not: it has begun anew there.
                    raise AggregatorError(f"the upload was spoilt on its way: {error}") from error
                offset = _offset(answer)

    def _fetch_rest(self, sha256: str, part: Path, *, limit: int) -> None:
        if part.exists() and part.stat().st_size > limit:
            part.unlink()  # of another blob, or spoilt
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"sha256-{sha256}"'}
        path = f"/v1/blobs/{sha256}"
        signed = {**headers, **self._token("GET", path, b"")}
        with exchange.stream(self._http, "GET", path, headers=signed) as response:
            if response.status_code == 416:
                return  # all of it is here, or the digest will tell
            if response.status_code not in {200, 206}:
                self._accept(exchange.read(response))
            continued = response.status_code == 206
            exchange.write(response, part, append=continued, limit=limit - have if continued else limit)

    def _call(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] = exchange.NO_HEADERS
    ) -> Answer:
        for attempt in self._attempts_of():
            with attempt:
                token = self._token(method, path, body)
                answer = exchange.send(self._http, method, path, body=body, headers={**headers, **token})
                return self._accept(answer)
        raise AggregatorError("no attempt was made")

    def _attempts_of(self) -> Iterator[stamina.Attempt]:
        on = exchange.backoff
        return iter(stamina.retry_context(on=on, attempts=self._attempts, wait_initial=0.3, wait_max=5.0))

    def _accept(self, answer: Answer) -> Answer:
        try:
            return exchange.accepted(answer)
        except UpdateRejectedError as error:
            if error.code != "token_expired" or "date" not in answer.headers:
                raise
            self._learn_clock(answer.headers["date"])
            raise exchange.PassingError(f"the clocks of site and aggregator differ: {error}") from error

    def _learn_clock(self, date: str) -> None:
        try:
            self._clock_offset = parsedate_to_datetime(date).astimezone(UTC) - self._now()
        except ValueError as error:
            raise AggregatorError(f"the aggregator's clock is not readable: {date!r:.50}") from error

    def _token(self, method: str, path: str, body: bytes) -> Mapping[str, str]:
        line = RequestLine(
            audience=self._aggregator_name, method=method, path=self._http.base_url.path.rstrip("/") + path
        )
        token = signing.request_token(
            line,
            body,
            key=self._key,
            issuer=self._node_id,
            now=self._now() + self._clock_offset,
            token_id=secrets.token_hex(16),
        )
        return {"Authorization": f"Bearer {token}"}


def _offset(answer: Answer) -> int:
    text = answer.headers.get("upload-offset", "")
    if not text.isdecimal():
        raise AggregatorError("the aggregator's answer names no offset")
    return int(text)


def _enrolment_request(code: str, *, node_name: str, key: Ed25519PrivateKey) -> messages.EnrolRequest:
    public_key = signing.public_key_of(key)
    statement = messages.enrolment_statement(
        code_sha256=Sha256(hashlib.sha256(code.encode()).hexdigest()),
        node_name=node_name,
        public_key=public_key,
    )
    return messages.EnrolRequest(
        code=code, node_name=node_name, public_key=public_key, proof=signing.sign(statement, key)
    )


def _understood(answer: Answer, kind: type[Message]) -> Message:
    try:
        return messages.parse(answer.body, kind, limit=messages.MAXIMUM_JSON_BYTES)
    except UpdateRejectedError as error:
        # A proxy's page or a newer aggregator: no verdict about what was sent, so the outbox keeps it.
        raise AggregatorError(f"the aggregator's answer was not understood: {error}") from error
