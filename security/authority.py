"""A small certification authority over one directory: issues, refuses, revokes, and forgets nothing.

`key.pem` (0600), `ca.pem`, `issued.sqlite` (every certificate is recorded durably before it is handed out), in a
directory of mode 0700. After a roll-over there are two keys of one name, `key.pem` and `key-2.pem`: the newest signs
certificates, every one of them signs its own revocation list, until the older one is retired. Several processes may use
one directory. Certificates are as Globus, VOMS and OpenSSL want them.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import stat
import threading
from collections.abc import Mapping, Sequence
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
MAX_RENEWALS = 3
"""Of one certificate: whose answer was lost asks again, who stole the key does not get certificates for ever."""
BACKDATING = timedelta(minutes=5)
ROBOT_POLICY = x509.ObjectIdentifier("1.2.840.113612.5.2.3.3.1")
"""IGTF one-statement certificate policy: the key is an automated client's."""

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
create table if not exists renewals (serial text primary key, predecessor text not null) strict;
create index if not exists renewals_predecessor on renewals (predecessor);
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
    """user, robot, host, service or authority."""
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None
    revocation_reason: str | None
    certificate: x509.Certificate

    def is_active(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and self.not_after > now


def authority_info(certificate: x509.Certificate, crl_url: str = "") -> str:
    """The `.info` file of the IGTF distribution: who this is, and where its revocation list can be fetched (several
    addresses separated by semicolons)."""
    subject = certificates.subject_of(certificate)
    fingerprint = certificate.fingerprint(hashes.SHA1()).hex(":").upper()  # the format's name for a file
    lines = [
        f"alias = {subject.common_name}",
        f'subjectdn = "{subject.openssl_oneline()}"',
        f"sha1fp.0 = {fingerprint}",
        "status = experimental",
    ]
    return "".join(f"{line}\n" for line in (*lines, *([f"crl_url = {crl_url}"] if crl_url else ())))


class CertificateAuthority:
    """Make one with `create` or `open`. Thread safe. All errors are CredentialError."""

    def __init__(
        self, directory: Path, keys: Mapping[int, Credential], database: sqlite3.Connection, namespace: Sequence[str]
    ):
        self._directory = directory
        self._keys = dict(keys)
        """By number, oldest first."""
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
        parent: CertificateAuthority | None = None,
    ) -> CertificateAuthority:
        """A new authority, self-signed or below `parent`. `namespace`: patterns such as `/C=XX/O=Grid/*`; by default
        all below the parent of its name.

        Raises AUTHORITY_INVALID if the directory already holds one, or what `issue_authority` of the parent raises.
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
        certificate = _authority_certificate(name, key, now, lifetime, parent)
        with closing(_connect(folder)) as database, database:
            database.executemany(
                "insert or replace into meta values (?, ?)",
                [("crl_number", "0"), ("namespace", "\n".join(patterns))],
            )
        _save_key(folder, 1, key, certificate)
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
        database = _connect(folder)
        try:
            meta = dict(database.execute("select name, value from meta").fetchall())
            if "namespace" not in meta:
                raise _invalid(f"the register of the authority in {folder} is damaged", folder)
            keys = {
                number: Credential.load(*_files(folder, number)) for number in map(int, meta.get("keys", "1").split())
            }
        except BaseException:
            database.close()
            raise
        return cls(folder, keys, database, meta["namespace"].split("\n"))

    def close(self) -> None:
        """Close the register. May be called twice."""
        self._database.close()

    @property
    def directory(self) -> Path:
        """Where the authority lives."""
        return self._directory

    @property
    def _credential(self) -> Credential:
        """The key that signs certificates: the newest."""
        return self._keys[max(self._keys)]

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own certificate: of the key that signs."""
        return self._credential.certificate

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """One for each key that is in use, oldest first: two between a roll-over and the retirement of the old key."""
        return tuple(credential.certificate for credential in self._keys.values())

    def signer_of(self, certificate: x509.Certificate) -> x509.Certificate | None:
        """Which of `certificates` has the key that signed this one; None for a retired key or another authority's."""
        return certificates.issuer_among(certificate, self.certificates)

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
        """Its `.info` file: see `authority_info`."""
        return authority_info(self.certificate, crl_url)

    def roll_over(
        self,
        now: datetime,
        *,
        lifetime: timedelta,
        key_type: str = "rsa-2048",
        parent: CertificateAuthority | None = None,
    ) -> x509.Certificate:
        """A new key of the same name, which signs certificates from now on; the old one stays in use for its list.

        `parent` signs it for an authority that is not self-signed. Raises AUTHORITY_INVALID while two keys are in use.
        """
        now = require_utc(now)
        if len(self._keys) > 1:
            raise _invalid(f"{self.subject} has two keys already; retire the old one first", self._directory)
        if (parent is None) != (self.certificate.issuer == self.certificate.subject):
            raise _invalid(f"the new key of {self.subject} must be signed as the old one was", self._directory)
        key = generate_key(key_type)
        certificate = _authority_certificate(self.subject, key, now, lifetime, parent)
        number = max(self._keys) + 1
        _save_key(self._directory, number, key, certificate)
        with self._lock:
            self._keep_keys({**self._keys, number: Credential(certificate, key)})
        return certificate

    def retire(self) -> None:
        """End every key but the newest; what they signed is worth nothing where their certificates are not trusted."""
        with self._lock:
            *old, newest = self._keys
            self._keep_keys({newest: self._keys[newest]})
        for number in old:
            _files(self._directory, number)[1].unlink(missing_ok=True)

    def _keep_keys(self, keys: dict[int, Credential]) -> None:
        with self._database as database:
            database.execute("insert or replace into meta values ('keys', ?)", (" ".join(map(str, keys)),))
        self._keys = keys

    def issue_authority(
        self, subject: Subject, key: KeySource, *, lifetime: timedelta, now: datetime
    ) -> x509.Certificate:
        """A certificate for an authority below this one, which may have none below itself (path length 0).

        Raises AUTHORITY_INVALID where this one may have none, NAMESPACE_VIOLATION for a name outside of its namespace.
        """
        limits = self.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        if limits.path_length == 0:
            raise _invalid(f"{self.subject} may have no authorities below itself (path length 0)", self._directory)
        return self._issue("authority", self.name_below(subject), key, (), lifetime, now, renew=True)

    def issue_robot(
        self, purpose: str, key: KeySource, *, lifetime: timedelta, now: datetime, renew: bool = False
    ) -> x509.Certificate:
        """A certificate for an automated client, recognised as the IGTF wants it: by `CN=Robot: <purpose>` and policy.

        `purpose` is a bare name, or a whole one whose CN begins with `Robot: `.
        """
        name = self.name_below(purpose if purpose.startswith("/") else f"Robot: {purpose}")
        if not name.common_name.startswith("Robot: "):
            raise CredentialError(Reason.NAME_MALFORMED, f"the CN of a robot begins with 'Robot: ', not as {name}")
        return self._issue("robot", name, key, (), lifetime, now, renew)

    def issue_user(
        self, subject: Subject, key: KeySource, *, lifetime: timedelta, now: datetime, renew: bool = False
    ) -> x509.Certificate:
        """A certificate for a person. A bare name (`Jane Doe`) becomes a CN below the namespace."""
        return self._issue("user", self.name_below(subject), key, (), lifetime, now, renew)

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
        name = self.name_below(subject if subject is not None else str(hosts[0]))
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
        return self._issue("service", self.name_below(f"{service}/{hosts[0]}"), key, hosts, lifetime, now, renew)

    def renew(
        self, certificate: x509.Certificate, key: KeySource, *, lifetime: timedelta, now: datetime
    ) -> x509.Certificate:
        """A certificate as this one, which was issued here and is in force, for another key.

        Raises SERIAL_UNKNOWN, LIFETIME_INVALID for one that is revoked or expired, DUPLICATE_SUBJECT for one that was
        renewed MAX_RENEWALS times.
        """
        found = next((one for one in self.list_issued() if one.serial == certificate.serial_number), None)
        if found is None or found.certificate != certificate:
            raise self._unknown(certificate.serial_number)
        if not found.is_active(now):
            raise CredentialError(Reason.LIFETIME_INVALID, f"the certificate of {found.subject} is not in force")
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = None
        return self._issue(found.kind, found.subject, key, names, lifetime, now, renew=True, predecessor=found.serial)

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
        """Revoke a certificate issued here. `reason` as in RFC 5280 (keyCompromise, superseded, unspecified ...). What
        renewed it goes with it, as whoever had its key may have asked, unless it is only superseded.

        Takes effect with the next `build_crl`. May be called twice: the first date stays. Raises SERIAL_UNKNOWN.
        """
        known = self._database.execute("select 1 from issued where serial = ?", (f"{serial:x}",)).fetchone()
        if known is None:
            raise self._unknown(serial)
        self._revoke(serial, reason, now)

    def _unknown(self, serial: int) -> CredentialError:
        return CredentialError(
            Reason.SERIAL_UNKNOWN,
            f"{self.subject} never issued the serial number {certificates.serial_text(serial)}",
            {"check": "revocation", "issuer": str(self.subject), "serial": certificates.serial_text(serial)},
        )

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
                "with recursive meant(serial) as (values (?) union "
                "select renewals.serial from renewals join meant on renewals.predecessor = meant.serial where ?) "
                "insert or ignore into revoked select serial, ?, ? from meant",
                (
                    f"{serial:x}",
                    flag is not x509.ReasonFlags.superseded,
                    flag.value,
                    require_utc(now).timestamp(),
                ),
            )

    def build_crl(self, now: datetime, lifetime: timedelta) -> bytes:
        """As `build_crls`: the list of the key that signs."""
        return self.build_crls(now, lifetime)[-1]

    def build_crls(self, now: datetime, lifetime: timedelta) -> tuple[bytes, ...]:
        """A new revocation list (PEM) of each key, in the order of `certificates`, with the next CRL number.

        Each holds everything that was revoked, whichever key signed it: certificates are known by the name of their
        issuer, which is one. Expired certificates stay listed.
        """
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
        entries: list[x509.RevokedCertificate] = []
        for serial, reason, revoked_at in rows:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial, 16))
                .revocation_date(datetime.fromtimestamp(int(revoked_at), UTC))
            )
            if reason != "unspecified":  # RFC 5280 section 5.3.1: leave it out
                entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(reason)), critical=False)
            entries.append(entry.build())
        return tuple(_signed_list(key, number, entries, now, lifetime) for key in self._keys.values())

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

    def name_below(self, subject: Subject) -> DistinguishedName:
        """The whole name: a bare one (`Jane Doe`) becomes a CN below the namespace."""
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
        hosts: Sequence[str | IPv4Address | IPv6Address] | x509.SubjectAlternativeName | None,
        lifetime: timedelta,
        now: datetime,
        renew: bool,
        predecessor: int | None = None,
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
        alternatives = hosts if isinstance(hosts, x509.SubjectAlternativeName) else _alternative_names(hosts or ())
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
                if predecessor is not None:
                    self._require_few_renewals(predecessor, facts)
                certificate = self._sign(name, key, kind, alternatives, now, min(now + lifetime, ending))
                if predecessor is not None:
                    database.execute(
                        "insert into renewals values (?, ?)", (f"{certificate.serial_number:x}", f"{predecessor:x}")
                    )
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

    def _require_few_renewals(self, serial: int, facts: dict[str, str]) -> None:
        made = self._database.execute("select count(*) from renewals where predecessor = ?", (f"{serial:x}",))
        if made.fetchone()[0] >= MAX_RENEWALS:
            raise CredentialError(
                Reason.DUPLICATE_SUBJECT,
                f"the certificate with serial number {certificates.serial_text(serial)} was renewed {MAX_RENEWALS} "
                "times; renew with the newest, or look who else has its key",
                {**facts, "serial": certificates.serial_text(serial)},
            )

    def _sign(
        self,
        name: DistinguishedName,
        key: PublicKey,
        kind: str,
        alternatives: x509.SubjectAlternativeName | None,
        now: datetime,
        not_after: datetime,
    ) -> x509.Certificate:
        authority = kind == "authority"
        builder = (
            x509.CertificateBuilder()
            .subject_name(name.to_x509())
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(secrets.randbits(95) | 1 << 95)  # RFC 5280: at most 20 octets; CA/B: 64 random bits
            .not_valid_before(max(now - BACKDATING, self.certificate.not_valid_before_utc))
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(
                _key_usage(authority=authority, encipherment=isinstance(key, rsa.RSAPublicKey)), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_authority_key(self.certificate), critical=False)
        )
        if not authority:
            purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
            if kind in ("host", "service"):
                purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if kind == "robot":
            policy = x509.PolicyInformation(ROBOT_POLICY, None)
            builder = builder.add_extension(x509.CertificatePolicies([policy]), critical=False)
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


def _alternative_names(hosts: Sequence[str | IPv4Address | IPv6Address]) -> x509.SubjectAlternativeName | None:
    if not hosts:
        return None
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


def _authority_certificate(
    name: DistinguishedName,
    key: PrivateKey,
    now: datetime,
    lifetime: timedelta,
    parent: CertificateAuthority | None,
) -> x509.Certificate:
    public = key.public_key()
    assert isinstance(public, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey))
    if parent is not None:
        return parent.issue_authority(name, public, lifetime=lifetime, now=now)
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


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    """Certificate and key of this number."""
    suffix = "" if number == 1 else f"-{number}"
    return folder / f"ca{suffix}.pem", folder / f"key{suffix}.pem"


def _save_key(folder: Path, number: int, key: PrivateKey, certificate: x509.Certificate) -> None:
    certificate_path, key_path = _files(folder, number)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(key_path, pem, 0o600)
    write_atomic(certificate_path, certificates.pem([certificate]), 0o644)


def _signed_list(
    signer: Credential, number: int, entries: Sequence[x509.RevokedCertificate], now: datetime, lifetime: timedelta
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now)
        .next_update(now + lifetime)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority_key(signer.certificate), critical=False)
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
