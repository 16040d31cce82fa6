"""Ban lists: who may do nothing here, whatever their authority or VO says.

One ban per line, `#` begins a comment line. First what is banned:

    /C=XX/O=Grid/CN=Mallory                     a person or host, with every proxy of theirs
    4F2A /C=XX/O=Grid/CN=Authority              one certificate, or one proxy with its user's name as the issuer
    pattern: /C=XX/O=Grid/OU=Lab/*              every name that fits (`*` any text, `?` one character)
    authority: /C=XX/O=Bad/CN=Authority         everything that this authority has signed
    vo: cms                                     its members, whether by map file or by attributes
    fqan: /cms/production                       a group with its subgroups and roles, or one role
    network: 192.0.2.0/24                       who calls from there; also one address

then, each after ` | `, what else is known: `until 2026-12-01T00:00:00Z`, `by NAME`, `because TEXT`, `id TEXT`,
`at SITE,SITE`. Names may be quoted as in a map file.
"""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from security import certificates
from security.errors import AuthorizationError, Reason, SecurityError, os_error_text
from security.files import numbered_lines, read_bounded, write_atomic
from security.names import DistinguishedName
from security.validation import Identity
from security.voms import is_within

MAX_BAN_BYTES = 16 * 1024 * 1024
MAX_LINE_LENGTH = 8192
MAX_TEXT_LENGTH = 1000
"""Of a reason, an author, a pattern."""

_SERIAL = re.compile(r"(?:0x)?(?P<serial>[0-9A-Fa-f]{1,40})\s+(?P<issuer>\S.*)\Z")
_KIND = re.compile(r"(?P<kind>[a-z]+):\s*(?P<value>\S.*)\Z")
_VO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
_FQAN = re.compile(r"(?:/[A-Za-z0-9._-]+)+(?:/Role=[A-Za-z0-9._-]+)?\Z")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SEPARATOR = " | "
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BanKind(StrEnum):
    """What a ban names."""

    SUBJECT = "subject"
    CERTIFICATE = "certificate"
    PATTERN = "pattern"
    AUTHORITY = "authority"
    VO = "vo"
    FQAN = "fqan"
    NETWORK = "network"


