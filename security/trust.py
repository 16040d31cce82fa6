"""The directory of authorities (X509_CERT_DIR as Globus, VOMS and curl read it): watched, never trusted blindly.

`HASH.N` authority certificate, `HASH.rN` its revocation list (complete or delta), `HASH.namespaces` or else
`HASH.signing_policy` what it may sign; HASH as `openssl x509 -hash` prints it, or as OpenSSL 0.9 did. A certificate of
that name which may sign lists but no certificates is no authority: it serves to verify lists (RFC 5280 section 6.3.3).
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from security.names import CanonicalName, DistinguishedName, canonical_name
from security.revocation import (
    MAX_CRL_BYTES,
    CrlDocument,
    RevocationList,
    Scope,
    complete,
    is_delta,
    parse_crl,
    signed_by,
    verify_crl,
)
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

MAX_CHAIN = 12
"""Authorities above one another that are searched for a namespaces file."""
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
class Policies:
    """The two files that may say what one authority signs; an error where there is one that cannot be used."""

    namespaces: SigningPolicy | SecurityError | None = None
    signing_policy: SigningPolicy | SecurityError | None = None


_NO_POLICIES = Policies()


def stems_of(certificate: x509.Certificate) -> tuple[str, str]:
    """The names of an authority's files: hash of OpenSSL 1.0 and later, and of 0.9."""
    return subject_hash(certificate), subject_hash_old(certificate)


