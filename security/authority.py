"""A small certification authority over one directory: issues, refuses, revokes, and forgets nothing.

`key.pem` (0600), `ca.pem`, `issued.sqlite` (every certificate is recorded durably before it is handed out), in a
directory
of mode 0700. Several processes may use one directory. Certificates are as Globus, VOMS and OpenSSL want them.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import stat
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from security import certificates
from security.certificates import PrivateKey, PublicKey
from security.credentials import Credential, generate_key
from security.errors import CredentialError, Reason, SecurityError, require_utc, utc_text
from security.files import write_atomic
from security.names import DistinguishedName
from security.proxies import MINIMUM_RSA_BITS, load_request
from security.signing_policy import emit_namespaces, emit_signing_policy, matches

MAX_HOSTS = 64
"""Alternative names in one host certificate."""
BACKDATING = timedelta(minutes=5)

_HOST_NAME = re.compile(
    r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*\Z"
)
_SCHEMA = """
create table if not exists meta (name text primary key, value text not null) strict;
create table if not exists issued (
    serial text primary key, subject text not null, kind text not null,
    not_before real not null, not_after real not null, pem blob not null, issued_at real not null) strict;
create index if not exists issued_subject on issued (subject);
create table if not exists revoked (serial text primary key, reason text not null, revoked_at real not null) strict;
"""

Subject = DistinguishedName | str
KeySource = PublicKey | x509.CertificateSigningRequest | bytes
"""A public key, a certificate request, or a request in PEM or DER. Only the key of a request is used."""


@dataclass(frozen=True)
class IssuedCertificate:
    """One line of the authority's register."""

    serial: int
    subject: DistinguishedName
    kind: str
    """user, host or service."""
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None
    revocation_reason: str | None
    certificate: x509.Certificate


