"""A certificate authority for one stack, and a certificate for each process of it, as files in a private folder.

The authority is made once and kept. A certificate is made anew when it would not do any more: it ends within 30 days,
another authority signed it, it does not belong to its key, or it lacks a name that is wanted now. A running process
reads its files at its start only, so a stack that is never restarted ends with its certificates, after 397 days.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID
from inferbus_runtime.tls import TlsFiles

from inferbus_stack.home import StackError, write_private

_AUTHORITY_DAYS = 3650
# No client believes a public server's certificate of more than 398 days.
_DAYS = 397
_RENEW_DAYS = 30
# A machine whose clock is a little behind must not take a new certificate for one of the future.
_SKEW = timedelta(minutes=5)
_ORGANISATION = "InferBus"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One certificate. ``name``: the process that it names. ``hosts``: names and addresses under which it is reached.

    ``client``: whether it may call others; the one that strangers see may not. ``server``: whether it may be called.
    """

    name: str
    hosts: tuple[str, ...] = ()
    client: bool = True
    server: bool = True

    @property
    def usages(self) -> tuple[x509.ObjectIdentifier, ...]:
        granted = ((self.server, Usage.SERVER_AUTH), (self.client, Usage.CLIENT_AUTH))
        return tuple(usage for is_granted, usage in granted if is_granted)


@dataclass(frozen=True, slots=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class Authority:
    """The authority in ``folder`` (mode 0700, files 0600), made at the first call.

    Raises StackError if its files are broken, or if it ends within 30 days.
    """

    def __init__(self, folder: Path, now: datetime) -> None:
        self._folder = folder
        self._now = now
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.ca = folder / "ca.pem"
        self._own = self._kept()

    def certificates(self, wanted: Sequence[Wanted]) -> Mapping[str, TlsFiles]:
        """The files of each, by name; those that would not do any more are made anew."""
        return {one.name: self._files(one) for one in wanted}

    def _kept(self) -> _Pair:
        """The authority of the last start, or the first one."""
        key_file = self._folder / "ca.key"
        advice = f"delete the folder {self._folder} to have another made, and give its ca.pem to all clients"
        if not self.ca.exists() and not key_file.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            pair = _Pair(key, _authority(key, self._now))
            _write(pair, self.ca, key_file)
            return pair
        try:
            pair = _read(self.ca, key_file)
        except (OSError, ValueError, TypeError) as error:
            raise StackError(f"the certificate authority cannot be read ({error}); {advice}") from None
        if self._now > pair.certificate.not_valid_after_utc - timedelta(days=_RENEW_DAYS):
            raise StackError(f"the certificate authority ends on {pair.certificate.not_valid_after_utc:%F}; {advice}")
        return pair

    def _files(self, wanted: Wanted) -> TlsFiles:
        files = TlsFiles(self._folder / f"{wanted.name}.pem", self._folder / f"{wanted.name}.key", self.ca)
        with suppress(OSError, ValueError, TypeError):  # missing or broken: made anew below
            if _will_do(_read(files.cert, files.key), wanted, self._own.certificate, self._now):
                return files
        key = ec.generate_private_key(ec.SECP256R1())
        _write(_Pair(key, _issue(wanted, key, self._own, self._now)), files.cert, files.key)
        return files


def _will_do(pair: _Pair, wanted: Wanted, authority: x509.Certificate, now: datetime) -> bool:
    certificate = pair.certificate
    if pair.key.public_key() != certificate.public_key():  # a start was cut off between the two files
        return False
    try:
        certificate.verify_directly_issued_by(authority)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    fits = set(usages) == set(wanted.usages) and set(names) == set(_names(wanted))
    return fits and now < certificate.not_valid_after_utc - timedelta(days=_RENEW_DAYS)


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _subject("InferBus local authority")
    return (
        _builder(name, key, now, now + timedelta(days=_AUTHORITY_DAYS))
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _issue(wanted: Wanted, key: ec.EllipticCurvePrivateKey, own: _Pair, now: datetime) -> x509.Certificate:
    end = min(now + timedelta(days=_DAYS), own.certificate.not_valid_after_utc)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(own.key.public_key())
    return (
        _builder(_subject(wanted.name), key, now, end)
        .issuer_name(own.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(wanted.usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(wanted)), critical=False)
        .add_extension(signer, critical=False)
        .sign(own.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _names(wanted: Wanted) -> list[x509.GeneralName]:
    """Its own name first: it says which process this is."""
    return [_general_name(host) for host in dict.fromkeys((wanted.name, *wanted.hosts))]


def _general_name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host)
    except ValueError:
        raise StackError(f"{host} is not a host name for a certificate; write it in ASCII (xn--…)") from None


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
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


def _read(cert: Path, key: Path) -> _Pair:
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{key} is not a key of ours")
    return _Pair(private, x509.load_pem_x509_certificate(cert.read_bytes()))


def _write(pair: _Pair, cert: Path, key: Path) -> None:
    pem = serialization.Encoding.PEM
    private = pair.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(key, private.decode())
    write_private(cert, pair.certificate.public_bytes(pem).decode())