@dataclass(frozen=True)
class Authority:
    """One trusted authority with what the directory says about it."""

    certificate: x509.Certificate
    subject: DistinguishedName
    stems: frozenset[str]
    crl: RevocationList | None
    """The newest list, one for all certificates rather than one for a part of them."""
    policy: SigningPolicy | None
    policy_problem: str | None = None
    lists: tuple[RevocationList, ...] = ()
    """The newest list of each scope, `crl` first, each with its delta."""

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
    documents: tuple[CrlDocument, ...] = field(default=(), repr=False)
    """Every readable list of the directory, also those of authorities that are not installed."""
    signers: tuple[x509.Certificate, ...] = field(default=(), repr=False)
    """Certificates of the directory that may sign lists and are no authorities."""
    policies: Mapping[str, Policies] = field(default_factory=dict[str, "Policies"], repr=False)
    """By hash: what the files say that the authority of that hash may sign."""
    allow_weak: bool = False
    """Lists signed with SHA-1 or MD5 are believed."""
    lists_since: int | None = None
    """Since the snapshot of this generation lists were followed by newer ones and nothing else has changed; None if
    something else has with this one."""

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
    def _documents_by_name(self) -> dict[CanonicalName, list[CrlDocument]]:
        found: dict[CanonicalName, list[CrlDocument]] = {}
        for document in self.documents:
            found.setdefault(canonical_name(document.issuer), []).append(document)
        return found

    @cached_property
    def _verified(self) -> dict[tuple[bytes, bytes], bool]:
        """Whether the list of this fingerprint is signed by this key: asked once."""
        return {}

    @cached_property
    def verdicts(self) -> dict[tuple[object, ...], tuple[datetime, object]]:
        """What `security.validation` found about a chain by this snapshot a moment ago."""
        return {}

    def documents_named(self, issuer: x509.Name) -> tuple[CrlDocument, ...]:
        """The lists of that name, whoever signed them."""
        return tuple(self._documents_by_name.get(canonical_name(issuer), ()))

    def names(self, chain: Sequence[x509.Certificate]) -> bool:
        """True if a list of an issuer, up to the root, has a serial number of a chain, or an issuer is not installed:
        whom a change most likely means. A cheap look that decides who is judged first; that somebody need not be judged
        it says only where `only_newer_lists` holds."""
        path, serials = list(chain), [certificate.serial_number for certificate in chain]
        for certificate in path:  # it grows upward
            issuer = certificates.canonical_issuer(certificate)
            above = self._by_name.get(issuer, ())
            if not above and all(certificates.canonical_subject(one) != issuer for one in path):
                return True
            path += [one for one in above if one not in path]
            for document in self._documents_by_name.get(issuer, ()):
                if certificate.serial_number in document.revoked or any(one in document.revoked for one in serials):
                    return True
        return False

    def only_newer_lists(self, since: int, now: datetime) -> bool:
        """True if who was accepted by the snapshot of generation `since` is accepted by this one too unless it `names`
        them: nothing but newer lists came between, and no list is out of its time."""
        if since == self.generation:
            return True
        if self.lists_since is None or since < self.lists_since:
            return False
        lists = (one for authority in self.authorities for one in authority.lists)
        return all(one.last_update <= now and not one.expired(now) for one in lists)

    def still_accepts(self, chain: Sequence[x509.Certificate], since: int, now: datetime) -> bool:
        """True if a chain that the snapshot of generation `since` accepted need not be judged again."""
        return self.only_newer_lists(since, now) and not self.names(chain)

    @cached_property
    def _by_name(self) -> dict[CanonicalName, list[x509.Certificate]]:
        found: dict[CanonicalName, list[x509.Certificate]] = {}
        for authority in self.authorities:
            found.setdefault(certificates.canonical_subject(authority.certificate), []).append(authority.certificate)
        return found

    def documents_of(self, signer: x509.Certificate) -> tuple[CrlDocument, ...]:
        """The lists of that name which the key of this certificate signed. Its own path is not looked at."""
        found: list[CrlDocument] = []
        for document in self.documents_named(signer.subject):
            key = (document.fingerprint, certificates.der(signer))
            good = self._verified.get(key)
            if good is None:
                good = signed_by(document, signer)
                if len(self._verified) < MAX_FILES:
                    self._verified[key] = good
            if good:
                found.append(document)
        return tuple(found)

    def lists_of(self, signer: x509.Certificate, now: datetime) -> tuple[RevocationList, ...]:
        """The newest usable list of each scope signed with the key of this certificate; its path is not looked at."""
        authority = self.authority_of(certificates.der(signer))
        if authority is not None:
            return tuple(with_delta(one, authority.lists, now) for one in authority.lists if not is_delta(one))
        found: list[RevocationList] = []
        for document in self.documents_of(signer):
            try:
                delta = document.base_number is not None
                found.append(verify_crl(document, signer, delta=delta, allow_weak=self.allow_weak))
            except SecurityError:
                continue  # not to be relied upon: told among `problems` where its authority is installed
        newest = newest_lists(found)
        return tuple(with_delta(one, newest, now) for one in newest if not is_delta(one))

    def policy_for(self, issuers: Sequence[x509.Certificate]) -> tuple[SigningPolicy | None, str | None]:
        """What the first of these authorities may sign, or why that cannot be said; the others are its issuers, upward.

        As canl's EUGRIDPMA_GLOBUS with a policy required: the `.namespaces` of the authority, else of the nearest
        authority above that speaks about it, else its `.signing_policy`. A file that is found decides alone; one that
        cannot be read is never passed over.
        """
        subject = certificates.subject_of(issuers[0])
        for depth, certificate in enumerate(issuers):
            for stem in stems_of(certificate):
                found = self.policies.get(stem, _NO_POLICIES).namespaces
                if isinstance(found, SecurityError):
                    return None, found.sentence
                if found is not None and found.names_authority(subject, own=depth == 0):
                    return (found.named(subject) if depth == 0 else found), None
        problem: str | None = None
        for stem in stems_of(issuers[0]):
            found = self.policies.get(stem, _NO_POLICIES).signing_policy
            if isinstance(found, SecurityError):
                problem = found.sentence
            elif found is not None and found.names_authority(subject):
                return found, None
        return None, problem

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


def newest_lists(lists: Sequence[RevocationList]) -> tuple[RevocationList, ...]:
    """The newest of each scope, those for all certificates first; delta lists are kept beside complete ones."""
    best: dict[tuple[Scope, bool], RevocationList] = {}
    for one in lists:
        key = (one.scope, is_delta(one))
        if key not in best or best[key].older_than(one):
            best[key] = one
    return tuple(sorted(best.values(), key=lambda one: (is_delta(one), not one.scope.is_whole)))


def with_delta(base: RevocationList, lists: Sequence[RevocationList], now: datetime) -> RevocationList:
    """`base` completed by the newest current delta of these that belongs to it."""
    deltas = [one for one in lists if is_delta(one)]
    return complete(base, deltas, now) if deltas else base


