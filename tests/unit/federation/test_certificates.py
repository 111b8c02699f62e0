"""The aggregator's certificate authority and server certificate."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from dicomnode.errors import ConfigError
from dicomnode.federation import certificates

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def ensure(
    folder: Path, *, hostnames: tuple[str, ...] = ("localhost", "127.0.0.1"), now: datetime = NOW
) -> certificates.ServerCertificate:
    return certificates.ensure(folder, hostnames=hostnames, organisation="centre", now=now)


def test_private_keys_can_be_read_by_their_owner_alone(tmp_path: Path) -> None:
    files = ensure(tmp_path)
    for key in (files.key_file, tmp_path / "keys" / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in files.ca_file.read_bytes()


def test_the_certificate_names_the_hosts_and_is_issued_by_the_authority(tmp_path: Path) -> None:
    files = ensure(tmp_path, hostnames=("fed.example.org", "10.0.0.7"))
    server = x509.load_pem_x509_certificate(files.certificate_file.read_bytes())
    server.verify_directly_issued_by(x509.load_pem_x509_certificate(files.ca_file.read_bytes()))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    files = ensure(tmp_path)
    before = files.certificate_file.read_bytes(), files.ca_file.read_bytes()
    ensure(tmp_path, now=NOW + timedelta(days=100))
    assert (files.certificate_file.read_bytes(), files.ca_file.read_bytes()) == before


@pytest.mark.parametrize(
    ("hostnames", "days"), [(("elsewhere.example.org",), 0), (("localhost", "127.0.0.1"), 380)]
)
def test_new_hosts_or_a_near_end_give_a_new_certificate_by_the_same_authority(
    tmp_path: Path, hostnames: tuple[str, ...], days: int
) -> None:
    files = ensure(tmp_path)
    server, authority = files.certificate_file.read_bytes(), files.ca_file.read_bytes()
    ensure(tmp_path, hostnames=hostnames, now=NOW + timedelta(days=days))
    assert files.certificate_file.read_bytes() != server
    assert files.ca_file.read_bytes() == authority


def test_a_fingerprint_is_the_sha256_of_the_der_form(tmp_path: Path) -> None:
    pem = ensure(tmp_path).ca_file.read_bytes()
    assert len(certificates.fingerprint(pem)) == 64
    with pytest.raises(ConfigError, match="PEM"):
        certificates.fingerprint(b"nonsense")


def test_a_damaged_authority_is_named(tmp_path: Path) -> None:
    files = ensure(tmp_path)
    files.ca_file.write_text("damaged")
    with pytest.raises(ConfigError, match="certificate authority"):
        ensure(tmp_path)
