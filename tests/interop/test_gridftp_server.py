"""Transfers to and from a real Globus GridFTP server (Debian's globus-gridftp-server-progs), by `globus-url-copy`."""

from __future__ import annotations

import os
import pwd
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.grid import LabGrid, free_port
from support.servers import server
from support.transfers import Desk
from support.waiting import until

from agents.storage import client as storage
from agents.storage import gridftp
from fabric.errors import InvalidRequest

DATA = random.Random(9).randbytes(3_000_017)
SERVER = "globus-gridftp-server"
pytestmark = pytest.mark.skipif(
    shutil.which(SERVER) is None or shutil.which(gridftp.PROGRAM) is None,
    reason=f"needs the packages globus-gridftp-server-progs and {gridftp.PACKAGE}",
)


@asynccontextmanager
async def gridftp_server(lab: LabGrid, folder: Path, subject: object) -> AsyncIterator[tuple[str, Path]]:
    """A server that one user may write to: the URL of a directory, and where that lies."""
    port, files = free_port(), folder / "files"
    files.mkdir()
    lab.service("storage", "gridftp").save(folder / "host.pem")
    (folder / "grid-mapfile").write_text(f'"{subject}" {pwd.getpwuid(os.geteuid()).pw_name}\n')
    environ = {
        "PATH": os.environ["PATH"],
        "X509_CERT_DIR": str(lab.certificates),
        "X509_USER_CERT": str(folder / "host.pem"),
        "X509_USER_KEY": str(folder / "host.pem"),
        "GRIDMAP": str(folder / "grid-mapfile"),
        "GLOBUS_HOSTNAME": "localhost",
    }
    local = ["-hostname", "localhost", "-control-interface", "127.0.0.1", "-data-interface", "127.0.0.1"]
    command = (SERVER, "-s", "-allow-root", "-p", str(port), *local)
    async with server(*command, port=port, folder=folder, environ=environ):
        yield f"gsiftp://localhost:{port}{files}", files


async def test_the_transfer_agent_copies_to_and_from_a_real_gridftp_server(tmp_path: Path) -> None:
    async with LabGrid(tmp_path / "lab") as lab:
        desk = Desk(lab, tmp_path)
        await desk.start(max_attempts=1)
        lfn = await desk.put("f", data=DATA)
        async with gridftp_server(lab, tmp_path, desk.alice.identity) as (url, files):
            (file,) = await desk.ended(await desk.submit([lfn], f"{url}/made/here"))
            assert (file.state, file.reason) == ("FINISHED", ""), file.sentence
            (kept,) = (files / "made/here").iterdir()
            assert file.surl == f"{url}/made/here/{kept.name}" and kept.read_bytes() == DATA
            (back,) = await desk.ended(await desk.submit([lfn], "RAL", source=url))
            assert back.state == "FINISHED", back.sentence
            assert await storage.read_range(await desk.element("RAL"), back.surl) == DATA

            kept.write_bytes(DATA[:-1])
            (short,) = await desk.ended(await desk.submit([lfn], "CNAF", source=url))
            kept.write_bytes(DATA[::-1])
            (wrong,) = await desk.ended(await desk.submit([lfn], "CNAF", source=url))
            kept.unlink()
            (gone,) = await desk.ended(await desk.submit([lfn], "CNAF", source=url))
            assert [one.state for one in (short, wrong, gone)] == ["FAILED"] * 3
            assert (wrong.reason, gone.reason) == ("CHECKSUM_MISMATCH", "FILE_NOT_FOUND")
            assert await desk.on("CNAF") == []
            with pytest.raises(InvalidRequest) as caught:
                await storage.remove(await desk.element("CERN"), file.surl)
            assert caught.value.reason == "REMOVE_UNSUPPORTED"
        job_id = await desk.submit([lfn], f"{url}/other")

        async def says_why() -> bool:
            return "globus-url-copy" in (await desk.files(job_id))[0].sentence

        await until(says_why, "the reason why nothing is copied")
        await (await desk.transfers()).cancel(job_id)
        assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("gridftp-*/proxy.pem"))
