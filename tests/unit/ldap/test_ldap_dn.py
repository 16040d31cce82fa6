from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.ldap import Dn, DnError, parse_dn


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("o=grid", "O=Grid"),
        ("mds-vo-name=CERN,mds-vo-name=local,o=grid", "Mds-Vo-Name = cern , mds-vo-name=LOCAL,o=grid"),
        ("cn=a\\,b,o=grid", "cn=a\\2Cb,o=grid"),
        ("cn=a+ou=b,o=grid", "ou=B+cn=A,o=grid"),
        ("cn=two  spaces,o=grid", "cn=two spaces,o=grid"),
        ("organizationName=grid", "2.5.4.10=grid"),
        ("cn=Stra\u00dfe", "cn=STRASSE"),
        ("cn=#0403616263", "cn=abc"),
        ("OID.2.5.4.3=x", "cn=x"),
    ],
)
def test_equal_names(one: str, other: str) -> None:
    assert parse_dn(one) == parse_dn(other)
    assert hash(parse_dn(one)) == hash(parse_dn(other))


@pytest.mark.parametrize(
    "text",
    ["grid", "=grid", "o=grid,", "o=grid,,c=ch", "cn=a\\zz", "cn=a\\", 'cn="a"', "cn=a;b", "cn=#04", "1cn=a", "cn=\\ff",
     "o=\udcff", "cn=" + "x" * 20_000, ",".join(["cn=a"] * 100)],
)  # fmt: skip
def test_bad_names(text: str) -> None:
    with pytest.raises(DnError):
        parse_dn(text)


def test_empty_name_is_the_root() -> None:
    assert parse_dn("") == parse_dn("  ")
    assert len(parse_dn("")) == 0
    assert parse_dn("o=grid").parent == parse_dn("")


def test_within() -> None:
    site = parse_dn("mds-vo-name=CERN,o=grid")
    assert site.is_within(parse_dn("O=GRID"))
    assert site.is_within(site)
    assert site.is_within(parse_dn(""))
    assert not site.is_within(parse_dn("mds-vo-name=RAL,o=grid"))
    assert not parse_dn("o=grid").is_within(site)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, max_size=4))
def test_any_value_survives(values: list[str]) -> None:
    dn = Dn(tuple((("cn", value),) for value in values))
    again = parse_dn(str(dn))
    assert again.rdns == dn.rdns
    assert again == dn


@given(st.text(max_size=60))
def test_any_text_parses_or_raises_dn_error(text: str) -> None:
    try:
        dn = parse_dn(text)
    except DnError:
        return
    assert parse_dn(str(dn)) == dn
