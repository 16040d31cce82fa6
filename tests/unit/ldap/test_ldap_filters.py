from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.ldap import (
    Entry,
    FilterSyntaxError,
    Schema,
    compile_filter,
    format_filter,
    make_entry,
    matches,
    parse_filter,
)
from fabric.ldap import filters as f
from fabric.ldap.protocol import Message, SearchRequest, decode_message, encode_message
from fabric.ldap.schema import BOOLEAN, CASE_EXACT, DISTINGUISHED_NAME, GENERALIZED_TIME, INTEGER, AttributeType

STRICT = Schema(
    (
        AttributeType("slots", INTEGER),
        AttributeType("exact", CASE_EXACT),
        AttributeType("owner", DISTINGUISHED_NAME),
        AttributeType("active", BOOLEAN),
        AttributeType("seen", GENERALIZED_TIME),
        AttributeType("flat", ordering=False, substrings=False),
    ),
    strict=True,
)
ENTRY = make_entry(
    "cn=one+ou=Physics,o=grid",
    {
        "objectClass": ("top", "thing"),
        "cn": ("One", "Uno  Due"),
        "slots": ("10", "-3"),
        "exact": "CaSe",
        "owner": "CN=Ada , O=Grid",
        "active": "TRUE",
        "seen": "20260101120000Z",
        "flat": "x",
    },
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(cn=one)", True),
        ("(CN= ONE )", True),
        ("(cn=uno due)", True),
        ("(cn=two)", False),
        ("(commonName=one)", True),
        ("(2.5.4.3=one)", True),
        ("(exact=case)", False),
        ("(exact=CaSe)", True),
        ("(slots=010)", True),
        ("(slots=ten)", None),
        ("(slots>=9)", True),
        ("(slots>=11)", False),
        ("(slots<=-3)", True),
        ("(slots>=x)", None),
        ("(slots=1*)", None),
        ("(owner=cn=ada,o=grid)", True),
        ("(owner=nonsense)", None),
        ("(active=true)", True),
        ("(active=maybe)", None),
        ("(seen>=20251231000000Z)", True),
        ("(seen<=20251231000000Z)", False),
        ("(flat>=a)", None),
        ("(flat=*x)", None),
        ("(flat=x)", True),
        ("(cn=*)", True),
        ("(sn=*)", None),
        ("(unknown=1)", None),
        ("(!(unknown=1))", None),
        ("(|(unknown=1)(cn=one))", True),
        ("(|(unknown=1)(cn=two))", None),
        ("(&(unknown=1)(cn=one))", None),
        ("(&(unknown=1)(cn=two))", False),
        ("(!(cn=two))", True),
        ("(&)", True),
        ("(|)", False),
        ("(cn=o*)", True),
        ("(cn=*e)", True),
        ("(cn=U*o*D*e)", True),
        ("(cn=*o d*)", True),
        ("(cn=*one*one*)", False),
        ("(cn=on*ne)", False),
        ("(cn~=ONE)", True),
        ("(cn>=one)", True),
        ("(cn:=one)", True),
        ("(cn:caseExactMatch:=one)", False),
        ("(cn:2.5.13.5:=One)", True),
        ("(:caseExactMatch:=CaSe)", True),
        ("(cn:9.9.9:=one)", None),
        ("(ou:dn:=physics)", None),
        ("(cn:dn:=one)", True),
        ("(:dn:2.5.13.2:=physics)", True),
        ("(slots:integerOrderingMatch:=0)", True),
        ("(cn=\\ff)", None),
        ("(objectClass=THING)", True),
    ],
)  # fmt: skip
def test_three_valued_evaluation(text: str, expected: bool | None) -> None:
    schema = STRICT
    if text.startswith("(ou:dn"):
        schema, expected = Schema(), True
    assert compile_filter(parse_filter(text), schema)(ENTRY) is expected


def test_open_schema_takes_unknown_attributes_as_absent() -> None:
    assert matches(parse_filter("(!(unknown=1))"), ENTRY)
    assert not matches(parse_filter("(unknown=1)"), ENTRY)


