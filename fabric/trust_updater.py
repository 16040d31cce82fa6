"""Fresh revocation lists in this host's directory of authorities.

Two sources beside the push (`fabric/trust_push.py`): the grid's authorities (`/crl/<HASH>.rN` at each `authority`
endpoint), and for authorities from
elsewhere the addresses that the IGTF distribution puts beside them (`HASH.crl_url`, or `crl_url =` in `HASH.info`),
as fetch-crl reads them. Everything of a source is asked at once, each with its own deadline, at times that no two hosts
share. Agents of one host share the directory and one fetcher per source: whoever holds the lock when the last look is
old enough does it for all. What is fetched is believed only by its signature, never replaces a newer list, and while
nothing better comes the last good list stays.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fabric import unfetched
from fabric.context import AgentContext
from fabric.errors import GridError
from fabric.http import http_get
from security.errors import Reason, SecurityError, os_error_text
from security.files import read_bounded
from security.revocation import MAX_CRL_BYTES
from security.trust import install_crl

FETCH_TIMEOUT_S = 5.0
"""For a list of the grid's own authority, on a fast network."""
DISTRIBUTION_TIMEOUT_S = 60.0
"""For a list from elsewhere: some are megabytes on slow servers."""
DISTRIBUTION_EVERY_S = 3600.0
"""fetch-crl runs every six hours; a list is valid for days."""
JITTER = 0.2
"""Part of a pause that is left to chance, so that many hosts do not ask in the same moment."""
MAX_AT_ONCE = 8
MAX_SOURCES = 1000
"""Addresses of one directory; the IGTF bundle has about 100."""
MAX_TEXT_BYTES = 64 * 1024
WATCH_TURNS = 3
"""Who sees that another agent fetches looks again after this many turns."""
LOCK_NAME = ".gridfabric-fetch"
_Stamp = tuple[int, int, int]
_INFO_URL = re.compile(r"^\s*crl_url\.?\d*\s*=\s*(?P<urls>\S.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """Where a list may be had."""

    host: str
    port: int
    path: str
    timeout_s: float
    expected: bool = True
    """False: it is no fault if there is none (an old-style hash, another authority's)."""

    @property
    def url(self) -> str:
        """For logs."""
        return f"http://{self.host}:{self.port}{self.path}"


class TrustUpdater:
    """Runs in every agent; at most one of a directory fetches at a time."""

    def __init__(self, context: AgentContext, *, chance: random.Random | None = None) -> None:
        self._context = context
        self._directory = context.settings.certificates
        self._chance = chance or random.Random()
        self._fetched: dict[str, tuple[str, _Stamp | None]] = {}
        """By address: the tag of what was fetched, and the file that was there then."""
        self._failures: dict[str, int] = {}
        self._told = ""

    async def run(self) -> None:
        """Fetch for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self._loop(LOCK_NAME, self._context.settings.fabric.crl_refresh_s, self.authority_sources)
            )
            group.create_task(self._loop(f"{LOCK_NAME}-distribution", DISTRIBUTION_EVERY_S, self.distribution_sources))

    async def _loop(self, lock: str, every_s: float, sources: Callable[[], Sequence[Source]]) -> None:
        while True:
            descriptor = self._take_turn(lock, every_s)
            if descriptor is not None:
                try:
                    await self.fetch(sources())
                finally:
                    os.pwrite(descriptor, b"\n", 0)  # its time tells the others when; a file without it is new
                    os.close(descriptor)
            self.tell()
            pause_s = every_s if descriptor is not None else WATCH_TURNS * every_s
            await asyncio.sleep(pause_s * (1 + self._chance.uniform(-JITTER, JITTER) / 2))

    def _take_turn(self, lock: str, every_s: float) -> int | None:
        """The lock, if nobody has it and the last fetch is old enough."""
        try:
            descriptor = os.open(self._directory / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
        if status.st_size and 0 <= age_s < every_s * 0.75:
            os.close(descriptor)
            return None
        return descriptor

    def authority_sources(self) -> list[Source]:
        """The list of every authority in the directory, of each of its keys, at every authority of the grid."""
        keys = Counter(stem for authority in self._context.trust.snapshot().authorities for stem in authority.stems)
        return [
            Source(endpoint.host, endpoint.http, f"/crl/{stem}.r{index}", FETCH_TIMEOUT_S, expected=False)
            for endpoint in self._context.settings.endpoints("authority")
            if endpoint.http
            for stem in sorted(keys)
            for index in range(keys[stem])
        ]

    def distribution_sources(self, *, missing: bool = False) -> list[Source]:
        """The addresses beside the authorities of the directory, one of each where one list has several; only of those
        without a list, if it is `missing`."""
        found: dict[str, Source] = {}
        for authority in self._context.trust.snapshot().authorities:
            if missing and authority.crl is not None:
                continue
            for stem in sorted(authority.stems):
                for url in published_urls(self._directory, stem):
                    source = source_of(url)
                    if source is None:
                        self._failed(url, f"{url} is not an address that lists are fetched from; use http://")
                    elif len(found) < MAX_SOURCES:
                        found.setdefault(url, source)
        return list(found.values())

    async def fetch_all(self) -> None:
        """One look at everything, now."""
        await self.fetch([*self.authority_sources(), *self.distribution_sources()])

    async def fetch(self, sources: Sequence[Source]) -> None:
        """Ask all of these at once, a few at a time. Never raises for one of them."""
        limit = asyncio.Semaphore(MAX_AT_ONCE)
        failed: dict[str, str] = {}

        async def one(source: Source) -> None:
            async with limit:
                if problem := await self._fetch(source):
                    failed[source.url] = problem

        await asyncio.gather(*(one(source) for source in sources))
        fetched = {source.url for source in sources} - failed.keys()
        try:
            await asyncio.to_thread(unfetched.note, self._directory, failed, fetched, self._context.clock.now())
        except OSError as error:
            self._context.log.error("crl.failure_not_noted", detail=os_error_text(error))

    def tell(self) -> None:
        """Degrade this agent while lists cannot be fetched, whichever agent of this host tries."""
        alarm = unfetched.alarm(self._directory, self._context.clock.now())
        if not alarm:
            self._context.solved("unfetched lists")
            self._told = ""
            return
        self._context.problem("unfetched lists", alarm)
        if self._told != alarm:
            self._told = alarm
            self._context.log.error("crl.unfetched", sentence=alarm)

    async def _fetch(self, source: Source) -> str:
        """Why the list could not be had; empty if it could, or if there is none."""
        try:
            fetched = await http_get(
                source.host,
                source.port,
                source.path,
                timeout_s=source.timeout_s,
                max_bytes=MAX_CRL_BYTES,
                etag=self._tag(source),
            )
        except GridError as error:
            if not source.expected and error.reason == "HTTP_NOT_FOUND":
                return ""
            self._failed(source.url, error.sentence)
            return error.sentence
        if fetched.body is not None:
            installed = await asyncio.to_thread(self._install, fetched.body, source.url)
            if not installed:
                return "what comes from there is not accepted"
            if fetched.etag:
                self._fetched[source.url] = fetched.etag, self._stamp(source)
        if self._failures.pop(source.url, 0):
            self._context.log.info("crl.fetched_again", url=source.url)
        return ""

    def _tag(self, source: Source) -> str:
        """What need not be sent again: nothing, when somebody has put another file in the list's place."""
        tag, stamp = self._fetched.get(source.url, ("", None))
        return tag if stamp == self._stamp(source) else ""

    def _stamp(self, source: Source) -> _Stamp | None:
        try:
            status = (self._directory / Path(source.url).name).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _failed(self, url: str, sentence: str) -> None:
        """The first failure in a row is told, the others are for who looks closer."""
        self._failures[url] = self._failures.get(url, 0) + 1
        log = self._context.log.warning if self._failures[url] == 1 else self._context.log.debug
        log("crl.not_fetched", url=url, sentence=sentence, failures=self._failures[url])

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
            self._context.log.error("crl.not_installed", url=url, detail=os_error_text(error))
            return False
        self._context.log.info("crl.installed", url=url, path=str(path))
        return True


def published_urls(directory: Path, stem: str) -> tuple[str, ...]:
    """Addresses of an authority's list in `HASH.crl_url` (one a line) and `HASH.info` (separated by semicolons)."""
    found: list[str] = []
    for line in _text(directory / f"{stem}.crl_url").splitlines():
        found.append(line.partition("#")[0].strip())
    for match in _INFO_URL.finditer(_text(directory / f"{stem}.info")):
        found += (url.strip() for url in match["urls"].split(";"))
    return tuple(dict.fromkeys(url for url in found if url))


def _text(path: Path) -> str:
    try:
        return read_bounded(path, MAX_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def source_of(url: str) -> Source | None:
    """Where an address leads; None for one that lists are not fetched from. Only http: the list brings its own
    signature, and RFC 5280 section 8 warns of https for lists."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        return None
    if parts.scheme != "http" or not parts.hostname or parts.username is not None or not url.isascii():
        return None
    if any(character.isspace() or not character.isprintable() for character in url):
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Source(parts.hostname, port, path, DISTRIBUTION_TIMEOUT_S)
