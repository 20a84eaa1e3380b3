"""A small certificate authority of one's own: one for a broker, its daemon, its workers and its operators.

The broker takes the common name of a client's certificate for its user, and the user is the
identity of the contract. So whoever holds `ca.key` can be anybody: it is needed only to make and
renew certificates, and belongs on a machine that is neither the broker nor a worker.

All files lie in one folder: `ca.crt`, `ca.key`, `broker.crt`, `broker.key`, and a pair for each
identity. A key is readable by its owner only. What is there is never overwritten, except by a
renewal, and the authority itself never.
"""

import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bayesd import durable
from bayesd_schemas.names import is_name

CA, BROKER = "ca", "broker"
CA_DAYS, BROKER_DAYS, CLIENT_DAYS = 3650, 397, 90
RENEW_BELOW = 1 / 3          # of its life: 30 days of the 90 that a client's certificate has
EARLY = datetime.timedelta(minutes=5)     # a machine whose clock is a little behind takes a fresh certificate, too
_IS_HOST = re.compile(r"(?=.{1,253}$)(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
                      r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*").fullmatch

PrivateKey = ec.EllipticCurvePrivateKey


class CertificateError(Exception):
    """A certificate cannot be made or read; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a certificate says of itself."""

    name: str
    """The common name, which the broker takes for the user."""
    role: str
    begins: datetime.datetime
    ends: datetime.datetime
    hosts: tuple[str, ...] = ()

    @property
    def is_due(self) -> bool:
        """Whether less than a third of its life is left."""
        return (self.ends - _now()) < (self.ends - self.begins) * RENEW_BELOW


@dataclass(frozen=True, slots=True)
class Made:
    """One certificate of the folder after `issue`, and what was done to it: made, renewed or kept."""

    file: Path
    seen: Seen
    done: str


def issue(folder: Path, hosts: Sequence[str], clients: Mapping[str, str], *, days: int = CLIENT_DAYS,
          broker_days: int = BROKER_DAYS, renew: bool = False) -> list[Made]:
    """Make what is missing in `folder`, and with `renew` what is near its end. `clients` are roles by name.

    `hosts` are the names and addresses under which the broker is reached. Raises CertificateError, and
    then nothing was changed.
    """
    for host in hosts:
        _general_name(host)
    for name in clients:
        check_name(name)
    there = {seen.file.stem: seen.seen for seen in listed(folder)}
    _check_roles(there, clients)
    if BROKER in there:
        if hosts and set(hosts) != set(there[BROKER].hosts) and not renew:
            raise CertificateError(f"the broker's certificate in {folder} is for {', '.join(there[BROKER].hosts)}: add "
                                   "--renew to make one for the new names")
    elif not hosts:
        raise CertificateError("the broker's certificate needs the names under which it is reached: give --host, once "
                               "for each, for example --host broker.example --host localhost")
    _new_folder(folder)
    authority, key, made = _authority(folder)
    known = {name: seen.role for name, seen in there.items() if name not in (BROKER, CA)}
    wanted = {BROKER: BROKER, **known, **clients}
    for name, role in wanted.items():
        seen = there.get(name)
        fits = seen is not None and (name != BROKER or not hosts or set(hosts) == set(seen.hosts))
        if seen is not None and not (renew and (seen.is_due or not fits or not _belong(folder, name))):
            made.append(Made(folder / f"{name}.crt", seen, "kept"))
            continue
        names = tuple(hosts) or (seen.hosts if seen is not None else ())
        new = _certificate(authority, key, folder, name, role, names if name == BROKER else (),
                           broker_days if name == BROKER else days)
        made.append(Made(folder / f"{name}.crt", _seen(new), "made" if seen is None else "renewed"))
    return made


def listed(folder: Path) -> list[Made]:
    """The certificates in a folder. Raises CertificateError for one that cannot be read."""
    return [Made(file, read(file), "kept") for file in sorted(folder.glob("*.crt"))] if folder.is_dir() else []


def read(file: Path) -> Seen:
    """What the first certificate of a PEM file says. Raises CertificateError."""
    return _seen(_load(file))


def is_issued_by(file: Path, ca_file: Path) -> bool:
    """Whether one of the certificates in `ca_file` has signed the one in `file`. Raises CertificateError."""
    certificate = _load(file)
    for authority in _load_all(ca_file):
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def check_name(name: str) -> None:
    """Raises CertificateError for what is no name of the contract, or one that a file of ours has."""
    if not is_name(name):
        raise CertificateError(f"{name!r} is not a name: up to 64 of a-z, 0-9, dot, dash and underscore, beginning "
                               "with a letter or digit, for example w1")
    if name in (CA, BROKER):
        raise CertificateError(f"an identity cannot be named {name}: files of that name are the "
                               f"{'authority' if name == CA else 'broker'}'s")


# --- What is refused ---------------------------------------------------------------------------------


def _check_roles(there: Mapping[str, Seen], clients: Mapping[str, str]) -> None:
    for name, role in clients.items():
        if name in there and there[name].role != role:
            raise CertificateError(f"{name} is the name of {_a(there[name].role)} already: a name is one or the other, "
                                   f"so give the {role} another name")


def _a(role: str) -> str:
    return f"an {role}" if role[:1] in "aeiou" else f"a {role}"


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _IS_HOST(host):
        raise CertificateError(f"{host!r} is not a host: give a name such as broker.example or an address such as "
                               "192.0.2.7, without mqtts:// and port")
    return x509.DNSName(host)


# --- The authority ------------------------------------------------------------------------------------


def _authority(folder: Path) -> tuple[x509.Certificate, PrivateKey, list[Made]]:
    """The one of this folder; a new one only where there is none. Never made anew: all clients trust it."""
    file, key_file = folder / f"{CA}.crt", folder / f"{CA}.key"
    if file.exists() != key_file.exists():
        gone = key_file if file.exists() else file
        raise CertificateError(f"{gone} is missing, its other half is there: bring it back from where you keep it. To "
                               "begin with a new authority, name another folder; every certificate is then made anew")
    if file.exists():
        authority, key = _load(file), _load_key(key_file)
        if _bytes(authority.public_key()) != _bytes(key.public_key()):
            raise CertificateError(f"{key_file} does not belong to {file}: bring the right one back")
        if authority.not_valid_after_utc <= _now():
            raise CertificateError(f"the authority in {folder} ended on {authority.not_valid_after_utc:%Y-%m-%d}: "
                                   "begin with a new one in another folder, and give its ca.crt to everybody")
        return authority, key, [Made(file, _seen(authority), "kept")]
    if left := sorted(folder.glob("*.crt")):
        raise CertificateError(f"{left[0]} is there, but not the authority that made it: bring {CA}.crt and {CA}.key "
                               "back, or name an empty folder")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"bayesd CA {_now():%Y-%m-%d} {secrets.token_hex(3)}")])
    usage = x509.KeyUsage(digital_signature=False, content_commitment=False, key_encipherment=False,
                          data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
                          encipher_only=False, decipher_only=False)
    authority = (_builder(name, name, key, CA_DAYS).add_extension(x509.BasicConstraints(True, 0), critical=True)
                 .add_extension(usage, critical=True).sign(key, hashes.SHA256()))
    write_file(folder / f"{CA}.key", _private(key), 0o600)
    write_file(file, authority.public_bytes(serialization.Encoding.PEM), 0o644)
    return authority, key, [Made(file, _seen(authority), "made")]


