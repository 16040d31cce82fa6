"""Search filters (RFC 4511 section 4.5.1.7): what they are and which entries they match.

Evaluation is three-valued: True, False, or None for Undefined. An entry is returned only for True.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fabric.ldap.dn import canonical_attribute, fold
from fabric.ldap.entry import Entry
from fabric.ldap.schema import INTEGER, MATCHING_RULES, OPEN_SCHEMA, AttributeType, Key, MatchingRule, Schema


@dataclass(frozen=True, slots=True)
class And:
    """Every part matches. An empty one is true (RFC 4526)."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one part matches. An empty one is false (RFC 4526)."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not match; Undefined stays Undefined."""

    part: Filter


@dataclass(frozen=True, slots=True)
class Equality:
    """A value equals this one."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Substrings:
    """A value starts with, contains in this order, and ends with these pieces."""

    attribute: str
    initial: str | None = None
    any: tuple[str, ...] = ()
    final: str | None = None


@dataclass(frozen=True, slots=True)
class GreaterOrEqual:
    """A value is at or after this one."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class LessOrEqual:
    """A value is at or before this one."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Present:
    """The entry has the attribute."""

    attribute: str


@dataclass(frozen=True, slots=True)
class Approx:
    """Approximate equality; evaluated as equality."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Extensible:
    """A match by a named rule, by an attribute, or both; with ``dn_attributes`` also on the entry's name."""

    rule: str | None
    attribute: str | None
    value: str
    dn_attributes: bool = False


Filter = And | Or | Not | Equality | Substrings | GreaterOrEqual | LessOrEqual | Present | Approx | Extensible
Predicate = Callable[[Entry], bool | None]

ANY_ENTRY = Present("objectClass")


def compile_filter(node: Filter, schema: Schema = OPEN_SCHEMA) -> Predicate:
    """A function that says whether an entry matches: True, False or None for Undefined.

    Recurses as deep as the filter: decoders and the text parser bound that.
    """
    match node:
        case And(parts):
            return _all_of(tuple(compile_filter(part, schema) for part in parts))
        case Or(parts):
            return _any_of(tuple(compile_filter(part, schema) for part in parts))
        case Not(part):
            inner = compile_filter(part, schema)

            def negate(entry: Entry) -> bool | None:
                result = inner(entry)
                return None if result is None else not result

            return negate
        case Present(description):
            if schema.lookup(description) is None:
                return _undefined
            name = schema.canonical(description)
            if name == "objectclass":
                return _always
            return lambda entry: entry.get(name) is not None
        case Equality(description, value) | Approx(description, value):
            attribute = schema.lookup(description)
            if attribute is None or not schema.recognises(attribute, value):
                return _undefined
            return _equal(schema, schema.canonical(description), attribute, value)
        case GreaterOrEqual(description, value):
            return _ordered(schema, description, value, 1)
        case LessOrEqual(description, value):
            return _ordered(schema, description, value, -1)
        case Substrings():
            return _substrings(schema, node)
        case Extensible():
            return _extensible(schema, node)


def items_in(node: Filter) -> int:
    """How many conditions a filter has."""
    match node:
        case And(parts) | Or(parts):
            return sum(map(items_in, parts))
        case Not(part):
            return items_in(part)
        case _:
            return 1


def matches(node: Filter, entry: Entry, schema: Schema = OPEN_SCHEMA) -> bool:
    """True if the entry is to be returned for this filter."""
    return compile_filter(node, schema)(entry) is True


def is_text(value: str) -> bool:
    """False if the value came from octets that are not UTF-8."""
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _undefined(_entry: Entry) -> bool | None:
    return None


def _always(_entry: Entry) -> bool | None:
    return True


def _all_of(parts: tuple[Predicate, ...]) -> Predicate:
    if len(parts) == 1:
        return parts[0]

    def every(entry: Entry) -> bool | None:
        result: bool | None = True
        for part in parts:
            one = part(entry)
            if one is False:
                return False
            if one is None:
                result = None
        return result

    return every


def _any_of(parts: tuple[Predicate, ...]) -> Predicate:
    if len(parts) == 1:
        return parts[0]

    def some(entry: Entry) -> bool | None:
        result: bool | None = False
        for part in parts:
            one = part(entry)
            if one is True:
                return True
            if one is None:
                result = None
        return result

    return some