class CertificateAuthority:
    """Make one with `create` or `open`. Thread safe. All errors are CredentialError."""

    def __init__(self, directory: Path, credential: Credential, database: sqlite3.Connection, namespace: Sequence[str]):
        self._directory = directory
        self._credential = credential
        self._database = database
        self._namespace = tuple(namespace)
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        directory: str | Path,
        subject: Subject,
        *,
        lifetime: timedelta,
        now: datetime,
        key_type: str = "rsa-2048",
        namespace: str | Sequence[str] | None = None,
        key: PrivateKey | None = None,
    ) -> CertificateAuthority:
        """A new self-signed authority. `namespace`: patterns such as `/C=XX/O=Grid/*`; by default all below its parent.

        Raises AUTHORITY_INVALID if the directory already holds one.
        """
        now = require_utc(now)
        name = subject if isinstance(subject, DistinguishedName) else DistinguishedName.parse(subject)
        patterns = (
            (f"{name.parent}/*",) if namespace is None else (namespace,) if isinstance(namespace, str) else namespace
        )
        if not patterns or any(not pattern.startswith("/") for pattern in patterns):
            raise _invalid(f"the namespace of {name} must be patterns such as /C=XX/O=Grid/*", Path(directory))
        if lifetime <= timedelta(0):
            raise CredentialError(Reason.LIFETIME_INVALID, "the lifetime of an authority must be positive")
        folder = Path(directory)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if (folder / "key.pem").exists() or (folder / "ca.pem").exists():
            raise _invalid(f"{folder} already holds an authority; open it", folder)
        key = key or generate_key(key_type)
        certificate = _self_signed(name, key, now, lifetime)
        with closing(_connect(folder)) as database, database:
            database.executemany(
                "insert or replace into meta values (?, ?)",
                [("crl_number", "0"), ("namespace", "\n".join(patterns))],
            )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomic(folder / "key.pem", pem, 0o600)
        write_atomic(folder / "ca.pem", certificates.pem([certificate]), 0o644)
        return cls.open(folder)

    @classmethod
    def open(cls, directory: str | Path) -> CertificateAuthority:
        """An existing authority. Raises AUTHORITY_INVALID or CREDENTIAL_FILE_UNSAFE."""
        folder = Path(directory)
        try:
            mode = folder.stat().st_mode
        except OSError as error:
            raise _invalid(f"there is no authority in {folder} ({error.strerror}); create it", folder) from error
        if stat.S_IMODE(mode) & 0o077:
            raise CredentialError(
                Reason.CREDENTIAL_FILE_UNSAFE,
                f"{folder} is open to others; run: chmod 700 {folder}",
                {"path": str(folder)},
            )
        if not (folder / "issued.sqlite").exists():
            raise _invalid(f"there is no complete authority in {folder}; create it in an empty directory", folder)
        credential = Credential.load(folder / "ca.pem", folder / "key.pem")
        database = _connect(folder)
        row = database.execute("select value from meta where name = 'namespace'").fetchone()
        if row is None:
            database.close()
            raise _invalid(f"the register of the authority in {folder} is damaged", folder)
        return cls(folder, credential, database, row[0].split("\n"))

    def close(self) -> None:
        """Close the register. May be called twice."""
        self._database.close()

    @property
    def directory(self) -> Path:
        """Where the authority lives."""
        return self._directory

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return self._credential.certificate

    @property
    def subject(self) -> DistinguishedName:
        """The authority's name."""
        return self._credential.subject

    @property
    def namespace(self) -> tuple[str, ...]:
        """Patterns of the names that it may sign."""
        return self._namespace

    def ca_pem(self) -> bytes:
        """The authority's certificate as PEM."""
        return certificates.pem([self.certificate])

    def signing_policy(self) -> str:
        """The EACL file to install beside the certificate."""
        return emit_signing_policy(self.subject, self._namespace)

    def namespaces(self) -> str:
        """The same as `.namespaces` (EUGridPMA), which counts before the EACL file where both are."""
        return emit_namespaces(self.subject, self._namespace)

    def info(self, crl_url: str = "") -> str:
        """The `.info` file of the IGTF distribution: who this is, and where its revocation list can be fetched."""
        fingerprint = self.certificate.fingerprint(hashes.SHA1()).hex(":").upper()  # the format's name for a file
        lines = [
            f"alias = {self.subject.common_name}",
            f'subjectdn = "{self.subject.openssl_oneline()}"',
            f"sha1fp.0 = {fingerprint}",
            "status = experimental",
        ]
        return "".join(f"{line}\n" for line in (*lines, *([f"crl_url = {crl_url}"] if crl_url else ())))

    def issue_user(
        self, subject: Subject, key: KeySource, *, lifetime: timedelta, now: datetime, renew: bool = False
    ) -> x509.Certificate:
        """A certificate for a person or robot. A bare name (`Jane Doe`) becomes a CN below the namespace."""
        return self._issue("user", self._name(subject), key, (), lifetime, now, renew)

    def issue_host(
        self,
        hosts: Sequence[str | IPv4Address | IPv6Address],
        key: KeySource,
        *,
        lifetime: timedelta,
        now: datetime,
        subject: Subject | None = None,
        renew: bool = False,
    ) -> x509.Certificate:
        """A certificate for a host with all these names and addresses. `subject` defaults to CN=<first host>.

        It may also be a bare common name such as `gatekeeper/localhost`.
        """
        if not hosts:
            raise CredentialError(Reason.HOST_NAME_MISMATCH, "a host certificate needs at least one host name")
        name = self._name(subject if subject is not None else str(hosts[0]))
        return self._issue("host", name, key, hosts, lifetime, now, renew)

    def issue_service(
        self,
        service: str,
        hosts: Sequence[str | IPv4Address | IPv6Address],
        key: KeySource,
        *,
        lifetime: timedelta,
        now: datetime,
        renew: bool = False,
    ) -> x509.Certificate:
        """A certificate for one service of a host: CN=<service>/<first host>."""
        if not hosts or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", service):
            raise CredentialError(
                Reason.NAME_MALFORMED, f"{service[:80]!r} is not a service name, or no host was given"
            )
        return self._issue("service", self._name(f"{service}/{hosts[0]}"), key, hosts, lifetime, now, renew)

    def sign_csr(
        self,
        csr: bytes,
        *,
        lifetime: timedelta,
        now: datetime,
        hosts: Sequence[str] = (),
        renew: bool = False,
    ) -> x509.Certificate:
        """A certificate for the subject and key of a request; its other wishes are ignored. With `hosts`: a host's."""
        request, key = load_request(csr)
        name = DistinguishedName.from_x509(request.subject)
        return self._issue("host" if hosts else "user", name, key, hosts, lifetime, now, renew)

    def revoke(self, serial: int, reason: str, now: datetime) -> None:
        """Revoke a certificate issued here. `reason` as in RFC 5280 (keyCompromise, superseded, unspecified ...).

        Takes effect with the next `build_crl`. May be called twice: the first date stays. Raises SERIAL_UNKNOWN.
        """
        known = self._database.execute("select 1 from issued where serial = ?", (f"{serial:x}",)).fetchone()
        if known is None:
            raise CredentialError(
                Reason.SERIAL_UNKNOWN,
                f"{self.subject} never issued the serial number {certificates.serial_text(serial)}",
                {"check": "revocation", "issuer": str(self.subject), "serial": certificates.serial_text(serial)},
            )
        self._revoke(serial, reason, now)

    def revoke_proxy(self, proxy: x509.Certificate, now: datetime, reason: str = "keyCompromise") -> None:
        """List the serial number of a stolen proxy, so that its user need not be revoked (validation looks it up)."""
        self._revoke(proxy.serial_number, reason, now)

    def _revoke(self, serial: int, reason: str, now: datetime) -> None:
        try:
            flag = x509.ReasonFlags(reason)
        except ValueError:
            raise CredentialError(
                Reason.CRL_INVALID, f"{reason[:60]!r} is not a reason of RFC 5280; use keyCompromise, superseded ..."
            ) from None
        with self._lock, self._database as database:
            database.execute(
                "insert or ignore into revoked values (?, ?, ?)",
                (f"{serial:x}", flag.value, require_utc(now).timestamp()),
            )

    def build_crl(self, now: datetime, lifetime: timedelta) -> bytes:
        """A new revocation list as PEM, with the next CRL number. Expired certificates stay listed."""
        now = require_utc(now).replace(microsecond=0)
        with self._lock:
            database = self._database
            database.execute("begin immediate")
            try:
                (last,) = database.execute("select value from meta where name = 'crl_number'").fetchone()
                number = int(last) + 1
                rows = database.execute("select serial, reason, revoked_at from revoked order by revoked_at").fetchall()
                database.execute("update meta set value = ? where name = 'crl_number'", (str(number),))
                database.execute("commit")
            except BaseException:
                database.execute("rollback")
                raise
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + lifetime)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(_authority_key(self.certificate), critical=False)
        )
        for serial, reason, revoked_at in rows:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial, 16))
                .revocation_date(datetime.fromtimestamp(int(revoked_at), UTC))
            )
            if reason != "unspecified":  # RFC 5280 section 5.3.1: leave it out
                entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(reason)), critical=False)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._credential.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def list_issued(self) -> tuple[IssuedCertificate, ...]:
        """The whole register, oldest first."""
        rows = self._database.execute(
            "select issued.serial, subject, kind, not_before, not_after, pem, revoked_at, reason "
            "from issued left join revoked on issued.serial = revoked.serial order by issued_at, issued.rowid"
        ).fetchall()
        return tuple(
            IssuedCertificate(
                int(serial, 16),
                DistinguishedName.parse(subject),
                kind,
                datetime.fromtimestamp(not_before, UTC),
                datetime.fromtimestamp(not_after, UTC),
                None if revoked_at is None else datetime.fromtimestamp(revoked_at, UTC),
                reason,
                x509.load_pem_x509_certificate(pem),
            )
            for serial, subject, kind, not_before, not_after, pem, revoked_at, reason in rows
        )

    def _name(self, subject: Subject) -> DistinguishedName:
        if isinstance(subject, DistinguishedName):
            return subject
        if subject.startswith("/"):
            return DistinguishedName.parse(subject)
        base = self._namespace[0].rpartition("*")[0] or self._namespace[0]
        return DistinguishedName.parse(base.rstrip("/")).child("CN", subject)

    def _issue(
        self,
        kind: str,
        name: DistinguishedName,
        key_source: KeySource,
        hosts: Sequence[str | IPv4Address | IPv6Address],
        lifetime: timedelta,
        now: datetime,
        renew: bool,
    ) -> x509.Certificate:
        """Steps: namespace, key, lifetime, duplicate; then sign, record durably, hand out."""
        now = require_utc(now)
        facts = {"check": "issue", "subject": str(name), "issuer": str(self.subject), "at": utc_text(now)}
        # 1. namespace
        if not any(matches(pattern, str(name)) for pattern in self._namespace):
            raise CredentialError(
                Reason.NAMESPACE_VIOLATION,
                f"{self.subject} may not sign {name}: its namespace is {', '.join(self._namespace)}",
                facts,
            )
        if name == self.subject or not name.common_name.strip():
            raise CredentialError(
                Reason.NAME_MALFORMED, f"{name} is not a name for a {kind}: it needs its own CN", facts
            )
        # 2. key
        key = _public_key(key_source)
        problem = certificates.key_problem(key, MINIMUM_RSA_BITS)
        if problem is not None:
            raise CredentialError(Reason.KEY_TOO_WEAK, f"no certificate for {name}: {problem}", facts)
        # 3. lifetime
        ending = self.certificate.not_valid_after_utc
        if lifetime <= timedelta(0) or ending <= now:
            why = "the lifetime must be positive" if ending > now else f"the authority expired at {utc_text(ending)}"
            raise CredentialError(Reason.LIFETIME_INVALID, f"no certificate for {name}: {why}", facts)
        alternatives = _alternative_names(hosts) if hosts else None
        with self._lock:
            database = self._database
            database.execute("begin immediate")
            try:
                # 4. duplicate
                duplicate = database.execute(
                    "select issued.serial from issued left join revoked on issued.serial = revoked.serial "
                    "where subject = ? and not_after > ? and revoked.serial is null",
                    (str(name), now.timestamp()),
                ).fetchone()
                if duplicate is not None and not renew:
                    raise CredentialError(
                        Reason.DUPLICATE_SUBJECT,
                        f"{name} already has an active certificate (serial {duplicate[0].upper()}); ask for a "
                        "renewal or revoke it",
                        {**facts, "serial": duplicate[0].upper()},
                    )
                certificate = self._sign(name, key, kind, alternatives, now, min(now + lifetime, ending))
                database.execute(
                    "insert into issued values (?, ?, ?, ?, ?, ?, ?)",
                    (
                        f"{certificate.serial_number:x}",
                        str(name),
                        kind,
                        certificate.not_valid_before_utc.timestamp(),
                        certificate.not_valid_after_utc.timestamp(),
                        certificates.pem([certificate]),
                        now.timestamp(),
                    ),
                )
                database.execute("commit")
            except BaseException:
                database.execute("rollback")
                raise
        return certificate

    def _sign(
        self,
        name: DistinguishedName,
        key: PublicKey,
        kind: str,
        alternatives: x509.SubjectAlternativeName | None,
        now: datetime,
        not_after: datetime,
    ) -> x509.Certificate:
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if kind != "user":
            purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name.to_x509())
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(secrets.randbits(95) | 1 << 95)  # RFC 5280: at most 20 octets; CA/B: 64 random bits
            .not_valid_before(max(now - BACKDATING, self.certificate.not_valid_before_utc))
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False, encipherment=isinstance(key, rsa.RSAPublicKey)), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_authority_key(self.certificate), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._credential.key, hashes.SHA256())


