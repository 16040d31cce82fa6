"""A job's input and output data, in its owner's name, at storage elements and in the catalogue.

What a repeat needs to be harmless is made from the job: the GUID of an output file from (job, file), the put id from
(job, attempt, file). So an attempt that died after its upload leaves nothing that the next one stumbles over.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from agents.catalog import client as catalog
from agents.keystore.client import KeyStores
from agents.storage import client as storage
from agents.worker.sandbox_cache import is_passing
from fabric.errors import AlreadyExists, DataCorrupted, GridError, InvalidRequest, NotFound, Refused, Unavailable
from fabric.settings import Endpoint, Settings
from security.credentials import Credential
from security.errors import SecurityError

T = TypeVar("T")
_NAMESPACE = uuid.UUID("6f1f8f3c-5a0e-5c57-9d5e-3f2c6d2a7b11")


@dataclass(frozen=True)
class Uploaded:
    """An output file that is at a storage element and in the catalogue."""

    lfn: str
    guid: str
    surl: str
    size_bytes: int


class DataMover:
    """Moves files for jobs. Each call keeps trying for `retry_s` while a service is away."""

    def __init__(self, settings: Settings, channels: Any, *, retry_s: float, log: Any) -> None:
        self._settings, self._channels, self._retry_s, self._log = settings, channels, retry_s, log

    # ---- where

    @property
    def close_storage(self) -> Endpoint | None:
        """The storage element of this site."""
        close = self._settings.endpoints("storage", site=self._settings.site)
        return close[0] if close else None

    def _find_storage(self, wanted: str) -> Endpoint:
        """A storage element by name, site, host or host:port; empty: the close one, else any. Elements of other sites
        are known by host:port only: the broker writes that for names."""
        close = self.close_storage or next(iter(self._settings.endpoints("storage")), None)
        found = self._settings.endpoint_meant("storage", wanted) if wanted else close
        host, _, port = wanted.rpartition(":")
        if found is None and host and port.isdecimal() and int(port) < 1 << 16:
            return Endpoint("storage", wanted, host, rpc=int(port))
        if found is None:
            raise InvalidRequest(
                "STORAGE_UNKNOWN", f"no storage element {wanted or 'at all'} is known here; look at grid info ses"
            )
        return found

    async def _catalogue(self, credential: Credential) -> Any:
        endpoint = self._settings.endpoint("catalog")
        return await self._channels.get(endpoint.host, endpoint.rpc, credential=credential)

    async def end_of_pieces(self, directory: str, credential: Credential) -> int:
        """Where the last file of a directory ends whose files are called by the offset of their first byte; 0 if there
        is none. Raises GridError."""
        channel = await self._catalogue(credential)
        ends = [0]
        with contextlib.suppress(NotFound):
            async for entry in catalog.list_directory(channel, directory):
                name = entry.lfn.rpartition("/")[2]
                if entry.content is not None and name.isascii() and name.isdecimal():
                    ends.append(int(name) + entry.content.size_bytes)
        return max(ends)

    async def names_in(self, directory: str, most: int, credential: Credential) -> list[str]:
        """The first names in a directory; none if it is not there. Raises GridError."""
        channel = await self._catalogue(credential)
        try:
            entries, _ = await catalog.list_page(channel, directory, page_size=most)
        except NotFound:
            return []
        return [entry.lfn.rstrip("/").rpartition("/")[2] for entry in entries]

    # ---- input

    async def bring(
        self, names: Sequence[str], folder: Path, credential: Credential, uid: int, gid: int
    ) -> dict[str, list[str]]:
        """Put these files (LFN, GUID or SURL) into the job's directory under their last name, encrypted ones opened
        with the job's proxy; returns where each has replicas, the nearest first. Raises GridError."""
        spellings = {name: catalog.one_spelling(name) for name in names}
        surls = [name for name in spellings if catalog.kind_of(name) is catalog.NameKind.SURL]
        logical = {name: spelling for name, spelling in spellings.items() if name not in surls}
        files: list[tuple[str, list[str], storage.Checksums | None]] = [(surl, [surl], None) for surl in surls]
        lfns: dict[str, str] = {}
        if logical:
            entries = await self._lookup(list(logical.values()), credential)
            found = {name: entry for entry in entries for name in (f"lfn:{entry.lfn}", f"guid:{entry.guid}")}
            for name, spelling in logical.items():
                entry = found.get(spelling)
                if entry is None or entry.content is None or not entry.replicas:
                    raise NotFound("INPUT_DATA_UNKNOWN", f"{name} is not in the catalogue or has no replica", lfn=name)
                replicas = sorted((replica.surl for replica in entry.replicas), key=self._distance)
                lfns[name] = entry.lfn
                files.append((entry.lfn, replicas, storage.Checksums(entry.content.adler32, entry.content.sha256)))
        owner = (uid, gid) if uid > 0 else None
        targets = [name.rstrip("/").rpartition("/")[2] for name, _, _ in files]
        if len(set(targets)) != len(targets):
            raise InvalidRequest("INPUT_DATA_CLASH", "two input data files have the same last name; rename one")
        for (name, replicas, expected), target in zip(files, targets, strict=True):
            if target in ("", ".", "..") or target.startswith("."):
                raise InvalidRequest("INPUT_DATA_NAME", f"{name} has no usable last name")
            await self._bring_one(name, replicas, expected, folder / target, credential, owner)
        where = {name: replicas for name, replicas, _ in files}
        return {name: where[lfns.get(name, name)] for name in names}

    def _distance(self, surl: str) -> int:
        """0 for a replica at this site's storage element, then 1."""
        close = self.close_storage
        return 0 if close is not None and urlsplit(surl).netloc == close.address else 1

    async def _lookup(self, lfns: Sequence[str], credential: Credential) -> list[catalog.Entry]:
        channel = await self._catalogue(credential)
        found, _ = await self._retried(lambda: catalog.lookup(channel, lfns))
        return found

    async def _bring_one(
        self,
        name: str,
        replicas: list[str],
        expected: storage.Checksums | None,
        target: Path,
        credential: Credential,
        owner: tuple[int, int] | None,
    ) -> None:
        async def any_replica() -> None:
            failure: GridError | None = None
            for surl in replicas:
                try:
                    where = storage.parse_surl(surl)
                    channel = await self._channels.get(where.rpc_host, where.port, credential=credential)
                    await storage.get_file(channel, surl, target, expected=expected, mode=0o600, owner=owner)
                    return
                except GridError as error:
                    failure = error if failure is None or not is_passing(failure) else failure
                    self._log.warning("data.replica_failed", surl=surl, lfn=name, sentence=error.sentence)
            assert failure is not None
            raise failure

        try:
            await self._retried(any_replica)
        except Unavailable as error:
            if error.reason == "FILE_STAGING":
                raise Unavailable("INPUT_DATA_ON_TAPE", f"{name} is not on disk yet: {error.sentence}") from error
            raise

        async def channel_to(host: str, port: int) -> Any:
            return await self._channels.get(host, port, credential=credential)

        stores = KeyStores(self._settings.endpoints("keystore"), channel_to)
        try:
            await self._retried(lambda: stores.open_file(target, name, owner))
        except (Refused, DataCorrupted, SecurityError) as error:
            raise Refused("INPUT_DATA_SEALED", f"{name} is encrypted and cannot be opened: {error}") from error

    # ---- output

    async def keep(
        self,
        descriptor: int,
        *,
        file: str,
        lfn: str,
        wanted: str,
        vo: str,
        job_id: str,
        attempt: int,
        credential: Credential,
    ) -> Uploaded:
        """Upload an open file and register it. Raises GridError."""
        endpoint = self._find_storage(wanted)
        guid = str(uuid.uuid5(_NAMESPACE, f"{job_id}\n{file}"))
        put_id = str(uuid.uuid5(_NAMESPACE, f"{job_id}\n{attempt}\n{file}"))
        lfn = lfn.removeprefix("lfn:")
        name = lfn or f"{job_id}/{file}"

        async def upload() -> storage.Stored:
            channel = await self._channels.get(endpoint.host, endpoint.rpc, credential=credential)
            return await storage.put_open_file(
                channel, descriptor, file, vo, name_hint=name[-200:], put_id=put_id, patience_s=0
            )

        put = await self._retried(upload)
        if lfn:
            await self._register(lfn, guid, put, endpoint, credential)
        return Uploaded(lfn, guid, put.surl, put.size_bytes)

    async def _register(
        self, lfn: str, guid: str, put: storage.Stored, endpoint: Endpoint, credential: Credential
    ) -> None:
        content = catalog.Content(put.size_bytes, put.checksums.adler32, put.checksums.sha256)
        channel = await self._catalogue(credential)
        try:
            await self._retried(
                lambda: catalog.register(channel, lfn, guid, content, surl=put.surl, storage_element=endpoint.address)
            )
        except (AlreadyExists, DataCorrupted) as error:
            if error.facts.get("guid") == guid:
                # An earlier attempt of this very job registered its file: that one stands.
                self._log.info("data.registered_before", lfn=lfn, guid=guid)
            else:
                await self._discard(put.surl, credential)
                raise
        except GridError:
            await self._discard(put.surl, credential)
            raise

    async def _discard(self, surl: str, credential: Credential) -> None:
        """A file that no catalogue entry will name is removed again, if possible."""
        where = storage.parse_surl(surl)
        with contextlib.suppress(GridError):
            channel = await self._channels.get(where.rpc_host, where.port, credential=credential)
            await storage.remove(channel, surl)

    # ---- patience

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + self._retry_s, 0.2
        while True:
            try:
                return await attempt()
            except GridError as error:
                if not is_passing(error) or loop.time() + pause_s > until:
                    raise
                self._log.warning("data.retry", reason=error.reason, sentence=error.sentence)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 3.0)