def _equal(schema: Schema, name: str, attribute: AttributeType, value: str) -> Predicate:
    wanted = equality_keys(schema, attribute, value)
    if not wanted:
        return _undefined
    key, *derived = wanted
    if derived:
        several = frozenset(wanted)
        return lambda entry: not several.isdisjoint(entry.normalised(name, attribute) or ())

    def equal(entry: Entry) -> bool | None:
        keys = entry.normalised(name, attribute)
        return keys is not None and key in keys

    return equal


def _ordered(schema: Schema, description: str, value: str, sign: int) -> Predicate:
    attribute = schema.lookup(description)
    if attribute is None or not attribute.ordering or not is_text(value):
        return _undefined
    if attribute.equality.normalise(value) is None:
        return _undefined
    name = schema.canonical(description)
    compare = attribute.compare

    def ordered(entry: Entry) -> bool | None:
        for candidate in entry.get(name) or ():
            order = compare(candidate, value)
            if order is not None and order * sign >= 0:
                return True
        return False

    return ordered


def _fold_piece(attribute: AttributeType, piece: str, *, first: bool, last: bool) -> str:
    """Normalise one piece; inside a value its outer spaces stand for a space and are kept as one (RFC 4518)."""
    key = str(attribute.equality.normalise(piece) or "")
    if not first and piece[:1] == " ":
        key = " " + key
    if not last and piece[-1:] == " " and key != " ":
        key += " "
    return key


def _substrings(schema: Schema, node: Substrings) -> Predicate:
    attribute = schema.lookup(node.attribute)
    if attribute is None or not attribute.substrings or attribute.equality is INTEGER:
        return _undefined
    if not all(is_text(piece) for piece in (node.initial or "", *node.any, node.final or "")):
        return _undefined
    name = schema.canonical(node.attribute)
    initial = _fold_piece(attribute, node.initial or "", first=True, last=False)
    middle = tuple(_fold_piece(attribute, piece, first=False, last=False) for piece in node.any)
    final = _fold_piece(attribute, node.final or "", first=False, last=True)

    def contains(entry: Entry) -> bool | None:
        for key in entry.normalised(name, attribute) or ():
            text = str(key)
            if not text.startswith(initial):
                continue
            position = len(initial)
            end = len(text) - len(final)
            for piece in middle:
                found = text.find(piece, position, end)
                if found < 0:
                    break
                position = found + len(piece)
            else:
                if position <= end and text.endswith(final):
                    return True
        return False

    return contains


def _extensible(schema: Schema, node: Extensible) -> Predicate:
    rule: MatchingRule | None = None
    if node.rule is not None:
        rule = MATCHING_RULES.get(node.rule.lower())
        if rule is None:
            return _undefined
    attribute = None
    if node.attribute is not None:
        attribute = schema.lookup(node.attribute)
        if attribute is None:
            return _undefined
    if rule is None and (attribute is None or not schema.recognises(attribute, node.value)):
        return _undefined
    if rule is None and attribute is not None and not node.dn_attributes:
        return _equal(schema, schema.canonical(attribute.name), attribute, node.value)
    chosen = rule or (attribute.equality if attribute is not None else None)
    key = chosen.normalise(node.value) if chosen is not None and is_text(node.value) else None
    if chosen is None or key is None:
        return _undefined
    normalise, less_than = chosen.normalise, chosen.ordering
    name = schema.canonical(node.attribute) if node.attribute is not None else None

    def holds(value: str) -> bool:
        candidate = normalise(value)
        if candidate is None:
            return False
        if not less_than:
            return candidate == key
        if isinstance(candidate, int) and isinstance(key, int):
            return candidate < key
        return str(candidate) < str(key)

    def extended(entry: Entry) -> bool | None:
        if name is not None:
            if any(map(holds, entry.get(name) or ())):
                return True
        elif any(holds(value) for values in entry.attributes.values() for value in values):
            return True
        if node.dn_attributes:
            for rdn in entry.dn.rdns:
                for rdn_name, value in rdn:
                    if name in (None, canonical_attribute(rdn_name)) and holds(value):
                        return True
        return False

    return extended


def equality_keys(schema: Schema, attribute: AttributeType, value: str) -> tuple[Key, ...]:
    """The keys under which an equality index holds what equals a value; none for a value of the wrong syntax."""
    return schema.keys_of(attribute, value) if is_text(value) else ()


__all__ = [
    "ANY_ENTRY", "And", "Approx", "Equality", "Extensible", "Filter", "GreaterOrEqual", "LessOrEqual", "Not", "Or",
    "Predicate", "Present", "Substrings", "compile_filter", "equality_keys", "fold", "is_text", "matches",
]  # fmt: skip