@dataclass(frozen=True)
class Ban:
    """One ban. Make it with `Ban.of`, which checks and normalises `value`."""

    kind: BanKind
    value: str
    """A name; `SERIAL NAME`; a pattern; a VO; an FQAN; a network."""
    until: datetime | None = None
    author: str = ""
    reason: str = ""
    ban_id: str = ""
    sites: frozenset[str] = frozenset()
    """Where it holds; empty: everywhere."""

    @classmethod
    def of(
        cls,
        kind: str,
        value: str,
        *,
        until: datetime | None = None,
        author: str = "",
        reason: str = "",
        ban_id: str = "",
        sites: Iterable[str] = (),
    ) -> Ban:
        """A checked ban. Raises ValueError with what is wrong."""
        try:
            kind_found = BanKind(kind)
        except ValueError:
            raise ValueError(f"{kind[:40]!r} is no kind of ban; the kinds are {', '.join(BanKind)}") from None
        for text in (author, reason, ban_id):
            if len(text) > MAX_TEXT_LENGTH or not text.isprintable() or _SEPARATOR in f" {text} ":
                raise ValueError(
                    f"{text[:40]!r} must be at most {MAX_TEXT_LENGTH} printable characters without a lone '|'"
                )
        places = frozenset(sites)
        for site in places:
            if not _SITE.match(site):
                raise ValueError(f"{site[:64]!r} cannot be the name of a site")
        if until is not None:  # in whole seconds, as it is written
            until = (until + timedelta(microseconds=999_999)).astimezone(UTC).replace(microsecond=0)
        return cls(kind_found, _normal(kind_found, value.strip()), until, author, reason, ban_id, places)

    @classmethod
    def parse(cls, line: str) -> Ban:
        """One line. Raises ValueError."""
        if len(line) > MAX_LINE_LENGTH:
            raise ValueError("the line is too long")
        what, *notes = (part.strip() for part in line.split(_SEPARATOR))
        until: datetime | None = None
        known: dict[str, str] = {}
        for note in notes:
            word, _, text = note.partition(" ")
            if word not in ("until", "by", "because", "id", "at") or not text or word in known:
                raise ValueError(f"{note[:40]!r} is none of: until TIME, by NAME, because TEXT, id TEXT, at SITES")
            known[word] = text.strip()
        if "until" in known:
            until = _time(known["until"])
        found = _KIND.match(what)
        if found is not None:
            kind, value = found["kind"], found["value"]
        else:
            kind, value = ("certificate" if _SERIAL.match(what) else "subject"), what
        sites = [site.strip() for site in known["at"].split(",")] if "at" in known else []
        return cls.of(
            kind, value, until=until, author=known.get("by", ""), reason=known.get("because", ""),
            ban_id=known.get("id", ""), sites=sites,
        )  # fmt: skip

    def emit(self) -> str:
        """The line."""
        implied = self.kind in (BanKind.SUBJECT, BanKind.CERTIFICATE)
        parts = [self.value if implied else f"{self.kind.value}: {self.value}"]
        if self.until is not None:
            parts.append(f"until {self.until:%Y-%m-%dT%H:%M:%SZ}")
        notes = (
            ("by", self.author),
            ("because", self.reason),
            ("id", self.ban_id),
            ("at", ",".join(sorted(self.sites))),
        )
        return _SEPARATOR.join([*parts, *(f"{word} {text}" for word, text in notes if text)])

    def describe(self) -> str:
        """For sentences: what is banned, why, until when."""
        named = self.value if self.kind is BanKind.SUBJECT else f"{self.kind.value} {self.value}"
        why = f" ({self.reason})" if self.reason else ""
        return f"{named} is banned{why}" + (f" until {self.until:%Y-%m-%dT%H:%M:%SZ}" if self.until else "")


