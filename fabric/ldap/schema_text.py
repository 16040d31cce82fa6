"""LDAP schema as text: the definitions of RFC 4512 section 4.1, one a line, as OpenLDAP reads them."""

from __future__ import annotations

import re

from fabric.ldap.schema import CASE_IGNORE, MATCHING_RULES, SYNTAX_TEXT, AttributeType, ObjectClass

_TOKEN = re.compile(r"'[^']*'|[()$]|[^\s()$']+")
_FLAGS = frozenset(("SINGLE-VALUE", "STRUCTURAL", "AUXILIARY", "ABSTRACT"))
_KEYWORDS = _FLAGS | frozenset(("NAME", "SUP", "EQUALITY", "ORDERING", "SUBSTR", "SYNTAX", "MUST", "MAY"))


class SchemaTextError(ValueError):
    """A line that is no definition."""


def parse_definitions(text: str) -> tuple[tuple[AttributeType, ...], tuple[ObjectClass, ...]]:
    """The attribute types and object classes of a schema file. Lines that begin with `#` are comments.

    Raises SchemaTextError for what is neither, and for matching rules that are not known here.
    """
    attributes: list[AttributeType] = []
    classes: list[ObjectClass] = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        kind, _, definition = line.partition(" ")
        oid, parts = _parts(definition)
        if kind == "attributetype":
            attributes.append(_attribute(oid, parts))
        elif kind == "objectclass":
            classes.append(_object_class(oid, parts))
        else:
            raise SchemaTextError(f"{kind[:64]!r} is no kind of definition")
    return tuple(attributes), tuple(classes)


def _parts(definition: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The OID, and what follows each keyword."""
    tokens = [token for token in _TOKEN.findall(definition) if token not in "()$"]
    if not tokens:
        raise SchemaTextError("a definition without an OID")
    parts: dict[str, list[str]] = {}
    current: list[str] | None = None
    for token in tokens[1:]:
        if token in _KEYWORDS:
            current = parts.setdefault(token, [])
        elif current is None:
            raise SchemaTextError(f"{token[:64]!r} does not follow a keyword")
        else:
            current.append(token.strip("'"))
    if not parts.get("NAME"):
        raise SchemaTextError(f"{tokens[0]} has no name")
    return tokens[0], {keyword: tuple(values) for keyword, values in parts.items()}


def _attribute(oid: str, parts: dict[str, tuple[str, ...]]) -> AttributeType:
    equality = CASE_IGNORE
    if "EQUALITY" in parts:
        known = MATCHING_RULES.get(parts["EQUALITY"][0].lower())
        if known is None:
            raise SchemaTextError(f"matching rule {parts['EQUALITY'][0]} is not known")
        equality = known
    name, *aliases = parts["NAME"]
    return AttributeType(
        name,
        equality,
        ordering="ORDERING" in parts,
        substrings="SUBSTR" in parts,
        syntax=parts.get("SYNTAX", (SYNTAX_TEXT,))[0].partition("{")[0],
        oid=oid,
        aliases=tuple(aliases),
        single_value="SINGLE-VALUE" in parts,
    )


def _object_class(oid: str, parts: dict[str, tuple[str, ...]]) -> ObjectClass:
    name, *aliases = parts["NAME"]
    kind = next((flag for flag in ("ABSTRACT", "AUXILIARY") if flag in parts), "STRUCTURAL")
    return ObjectClass(
        name, oid, parts.get("SUP", ("top",)), kind, parts.get("MUST", ()), parts.get("MAY", ()), tuple(aliases)
    )
