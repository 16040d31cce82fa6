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

MAX_KNOWN_NAMES = 4096
MAX_KNOWN_LETTERS = 256
"""Attribute descriptions that strangers write, remembered at most."""

SYNTAX_TEXT = "1.3.6.1.4.1.1466.115.121.1.15"
SYNTAX_INTEGER = "1.3.6.1.4.1.1466.115.121.1.27"
SYNTAX_DN = "1.3.6.1.4.1.1466.115.121.1.12"
SYNTAX_TIME = "1.3.6.1.4.1.1466.115.121.1.24"
SYNTAX_OID = "1.3.6.1.4.1.1466.115.121.1.38"
SYNTAX_BOOLEAN = "1.3.6.1.4.1.1466.115.121.1.7"
SYNTAX_IA5 = "1.3.6.1.4.1.1466.115.121.1.26"

Key = str | int
"""A normalised value. Keys of one rule compare with one another."""


def _integer(value: str) -> int | None:
    match = _INTEGER.match(value)
    return int(match.group()) if match else None


def _text(value: str) -> str | None:
    return fold(value) if value else None  # a DirectoryString has at least one character (RFC 4517 section 3.3.6)


def _ia5(value: str) -> str | None:
    return fold(value) if value.isascii() else None  # unlike a DirectoryString, it may be empty


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
        MatchingRule("caseIgnoreIA5Match", "1.3.6.1.4.1.1466.109.114.2", _ia5),
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

    def refuses(self, value: str) -> bool:
        """True for a value that is not of the attribute's syntax."""
        if self.syntax == SYNTAX_IA5:
            return not value or not value.isascii()  # empty would be IA5, and says nothing
        if self.syntax == SYNTAX_TEXT:
            return not value
        return self.equality.normalise(value) is None


@dataclass(frozen=True, slots=True)
class ObjectClass:
    """One object class (RFC 4512 section 4.1.1)."""

    name: str
    oid: str = ""
    superiors: tuple[str, ...] = ("top",)
    kind: str = "STRUCTURAL"
    """STRUCTURAL, AUXILIARY or ABSTRACT."""
    must: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def describe(self) -> str:
        """The ObjectClassDescription, as the subschema entry publishes it."""
        names = dict.fromkeys((self.name, *self.aliases))
        quoted = f"'{self.name}'" if len(names) == 1 else "( " + " ".join(f"'{name}'" for name in names) + " )"
        parts = [f"( {self.oid or self.name + '-oid'} NAME {quoted}"]
        if self.superiors:
            parts.append("SUP " + (self.superiors[0] if len(self.superiors) == 1 else _several(self.superiors)))
        parts.append(self.kind)
        parts += [f"{word} {_several(names)}" for word, names in (("MUST", self.must), ("MAY", self.may)) if names]
        return " ".join(parts) + " )"


def _several(names: tuple[str, ...]) -> str:
    return "( " + " $ ".join(names) + " )"


