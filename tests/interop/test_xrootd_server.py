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
from support.servers import server
from support.transfers import Desk
from support.waiting import until
from support.webdav import Door

from agents.storage import client as storage
from agents.transfer.machine import Copied
from fabric.errors import InvalidRequest
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
    try:
        async with server("xrootd", "-c", str(root / "xrootd.cfg"), *as_account, port=port, folder=root):
            yield f"https://localhost:{port}/data", root / "data"
    finally:
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


async def test_the_transfer_agent_copies_to_and_from_a_real_xrootd_server(lab: LabGrid, tmp_path: Path) -> None:
    desk = Desk(lab, tmp_path)
    await desk.start(max_attempts=2)
    lfn = await desk.put("f", data=DATA)
    async with xrootd(lab) as (url, files):
        (file,) = await desk.ended(await desk.submit([lfn], url.replace("https", "davs")))
        assert (file.state, file.reason) == ("FINISHED", ""), file.sentence
        (kept,) = [path for path in files.iterdir() if path.is_file()]
        assert file.surl == f"{url.replace('https', 'davs')}/{kept.name}" and kept.read_bytes() == DATA
        assert (await desk.replicas(lfn))[1:] == [file.surl]
        (again,) = await desk.ended(await desk.submit([file.surl], f"{url.replace('https', 'davs')}/"))
        assert (again.state, again.reason) == ("FINISHED", "ALREADY_THERE")

        (back,) = await desk.ended(await desk.submit([lfn], "RAL", source=url.replace("https", "davs")))
        assert (back.state, back.source) == ("FINISHED", file.surl.rpartition("/data")[0])
        assert await storage.read_range(await desk.element("RAL"), back.surl) == DATA

        # what the server has no more, or other bytes of the same length, is not copied
        kept.write_bytes(DATA[::-1])
        (wrong,) = await desk.ended(await desk.submit([lfn], "CNAF", source=url.replace("https", "davs")))
        assert (wrong.state, wrong.reason) == ("FAILED", "CHECKSUM_MISMATCH")
        kept.unlink()
        (wrong,) = await desk.ended(await desk.submit([lfn], "CNAF", source=url.replace("https", "davs")))
        assert wrong.state == "FAILED" and file.surl in wrong.sentence
        await desk.clean()
        assert await desk.on("CNAF") == [] and not [path for path in files.rglob("*") if path.is_file()]


async def test_what_a_server_of_others_has_of_an_unwanted_copy_is_removed(lab: LabGrid, tmp_path: Path) -> None:
    desk = Desk(lab, tmp_path)
    await desk.start()
    lfn = await desk.put("f", data=DATA)
    async with xrootd(lab) as (url, files):
        reached = desk.stop_at(Copied, kept=False)
        job_id = await desk.submit([lfn], url)
        async with asyncio.timeout(60):
            await reached.wait()
        assert [path.read_bytes() for path in files.iterdir() if path.is_file()] == [DATA]
        await (await desk.transfers()).cancel(job_id)
        await until(lambda: not [path for path in files.iterdir() if path.is_file()], "the removal")
    assert len(await desk.replicas(lfn)) == 1
    for wrong in ("http://localhost/x", "https://me@localhost/x", f"{url}/../x", f"{url}/x?y", f"{url}/ x", "https://"):
        with pytest.raises(InvalidRequest, match="no place for files"):
            await desk.submit([lfn], wrong)


@pytest.fixture
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path_factory.mktemp("lab")) as found:
        yield found
