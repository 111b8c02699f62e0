"""The aggregator's own certificate authority and the server certificate that nodes check against it."""

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dicomnode import durable
from dicomnode.errors import ConfigError

_AUTHORITY_VALIDITY = timedelta(days=3650)
_SERVER_VALIDITY = timedelta(days=397)
_RENEWAL_MARGIN = timedelta(days=30)
_CLOCK_SLACK = timedelta(hours=1)  # nodes whose clock runs behind still accept a fresh certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """Paths of the files that the HTTPS server and the nodes need."""

    ca_file: Path  # given to the nodes
    certificate_file: Path
    key_file: Path


def ensure(folder: Path, *, hostnames: Sequence[str], organisation: str, now: datetime) -> ServerCertificate:
    """Make the authority on first use, and a server certificate when there is none that still serves.

    A certificate is made anew when it expires within 30 days or names other hosts; the authority, which
    nodes have pinned, stays.

    Parameters
    ----------
    folder
        ``ca.pem`` for the nodes is put here, the private keys into ``keys`` below it with mode 0600.
    hostnames
        DNS names and IP addresses under which nodes reach the server; at least one.

    Raises
    ------
    ConfigError
        No host name, or the files of the authority cannot be read.
    """
    if not hostnames:
        raise ConfigError("the aggregator needs at least one host name for its certificate")
    files = ServerCertificate(
        ca_file=folder / "ca.pem",
        certificate_file=folder / "keys" / "server.pem",
        key_file=folder / "keys" / "server.key",
    )
    authority, authority_key = _authority(folder, organisation=organisation, now=now)
    if not _serves(files, authority, hostnames=hostnames, now=now):
        _issue_server(files, authority, authority_key, hostnames=hostnames, now=now)
    return files


def fingerprint(pem: bytes) -> str:
    """Name a certificate for humans and settings: SHA-256 of its DER form, 64 hexadecimal digits.

    Raises
    ------
    ConfigError
        The bytes are no PEM certificate.
    """
    try:
        return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    except ValueError as error:
        raise ConfigError("not a certificate in PEM form") from error


def server_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """Make the TLS settings of the server: TLS 1.2 or later."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate_file, key_file)
    return context


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Make the TLS settings of a node: TLS 1.2 or later, trusting ``ca_file`` alone when there is one.

    Raises
    ------
    ConfigError
        The file holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"cannot read the aggregator's CA certificate {ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def unverified_context() -> ssl.SSLContext:
    """Make TLS settings that trust anybody: only to fetch a certificate whose fingerprint is known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _authority(
    folder: Path, *, organisation: str, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_file, key_file = folder / "ca.pem", folder / "keys" / "ca.key"
    if not key_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{organisation} CA"[:64])])
        certificate = (
            _builder(name, name, key.public_key(), now=now, validity=_AUTHORITY_VALIDITY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        # The certificate first: a crash between the two leaves no key, and both are made again.
        durable.keep(certificate_file, _pem(certificate), mode=durable.PUBLIC)
        durable.keep(key_file, _key_pem(key), mode=durable.PRIVATE)
    try:
        loaded = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the certificate authority in {folder}") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{key_file} is {type(loaded).__name__}, expected an elliptic-curve key")
    return certificate, loaded


def _issue_server(
    files: ServerCertificate,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    hostnames: Sequence[str],
    now: datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostnames[0][:64])])
    certificate = (
        _builder(name, authority.subject, key.public_key(), now=now, validity=_SERVER_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(h) for h in hostnames]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    durable.keep(files.key_file, _key_pem(key), mode=durable.PRIVATE)
    durable.keep(files.certificate_file, _pem(certificate), mode=durable.PUBLIC)


def _serves(
    files: ServerCertificate, authority: x509.Certificate, *, hostnames: Sequence[str], now: datetime
) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate_file.read_bytes())
        key = serialization.load_pem_private_key(files.key_file.read_bytes(), password=None)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        certificate.not_valid_after_utc - now > _RENEWAL_MARGIN
        and set(names) == {_general_name(h) for h in hostnames}
        and key.public_key() == certificate.public_key()
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    validity: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(hostname: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(hostname))
    except ValueError:
        return x509.DNSName(hostname)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