TOP = ObjectClass("top", "2.5.6.0", (), "ABSTRACT", ("objectClass",))

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
    """The attribute types and object classes a server knows.

    With ``strict`` an attribute that is not listed is not recognised: filters on it are Undefined,
    as RFC 4511 section 4.5.1.7 says. Without, it compares as caseIgnore. Where `object_classes` are listed, an
    assertion about any other class is Undefined, too, and `violation` can be asked.
    """

    def __init__(
        self,
        attributes: Iterable[AttributeType] = (),
        *,
        strict: bool = False,
        object_classes: Iterable[ObjectClass] | None = None,
    ) -> None:
        self.strict = strict
        self._classes: dict[str, ObjectClass] | None = None
        if object_classes is not None:
            listed = (TOP, *object_classes)
            self._classes = {name.lower(): one for one in listed for name in (one.name, *one.aliases)}
        self._types: dict[str, AttributeType] = {}
        self._guessed: dict[str, AttributeType] = {}
        self._derived: dict[Key, tuple[Key, ...]] = {}
        self._canonical: dict[str, str] = {}
        """For descriptions as they were written; see `MAX_KNOWN_NAMES`."""
        self._shapes: dict[tuple[object, ...], dict[str, AttributeType] | str] = {}
        for attribute in (*STANDARD_ATTRIBUTES, *attributes):
            for name in (attribute.name, attribute.oid, *attribute.aliases):
                if name:
                    self._types[canonical_attribute(name)] = attribute

    @property
    def attributes(self) -> tuple[AttributeType, ...]:
        """Every listed type once."""
        return tuple({id(attribute): attribute for attribute in self._types.values()}.values())

    @property
    def object_classes(self) -> tuple[ObjectClass, ...]:
        """Every listed class once."""
        classes = self._classes or {}
        return tuple({id(one): one for one in classes.values()}.values())

    def lookup(self, description: str) -> AttributeType | None:
        """The type of an attribute description, None if it is not recognised."""
        key = canonical_attribute(description)
        found = self._types.get(key) or self._guessed.get(key)
        if (
            found is None
            and not self.strict
            and len(description) <= MAX_KNOWN_LETTERS
            and _DESCRIPTION.match(description)
        ):
            found = AttributeType(description)
            if len(self._guessed) < MAX_KNOWN_NAMES:
                self._guessed[key] = found
        return found

    def recognises(self, attribute: AttributeType, value: str) -> bool:
        """False if the value names an object class that is not listed."""
        if attribute.equality is not OBJECT_IDENTIFIER or self._classes is None:
            return True
        return value.lower() in self._classes

    def keys_of(self, attribute: AttributeType, value: str) -> tuple[Key, ...]:
        """What an equality assertion looks for: the normalised value; for a class also those derived from it."""
        key = attribute.equality.normalise(value)
        if key is None:
            return ()
        if attribute.equality is not OBJECT_IDENTIFIER or self._classes is None:
            return (key,)
        if key not in self._classes:
            return (key,)
        known = self._derived.get(key)
        if known is None:
            known = self._derived[key] = self._with_derived(str(key))
        return known

    def _with_derived(self, name: str) -> tuple[Key, ...]:
        classes = self._classes or {}
        found: dict[str, None] = {}
        waiting = [classes[name]]
        while waiting:
            one = waiting.pop()
            for alias in (one.name, *one.aliases):
                found[alias.lower()] = None
            waiting += [
                other
                for other in self.object_classes
                if one.name.lower() in map(str.lower, other.superiors) and other.name.lower() not in found
            ]
        return tuple(found)

    def canonical(self, description: str) -> str:
        """The lower-case name under which entries hold this attribute."""
        name = self._canonical.get(description)
        if name is None:
            key = canonical_attribute(description)
            known = self._types.get(key)
            name = canonical_attribute(known.name) if known else key
            if len(description) <= MAX_KNOWN_LETTERS and len(self._canonical) < MAX_KNOWN_NAMES:
                self._canonical[description] = name
        return name

    def violation(
        self, attributes: Mapping[str, tuple[str, ...]], differing: Iterable[str] | None = None
    ) -> str | None:
        """Why an entry with these attributes breaks the schema, naming the attribute or class; None if it does not.

        What slapd checks when an entry is added: known classes, one structural chain, MUST, MAY, one value where there
        may be only one, syntaxes. With `differing` only these attributes' values are looked at: all others were found
        right before. Raises ValueError if no object classes are listed.
        """
        named = attributes.get("objectClass") or next(
            (values for name, values in attributes.items() if name.lower() == "objectclass"), ()
        )
        shape = (named, *attributes)
        types = self._shapes.get(shape)
        if types is None:
            types = self._shape(named, attributes)
            if len(self._shapes) >= MAX_KEPT_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = types
        if isinstance(types, str):
            return types
        for name in attributes if differing is None else differing:
            attribute, values = types.get(name), attributes.get(name, ())
            if attribute is None:
                continue  # it is gone
            if attribute.single_value and len(values) > 1:
                return f"the attribute {name} has {len(values)} values and may have one"
            for value in values:
                if attribute.refuses(value):
                    return f"the attribute {name} has a value that is not of its syntax: {value[:64]!r}"
        return None

    def _shape(self, named: tuple[str, ...], names: Iterable[str]) -> dict[str, AttributeType] | str:
        """The types of these attributes, or what is wrong with having them under these object classes."""
        if not named:
            return "it has no objectClass"
        rules = self._class_rules(named)
        if isinstance(rules, str):
            return rules
        required, allowed = rules
        canonical = {name: self.canonical(name) for name in names}
        for name, key in canonical.items():
            if key not in allowed:
                return f"the attribute {name[:64]} is not allowed by its object classes"
        present = set(canonical.values())
        if len(present) < len(canonical):
            return "an attribute is there under two names"
        missing = required - present
        if missing:
            return f"the attribute {min(missing)} is missing"
        return {name: self._types[key] for name, key in canonical.items()}

    def _class_rules(self, named: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]] | str:
        """The attributes that these object classes require and allow, or what is wrong with the classes."""
        if self._classes is None:
            raise ValueError("a schema without object classes cannot say whether an entry breaks it")
        found: dict[str, ObjectClass] = {}
        waiting = list(named)
        while waiting:
            name = waiting.pop()
            one = self._classes.get(name.lower())
            if one is None:
                return f"the object class {name[:64]} is not known"
            if one.name not in found:
                found[one.name] = one
                waiting += one.superiors
        structural = {one.name: one for one in found.values() if one.kind == "STRUCTURAL"}
        if not structural:
            return "it has no structural object class"
        superiors = {name.lower() for one in structural.values() for name in one.superiors}
        leaves = [name for name in structural if name.lower() not in superiors]
        if len(leaves) > 1:
            return f"the structural object classes {' and '.join(sorted(leaves)[:2])} exclude one another"
        required = frozenset(self.canonical(name) for one in found.values() for name in one.must)
        allowed = required.union(self.canonical(name) for one in found.values() for name in one.may)
        return required, allowed & self._types.keys()


MAX_KEPT_SHAPES = 256
"""Sets of object classes and attributes whose types are remembered; entries of one kind have the same ones."""

OPEN_SCHEMA = Schema()
"""Knows the standard attributes and takes every other as caseIgnore."""
