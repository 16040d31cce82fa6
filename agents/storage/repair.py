"""Damaged files get the bytes of another replica without a user (docs/data.md, Damage at rest).

Storage elements ask each other in their own names. One proves to another that it may read a file by three things
together: its host certificate of the grid's own authority, the catalogue, which lists a replica of one file at each of
the two, and the checksums of that file. Whatever is missing or cannot be asked for is a refusal.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from agents.catalog import client as catalog
from agents.storage.client import OpenFile, open_file
from agents.storage.copying import require_source
from agents.storage.element import StorageElement
from agents.storage.manager import StorageManager
from agents.storage.model import Checksums, StoredFile
from agents.storage.store import FileStore
from agents.storage.surl import Surl, parse_surl
from fabric.clock import Clock
from fabric.errors import GridError, InvalidRequest, Refused
from fabric.logs import Logger
from fabric.rpc.peer import Peer
from fabric.settings import Settings

AGAIN_S = 600.0
"""Between two attempts at a file."""
PAGE = 100
_NO_GOOD = frozenset({"FILE_DAMAGED", "FILE_LOST", "FILE_NOT_FOUND", "SOURCE_DIFFERS", "CHECKSUM_MISMATCH"})
"""A replica of which this is known will not mend anything; whatever else went wrong may go better later."""


class ChannelSource(Protocol):
    """Where channels come from; without a credential in the element's own name."""

    async def get(self, host: str, port: int, credential: Any = None) -> Any:
        """A secure channel."""
        ...


class Replicas:
    """What the catalogue says of this element's files, and which element a caller is."""

    def __init__(self, channels: ChannelSource, settings: Settings) -> None:
        self._channels, self._settings = channels, settings

    async def of(self, surl: Surl) -> tuple[str, ...]:
        """Every replica of the file that has this one, this one too; empty if it is not listed. Raises GridError."""
        endpoint = self._settings.endpoint("catalog")
        found, _ = await catalog.lookup(await self._channels.get(endpoint.host, endpoint.rpc), [str(surl)])
        entries = [entry for entry in found if catalog.parse_lfn(entry.lfn).vo == surl.vo]
        return tuple(replica.surl for entry in entries for replica in entry.replicas)

    async def require_both(self, peer: Peer, surl: Surl, other: Surl) -> None:
        """Raises Refused(REPLICA_UNPROVEN) unless `peer` is the storage element of `other`, and the catalogue lists
        both for one file of one VO."""
        caller = self._settings.endpoint_named("storage", peer.agent_name, peer.agent_site)
        if caller is None or (caller.host.lower(), caller.rpc) != (other.rpc_host.lower(), other.port):
            raise _unproven(peer, surl, f"it is not known as the storage element of {other}")
        if other.vo != surl.vo:
            raise _unproven(peer, surl, f"{other} is of another VO")
        try:
            listed = await self.of(surl)
        except GridError as error:
            raise _unproven(peer, surl, f"the catalogue cannot be asked ({error.sentence})") from error
        if not {str(surl), str(other)} <= set(listed):
            raise _unproven(peer, surl, f"the catalogue does not list {other} as a replica of the same file")


def _unproven(peer: Peer, surl: Surl, why: str) -> Refused:
    return Refused(
        "REPLICA_UNPROVEN",
        f"{peer.subject} may not read {surl}: {why}; a storage element reads only what it keeps a replica of",
        subject=peer.subject,
        surl=surl,
    )


class Repairer:
    """Mends the damaged files of one element. `run` is its background task."""

    def __init__(
        self,
        manager: StorageManager,
        files: FileStore,
        replicas: Replicas,
        channels: ChannelSource,
        *,
        log: Logger,
        clock: Clock,
    ) -> None:
        self._manager, self._files, self._replicas, self._channels = manager, files, replicas, channels
        self._log, self._clock = log, clock
        self._not_before: dict[str, float] = {}
        """By the id on disk of a damaged file: when it is tried again (monotonic)."""
        self.repaired = 0
        """Since the start."""

    @property
    def _element(self) -> StorageElement:
        return self._manager.element

    async def run(self) -> None:
        """Whenever damage is found, and now and then. Ends only by cancellation."""
        while True:
            heard = self._element.damage_found.rung
            try:
                await self.round()
            except GridError as error:
                self._log.error("storage.repair_failed", reason=error.reason, sentence=error.sentence)
            await self._element.damage_found.wait(AGAIN_S, heard)

    async def round(self) -> None:
        """Try each damaged file whose time it is."""
        position, seen = "", set[str]()
        while page := await self._files.damaged(position, PAGE):
            position = page[-1].file_id
            for file in page:
                seen.add(file.disk_id)
                if self._not_before.get(file.disk_id, 0.0) <= self._clock.monotonic():
                    self._not_before[file.disk_id] = self._clock.monotonic() + AGAIN_S
                    await self._mend(file)
        self._not_before = {disk_id: when for disk_id, when in self._not_before.items() if disk_id in seen}

    async def _mend(self, file: StoredFile) -> None:
        """From the first replica that is good. With none left the file is lost, which is told once."""
        surl = parse_surl(self._manager.surl(file))
        failures: list[GridError] = []
        try:
            listed = await self._replicas.of(surl)
        except GridError as error:
            self._failed(surl, "", error)
            return
        if str(surl) not in listed:
            return  # nobody's file: `grid data audit` names it
        for text in listed:
            if text == str(surl):
                continue
            try:
                source = parse_surl(text)
                async with self._opened(source, surl, file.checksums) as opened:
                    done = await self._element.repair(file, opened.pieces())
            except GridError as error:
                self._failed(surl, text, error)
                failures.append(error)
                continue
            if done:
                self.repaired += 1
                self._log.audit("storage.repaired", surl=str(surl), vo=file.vo, source=text, repaired=True)
            return
        if file.damage != "FILE_LOST" and all(error.reason in _NO_GOOD for error in failures):
            self._log.audit("storage.file_lost", surl=str(surl), vo=file.vo, name=file.name_hint, tried=len(failures))
            await self._element.mark(file, "FILE_LOST")

    @asynccontextmanager
    async def _opened(self, source: Surl, surl: Surl, expected: Checksums) -> AsyncGenerator[OpenFile]:
        if source.vo != surl.vo:
            raise InvalidRequest("SURL_INVALID", f"{source} is of another VO than {surl}; remove it from the catalogue")
        channel = await self._channels.get(source.rpc_host, source.port)
        async with open_file(channel, str(source), repairs=str(surl), expected=expected) as opened:
            require_source(source, opened.checksums, expected)
            yield opened

    def _failed(self, surl: Surl, source: str, error: GridError) -> None:
        self._log.warning(
            "storage.not_repaired", surl=str(surl), source=source, reason=error.reason, sentence=error.sentence
        )