@dataclass(frozen=True)
class BanList:
    """Bans. Fails closed: a list that cannot be understood cannot be made."""

    bans: tuple[Ban, ...] = ()
    _subjects: dict[DistinguishedName, list[Ban]] = field(init=False, repr=False, compare=False)
    _certificates: dict[tuple[DistinguishedName, int], list[Ban]] = field(init=False, repr=False, compare=False)
    _authorities: dict[DistinguishedName, list[Ban]] = field(init=False, repr=False, compare=False)
    _patterns: list[tuple[re.Pattern[str], Ban]] = field(init=False, repr=False, compare=False)
    _networks: list[tuple[_Network, Ban]] = field(init=False, repr=False, compare=False)
    _vos: dict[str, list[Ban]] = field(init=False, repr=False, compare=False)
    _fqans: list[Ban] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        subjects: dict[DistinguishedName, list[Ban]] = {}
        serials: dict[tuple[DistinguishedName, int], list[Ban]] = {}
        authorities: dict[DistinguishedName, list[Ban]] = {}
        vos: dict[str, list[Ban]] = {}
        patterns: list[tuple[re.Pattern[str], Ban]] = []
        networks: list[tuple[_Network, Ban]] = []
        fqans: list[Ban] = []
        for ban in self.bans:
            match ban.kind:
                case BanKind.SUBJECT:
                    subjects.setdefault(DistinguishedName.parse(ban.value), []).append(ban)
                case BanKind.CERTIFICATE:
                    serial, _, issuer = ban.value.partition(" ")
                    serials.setdefault((DistinguishedName.parse(issuer), int(serial, 16)), []).append(ban)
                case BanKind.AUTHORITY:
                    authorities.setdefault(DistinguishedName.parse(ban.value), []).append(ban)
                case BanKind.PATTERN:
                    patterns.append((_pattern(ban.value), ban))
                case BanKind.VO:
                    vos.setdefault(ban.value, []).append(ban)
                case BanKind.FQAN:
                    fqans.append(ban)
                case BanKind.NETWORK:
                    networks.append((ipaddress.ip_network(ban.value), ban))
        for name, value in (
            ("_subjects", subjects), ("_certificates", serials), ("_authorities", authorities), ("_vos", vos),
            ("_patterns", patterns), ("_networks", networks), ("_fqans", fqans),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, text: str) -> BanList:
        """Read a list. Raises AuthorizationError BAN_LIST_UNREADABLE for any line that cannot be understood.

        Lists read before are remembered: an agent hears the list, keeps it in a file and reads that.
        """
        return _parsed(text)

    @classmethod
    def load(cls, path: str | Path) -> BanList:
        """Read the file. Raises AuthorizationError BAN_LIST_UNREADABLE also when it is missing: a site without bans has
        an empty file."""
        try:
            return cls.parse(read_bounded(Path(path), MAX_BAN_BYTES).decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise AuthorizationError(
                Reason.BAN_LIST_UNREADABLE,
                f"the ban list {path} cannot be read ({os_error_text(error)}); everybody is refused until it can",
                {"check": "ban list", "path": str(path)},
            ) from error

    def emit(self) -> str:
        """The list as text."""
        return "".join(f"{ban.emit()}\n" for ban in self.bans)

    def write(self, path: str | Path) -> None:
        """Replace the file atomically (mode 0644)."""
        write_atomic(Path(path), self.emit().encode(), 0o644)

    def __add__(self, other: BanList) -> BanList:
        return BanList(self.bans + other.bans) if self.bans and other.bans else self if self.bans else other

    def at(self, site: str) -> BanList:
        """The bans that hold at a site."""
        if not any(ban.sites for ban in self.bans):
            return self
        return BanList(tuple(ban for ban in self.bans if not ban.sites or site in ban.sites))

    def check(
        self,
        identity: Identity,
        *,
        now: datetime | None = None,
        fqans: Sequence[str] = (),
        vos: Iterable[str] = (),
        address: str = "",
    ) -> None:
        """Raises AuthorizationError BANNED if anything about the caller is banned: a name or certificate of the chain,
        who signed one, its VOs and FQANs, the address that it calls from."""
        if not self.bans:
            return
        now = now or datetime.now(UTC)
        for certificate in identity.certificates:
            subject = certificates.subject_of(certificate)
            issuer = certificates.issuer_of(certificate)
            text = str(subject)
            found = [
                *self._subjects.get(subject, ()),
                *self._certificates.get((issuer, certificate.serial_number), ()),
                *self._authorities.get(issuer, ()),
                *(ban for pattern, ban in self._patterns if pattern.match(text)),
            ]
            if found:
                _refuse(found, now, certificates.describe(certificate), certificates.facts_of(certificate, "ban list"))
        facts = {"check": "ban list", "subject": str(identity.subject)}
        of_vos = [ban for vo in vos for ban in self._vos.get(vo, ())]
        of_fqans = [ban for ban in self._fqans for fqan in fqans if is_within(fqan, ban.value)]
        _refuse([*of_vos, *of_fqans, *self._of_address(address)], now, str(identity.subject), facts)

    def names(
        self, subject: DistinguishedName, serial: int | None = None, issuer: DistinguishedName | None = None
    ) -> bool:
        """True if a certificate of this name, serial number and issuer is named; what is None is not looked at."""
        return (
            subject in self._subjects
            or any(pattern.match(str(subject)) for pattern, _ in self._patterns)
            or (serial is not None and issuer is not None and (issuer, serial) in self._certificates)
            or (issuer is not None and issuer in self._authorities)
        )

    def groups(self, fqans: Iterable[str]) -> bool:
        """True if one of these FQANs is banned."""
        return any(is_within(fqan, ban.value) for fqan in fqans for ban in self._fqans)

    def _of_address(self, address: str) -> list[Ban]:
        if not address or not self._networks:
            return []
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return []
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return [ban for network, ban in self._networks if found in network]

    # -- changes -----------------------------------------------------------------------------------------------------

    @property
    def subjects(self) -> frozenset[DistinguishedName]:
        """The people banned by name."""
        return frozenset(self._subjects)

    def with_ban(self, ban: Ban) -> BanList:
        """This list and one more."""
        return BanList((*self.bans, ban))

    def with_subjects(self, subjects: Iterable[DistinguishedName]) -> BanList:
        """This list and these people."""
        return BanList((*self.bans, *(Ban(BanKind.SUBJECT, str(subject)) for subject in subjects)))

    def with_serial(self, issuer: DistinguishedName, serial: int) -> BanList:
        """This list and this certificate."""
        return self.with_ban(Ban(BanKind.CERTIFICATE, f"{certificates.serial_text(serial)} {issuer}"))

    def without(self, subject: DistinguishedName) -> BanList:
        """This list without that person."""
        names = self._subjects.get(subject, ())
        return BanList(tuple(ban for ban in self.bans if ban not in names))


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> BanList:
    bans: list[Ban] = []
    for number, line in numbered_lines(text):
        try:
            bans.append(Ban.parse(line))
        except (SecurityError, ValueError) as error:
            raise AuthorizationError(
                Reason.BAN_LIST_UNREADABLE,
                f"ban list line {number} cannot be understood ({error}); everybody is refused until it is corrected",
                {"check": "ban list", "line": str(number)},
            ) from error
    return BanList(tuple(bans))


def _refuse(found: Sequence[Ban], now: datetime, who: str, facts: dict[str, str]) -> None:
    ban = next((ban for ban in found if ban.until is None or now < ban.until), None)
    if ban is None:
        return
    why = f", because {ban.describe()}" if ban.kind is not BanKind.SUBJECT or ban.reason or ban.until else ""
    raise AuthorizationError(
        Reason.BANNED,
        f"{who} is banned at this site{why}; ask the site's security contact",
        {**facts, "ban": ban.value, **({"ban_id": ban.ban_id} if ban.ban_id else {})},
    )


def _normal(kind: BanKind, value: str) -> str:
    """The value as it is kept. Raises ValueError, SecurityError."""
    if len(value) > MAX_LINE_LENGTH or not value.isprintable() or not value or _SEPARATOR in value:
        raise ValueError("what is banned must be printable text without a lone '|'")
    match kind:
        case BanKind.SUBJECT | BanKind.AUTHORITY:
            return str(_name(value))
        case BanKind.CERTIFICATE:
            found = _SERIAL.match(value)
            if found is None:
                raise ValueError("a certificate is named by its serial number in hexadecimal and its issuer")
            return f"{certificates.serial_text(int(found['serial'], 16))} {_name(found['issuer'])}"
        case BanKind.PATTERN:
            if len(value) > MAX_TEXT_LENGTH or not value.startswith("/") or not value.strip("/*?="):
                raise ValueError("a pattern is a name in slash form with * or ?, and not everybody")
            _pattern(value)
            return value
        case BanKind.VO:
            if not _VO.match(value):
                raise ValueError(f"{value[:80]!r} cannot be the name of a VO")
            return value
        case BanKind.FQAN:
            if not _FQAN.match(value):
                raise ValueError(f"{value[:80]!r} is no FQAN such as /cms/production or /cms/Role=admin")
            return value
        case BanKind.NETWORK:
            network = ipaddress.ip_network(value, strict=False)
            if network.prefixlen == 0:
                raise ValueError("a network of every address would ban everybody")
            return str(network)


def _pattern(value: str) -> re.Pattern[str]:
    """`*` and `?` only; runs of `*` are one, so that no pattern takes long."""
    escaped = re.sub(r"\*+", "*", value).replace("[", "[[]")
    return re.compile(fnmatch.translate(escaped))


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no time such as 2026-12-01T00:00:00Z") from None


def _name(text: str) -> DistinguishedName:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        text = text[1:-1]
    return DistinguishedName.parse(text)
