"""The same entries in OpenLDAP's slapd and here: generated searches must give equal results and result codes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.slapd import SLAPD, ask, running_slapd

from fabric.ldap import Entry, EntryTree, LdapClient, LdapServer, Schema, format_filter, make_entry, parse_dn
from fabric.ldap import filters as f
from fabric.ldap import protocol as p
from fabric.ldap.schema import CASE_EXACT, DISTINGUISHED_NAME, GENERALIZED_TIME, INTEGER, AttributeType, ObjectClass

pytestmark = pytest.mark.skipif(SLAPD is None, reason="Debian package slapd is not installed")

SEARCHES = 400

CONFIGURATION = """
include /etc/ldap/schema/core.schema
attributetype ( 1.1.1.1 NAME 'tText' EQUALITY caseIgnoreMatch ORDERING caseIgnoreOrderingMatch
  SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.1.1.2 NAME 'tInteger' EQUALITY integerMatch ORDERING integerOrderingMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 )
attributetype ( 1.1.1.3 NAME 'tExact' EQUALITY caseExactMatch SUBSTR caseExactSubstringsMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.1.1.4 NAME 'tName' EQUALITY distinguishedNameMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.12 )
attributetype ( 1.1.1.5 NAME 'tTime' EQUALITY generalizedTimeMatch ORDERING generalizedTimeOrderingMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.24 )
attributetype ( 1.1.1.6 NAME 'tFlat' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
objectclass ( 1.1.2.1 NAME 'tThing' SUP top STRUCTURAL MUST cn
  MAY ( tText $ tInteger $ tExact $ tName $ tTime $ tFlat ) )
"""

SCHEMA = Schema(
    (
        AttributeType("tText", numbers_in_text=False),
        AttributeType("tInteger", INTEGER, substrings=False),
        AttributeType("tExact", CASE_EXACT, ordering=False),
        AttributeType("tName", DISTINGUISHED_NAME, ordering=False, substrings=False),
        AttributeType("tTime", GENERALIZED_TIME, substrings=False),
        AttributeType("tFlat", ordering=False, substrings=False),
        AttributeType("cn", ordering=False),
        AttributeType("o", ordering=False),
    ),
    strict=True,
    object_classes=(ObjectClass("tThing"), ObjectClass("organization")),
)

TEXTS = [
    "alpha",
    "Alpha  Beta",
    "beta",
    "a",
    "b,c",
    "x=y",
    "gam(ma)",
    "a*b",
    "10",
    "9",
    "\u00c5ngstr\u00f6m",
    "back\\slash",
    "alpha beta gamma",
]
VALUES = {
    "tText": TEXTS,
    "tExact": TEXTS,
    "tFlat": TEXTS,
    "cn": ["one", "two", "Three Four"],
    "tInteger": ["0", "7", "-7", "10", "2147483648", "99999999999999999999"],
    "tName": ["o=grid", "CN=one, O=Grid", "cn=a\\,b,o=grid"],
    "tTime": ["20260101120000Z", "20251231235959Z", "20260101120000.5Z"],
}
NONSENSE = ["", " ", "zzz", "not a number", "1.5", "TRUE", "20261301000000Z"]


def make_entries(generator: random.Random) -> list[Entry]:
    entries = [make_entry("o=grid", {"objectClass": ("top", "organization"), "o": "grid"})]
    names = [entries[0].dn]
    for number in range(60):
        parent = generator.choice(names[:12])
        attributes: dict[str, str | int | tuple[str, ...] | list[str]] = {
            "objectClass": ("top", "tThing"),
            "cn": f"{generator.choice(VALUES['cn'])} {number}",
        }
        for name, values in VALUES.items():
            if name != "cn" and generator.random() < 0.5:
                attributes[name] = tuple(generator.sample(values, generator.randint(1, 2)))
        dn = parent.child("cn", str(attributes["cn"]))
        names.append(dn)
        entries.append(make_entry(dn, attributes))
    return entries


def make_item(generator: random.Random) -> f.Filter:
    name = generator.choice([*VALUES, "objectClass", "unknownAttribute"])
    values = VALUES.get(name, ["tThing", "top", "organization", "nothing"])
    value = generator.choice(values if generator.random() < 0.8 else NONSENSE)
    if generator.random() < 0.3:
        value = generator.choice([value.upper(), value.lower(), f" {value} "])
    kind = generator.choice(["equal", "equal", "present", "sub", "sub", "ge", "le", "extensible"])
    match kind:
        case "equal":
            return f.Equality(name, value)
        case "present":
            return f.Present(name)
        case "ge":
            return f.GreaterOrEqual(name, value)
        case "le":
            return f.LessOrEqual(name, value)
        case "sub":
            start, end = sorted((generator.randint(0, len(value)), generator.randint(0, len(value))))
            pieces = (value[:start].strip() or None, value[start:end].strip(), value[end:].strip() or None)
            middle = (pieces[1],) if pieces[1] else ()
            if pieces[0] is None and pieces[2] is None and not middle:
                return f.Present(name)
            return f.Substrings(name, pieces[0], middle, pieces[2])
        case _:
            rule = (
                generator.choice([None, "caseIgnoreMatch", "caseExactMatch"])
                if name in ("tText", "tExact", "tFlat", "cn")
                else None
            )
            return f.Extensible(rule, name, value, generator.random() < 0.3)


def make_filter(generator: random.Random, depth: int = 3) -> f.Filter:
    if depth == 0 or generator.random() < 0.4:
        return make_item(generator)
    kind = generator.choice(["and", "or", "not"])
    if kind == "not":
        return f.Not(make_filter(generator, depth - 1))
    parts = tuple(make_filter(generator, depth - 1) for _ in range(generator.randint(1, 3)))
    return f.And(parts) if kind == "and" else f.Or(parts)


@pytest.fixture
async def slapd(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a slapd that holds the entries."""
    async with running_slapd(tmp_path, CONFIGURATION, {"o=grid": make_entries(random.Random(1))}) as port:
        yield port


async def test_generated_searches_agree(slapd: int) -> None:
    entries = make_entries(random.Random(1))
    tree = EntryTree(["o=grid"], schema=SCHEMA, indexed=["tText", "tInteger"])
    for entry in entries:
        tree.add(entry)
    server = LdapServer(tree, schema=SCHEMA)
    await server.start()
    generator = random.Random(2)
    ours = await LdapClient.connect("127.0.0.1", server.port)
    theirs = await LdapClient.connect("127.0.0.1", slapd)
    differences: list[str] = []
    answers = 0
    for _ in range(SEARCHES):
        node = make_filter(generator)
        base = str(generator.choice(entries).dn) if generator.random() < 0.5 else "o=grid"
        if generator.random() < 0.05:
            base = "cn=missing," + base
        attributes = generator.choice([(), ("1.1",), ("TTEXT", "cn"), ("*",)])
        request = p.SearchRequest(
            base, generator.choice([0, 1, 2, 2, 2, 3]), node, attributes, generator.random() < 0.1
        )
        one, other = await ask(ours, request), await ask(theirs, request)
        answers += len(one[2])
        if one != other:
            here, there = set(one[2]), set(other[2])
            detail = f"codes {one[:2]} {other[:2]}, only here {here - there}, only in slapd {there - here}"
            differences.append(f"{format_filter(node)} at {base!r} scope {request.scope}: {detail}")
    await ours.close()
    await theirs.close()
    await server.close()
    assert not differences, f"{len(differences)} of {SEARCHES}:\n" + "\n".join(differences[:15])
    assert answers > SEARCHES


async def test_referrals_for_names_of_other_servers_agree(tmp_path: Path) -> None:
    elsewhere = "ldap://top.example.org:2170"
    entry = make_entry("o=grid", {"objectClass": ("organization",), "o": "grid"})
    tree = EntryTree(["o=grid"])
    tree.add(entry)
    server = LdapServer(tree, refer=lambda dn: () if dn.is_within(entry.dn) else (elsewhere,))
    await server.start()
    configuration = f"include /etc/ldap/schema/core.schema\nreferral {elsewhere}"
    async with (
        running_slapd(tmp_path, configuration, {"o=grid": [entry]}) as port,
        await LdapClient.connect("127.0.0.1", server.port) as ours,
        await LdapClient.connect("127.0.0.1", port) as theirs,
    ):
        manage = p.Control(p.OID_MANAGE_DSA_IT, True)
        for base in ("o=elsewhere", "cn=a b,o=else  where", "cn=missing,o=grid"):
            questions: list[p.Operation] = [p.SearchRequest(base, scope, f.ANY_ENTRY) for scope in range(4)]
            for question in [*questions, p.CompareRequest(base, "o", "x")]:
                for controls in ((), (manage,)):
                    found: list[p.Result] = []
                    for client in (ours, theirs):
                        client.send(question, controls)
                        answer = (await client.receive()).operation
                        assert isinstance(answer, p.Result)
                        found.append(answer)
                    here, there = found
                    assert (here.code, here.referrals) == (there.code, there.referrals), question
                    assert here.code == (32 if base.endswith("o=grid") else 10)
    await server.close()


SPECIAL = [
    'a,b=c+d;e<f>g"h\\i',
    "#hash",
    " blank before and after ",
    "two  blanks",
    "x" * 200,  # back-mdb keeps a name twice in a key of 511 bytes; longer ones: test_information_bad_input.py
    "(star*)",
    "null\\00 is four characters",
    "Ångström",
    "a/b|c&d!e~f",
]


def spellings(value: str) -> list[str]:
    """One name as clients write it: as we do, every byte as hex, upper case, blanks around the parts; and wrong."""
    name = make_entry("o=grid", {"o": "grid"}).dn.child("cn", value)
    written = str(name).removesuffix(",o=grid")
    octets = "".join(f"\\{byte:02x}" for byte in value.encode())
    return [
        f"{written},o=grid",
        f"cn={octets},o=grid",
        f"CN={octets.upper()},O=GRID",
        f"{written} , o = grid",
        f"2.5.4.3={octets},o=grid",
        f"cn=below,{written},o=grid",
        f"{written},o=elsewhere",
        f"{written}",
        f"{written},,o=grid",
        f"cn={value},o=grid",
    ]


async def test_names_with_special_characters_agree(tmp_path: Path) -> None:
    """Each by its name in many spellings, also wrong ones: the same entries, result codes and matched names.

    Known differences: a search below the root (`""`) finds all suffixes here; `o=` is a name without a value;
    `;` between parts and values in quotes are forms of LDAPv2, which RFC 4514 has no more.
    """

    async def answer(client: LdapClient, request: p.SearchRequest) -> object:
        code, matched, entries = await ask(client, request)
        return code, parse_dn(matched).key, entries

    entries = [make_entry("o=grid", {"objectClass": ("top", "organization"), "o": "grid"})]
    tree = EntryTree(["o=grid"], schema=SCHEMA)
    for value in SPECIAL:
        entries.append(make_entry(entries[0].dn.child("cn", value), {"objectClass": ("top", "tThing"), "cn": value}))
    for entry in entries:
        tree.add(entry)
    server = LdapServer(tree, schema=SCHEMA)
    await server.start()
    differences: list[str] = []
    async with (
        running_slapd(tmp_path, CONFIGURATION, {"o=grid": entries}) as port,
        await LdapClient.connect("127.0.0.1", server.port) as ours,
        await LdapClient.connect("127.0.0.1", port) as theirs,
    ):
        wrong = ["o", "=grid", "o=grid,", ",o=grid", "o=grid\\", "cn=#zz,o=grid", "cn=#0401,o=grid", "o=grid+"]
        for base in [*wrong, *(text for value in SPECIAL for text in spellings(value))]:
            for scope in (0, 2):
                request = p.SearchRequest(base, scope, f.Equality("objectClass", "tThing"), ("cn",))
                one, other = await answer(ours, request), await answer(theirs, request)
                if one != other:
                    differences.append(f"{base[:60]!r} scope {scope}: {str(one)[:150]} there {str(other)[:150]}")
        for value in SPECIAL:
            request = p.SearchRequest("o=grid", 2, f.Equality("cn", value), ("cn",))
            one, other = await ask(ours, request), await ask(theirs, request)
            assert len(one[2]) == 1
            if one != other:
                differences.append(f"filter {value[:60]!r}: {str(one)[:150]} there {str(other)[:150]}")
    await server.close()
    assert not differences, f"{len(differences)}:\n" + "\n".join(differences)
