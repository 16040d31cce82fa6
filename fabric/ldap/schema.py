"""Which matching rules an attribute has (RFC 4512 section 4.1, RFC 4517 section 4.2).

A ``Schema`` is optional knowledge: without it every attribute compares as caseIgnore, and as
integers where both sides of an ordering are integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fabric.ldap.dn import DnError, canonical_attribute, fold, parse_dn

_DESCRIPTION = re.compile(r"\A(?:[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)+)(?:;[A-Za-z0-9-]+)*\Z")
_INTEGER = re.compile(r"\A-?[0-9]{1,100}\Z")
_TIME = re.compile(
    r"\A(\d{4})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])(?:([0-5]\d)([0-5]\d|60)?)?(?:[.,](\d{1,9}))?Z\Z"
)
_SPACES = re.compile(r" +")

SYNTAX_TEXT = "1.3.6.1.4.1.1466.115.121.1.15"
SYNTAX_INTEGER = "1.3.6.1.4.1.1466.115.121.1.27"
SYNTAX_DN = "1.3.6.1.4.1.1466.115.121.1.12"
SYNTAX_TIME = "1.3.6.1.4.1.1466.115.121.1.24"
SYNTAX_OID = "1.3.6.1.4.1.1466.115.121.1.38"
SYNTAX_BOOLEAN = "1.3.6.1.4.1.1466.115.121.1.7"

Key = str | int
"""A normalised value. Keys of one rule compare with one another."""


def _integer(value: str) -> int | None:
    match = _INTEGER.match(value)
    return int(match.group()) if match else None


def _text(value: str) -> str | None:
    return fold(value) if value else None  # a DirectoryString has at least one character (RFC 4517 section 3.3.6)


def _exact(value: str) -> str | None:
    return _SPACES.sub(" ", value).strip(" ") if value else None


def _identifier(value: str) -> str | None:
    return value.lower() if value and " " not in value else None


def _name(value: str) -> str | None:
    if value.isspace():
        return None
    try:
        return ",".join(parse_dn(value).key)
    except DnError:
        return None


def _boolean(value: str) -> str | None:
    upper = value.upper()
    return upper if upper in ("TRUE", "FALSE") else None


def _time(value: str) -> str | None:
    match = _TIME.match(value)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction = match.groups()
    return f"{year}{month}{day}{hour}{minute or '00'}{second or '00'}.{(fraction or '').rstrip('0')}"


@dataclass(frozen=True, slots=True)
class MatchingRule:
    """How values are normalised before they are compared; ``normalise`` gives None for a value of the wrong syntax."""

    name: str
    oid: str
    normalise: Callable[[str], Key | None]
    ordering: bool = False
    """True for the ordering rules: in an extensible filter they mean *less than*."""


CASE_IGNORE = MatchingRule("caseIgnoreMatch", "2.5.13.2", _text)
CASE_EXACT = MatchingRule("caseExactMatch", "2.5.13.5", _exact)
INTEGER = MatchingRule("integerMatch", "2.5.13.14", _integer)
DISTINGUISHED_NAME = MatchingRule("distinguishedNameMatch", "2.5.13.1", _name)
BOOLEAN = MatchingRule("booleanMatch", "2.5.13.13", _boolean)
GENERALIZED_TIME = MatchingRule("generalizedTimeMatch", "2.5.13.27", _time)
OBJECT_IDENTIFIER = MatchingRule("objectIdentifierMatch", "2.5.13.0", _identifier)

MATCHING_RULES: Mapping[str, MatchingRule] = {
    name.lower(): rule
    for rule in (
        CASE_IGNORE,
        CASE_EXACT,
        INTEGER,
        DISTINGUISHED_NAME,
        BOOLEAN,
        GENERALIZED_TIME,
        OBJECT_IDENTIFIER,
        MatchingRule("caseIgnoreIA5Match", "1.3.6.1.4.1.1466.109.114.2", _text),
        MatchingRule("caseExactIA5Match", "1.3.6.1.4.1.1466.109.114.1", _exact),
        MatchingRule("caseIgnoreOrderingMatch", "2.5.13.3", _text, ordering=True),
        MatchingRule("caseExactOrderingMatch", "2.5.13.6", _exact, ordering=True),
        MatchingRule("integerOrderingMatch", "2.5.13.15", _integer, ordering=True),
        MatchingRule("generalizedTimeOrderingMatch", "2.5.13.28", _time, ordering=True),
    )
    for name in (rule.name, rule.oid)
}
"""By lower-case name and by OID: what an extensible filter may ask for."""


@dataclass(frozen=True, slots=True)
class AttributeType:
    """One attribute type."""

    name: str
    equality: MatchingRule = CASE_IGNORE
    ordering: bool = True
    """False: >= and <= are Undefined."""
    substrings: bool = True
    """False: substring filters are Undefined."""
    syntax: str = SYNTAX_TEXT
    oid: str = ""
    aliases: tuple[str, ...] = ()
    numbers_in_text: bool = True
    """False: text that looks like a number is ordered as text, too."""
    single_value: bool = False
    operational: bool = False

    def compare(self, left: str, right: str) -> int | None:
        """Negative, zero or positive as ``left`` is before, at or after ``right``; None if it cannot be said."""
        normalise = self.equality.normalise
        if self.equality is CASE_IGNORE and self.numbers_in_text:
            numbers = _integer(left), _integer(right)
            if numbers[0] is not None and numbers[1] is not None:
                return (numbers[0] > numbers[1]) - (numbers[0] < numbers[1])
        one, two = normalise(left), normalise(right)
        if isinstance(one, int) and isinstance(two, int):
            return (one > two) - (one < two)
        if isinstance(one, str) and isinstance(two, str):
            return (one > two) - (one < two)
        return None

    def describe(self) -> str:
        """The AttributeTypeDescription of RFC 4512 section 4.1.2, as the subschema entry publishes it."""
        names = dict.fromkeys((self.name, *self.aliases))
        quoted = f"'{self.name}'" if len(names) == 1 else "( " + " ".join(f"'{name}'" for name in names) + " )"
        parts = [f"( {self.oid or self.name + '-oid'} NAME {quoted} EQUALITY {self.equality.name}"]
        parts.append(f"SYNTAX {self.syntax}")
        if self.single_value:
            parts.append("SINGLE-VALUE")
        if self.operational:
            parts.append("USAGE dSAOperation")
        return " ".join(parts) + " )"


STANDARD_ATTRIBUTES = (
    AttributeType("objectClass", OBJECT_IDENTIFIER, ordering=False, substrings=False, syntax=SYNTAX_OID, oid="2.5.4.0"),
    AttributeType("cn", oid="2.5.4.3", aliases=("commonName",)),
    AttributeType("o", oid="2.5.4.10", aliases=("organizationName",)),
    AttributeType("ou", oid="2.5.4.11", aliases=("organizationalUnitName",)),
    AttributeType("dc", oid="0.9.2342.19200300.100.1.25", aliases=("domainComponent",)),
    AttributeType("description", oid="2.5.4.13"),
    AttributeType("createTimestamp", GENERALIZED_TIME, syntax=SYNTAX_TIME, oid="2.5.18.1", operational=True),
    AttributeType("modifyTimestamp", GENERALIZED_TIME, syntax=SYNTAX_TIME, oid="2.5.18.2", operational=True),
)


class Schema:
    """The attribute types a server knows.

    With ``strict`` an attribute that is not listed is not recognised: filters on it are Undefined,
    as RFC 4511 section 4.5.1.7 says. Without, it compares as caseIgnore. Where `object_classes` are listed, an
    assertion about any other class is Undefined, too.
    """

    def __init__(
        self,
        attributes: Iterable[AttributeType] = (),
        *,
        strict: bool = False,
        object_classes: Iterable[str] | None = None,
    ) -> None:
        self.strict = strict
        self._classes = None if object_classes is None else frozenset(name.lower() for name in object_classes)
        self._types: dict[str, AttributeType] = {}
        self._guessed: dict[str, AttributeType] = {}
        for attribute in (*STANDARD_ATTRIBUTES, *attributes):
            for name in (attribute.name, attribute.oid, *attribute.aliases):
                if name:
                    self._types[canonical_attribute(name)] = attribute

    @property
    def attributes(self) -> tuple[AttributeType, ...]:
        """Every listed type once."""
        return tuple({id(attribute): attribute for attribute in self._types.values()}.values())

    def lookup(self, description: str) -> AttributeType | None:
        """The type of an attribute description, None if it is not recognised."""
        key = canonical_attribute(description)
        found = self._types.get(key) or self._guessed.get(key)
        if found is None and not self.strict and len(description) <= 256 and _DESCRIPTION.match(description):
            found = AttributeType(description)
            if len(self._guessed) < 4096:
                self._guessed[key] = found
        return found

    def recognises(self, attribute: AttributeType, value: str) -> bool:
        """False if the value names an object class that is not listed."""
        if attribute.equality is not OBJECT_IDENTIFIER or self._classes is None:
            return True
        return value.lower() in self._classes

    def canonical(self, description: str) -> str:
        """The lower-case name under which entries hold this attribute."""
        key = canonical_attribute(description)
        known = self._types.get(key)
        return canonical_attribute(known.name) if known else key


OPEN_SCHEMA = Schema()
"""Knows the standard attributes and takes every other as caseIgnore."""
