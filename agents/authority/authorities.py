"""The authorities of the grid: its own with their keys, and foreign ones that are only trusted.

Blocking and thread safe, so that the servicer runs it on a thread. No gRPC in here; rows are the servicer's.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from agents.authority.config import AuthorityConfig
from agents.authority.store import AuthorityRow
from fabric.authorisation import OPERATORS, USERS
from fabric.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, from_security
from fabric.trust_updater import source_of
from security import certificates
from security.authority import CertificateAuthority, IssuedCertificate, authority_info
from security.certificates import parse_authority, subject_hash, subject_of
from security.errors import SecurityError
from security.names import DistinguishedName
from security.revocation import parse_crl, verify_crl
from security.signing_policy import emit_signing_policy, parse_signing_policy

FIRST = "grid"
"""The name of the authority that the grid was started with: its agents live on it."""
MAX_AUTHORITIES = 200
"""More than this is no grid's; the IGTF distribution has 90."""
MAX_CRL_URLS = 8
MAX_URL_LENGTH = 500
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,62}[A-Za-z0-9])?\Z")


@contextmanager
def refusals() -> Iterator[None]:
    """The library's refusals as errors that cross a connection."""
    try:
        yield
    except SecurityError as error:
        raise from_security(error) from error


@dataclass(frozen=True)
class PublishedCrl:
    """A revocation list as it is served."""

    pem: bytes
    number: int
    next_update: datetime

    @classmethod
    def of(cls, data: bytes) -> PublishedCrl:
        """PEM or DER. Raises SecurityError."""
        document = parse_crl(data, entries=False)
        return cls(data, document.number or 0, document.next_update or document.last_update)

    @property
    def etag(self) -> str:
        """Changes with the content."""
        return hashlib.sha256(self.pem).hexdigest()[:32]


def _info(certificate: x509.Certificate, row: AuthorityRow) -> str:
    """The `.info` of a foreign one, which fetch-crl reads as every host here does; nothing without an address."""
    urls = ";".join(row.crl_urls.split())
    return authority_info(certificate, urls) if urls else ""


@dataclass(frozen=True)
class Trusted:
    """One key of one authority, as every host shall have it."""

    name: str
    certificate: x509.Certificate
    signing_policy: str
    namespaces: str
    info: str
    is_old: bool
    """A newer key signs now."""
    crl: PublishedCrl | None
    stem: str
    index: int
    """HASH.N: `stem` and N."""


