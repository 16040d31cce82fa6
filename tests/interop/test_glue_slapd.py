"""Both GLUE trees in OpenLDAP's slapd with Debian's glue-schema and here: it takes every entry, and generated searches
give equal entries and result codes. Not compared: ~=, for which slapd compares by sound and we by equality."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.slapd import GLUE_SCHEMA_FILES, SLAPD, ask, running_slapd
from unit.information.test_information_glue2 import records

from agents.information.machine import InformationMachine
from agents.information.model import Publication, Published
from agents.user_interface.information_export import glue_only
from fabric.clock import ManualClock
from fabric.glue2_tree import GlueDirectory
from fabric.glue_schema import GLUE_SCHEMA
from fabric.ldap import Entry, EntryTree, LdapClient, LdapServer, Scope, format_filter, parse_dn
from fabric.ldap import filters as f
from fabric.ldap import protocol as p
from fabric.ldap.filters import ANY_ENTRY

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        SLAPD is None or not all(path.exists() for path in GLUE_SCHEMA_FILES),
        reason="Debian packages slapd and glue-schema are not installed",
    ),
]
CONFIGURATION = "".join(f"include {path}\n" for path in (Path("/etc/ldap/schema/core.schema"), *GLUE_SCHEMA_FILES))
SEARCHES = 600
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
NONSENSE = ("", " ", "zzz", "1.5", "-1", "TRUE", "99999999999999999999", "*", "a\\b")


def trees() -> dict[str, list[Entry]]:
    """The entries of three sites in both renderings, by suffix."""
    machine = InformationMachine("top", "", NOW)
    for number, site in enumerate(("CERN", "RAL", "NIKHEF")):
        machine.open_stream(site, site, 1, NOW)
        changed = tuple(map(Published.whole, records(free=number, site=site)))
        assert machine.publish(site, 1, Publication(1, snapshot=True, changed=changed), NOW).rejected == ()
    directory = GlueDirectory(machine.tree, ManualClock(NOW))
    found = {
        suffix: [e for e in directory.search(parse_dn(suffix), Scope.SUBTREE, ANY_ENTRY) if e is not None]
        for suffix in ("o=grid", "o=glue")
    }
    return {suffix: list(glue_only(entries)) for suffix, entries in found.items()}


class Searches:
    """Searches made of what is in the entries, sometimes bent."""

    def __init__(self, seed: int, entries: list[Entry]) -> None:
        self._generator = random.Random(seed)
        self._entries = entries
        self._pairs = [
            (name, value) for entry in entries for name, values in entry.attributes.items() for value in values
        ]

    def request(self) -> p.SearchRequest:
        generator = self._generator
        base = str(generator.choice(self._entries).dn) if generator.random() < 0.4 else str(self._entries[0].dn)
        if generator.random() < 0.05:
            base = "cn=missing," + base
        attributes = generator.choice([(), *[("1.1",)] * 5, ("*",), (generator.choice(self._pairs)[0].upper(),)])
        scope = generator.choice([0, 1, 2, 2, 2, 3])
        return p.SearchRequest(base, scope, self._filter(3), attributes, generator.random() < 0.1)

    def _filter(self, depth: int) -> f.Filter:
        generator = self._generator
        if depth == 0 or generator.random() < 0.4:
            return self._item()
        kind = generator.choice(["and", "or", "not"])
        if kind == "not":
            return f.Not(self._filter(depth - 1))
        parts = tuple(self._filter(depth - 1) for _ in range(generator.randint(1, 3)))
        return f.And(parts) if kind == "and" else f.Or(parts)

    def _item(self) -> f.Filter:
        generator = self._generator
        name, value = generator.choice(self._pairs)
        if generator.random() < 0.1:
            value = generator.choice(NONSENSE)
        elif generator.random() < 0.2:
            value = generator.choice([value.upper(), value.lower(), f" {value} ", value[:-1]])
        if generator.random() < 0.05:
            name = "unknownAttribute"
        match generator.choice(["equal", "equal", "present", "sub", "ge", "le", "extensible"]):
            case "equal":
                return f.Equality(name, value)
            case "present":
                return f.Present(name)
            case "ge":
                return f.GreaterOrEqual(name, value)
            case "le":
                return f.LessOrEqual(name, value)
            case "sub":
                end = generator.randint(0, len(value))
                first, last = value[:end].strip() or None, value[end:].strip() or None
                return f.Present(name) if first is None and last is None else f.Substrings(name, first, (), last)
            case _:
                return f.Extensible(None, name, value, generator.random() < 0.3)


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[int, int, dict[str, list[Entry]]]]:
    """The port of slapd and ours, and what both hold."""
    held = trees()
    tree = EntryTree(list(held), schema=GLUE_SCHEMA, indexed=["GlueCEUniqueID", "GLUE2ServiceID"])
    for entry in (entry for entries in held.values() for entry in entries):
        tree.add(entry)
    server = LdapServer(tree, schema=GLUE_SCHEMA)
    await server.start()
    async with running_slapd(tmp_path, CONFIGURATION, held) as port:
        yield port, server.port, held
    await server.close()


@pytest.mark.parametrize("suffix", ["o=grid", "o=glue"])
async def test_generated_searches_agree(servers: tuple[int, int, dict[str, list[Entry]]], suffix: str) -> None:
    port, our_port, held = servers
    searches = Searches(7, held[suffix])
    differences: list[str] = []
    answers = 0
    ours, theirs = [await LdapClient.connect("127.0.0.1", number) for number in (our_port, port)]
    async with ours, theirs:
        for _ in range(SEARCHES):
            request = searches.request()
            one, other = await ask(ours, request), await ask(theirs, request)
            answers += len(one[2])
            if one != other:
                here, there = set(one[2]), set(other[2])
                detail = f"codes {one[:2]} {other[:2]}, only here {here - there}, only there {there - here}"
                where = f"at {request.base!r} scope {request.scope}"
                differences.append(f"{format_filter(request.filter)} {where}: {detail}")
    assert not differences, f"{len(differences)} of {SEARCHES}:\n" + "\n".join(differences[:12])
    assert answers > SEARCHES
