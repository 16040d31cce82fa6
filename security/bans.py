"""The site's ban list: people and single certificates that may do nothing here, whatever their authority says.

One ban per line, `#` begins a comment line: a name (`/C=XX/O=Grid/CN=Mallory`), or `serial issuer-name` with the serial
number in hexadecimal (of an end entity, or of one proxy with its user's name as the issuer). Optional quotes as in a
map file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from security import certificates
from security.errors import AuthorizationError, Reason, SecurityError, os_error_text
from security.files import read_bounded, write_atomic
from security.names import DistinguishedName
from security.validation import Identity

MAX_BAN_BYTES = 16 * 1024 * 1024
MAX_LINE_LENGTH = 8192

_SERIAL_LINE = re.compile(r"(?:0x)?(?P<serial>[0-9A-Fa-f]{1,40})\s+(?P<issuer>\S.*)\Z")


@dataclass(frozen=True)
class BanList:
    """Banned names and (issuer, serial) pairs. Fails closed: a list that cannot be understood cannot be made."""

    subjects: frozenset[DistinguishedName] = frozenset()
    serials: frozenset[tuple[DistinguishedName, int]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> BanList:
        """Read a list. Raises AuthorizationError BAN_LIST_UNREADABLE for any line that cannot be understood."""
        subjects: set[DistinguishedName] = set()
        serials: set[tuple[DistinguishedName, int]] = set()
        for number, line in enumerate(text.split("\n"), 1):
            stripped = line.strip()
            if not stripped or stripped.startswith("#"):
                continue
            try:
                if len(stripped) > MAX_LINE_LENGTH:
                    raise ValueError("the line is too long")
                found = _SERIAL_LINE.match(stripped)
                if found is not None:
                    serials.add((_name(found["issuer"]), int(found["serial"], 16)))
                else:
                    subjects.add(_name(stripped))
            except (SecurityError, ValueError) as error:
                raise AuthorizationError(
                    Reason.BAN_LIST_UNREADABLE,
                    f"ban list line {number} cannot be understood ({error}); everybody is refused until it is "
                    "corrected",
                    {"check": "ban list", "line": str(number)},
                ) from error
        return cls(frozenset(subjects), frozenset(serials))

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
        lines = sorted(str(subject) for subject in self.subjects)
        lines += sorted(f"{certificates.serial_text(serial)} {issuer}" for issuer, serial in self.serials)
        return "".join(line + "\n" for line in lines)

    def write(self, path: str | Path) -> None:
        """Replace the file atomically (mode 0644)."""
        write_atomic(Path(path), self.emit().encode(), 0o644)

    def with_subjects(self, subjects: Iterable[DistinguishedName]) -> BanList:
        """This list and these people."""
        return BanList(self.subjects | frozenset(subjects), self.serials)

    def with_serial(self, issuer: DistinguishedName, serial: int) -> BanList:
        """This list and this certificate."""
        return BanList(self.subjects, self.serials | {(issuer, serial)})

    def without(self, subject: DistinguishedName) -> BanList:
        """This list without that person."""
        return BanList(self.subjects - {subject}, self.serials)

    def check(self, identity: Identity) -> None:
        """Raises AuthorizationError BANNED if any name or certificate of the identity's chain is banned."""
        for certificate in identity.certificates:
            subject = certificates.subject_of(certificate)
            issuer = certificates.issuer_of(certificate)
            if subject in self.subjects or (issuer, certificate.serial_number) in self.serials:
                raise AuthorizationError(
                    Reason.BANNED,
                    f"{certificates.describe(certificate)} is banned at this site; ask the site's security contact",
                    certificates.facts_of(certificate, "ban list"),
                )


def _name(text: str) -> DistinguishedName:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        text = text[1:-1]
    return DistinguishedName.parse(text)
