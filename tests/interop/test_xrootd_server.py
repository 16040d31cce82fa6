"""Third-party copies to and from a real XRootD server's HTTPS door (Debian's xrootd-server)."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.grid import LabGrid, free_port
from support.waiting import until
from support.webdav import Door

from fabric.rpc.delegation import delegate

DATA = random.Random(8).randbytes(3_000_017)
ACCOUNT = "nobody"
pytestmark = pytest.mark.skipif(shutil.which("xrootd") is None, reason="needs the package xrootd-server")


@asynccontextmanager
async def xrootd(lab: LabGrid) -> AsyncIterator[tuple[str, Path]]:
    """A server that everybody whose certificate is good may write to: its URL, and where its files lie."""
    root, port = Path(tempfile.mkdtemp(prefix="xrootd-", dir="/var/tmp")), free_port()  # its account must reach it
    root.chmod(0o755)
    (root / "data").mkdir()
    shutil.copytree(lab.certificates, root / "certificates")
    credential = lab.service("storage", "xrootd")
    credential.save(root / "host.pem")
    (root / "xrootd.cfg").write_text(
        f"all.export /data\noss.localroot {root}\nall.adminpath {root}\nall.pidpath {root}\n"
        f"xrd.port {free_port()}\nxrd.protocol XrdHttp:{port} libXrdHttp.so\n"
        f"xrd.tls {root}/host.pem {root}/host.pem\nxrd.tlsca certdir {root}/certificates\n"
        "xrootd.chksum adler32\n"
    )
    as_account: list[str] = []
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            shutil.chown(path, ACCOUNT)
        as_account = ["-R", ACCOUNT]
    with open(root / "said", "wb") as said:
        process = await asyncio.create_subprocess_exec(
            "xrootd", "-c", str(root / "xrootd.cfg"), *as_account, cwd=root, stdout=said, stderr=said
        )

    async def answers() -> bool:
        assert process.returncode is None, (root / "said").read_text()[-2000:]
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(answers, "the XRootD server")
        yield f"https://localhost:{port}/data", root / "data"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        shutil.rmtree(root)


async def test_copies_go_to_and_come_from_a_real_xrootd_server(lab: LabGrid) -> None:
    await lab.start("storage", options={"reserve_bytes": 0})
    alice = lab.user("alice")
    async with xrootd(lab) as (url, files):
        door = await Door.open(lab, alice)
        assert (await door.ask(f"PUT /cms/a HTTP/1.1\nContent-Length: {len(DATA)}", DATA))[0] == 201
        await delegate(await lab.channel("storage", credential=alice), alice)
        assert await door.copy(f"COPY /cms/a HTTP/1.1\nDestination: {url}/a") == "success: Created"
        assert (files / "a").read_bytes() == DATA
        assert await door.copy(f"COPY /cms/b HTTP/1.1\nSource: {url}/a") == "success: Created"
        assert (await door.ask("GET /cms/b HTTP/1.1"))[2] == DATA
        status, _, said = await door.ask(f"COPY /cms/c HTTP/1.1\nSource: {url}/missing")
        assert status >= 400 and f"{url}/missing".encode() in said  # XRootD 5.5 says 500
        assert (await door.ask("HEAD /cms/c HTTP/1.1"))[0] == 404


@pytest.fixture
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path_factory.mktemp("lab")) as found:
        yield found
