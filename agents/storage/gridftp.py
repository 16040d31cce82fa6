"""Files of GridFTP servers, by Globus' own client `globus-url-copy` in a process of its own, with the user's proxy.

The bytes go through its standard input or output, so what is put and what is verified is as for every other copy. The
process ends with the block that uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from agents.storage.model import PIECE_BYTES
from fabric.clock import Clock
from fabric.errors import DeadlineExceeded, GridError, InvalidRequest, NotFound, Refused, Unavailable
from security import proxies
from security.credentials import Credential

PROGRAM = "globus-url-copy"
PACKAGE = "globus-gass-copy-progs"
KEY_TYPE = "rsa-2048"
MAX_PROXIES = 100
"""Of users, kept."""
ANSWER_S = 600.0
"""How long for its end after the last byte: the other disk may have to write."""
MAX_SAID_BYTES = 4096

_URL = re.compile(r"gsiftp://[A-Za-z0-9.-]+(:[0-9]{1,5})?/[A-Za-z0-9._~%/+@=:,-]{0,4000}[A-Za-z0-9._~%+@=:,-]\Z")


class Running:
    """A `globus-url-copy` at work."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process, self._url = process, url
        assert process.stderr is not None
        self._said = asyncio.create_task(process.stderr.read(MAX_SAID_BYTES))

    async def pieces(self) -> AsyncGenerator[memoryview]:
        """What it reads there. Raises GridError of its failure."""
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(PIECE_BYTES):
            yield memoryview(piece)
        await self.end()

    async def send(self, data: memoryview) -> int:
        """A piece of what it writes there. Raises GridError of its failure."""
        assert self._process.stdin is not None
        piece = bytes(data[:PIECE_BYTES])
        try:
            self._process.stdin.write(piece)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            await self.end()
            raise Unavailable("PEER_FAILED", f"{PROGRAM} took not all bytes of {self._url}; try again") from None
        return len(piece)

    async def end(self) -> None:
        """No more bytes; returns when it has succeeded. Raises GridError of its failure, DeadlineExceeded."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(ANSWER_S):
                status = await self._process.wait()
                said = (await self._said).decode(errors="replace")
        except TimeoutError:
            raise DeadlineExceeded(
                "TRANSFER_STALLED", f"{PROGRAM} did not end within {ANSWER_S:g} s of the last byte of {self._url}"
            ) from None
        if status:
            raise _failure(self._url, said)

    def close(self) -> None:
        """End it, however far it is."""
        self._said.cancel()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class GridFtp:
    """Copies with users' proxies; `certificates` is the directory of authorities that servers are judged by."""

    def __init__(self, certificates: Path, clock: Clock) -> None:
        self._certificates, self._clock = certificates, clock
        self._made: dict[Credential, Credential] = {}
        """Proxies as Globus needs them; each costs two keys."""

    @asynccontextmanager
    async def reading(self, url: str, offset: int, credential: Credential) -> AsyncGenerator[Running]:
        """Its bytes from `offset` on. Raises InvalidRequest(URL_INVALID | GRIDFTP_UNAVAILABLE)."""
        part = ["-off", str(offset)] if offset else []
        async with self._running([*part, _checked(url), "-"], url, credential) as running:
            yield running

    @asynccontextmanager
    async def writing(self, url: str, credential: Credential) -> AsyncGenerator[Running]:
        """The block sends its bytes; directories are made. Raises as `reading`, and after the block GridError of its
        failure."""
        async with self._running(["-cd", "-", _checked(url)], url, credential) as running:
            yield running
            await running.end()

    @asynccontextmanager
    async def _running(self, arguments: list[str], url: str, credential: Credential) -> AsyncGenerator[Running]:
        program = shutil.which(PROGRAM)
        if program is None:
            raise InvalidRequest(
                "GRIDFTP_UNAVAILABLE",
                f"this storage element has no {PROGRAM}, so it copies nothing from or to {url[:200]}; its "
                f"administrator may install {PACKAGE}",
            )
        proxy = await asyncio.to_thread(self._for_globus, credential)
        folder = Path(tempfile.mkdtemp(prefix="gridftp-"))
        try:
            proxy.save(folder / "proxy.pem")
            process = await asyncio.create_subprocess_exec(
                program, "-dcpriv", *arguments,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                limit=2 * PIECE_BYTES, cwd=folder, start_new_session=True,
                env={
                    "PATH": os.defpath, "HOME": str(folder), "X509_CERT_DIR": str(self._certificates),
                    "X509_USER_PROXY": str(folder / "proxy.pem"),
                },
            )  # fmt: skip
            running = Running(process, url)
            try:
                yield running
            finally:
                running.close()
                await process.wait()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _for_globus(self, credential: Credential) -> Credential:
        """Globus signs what it delegates in the manner of the proxy's own signature, and as large as its key: both are
        to be RSA."""
        made = self._made.get(credential)
        if made is None:
            made, now = credential, self._clock.now()
            for _ in range(2):
                made = proxies.create_proxy(made, lifetime=credential.not_after - now, now=now, key_type=KEY_TYPE)
            while len(self._made) >= MAX_PROXIES:
                self._made.pop(next(iter(self._made)), None)
            self._made[credential] = made
        return made


def _checked(url: str) -> str:
    if not _URL.match(url):
        raise InvalidRequest(
            "URL_INVALID", f"{url[:200]!r} is no file of a GridFTP server; write gsiftp://host:port/path"
        )
    return url


def _failure(url: str, said: str) -> GridError:
    told = " ".join(line.strip() for line in said.splitlines() if line.strip())[-300:]
    sentence = f"{url} could not be copied by {PROGRAM}: {told or 'it said nothing'}"
    if "No such file or directory" in said:
        return NotFound("FILE_NOT_FOUND", sentence)
    if "Permission denied" in said or "Login incorrect" in said or "530" in said:
        return Refused("PEER_REFUSED", sentence)
    return Unavailable("PEER_FAILED", sentence)