def _invalid(sentence: str, folder: Path) -> CredentialError:
    return CredentialError(Reason.AUTHORITY_INVALID, sentence, {"check": "authority", "path": str(folder)})


def _connect(folder: Path) -> sqlite3.Connection:
    """The register in autocommit mode, WAL and FULL: a committed line survives a power cut."""
    try:
        database = sqlite3.connect(folder / "issued.sqlite", timeout=30, isolation_level=None, check_same_thread=False)
        os.chmod(folder / "issued.sqlite", 0o600)
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = full")
        database.executescript(_SCHEMA)
    except sqlite3.Error as error:
        raise _invalid(f"the register of the authority in {folder} cannot be opened ({error})", folder) from error
    return database


def _public_key(source: KeySource) -> PublicKey:
    if isinstance(source, bytes):
        try:
            return load_request(source)[1]
        except SecurityError as error:
            raise CredentialError(error.reason, error.sentence, error.facts) from error
    if isinstance(source, x509.CertificateSigningRequest):
        return _public_key(source.public_bytes(serialization.Encoding.DER))
    return source


def _alternative_names(hosts: Sequence[str | IPv4Address | IPv6Address]) -> x509.SubjectAlternativeName:
    if len(hosts) > MAX_HOSTS:
        raise CredentialError(Reason.NAME_MALFORMED, f"more than {MAX_HOSTS} host names in one certificate")
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ip_address(host)))
            continue
        except ValueError:
            text = str(host).rstrip(".").lower()
        if len(text) > 253 or not _HOST_NAME.match(text):
            raise CredentialError(Reason.NAME_MALFORMED, f"{str(host)[:260]!r} is neither a DNS name nor an address")
        names.append(x509.DNSName(text))
    return x509.SubjectAlternativeName(list(dict.fromkeys(names)))


def _authority_key(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_usage(*, authority: bool, encipherment: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=encipherment and not authority,
        data_encipherment=encipherment and not authority,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _self_signed(name: DistinguishedName, key: PrivateKey, now: datetime, lifetime: timedelta) -> x509.Certificate:
    public = key.public_key()
    assert isinstance(public, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey))
    return (
        x509.CertificateBuilder()
        .subject_name(name.to_x509())
        .issuer_name(name.to_x509())
        .public_key(public)
        .serial_number(secrets.randbits(95) | 1 << 95)
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(authority=True, encipherment=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
