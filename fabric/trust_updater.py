"""Fresh revocation lists in this host's directory of authorities.

Every authority in the directory is asked for its list by HTTP (`/crl/<HASH>.r0` at each `authority` endpoint). Agents
of one host share the directory and one fetcher: whoever holds the lock when the last look is old enough does it for
all. What is fetched is believed only by its signature, and never replaces a newer list.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

from fabric.agent import AgentContext
from fabric.errors import GridError
from fabric.http import http_get
from fabric.settings import Endpoint
from security.errors import Reason, SecurityError, os_error_text
from security.trust import install_crl

FETCH_TIMEOUT_S = 5.0
WATCH_TURNS = 3
"""Who sees that another agent fetches looks again after this many turns."""
MAX_CRL_BYTES = 32 * 1024 * 1024
LOCK_NAME = ".gridfabric-fetch"


class TrustUpdater:
    """Runs in every agent; at most one of a directory fetches at a time."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._directory = context.settings.certificates
        self._etags: dict[str, str] = {}

    async def run(self) -> None:
        """Fetch for ever."""
        every_s = self._context.settings.fabric.crl_refresh_s
        while True:
            descriptor = self._take_turn(every_s)
            if descriptor is not None:
                try:
                    await self.fetch_all()
                finally:
                    os.pwrite(descriptor, b"\n", 0)  # its time tells the others when; a file without it is new
                    os.close(descriptor)
            await asyncio.sleep(every_s if descriptor is not None else WATCH_TURNS * every_s)

    def _take_turn(self, every_s: float) -> int | None:
        """The lock, if nobody has it and the last fetch is old enough."""
        try:
            descriptor = os.open(self._directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._context.problem(
                "crl fetch", f"the directory {self._directory} cannot be written ({os_error_text(error)})"
            )
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        status = os.fstat(descriptor)
        age_s = self._context.clock.now().timestamp() - status.st_mtime
        if status.st_size and 0 <= age_s < every_s * 0.9:
            os.close(descriptor)
            return None
        return descriptor

    async def fetch_all(self) -> None:
        """One look at every list of every authority in the directory."""
        stems = sorted({stem for authority in self._context.trust.snapshot().authorities for stem in authority.stems})
        for endpoint in self._context.settings.endpoints("authority"):
            if not endpoint.http:
                continue
            for stem in stems:
                await self._fetch(endpoint, f"/crl/{stem}.r0")

    async def _fetch(self, endpoint: Endpoint, path: str) -> None:
        url = f"{endpoint.host}:{endpoint.http}{path}"
        try:
            fetched = await http_get(
                endpoint.host,
                endpoint.http,
                path,
                timeout_s=FETCH_TIMEOUT_S,
                max_bytes=MAX_CRL_BYTES,
                etag=self._etags.get(url, ""),
            )
        except GridError as error:
            if error.reason != "HTTP_NOT_FOUND":  # an old-style hash, or another authority's
                self._context.log.debug("crl.not_fetched", url=url, sentence=error.sentence)
            return
        if fetched.body is None:
            return
        installed = await asyncio.get_running_loop().run_in_executor(None, self._install, fetched.body, url)
        if installed and fetched.etag:
            self._etags[url] = fetched.etag

    def _install(self, crl: bytes, url: str) -> bool:
        """True if this list needs not be fetched again."""
        try:
            if (self._directory / Path(url).name).read_bytes() == crl:
                return True  # written again it would look like news to every agent of this host
        except OSError:
            pass
        try:
            path: Path = install_crl(self._directory, crl, self._context.clock.now())
        except SecurityError as error:
            if error.reason is Reason.CRL_OLDER:
                return True
            self._context.log.warning("crl.refused", url=url, reason=error.reason.value, sentence=error.sentence)
            return False
        except OSError as error:
            self._context.log.error("crl.not_installed", url=url, detail=str(error))
            return False
        self._context.log.info("crl.installed", url=url, path=str(path))
        return True