class Authorities:
    """What the grid trusts, by name."""

    def __init__(
        self,
        first: CertificateAuthority,
        folder: Path,
        config: AuthorityConfig,
        organisation: str,
        now: Callable[[], datetime],
        http: str = "",
    ) -> None:
        """`folder`: where further ones are made. `http`: the address of the agent's http port."""
        self._folder, self._config, self._now, self._http = folder, config, now, http
        self._organisation = DistinguishedName.parse(organisation)
        self._lock = threading.RLock()
        self._own: dict[str, CertificateAuthority] = {FIRST: first}
        self._rows: dict[str, AuthorityRow] = {}
        self._lists: dict[bytes, PublishedCrl] = {}

    @property
    def first(self) -> CertificateAuthority:
        """The one that the grid was started with."""
        return self._own[FIRST]

    def open(self, rows: Sequence[AuthorityRow]) -> None:
        """Those that were kept before. Raises GridError for a damaged one."""
        for row in rows:
            self.keep(row)

    def close(self) -> None:
        """Close every register."""
        for authority in self._own.values():
            authority.close()

    # -- which ones --------------------------------------------------------------------------------------------------

    def own(self, name: str = "") -> CertificateAuthority:
        """One that has its key here; by default the first. Raises NotFound AUTHORITY_UNKNOWN."""
        with self._lock:
            found = self._own.get(name or FIRST)
        if found is None:
            raise NotFound(
                "AUTHORITY_UNKNOWN",
                f"this grid has no authority {name[:80]!r} of its own; it has {', '.join(self._own)}",
                authority=name[:80],
            )
        return found

    def all_own(self) -> dict[str, CertificateAuthority]:
        """By name, the first one first."""
        with self._lock:
            return dict(self._own)

    def row(self, name: str) -> AuthorityRow | None:
        """What is kept about one; None for the first."""
        return self._rows.get(name)

    def below(self, name: str) -> list[str]:
        """Names of the authorities whose certificates this one signed."""
        return [row.name for row in self._rows.values() if row.parent == name]

    def find(self, text: str) -> str:
        """The name of the authority with this name, subject or hash. Raises NotFound AUTHORITY_UNKNOWN."""
        for trusted in self.trusted():
            if text in (trusted.name, str(subject_of(trusted.certificate)), trusted.stem):
                return trusted.name
        known = ", ".join(dict.fromkeys(trusted.name for trusted in self.trusted()))
        raise NotFound("AUTHORITY_UNKNOWN", f"there is no authority {text[:200]!r} here; grid ca ls shows {known}")

    def trusted(self) -> tuple[Trusted, ...]:
        """Everything that every host shall trust, each key for itself."""
        with self._lock:
            found: list[Trusted] = []
            count: dict[str, int] = {}

            def add(name: str, certificate: x509.Certificate, policy: str, namespaces: str, info: str, old: bool):
                stem = subject_hash(certificate)
                index = count[stem] = count.get(stem, -1) + 1
                crl = self._lists.get(_key(certificate))
                found.append(Trusted(name, certificate, policy, namespaces, info, old, crl, stem, index))

            for name, own in self._own.items():
                info = own.info(f"{self._http}/crl/{subject_hash(own.certificate)}.r0" if self._http else "")
                for certificate in own.certificates:
                    old = certificate != own.certificate
                    add(name, certificate, own.signing_policy(), own.namespaces(), info, old)
            for row in self._rows.values():
                if row.is_foreign:
                    certificate = parse_authority(row.certificate)
                    add(row.name, certificate, row.signing_policy, "", _info(certificate, row), False)
            return tuple(found)

    # -- changes -----------------------------------------------------------------------------------------------------

    def make(self, name: str, parent: str, namespace: Sequence[str], lifetime_s: int) -> AuthorityRow:
        """Keys and certificate of a new one, which is not trusted before `keep`.

        Raises InvalidRequest, AlreadyExists, NotFound (parent), Conflict.
        """
        self._require_free(name)
        above = self.own(parent) if parent else None
        patterns = list(namespace) or [f"{self._organisation}/OU={USERS}/OU={name}/*"]
        if lifetime_s < 0:
            raise InvalidRequest("LIFETIME_INVALID", f"a lifetime of {lifetime_s} s is not possible")
        with refusals():
            subject = above.name_below(name) if above is not None else self._organisation.child("CN", name)
            if any(subject == subject_of(trusted.certificate) for trusted in self.trusted()):
                raise AlreadyExists("AUTHORITY_EXISTS", f"there is an authority {subject} already", subject=subject)
            for pattern in patterns:
                self._require_harmless(subject, pattern)
            folder = self._folder / name
            if (folder / "ca.pem").exists():  # made before, and never acknowledged
                made = CertificateAuthority.open(folder)
                if made.subject != subject or list(made.namespace) != patterns:
                    made.close()
                    raise Conflict(
                        "AUTHORITY_UNFINISHED",
                        f"an authority {name} was begun here with another parent or namespace; choose another name",
                    )
            else:
                made = CertificateAuthority.create(
                    folder, subject, lifetime=self._lifetime(lifetime_s), now=self._now(), namespace=patterns,
                    parent=above,
                )  # fmt: skip
            made.close()
        return AuthorityRow(name, parent=parent, is_foreign=False)

    def offered(
        self, certificate: bytes, signing_policy: str, crl: bytes, crl_urls: Sequence[str] = ()
    ) -> AuthorityRow:
        """A foreign one after every check, by its common name; for one that is known already, what is not given stays
        as it is. Raises InvalidRequest, AlreadyExists."""
        if len(crl_urls) > MAX_CRL_URLS:
            raise InvalidRequest("CRL_URL_INVALID", f"at most {MAX_CRL_URLS} addresses of one revocation list")
        for url in crl_urls:
            if len(url) > MAX_URL_LENGTH or ";" in url or source_of(url) is None:
                raise InvalidRequest(
                    "CRL_URL_INVALID",
                    f"{url[:200]!r} is no address of a revocation list: give http://host/path without ';'; the list "
                    "brings its own signature",
                )
        try:
            authority = parse_authority(certificate)
            subject = subject_of(authority)
            policy = parse_signing_policy(signing_policy)
            if crl:
                verify_crl(parse_crl(crl), authority)
        except SecurityError as error:
            raise InvalidRequest(error.reason.value, f"this authority cannot be added: {error.sentence}") from error
        if not policy.names_authority(subject):
            raise InvalidRequest("SIGNING_POLICY_INVALID", f"the signing policy offered does not name {subject}")
        if policy.reaches(self._organisation):
            raise InvalidRequest(
                "NAMESPACE_TAKEN",
                f"the signing policy of {subject} permits names below {self._organisation}, which are this grid's own; "
                "narrow it",
            )
        name = subject.common_name or str(subject)
        for trusted in self.trusted():
            known = self._rows.get(trusted.name, _OWN)
            if trusted.certificate == authority and known.is_foreign:
                urls = "\n".join(crl_urls) or known.crl_urls
                return replace(known, signing_policy=signing_policy, crl=crl or known.crl, crl_urls=urls)
            if subject_of(trusted.certificate) == subject:
                raise AlreadyExists("AUTHORITY_EXISTS", f"there is another authority {subject}; remove it first")
        self._require_free(name)
        pem = certificates.pem([authority])
        return AuthorityRow(name, "", True, pem, signing_policy, crl, "\n".join(crl_urls))

    def keep(self, row: AuthorityRow) -> None:
        """Trust it from now on: its row is on disk. Raises GridError for a damaged one."""
        with self._lock, refusals():
            if not row.is_foreign:
                self._own[row.name] = CertificateAuthority.open(self._folder / row.name)
            elif row.crl:
                self._lists[_key(parse_authority(row.certificate))] = PublishedCrl.of(row.crl)
            self._rows[row.name] = row

    def drop(self, name: str) -> None:
        """Trust it no more: its row says so. Its keys are erased; its register stays, for those who look back."""
        with self._lock:
            self._rows.pop(name)
            authority = self._own.pop(name, None)
            if authority is not None:
                authority.close()
                for key in authority.directory.glob("key*.pem"):
                    key.unlink()

    def require_removable(self, name: str) -> None:
        """Raises Conflict AUTHORITY_IN_USE with what would go down and what to do."""
        if name == FIRST:
            agents = [one for one in self.active(name) if one.kind == "host"]
            raise Conflict(
                "AUTHORITY_IN_USE",
                f"every agent of this grid lives on {self.first.subject}: without it {_few(agents)} could not talk to "
                "each other. To be rid of its key, roll over to a new one first: grid ca rollover grid, and then grid "
                "ca retire grid",
            )
        below = self.below(name)
        if below:
            raise Conflict("AUTHORITY_IN_USE", f"{name} has signed {', '.join(below)}; remove these first")

    def cease(self, name: str) -> str:
        """Revoke the certificates of one below another, as it is about to be dropped. Returns the parent's name."""
        row = self._rows[name]
        if row.parent:
            parent = self.own(row.parent)
            for certificate in self.own(name).certificates:
                parent.revoke(certificate.serial_number, "cessationOfOperation", self._now())
        return row.parent

    def roll_over(self, name: str) -> None:
        """A new key. Raises NotFound, Conflict."""
        authority = self.own(name)
        row = self._rows.get(name)
        ending = authority.certificate
        if len(authority.certificates) > 1:
            raise Conflict(
                "ROLLOVER_UNDER_WAY", f"{name} has an old and a new key already; end the old one: grid ca retire {name}"
            )
        with refusals():
            authority.roll_over(
                self._now(),
                lifetime=ending.not_valid_after_utc - ending.not_valid_before_utc,
                parent=self.own(row.parent) if row is not None and row.parent else None,
            )

    def require_retirable(self, name: str, *, now: bool = False) -> None:
        """Raises NotFound, Conflict ROLLOVER_MISSING, AUTHORITY_IN_USE with who has nothing but the old key, and if not
        `now` OLD_KEY_IN_USE with whose jobs may still run on it, and until when."""
        if len(self.own(name).certificates) == 1:
            raise Conflict(
                "ROLLOVER_MISSING", f"{name} has one key only; make a new one first: grid ca rollover {name}"
            )
        left = self.left_behind(name)
        if left:
            raise Conflict(
                "AUTHORITY_IN_USE",
                f"the old key of {name} has signed what {_few(left)} live on. Agents renew by themselves; people get a "
                "new certificate with grid user add --renew, authorities with grid ca rollover; revoke who is gone",
                left=len(left),
            )
        held = self.held_beside(name)
        if held and not now:
            until = max(one.not_after for one in held)
            raise Conflict(
                "OLD_KEY_IN_USE",
                f"{_few(held)} have new certificates, but jobs and proxies of theirs may still stand on those that the "
                f"old key of {name} has signed, until {until:%Y-%m-%dT%H:%M:%SZ}. Wait until then, revoke those that "
                f"nobody uses (grid user revoke), or stop all of it now: grid ca retire '{name}' --now",
                held=len(held),
            )

    # -- what they issued --------------------------------------------------------------------------------------------

    def active(self, name: str) -> list[IssuedCertificate]:
        """Certificates in force that this one signed; of a foreign one nobody here knows any."""
        own = self._own.get(name)
        now = self._now()
        return [one for one in own.list_issued() if one.is_active(now)] if own is not None else []

    def left_behind(self, name: str) -> list[IssuedCertificate]:
        """Certificates in force signed by an old key, of whoever has none of the newest."""
        authority = self.own(name)
        active = self.active(name)
        renewed = {one.subject for one in active if _is_newest(authority, one)}
        return [one for one in active if one.subject not in renewed]

    def held_beside(self, name: str) -> list[IssuedCertificate]:
        """People's certificates in force signed by an old key, although there are newer ones: what they delegated with
        them goes on. Agents and operators run nothing with theirs."""
        authority, left = self.own(name), {one.serial for one in self.left_behind(name)}
        operators = self._organisation.child("OU", OPERATORS)
        return [
            one
            for one in self.active(name)
            if one.kind in ("user", "robot")
            and one.serial not in left
            and not _is_newest(authority, one)
            and not one.subject.startswith(operators)
        ]

    # -- revocation lists --------------------------------------------------------------------------------------------

    def publish(self, names: Sequence[str]) -> int:
        """New lists of these. Returns the number of the last one."""
        number = 0
        for name in names:
            authority = self.own(name)
            with refusals():
                lists = authority.build_crls(self._now(), timedelta(seconds=self._config.crl_lifetime_s))
            with self._lock:
                for certificate, pem in zip(authority.certificates, lists, strict=True):
                    published = self._lists[_key(certificate)] = PublishedCrl.of(pem)
                    number = published.number
        return number

    def due(self) -> list[str]:
        """Whose lists have passed half of their life."""
        limit = self._now() + timedelta(seconds=self._config.crl_lifetime_s / 2)
        return [
            name
            for name, authority in self.all_own().items()
            if any(
                (crl := self._lists.get(_key(certificate))) is None or crl.next_update < limit
                for certificate in authority.certificates
            )
        ]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _lifetime(self, lifetime_s: int) -> timedelta:
        return timedelta(seconds=lifetime_s) if lifetime_s else self.first.certificate.not_valid_after_utc - self._now()

    def _require_free(self, name: str) -> None:
        if not _NAME.match(name):
            raise InvalidRequest(
                "NAME_INVALID",
                f"{name[:80]!r} cannot be the name of an authority: letters, digits, spaces, . _ - and at most 64",
            )
        if name == FIRST or name in self._rows:
            raise AlreadyExists("AUTHORITY_EXISTS", f"there is an authority {name} already", authority=name)
        if len(self._rows) >= MAX_AUTHORITIES:
            raise Conflict("TOO_MANY_AUTHORITIES", f"there are {MAX_AUTHORITIES} authorities; remove some")

    def _require_harmless(self, subject: DistinguishedName, pattern: str) -> None:
        """Names of agents and operators are the first authority's alone: who can give these owns the grid."""
        try:
            policy = parse_signing_policy(emit_signing_policy(subject, [pattern]))
        except ValueError as error:
            raise InvalidRequest("NAMESPACE_INVALID", f"{pattern[:200]!r} is no namespace: {error}") from error
        if "*" in pattern[:-1] or not pattern.startswith("/"):
            raise InvalidRequest(
                "NAMESPACE_INVALID", f"{pattern[:200]!r} is no namespace: write it as /O=Grid/OU=Users/*"
            )
        (entry,) = policy.entries
        people = f"{self._organisation}/OU={USERS}/"
        if policy.reaches(self._organisation) and not entry.beginning(entry.subjects[0]).startswith(people):
            raise InvalidRequest(
                "NAMESPACE_TAKEN",
                f"{pattern[:200]!r} holds names of this grid's agents or operators; of its names only those below "
                f"{people} can be another authority's",
            )


_OWN = AuthorityRow("", is_foreign=False)


def _key(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(hashes.SHA256())


def _is_newest(authority: CertificateAuthority, one: IssuedCertificate) -> bool:
    return authority.signer_of(one.certificate) == authority.certificate


def _few(issued: Sequence[IssuedCertificate]) -> str:
    """The first of them by name, and how many there are."""
    subjects = sorted({str(one.subject) for one in issued})
    more = f" and {len(subjects) - 3} more" if len(subjects) > 3 else ""
    return ", ".join(subjects[:3]) + more
