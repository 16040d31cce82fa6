"""What `grid data` does, composed of the two clients: put, replicate, read anywhere, remove; and repeated after
failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.grid import LabGrid

from agents.catalog import client as catalog
from agents.storage import client as storage
from fabric.errors import AlreadyExists, NotFound
from fabric.rpc.delegation import delegate

LFN = "/grid/cms/run1/events.root"
DATA = bytes(range(256)) * 5000


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as made:
        made.user("alice")
        await made.start("catalog")
        for site in ("CERN", "RAL"):
            await made.start("storage", site=site, options={"reserve_bytes": 0})
        yield made


async def test_put_register_replicate_read_remove(lab: LabGrid, tmp_path: Path) -> None:
    proxy = lab.user("alice")
    names = await lab.channel("catalog", credential=proxy)
    cern = await lab.channel("storage", credential=proxy)
    ral = await lab.channel("storage", site="RAL", credential=proxy)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    put_id, guid = storage.new_put_id(), catalog.new_guid()

    for _ in range(2):  # the whole of it, twice
        stored = await storage.put_file(cern, source, "cms", name_hint=LFN, put_id=put_id)
        content = catalog.Content(stored.size_bytes, stored.checksums.adler32, stored.checksums.sha256)
        await catalog.register(names, LFN, guid, content, surl=stored.surl)
    await delegate(ral, proxy)
    for _ in range(2):
        copied = await storage.copy(ral, stored.surl, "cms", expected=stored.checksums, put_id=f"{put_id}-ral")
        await catalog.add_replica(names, LFN, copied.surl, copied.size_bytes, copied.checksums.adler32)
    entry = await catalog.replicas(names, LFN)
    assert [replica.surl for replica in entry.replicas] == [stored.surl, copied.surl]
    assert entry.content == content

    for replica in entry.replicas:
        surl = storage.parse_surl(replica.surl)
        channel = await lab.channels.get(surl.rpc_host, surl.port, proxy)
        await storage.get_file(channel, replica.surl, target, expected=stored.checksums)
        assert target.read_bytes() == DATA

    for _ in range(2):
        for replica in entry.replicas:
            surl = storage.parse_surl(replica.surl)
            await storage.remove(await lab.channels.get(surl.rpc_host, surl.port, proxy), replica.surl)
            if _ == 0:
                await catalog.remove_replica(names, LFN, replica.surl)
        await catalog.remove(names, LFN, missing_ok=True)
    for channel in (cern, ral):
        assert [file async for file in storage.list_files(channel, "cms")] == []
    with pytest.raises(NotFound):
        await catalog.replicas(names, LFN)


async def test_a_name_that_is_taken_leaves_no_dark_copy(lab: LabGrid, tmp_path: Path) -> None:
    proxy = lab.user("alice")
    names = await lab.channel("catalog", credential=proxy)
    cern = await lab.channel("storage", credential=proxy)
    source = tmp_path / "source"
    source.write_bytes(DATA)
    first = await storage.put_file(cern, source, "cms")
    content = catalog.Content(first.size_bytes, first.checksums.adler32, first.checksums.sha256)
    await catalog.register(names, LFN, catalog.new_guid(), content, surl=first.surl)
    second = await storage.put_file(cern, source, "cms")
    with pytest.raises(AlreadyExists):
        await catalog.register(names, LFN, catalog.new_guid(), content, surl=second.surl)
    await storage.remove(cern, second.surl)
    assert [file.surl async for file in storage.list_files(cern, "cms")] == [first.surl]
