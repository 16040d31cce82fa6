"""A storage element killed at every step of a put and of a removal: whole or not at all, and the repeat succeeds."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.grid import LabGrid
from support.webdav import Door

from agents.storage import client
from agents.storage.failpoints import NAMES
from fabric import failpoints
from fabric.errors import GridError, NotFound
from fabric.tls_door import TlsClosed

ROOT = Path(__file__).resolve().parents[2]
DATA = random.Random(2).randbytes(1_500_000)


@asynccontextmanager
async def process(lab: LabGrid, failpoint: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """The storage element of CERN in a process of its own, its port open; killed at the end."""
    name = lab.plan("storage")
    settings = lab.directory / "settings.json"
    settings.write_text(json.dumps(lab.settings(name, options={"reserve_bytes": 0})))
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "fabric.agent",
        str(settings),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto' / 'gen'}", failpoints.VARIABLE: failpoint},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stdout is not None
        assert json.loads(await running.stdout.readline())["ready"] == name
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


def on_disk(lab: LabGrid) -> list[str]:
    root = lab.directory / "agents" / "storage.CERN" / "pool"
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.mark.parametrize("failpoint", [name for name in NAMES if ".put." in name])
async def test_killed_in_a_put(tmp_path: Path, failpoint: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    async with LabGrid(tmp_path) as lab:
        proxy = lab.user("alice")
        async with process(lab, failpoint) as dying:
            channel = await lab.channel("storage", credential=proxy)
            with pytest.raises(GridError):
                await client.put_file(channel, source, "cms", put_id="once", patience_s=0)
            assert await dying.wait() == -9
        before = on_disk(lab)
        async with process(lab):
            listed = [file async for file in client.list_files(channel, "cms")]
            kept = failpoint == "storage.put.committed"
            assert len(listed) == kept
            ids = [client.parse_surl(file.surl).file_id for file in listed]
            assert on_disk(lab) == [f"data/{i[:2]}/{i[2:4]}/{i}" for i in ids], f"before the restart: {before}"
            used = [vo for vo in (await client.space(channel)).vos if vo.vo == "cms"]
            assert [(vo.used_bytes, vo.reserved_bytes) for vo in used] == [(len(DATA) * kept, 0)]
            stored = await client.put_file(channel, source, "cms", put_id="once")
            assert not kept or stored.surl == listed[0].surl
            assert (await client.get_file(channel, stored.surl, target)).checksums == stored.checksums
            assert target.read_bytes() == DATA
            assert len([file async for file in client.list_files(channel, "cms")]) == 1


@pytest.mark.parametrize("failpoint", ["storage.put.linked", "storage.put.committed"])
async def test_killed_while_a_file_is_replaced_the_name_has_the_old_one_or_the_new(
    tmp_path: Path, failpoint: str
) -> None:
    async with LabGrid(tmp_path) as lab:
        proxy = lab.user("alice")

        async def ask(head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
            door = await Door.open(lab, proxy)
            try:
                return await door.ask(head, body)
            finally:
                door.stream.close()

        put = f"PUT /cms/a HTTP/1.1\nContent-Length: {len(DATA)}"
        async with process(lab):
            assert (await ask(put, DATA))[0] == 201
        async with process(lab, failpoint) as dying:
            with pytest.raises((TlsClosed, AssertionError)):
                await ask(put, DATA[::-1])
            assert await dying.wait() == -9
        async with process(lab):
            kept = DATA[::-1] if failpoint == "storage.put.committed" else DATA
            assert (await ask("GET /cms/a HTTP/1.1"))[2] == kept
            channel = await lab.channel("storage", credential=proxy)
            assert len([file async for file in client.list_files(channel, "cms")]) == 1
            assert len(on_disk(lab)) == 1
            assert (await ask(put, DATA))[0] == 204


async def test_killed_in_a_removal(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    async with LabGrid(tmp_path) as lab:
        proxy = lab.user("alice")
        async with process(lab, "storage.remove.committed") as dying:
            channel = await lab.channel("storage", credential=proxy)
            stored = await client.put_file(channel, source, "cms")
            with pytest.raises(GridError):
                await client.remove(channel, stored.surl)
            assert await dying.wait() == -9
        assert len(on_disk(lab)) >= 1
        async with process(lab):
            with pytest.raises(NotFound):
                await client.stat(channel, stored.surl)
            assert on_disk(lab) == []
            await client.remove(channel, stored.surl)


async def test_a_put_survives_the_restart_of_the_storage_element(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    async with LabGrid(tmp_path) as lab:
        proxy = lab.user("alice")
        async with process(lab, "storage.put.linked") as dying:
            channel = await lab.channel("storage", credential=proxy)
            putting = asyncio.create_task(client.put_file(channel, source, "cms", patience_s=30))
            await dying.wait()
        async with process(lab):
            stored = await putting
            assert [file.surl async for file in client.list_files(channel, "cms")] == [stored.surl]
