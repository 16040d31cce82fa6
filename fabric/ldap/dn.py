"""Distinguished names (RFC 4514): parse, print, compare without regard to case and needless spaces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

MAX_DN_CHARACTERS = 16 * 1024
"""Longest name taken from a peer; RDN values of 1 000 characters and more do occur."""

MAX_REMEMBERED_CHARACTERS = 512
"""Longer names are parsed each time: strangers must not fill memory with them."""

MAX_RDNS = 64
"""Deepest name: a grid tree has five levels."""

ATTRIBUTE_ALIASES = {
    "commonname": "cn",
    "2.5.4.3": "cn",
    "surname": "sn",
    "2.5.4.4": "sn",
    "countryname": "c",
    "2.5.4.6": "c",
    "localityname": "l",
    "2.5.4.7": "l",
    "stateorprovincename": "st",
    "2.5.4.8": "st",
    "organizationname": "o",
    "2.5.4.10": "o",
    "organizationalunitname": "ou",
    "2.5.4.11": "ou",
    "domaincomponent": "dc",
    "0.9.2342.19200300.100.1.25": "dc",
    "userid": "uid",
    "0.9.2342.19200300.100.1.1": "uid",
    "emailaddress": "email",
    "2.5.4.0": "objectclass",
}
"""Other names of the same attribute types, lower case, to the one used for comparing."""

_ATTRIBUTE = re.compile(r"\A(?:[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)+)\Z")
_SPACES = re.compile(r" +")
_SPECIAL = ',+"\\<>;='
_MAY_NEED_ESCAPE = re.compile(r'[\x00-\x1f\x7f,+"\\<>;=#]|\A | \Z')
_NEEDS_CARE = re.compile(r'[\\+"<>;#\x00]')
_HEX = "0123456789abcdefABCDEF"


class DnError(ValueError):
    """The text is not a distinguished name of RFC 4514."""


def fold(value: str) -> str:
    """A value as caseIgnoreMatch compares it (RFC 4518): case, compatibility forms and extra spaces removed."""
    folded = value.lower() if value.isascii() else unicodedata.normalize("NFKC", value.casefold())
    if "  " in folded:
        folded = _SPACES.sub(" ", folded)
    return folded.strip(" ")


def canonical_attribute(name: str) -> str:
    """The lower-case name used for comparing attribute types."""
    lowered = name.lower()
    return ATTRIBUTE_ALIASES.get(lowered, lowered)


def escape_value(value: str) -> str:
    """An RDN value as RFC 4514 section 2.4 writes it."""
    if not _MAY_NEED_ESCAPE.search(value):
        return value
    pieces: list[str] = []
    last = len(value) - 1
    for index, character in enumerate(value):
        if character in _SPECIAL or (character == "#" and index == 0) or (character == " " and index in (0, last)):
            pieces.append("\\" + character)
        elif ord(character) < 0x20 or character == "\x7f":
            pieces.append(f"\\{ord(character):02x}")
        else:
            pieces.append(character)
    return "".join(pieces)


@dataclass(frozen=True, slots=True)
class Dn:
    """A distinguished name, leaf first. Two names are equal when they match, however they were written."""

    rdns: tuple[tuple[tuple[str, str], ...], ...] = field(compare=False)
    """Each RDN is one or more (attribute, value), unescaped, in the writer's case."""
    key: tuple[str, ...] = field(init=False)
    """The RDNs normalised: the form to compare, hash and index by."""
    _text: str | None = field(init=False, compare=False, repr=False, default=None)
    """Worked out when it is first asked for: a name in a tree is written with every answer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", tuple(_normalise_rdn(rdn) for rdn in self.rdns))

    def __str__(self) -> str:
        text = self._text
        if text is None:
            pairs = ("+".join(f"{name}={escape_value(value)}" for name, value in rdn) for rdn in self.rdns)
            text = ",".join(pairs)
            object.__setattr__(self, "_text", text)
        return text

    def __len__(self) -> int:
        return len(self.rdns)

    @property
    def parent(self) -> Dn:
        """The name one level up; the empty name is its own parent."""
        return _joined(self.rdns[1:], self.key[1:])

    def child(self, attribute: str, value: str) -> Dn:
        """The name of an entry directly below this one."""
        rdn = ((attribute, value),)
        return _joined((rdn, *self.rdns), (_normalise_rdn(rdn), *self.key))

    def below(self, base: Dn) -> Dn:
        """This name, taken as relative to another one, in full."""
        return _joined(self.rdns + base.rdns, self.key + base.key)

    def relative_to(self, depth: int) -> Dn:
        """The name without its last ``depth`` RDNs; the empty name if there are no more."""
        left = max(0, len(self.rdns) - depth)
        return _joined(self.rdns[:left], self.key[:left])

    def is_within(self, other: Dn) -> bool:
        """True if this is ``other`` or below it."""
        depth = len(other.key)
        return depth == 0 or self.key[-depth:] == other.key


def _joined(rdns: tuple[tuple[tuple[str, str], ...], ...], key: tuple[str, ...]) -> Dn:
    """A name whose RDNs have been normalised already."""
    made = object.__new__(Dn)
    object.__setattr__(made, "rdns", rdns)
    object.__setattr__(made, "key", key)
    object.__setattr__(made, "_text", None)
    return made


def _normalise_rdn(rdn: Iterable[tuple[str, str]]) -> str:
    parts = [f"{canonical_attribute(name)}={escape_value(fold(value))}" for name, value in rdn]
    if len(parts) > 1:
        parts.sort()
    return "+".join(parts)


ROOT = Dn(())
"""The empty name."""


def parse_dn(text: str) -> Dn:
    """Read a name. Raises DnError; an empty string is the empty name."""
    return _remembered(text) if len(text) <= MAX_REMEMBERED_CHARACTERS else _parse(text)


@lru_cache(maxsize=16384)
def _remembered(text: str) -> Dn:
    return _parse(text)


def _parse(text: str) -> Dn:
    if len(text) > MAX_DN_CHARACTERS:
        raise DnError(f"a name of {len(text)} characters is over the limit of {MAX_DN_CHARACTERS}")
    if not text.strip(" "):
        return ROOT
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DnError("a name is not UTF-8") from None
    if not _NEEDS_CARE.search(text):
        parts = text.split(",")
        if len(parts) > MAX_RDNS:
            raise DnError(f"a name of more than {MAX_RDNS} levels")
        return Dn(tuple(map(_parse_plain, parts)))
    rdns: list[tuple[tuple[str, str], ...]] = []
    current: list[tuple[str, str]] = []
    position = 0
    while True:
        name, position = _parse_attribute(text, position)
        value, position = _parse_value(text, position)
        current.append((name, value))
        separator = text[position] if position < len(text) else ""
        position += 1
        if separator == "+":
            continue
        rdns.append(tuple(current))
        current = []
        if len(rdns) > MAX_RDNS:
            raise DnError(f"a name of more than {MAX_RDNS} levels")
        if not separator:
            return Dn(tuple(rdns))


def _parse_plain(text: str) -> tuple[tuple[str, str]]:
    """One RDN without escapes, with one attribute."""
    name, position = _parse_attribute(text, 0)
    return ((name, text[position:].strip(" ")),)


def _parse_attribute(text: str, position: int) -> tuple[str, int]:
    equals = text.find("=", position)
    if equals < 0:
        raise DnError(f"no '=' after character {position}")
    name = text[position:equals].strip(" ")
    if name[:4].lower() == "oid.":
        name = name[4:]
    if not _ATTRIBUTE.match(name):
        raise DnError(f"not an attribute type: {name!r}")
    return name, equals + 1


def _parse_value(text: str, position: int) -> tuple[str, int]:
    """Read up to an unescaped ',' or '+' or the end."""
    end = len(text)
    while position < end and text[position] == " ":
        position += 1
    if position < end and text[position] == "#":
        return _parse_hex_value(text, position + 1)
    octets = bytearray()
    kept = 0  # trailing spaces beyond this many octets are not part of the value
    while position < end:
        character = text[position]
        if character in ",+":
            break
        if character == "\\":
            pair = text[position + 1 : position + 3]
            if len(pair) == 2 and pair[0] in _HEX and pair[1] in _HEX:
                octets.append(int(pair, 16))
                position += 3
            elif pair and (pair[0] in _SPECIAL or pair[0] in " #"):
                octets += pair[0].encode()
                position += 2
            else:
                raise DnError(f"a bad escape at character {position}")
            kept = len(octets)
            continue
        if character in '"<>;\0':
            raise DnError(f"an unescaped {character!r} at character {position}")
        octets += character.encode()
        position += 1
        if character != " ":
            kept = len(octets)
    try:
        return octets[:kept].decode("utf-8"), position
    except UnicodeDecodeError:
        raise DnError("a value is not UTF-8") from None


def _parse_hex_value(text: str, position: int) -> tuple[str, int]:
    """A '#' value: the BER of a string type; what it holds is taken as UTF-8."""
    match = re.compile(r"((?:[0-9A-Fa-f]{2})+) *(?=[,+]|\Z)").match(text, position)
    if match is None:
        raise DnError(f"a bad '#' value at character {position}")
    raw = bytes.fromhex(match.group(1))
    if len(raw) < 2 or raw[0] not in (0x04, 0x0C, 0x13, 0x16) or raw[1] >= 0x80 or len(raw) != 2 + raw[1]:
        raise DnError("only short strings are taken in '#' form")
    try:
        return raw[2:].decode("utf-8"), match.end()
    except UnicodeDecodeError:
        raise DnError("a value is not UTF-8") from None
