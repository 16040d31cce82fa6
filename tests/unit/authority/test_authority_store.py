"""A store from an older version is read as it was meant."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from agents.authority import store as rows
from agents.authority.store import AuthorityRow
from fabric.store import Store


async def test_authorities_from_before_they_had_addresses_have_none(tmp_path: Path) -> None:
    path = tmp_path / "authority.db"
    store = Store(path, rows.metadata)
    known = AuthorityRow("Their CA", "", True, b"certificate", "policy", b"list")
    await store.write(lambda connection: rows.keep_authority(connection, known))
    await store.close()
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE authorities DROP COLUMN crl_urls")
    store = Store(path, rows.metadata, rows.MIGRATIONS)
    assert await store.read(rows.all_authorities) == [known]
    await store.close()
