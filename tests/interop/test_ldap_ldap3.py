"""The ldap3 library against our server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from unit.ldap.ldap_trees import SCHEMA, grid_tree

from fabric.ldap import LdapServer

ldap3: Any = pytest.importorskip("ldap3")


@pytest.fixture
async def server() -> AsyncIterator[LdapServer]:
    server = LdapServer(grid_tree(3, 10), schema=SCHEMA)
    await server.start()
    yield server
    await server.close()


async def test_everything_a_client_does_by_default(server: LdapServer) -> None:
    def use() -> None:
        known = ldap3.Server("127.0.0.1", server.port, get_info=ldap3.ALL)
        with ldap3.Connection(known, auto_bind=True, receive_timeout=10) as connection:
            assert known.info.naming_contexts == ["o=grid"]
            assert "GlueCEUniqueID" in known.schema.attribute_types
            assert connection.search("o=grid", "(objectClass=GlueCE)", attributes=["*", "+"])
            assert len(connection.entries) == 30
            first = connection.entries[0]
            assert first.GlueCEStateFreeJobSlots.value in (0, "0")
            assert "producer" in first.entry_attributes
            connection.search("mds-vo-name=SITE1,mds-vo-name=local,o=grid", "(objectClass=*)", ldap3.LEVEL)
            assert len(connection.response) == 10
            connection.search("o=grid", "(objectClass=*)", ldap3.BASE, attributes="1.1")
            assert connection.response[0]["attributes"] == {}
            found = connection.extend.standard.paged_search(
                "o=grid", "(objectClass=GlueCE)", paged_size=7, generator=True
            )
            assert sum(1 for item in found if item["type"] == "searchResEntry") == 30
            connection.search("o=grid", "(objectClass=*)", size_limit=5)
            assert connection.result["result"] == 4
            assert connection.compare("o=grid", "o", "GRID")
            assert not connection.add("o=new", ["organization"], {"o": "new"}, controls=None)
            assert connection.result["result"] == 53
            assert connection.extend.standard.who_am_i() in (None, "")

    await asyncio.to_thread(use)


async def test_many_searches_under_way_at_once(server: LdapServer) -> None:
    def use() -> None:
        known = ldap3.Server("127.0.0.1", server.port, get_info=ldap3.NONE)
        with ldap3.Connection(known, auto_bind=True, client_strategy=ldap3.ASYNC) as connection:
            sent = [connection.search("o=grid", f"(GlueCEStateFreeJobSlots={n})") for n in range(10)]
            for message_id in reversed(sent):
                response, result = connection.get_response(message_id, timeout=10)
                assert result["result"] == 0
                assert len(response) == 3

    await asyncio.to_thread(use)
