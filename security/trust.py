"""The directory of authorities (X509_CERT_DIR as Globus, VOMS and curl read it): watched, never trusted blindly.

`HASH.N` authority certificate, `HASH.rN` its revocation list, `HASH.signing_policy` or `HASH.namespaces` what it may
sign;
HASH as `openssl x509 -hash` prints it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from OpenSSL import crypto

from security import certificates
from security.certificates import MAX_CERTIFICATE_BYTES, parse_authority, subject_hash, subject_hash_old
from security.errors import Reason, SecurityError, ValidationError, os_error_text, require_utc, utc_text
from security.files import read_bounded
from security.installation import install_authority, install_crl, remove_authority
from security.names import DistinguishedName
from security.revocation import MAX_CRL_BYTES, RevocationList, parse_crl, verify_crl
from security.signing_policy import MAX_POLICY_BYTES, SigningPolicy, parse_namespaces, parse_signing_policy

__all__ = [
    "Authority",
    "CrlAlarm",
    "TrustProblem",
    "TrustSnapshot",
    "TrustStore",
    "install_authority",
    "install_crl",
    "remove_authority",
    "subject_hash",
    "subject_hash_old",
]

MAX_FILES = 20_000
"""Directory entries looked at. The IGTF bundle has about 90 authorities of 6 files."""

_AUTHORITY_FILE = re.compile(r"([0-9a-f]{8})\.([0-9]{1,3})\Z")
_CRL_FILE = re.compile(r"([0-9a-f]{8})\.r([0-9]{1,3})\Z")
_POLICY_FILE = re.compile(r"([0-9a-f]{8})\.(signing_policy|namespaces)\Z")

_ALLOW_PROXY_CERTS = 0x40
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_* of OpenSSL. Time is checked by `security.validation`, so that the store needs no time set in it and
may be
shared by threads and moments."""

ALARM_STEPS = (timedelta(days=7), timedelta(days=1), timedelta(hours=1))


@dataclass(frozen=True)
class TrustProblem:
    """Something in the directory that could not be used. Nothing else stops because of it."""

    path: Path
    reason: Reason
    sentence: str


@dataclass(frozen=True)
class Authority:
    """One trusted authority with what the directory says about it."""

    certificate: x509.Certificate
    subject: DistinguishedName
    stems: frozenset[str]
    crl: RevocationList | None
    policy: SigningPolicy | None
    policy_problem: str | None = None

    @cached_property
    def public_key_bytes(self) -> bytes:
        """SubjectPublicKeyInfo of the authority."""
        return certificates.spki(certificates.public_key_of(self.certificate))


@dataclass(frozen=True)
class CrlAlarm:
    """A revocation list that is missing, expired or about to expire."""

    authority: DistinguishedName
    reason: Reason
    """CRL_MISSING or CRL_EXPIRED (also before it happens)."""
    next_update: datetime | None
    remaining: timedelta | None
    """Until nextUpdate; negative once expired; None when missing."""
    step: timedelta | None
    """Which of the alarm steps was passed last; None when expired or missing."""
    sentence: str


@dataclass(frozen=True)
class TrustSnapshot:
    """What is trusted at one moment. Immutable and safe to share between threads; `generation` grows with each
    change."""

    generation: int
    authorities: tuple[Authority, ...]
    problems: tuple[TrustProblem, ...] = ()
    directory: Path | None = None

    @cached_property
    def store(self) -> crypto.X509Store:
        """The OpenSSL store of these authorities: proxies allowed, no time, no revocation lists (both checked by
        us)."""
        store = crypto.X509Store()
        store.set_flags(_ALLOW_PROXY_CERTS | _NO_CHECK_TIME)
        for authority in self.authorities:
            store.add_cert(certificates.native(authority.certificate))
        return store

    @cached_property
    def _by_der(self) -> dict[bytes, Authority]:
        return {certificates.der(authority.certificate): authority for authority in self.authorities}

    def authority_of(self, encoded: bytes) -> Authority | None:
        """The authority whose certificate has exactly these DER bytes."""
        return self._by_der.get(encoded)

    def named(self, subject: DistinguishedName) -> tuple[Authority, ...]:
        """Every authority of that name (two, while an authority changes its key)."""
        return tuple(authority for authority in self.authorities if authority.subject == subject)

    def twins(self, authority: Authority) -> tuple[Authority, ...]:
        """Other certificates of the same authority and key, such as one with a longer life."""
        return tuple(
            other
            for other in self.named(authority.subject)
            if other is not authority and other.public_key_bytes == authority.public_key_bytes
        )

    def alarms(self, now: datetime) -> tuple[CrlAlarm, ...]:
        """Revocation lists that need attention, the most urgent first: expired, missing, then by time left."""
        now = require_utc(now)
        found = [alarm for authority in self.authorities if (alarm := _alarm(authority, now)) is not None]
        return tuple(sorted(found, key=lambda alarm: alarm.remaining or timedelta.min))