def _certificate(authority: x509.Certificate, authority_key: PrivateKey, folder: Path, name: str, role: str,
                 hosts: Sequence[str], days: int) -> x509.Certificate:
    """A new key and its certificate, in place of older ones."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
                         x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(digital_signature=True, content_commitment=False, key_encipherment=False,
                          data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
                          encipher_only=False, decipher_only=False)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (_builder(subject, authority.subject, key, days, latest=authority.not_valid_after_utc)
               .add_extension(x509.BasicConstraints(False, None), critical=True)
               .add_extension(usage, critical=True)
               .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
               .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                              critical=False))
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]),
                                        critical=False)
    certificate = builder.sign(authority_key, hashes.SHA256())
    # A crash between the two leaves a pair that does not belong together, which the next --renew mends.
    write_file(folder / f"{name}.key", _private(key), 0o600)
    write_file(folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: int,
             latest: datetime.datetime | None = None) -> x509.CertificateBuilder:
    ends = _now() + datetime.timedelta(days=days)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(_now() - EARLY)
            .not_valid_after(min(ends, latest) if latest is not None else ends)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False))


# --- Files ---------------------------------------------------------------------------------------------


def _new_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CertificateError(f"the folder {folder} cannot be made ({error.strerror})") from error


def write_file(file: Path, data: bytes, mode: int) -> None:
    """Put a whole file in its place, never readable by more people than `mode` says. Raises CertificateError."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            os.fchmod(out.fileno(), mode)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        durable.put_in_place(draft, file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CertificateError(f"{file} cannot be written ({error.strerror})") from error


def _load(file: Path) -> x509.Certificate:
    return _load_all(file)[0]


def _load_all(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise CertificateError(f"{file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CertificateError(f"{file} is not a certificate in PEM") from error


def _load_key(file: Path) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise CertificateError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{file} is not a private key in PEM without a passphrase") from error
    if not isinstance(key, PrivateKey):
        raise CertificateError(f"{file} is not a key of ours, which are on the curve P-256")
    return key


def _belong(folder: Path, name: str) -> bool:
    """Whether a certificate and its key are a pair."""
    try:
        key = _load_key(folder / f"{name}.key")
    except CertificateError:
        return False
    return _bytes(key.public_key()) == _bytes(_load(folder / f"{name}.crt").public_key())


def _seen(certificate: x509.Certificate) -> Seen:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = tuple(str(each.value) for each in names)
    except x509.ExtensionNotFound:
        hosts = ()
    units = _texts(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)
    is_authority = certificate.subject == certificate.issuer
    return Seen(next(_texts(certificate, NameOID.COMMON_NAME), ""), CA if is_authority else next(units, ""),
                certificate.not_valid_before_utc, certificate.not_valid_after_utc, hosts)


def _texts(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> Iterator[str]:
    return (str(each.value) for each in certificate.subject.get_attributes_for_oid(kind))


def _private(key: PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


def _bytes(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