def test_default_ordering_compares_numbers_as_numbers_and_text_as_text() -> None:
    entry = make_entry("cn=x", {"number": "9", "text": "beta"})
    assert matches(parse_filter("(number<=10)"), entry)
    assert not matches(parse_filter("(number>=10)"), entry)
    assert matches(parse_filter("(text>=Alpha)"), entry)
    assert matches(parse_filter("(number>=1a)"), entry)


@pytest.mark.parametrize(
    "text", ["", "(", "()", "(cn)", "(cn=a", "(cn=a))", "(&(cn=a)", "(=a)", "(cn=(a)", "(cn=\\4)", "(!)", "(c n=a)",
             "(:=a)", "(:dn:=a)", "(" * 40 + "cn=a" + ")" * 40, "(!" * 40 + "(cn=a)" + ")" * 40, "(cn=a)x"],
)  # fmt: skip
def test_syntax_errors_are_typed(text: str) -> None:
    with pytest.raises(FilterSyntaxError):
        parse_filter(text)


def test_a_bare_item_is_taken_as_ldapsearch_does() -> None:
    assert parse_filter("objectClass=*") == f.Present("objectClass")


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.one_of(
    st.sampled_from(["x", "xy", "xyz", "5", "10"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
)
ITEMS = st.one_of(
    st.builds(f.Equality, NAMES, VALUES),
    st.builds(f.GreaterOrEqual, NAMES, VALUES),
    st.builds(f.LessOrEqual, NAMES, VALUES),
    st.builds(f.Approx, NAMES, VALUES),
    st.builds(f.Present, NAMES),
    st.builds(f.Substrings, NAMES, VALUES, st.lists(VALUES, max_size=2).map(tuple), st.none() | VALUES),
    st.builds(f.Extensible, st.none() | st.just("caseIgnoreMatch"), NAMES, VALUES, st.booleans()),
)
FILTERS = st.recursive(
    ITEMS,
    lambda inner: st.one_of(
        st.builds(f.And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(f.Or, st.lists(inner, max_size=3).map(tuple)),
        st.builds(f.Not, inner),
    ),
    max_leaves=8,
)


@given(FILTERS)
def test_text_and_wire_forms_survive(node: f.Filter) -> None:
    assert parse_filter(format_filter(node)) == node
    request = SearchRequest("o=grid", 2, node, ("cn", "+"), True, 5, 6)
    message = decode_message(encode_message(Message(7, request)))
    assert message == Message(7, request)


def simple(node: f.Filter, entry: Entry) -> bool:
    """What a filter of and/or/not, equality, presence and prefixes means, said again in the plainest way."""
    match node:
        case f.And(parts):
            return all(simple(part, entry) for part in parts)
        case f.Or(parts):
            return any(simple(part, entry) for part in parts)
        case f.Not(part):
            return not simple(part, entry)
        case f.Equality(name, value):
            return value in entry.attributes.get(name, ())
        case f.Present(name):
            return name in entry.attributes
        case f.Substrings(name, initial, (), None):
            return any(value.startswith(initial or "") for value in entry.attributes.get(name, ()))
        case _:
            raise AssertionError(node)


WORDS = st.sampled_from(["x", "xy", "xyz", "z"])
PLAIN = st.recursive(
    st.one_of(st.builds(f.Equality, NAMES, WORDS), st.builds(f.Present, NAMES), st.builds(f.Substrings, NAMES, WORDS)),
    lambda inner: st.one_of(
        st.builds(f.And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(f.Or, st.lists(inner, max_size=3).map(tuple)),
        st.builds(f.Not, inner),
    ),
    max_leaves=10,
)


@given(PLAIN, st.dictionaries(NAMES, st.lists(WORDS, min_size=1, max_size=3).map(tuple)))
def test_agrees_with_a_plain_reading(node: f.Filter, attributes: dict[str, tuple[str, ...]]) -> None:
    entry = make_entry("cn=e", attributes)
    assert matches(node, entry) == simple(node, entry)
