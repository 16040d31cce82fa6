"""The storage element's HTTPS door with the field's own clients: curl, davix, gfal2, xrdcp; proxies of Globus too."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.grid import LabGrid

from agents.storage import client

DATA = random.Random(7).randbytes(3_000_017)
TOOLS = {"curl": "curl", "davix": "davix-get", "gfal2-util-scripts": "gfal-copy", "xrootd-client": "xrdcp"}
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS.values())), reason=f"needs the packages {' '.join(TOOLS)}"
)


class Door:
    """A storage element, and tools run as Alice."""

    def __init__(self, lab: LabGrid, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.url = f"davs://localhost:{lab.port('storage.CERN', 'http')}"
        self.https = self.url.replace("davs", "https", 1)
        self.proxy = folder / "proxy.pem"
        lab.user("alice").save(self.proxy)
        self.source = folder / "events.root"
        self.source.write_bytes(DATA)

    async def run(self, *command: str, proxy: Path | None = None) -> tuple[int, str]:
        """Exit code, and what it said."""
        shown = str(proxy or self.proxy)
        environ = {
            **os.environ,
            "X509_USER_PROXY": shown,
            "X509_CERT_DIR": str(self.lab.certificates),
            "GFAL_PYTHONBIN": "/usr/bin/python3",
            "HOME": str(self.folder),
        }
        arguments = list(command)
        if arguments[0] == "curl":
            arguments[1:1] = ["-sS", "--capath", environ["X509_CERT_DIR"], "--cert", shown, "--key", shown]
        elif arguments[0].startswith("davix"):
            arguments[1:1] = ["--capath", environ["X509_CERT_DIR"], "-E", shown]
        process = await asyncio.create_subprocess_exec(
            *arguments, env=environ, cwd=self.folder, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, said.decode("utf-8", "replace")

    async def good(self, *command: str) -> str:
        """What a command that has to succeed said."""
        code, said = await self.run(*command)
        assert code == 0, (command, said)
        return said

    def came_back(self, name: str) -> bool:
        return (self.folder / name).read_bytes() == DATA


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with LabGrid(tmp_path / "lab", vos=["cms", "atlas"], key_type="rsa-2048") as lab:  # for Globus
        for name, vo in (("alice", "cms"), ("bob", "atlas")):
            lab.user(name, vo=vo)
        await lab.start("storage", options={"reserve_bytes": 0, "quota_bytes": 20_000_000})
        (tmp_path / "work").mkdir()
        yield Door(lab, tmp_path / "work")


async def test_curl(door: Door) -> None:
    said = await door.good("curl", "-i", "-T", "events.root", f"{door.https}/cms/e")
    assert "201 Created" in said and f"adler32={zlib.adler32(DATA):08x}" in said
    await door.good("curl", "-o", "back", f"{door.https}/cms/e")
    assert door.came_back("back")
    await door.good("curl", "-r", "1000000-1999999", "-o", "part", f"{door.https}/cms/e")
    assert (door.folder / "part").read_bytes() == DATA[1_000_000:2_000_000]
    said = await door.good("curl", "-i", "-X", "PROPFIND", "-H", "Depth: 1", f"{door.https}/cms/")
    assert f"<D:getcontentlength>{len(DATA)}</D:getcontentlength>" in said and "/cms/e</D:href>" in said
    said = await door.good("curl", "-i", f"{door.https}/atlas/x")
    assert "403 Forbidden" in said and "CN=alice is of VO cms and may not use the space of VO atlas" in said
    (door.folder / "huge").touch()
    os.truncate(door.folder / "huge", 30_000_000)
    said = await door.good("curl", "-i", "-T", "huge", f"{door.https}/cms/huge")
    assert "507 Insufficient Storage" in said and "do not fit into the quota of VO cms" in said
    assert "100 Continue" not in said
    said = await door.good("curl", "-i", f"{door.https}/cms/huge")
    assert "404 Not Found" in said
    code, said = await door.run("curl", "-i", f"{door.https}/cms/e", proxy=_limited_of_a_stranger(door))
    assert code == 0 and "403 Forbidden" in said and "is not in the map file of this site" in said


def _limited_of_a_stranger(door: Door) -> Path:
    path = door.folder / "stranger.pem"
    door.lab.user("mallory", vo=None, limited=True).save(path)
    return path


async def test_davix(door: Door) -> None:
    await door.good("davix-mkdir", f"{door.url}/cms/d")
    await door.good("davix-put", "events.root", f"{door.url}/cms/d/e")
    assert str(len(DATA)) in await door.good("davix-ls", "-l", f"{door.url}/cms/d")
    await door.run("davix-mv", f"{door.url}/cms/d/e", f"{door.url}/cms/d/moved")  # its exit code says nothing: 255
    await door.good("davix-get", f"{door.url}/cms/d/moved", "back")
    assert door.came_back("back")
    await door.good("davix-rm", f"{door.url}/cms/d/moved")
    code, said = await door.run("davix-get", f"{door.url}/cms/d/moved", "gone")
    assert code != 0 and "404" in said


async def test_gfal(door: Door) -> None:
    local = f"file://{door.folder}"
    await door.good("gfal-mkdir", "-p", f"{door.url}/cms/g/h")
    await door.good("gfal-copy", "--checksum", "ADLER32", f"{local}/events.root", f"{door.url}/cms/g/h/e")
    assert f"{zlib.adler32(DATA):08x}" in await door.good("gfal-sum", f"{door.url}/cms/g/h/e", "ADLER32")
    assert str(len(DATA)) in await door.good("gfal-ls", "-l", f"{door.url}/cms/g/h")
    await door.good("gfal-copy", f"{door.url}/cms/g/h/e", f"{local}/back")
    assert door.came_back("back")
    code, said = await door.run("gfal-copy", f"{local}/events.root", f"{door.url}/cms/g/h/e")
    assert code != 0 and "exists" in said
    await door.good("gfal-copy", "-f", f"{local}/events.root", f"{door.url}/cms/g/h/e")
    await door.good("gfal-rename", f"{door.url}/cms/g/h/e", f"{door.url}/cms/g/renamed")
    await door.good("gfal-stat", f"{door.url}/cms/g/renamed")
    await door.good("gfal-rm", "-r", f"{door.url}/cms/g")
    code, said = await door.run("gfal-stat", f"{door.url}/cms/g")
    assert code != 0 and "404" in said


async def test_xrdcp(door: Door) -> None:
    await door.good("xrdcp", "events.root", f"{door.url}/cms/x")
    await door.good("xrdcp", f"{door.url}/cms/x", "back")
    assert door.came_back("back")


@pytest.mark.skipif(shutil.which("grid-proxy-init") is None, reason="needs globus-proxy-utils")
async def test_a_proxy_of_globus_and_the_surl_of_a_file(door: Door) -> None:
    certificate = door.lab.user_certificate("alice")
    certificate.save(door.folder / "alice.pem")
    globus = door.folder / "globus.pem"
    code, said = await door.run(
        "grid-proxy-init", "-q", "-pwstdin", "-cert", "alice.pem", "-key", "alice.pem", "-out", str(globus)
    )
    assert code == 0, said
    channel = await door.lab.channel("storage", credential=door.lab.user("alice"))
    stored = await client.put_file(channel, door.source, "cms")
    file_id = client.parse_surl(stored.surl).file_id
    code, said = await door.run("curl", "-o", "back", f"{door.https}/cms/{file_id}", proxy=globus)
    assert code == 0 and door.came_back("back"), said
    assert hashlib.sha256((door.folder / "back").read_bytes()).hexdigest() == stored.checksums.sha256
