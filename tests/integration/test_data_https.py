"""The HTTPS/WebDAV door of the storage element: real TLS, real proxies, the agent's own session rules."""

from __future__ import annotations

import asyncio
import hashlib
import random
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid

from agents.storage import client
from agents.storage.model import Checksums

LARGE = random.Random(1).randbytes(20_000_003)


def sums(data: bytes) -> Checksums:
    return Checksums(f"{zlib.adler32(data):08x}", hashlib.sha256(data).hexdigest())


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, vos=["cms", "atlas"]) as made:
        for name, vo in (("alice", "cms"), ("carol", "cms"), ("bob", "atlas")):
            made.user(name, vo=vo)
        yield made


async def start(lab: LabGrid, **options: Any) -> Any:
    proxy = lab.user("alice")
    await lab.start("storage", options={"reserve_bytes": 0, **options})
    return await lab.channel("storage", credential=proxy)


async def test_a_large_file_goes_by_the_https_door_and_back(lab: LabGrid, tmp_path: Path) -> None:
    channel = await start(lab)
    source, target = tmp_path / "large", tmp_path / "back"
    source.write_bytes(LARGE)
    moved: list[int] = []
    async with asyncio.timeout(60):
        stored = await client.put_file(channel, source, "cms", name_hint="large", progress=moved.append)
        assert (stored.checksums, sum(moved)) == (sums(LARGE), len(LARGE))
        assert await client.get_file(channel, stored.surl, target, expected=sums(LARGE)) == stored
        assert await client.read_range(channel, stored.surl, 3, 17 << 20) == LARGE[3 : 3 + (17 << 20)]
    assert target.read_bytes() == LARGE
    lines = [line for event in ("storage.put", "storage.get") for line in lab.audit("storage.CERN", event)]
    assert [line["door"] for line in lines] == ["https"] * 3
    assert {line["peer"] for line in lines} == {"/C=XX/O=TestGrid/OU=Users/CN=alice"}