def _followed_by_newer_lists(before: TrustSnapshot, after: TrustSnapshot) -> bool:
    """True if the only difference is that authorities have a newer list for all of their certificates: nobody's chain
    who is not in it is judged otherwise. Deltas, lists for a part, and lists of others may mean more than they name."""
    if (before.signers, before.policies) != (after.signers, after.policies):
        return False
    if len(before.authorities) != len(after.authorities) or _loose(before) != _loose(after):
        return False
    return all(
        (old.certificate, old.stems, old.policy, old.policy_problem)
        == (new.certificate, new.stems, new.policy, new.policy_problem)
        and (_fingerprints(old) == _fingerprints(new) or _is_newer_whole(old.lists, new.lists))
        for old, new in zip(before.authorities, after.authorities, strict=True)
    )


def _loose(snapshot: TrustSnapshot) -> set[bytes]:
    """Fingerprints of the lists that are not the newest of any authority."""
    used = {fingerprint for authority in snapshot.authorities for fingerprint in _fingerprints(authority)}
    return {document.fingerprint for document in snapshot.documents} - used


def _fingerprints(authority: Authority) -> list[bytes]:
    return [one.document.fingerprint for one in authority.lists]


def _is_newer_whole(old: Sequence[RevocationList], new: Sequence[RevocationList]) -> bool:
    return (
        len(old) == len(new) == 1
        and all(one.scope.is_whole and not is_delta(one) for one in (*old, *new))
        and old[0].older_than(new[0])
    )


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

    def __init__(self, directory: str | Path, *, allow_weak: bool = False) -> None:
        """`allow_weak`: believe lists signed with SHA-1 or MD5, for looking at old material."""
        self._directory = Path(directory)
        self._allow_weak = allow_weak
        self._lock = threading.Lock()
        self._stamps: dict[str, _Stamp] | None = None
        self._parsed: dict[str, tuple[_Stamp, object]] = {}
        self._newest_crl: dict[bytes, dict[tuple[Scope, bool], RevocationList]] = {}
        """By authority certificate (DER); never goes back."""
        self._snapshot = TrustSnapshot(0, ())
        self.refresh()

    @classmethod
    def shared(cls, directory: Path) -> TrustStore:
        """The store that everybody of this process has of a directory. Raises as the constructor."""
        with _sharing:
            found = _shared.get(directory)
            if found is None:
                found = _shared[directory] = cls(directory)
            return found

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
                    result = ValidationError(reason, f"{name} cannot be read ({os_error_text(error)})")
                parsed[name] = (stamps[name], result)
            value: object = parsed[name][1]
            if isinstance(value, SecurityError):
                problems.append(TrustProblem(self._directory / name, value.reason, value.sentence))
            return value  # type: ignore[return-value]  # what `parse` gave for the same name

        roots = self._read_authorities(stamps, load, problems)
        policies: dict[str, Policies] = {}
        for name in stamps:
            if found := _POLICY_FILE.match(name):
                both = policies.get(found[1], _NO_POLICIES)
                if found[2] == "namespaces":
                    policies[found[1]] = replace(both, namespaces=load(name, _parse_namespaces, MAX_POLICY_BYTES))
                else:
                    policies[found[1]] = replace(both, signing_policy=load(name, _parse_policy, MAX_POLICY_BYTES))
        crls: dict[str, CrlDocument | SecurityError] = {
            name: load(name, parse_crl, MAX_CRL_BYTES) for name in stamps if _CRL_FILE.match(name)
        }
        self._parsed = parsed
        authorities = {der: one for der, one in roots.items() if certificates.is_authority(one[0])}
        signers = [one[0] for der, one in roots.items() if der not in authorities]
        snapshot = TrustSnapshot(
            generation=self._snapshot.generation + 1,
            authorities=(),
            directory=self._directory,
            documents=tuple(document for document in crls.values() if isinstance(document, CrlDocument)),
            signers=tuple(signers),
            policies=policies,
            allow_weak=self._allow_weak,
        )
        doubtful: dict[str, SecurityError | None] = {}
        certain = [certificate for certificate, _ in authorities.values()]
        found = tuple(
            self._authority(certificate, frozenset(stems), certain, snapshot, crls, problems, doubtful)
            for certificate, stems in authorities.values()
        )
        for name, error in doubtful.items():
            document = crls[name]
            if error is None or not isinstance(document, CrlDocument):
                continue
            if not any(signed_by(document, signer) for signer in signers):
                problems.append(TrustProblem(self._directory / name, error.reason, error.sentence))
        snapshot = replace(snapshot, authorities=found, problems=tuple(dict.fromkeys(problems)))
        before = self._snapshot
        if not _followed_by_newer_lists(before, snapshot):
            return snapshot
        return replace(snapshot, lists_since=before.generation if before.lists_since is None else before.lists_since)

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
            certificate = load(name, _parse_authority_or_signer, MAX_CERTIFICATE_BYTES)
            if isinstance(certificate, SecurityError):
                continue
            if found[1] not in stems_of(certificate):
                sentence = f"{name} is not named by the hash of {certificates.subject_of(certificate)}; rename it"
                problems.append(TrustProblem(self._directory / name, Reason.CHAIN_MALFORMED, sentence))
                continue
            roots.setdefault(certificates.der(certificate), (certificate, set()))[1].add(found[1])
        return roots

    def _authority(
        self,
        certificate: x509.Certificate,
        stems: frozenset[str],
        authorities: Sequence[x509.Certificate],
        snapshot: TrustSnapshot,
        crls: dict[str, CrlDocument | SecurityError],
        problems: list[TrustProblem],
        doubtful: dict[str, SecurityError | None],
    ) -> Authority:
        subject = certificates.subject_of(certificate)
        policy, policy_problem = snapshot.policy_for(_upward(certificate, authorities))
        lists = self._choose_lists(certificate, stems, crls, problems, doubtful)
        whole = next((one for one in lists if not is_delta(one)), None)
        return Authority(certificate, subject, stems, whole, policy, policy_problem, lists)

    def _choose_lists(
        self,
        certificate: x509.Certificate,
        stems: frozenset[str],
        crls: dict[str, CrlDocument | SecurityError],
        problems: list[TrustProblem],
        doubtful: dict[str, SecurityError | None],
    ) -> tuple[RevocationList, ...]:
        """The newest good list of each scope; the one known before if the files of this authority give an older one.

        `doubtful` collects lists that no authority's key verifies: while an authority changes its key, two of the
        same name have a list each, and each list is good for one of them only.
        """
        key = certificates.der(certificate)
        known = self._newest_crl.get(key, {})
        found: dict[str, RevocationList] = {}
        present = False
        for name, crl in crls.items():
            if name.partition(".")[0] not in stems:
                continue
            present = True
            if isinstance(crl, SecurityError):
                continue
            good = next((one for one in known.values() if one.document is crl), None)
            if good is None:
                try:
                    delta = crl.base_number is not None
                    good = verify_crl(crl, certificate, delta=delta, allow_weak=self._allow_weak)
                except SecurityError as error:
                    doubtful.setdefault(name, error)
                    continue
            doubtful[name] = None
            found[name] = good
        if not present:
            return ()  # removed counts as missing
        best = {(one.scope, is_delta(one)): one for one in newest_lists(list(found.values()))}
        for scope, before in known.items():
            now = best.get(scope)
            if now is not None and now.older_than(before):
                name = next(name for name, one in found.items() if one is now)
                sentence = f"{name} is older than the list known before; it is ignored. Fetch a current list"
                problems.append(TrustProblem(self._directory / name, Reason.CRL_OLDER, sentence))
            if now is None or now.older_than(before):
                best[scope] = before
        self._newest_crl[key] = {**known, **best}
        return newest_lists(list(best.values()))


_sharing = threading.Lock()
_shared: weakref.WeakValueDictionary[Path, TrustStore] = weakref.WeakValueDictionary()


def _upward(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """An authority and the installed ones above it, by name; for finding policies, not for trust."""
    chain = [certificate]
    while len(chain) < MAX_CHAIN:
        above = next(
            (
                one
                for one in authorities
                if one.subject == chain[-1].issuer and one not in chain and one.subject != chain[-1].subject
            ),
            None,
        )
        if above is None:
            break
        chain.append(above)
    return chain


def _parse_authority_or_signer(data: bytes) -> x509.Certificate:
    """An authority's certificate, or one that may sign lists and nothing else. Raises as `parse_authority`."""
    certificate = certificates.load_chain(data)[0]
    if not certificates.is_authority(certificate) and certificates.signs_only_lists(certificate):
        return certificate
    return parse_authority(data)


def _parse_policy(data: bytes) -> SigningPolicy:
    return parse_signing_policy(data.decode("utf-8", "replace"))


def _parse_namespaces(data: bytes) -> SigningPolicy:
    return parse_namespaces(data.decode("utf-8", "replace"))