def _alarm(authority: Authority, now: datetime) -> CrlAlarm | None:
    name = authority.subject
    if authority.crl is None:
        sentence = f"no revocation list of {name} is installed; fetch it"
        return CrlAlarm(name, Reason.CRL_MISSING, None, None, None, sentence)
    next_update = authority.crl.next_update
    if next_update is None:
        return None
    remaining = next_update - now
    if remaining < timedelta(0):
        sentence = f"the revocation list of {name} expired at {utc_text(next_update)}; fetch a new one now"
        return CrlAlarm(name, Reason.CRL_EXPIRED, next_update, remaining, None, sentence)
    steps = [step for step in ALARM_STEPS if remaining <= step]
    # A list made for less than a week is always within a week of its end: warn only in its last quarter.
    if not steps or remaining > (next_update - authority.crl.last_update) / 4:
        return None
    sentence = f"the revocation list of {name} expires at {utc_text(next_update)}; fetch a new one"
    return CrlAlarm(name, Reason.CRL_EXPIRED, next_update, remaining, min(steps), sentence)


_Parsed = TypeVar("_Parsed")
_Stamp = tuple[int, int, int, int]
"""mtime, ctime, size, inode: a change of any means a new content."""


class TrustStore:
    """Reads the directory and re-reads what changed. Thread safe. Raises TRUST_DIRECTORY_INVALID if it is not there.

    Fails closed on authorities and policies (an unreadable one is not trusted any more) but keeps the last good
    revocation list of an authority when the file is damaged, forged or older: forgetting revocations, or refusing
    everybody, would both be worse. A *removed* list counts as missing. `problems` tells of all of these.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._lock = threading.Lock()
        self._stamps: dict[str, _Stamp] | None = None
        self._parsed: dict[str, tuple[_Stamp, object]] = {}
        self._newest_crl: dict[bytes, RevocationList] = {}
        """By authority certificate (DER); never goes back."""
        self._snapshot = TrustSnapshot(0, ())
        self.refresh()

    @property
    def directory(self) -> Path:
        """Where the authorities are."""
        return self._directory

    @property
    def problems(self) -> tuple[TrustProblem, ...]:
        """What of the directory cannot be used at present."""
        return self._snapshot.problems

    def snapshot(self) -> TrustSnapshot:
        """What is trusted now, as of the last refresh."""
        return self._snapshot

    def alarms(self, now: datetime) -> tuple[CrlAlarm, ...]:
        """As `TrustSnapshot.alarms`."""
        return self._snapshot.alarms(now)

    def refresh(self) -> bool:
        """Re-read if anything changed (one stat per file). True if there is a new snapshot. Cheap to call each second.

        Raises ValidationError TRUST_DIRECTORY_INVALID when the directory cannot be listed; the old snapshot stays.
        """
        with self._lock:
            stamps = self._scan()
            if stamps == self._stamps:
                return False
            self._snapshot = self._read(stamps)
            self._stamps = stamps
            return True

    def _scan(self) -> dict[str, _Stamp]:
        stamps: dict[str, _Stamp] = {}
        try:
            with os.scandir(self._directory) as entries:
                for count, entry in enumerate(entries):
                    if count >= MAX_FILES:
                        raise OSError(f"more than {MAX_FILES} files")
                    name = entry.name
                    if not (_AUTHORITY_FILE.match(name) or _CRL_FILE.match(name) or _POLICY_FILE.match(name)):
                        continue
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue  # removed, or a link to nothing
                    stamps[name] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        except OSError as error:
            raise ValidationError(
                Reason.TRUST_DIRECTORY_INVALID,
                f"the directory of authorities {self._directory} cannot be read ({os_error_text(error)}); "
                "set X509_CERT_DIR to the folder with the certificates of the authorities that you trust",
                {"check": "trust directory", "path": str(self._directory)},
            ) from error
        return dict(sorted(stamps.items()))

    def _read(self, stamps: dict[str, _Stamp]) -> TrustSnapshot:
        problems: list[TrustProblem] = []
        parsed = {name: value for name, value in self._parsed.items() if stamps.get(name) == value[0]}

        def load(name: str, parse: Callable[[bytes], _Parsed], limit: int) -> _Parsed | SecurityError:
            if name not in parsed:
                result: object
                try:
                    result = parse(read_bounded(self._directory / name, limit))
                except SecurityError as error:
                    result = error
                except (OSError, ValueError, UnsupportedAlgorithm) as error:
                    reason = Reason.CRL_INVALID if ".r" in name else Reason.CHAIN_MALFORMED
                    result = ValidationError(reason, f"{name} cannot be read ({error})")
                parsed[name] = (stamps[name], result)
            value: object = parsed[name][1]
            if isinstance(value, SecurityError):
                problems.append(TrustProblem(self._directory / name, value.reason, value.sentence))
            return value  # type: ignore[return-value]  # what `parse` gave for the same name

        roots = self._read_authorities(stamps, load, problems)
        policies: dict[str, SigningPolicy | SecurityError] = {}
        for name in stamps:  # sorted: namespaces come first, a signing policy of the same authority replaces them
            if found := _POLICY_FILE.match(name):
                parse = _parse_policy if found[2] == "signing_policy" else _parse_namespaces
                policies[found[1]] = load(name, parse, MAX_POLICY_BYTES)
        crls: dict[str, x509.CertificateRevocationList | SecurityError] = {
            name: load(name, parse_crl, MAX_CRL_BYTES) for name in stamps if _CRL_FILE.match(name)
        }
        doubtful: dict[str, SecurityError | None] = {}
        authorities = tuple(
            self._authority(certificate, frozenset(stems), policies, crls, problems, doubtful)
            for certificate, stems in roots.values()
        )
        for name, error in doubtful.items():
            if error is not None:
                problems.append(TrustProblem(self._directory / name, error.reason, error.sentence))
        self._parsed = parsed
        unique = tuple(dict.fromkeys(problems))
        return TrustSnapshot(self._snapshot.generation + 1, authorities, unique, self._directory)

    def _read_authorities(
        self,
        stamps: dict[str, _Stamp],
        load: Callable[[str, Callable[[bytes], x509.Certificate], int], x509.Certificate | SecurityError],
        problems: list[TrustProblem],
    ) -> dict[bytes, tuple[x509.Certificate, set[str]]]:
        roots: dict[bytes, tuple[x509.Certificate, set[str]]] = {}
        for name in stamps:
            found = _AUTHORITY_FILE.match(name)
            if found is None:
                continue
            certificate = load(name, parse_authority, MAX_CERTIFICATE_BYTES)
            if isinstance(certificate, SecurityError):
                continue
            if found[1] not in (subject_hash(certificate), subject_hash_old(certificate)):
                sentence = f"{name} is not named by the hash of {certificates.subject_of(certificate)}; rename it"
                problems.append(TrustProblem(self._directory / name, Reason.CHAIN_MALFORMED, sentence))
                continue
            roots.setdefault(certificates.der(certificate), (certificate, set()))[1].add(found[1])
        return roots

    def _authority(
        self,
        certificate: x509.Certificate,
        stems: frozenset[str],
        policies: dict[str, SigningPolicy | SecurityError],
        crls: dict[str, x509.CertificateRevocationList | SecurityError],
        problems: list[TrustProblem],
        doubtful: dict[str, SecurityError | None],
    ) -> Authority:
        subject = certificates.subject_of(certificate)
        policy: SigningPolicy | None = None
        policy_problem: str | None = None
        for stem in sorted(stems):
            candidate = policies.get(stem)
            if isinstance(candidate, SecurityError):
                policy_problem = candidate.sentence
            elif candidate is not None and candidate.names_authority(subject):
                policy = policy or candidate
        crl = self._choose_crl(certificate, stems, crls, problems, doubtful)
        return Authority(certificate, subject, stems, crl, policy, None if policy is not None else policy_problem)

    def _choose_crl(
        self,
        certificate: x509.Certificate,
        stems: frozenset[str],
        crls: dict[str, x509.CertificateRevocationList | SecurityError],
        problems: list[TrustProblem],
        doubtful: dict[str, SecurityError | None],
    ) -> RevocationList | None:
        """The newest good list; the one known before if the files of this authority give none or an older one.

        `doubtful` collects lists that no authority's key verifies: while an authority changes its key, two of the
        same name have a list each, and each list is good for one of them only.
        """
        key = certificates.der(certificate)
        known = self._newest_crl.get(key)
        best: RevocationList | None = None
        best_name = ""
        present = False
        for name, crl in crls.items():
            if name.partition(".")[0] not in stems:
                continue
            present = True
            if isinstance(crl, SecurityError) or crl.issuer != certificate.subject:
                continue
            if known is not None and crl is known.crl:
                good = known
            else:
                try:
                    good = verify_crl(crl, certificate)
                except SecurityError as error:
                    doubtful.setdefault(name, error)
                    continue
            doubtful[name] = None
            if best is None or best.older_than(good):
                best, best_name = good, name
        if not present:
            return None
        if known is not None and (best is None or best.older_than(known)):
            if best is not None:
                sentence = f"{best_name} is older than the list known before; it is ignored. Fetch a current list"
                problems.append(TrustProblem(self._directory / best_name, Reason.CRL_OLDER, sentence))
            return known
        if best is not None:
            self._newest_crl[key] = best
        return best


def _parse_policy(data: bytes) -> SigningPolicy:
    return parse_signing_policy(data.decode("utf-8", "replace"))


def _parse_namespaces(data: bytes) -> SigningPolicy:
    return parse_namespaces(data.decode("utf-8", "replace"))
