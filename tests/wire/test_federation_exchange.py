"""A site and an aggregator over real HTTPS on the loopback interface."""

import hashlib
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from dicomnode import aggregator, weights
from dicomnode.domain import Sha256
from dicomnode.errors import AggregatorError, ConfigError, UpdateRejectedError
from dicomnode.federation import certificates, client, manifest, messages, signing
from dicomnode.federation.client import AggregatorClient
from dicomnode.federation.manifest import BaseRelease, BlobRef, UpdateManifest, UpdateState
from dicomnode.federation.signing import RequestLine
from tests.federation_builders import (
    FAMILY,
    Federation,
    Site,
    aggregator_settings,
    connect,
    read_release,
    running,
    toy_delta,
    work_of,
    write_blob,
    write_package,
)
from tests.wire.cutting_proxy import CuttingProxy

WIDE = 2_500_000  # elements: 10 MB in single precision, three requests of an upload


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One aggregator for the tests that do not disturb each other."""
    folder = tmp_path_factory.mktemp("federation")
    calm = {"merging": {"clip_factor": 0.0}, "admission": {"maximum_norm_factor": 50.0}}
    with running(folder, **calm) as found:
        wide = {"wide": torch.linspace(-1, 1, WIDE)}
        aggregator.publish(found.settings, write_package(folder / "wide", tensors=wide, name="wide"))
        yield found


@pytest.fixture(scope="module")
def site(federation: Federation) -> Site:
    """One enrolled site."""
    return federation.site("north")


@pytest.fixture
def raw(federation: Federation) -> Iterator[httpx.Client]:
    """A client that signs nothing by itself."""
    with httpx.Client(
        base_url=federation.url, verify=certificates.client_context(federation.ca_file)
    ) as found:
        yield found


def refusal_of(call: Callable[[], object]) -> str:
    with pytest.raises(UpdateRejectedError) as caught:
        call()
    return caught.value.code


def token_of(
    federation: Federation, site: Site, method: str, path: str, body: bytes = b"", **changes: Any
) -> dict[str, str]:
    """Sign a request by hand, with something other than it should be."""
    name = site.folder.name
    given = {"audience": "centre", "issuer": site.enrolment.node_id, "now": datetime.now(UTC)} | changes
    token = signing.request_token(
        RequestLine(audience=given["audience"], method=method, path=path),
        body,
        key=signing.read_key(federation.key_file(name)),
        issuer=given["issuer"],
        now=given["now"],
        token_id=secrets.token_hex(16),
    )
    return {"Authorization": f"Bearer {token}"}


# -- the way of an update ------------------------------------------------------------------------------


def test_an_update_becomes_half_of_the_next_release(
    federation: Federation, site: Site, tmp_path: Path
) -> None:
    before = read_release(site, tmp_path / "before.safetensors")
    known = site.release()
    path, update = site.offer(toy_delta(0.25), encoding="bf16")

    site.client.push(path, update)
    outcome = site.settled(update.update_id)

    assert outcome.state == UpdateState.MERGED
    assert outcome.merged_version == known.manifest.version + 1
    after = read_release(site, tmp_path / "after.safetensors")
    torch.testing.assert_close(after["conv.weight"], before["conv.weight"] + 0.125, rtol=0, atol=0)
    torch.testing.assert_close(after["norm.count"], before["norm.count"])


def test_an_upload_that_was_cut_continues_where_it_was(
    federation: Federation, site: Site, tmp_path: Path
) -> None:
    delta = {"wide": torch.full((WIDE,), 1e-3)}
    path, update = site.offer(delta, name="wide", family="wide")
    with CuttingProxy(federation.port, cut_up=6_000_000) as proxy:
        enrolment = replace(site.enrolment, url=f"https://localhost:{proxy.port}")
        key = federation.key_file("north")
        with connect(enrolment, key_file=key, ca_file=federation.ca_file, attempts=1) as cut:
            with pytest.raises(AggregatorError):
                cut.push(path, update)
            before = proxy.carried[0]
            cut.push(path, update)
            # 4 MiB had arrived and been answered, so about 5.8 MB were still to be sent.
            assert proxy.carried[0] - before < path.stat().st_size - 4_000_000
    assert site.settled(update.update_id).state == UpdateState.MERGED


def test_a_download_that_was_cut_continues_where_it_was(
    federation: Federation, site: Site, tmp_path: Path
) -> None:
    blob = site.release("wide").manifest.blob
    target = tmp_path / "wide.safetensors"
    with CuttingProxy(federation.port, cut_down=6_000_000) as proxy:
        enrolment = replace(site.enrolment, url=f"https://localhost:{proxy.port}")
        key = federation.key_file("north")
        with connect(enrolment, key_file=key, ca_file=federation.ca_file, attempts=1) as cut:
            with pytest.raises(AggregatorError):
                cut.fetch_blob(blob.sha256, target, size_bytes=blob.size)
            arrived = (tmp_path / "wide.safetensors.part").stat().st_size
            assert not target.exists()
            assert arrived > 4_000_000
            cut.fetch_blob(blob.sha256, target, size_bytes=blob.size)
            assert proxy.carried[1] < blob.size + 500_000
    assert weights.sha256_of(target) == blob.sha256
    assert not (tmp_path / "wide.safetensors.part").exists()


def test_a_cut_inside_one_call_is_mended_inside_that_call(
    federation: Federation, site: Site, tmp_path: Path
) -> None:
    blob = site.release("wide").manifest.blob
    with CuttingProxy(federation.port, cut_down=3_000_000) as proxy:
        enrolment = replace(site.enrolment, url=f"https://localhost:{proxy.port}")
        key = federation.key_file("north")
        with connect(enrolment, key_file=key, ca_file=federation.ca_file) as mended:
            mended.fetch_blob(blob.sha256, tmp_path / "wide", size_bytes=blob.size)
    assert weights.sha256_of(tmp_path / "wide") == blob.sha256


def test_announcing_an_update_again_tells_its_state(federation: Federation, site: Site) -> None:
    path, update = site.offer(toy_delta(0.125), name="again")
    site.client.push(path, update)
    settled = site.settled(update.update_id)
    assert site.client.push(path, update) == settled
    assert site.release().manifest.version == settled.merged_version


def test_one_update_id_cannot_stand_for_two_updates(federation: Federation, site: Site) -> None:
    path, update = site.offer(toy_delta(0.0625), name="first")
    site.client.push(path, update)
    other = update.model_copy(update={"n_cases": 50})
    assert refusal_of(lambda: site.client.push(path, other)) == "update_id_reused"


def test_the_same_weights_are_not_taken_twice(federation: Federation, site: Site) -> None:
    path, update = site.offer(toy_delta(0.03125), name="once")
    site.client.push(path, update)
    site.settled(update.update_id)
    _, again = site.offer(toy_delta(0.03125), name="once")
    assert refusal_of(lambda: site.client.push(path, again)) == "duplicate_update"


def test_an_update_of_an_older_release_counts_less(federation: Federation, tmp_path: Path) -> None:
    site = federation.site("stale-base")
    old = site.release()
    path, update = site.offer(toy_delta(0.2), name="fresh")
    site.client.push(path, update)
    site.settled(update.update_id)
    before = read_release(site, tmp_path / "before")
    stale_path = tmp_path / "stale"
    blob = write_blob(stale_path, toy_delta(0.25))
    late = site.client.describe(work_of(old, blob))
    site.client.push(stale_path, late)
    assert site.settled(late.update_id).state == UpdateState.MERGED
    after = read_release(site, tmp_path / "after")
    step = 0.5 * 0.25 / 2**0.5
    assert (after["conv.bias"] - before["conv.bias"]).tolist() == pytest.approx([step] * 4, abs=1e-6)


@pytest.mark.parametrize(
    ("delta", "state", "code"),
    [
        ({"conv.bias": torch.full((4,), torch.nan)}, UpdateState.REJECTED, "not_finite"),
        ({"conv.bias": torch.ones(5)}, UpdateState.REJECTED, "wrong_shape"),
        (toy_delta() | {"backdoor": torch.ones(1)}, UpdateState.REJECTED, "unexpected_tensor"),
        (toy_delta(0.0), UpdateState.REJECTED, "zero_update"),
        (toy_delta(1000.0), UpdateState.QUARANTINED, "norm_outlier"),
        (toy_delta() | {"norm.count": torch.tensor([8])}, UpdateState.REJECTED, "integer_tensor"),
    ],
)
def test_a_site_learns_why_its_update_was_refused(
    federation: Federation, site: Site, delta: weights.Tensors, state: UpdateState, code: str
) -> None:
    version = site.release().manifest.version
    path, update = site.offer(delta, name=code)
    site.client.push(path, update)
    outcome = site.settled(update.update_id)
    assert (outcome.state, outcome.code) == (state, code)
    assert len(outcome.reason) > 20
    assert site.release().manifest.version == version


def test_a_file_that_is_no_weight_file_is_refused(federation: Federation, site: Site, tmp_path: Path) -> None:
    entry = '"conv.bias":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    header = f"{{{entry},{entry}}}".encode()
    path = tmp_path / "twice"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    blob = BlobRef(sha256=weights.sha256_of(path), size=path.stat().st_size)
    update = site.client.describe(work_of(site.release(), blob))
    site.client.push(path, update)
    assert site.settled(update.update_id).code == "malformed_file"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"base": BaseRelease(version=1, sha256="00" * 32)}, "unknown_base"),
        ({"base": BaseRelease(version=999, sha256="00" * 32)}, "unknown_base"),
        ({"family": "unheard-of"}, "unknown_base"),
        ({"arch_id": "00" * 32}, "wrong_architecture"),
        ({"keys_digest": "00" * 32}, "wrong_architecture"),
        ({"aud": "elsewhere"}, "wrong_audience"),
        ({"node_id": "n-0000000000000000"}, "wrong_node"),
        ({"exp": 1, "iat": 0}, "update_expired"),
        ({"exp": 2**39}, "update_expired"),
        ({"n_cases": 0}, "no_work"),
        ({"n_steps": 0}, "no_work"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    federation: Federation, site: Site, change: dict[str, object], code: str
) -> None:
    path, update = site.offer(toy_delta(0.011), name="unfit")
    assert refusal_of(lambda: site.client.push(path, update.model_copy(update=change))) == code


def test_a_nonce_is_good_for_one_update(federation: Federation, site: Site) -> None:
    path, update = site.offer(toy_delta(0.012), name="nonce-1")
    site.client.push(path, update)
    path, other = site.offer(toy_delta(0.013), name="nonce-2")
    reused = other.model_copy(update={"nonce": update.nonce})
    assert refusal_of(lambda: site.client.push(path, reused)) == "nonce_reused"


def test_a_file_swapped_in_the_outbox_is_not_sent(federation: Federation, site: Site) -> None:
    path, update = site.offer(toy_delta(0.014), name="swapped")
    weights.write(path, toy_delta(0.5))
    assert refusal_of(lambda: site.client.push(path, update)) == "digest_mismatch"


# -- uploads on the wire -------------------------------------------------------------------------------


def call(
    federation: Federation,
    site: Site,
    raw: httpx.Client,
    method: str,
    path: str,
    body: bytes = b"",
    **headers: str,
) -> httpx.Response:
    """Send one properly signed request."""
    sent = token_of(federation, site, method, path, body) | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    return raw.request(method, path, content=body, headers=sent)


def begin(federation: Federation, site: Site, raw: httpx.Client, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    wanted = messages.UploadRequest(sha256=sha256, size=len(data)).model_dump_json().encode()
    answer = call(federation, site, raw, "POST", "/v1/uploads", wanted)
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "0")
    return f"/v1/uploads/{sha256}"


def test_an_upload_tells_its_true_offset(federation: Federation, site: Site, raw: httpx.Client) -> None:
    data = secrets.token_bytes(100)
    path = begin(federation, site, raw, data)
    first = call(federation, site, raw, "PATCH", path, data[:60], Upload_Offset="0")
    assert (first.status_code, first.headers["upload-offset"]) == (204, "60")
    wrong = call(federation, site, raw, "PATCH", path, data[:60], Upload_Offset="0")
    assert (wrong.status_code, wrong.headers["upload-offset"]) == (409, "60")
    assert wrong.headers["content-type"] == "application/problem+json"
    assert wrong.json() | {"detail": ""} == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "code": "wrong_offset",
        "detail": "",
        "retryable": True,
    }
    asked = call(federation, site, raw, "HEAD", path)
    assert (asked.status_code, asked.headers["upload-offset"]) == (200, "60")
    last = call(federation, site, raw, "PATCH", path, data[60:], Upload_Offset="60")
    assert (last.status_code, last.headers["upload-offset"]) == (204, "100")
    wanted = messages.UploadRequest(sha256=path[-64:], size=100).model_dump_json().encode()
    again = call(federation, site, raw, "POST", "/v1/uploads", wanted)
    assert (again.status_code, again.headers["upload-offset"]) == (200, "100")


def test_a_swapped_blob_is_refused_and_begins_anew(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    data = secrets.token_bytes(100)
    path = begin(federation, site, raw, data)
    answer = call(federation, site, raw, "PATCH", path, data[::-1], Upload_Offset="0")
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert call(federation, site, raw, "HEAD", path).status_code == 404


def test_more_bytes_than_declared_are_refused(federation: Federation, site: Site, raw: httpx.Client) -> None:
    path = begin(federation, site, raw, secrets.token_bytes(100))
    answer = call(federation, site, raw, "PATCH", path, bytes(101), Upload_Offset="0")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_chunk_or_message_beyond_its_limit_is_refused(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    path = begin(federation, site, raw, secrets.token_bytes(100))
    chunk = call(federation, site, raw, "PATCH", path, bytes(messages.CHUNK_BYTES + 1), Upload_Offset="0")
    message = call(federation, site, raw, "POST", "/v1/heartbeat", bytes(messages.MAXIMUM_JSON_BYTES + 1))
    assert [chunk.status_code, message.status_code] == [413, 413]


def test_a_blob_beyond_the_limit_is_refused_before_it_is_sent(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    wanted = messages.UploadRequest(sha256="00" * 32, size=1024**3 + 1).model_dump_json().encode()
    answer = call(federation, site, raw, "POST", "/v1/uploads", wanted)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_an_announcement_without_its_blob_may_be_repeated_later(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    _, update = site.offer(toy_delta(0.015), name="not-sent")
    key = signing.read_key(federation.key_file("north"))
    body = signing.seal(manifest.encode(update), payload_type=signing.UPDATE_TYPE, key=key)
    answer = call(federation, site, raw, "POST", "/v1/updates", body, Idempotency_Key=update.update_id)
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (
        409,
        "blob_missing",
        True,
    )


def test_an_envelope_by_another_site_is_refused(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    federation.site("envelope-thief")
    _, update = site.offer(toy_delta(0.016), name="stolen")
    key = signing.read_key(federation.key_file("envelope-thief"))
    body = signing.seal(manifest.encode(update), payload_type=signing.UPDATE_TYPE, key=key)
    answer = call(federation, site, raw, "POST", "/v1/updates", body, Idempotency_Key=update.update_id)
    assert answer.json()["code"] == "bad_signature"


def test_a_half_sent_request_changes_nothing(federation: Federation, site: Site, raw: httpx.Client) -> None:
    data = secrets.token_bytes(100)
    path = begin(federation, site, raw, data)
    token = token_of(federation, site, "PATCH", path, data)["Authorization"]
    context = certificates.client_context(federation.ca_file)
    plain = socket.create_connection(("127.0.0.1", federation.port))
    with context.wrap_socket(plain, server_hostname="localhost") as line:
        head = f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n"
        line.sendall(f"{head}Upload-Offset: 0\r\nContent-Length: 100\r\n\r\n".encode() + data[:50])
    assert call(federation, site, raw, "HEAD", path).headers["upload-offset"] == "0"


# -- identity ------------------------------------------------------------------------------------------


def test_a_token_is_good_for_one_request(federation: Federation, site: Site, raw: httpx.Client) -> None:
    headers = token_of(federation, site, "GET", "/v1/policy")
    assert raw.get("/v1/policy", headers=headers).status_code == 200
    answer = raw.get("/v1/policy", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_replayed")


def test_a_valid_token_does_not_carry_another_request(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    beat = messages.HeartbeatRequest(app="1", releases={}).model_dump_json().encode()
    for method, path, body in (
        ("POST", "/v1/heartbeat", beat + b" "),
        ("POST", "/v1/uploads", beat),
        ("GET", "/v1/heartbeat", beat),
    ):
        headers = token_of(federation, site, "POST", "/v1/heartbeat", beat)
        answer = raw.request(method, path, content=body, headers=headers)
        expected = (405, "method_not_allowed") if method == "GET" else (401, "token_mismatch")
        assert (answer.status_code, answer.json()["code"]) == expected


def test_a_token_of_another_method_on_the_same_path_is_refused(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    path = begin(federation, site, raw, secrets.token_bytes(10))
    answer = raw.patch(path, headers=token_of(federation, site, "HEAD", path))
    assert (answer.status_code, answer.json()["code"]) == (401, "token_mismatch")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"audience": "elsewhere"}, "wrong_audience"),
        ({"clock_off_min": -11}, "token_expired"),
        ({"clock_off_min": 10}, "token_expired"),
        ({"issuer": "n-0000000000000000"}, "bad_token"),
    ],
)
def test_a_token_of_another_place_or_time_is_refused(
    federation: Federation, site: Site, raw: httpx.Client, changes: dict[str, object], code: str
) -> None:
    others = {name: value for name, value in changes.items() if name != "clock_off_min"}
    if "clock_off_min" in changes:
        others["now"] = datetime.now(UTC) + timedelta(minutes=changes["clock_off_min"])
    answer = raw.get("/v1/policy", headers=token_of(federation, site, "GET", "/v1/policy", **others))
    assert (answer.status_code, answer.json()["code"]) == (401, code)


@pytest.mark.parametrize("path", ["/v1/policy", "/v1/channels/all/toy", f"/v1/blobs/{'0' * 64}"])
def test_nothing_is_told_to_strangers(raw: httpx.Client, path: str) -> None:
    answer = raw.get(path)
    assert (answer.status_code, answer.json()["code"]) == (401, "no_token")


def test_a_site_whose_clock_is_an_hour_off_learns_the_time(federation: Federation, site: Site) -> None:
    late = AggregatorClient(
        url=federation.url,
        node_id=site.enrolment.node_id,
        aggregator_name="centre",
        aggregator_key=site.enrolment.aggregator_key,
        key_file=federation.key_file("north"),
        ca_file=federation.ca_file,
        now=lambda: datetime.now(UTC) - timedelta(hours=1),
    )
    with late:
        assert late.policy().aggregator == "centre"


def test_a_revoked_node_is_shut_out_at_once(federation: Federation) -> None:
    site = federation.site("revoked")
    site.client.heartbeat(releases={})
    aggregator.revoke(federation.settings, site.enrolment.node_id)
    assert refusal_of(lambda: site.client.heartbeat(releases={})) == "node_revoked"
    assert refusal_of(lambda: site.client.latest_release(FAMILY)) == "node_revoked"


def test_the_update_of_another_site_cannot_be_seen_or_fetched(
    federation: Federation, site: Site, tmp_path: Path
) -> None:
    other = federation.site("curious")
    path, update = site.offer(toy_delta(0.017), name="private")
    site.client.push(path, update)
    site.settled(update.update_id)
    assert refusal_of(lambda: other.client.update_state(update.update_id)) == "not_found"
    assert refusal_of(lambda: other.client.fetch_blob(update.blob.sha256, tmp_path / "x")) == "not_found"


# -- enrolment -----------------------------------------------------------------------------------------


def enrol(federation: Federation, code: str, name: str, key: str) -> client.Enrolment:
    return client.enrol(
        federation.url,
        code,
        node_name=name,
        key_file=federation.folder / key,
        ca_file=federation.ca_file,
    )


def test_a_code_works_once(federation: Federation) -> None:
    code = aggregator.create_enrolment_code(federation.settings, "once")
    first = enrol(federation, f"  {code.lower()}\n", "once", "once-1")
    assert enrol(federation, code, "once", "once-1").node_id == first.node_id  # a lost answer
    assert refusal_of(lambda: enrol(federation, code, "once", "once-2")) == "code_used"
    assert refusal_of(lambda: enrol(federation, "GUESS", "once", "once-2")) == "code_unknown"


def test_an_expired_code_is_refused(federation: Federation) -> None:
    brief = federation.settings.model_copy(
        update={"enrolment": federation.settings.enrolment.model_copy(update={"code_valid_h": -1.0})}
    )
    code = aggregator.create_enrolment_code(brief, "late")
    assert refusal_of(lambda: enrol(federation, code, "late", "late")) == "code_expired"


def test_somebody_elses_key_cannot_be_enrolled(federation: Federation, raw: httpx.Client) -> None:
    code = aggregator.create_enrolment_code(federation.settings, "impostor")
    victim = signing.public_key_of(signing.read_key(federation.key_file("north")))
    own = signing.load_or_create_key(federation.folder / "impostor.key")
    statement = messages.enrolment_statement(
        code_sha256=Sha256(hashlib.sha256(code.encode()).hexdigest()),
        node_name="impostor",
        public_key=victim,
    )
    wanted = messages.EnrolRequest(
        code=code, node_name="impostor", public_key=victim, proof=signing.sign(statement, own)
    )
    answer = raw.post("/v1/enrol", content=wanted.model_dump_json())
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_signature")


def test_a_site_can_enrol_with_the_fingerprint_alone(federation: Federation, tmp_path: Path) -> None:
    code = aggregator.create_enrolment_code(federation.settings, "by-phone")
    told = aggregator.status(federation.settings).ca_fingerprint
    joined = client.enrol(
        federation.url,
        code,
        node_name="by-phone",
        key_file=tmp_path / "node.key",
        ca_file=tmp_path / "ca.pem",
        fingerprint=":".join(told[n : n + 2] for n in range(0, 64, 2)).upper(),
    )
    assert (tmp_path / "ca.pem").read_bytes() == federation.ca_file.read_bytes()
    assert joined.aggregator_fingerprint == aggregator.status(federation.settings).key_fingerprint


def test_another_fingerprint_ends_the_enrolment(federation: Federation, tmp_path: Path) -> None:
    code = aggregator.create_enrolment_code(federation.settings, "misled")
    call = lambda: client.enrol(  # noqa: E731  # read with the line below
        federation.url,
        code,
        node_name="misled",
        key_file=tmp_path / "node.key",
        ca_file=tmp_path / "ca.pem",
        fingerprint="00" * 32,
    )
    assert refusal_of(call) == "wrong_certificate"
    assert not (tmp_path / "ca.pem").exists()


def test_a_server_that_the_ca_does_not_vouch_for_is_not_spoken_to(
    federation: Federation, tmp_path: Path
) -> None:
    other = certificates.ensure(
        tmp_path, hostnames=["localhost"], organisation="other", now=datetime.now(UTC)
    )
    with pytest.raises(AggregatorError, match="CERTIFICATE_VERIFY_FAILED"):
        client.enrol(
            federation.url, "X", node_name="x", key_file=tmp_path / "node.key", ca_file=other.ca_file
        )


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_1_1_is_refused(federation: Federation) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(federation.ca_file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", federation.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_plain_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https://"):
        client.enrol("http://localhost", "X", node_name="x", key_file=tmp_path / "node.key")


# -- releases ------------------------------------------------------------------------------------------


def test_an_unchanged_release_is_not_sent_again(federation: Federation, site: Site) -> None:
    release = site.release("wide")
    assert site.client.latest_release("wide", etag=release.etag) is None
    assert manifest.decode(release.manifest_json, manifest.ReleaseManifest) == release.manifest


def test_a_model_without_releases_is_a_definite_answer(site: Site) -> None:
    assert refusal_of(lambda: site.client.latest_release("unheard-of")) == "not_found"


def test_an_older_release_than_the_known_one_is_refused(site: Site) -> None:
    release = site.release("wide").manifest
    same = BaseRelease(version=release.version, sha256=release.blob.sha256)
    newer = BaseRelease(version=release.version + 1, sha256="00" * 32)
    changed = BaseRelease(version=release.version, sha256="00" * 32)
    assert site.client.latest_release("wide", known=same) is not None
    assert refusal_of(lambda: site.client.latest_release("wide", known=newer)) == "downgrade"
    assert refusal_of(lambda: site.client.latest_release("wide", known=changed)) == "release_changed"


def test_a_release_by_another_key_than_the_pinned_one_is_refused(federation: Federation, site: Site) -> None:
    other = signing.public_key_of(signing.load_or_create_key(federation.folder / "other.key"))
    enrolment = replace(site.enrolment, aggregator_key=other)
    with connect(enrolment, key_file=federation.key_file("north"), ca_file=federation.ca_file) as misled:
        assert refusal_of(lambda: misled.latest_release(FAMILY)) == "bad_signature"


def test_a_blob_swapped_at_the_aggregator_is_not_kept(tmp_path: Path) -> None:
    with running(tmp_path) as federation:
        site = federation.site("north")
        blob = site.release().manifest.blob
        kept = federation.tools.blobs.path_of(blob.sha256)
        kept.write_bytes(kept.read_bytes()[::-1])
        target = tmp_path / "fetched"
        assert refusal_of(lambda: site.client.fetch_blob(blob.sha256, target)) == "digest_mismatch"
        assert not target.exists()
        assert not target.with_name("fetched.part").exists()


def test_a_rolled_back_federation_goes_forward_to_old_weights(tmp_path: Path) -> None:
    with running(tmp_path) as federation:
        site = federation.site("north")
        first = site.release().manifest
        path, update = site.offer(toy_delta())
        site.client.push(path, update)
        site.settled(update.update_id)
        aggregator.roll_back(federation.settings, FAMILY, 1)
        known = BaseRelease(version=2, sha256="00" * 32)
        found = site.client.latest_release(FAMILY, known=known)
        assert found is not None
        assert (found.manifest.version, found.manifest.rollback_to) == (3, 1)
        assert found.manifest.blob == first.blob


def test_a_blob_says_that_it_never_changes(federation: Federation, site: Site, raw: httpx.Client) -> None:
    blob = site.release("wide").manifest.blob
    path = f"/v1/blobs/{blob.sha256}"
    etag = f'"sha256-{blob.sha256}"'
    head = call(federation, site, raw, "HEAD", path)
    assert (head.headers["etag"], head.headers["content-length"]) == (etag, str(blob.size))
    assert "immutable" in head.headers["cache-control"]
    part = call(federation, site, raw, "GET", path, Range="bytes=100-199", If_Range=etag)
    assert (part.status_code, len(part.content)) == (206, 100)
    whole = call(federation, site, raw, "GET", path, Range="bytes=100-199", If_Range='"other"')
    assert (whole.status_code, len(whole.content)) == (200, blob.size)
    assert call(federation, site, raw, "GET", path, If_None_Match=etag).status_code == 304


# -- the aggregator itself -----------------------------------------------------------------------------


def test_health_and_figures_are_there_for_anyone(
    federation: Federation, site: Site, raw: httpx.Client
) -> None:
    assert raw.get("/healthz").text == "ok"
    figures = raw.get("/metrics").text
    assert 'dicomnode_aggregator_release{family="wide"}' in figures
    assert 'dicomnode_aggregator_nodes{status="active"}' in figures
    assert site.enrolment.node_id not in figures


def test_what_is_not_there_is_a_problem_too(raw: httpx.Client) -> None:
    answer = raw.get("/v2/nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_heartbeat_makes_the_site_a_witness_of_the_audit_chain(federation: Federation, site: Site) -> None:
    beat = site.client.heartbeat(releases={FAMILY: 1})
    head = federation.tools.ledger.audit.head()
    assert (beat.audit_sequence, beat.audit_hash) == (head.sequence, head.hash)
    assert aggregator.verify_audit(federation.settings).fault is None


def test_the_status_names_sites_and_releases(federation: Federation, site: Site) -> None:
    found = aggregator.status(federation.settings)
    assert "north" in [node.name for node in found.nodes]
    assert {row.family for row in found.releases} == {FAMILY, "wide"}


def test_a_busy_port_is_named(federation: Federation, tmp_path: Path) -> None:
    settings = aggregator_settings(tmp_path / "second")
    place = settings.aggregator.model_copy(update={"port": federation.port})
    busy = settings.model_copy(update={"aggregator": place})
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{federation.port}.*port"):
        aggregator.serve(busy)


def test_a_folder_without_an_aggregator_is_not_reported_as_intact(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no aggregator in"):
        aggregator.verify_audit(aggregator_settings(tmp_path / "wrong"))
    assert not (tmp_path / "wrong").exists()


def test_an_aggregator_that_is_away_is_a_passing_fault(
    site: Site, federation: Federation, free_port: int
) -> None:
    enrolment = replace(site.enrolment, url=f"https://localhost:{free_port}")
    key = federation.key_file("north")
    away = connect(enrolment, key_file=key, ca_file=federation.ca_file, attempts=1)
    with away, pytest.raises(AggregatorError, match="ConnectError"):
        away.policy()


def test_no_secret_reaches_the_log(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = aggregator.create_enrolment_code(federation.settings, "logged")
    enrol(federation, code, "logged", "logged.key")
    with pytest.raises(UpdateRejectedError):
        enrol(federation, code, "logged", "thief.key")
    written = "".join(capsys.readouterr())
    assert "node enrolled" in written
    assert code not in written
    assert "Bearer" not in written
    assert "PRIVATE" not in written


def test_an_update_manifest_is_signed_once_and_stays_the_same(site: Site, tmp_path: Path) -> None:
    _, update = site.offer(toy_delta(0.018), name="kept")
    kept = manifest.encode(update)
    assert manifest.decode(kept, UpdateManifest) == update
